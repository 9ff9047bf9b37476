//! The URL of `penstock explain` as the request a client would send.

use std::net::{IpAddr, Ipv4Addr};

use crate::l7::explain::{Request, Scheme};

/// Reads `[http[s]://]HOST[:PORT][/PATH][?QUERY]`; without a scheme, plain HTTP. A `Host` header
/// among `headers` replaces the URL's host, as with curl.
pub fn parse(url: &str, headers: &[(String, String)]) -> Result<Request, String> {
    let allowed = "allowed: http://HOST/PATH or https://HOST/PATH";
    let (scheme, rest) = match url.split_once("://") {
        Some(("http", rest)) => (Scheme::Http, rest),
        Some(("https", rest)) => (Scheme::Https, rest),
        Some((other, _)) => return Err(format!("url {url:?}: scheme {other:?}: {allowed}")),
        None => (Scheme::Http, url),
    };
    // What follows `#` is never sent to a server.
    let rest = rest.split('#').next().unwrap_or_default();
    let at = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, target) = rest.split_at(at);
    if authority.is_empty()
        || authority.contains('@')
        || url.chars().any(|c| c.is_whitespace() || c.is_control())
    {
        return Err(format!("url {url:?}: {allowed}, no user information, no spaces"));
    }
    let named = headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("host"));
    Ok(Request {
        scheme,
        host: named.map_or(authority, |(_, host)| host).to_owned(),
        target: if target.starts_with('/') { target.to_owned() } else { format!("/{target}") },
        method: "GET".to_owned(),
        headers: headers.to_vec(),
        client: IpAddr::V4(Ipv4Addr::LOCALHOST),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_becomes_the_request_a_client_would_send() {
        let cases = [
            ("http://a.example", Scheme::Http, "a.example", "/"),
            ("a.example:8080/x", Scheme::Http, "a.example:8080", "/x"),
            ("https://a.example?q=1", Scheme::Https, "a.example", "/?q=1"),
            ("https://[2001:db8::1]:8443/x?y#z", Scheme::Https, "[2001:db8::1]:8443", "/x?y"),
        ];
        for (url, scheme, host, target) in cases {
            let request = parse(url, &[]).expect(url);

            assert_eq!(
                (request.scheme, request.host.as_str(), request.target.as_str()),
                (scheme, host, target),
                "{url}"
            );
        }
    }

    #[test]
    fn a_host_header_replaces_the_host_of_the_url() {
        let headers = [("host".to_owned(), "b.example".to_owned())];

        assert_eq!(parse("http://127.0.0.1/x", &headers).expect("valid").host, "b.example");
    }

    #[test]
    fn what_no_client_would_send_is_refused_with_the_allowed_form() {
        for url in ["", "ftp://a/", "http://", "http://u@a/", "http://a b/", "/path"] {
            let error = parse(url, &[]).expect_err(url);

            assert!(error.contains("allowed: http://HOST/PATH"), "{url}: {error}");
        }
    }
}

//! `mirror-target` with `mirror-host` and `mirror-request-body`. A copy guards nothing: one that cannot be
//! made is left out and told.

use super::super::findings::About;
use super::policies::Source;
use super::{field, value};
use crate::model::expression::Expression;
use crate::model::l7::policy::{Copied, Mirror};

const TARGET: &str = "mirror-target";
const HOST: &str = "mirror-host";

pub(super) fn read(source: &Source<'_>, about: &mut About<'_>) -> Option<Mirror> {
    let url = source.valid.get(TARGET)?;
    let mirror = split(url).and_then(|(tls, host, target)| {
        Ok(Mirror {
            tls,
            host: Expression::parse(host)?,
            target: (!target.is_empty()).then(|| Expression::parse(&with_query(url, target))).transpose()?,
            // Told by whoever names upstreams, where the host is one of our Services.
            upstream: None,
            named: None,
            body: match source.valid.get("mirror-request-body") {
                Some(&"off") => Copied::Head,
                _ => Copied::Whole,
            },
        })
    });
    let mirror = match mirror {
        Ok(mirror) => mirror,
        Err(message) => {
            about.warn("bad-annotation", field(TARGET), format!("{url:?} {message}; nothing is copied"), "");
            return None;
        }
    };
    let named = source.valid.get(HOST).and_then(|text| match Expression::parse(text) {
        Ok(named) => Some(named),
        Err(message) => {
            let message = format!("{text:?}: {message}; the target's host is used");
            about.warn("bad-annotation", field(HOST), message, "");
            None
        }
    });
    Some(Mirror { named, ..mirror })
}

/// The client's query goes behind a target that nothing is filled into, whatever stands there: so `proxy_pass` does it.
fn with_query(url: &str, target: &str) -> String {
    let query = if url.contains('$') { "" } else { "$is_args$args" };
    [target, query].concat()
}

/// Whether by TLS, host with port, and what follows it.
fn split(url: &str) -> Result<(bool, &str, &str), String> {
    let (tls, rest) = match (url.strip_prefix("http://"), url.strip_prefix("https://")) {
        (Some(rest), _) => (false, rest),
        (_, Some(rest)) => (true, rest),
        (None, None) => return Err("is no http or https URL".to_owned()),
    };
    let (host, target) = rest.split_at(value::host_end(rest));
    let is_host = |c: char| c.is_ascii_alphanumeric() || "-._:[]${}".contains(c);
    if host.is_empty() || !host.chars().all(is_host) {
        return Err("names no host".to_owned());
    }
    if target.contains(|c: char| c.is_whitespace() || c.is_control() || c == '#') {
        return Err("has a path that cannot be sent".to_owned());
    }
    Ok((tls, host, target))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_ends_where_a_path_or_a_variable_with_one_begins() {
        let cases = [
            ("https://test.example.com$request_uri", Ok((true, "test.example.com", "$request_uri"))),
            ("http://test:8080/$request_uri", Ok((false, "test:8080", "/$request_uri"))),
            ("http://test", Ok((false, "test", ""))),
            ("http://test/a?b=$arg_c", Ok((false, "test", "/a?b=$arg_c"))),
            ("http://$host/x${uri}", Ok((false, "$host", "/x${uri}"))),
            ("https://[::1]:8443${uri}?x", Ok((true, "[::1]:8443", "${uri}?x"))),
            ("test.example.com", Err(())),
            ("http://$request_uri", Err(())),
            ("http://a b/", Err(())),
            ("http://a/b c", Err(())),
        ];
        for (url, expected) in cases {
            assert_eq!(split(url).map_err(|_| ()), expected, "{url}");
        }
    }
}

//! Why there is no TLS with an endpoint, in words for whoever set it up, with the annotation that decides about it.

use std::io;

use rustls::pki_types::{ServerName, UnixTime};
use rustls::{CertificateError, OtherError};

use super::super::calendar::Moment;

/// The error of a handshake, in words where it is one of the usual ones.
pub(super) fn in_words(error: io::Error) -> io::Error {
    let known = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match known.and_then(words) {
        Some(words) => io::Error::new(error.kind(), words),
        None => error,
    }
}

/// A handshake that the endpoint leaves unanswered.
pub(super) fn unanswered() -> io::Error {
    let words = "connected, but no answer to the TLS handshake; does it speak TLS there? (backend-protocol)";
    io::Error::new(io::ErrorKind::TimedOut, words)
}

/// Whether it ended a connection by saying what it holds against it.
pub(in crate::l7) fn is_alert(error: &io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    matches!(inner, Some(rustls::Error::AlertReceived(_)))
}

/// It did so instead of answering the first request: with TLS 1.3 it looks at our certificate after our handshake has ended.
pub(super) fn refused() -> io::Error {
    let words =
        "it refuses the connection behind the handshake; it may want a certificate (proxy-ssl-secret)";
    io::Error::new(io::ErrorKind::ConnectionAborted, words)
}

fn words(error: &rustls::Error) -> Option<String> {
    match error {
        rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(inner))) => {
            inner.downcast_ref::<webpki::Error>().and_then(of_certificate)
        }
        rustls::Error::InvalidMessage(_) => {
            Some("what it answers is no TLS; does it speak TLS there? (backend-protocol)".to_owned())
        }
        rustls::Error::AlertReceived(alert) => Some(format!(
            "it refuses the handshake ({alert:?}); it may want a certificate (proxy-ssl-secret), another name \
             (proxy-ssl-name) or another version (proxy-ssl-protocols)"
        )),
        _ => None,
    }
}

/// What our verifier holds against its certificate.
fn of_certificate(error: &webpki::Error) -> Option<String> {
    let words = match error {
        webpki::Error::CertNotValidForName(context) => {
            let known: Vec<_> = context.presented.iter().map(|name| plain(name)).collect();
            let known = if known.is_empty() { "no name".to_owned() } else { known.join(", ") };
            let wanted = wanted(&context.expected);
            format!("its certificate is for {known}, not for {wanted} (proxy-ssl-name)")
        }
        webpki::Error::CertExpired { not_after, .. } => {
            format!("its certificate expired on {}", date(*not_after))
        }
        webpki::Error::CertNotValidYet { not_before, .. } => {
            format!("its certificate is not valid before {}", date(*not_before))
        }
        webpki::Error::UnknownIssuer => {
            "its certificate is of an authority that is not in the Secret of proxy-ssl-secret".to_owned()
        }
        webpki::Error::MaximumPathDepthExceeded => {
            "more authorities stand above its certificate than proxy-ssl-verify-depth allows".to_owned()
        }
        _ => return None,
    };
    Some(words)
}

/// A name as webpki tells it, like `DnsName("a.example")`.
fn plain(told: &str) -> &str {
    told.split('"').nth(1).unwrap_or(told)
}

fn wanted(name: &ServerName<'_>) -> String {
    match name {
        ServerName::IpAddress(addr) => std::net::IpAddr::from(*addr).to_string(),
        name => name.to_str().into_owned(),
    }
}

fn date(at: UnixTime) -> String {
    let Moment { year, month, day, .. } = Moment::of(at.as_secs());
    format!("{year}-{month:02}-{day:02}")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use webpki::InvalidNameContext;

    use super::*;

    #[test]
    fn what_is_wrong_with_a_certificate_is_said_in_words() {
        let at = |seconds| UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        let name = |presented: &[&str]| {
            webpki::Error::CertNotValidForName(InvalidNameContext {
                expected: ServerName::try_from("up.test").expect("a name"),
                presented: presented.iter().map(|name| (*name).to_owned()).collect(),
            })
        };
        let cases = [
            (
                name(&["DnsName(\"a.test\")", "DnsName(\"b.test\")"]),
                "its certificate is for a.test, b.test, not for up.test (proxy-ssl-name)",
            ),
            (name(&[]), "its certificate is for no name, not for up.test (proxy-ssl-name)"),
            (
                webpki::Error::CertExpired { time: at(3), not_after: at(86_400) },
                "its certificate expired on 1970-01-02",
            ),
            (
                webpki::Error::CertNotValidYet { time: at(3), not_before: at(86_400) },
                "its certificate is not valid before 1970-01-02",
            ),
            (
                webpki::Error::UnknownIssuer,
                "its certificate is of an authority that is not in the Secret of proxy-ssl-secret",
            ),
        ];
        for (error, expected) in cases {
            let error = CertificateError::Other(OtherError(Arc::new(error)));
            let error = io::Error::new(io::ErrorKind::InvalidData, rustls::Error::from(error));

            assert_eq!(in_words(error).to_string(), expected);
        }
    }

    #[test]
    fn what_an_endpoint_refuses_is_said_with_what_it_may_want() {
        let alert = rustls::Error::AlertReceived(rustls::AlertDescription::CertificateRequired);

        let told = in_words(io::Error::new(io::ErrorKind::InvalidData, alert)).to_string();

        assert!(
            told.starts_with("it refuses the handshake (CertificateRequired); it may want a certificate ("),
            "{told}"
        );
    }

    #[test]
    fn any_other_error_stays_what_it_is() {
        let error = io::Error::new(io::ErrorKind::InvalidData, rustls::Error::DecryptError);
        let told = error.to_string();

        assert_eq!(in_words(error).to_string(), told);
    }
}

//! Why the API server did not do what it was asked, in words that metrics and people share.

use std::error::Error as _;

use kube::core::Status;

/// One failure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) why: Why,
    pub(super) message: String,
}

/// Kinds of failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Why {
    /// We may not (403).
    Refused,
    /// It does not know who we are (401).
    Unauthorized,
    /// There is no such kind or object (404).
    Missing,
    /// Somebody else was faster (409).
    Conflict,
    /// What we have seen is too old to go on from (410).
    Gone,
    /// It has too much to do (429).
    Throttled,
    /// Any other word of its.
    Server,
    /// No connection.
    Unreachable,
    /// A connection to somebody whose certificate nobody vouches for.
    Untrusted,
    /// No answer in time.
    Slow,
    /// A watch without a sign of life.
    Silent,
    /// A connection that broke.
    Broken,
    /// An answer that says nothing to us.
    Unreadable,
}

impl Why {
    /// As a label of metrics.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Unauthorized => "unauthorized",
            Self::Missing => "missing",
            Self::Conflict => "conflict",
            Self::Gone => "gone",
            Self::Throttled => "throttled",
            Self::Server => "server",
            Self::Unreachable => "unreachable",
            Self::Untrusted => "untrusted",
            Self::Slow => "slow",
            Self::Silent => "silent",
            Self::Broken => "broken",
            Self::Unreadable => "unreadable",
        }
    }
}

/// How the TLS library begins what it says of a certificate.
const UNTRUSTED: &str = "invalid peer certificate";

impl Failure {
    pub(super) fn new(why: Why, message: impl Into<String>) -> Self {
        Self { why, message: message.into() }
    }

    /// What the server says.
    pub(super) fn said(status: &Status) -> Self {
        let why = match status.code {
            401 => Why::Unauthorized,
            403 => Why::Refused,
            404 => Why::Missing,
            409 => Why::Conflict,
            410 => Why::Gone,
            429 => Why::Throttled,
            _ => Why::Server,
        };
        let message = if status.message.is_empty() { status.reason.clone() } else { status.message.clone() };
        Self { why, message: format!("{} ({})", message, status.code) }
    }

    pub(super) fn of(error: &kube::Error) -> Self {
        let why = match error {
            kube::Error::Api(status) => return Self::said(status),
            kube::Error::Service(_) | kube::Error::HyperError(_) => Why::Unreachable,
            kube::Error::Auth(_) => Why::Unauthorized,
            kube::Error::ReadEvents(_) => Why::Broken,
            _ => Why::Unreadable,
        };
        // The innermost cause is what a person can act on.
        let mut message = error.to_string();
        let mut cause = error.source();
        while let Some(inner) = cause {
            message = inner.to_string();
            if message.starts_with(UNTRUSTED) {
                let fix = "is its authority the one that we were given (by --certificate-authority, the kubeconfig or the pod), and its name the server's?";
                return Self { why: Why::Untrusted, message: format!("{message}; {fix}") };
            }
            cause = inner.source();
        }
        Self { why, message }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_that_is_not_trusted_is_told_with_what_to_do() {
        let of = |message: &str| {
            let io = std::io::Error::other(message.to_owned());
            let failure = Failure::of(&kube::Error::Service(Box::new(io)));
            (failure.why, failure.message)
        };

        let (why, message) = of("invalid peer certificate: UnknownIssuer");
        assert_eq!(why, Why::Untrusted);
        assert!(message.starts_with("invalid peer certificate: UnknownIssuer; "), "{message}");
        assert!(message.contains("certificate-authority"), "{message}");

        assert_eq!(of("connection refused"), (Why::Unreachable, "connection refused".to_owned()));
    }
}

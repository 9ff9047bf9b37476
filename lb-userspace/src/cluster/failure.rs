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
            Self::Slow => "slow",
            Self::Silent => "silent",
            Self::Broken => "broken",
            Self::Unreadable => "unreadable",
        }
    }
}

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
            cause = inner.source();
        }
        Self { why, message }
    }
}

//! What counters tell apart: methods, and the causes of what went wrong.

use std::fmt;
use std::io;

use serde::{Deserialize, Serialize};

use crate::model::upstream::Condition;

/// Methods as metrics tell them apart; unknown ones share one label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(in crate::l7) enum Method {
    Get,
    Head,
    Post,
    Put,
    Patch,
    Delete,
    Options,
    Other,
}

impl Method {
    pub(in crate::l7) fn of(method: &str) -> Self {
        match method {
            "GET" => Self::Get,
            "HEAD" => Self::Head,
            "POST" => Self::Post,
            "PUT" => Self::Put,
            "PATCH" => Self::Patch,
            "DELETE" => Self::Delete,
            "OPTIONS" => Self::Options,
            _ => Self::Other,
        }
    }

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Head => "HEAD",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Patch => "PATCH",
            Self::Delete => "DELETE",
            Self::Options => "OPTIONS",
            Self::Other => "other",
        }
    }
}

/// How an upstream let a request down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(in crate::l7) enum Failure {
    /// Refused or unreachable.
    Connect,
    /// No connection in time.
    ConnectTimeout,
    /// No TLS: refused, unverified, or not spoken there.
    Tls,
    /// Closed without a response.
    Closed,
    /// No response in time.
    Timeout,
    /// Not HTTP/1.x.
    BadResponse,
    /// The head of the response is longer than `proxy-buffer-size`.
    HeadTooLarge,
    /// Stopped in the middle of a response.
    CutOff,
}

impl Failure {
    /// What the client is answered, where it still can be.
    pub(in crate::l7) fn status(self) -> u16 {
        match self {
            Self::ConnectTimeout | Self::Timeout => 504,
            Self::Connect
            | Self::Tls
            | Self::Closed
            | Self::BadResponse
            | Self::HeadTooLarge
            | Self::CutOff => 502,
        }
    }

    /// What nginx calls it where it decides about another attempt.
    pub(in crate::l7) fn condition(self) -> Condition {
        match self {
            Self::ConnectTimeout | Self::Timeout => Condition::Timeout,
            Self::Connect | Self::Tls | Self::Closed | Self::CutOff => Condition::Error,
            Self::BadResponse | Self::HeadTooLarge => Condition::InvalidHeader,
        }
    }

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::ConnectTimeout => "connect-timeout",
            Self::Tls => "tls",
            Self::Closed => "closed",
            Self::Timeout => "timeout",
            Self::BadResponse => "bad-response",
            Self::HeadTooLarge => "head-too-large",
            Self::CutOff => "cut-off",
        }
    }
}

/// A [`Failure`] with what the system or the TLS library says of it.
#[derive(Debug)]
pub(in crate::l7) struct Cause {
    pub(in crate::l7) failure: Failure,
    pub(in crate::l7) error: Option<io::Error>,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.failure.as_str())?;
        match &self.error {
            Some(error) => write!(f, " ({error})"),
            None if self.failure == Failure::HeadTooLarge => f.write_str(" (more than proxy-buffer-size)"),
            None => Ok(()),
        }
    }
}

impl From<Failure> for Cause {
    fn from(failure: Failure) -> Self {
        Self { failure, error: None }
    }
}

/// Why a connection was closed before its first request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(in crate::l7) enum Refused {
    /// No PROXY header where one is due.
    ProxyHeader,
    /// No ClientHello in time, or none that fits a buffer.
    Hello,
    /// A name that no server has (`ssl-reject-handshake`).
    UnknownName,
    /// TLS to be handed on, and nobody to take it.
    NoEndpoint,
}

impl Refused {
    pub(in crate::l7) fn as_str(self) -> &'static str {
        match self {
            Self::ProxyHeader => "proxy-header",
            Self::Hello => "client-hello",
            Self::UnknownName => "unknown-name",
            Self::NoEndpoint => "no-endpoint",
        }
    }
}

/// Why a client was not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(in crate::l7) enum Denied {
    /// No password, or not the right one.
    Password,
    /// Too many passwords are being checked.
    Busy,
    /// An address that is not listed, where nothing else was shown that would do.
    Address,
    /// An auth service said no.
    Service,
    /// An auth service did not say yes or no.
    Unanswered,
}

impl Denied {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Password => "password",
            Self::Busy => "busy",
            Self::Address => "address",
            Self::Service => "service",
            Self::Unanswered => "unanswered",
        }
    }
}

/// Beyond which limit of its Ingress a request was (`limit-*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(in crate::l7) enum Limited {
    /// Requests a second or a minute.
    Rate,
    /// Requests under way.
    Connections,
}

impl Limited {
    pub(in crate::l7) fn as_str(self) -> &'static str {
        match self {
            Self::Rate => "rate",
            Self::Connections => "connections",
        }
    }
}

/// What became of a request's copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(in crate::l7) enum Mirrored {
    /// Its target took it.
    Sent,
    /// Its target could not be found, or did not take it.
    Failed,
    /// Too many are under way.
    Busy,
    /// Its body is too long for one.
    TooLarge,
    /// The request itself ended before its body did.
    Incomplete,
}

impl Mirrored {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Sent => "sent",
            Self::Failed => "failed",
            Self::Busy => "busy",
            Self::TooLarge => "too-large",
            Self::Incomplete => "incomplete",
        }
    }
}

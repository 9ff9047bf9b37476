//! Active checks of endpoints: how they are asked, and what is held against those that fail.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::upstream::{UpstreamName, UpstreamTls};

/// How the endpoints of an upstream are checked (`upstream-health-check-*`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// What an endpoint is asked.
    pub probe: Probe,
    /// How often it is asked; each time a little earlier or later.
    pub interval: Duration,
    /// Longest time from the first packet to the head of the response.
    pub timeout: Duration,
    /// Bad answers in a row that make a well endpoint unwell. For one that never gave a good one, the
    /// first is enough: who starts beside it would else send requests there for as long.
    pub fall: u32,
    /// Good answers in a row that make an unwell one well.
    pub rise: u32,
}

impl Check {
    /// The interval where none is given.
    pub const INTERVAL: Duration = Duration::from_secs(10);
    /// Nobody is asked more rarely, whatever is written.
    pub const LONGEST: Duration = Duration::from_secs(24 * 3600);
    /// A probe may not take longer,
    const TIMEOUT: Duration = Duration::from_secs(5);

    /// With the usual thresholds: three bad answers, two good ones.
    pub fn new(probe: Probe, interval: Duration) -> Self {
        let interval = interval.min(Self::LONGEST);
        // nor so long that the next one begins before it has ended.
        let timeout = Self::TIMEOUT.min(interval * 4 / 5);
        Self { probe, interval, timeout, fall: 3, rise: 2 }
    }
}

/// What an endpoint is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probe {
    /// Whether it takes a connection.
    Tcp,
    /// Whether it answers a GET with 2xx or 3xx.
    Http(HttpProbe),
}

/// The request of a [`Probe::Http`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpProbe {
    /// Path and query: visible ASCII that starts with `/`.
    pub target: String,
    /// Host header, visible ASCII; `None`: the endpoint's address.
    pub host: Option<String>,
    /// `None`: plain.
    pub tls: Option<Arc<UpstreamTls>>,
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.probe {
            Probe::Tcp => f.write_str("a connection")?,
            Probe::Http(HttpProbe { target, host, tls }) => {
                let scheme = if tls.is_some() { "https" } else { "http" };
                write!(f, "{scheme} GET {target}")?;
                if let Some(host) = host {
                    write!(f, " of {host}")?;
                }
            }
        }
        write!(f, " every {:?}", self.interval)
    }
}

/// What is held against endpoints. Those that are well, or not checked, are not in it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Unwell(pub BTreeMap<UpstreamName, BTreeMap<SocketAddr, Finding>>);

impl Unwell {
    /// Those of an upstream.
    pub fn of(&self, upstream: &UpstreamName) -> impl Iterator<Item = (&SocketAddr, &Finding)> {
        self.0.get(upstream).into_iter().flatten()
    }
}

/// Endpoints that fail requests, as all workers together know it. Those that answer are not in it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Failing(pub BTreeMap<UpstreamName, BTreeMap<SocketAddr, Failures>>);

impl Failing {
    /// Those of an upstream.
    pub fn of(&self, upstream: &UpstreamName) -> impl Iterator<Item = (&SocketAddr, &Failures)> {
        self.0.get(upstream).into_iter().flatten()
    }

    /// How many of an upstream are left alone by a worker.
    pub fn ejected(&self, upstream: &UpstreamName) -> usize {
        self.of(upstream).filter(|(_, failures)| failures.ejected.is_some()).count()
    }
}

/// How an endpoint fails requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failures {
    /// What the last one came to, e.g. `connect (connection refused)`.
    pub cause: String,
    /// Since it last answered the worker that asked.
    pub count: u64,
    /// How long ago the last one was.
    pub ago: Duration,
    /// Where it is left alone.
    pub ejected: Option<Ejected>,
}

/// How long an endpoint is left alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ejected {
    /// So long it has been ejected again and again.
    pub since: Duration,
    /// So long until it is asked again.
    pub left: Duration,
}

impl Failures {
    /// With what another worker found.
    pub fn join(self, other: Self) -> Self {
        let count = self.count + other.count;
        let ejected = match (self.ejected, other.ejected) {
            (Some(one), Some(other)) => {
                Some(Ejected { since: one.since.max(other.since), left: one.left.max(other.left) })
            }
            (one, other) => one.or(other),
        };
        let newer = if other.ago < self.ago { other } else { self };
        Self { count, ejected, ..newer }
    }
}

impl fmt::Display for Failures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cause, count, ago, ejected } = self;
        write!(f, "{cause}, {count} failed, the last {} s ago", ago.as_secs())?;
        if let Some(Ejected { since, left }) = ejected {
            write!(f, "; ejected since {} s, asked again in {} s", since.as_secs(), left.as_secs())?;
        }
        Ok(())
    }
}

/// Why an endpoint is unwell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What its last probe came to.
    pub fault: Fault,
    /// When it was found unwell.
    pub since: SystemTime,
}

/// How a probe failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Fault {
    /// No connection: refused, or no way there.
    Unreachable,
    /// No TLS: refused, unverified, or not spoken there.
    Tls,
    /// No answer in time.
    Timeout,
    /// Closed before the answer.
    Closed,
    /// An answer that is no HTTP.
    NotHttp,
    /// A status that is neither 2xx nor 3xx.
    Status(u16),
}

impl Fault {
    /// Every label that [`Self::label`] may give.
    pub const LABELS: [&str; 6] = ["unreachable", "tls", "timeout", "closed", "not-http", "status"];

    /// For metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::Tls => "tls",
            Self::Timeout => "timeout",
            Self::Closed => "closed",
            Self::NotHttp => "not-http",
            Self::Status(_) => "status",
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable => f.write_str("no connection"),
            Self::Tls => f.write_str("no TLS"),
            Self::Timeout => f.write_str("no answer in time"),
            Self::Closed => f.write_str("closed without an answer"),
            Self::NotHttp => f.write_str("no HTTP"),
            Self::Status(status) => write!(f, "status {status}"),
        }
    }
}

//! TCP and UDP ports beside http and https, where the proxy serves them.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use super::super::l4;
use super::super::upstream::{Retry, UpstreamName};
use super::edge::ProxyProtocol;
use super::log::StreamLog;

/// Ports by protocol and number.
pub type Streams = BTreeMap<(l4::Protocol, u16), Stream>;

/// One port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stream {
    /// Where its connections go.
    pub upstream: UpstreamName,
    /// What clients begin with.
    pub received: Preamble,
    /// What endpoints are sent first.
    pub sent: Preamble,
}

/// What stands in front of a connection's own bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Preamble {
    /// Nothing.
    #[default]
    None,
    /// A PROXY header: the addresses of the client's connection.
    Proxy,
}

/// What holds for all of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamTerms {
    /// `proxy-stream-timeout`: longest silence of both sides together.
    pub idle: Duration,
    /// `proxy-stream-next-upstream*`.
    pub retry: Retry,
    /// `proxy-stream-responses`: datagrams that answer one of a client's; an exchange ends with the last.
    pub responses: u32,
    /// Whose PROXY headers are believed, and how long one may take.
    pub header: ProxyProtocol,
    /// `None`: they are not logged.
    pub log: Option<Arc<StreamLog>>,
}

impl Default for StreamTerms {
    /// ingress-nginx's defaults.
    fn default() -> Self {
        let any: [IpAddr; 2] = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
        let everybody = any.into_iter().filter_map(|addr| l4::Prefix::new(addr, 0)).collect();
        Self {
            idle: Duration::from_secs(600),
            retry: Retry { within: Duration::from_secs(600), ..Retry::default() },
            responses: 1,
            header: ProxyProtocol { timeout: Duration::from_secs(5), trusted: everybody },
            log: Some(Arc::default()),
        }
    }
}

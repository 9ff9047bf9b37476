//! L4 desired state: which VIPs the kernel program balances, over which backends, and which it
//! punts to the proxy.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use super::ObjectName;

/// Everything the datapath has to install.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct L4 {
    /// One entry per Service port and address family; each owns one Maglev table.
    pub pools: BTreeMap<PoolId, Pool>,
    /// VIPs left to the proxy. They win over a pool that claims the same address and port (the
    /// translation reports the clash).
    pub punts: BTreeMap<Vip, Listener>,
}

/// Identity of a [`Pool`], stable over changes of its VIPs and backends.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PoolId {
    /// The Service.
    pub service: ObjectName,
    /// `spec.ports[].port`.
    pub port: u16,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Family of VIPs and backends; a dual-stack Service has one pool for each.
    pub family: Family,
}

impl fmt::Display for PoolId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}/{}/{}", self.service, self.port, self.protocol, self.family)
    }
}

/// VIPs that share one set of backends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool {
    /// Addresses and ports clients connect to. May be empty (nothing to install).
    pub vips: BTreeSet<Vip>,
    /// How packets reach the backends.
    pub mode: ForwardingMode,
    /// Backends in the order of their address, without duplicates. Empty: every new flow to the
    /// VIPs is refused by name (`no-backend`), never passed to the host.
    pub backends: BTreeMap<SocketAddr, Weight>,
}

/// Relative share of new flows; 0 takes none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Weight(pub u16);

/// Address + port + protocol that clients connect to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Vip {
    /// Where it listens.
    pub addr: VipAddr,
    /// Port, never 0.
    pub port: u16,
    /// Transport protocol.
    pub protocol: Protocol,
}

impl fmt::Display for Vip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.addr {
            VipAddr::Ip(ip) => write!(f, "{} {}", self.protocol, SocketAddr::new(ip, self.port)),
            VipAddr::Node(family) => write!(f, "{} node-{}:{}", self.protocol, family, self.port),
        }
    }
}

/// Address of a [`Vip`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum VipAddr {
    /// One address.
    Ip(IpAddr),
    /// Every address of this family on the interfaces the program is attached to; the datapath
    /// knows them and follows their changes.
    Node(Family),
}

/// How a packet reaches its backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum ForwardingMode {
    /// Destination and source translated; the reply comes back through us.
    #[default]
    Nat,
    /// Destination MAC rewritten only; the backend holds the VIP and answers the client itself.
    L2,
}

impl fmt::Display for ForwardingMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nat => "nat",
            Self::L2 => "l2",
        })
    }
}

/// Transport protocol of a VIP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP, IP protocol 6.
    Tcp,
    /// UDP, IP protocol 17.
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// Address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Family of an address.
    pub fn of(addr: IpAddr) -> Self {
        if addr.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "v4",
            Self::V6 => "v6",
        })
    }
}

/// Which listener of the proxy takes a punted connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Listener {
    /// Plain HTTP.
    Http,
    /// TLS.
    Https,
}

/// A flow as `explain --flow` and the kernel name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FiveTuple {
    /// Transport protocol.
    pub protocol: Protocol,
    /// Client.
    pub src: SocketAddr,
    /// VIP; the same family as `src`.
    pub dst: SocketAddr,
}

impl fmt::Display for FiveTuple {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} > {}", self.protocol, self.src, self.dst)
    }
}

/// `tcp 198.51.100.7:40001 > 203.0.113.10:443`, as [`Display`](fmt::Display) writes it.
impl std::str::FromStr for FiveTuple {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let allowed = "allowed: 'tcp|udp SRC:PORT > DST:PORT', IPv6 in brackets";
        let mut words = text.split_whitespace();
        let (Some(protocol), Some(src), Some(">"), Some(dst), None) =
            (words.next(), words.next(), words.next(), words.next(), words.next())
        else {
            return Err(format!("flow {text:?}: {allowed}"));
        };
        let protocol = match protocol {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            other => return Err(format!("flow {text:?}: protocol {other:?}: {allowed}")),
        };
        let end = |text: &str| -> Result<SocketAddr, String> {
            text.parse().map_err(|_| format!("flow: address {text:?}: {allowed}"))
        };
        let (src, dst) = (end(src)?, end(dst)?);
        if src.is_ipv4() != dst.is_ipv4() {
            return Err(format!("flow {text:?}: both ends must be of one family"));
        }
        Ok(Self { protocol, src, dst })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flow_reads_back_as_it_is_written() {
        for text in ["tcp 198.51.100.7:40001 > 203.0.113.10:443", "udp [2001:db8::7]:53 > [2001:db8::1]:53"] {
            let flow: FiveTuple = text.parse().expect(text);

            assert_eq!(flow.to_string(), text);
        }
    }

    #[test]
    fn a_flow_that_cannot_be_meant_is_refused_with_the_allowed_form() {
        for text in
            ["", "tcp", "sctp 1.2.3.4:1 > 1.2.3.4:2", "tcp 1.2.3.4 > 1.2.3.4:2", "tcp 1.2.3.4:1 > [::1]:2"]
        {
            let error = text.parse::<FiveTuple>().expect_err(text);

            assert!(error.contains("allowed:") || error.contains("one family"), "{text}: {error}");
        }
    }
}

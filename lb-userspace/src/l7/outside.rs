//! Services that no location leads to: found by their name, and connected to. Who may enter is asked of
//! some (`auth-url`), others get copies of requests (`mirror-target`).

mod resolve;

use std::cell::OnceCell;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;

use super::snapshot::Snapshot;
use super::socket::Link;
use super::upstream;
use crate::model::upstream::UpstreamName;
use resolve::Resolver;

/// What a worker needs to get there.
pub(super) struct Outside {
    resolver: Resolver,
    /// Takes any certificate; made when it is needed.
    tls: OnceCell<Option<Arc<ClientConfig>>>,
}

impl Outside {
    /// With so many lookups of names at once. Each takes one of the worker's threads that may block, of which
    /// files need some, too.
    pub(super) fn new(lookups: usize) -> Self {
        Self { resolver: Resolver::new(lookups), tls: OnceCell::new() }
    }

    /// Addresses of a host; where it is a Service that we know, its endpoints.
    pub(super) async fn find(
        &self,
        snapshot: &Snapshot,
        upstream: Option<&UpstreamName>,
        name: &str,
        port: u16,
    ) -> io::Result<Rc<[SocketAddr]>> {
        let Some(upstream) = upstream else { return self.resolver.resolve(name, port).await };
        let router = &snapshot.router;
        let known = router.place_of(upstream).and_then(|place| router.upstreams.get(place));
        Ok(known.map_or_else(|| Rc::from([]), |known| known.endpoints.iter().copied().collect()))
    }

    /// A connection, over TLS where there is a name for that; the service proves nothing by it.
    pub(super) async fn connect(&self, addr: SocketAddr, tls: Option<&str>) -> io::Result<Link> {
        let stream = TcpStream::connect(addr).await?;
        let _ = stream.set_nodelay(true);
        let Some(name) = tls else { return Ok(Link::plain(stream)) };
        let config = self.tls.get_or_init(upstream::unverified).clone();
        let config = config.ok_or_else(|| io::Error::other("tls cannot be set up"))?;
        let name = ServerName::try_from(name.trim_matches(['[', ']']).to_owned())
            .unwrap_or_else(|_| ServerName::IpAddress(addr.ip().into()));
        let mut link = Link::tls_client(stream, config, name).map_err(io::Error::other)?;
        {
            let socket = link.socket();
            poll_fn(|cx| socket.poll_handshake(cx)).await?;
        }
        Ok(link)
    }
}

/// Host and port of a Host header.
pub(super) fn split_port(host: &str) -> Option<(&str, Option<u16>)> {
    let end = match host.strip_prefix('[') {
        Some(rest) => rest.find(']')? + 2,
        None => host.find(':').unwrap_or(host.len()),
    };
    let (name, port) = host.split_at(end);
    match port.strip_prefix(':') {
        None if port.is_empty() => Some((name, None)),
        None => None,
        Some(port) => Some((name, Some(port.parse().ok()?))),
    }
}

/// Text that a request made may be one.
pub(super) fn is_host(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._:[]".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_may_have_a_port_and_brackets() {
        let cases = [
            ("auth", Some(("auth", None))),
            ("auth:8080", Some(("auth", Some(8080)))),
            ("[::1]", Some(("[::1]", None))),
            ("[::1]:80", Some(("[::1]", Some(80)))),
            ("auth:", None),
            ("auth:x", None),
            ("[::1", None),
            ("[::1]x", None),
        ];
        for (host, expected) in cases {
            assert_eq!(split_port(host), expected, "{host}");
        }
    }
}

//! Asks the servers that the host names: by UDP, by TCP where an answer does not fit.

use std::collections::BTreeSet;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

use super::message::{self, Kind, Reply};
use super::system::{Files, Settings};

/// Addresses of one name.
const ADDRESSES: usize = 64;
/// The host's own file says nothing about time.
const OWN_TTL: Duration = Duration::from_secs(5);
/// Longest datagram without extensions.
const DATAGRAM: usize = 512;

/// Addresses of a name and how long they hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) addrs: BTreeSet<IpAddr>,
    pub(super) ttl: Duration,
    /// Somebody answered about both families.
    pub(super) is_whole: bool,
}

/// Why there are no addresses.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("no such name, or none with an address")]
    NoSuchName,
    #[error("no name server answered")]
    NoAnswer,
}

/// Addresses of both families of a name.
pub(super) async fn look_up(name: &str, files: &Files) -> Result<Answer, Error> {
    let own = files.addresses(name.trim_end_matches('.')).await;
    if !own.is_empty() {
        return Ok(Answer { addrs: own, ttl: OWN_TTL, is_whole: true });
    }
    let settings = files.settings().await;
    for candidate in settings.candidates(name) {
        let (v4, v6) =
            tokio::join!(ask(&candidate, Kind::V4, &settings), ask(&candidate, Kind::V6, &settings));
        let mut answer = Answer { addrs: BTreeSet::new(), ttl: Duration::MAX, is_whole: true };
        for reply in [v4, v6] {
            match reply {
                Some(Reply::Addresses { addrs, ttl }) if !addrs.is_empty() => {
                    answer.addrs.extend(addrs.into_iter().take(ADDRESSES));
                    answer.ttl = answer.ttl.min(Duration::from_secs(ttl.into()));
                }
                Some(Reply::Addresses { .. } | Reply::NoSuchName) => {}
                _ => answer.is_whole = false,
            }
        }
        if !answer.addrs.is_empty() {
            return Ok(answer);
        }
        // A shorter name would perhaps be somebody else's.
        if !answer.is_whole {
            return Err(Error::NoAnswer);
        }
    }
    Err(Error::NoSuchName)
}

/// The first answer of a server; `None` where nobody gives one.
async fn ask(name: &str, kind: Kind, settings: &Settings) -> Option<Reply> {
    for _ in 0..settings.attempts {
        for server in &settings.servers {
            let asked = tokio::time::timeout(settings.timeout, ask_server(name, kind, *server)).await;
            match asked {
                Ok(Ok(reply @ (Reply::Addresses { .. } | Reply::NoSuchName))) => return Some(reply),
                Ok(Ok(reply)) => tracing::debug!(name, %server, ?reply, "no use of a name server's answer"),
                Ok(Err(error)) => tracing::debug!(name, %server, %error, "name server not reached"),
                Err(_) => tracing::debug!(name, %server, "name server is silent"),
            }
        }
    }
    None
}

async fn ask_server(name: &str, kind: Kind, server: SocketAddr) -> io::Result<Reply> {
    // Random, as is the port that the kernel gives: who cannot see the question cannot answer it.
    let random = RandomState::new().hash_one(name);
    let id = u16::try_from(random & 0xffff).unwrap_or_default();
    // A name that cannot be asked for is nobody's.
    let Some(question) = message::question(id, name, kind) else { return Ok(Reply::NoSuchName) };
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(&question).await?;
    let mut answer = [0; DATAGRAM];
    loop {
        let length = socket.recv(&mut answer).await?;
        match message::reply(answer.get(..length).unwrap_or_default(), &question) {
            Reply::Truncated => return by_tcp(&question, server).await,
            // Somebody else's, or late: the right one may still come.
            Reply::Other => {}
            reply => return Ok(reply),
        }
    }
}

async fn by_tcp(question: &[u8], server: SocketAddr) -> io::Result<Reply> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(question.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), question].concat()).await?;
    let length = stream.read_u16().await?;
    let mut answer = vec![0; length.into()];
    stream.read_exact(&mut answer).await?;
    Ok(message::reply(&answer, question))
}

//! What connections cost that wait: the memory of a proxy that has just started, and with thousands of
//! clients of which each has asked once.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use serde_json::{Value, json};

use super::proxy::{Backends, Certificate, Kind, Proxy};
use super::{BODY_BYTES, HOST};
use crate::tls::AnyCertificate;

/// Connections that wait.
pub const CONNECTIONS: usize = 5000;

const DEADLINE: Duration = Duration::from_secs(10);

/// Whether they are encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waiting {
    /// Plain HTTP/1.1.
    Plain,
    /// HTTP/1.1 over TLS 1.3.
    Tls,
}

impl Waiting {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Plain, Self::Tls];

    /// Name in the table and in the JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "idle-5k-plain",
            Self::Tls => "idle-5k-tls",
        }
    }
}

/// Memory of one proxy: its share of what it shares, in KiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resident {
    /// Which one.
    pub kind: Kind,
    /// After its first request.
    pub before: u64,
    /// With all connections.
    pub after: u64,
}

/// Starts a proxy of its own and lets so many clients wait at it.
pub fn measure(
    kind: Kind,
    program: &Path,
    backends: Backends,
    certificate: &Certificate,
    waiting: Waiting,
) -> Result<Resident> {
    let dir = tempfile::tempdir().context("make a directory for the run")?;
    certificate.write(dir.path())?;
    let proxy = Proxy::start(kind, program, backends, certificate, dir.path())?;
    let before = proxy.process.pss_kib()?;
    let config = Arc::new(any_certificate()?);
    let open = |_| match waiting {
        Waiting::Plain => Ok(Client::Plain(ask(connect(proxy.http)?)?)),
        Waiting::Tls => {
            let name = ServerName::try_from(HOST)?;
            let session = ClientConnection::new(Arc::clone(&config), name)?;
            let stream = ask(StreamOwned::new(session, connect(proxy.https)?))?;
            // The client's side of it is not measured, and would not fit five times.
            Ok(Client::Tls(stream.sock))
        }
    };
    let clients: Vec<Client> = (0..CONNECTIONS).map(open).collect::<Result<_>>()?;
    let after = proxy.process.pss_kib()?;
    drop(clients);
    Ok(Resident { kind, before, after })
}

/// A connection that is kept open.
#[expect(dead_code, reason = "held, not used")]
enum Client {
    Plain(TcpStream),
    Tls(TcpStream),
}

/// Room for so many connections and what proxies open for them; what they start with is ours.
pub fn make_room() -> Result<()> {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })
        .context("raise the limit of open files")
}

fn connect(port: u16) -> Result<TcpStream> {
    let stream = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port)))?;
    stream.set_read_timeout(Some(DEADLINE))?;
    // What a handshake and a request leave in several writes must not wait for acknowledgements.
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// One request and its answer; the connection stays.
fn ask<S: Read + Write>(mut stream: S) -> Result<S> {
    stream.write_all(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n").as_bytes())?;
    let (mut answer, mut bytes) = (Vec::new(), [0; 4096]);
    loop {
        let n = stream.read(&mut bytes).context("read an answer")?;
        answer.extend_from_slice(&bytes[..n]);
        let head = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n");
        match head {
            _ if n == 0 => bail!("closed after {} bytes", answer.len()),
            Some(head) if answer.len() >= head + 4 + BODY_BYTES => break,
            _ => {}
        }
    }
    if !answer.starts_with(b"HTTP/1.1 200") {
        bail!("answered {:?}", String::from_utf8_lossy(&answer));
    }
    Ok(stream)
}

/// A client that takes any certificate: who is measured is known.
fn any_certificate() -> Result<ClientConfig> {
    let provider = Arc::new(CryptoProvider {
        kx_groups: vec![aws_lc_rs::kx_group::X25519],
        ..aws_lc_rs::default_provider()
    });
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?;
    let mut config = builder
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}

/// The table, for people.
pub fn table(waiting: Waiting, all: &[Resident]) -> String {
    let mut text = format!(
        "{:<17} {:<10} {:>11} {:>9} {:>11}  {}\n",
        "case", "proxy", "at first", "KiB", "bytes each", "of nginx"
    );
    for resident in all {
        let Resident { kind, before, after } = resident;
        let ratio = resident.of_nginx(all).map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"));
        text += &format!(
            "{:<17} {:<10} {before:>11} {after:>9} {:>11}  {ratio}\n",
            waiting.name(),
            kind.name(),
            resident.each()
        );
    }
    text
}

/// The list, for programs.
pub fn json(waiting: Waiting, all: &[Resident]) -> Vec<Value> {
    let one = |resident: &Resident| {
        let Resident { kind, before, after } = resident;
        let two = |value: f64| (value * 100.0).round() / 100.0;
        json!({
            "case": waiting.name(),
            "proxy": kind.name(),
            "kib_before": before,
            "kib": after,
            "bytes_each": resident.each(),
            "of_nginx": resident.of_nginx(all).map(|ratio| [two(ratio); 3]),
        })
    };
    all.iter().map(one).collect()
}

impl Resident {
    /// Bytes for each connection.
    fn each(&self) -> u64 {
        self.after.saturating_sub(self.before) * 1024 / CONNECTIONS as u64
    }

    fn of_nginx(&self, all: &[Self]) -> Option<f64> {
        let nginx = all.iter().find(|resident| resident.kind == Kind::Nginx)?;
        Some(self.after as f64 / nginx.after as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_connection_costs_is_what_came_with_it() {
        let penstock = Resident { kind: Kind::Penstock, before: 4000, after: 14_000 };
        let nginx = Resident { kind: Kind::Nginx, before: 14_000, after: 20_000 };

        let json = json(Waiting::Tls, &[penstock, nginx]);

        let expected = json!({
            "case": "idle-5k-tls", "proxy": "penstock", "kib_before": 4000, "kib": 14_000, "bytes_each": 2048,
            "of_nginx": [0.7, 0.7, 0.7],
        });
        assert_eq!(json.first(), Some(&expected));
    }
}

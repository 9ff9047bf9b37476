//! One probe: connect, ask, judge the answer, all within one deadline.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::model::health::{Check, Fault, HttpProbe, Probe};
use crate::model::upstream::UpstreamTls;

/// Longest response head, interim ones included.
const HEAD_MAX: usize = 16 * 1024;
/// Header lines that are parsed; as many as responses to requests may have.
const LINES_MAX: usize = 128;

/// A connection to an endpoint.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// A connection on its way to be encrypted.
pub type Encrypting = Pin<Box<dyn Future<Output = io::Result<Box<dyn Stream>>> + Send>>;

/// Speaks TLS to an endpoint: who does that is no business of this room.
pub type Encrypt = Arc<dyn Fn(TcpStream, SocketAddr, Arc<UpstreamTls>) -> Encrypting + Send + Sync>;

/// Asks an endpoint how it is.
pub(super) async fn probe(endpoint: SocketAddr, check: &Check, encrypt: &Encrypt) -> Result<(), Fault> {
    match tokio::time::timeout(check.timeout, ask(endpoint, &check.probe, encrypt)).await {
        Ok(outcome) => outcome,
        Err(_) => Err(Fault::Timeout),
    }
}

async fn ask(endpoint: SocketAddr, probe: &Probe, encrypt: &Encrypt) -> Result<(), Fault> {
    let stream = TcpStream::connect(endpoint).await.map_err(|error| {
        tracing::debug!(%endpoint, %error, "probe: no connection");
        Fault::Unreachable
    })?;
    let Probe::Http(http) = probe else { return Ok(()) };
    let mut stream: Box<dyn Stream> = match &http.tls {
        None => Box::new(stream),
        Some(tls) => encrypt(stream, endpoint, Arc::clone(tls)).await.map_err(|error| {
            tracing::debug!(%endpoint, %error, "probe: no tls");
            Fault::Tls
        })?,
    };
    let sent = async {
        stream.write_all(request(endpoint, http).as_bytes()).await?;
        stream.flush().await
    };
    sent.await.map_err(|_| Fault::Closed)?;
    match status(&mut stream).await? {
        200..=399 => Ok(()),
        status => Err(Fault::Status(status)),
    }
}

fn request(endpoint: SocketAddr, http: &HttpProbe) -> String {
    let HttpProbe { target, host, tls: _ } = http;
    let host = host.clone().unwrap_or_else(|| endpoint.to_string());
    format!(
        "GET {target} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: penstock/{} (health check)\r\nAccept: */*\r\n\
         Connection: close\r\n\r\n",
        env!("CARGO_PKG_VERSION")
    )
}

/// That of the final response; what follows its head is not waited for.
async fn status(stream: &mut Box<dyn Stream>) -> Result<u16, Fault> {
    let mut read = Vec::with_capacity(1024);
    loop {
        while let Some((status, len)) = head(&read)? {
            // 101 is no interim answer, and nobody asked for it.
            if status >= 200 || status == 101 {
                return Ok(status);
            }
            read.drain(..len);
        }
        let room = HEAD_MAX.saturating_sub(read.len());
        if room == 0 {
            return Err(Fault::NotHttp);
        }
        match (&mut *stream).take(room as u64).read_buf(&mut read).await {
            Ok(0) | Err(_) => return Err(Fault::Closed),
            Ok(_) => {}
        }
    }
}

/// Status and length of the head at the start of `bytes`; `None` while it is incomplete.
fn head(bytes: &[u8]) -> Result<Option<(u16, usize)>, Fault> {
    let mut lines = [httparse::EMPTY_HEADER; LINES_MAX];
    let mut response = httparse::Response::new(&mut lines);
    match response.parse(bytes) {
        Ok(httparse::Status::Complete(len)) => Ok(response.code.map(|status| (status, len))),
        Ok(httparse::Status::Partial) => Ok(None),
        Err(_) => Err(Fault::NotHttp),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_may_have_as_many_lines_as_that_of_any_response() {
        let head_of = |lines: usize| format!("HTTP/1.1 200 OK\r\n{}\r\n", "X-A: b\r\n".repeat(lines));
        let most = head_of(LINES_MAX);

        assert_eq!(head(most.as_bytes()), Ok(Some((200, most.len()))));
        assert_eq!(head(head_of(LINES_MAX + 1).as_bytes()), Err(Fault::NotHttp));
    }
}

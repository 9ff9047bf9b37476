//! One GET to the admin endpoint of a live agent, for `penstock status` and `penstock explain`.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// The answer is refused beyond this size.
const MAX_BODY_BYTES: usize = 64 << 20;

/// Whole exchange, connection included.
const DEADLINE: Duration = Duration::from_secs(10);

/// Why a live agent could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody listens there.
    #[error("connect {addr}: {source} (is penstock running, and is --admin the address it was given?)")]
    Connect {
        /// The admin address.
        addr: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The peer does not speak HTTP, or stopped in the middle.
    #[error("ask {addr}: {reason}")]
    Exchange {
        /// The admin address.
        addr: SocketAddr,
        /// Why.
        reason: String,
    },
    /// The agent refused the question.
    #[error("{0}")]
    Refused(String),
}

/// Body of `GET path`, which must be answered 200.
pub async fn get(addr: SocketAddr, path: &str) -> Result<String, Error> {
    let exchange = |reason: String| Error::Exchange { addr, reason };
    match tokio::time::timeout(DEADLINE, exchange_one(addr, path)).await {
        Ok(answer) => answer,
        Err(_) => Err(exchange(format!("no answer within {} s", DEADLINE.as_secs()))),
    }
}

async fn exchange_one(addr: SocketAddr, path: &str) -> Result<String, Error> {
    let failed = |error: &dyn std::fmt::Display| Error::Exchange { addr, reason: error.to_string() };
    let stream = TcpStream::connect(addr).await.map_err(|source| Error::Connect { addr, source })?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| failed(&e))?;
    let driver = tokio::spawn(connection);
    let request = Request::get(path)
        .header("host", addr.to_string())
        .header("connection", "close")
        .body(Empty::<Bytes>::new())
        .map_err(|e| failed(&e))?;
    let response = sender.send_request(request).await.map_err(|e| failed(&e))?;
    let status = response.status();
    let body = Limited::new(response.into_body(), MAX_BODY_BYTES).collect().await.map_err(|e| failed(&e))?;
    driver.abort();
    let text = String::from_utf8_lossy(&body.to_bytes()).into_owned();
    match status {
        StatusCode::OK => Ok(text),
        StatusCode::BAD_REQUEST => Err(Error::Refused(text.trim_end().to_owned())),
        other => Err(failed(&format!("answered {other}: {}", text.trim_end()))),
    }
}

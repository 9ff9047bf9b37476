//! Requests to the admin endpoint of a live agent, for `penstock status`, `explain` and `capture`.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// The answer is refused beyond this size.
const MAX_BODY_BYTES: usize = 64 << 20;

/// Whole exchange, connection included; of what is streamed, until it begins.
pub const DEADLINE: Duration = Duration::from_secs(10);

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
    /// What it said cannot be written where it is to go.
    #[error("{0}")]
    Output(std::io::Error),
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
    let response = send(addr, Method::GET, path).await?;
    whole(addr, response).await
}

/// Copies the body of `GET path` to `write` as it comes, however long that takes once it has begun (within `patience`), and returns the
/// trailer [`super::SUMMARY`]. `interrupted` asks the agent to end it by `DELETE` of the same path;
/// what it has then still comes.
pub async fn stream(
    addr: SocketAddr,
    path: &str,
    patience: Duration,
    interrupted: impl Future<Output = ()>,
    mut write: impl FnMut(&[u8]) -> std::io::Result<()>,
) -> Result<String, Error> {
    let failed = |reason: String| Error::Exchange { addr, reason };
    let begun = tokio::time::timeout(patience, send(addr, Method::GET, path)).await;
    let response = begun.map_err(|_| failed(format!("no answer within {} s", patience.as_secs())))??;
    if response.status() != StatusCode::OK {
        return whole(addr, response).await;
    }
    let mut body = response.into_body();
    let mut summary = String::new();
    tokio::pin!(interrupted);
    let mut ending = false;
    loop {
        let frame = tokio::select! {
            frame = body.frame() => frame,
            () = &mut interrupted, if !ending => {
                ending = true;
                let plain = path.split('?').next().unwrap_or_default();
                let ended = async { whole(addr, send(addr, Method::DELETE, plain).await?).await };
                tokio::time::timeout(DEADLINE, ended).await.map_err(|_| failed("does not end".to_owned()))??;
                continue;
            }
        };
        let Some(frame) = frame else { return Ok(summary) };
        let frame = frame.map_err(|error| failed(error.to_string()))?;
        if let Some(data) = frame.data_ref()
            && let Err(error) = write(data)
        {
            return match error.kind() {
                // `| head` has enough.
                std::io::ErrorKind::BrokenPipe => Ok(summary),
                _ => Err(Error::Output(error)),
            };
        }
        if let Some(trailers) = frame.trailers_ref()
            && let Some(text) = trailers.get(super::SUMMARY).and_then(|value| value.to_str().ok())
        {
            text.clone_into(&mut summary);
        }
    }
}

async fn send(addr: SocketAddr, method: Method, path: &str) -> Result<Response<Incoming>, Error> {
    let failed = |error: &dyn std::fmt::Display| Error::Exchange { addr, reason: error.to_string() };
    let stream = TcpStream::connect(addr).await.map_err(|source| Error::Connect { addr, source })?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| failed(&e))?;
    // It ends with the response's body.
    tokio::spawn(connection);
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", addr.to_string())
        .header("te", "trailers")
        .header("connection", "close, te")
        .body(Empty::<Bytes>::new())
        .map_err(|e| failed(&e))?;
    sender.send_request(request).await.map_err(|e| failed(&e))
}

async fn whole(addr: SocketAddr, response: Response<Incoming>) -> Result<String, Error> {
    let failed = |error: &dyn std::fmt::Display| Error::Exchange { addr, reason: error.to_string() };
    let status = response.status();
    let body = Limited::new(response.into_body(), MAX_BODY_BYTES).collect().await.map_err(|e| failed(&e))?;
    let text = String::from_utf8_lossy(&body.to_bytes()).into_owned();
    match status {
        StatusCode::OK => Ok(text),
        StatusCode::BAD_REQUEST => Err(Error::Refused(text.trim_end().to_owned())),
        StatusCode::CONFLICT => Err(failed(&text.trim_end())),
        other => Err(failed(&format!("answered {other}: {}", text.trim_end()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_agent_that_hangs_is_not_waited_for_for_ever() {
        let hung = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let addr = hung.local_addr().expect("bound");

        let streamed =
            stream(addr, "/capture", Duration::from_millis(10), std::future::pending(), |_| Ok(())).await;

        let error = streamed.expect_err("no answer").to_string();
        assert!(error.ends_with("no answer within 0 s"), "{error}");
    }
}

//! One connection to a collector: gRPC over HTTP/2 without TLS, one call at a time.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use http::{HeaderMap, Request, Uri};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use super::otlp;
use super::queue::Lost;

/// Longest time to find and reach a collector, as OTLP's exporters have it for a call.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Most bytes of an answer that are looked at.
const ANSWER_MAX: usize = 64 * 1024;
const METHOD: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";

/// A connection; it ends when this is dropped.
pub(super) struct Client {
    requests: SendRequest<Bytes>,
    uri: Uri,
    driver: JoinHandle<()>,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// Why a call did not succeed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// Nobody is there.
    #[error("connect: {0}")]
    Unreachable(io::Error),
    /// It took too long.
    #[error("no answer within {} s", TIMEOUT.as_secs())]
    Late,
    /// The connection broke, or does not carry HTTP/2.
    #[error("http2: {0}")]
    Http2(#[from] h2::Error),
    /// Somebody else answered.
    #[error("answered {0} instead of a gRPC status")]
    NotGrpc(http::StatusCode),
    /// It was told why.
    #[error("grpc status {code}{}", explained(.message))]
    Status {
        /// Of gRPC.
        code: u32,
        /// As it was sent; may be empty.
        message: String,
    },
}

fn explained(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(": {message}") }
}

impl Failure {
    /// Somebody was there.
    pub(super) fn was_heard(&self) -> bool {
        !matches!(self, Self::Unreachable(_))
    }

    /// The same may succeed later. Of statuses those that OTLP says so of.
    pub(super) fn may_pass(&self) -> bool {
        match self {
            Self::Status { code, .. } => matches!(code, 1 | 4 | 8 | 10 | 11 | 14 | 15),
            Self::Unreachable(_) | Self::Late | Self::Http2(_) | Self::NotGrpc(_) => true,
        }
    }

    /// What spans are lost by, if they are.
    pub(super) fn lost(&self) -> Lost {
        if self.may_pass() { Lost::Failed } else { Lost::Refused }
    }
}

impl Client {
    pub(super) async fn connect(host: &str, port: u16) -> Result<Self, Failure> {
        let reached = async {
            let stream = TcpStream::connect((host, port)).await.map_err(Failure::Unreachable)?;
            let _ = stream.set_nodelay(true);
            h2::client::handshake(stream).await.map_err(Failure::from)
        };
        let late = || Failure::Unreachable(io::ErrorKind::TimedOut.into());
        let (requests, connection) = tokio::time::timeout(TIMEOUT, reached).await.map_err(|_| late())??;
        let driver = tokio::spawn(async move {
            // Whoever waits for an answer hears of it.
            let _ = connection.await;
        });
        let authority =
            if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        let uri = Uri::builder().scheme("http").authority(authority).path_and_query(METHOD).build();
        let uri = uri.map_err(|error| Failure::Unreachable(io::Error::other(error)))?;
        Ok(Self { requests, uri, driver })
    }

    /// Sends a message; how many of its spans were refused.
    pub(super) async fn export(&mut self, message: Bytes) -> Result<u64, Failure> {
        tokio::time::timeout(TIMEOUT, self.call(message)).await.map_err(|_| Failure::Late)?
    }

    async fn call(&mut self, message: Bytes) -> Result<u64, Failure> {
        let mut requests = self.requests.clone().ready().await?;
        let mut request = Request::post(self.uri.clone()).body(()).unwrap_or_default();
        for (name, value) in [
            ("content-type", "application/grpc"),
            ("te", "trailers"),
            ("user-agent", concat!("penstock/", env!("CARGO_PKG_VERSION"))),
        ] {
            request.headers_mut().insert(name, http::HeaderValue::from_static(value));
        }
        let (response, mut body) = requests.send_request(request, false)?;
        body.send_data(message, true)?;
        let response = response.await?;
        let (head, mut body) = response.into_parts();
        let mut answer = Vec::new();
        while let Some(data) = body.data().await {
            let data = data?;
            let _ = body.flow_control().release_capacity(data.len());
            let room = ANSWER_MAX.saturating_sub(answer.len());
            answer.extend(data.iter().take(room));
        }
        let trailers = body.trailers().await?;
        // An answer without a message has its status in the head.
        match trailers.as_ref().and_then(status).or_else(|| status(&head.headers)) {
            None => Err(Failure::NotGrpc(head.status)),
            Some((0, _)) => Ok(otlp::refused(&answer)),
            Some((code, message)) => Err(Failure::Status { code, message }),
        }
    }
}

/// gRPC status and message of a head or of trailers.
fn status(headers: &HeaderMap) -> Option<(u32, String)> {
    let code = headers.get("grpc-status")?.to_str().ok()?.parse().ok()?;
    let message = headers.get("grpc-message").map(|message| String::from_utf8_lossy(message.as_bytes()));
    // What is told to people is short.
    Some((code, message.unwrap_or_default().chars().take(200).collect()))
}

//! The admin endpoint: health, metrics, status, explanations and captures over HTTP.
//!
//! It only renders what a [`Live`] agent answers. hyper serves here because speed does not matter;
//! requests of the proxy never come near it.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{Either, Full};
use hyper::body::Frame;
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, TRAILER};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, Uri, body::Incoming};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::Instant;

use crate::accept::{self, Answering, Place, Stopping};
use crate::model::report::Explanation;
use crate::panics;
use page::{Pages, Reader};

pub mod client;
pub mod exposition;
mod page;

/// The questions the endpoint can ask the running agent.
pub trait Live: Send + Sync + 'static {
    /// `Err` with the reason while the agent should get no traffic (starting, draining).
    fn health(&self) -> Result<(), String>;
    /// The path that answers this, beside `/healthz` and `/readyz`.
    fn health_path(&self) -> &str;
    /// All metrics in Prometheus text format.
    fn metrics(&self) -> String;
    /// State for people.
    fn status_text(&self) -> String;
    /// State for programs.
    fn status_json(&self) -> serde_json::Value;
    /// Why a URL goes where it goes; `Err` says what is wrong with the question.
    fn explain_url(&self, url: &str, headers: &[(String, String)]) -> Result<Explanation, String>;
    /// Why a flow (`tcp SRC:PORT > DST:PORT`) goes where it goes.
    fn explain_flow(&self, flow: &str) -> Result<Explanation, String>;
    /// Begins to show packets of the kernel part; called within the runtime.
    fn capture(&self, words: &[(String, String)]) -> Result<Stream, Refused>;
    /// Ends what [`Live::capture`] began, in order; without one, nothing.
    fn stop_capture(&self);
}

/// A running capture; dropping it ends it.
pub struct Stream {
    /// Of the bytes.
    pub content_type: &'static str,
    /// What was shown, until the sender has enough.
    pub pieces: mpsc::Receiver<Piece>,
}

/// A part of a [`Stream`].
#[derive(Debug)]
pub enum Piece {
    /// Of the body.
    Bytes(Bytes),
    /// How it went; the last one. Sent as the trailer field [`SUMMARY`].
    Summary(String),
}

/// Why there is no [`Stream`].
#[derive(Debug)]
pub enum Refused {
    /// The question is wrong.
    Question(String),
    /// Somebody else has one.
    Busy(String),
    /// The kernel refused.
    Failed(String),
}

/// Trailer field that says how a capture went.
pub const SUMMARY: &str = "penstock-summary";

/// How long a connection that was just made may take to ask something when everything is to stop.
const FIRST_QUESTION: Duration = Duration::from_secs(1);

/// A client that sends no complete head within this time is cut off.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// Serves until `stop` is told, or dropped, and what was asked until then is answered.
pub async fn serve(listener: TcpListener, live: Arc<dyn Live>, stop: oneshot::Receiver<()>) {
    let endpoint = Arc::new(Endpoint { live, pages: Pages::default() });
    accept::each("admin", listener, stop, |stream, peer, stopping, place| {
        connection(stream, peer, Arc::clone(&endpoint), stopping, place)
    })
    .await;
}

/// What answers.
struct Endpoint {
    live: Arc<dyn Live>,
    pages: Pages,
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    endpoint: Arc<Endpoint>,
    mut stopping: Stopping,
    place: Place,
) {
    let peer = Peer::of(peer.ip(), stream.local_addr().map(|addr| addr.ip()).ok());
    let asked = Notify::new();
    let reader = Reader::default();
    let service = service_fn(|request: Request<Incoming>| {
        asked.notify_one();
        let answering = place.answer();
        let (endpoint, reader) = (Arc::clone(&endpoint), reader.clone());
        let (uri, method) = (request.uri().clone(), request.method().clone());
        async move {
            // Counting asks every worker and waits for it; the runtime must not.
            let answered = tokio::task::spawn_blocking(move || {
                panics::catch(|| match uri.path() {
                    "/metrics" => metrics(&endpoint, &reader),
                    _ => answer(&method, &uri, peer, endpoint.live.as_ref()),
                })
            })
            .await;
            let answered = answered.map_err(|error| error.to_string()).flatten();
            let mut response = answered
                .unwrap_or_else(|error| reply(StatusCode::INTERNAL_SERVER_ERROR, TEXT, format!("{error}\n")));
            if let Either::Right(pieces) = response.body_mut() {
                pieces.answering = Some(answering);
            }
            Ok::<_, Infallible>(response)
        }
    });
    let mut connection = pin!(
        hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .serve_connection(TokioIo::new(stream), service)
    );
    let served = tokio::select! {
        served = connection.as_mut() => served,
        () = reader.is_late() => return tracing::debug!("a client did not read its metrics"),
        // A scraper that keeps its connection is to ask the next agent. A connection that has
        // said nothing yet hyper would close with the first question on its way.
        () = stopping.told() => tokio::select! {
            served = connection.as_mut() => served,
            _ = tokio::time::timeout(FIRST_QUESTION, asked.notified()) => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        }
    };
    if let Err(error) = served {
        tracing::debug!(%error, "admin connection ended");
    }
}

/// Binds the admin address, for [`serve`].
pub fn bind(addr: SocketAddr) -> std::io::Result<std::net::TcpListener> {
    let listener = match std::net::TcpListener::bind(addr) {
        // A kernel without IPv6 still serves "every address".
        Err(error) if addr == SocketAddr::from((Ipv6Addr::UNSPECIFIED, addr.port())) => {
            std::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, addr.port())).map_err(|_| error)?
        }
        bound => bound?,
    };
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Who asks. Prometheus and a kubelet come over the network; packets and configuration are for who is on this
/// host, or in this pod, already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Peer {
    Here,
    Elsewhere,
}

impl Peer {
    /// `own` is the address that it connected to.
    fn of(peer: IpAddr, own: Option<IpAddr>) -> Self {
        let here = peer.to_canonical().is_loopback() || own == Some(peer);
        if here { Self::Here } else { Self::Elsewhere }
    }
}

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";

/// Most answers are whole; a capture comes piece by piece.
type Body = Either<Full<Bytes>, Pieces>;

fn metrics(endpoint: &Endpoint, reader: &Reader) -> Response<Body> {
    let page = endpoint.pages.page(Instant::now(), || endpoint.live.metrics(), reader);
    reply(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", page)
}

fn answer(method: &Method, uri: &Uri, peer: Peer, live: &dyn Live) -> Response<Body> {
    let query = Query::parse(uri.query().unwrap_or_default());
    match uri.path() {
        path if matches!(path, "/healthz" | "/readyz") || path == live.health_path() => match live.health() {
            Ok(()) => reply(StatusCode::OK, TEXT, "ok\n".to_owned()),
            Err(reason) => reply(StatusCode::INTERNAL_SERVER_ERROR, TEXT, format!("{reason}\n")),
        },
        "/build" => reply(StatusCode::OK, TEXT, format!("penstock {}\n", env!("CARGO_PKG_VERSION"))),
        _ if peer == Peer::Elsewhere => reply(
            StatusCode::FORBIDDEN,
            TEXT,
            "for this host only (kubectl exec or port-forward); known to others: /healthz /readyz /metrics /build\n"
                .to_owned(),
        ),
        "/status" if query.wants_json() => reply(StatusCode::OK, JSON, live.status_json().to_string()),
        "/status" => reply(StatusCode::OK, TEXT, live.status_text()),
        "/explain" => explain(&query, live),
        "/capture" if method == Method::DELETE => {
            live.stop_capture();
            reply(StatusCode::OK, TEXT, "ended\n".to_owned())
        }
        "/capture" => capture(&query, live),
        _ => reply(
            StatusCode::NOT_FOUND,
            TEXT,
            "known paths: /healthz /readyz /metrics /status /status?format=json /build\n\
             /explain?url=URL[&header=Name:%20value]... /explain?flow=tcp%20SRC:PORT%20%3E%20DST:PORT\n\
             /capture[?verdict=NAME&vip=ADDR:PORT&host=ADDR&format=pcapng...]\n"
                .to_owned(),
        ),
    }
}

fn capture(query: &Query, live: &dyn Live) -> Response<Body> {
    let refuse = |status, reason: String| reply(status, TEXT, format!("{reason}\n"));
    match live.capture(&query.0) {
        Ok(Stream { content_type, pieces }) => {
            let mut response = Response::new(Either::Right(Pieces { pieces, answering: None }));
            let headers = response.headers_mut();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
            headers.insert(TRAILER, HeaderValue::from_static(SUMMARY));
            response
        }
        Err(Refused::Question(reason)) => refuse(StatusCode::BAD_REQUEST, reason),
        Err(Refused::Busy(reason)) => refuse(StatusCode::CONFLICT, reason),
        Err(Refused::Failed(reason)) => refuse(StatusCode::INTERNAL_SERVER_ERROR, reason),
    }
}

/// Body of a capture. hyper drops it when the client has gone.
struct Pieces {
    pieces: mpsc::Receiver<Piece>,
    /// It takes its time, and is an answer all the while.
    answering: Option<Answering>,
}

impl hyper::body::Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.pieces.poll_recv(context).map(|piece| {
            let frame = match piece? {
                Piece::Bytes(bytes) => Frame::data(bytes),
                Piece::Summary(text) => {
                    let value = HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static(""));
                    Frame::trailers(HeaderMap::from_iter([(HeaderName::from_static(SUMMARY), value)]))
                }
            };
            Some(Ok(frame))
        })
    }
}

fn explain(query: &Query, live: &dyn Live) -> Response<Body> {
    let answer = match (query.first("url"), query.first("flow")) {
        (Some(url), None) => query.headers().and_then(|headers| live.explain_url(url, &headers)),
        (None, Some(flow)) => live.explain_flow(flow),
        _ => Err("give exactly one of url=URL and flow=FLOW".to_owned()),
    };
    match answer {
        Ok(explanation) => {
            let json = serde_json::to_string(&explanation).unwrap_or_default();
            reply(StatusCode::OK, JSON, json)
        }
        Err(reason) => reply(StatusCode::BAD_REQUEST, TEXT, format!("{reason}\n")),
    }
}

fn reply(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Either::Left(Full::new(body.into())));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// Decoded query string.
struct Query(Vec<(String, String)>);

impl Query {
    fn parse(text: &str) -> Self {
        let decode = |part: &str| percent_decode(&part.replace('+', " "));
        Self(
            text.split('&')
                .filter(|pair| !pair.is_empty())
                .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
                .map(|(name, value)| (decode(name), decode(value)))
                .collect(),
        )
    }

    fn first(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    fn wants_json(&self) -> bool {
        self.first("format") == Some("json")
    }

    fn headers(&self) -> Result<Vec<(String, String)>, String> {
        self.0
            .iter()
            .filter(|(name, _)| name == "header")
            .map(|(_, header)| {
                let (name, value) = header
                    .split_once(':')
                    .ok_or_else(|| format!("header {header:?}: allowed: 'Name: value'"))?;
                Ok((name.trim().to_owned(), value.trim().to_owned()))
            })
            .collect()
    }
}

fn percent_decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let escaped = (first == b'%')
            .then(|| tail.get(..2).and_then(|hex| std::str::from_utf8(hex).ok()))
            .flatten()
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match escaped {
            Some(byte) => {
                bytes.push(byte);
                rest = tail.get(2..).unwrap_or_default();
            }
            None => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Escapes a query value so that [`serve`] reads it back as it was.
pub fn percent_encode(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                char::from(byte).to_string()
            }
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn an_encoded_value_reads_back_as_it_was(text in ".*") {
            let query = Query::parse(&format!("url={}&x=1", percent_encode(&text)));

            prop_assert_eq!(query.first("url"), Some(text.as_str()));
        }

        #[test]
        fn headers_of_a_query_are_as_many_as_it_names_or_it_is_refused(values in prop::collection::vec(".{0,20}", 0..5)) {
            let pairs: Vec<_> = values.iter().map(|value| format!("header={}", percent_encode(value))).collect();

            let headers = Query::parse(&pairs.join("&")).headers();

            prop_assert_eq!(headers.is_ok(), values.iter().all(|value| value.contains(':')));
            prop_assert!(headers.is_err() || headers.is_ok_and(|headers| headers.len() == values.len()));
        }

        #[test]
        fn any_query_string_is_names_and_values(text in ".*") {
            let pairs = text.split('&').filter(|pair| !pair.is_empty()).count();
            prop_assert_eq!(Query::parse(&text).0.len(), pairs);
        }
    }

    #[test]
    fn only_who_is_here_may_ask_for_more_than_numbers() {
        let ip = |text: &str| text.parse::<IpAddr>().expect("address");
        let cases = [
            ("127.0.0.1", "127.0.0.1", Peer::Here),
            ("::ffff:127.0.0.1", "::ffff:127.0.0.1", Peer::Here),
            ("::1", "::1", Peer::Here),
            ("192.0.2.7", "192.0.2.7", Peer::Here),
            ("192.0.2.8", "192.0.2.7", Peer::Elsewhere),
            ("::ffff:192.0.2.8", "::ffff:192.0.2.7", Peer::Elsewhere),
        ];
        for (peer, own, expected) in cases {
            assert_eq!(Peer::of(ip(peer), Some(ip(own))), expected, "{peer} to {own}");
        }
        assert_eq!(Peer::of(ip("192.0.2.8"), None), Peer::Elsewhere);
    }

    #[test]
    fn a_header_without_colon_is_refused_with_the_allowed_form() {
        let error = Query::parse("header=nope").headers().expect_err("refused");

        assert_eq!(error, "header \"nope\": allowed: 'Name: value'");
    }
}

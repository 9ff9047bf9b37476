//! The validating webhook: the API server asks over TLS whether an Ingress may be stored.
//!
//! Knows how questions and answers are written, not what they mean: that is asked of a [`Reviewer`]. What users
//! wrote is data here and stays data; nothing is rendered, run or looked up by it. Everything is bounded: bytes of
//! questions, questions judged at once, time.

pub mod authority;
mod certificate;
mod counts;
mod question;
mod reading;

#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, oneshot, watch};
use tokio_rustls::TlsAcceptor;

use crate::accept::{self, Place, Stopping};
use crate::model::review::Review;
use crate::panics;

use reading::Reading;

pub use certificate::{Error, Identity};
pub use counts::Counts;
pub use question::fuzz;

/// Judges what is to be stored.
pub trait Reviewer: Send + Sync + 'static {
    /// About one `networking.k8s.io` Ingress, as the API server sends it.
    fn review(&self, ingress: serde_json::Value) -> Review;
}

/// What becomes of an object that should not be stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Force {
    /// It is refused.
    Refuse,
    /// It is let in, with warnings that say why it would be refused; it counts as refused all the same.
    Warn,
}

/// Where the API server asks; ingress-nginx's.
pub const PATH: &str = "/networking/v1/ingresses";

/// A longer question is answered 413. An Ingress itself has at most 1.5 MB, and an update sends it twice.
pub const MAX_BYTES: usize = 9 << 20;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;

/// Questions that are judged at once; more wait.
const MAX_QUESTIONS: usize = 2;

/// The API server waits ten seconds by default.
const DEADLINE: Duration = Duration::from_secs(10);

/// Binds the address, for [`serve`]. An agent and its successor answer beside each other for a while.
pub fn bind(addr: SocketAddr) -> std::io::Result<std::net::TcpListener> {
    let listener = match bound(addr) {
        // A kernel without IPv6 still serves "every address".
        Err(error) if addr.is_ipv6() && addr.ip().is_unspecified() => {
            bound(SocketAddr::from((Ipv4Addr::UNSPECIFIED, addr.port()))).map_err(|_| error)?
        }
        bound => bound?,
    };
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn bound(addr: SocketAddr) -> std::io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Who answers, and how.
#[derive(Clone)]
pub struct Answering {
    /// Who judges.
    pub reviewer: Arc<dyn Reviewer>,
    /// What becomes of it.
    pub force: Force,
    /// Where it is counted.
    pub counts: Arc<Counts>,
}

/// Serves until `stop` is told, or dropped. Who connects is shown the newest of `identity`.
pub async fn serve(
    listener: TcpListener,
    identity: watch::Receiver<Identity>,
    answering: Answering,
    stop: oneshot::Receiver<()>,
) {
    let judges = Arc::new(Semaphore::new(MAX_QUESTIONS));
    let responder = Arc::new(Responder { answering, reading: Reading::new(), judges });
    accept::each("webhook", listener, stop, |stream, _peer, stopping, place| {
        let acceptor = TlsAcceptor::from(identity.borrow().config());
        connection(stream, acceptor, Arc::clone(&responder), stopping, place)
    })
    .await;
}

/// Answers questions.
struct Responder {
    answering: Answering,
    reading: Reading,
    judges: Arc<Semaphore>,
}

async fn connection(
    stream: TcpStream,
    acceptor: TlsAcceptor,
    responder: Arc<Responder>,
    mut stopping: Stopping,
    place: Place,
) {
    let stream = match tokio::time::timeout(DEADLINE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%error, "webhook handshake failed"),
        Err(_) => return,
    };
    let service = service_fn(|request: Request<Incoming>| {
        let (responder, place) = (Arc::clone(&responder), place.clone());
        async move {
            let answered = tokio::time::timeout(DEADLINE, responder.answer(request, &place)).await;
            Ok::<_, Infallible>(answered.unwrap_or_else(|_| {
                text(StatusCode::REQUEST_TIMEOUT, "the question did not come to its end in time")
            }))
        }
    });
    let mut connection = pin!(
        hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(DEADLINE)
            .serve_connection(TokioIo::new(stream), service)
    );
    let served = tokio::select! {
        served = connection.as_mut() => served,
        () = stopping.told() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = served {
        tracing::debug!(%error, "webhook connection ended");
    }
}

impl Responder {
    async fn answer(&self, request: Request<Incoming>, place: &Place) -> Response<Full<Bytes>> {
        // It has said something, and may still have to make room until it has said all.
        drop(place.answer());
        if request.uri().path() != PATH {
            return text(StatusCode::NOT_FOUND, PATH);
        }
        if request.method() != Method::POST {
            return text(StatusCode::METHOD_NOT_ALLOWED, "POST an AdmissionReview");
        }
        let begun = Instant::now();
        let reading::Question { bytes: body, places } = match self.reading.read(request.into_body()).await {
            Ok(question) => question,
            Err((status, message)) => return text(status, &message),
        };
        let _answering = place.answer();
        let Ok(judge) = Arc::clone(&self.judges).acquire_owned().await else {
            return text(StatusCode::SERVICE_UNAVAILABLE, "stopping");
        };
        let answering = self.answering.clone();
        // A review takes milliseconds of computing, which others on this runtime need not wait for. One that takes
        // longer than anybody waits keeps its place all the same.
        let answered = tokio::task::spawn_blocking(move || {
            let _held = (judge, places);
            panics::catch(|| {
                let size = body.len();
                let question = question::read(&body)?;
                // The value is all that is needed from here on.
                drop(body);
                Ok::<_, String>(reply(question, size, begun, &answering))
            })
        });
        match answered.await.map_err(|error| error.to_string()).flatten() {
            Ok(Ok(answer)) => json(answer),
            Ok(Err(reason)) => text(StatusCode::BAD_REQUEST, &reason),
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, &error),
        }
    }
}

fn reply(question: question::Question, size: usize, begun: Instant, answering: &Answering) -> String {
    let Answering { reviewer, force, counts } = answering;
    let question::Question { uid, namespace, name, ingress } = question;
    let Some(ingress) = ingress else { return question::answer(&uid, &Review::default()) };
    let reviewing = Instant::now();
    let review = reviewer.review(ingress);
    counts.reviewed(&counts::Reviewed {
        namespace: &namespace,
        name: &name,
        allowed: review.refused.is_empty(),
        review: reviewing.elapsed(),
        whole: begun.elapsed(),
        bytes: size,
    });
    if review.refused.is_empty() {
        return question::answer(&uid, &review);
    }
    let reasons = review.refused.len();
    match force {
        Force::Refuse => {
            tracing::info!(namespace, name, reasons, "ingress refused by the webhook");
            question::answer(&uid, &review)
        }
        Force::Warn => {
            tracing::info!(namespace, name, reasons, "ingress let in that the webhook would refuse");
            question::answer(&uid, &review.without_refusal())
        }
    }
}

fn text(status: StatusCode, text: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(format!("{text}\n"))));
    *response.status_mut() = status;
    response
}

fn json(body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

//! A client that speaks HTTP/2, for the tests.

use std::net::SocketAddr;

use bytes::Bytes;
use h2::SendStream;
use h2::client::SendRequest;
use http::{HeaderMap, Request, Response};
use tokio::net::TcpStream;

use crate::rig::DEADLINE;

/// A client of one connection on a runtime of its own.
pub struct Client {
    pub runtime: tokio::runtime::Runtime,
    pub requests: SendRequest<Bytes>,
    pub connection: tokio::task::JoinHandle<Result<(), h2::Error>>,
}

/// A whole response.
#[derive(Debug)]
pub struct Reply {
    pub head: Response<()>,
    pub body: Vec<u8>,
    pub trailers: Option<HeaderMap>,
}

impl Reply {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

impl Client {
    pub fn connect(addr: SocketAddr) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("runtime");
        let (requests, connection) = runtime.block_on(async {
            let stream = TcpStream::connect(addr).await.expect("connect");
            let (requests, connection) = h2::client::handshake(stream).await.expect("handshake");
            (requests, tokio::spawn(connection))
        });
        Self { runtime, requests, connection }
    }

    pub fn ask(&self, request: Request<()>, body: &[&'static [u8]]) -> Result<Reply, h2::Error> {
        let requests = self.requests.clone();
        self.runtime.block_on(limited(exchange(requests, request, body.to_vec(), None)))
    }

    pub fn get(&self, path: &str) -> Reply {
        self.ask(get(path), &[]).expect("a response")
    }
}

pub async fn limited<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.expect("in time")
}

pub fn get(path: &str) -> Request<()> {
    Request::get(format!("http://a.example{path}")).body(()).expect("request")
}

pub async fn exchange(
    requests: SendRequest<Bytes>,
    request: Request<()>,
    body: Vec<&'static [u8]>,
    trailers: Option<HeaderMap>,
) -> Result<Reply, h2::Error> {
    let mut requests = requests.ready().await?;
    let (response, mut stream) = requests.send_request(request, body.is_empty() && trailers.is_none())?;
    let pieces = body.len();
    let mut sent = Ok(());
    for (i, piece) in body.into_iter().enumerate() {
        sent = sent.and_then(|()| {
            stream.send_data(Bytes::from_static(piece), i + 1 == pieces && trailers.is_none())
        });
    }
    if let Some(trailers) = trailers {
        sent = sent.and_then(|()| stream.send_trailers(trailers));
    }
    // Who is answered before all was sent need not send the rest (RFC 9113 8.1).
    let (parts, mut body) = response.await.map_err(|error| sent.err().unwrap_or(error))?.into_parts();
    let mut reply = Reply { head: Response::from_parts(parts, ()), body: Vec::new(), trailers: None };
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        reply.body.extend_from_slice(&data);
    }
    reply.trailers = body.trailers().await?;
    Ok(reply)
}

/// Sends bytes when the window allows, or until nobody wants them.
pub async fn say(stream: &mut SendStream<Bytes>, mut bytes: Bytes) {
    while !bytes.is_empty() {
        stream.reserve_capacity(bytes.len());
        while stream.capacity() == 0 {
            let Some(Ok(_)) = std::future::poll_fn(|cx| stream.poll_capacity(cx)).await else { return };
        }
        let piece = bytes.split_to(stream.capacity().min(bytes.len()));
        if stream.send_data(piece, false).is_err() {
            return;
        }
    }
}

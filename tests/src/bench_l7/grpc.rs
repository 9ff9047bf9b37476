//! A gRPC backend: answers every call with the message it got.

use std::net::TcpListener;

use anyhow::{Context, Result};
use bytes::{Bytes, BytesMut};
use h2::RecvStream;
use h2::server::SendResponse;
use http::{HeaderMap, Request, Response};
use rustix::thread::{CpuSet, sched_setaffinity};

use super::LOAD_CPU;

/// A message of 16 bytes behind its prefix: not compressed, its length.
pub const MESSAGE: &[u8] = b"\0\0\0\0\x100123456789abcdef";

/// Starts it on a thread of its own, on the CPU of the load; its port.
pub fn start() -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0").context("bind the gRPC backend")?;
    let port = listener.local_addr()?.port();
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name("grpc-backend".to_owned()).spawn(move || {
        let mut cpu = CpuSet::new();
        cpu.set(LOAD_CPU);
        // Without it the machine is too small for the bench, which the proxies will say.
        let _ = sched_setaffinity(None, &cpu);
        runtime.block_on(accept(listener));
    })?;
    Ok(port)
}

async fn accept(listener: TcpListener) {
    let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
    while let Ok((stream, _)) = listener.accept().await {
        let _ = stream.set_nodelay(true);
        tokio::spawn(async move {
            let builder = h2::server::Builder::new().max_concurrent_streams(4096).handshake(stream);
            let Ok(mut connection) = builder.await else { return };
            while let Some(Ok((request, respond))) = connection.accept().await {
                tokio::spawn(echo(request, respond));
            }
        });
    }
}

/// A client that leaves in the middle of a call is no error of the bench.
async fn echo(request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
    let mut body = request.into_body();
    let mut message = BytesMut::new();
    while let Some(Ok(data)) = body.data().await {
        message.extend_from_slice(&data);
        let _ = body.flow_control().release_capacity(data.len());
    }
    let mut head = Response::new(());
    head.headers_mut().insert("content-type", http::HeaderValue::from_static("application/grpc"));
    let Ok(mut stream) = respond.send_response(head, false) else { return };
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
    let _ = stream.send_data(message.freeze(), false);
    let _ = stream.send_trailers(trailers);
}

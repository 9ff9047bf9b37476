//! HTTP/2 on both sides, as HTTP/1.1 bytes to the rest of the proxy.
//!
//! A stream is a [`Carrier`](super::carrier::Carrier): what arrives on it is read as a
//! strict HTTP/1.1 message, what is written to it as HTTP/1.1 goes out as frames. So routing,
//! filters, retries, timeouts and metrics are one code for both versions, and a request is judged
//! by the one parser ([`super::h1`]). Types of the `h2` crate stay in this room; a codec of our own
//! would take its place behind [`Stream`].

mod client;
mod crew;
mod frame_budget;
mod frames;
mod inbound;
mod intake;
mod io;
mod limits;
mod outbound;
mod server;
mod stream;

pub(super) use client::Connections;
pub(super) use crew::Crew;
pub(super) use frames::fuzz;
pub(super) use server::serve;
pub(super) use stream::{Ended, Stream};

/// What a client sends first, RFC 9113 3.4.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Whether `bytes` are, or may become, the preface of HTTP/2. Asked only of bytes that are no
/// HTTP/1.1 head.
pub(super) fn is_preface(bytes: &[u8]) -> bool {
    let n = bytes.len().min(PREFACE.len());
    n > 0 && bytes.get(..n) == PREFACE.get(..n)
}

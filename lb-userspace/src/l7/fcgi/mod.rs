//! FastCGI towards upstreams, as HTTP/1.1 bytes to the rest of the proxy.
//!
//! A request that is written as HTTP/1.1 leaves as records, and what the application answers is read
//! as an HTTP/1.1 response; so retries, timeouts and metrics are one code for all protocols. A
//! connection carries one request: a kept one would occupy a process of the application (php-fpm) for
//! as long as it idles, and nginx keeps none either.

mod answer;
mod fuzz;
mod inbound;
mod outbound;
mod params;
mod record;
mod stderr;

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::task::{Context, Poll};

use super::carrier::Carrier;
use inbound::Inbound;
use outbound::Outbound;

pub(super) use fuzz::fuzz;
pub(super) use params::Params;

/// One request to an application, polled in both directions at once through `&self`, like a socket.
/// The cells are borrowed only inside a poll function.
pub(super) struct Request<'a> {
    connection: Carrier<'a>,
    endpoint: SocketAddr,
    inbound: RefCell<Inbound>,
    outbound: RefCell<Outbound<'a>>,
}

impl<'a> Request<'a> {
    /// On a new connection to `endpoint`.
    pub(super) fn new(connection: Carrier<'a>, endpoint: SocketAddr, params: &'a Params) -> Self {
        let (inbound, outbound) = (RefCell::new(Inbound::new()), RefCell::new(Outbound::new(params)));
        Self { connection, endpoint, inbound, outbound }
    }

    /// Bytes, or the end, can be read without waiting.
    pub(super) fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inbound.borrow_mut().poll_ready(cx, &self.connection)
    }

    /// Reads once; 0 is the end (or no room in `into`).
    pub(super) fn poll_read(&self, cx: &mut Context<'_>, into: &mut [u8]) -> Poll<io::Result<usize>> {
        self.inbound.borrow_mut().poll_read(cx, &self.connection, into)
    }

    /// Takes some of `parts`; some stays behind until [`Self::poll_flush`].
    pub(super) fn poll_write(&self, cx: &mut Context<'_>, parts: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let mut outbound = self.outbound.borrow_mut();
        let written = outbound.poll_write(cx, &self.connection, parts);
        if let Some(head_only) = outbound.take_head_only() {
            self.inbound.borrow_mut().sent(head_only);
        }
        written
    }

    /// Sends what was held back.
    pub(super) fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.outbound.borrow_mut().poll_flush(cx, &self.connection)
    }

    /// The application said that it did nothing about the request.
    pub(super) fn was_refused(&self) -> bool {
        self.inbound.borrow().answer().is_some_and(answer::Answer::was_refused)
    }
}

impl Drop for Request<'_> {
    fn drop(&mut self) {
        if let Some(answer) = self.inbound.borrow().answer() {
            answer.stderr.tell(self.endpoint);
        }
    }
}

/// The error is about what the application said, not about the connection.
pub(super) fn is_malformed(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<record::Malformed>())
}

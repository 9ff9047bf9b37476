//! Every bound of an HTTP/2 connection, by name.
//!
//! With 128 streams one connection holds at most: 1 MiB of request bodies ([`CONNECTION_WINDOW`]), 128
//! times 64 KiB of responses ([`SEND_BUFFER`]), 128 heads of 32 KiB, and its read
//! and write buffers: 13.5 MiB, reached only by a client that asks for as many large responses as it
//! may, with the largest heads, and reads none. Heads that arrive in one read are larger for a moment, up to
//! [`REFUSED_LIST_MAX`], until those that are too large are answered.
//!
//! The h2 crate bounds by itself: CONTINUATION frames of one head, heads four times too large, small
//! DATA frames, answers to PING and SETTINGS (it reads no further until they are written), and
//! streams that a client resets before we saw them. The rest is [`super::frame_budget`]'s.

use std::time::Duration;

use super::super::buffer::BUFFER_BYTES;

/// Bytes of one request body that may wait here; bounds its rate to this per round trip.
pub(super) const STREAM_WINDOW: u32 = 256 << 10;
/// Bytes of all request bodies of a connection that may wait here.
pub(super) const CONNECTION_WINDOW: u32 = 1 << 20;
/// Bytes of all responses of an upstream connection that may wait here: many clients share it, and
/// a slow one must not hold up the others.
const UPSTREAM_CONNECTION_WINDOW: u32 = 16 << 20;
/// Bytes of one response that wait for the client's window or its socket.
pub(super) const SEND_BUFFER: usize = 64 << 10;
/// Decoded head of a response as RFC 9113 6.5.2 counts it; what it becomes in HTTP/1.1 fits our own limit.
const HEADER_LIST_MAX: u32 = (BUFFER_BYTES - 1024) as u32;
/// Decoded head of a request that we see. What is larger than we take is answered, logged and counted by us like over
/// HTTP/1.1; what is larger than this the h2 crate answers by itself, and tells nobody.
const REFUSED_LIST_MAX: u32 = 4 * BUFFER_BYTES as u32;
/// Payload of the frames we take; the smallest the standard allows.
pub(super) const FRAME_MAX: u32 = 16 << 10;
/// Streams reset by the client that still wait to be seen; more is an attack (CVE-2023-44487).
pub(super) const PENDING_RESETS_MAX: usize = 20;
/// Streams we reset because of the client's errors; more ends the connection.
pub(super) const ERROR_RESETS_MAX: usize = 100;
/// Streams we reset that are remembered, so that frames under way do no harm, and for how long.
const RESET_REMEMBERED: usize = 50;
const RESET_REMEMBERED_FOR: Duration = Duration::from_secs(1);
/// How long a connection that was told to end has for its last bytes.
pub(super) const GOODBYE: Duration = Duration::from_secs(5);

/// The client side with all its bounds, and `streams` at once (`http2-max-concurrent-streams`).
pub(super) fn server(streams: u32) -> h2::server::Builder {
    let mut builder = h2::server::Builder::new();
    builder
        .max_concurrent_streams(streams)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buffer_size(SEND_BUFFER)
        .max_header_list_size(REFUSED_LIST_MAX)
        .max_frame_size(FRAME_MAX)
        .max_pending_accept_reset_streams(PENDING_RESETS_MAX)
        .max_local_error_reset_streams(Some(ERROR_RESETS_MAX))
        .max_concurrent_reset_streams(RESET_REMEMBERED)
        .reset_stream_duration(RESET_REMEMBERED_FOR);
    builder
}

/// The upstream side. Upstreams are ours, so what bounds them is memory alone.
pub(super) fn client() -> h2::client::Builder {
    let mut builder = h2::client::Builder::new();
    builder
        .enable_push(false)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(UPSTREAM_CONNECTION_WINDOW)
        .max_send_buffer_size(SEND_BUFFER)
        .max_header_list_size(HEADER_LIST_MAX)
        .max_frame_size(FRAME_MAX)
        .max_concurrent_reset_streams(RESET_REMEMBERED)
        .reset_stream_duration(RESET_REMEMBERED_FOR);
    builder
}

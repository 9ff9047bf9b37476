//! Every bound of an HTTP/2 connection, by name.
//!
//! With 128 streams one connection holds at most: 1 MiB of request bodies ([`CONNECTION_WINDOW`]) and more only out of
//! the memory that bodies have together, 128 times 64 KiB of responses ([`SEND_BUFFER`]) and as much of request bodies
//! that may have to be sent again (`relay`), 128 heads of 32 KiB, 8 MiB around small DATA frames
//! ([`SMALL_WAITING_MAX`]), and its read and write buffers: 30 MiB, reached only by a client that asks for as many large
//! responses as it may, with the largest heads, and reads none, while it sends what nobody takes. With other numbers
//! of streams (`http2-max-concurrent-streams`) what is said for each changes. Heads that arrive in one read are
//! larger for a moment, up to [`REFUSED_LIST_MAX`], until those that are too large are answered.
//!
//! The h2 crate bounds by itself: CONTINUATION frames of one head, heads four times too large, answers to PING and
//! SETTINGS (it reads no further until they are written), and streams that a client resets before we saw them. It ends
//! connections with small DATA frames that wait and with empty ones, which [`super::intake`] keeps from it. The rest is
//! [`super::frame_budget`]'s.

use std::time::Duration;

use super::super::buffer::BUFFER_BYTES;

/// Bytes of one request body that may wait here; bounds its rate to this per round trip.
pub(super) const STREAM_WINDOW: u32 = 256 << 10;
/// Bytes of all request bodies of a connection that may wait here. Where so many do, and there are more bodies than
/// this has room for, each of those brings room of its own, out of the memory that all bodies have together.
pub(super) const CONNECTION_WINDOW: u32 = 1 << 20;
/// Streams of one connection to an upstream at once, unless it allows fewer.
pub(super) const UPSTREAM_STREAMS_MAX: usize = 100;
/// What the h2 crate says an upstream allows before that has said so itself: no number that can be said.
pub(super) const UNSAID: usize = usize::MAX - 1;
/// Bytes of all responses of an upstream connection that may wait here: many clients share it, and as many slow ones
/// as it has streams must not hold up the others.
const UPSTREAM_CONNECTION_WINDOW: u32 = UPSTREAM_STREAMS_MAX as u32 * STREAM_WINDOW;
/// Bytes of one response that wait for the client's window or its socket.
pub(super) const SEND_BUFFER: usize = 64 << 10;
/// Decoded head of a response as RFC 9113 6.5.2 counts it; what it becomes in HTTP/1.1 fits our own limit.
const HEADER_LIST_MAX: u32 = (BUFFER_BYTES - 1024) as u32;
/// Decoded head of a request that we see. What is larger than we take is answered, logged and counted by us like over
/// HTTP/1.1; what is larger than this the h2 crate answers by itself, and tells nobody.
const REFUSED_LIST_MAX: u32 = 4 * BUFFER_BYTES as u32;
/// Payload of the frames we take; the smallest the standard allows.
pub(super) const FRAME_MAX: u32 = 16 << 10;
/// Streams we reset because of the client's errors, in a connection's life; more ends it. Frames for a stream that we
/// reset and do not remember count as well.
pub(super) const ERROR_RESETS_MAX: usize = 100;
/// Streams we reset that are remembered, for each that may be open, so that frames under way do no harm, and for how
/// long: longer than bytes stand in the queues of a slow line.
const RESET_REMEMBERED: usize = 8;
const RESET_REMEMBERED_FOR: Duration = Duration::from_secs(10);
/// DATA frames with less content than this are small to the h2 crate, and count by what they lack.
pub(super) const SMALL: u32 = 256;
/// Small DATA frames that come before those that wait are looked for.
pub(super) const SMALL_MAX: u32 = 1024;
/// Small DATA frames that wait in the h2 crate, and end a client's connection: far more than come in one read after
/// [`SMALL_MAX`]. Those for a stream that we reset count for good: as many may be under way as fit into its window.
const SMALL_WAITING_MAX: usize = 32 * 1024;
/// Empty DATA frames that reached the h2 crate, after which a connection takes no more requests; the crate ends it
/// after 100.
pub(super) const EMPTY_MAX: u32 = 50;
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
        // Whoever leaves a page gives up all that it has open. What more of them cost (CVE-2023-44487) is the frame budget's.
        .max_pending_accept_reset_streams(usize::try_from(streams).unwrap_or(usize::MAX))
        .max_local_error_reset_streams(Some(ERROR_RESETS_MAX))
        .max_concurrent_reset_streams(remembered(usize::try_from(streams).unwrap_or(usize::MAX)))
        .reset_stream_duration(RESET_REMEMBERED_FOR)
        .data_frame_budget(SMALL_WAITING_MAX * SMALL as usize);
    builder
}

/// The upstream side. Upstreams are ours, so what bounds them is memory alone: clients that cancel while much is under
/// way must not end what others have on the connection.
pub(super) fn client() -> h2::client::Builder {
    let mut builder = h2::client::Builder::new();
    builder
        .enable_push(false)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(UPSTREAM_CONNECTION_WINDOW)
        .max_send_buffer_size(SEND_BUFFER)
        .max_header_list_size(HEADER_LIST_MAX)
        .max_frame_size(FRAME_MAX)
        .max_local_error_reset_streams(None)
        .initial_max_send_streams(UNSAID)
        .max_concurrent_reset_streams(remembered(UPSTREAM_STREAMS_MAX))
        .reset_stream_duration(RESET_REMEMBERED_FOR)
        .data_frame_budget(usize::MAX);
    builder
}

fn remembered(streams: usize) -> usize {
    RESET_REMEMBERED.saturating_mul(streams)
}

//! HTTP/1.x on the wire: heads, body framing, chunks. Pure; no socket, no policy.
//!
//! One strict reading of every byte: what another parser could understand differently is refused,
//! so a request cannot be smuggled past the routing. What is forwarded is copied in contiguous
//! runs of header lines; there is no header map.

pub(super) mod body;
pub(super) mod chunked;
mod glimpse;
pub(super) mod head;
mod plain;
pub(super) mod request;
pub(super) mod response;

pub(super) use body::Body;
pub(super) use head::Version;
pub(super) use request::{Request, valid_host};
pub(super) use response::Response;

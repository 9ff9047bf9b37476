//! What one request leaves in a trace, as the proxy tells it to whoever sends it on.

use std::sync::Arc;
use std::time::Duration;

/// A request that was served, in its trace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// The trace it belongs to; never 0.
    pub trace: u128,
    /// Itself; never 0.
    pub id: u64,
    /// The span that caused it; `None`: the trace begins with it.
    pub parent: Option<u64>,
    /// `tracestate`, as whoever began the trace sent it.
    pub state: String,
    /// Its operation.
    pub name: String,
    /// Since the epoch.
    pub began: Duration,
    /// Until the last byte of the response.
    pub took: Duration,
    /// Status of the response.
    pub status: u16,
    /// Whatever else is known of it, in order.
    pub attributes: Vec<(&'static str, Attribute)>,
}

/// Value of an attribute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Attribute {
    /// One of a few words.
    Word(&'static str),
    /// Any words.
    Text(String),
    /// A number.
    Number(u32),
}

/// Takes spans from any thread, at once: it never waits.
pub type TakeSpan = Arc<dyn Fn(Span) + Send + Sync>;

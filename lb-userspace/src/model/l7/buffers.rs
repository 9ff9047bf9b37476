//! How much of a message the proxy holds, instead of passing it on as it comes.

use std::num::NonZeroU64;

/// Of one location (`proxy-buffer*`, `proxy-request-buffering`, `client-body-buffer-size`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buffers {
    /// Longest head of a response (`proxy-buffer-size`); a longer one is answered 502.
    pub head_bytes: usize,
    /// Request bodies are read whole before an endpoint is chosen, so many bytes of one in memory, the
    /// rest in a file. `None`: they go to the endpoint as they come.
    pub request: Option<usize>,
    /// The same of a body that a further attempt would need, where holding it costs next to nothing or other
    /// endpoints are asked for more than failures. `None`: bodies go past whatever comes (`proxy-request-buffering: off`).
    pub again: Option<usize>,
    /// Responses are read ahead of their clients. `None`: as fast as those take them.
    pub response: Option<ReadAhead>,
}

/// How far a response is read ahead of its client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadAhead {
    /// In memory (`proxy-buffers-number` times `proxy-buffer-size`).
    pub memory_bytes: usize,
    /// Behind that in a file (`proxy-max-temp-file-size`); 0: no further.
    pub file_bytes: u64,
    /// How fast the client gets it; `None`: as fast as it can.
    pub rate: Option<Rate>,
}

/// Pace of one response (`limit-rate`, `limit-rate-after`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Bytes of its body a second.
    pub bytes: NonZeroU64,
    /// After so many.
    pub after: u64,
}

impl Buffers {
    /// No location takes longer heads, whatever is asked for.
    pub const HEAD_MAX: usize = 1 << 20;
    /// Of a request body that is held, in memory, where nobody says how much (`client-body-buffer-size`).
    pub const REQUEST_BYTES: usize = 8 * 1024;
    /// No message is held in more memory.
    pub const MEMORY_MAX: usize = 16 << 20;
}

impl Default for Buffers {
    /// Heads as with ingress-nginx; what is long streams.
    fn default() -> Self {
        Self { head_bytes: 4 * 1024, request: None, again: Some(Self::REQUEST_BYTES), response: None }
    }
}

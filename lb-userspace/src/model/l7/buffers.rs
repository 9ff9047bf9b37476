//! How much of a message the proxy holds, instead of passing it on as it comes.

/// Of one location (`proxy-buffer*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buffers {
    /// Longest head of a response (`proxy-buffer-size`); a longer one is answered 502.
    pub head_bytes: usize,
}

impl Buffers {
    /// No location takes longer heads, whatever is asked for.
    pub const HEAD_MAX: usize = 1 << 20;
}

impl Default for Buffers {
    /// ingress-nginx's (reference 2.2).
    fn default() -> Self {
        Self { head_bytes: 4 * 1024 }
    }
}

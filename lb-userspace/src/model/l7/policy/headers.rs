//! Headers of requests as the upstream gets them, and of responses as the client does.

/// What the upstream is told otherwise than by the client.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RequestHeaders {
    /// `upstream-vhost`: Host; `None`: the client's.
    pub host: Option<String>,
}

/// What responses say beside what the upstream says; ours and the upstream's alike.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ResponseHeaders {
    /// Take the place of the upstream's of the same names (`custom-headers`). Without a value: there
    /// is none.
    pub set: Vec<Header>,
}

/// A header line; neither part can end it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// A token.
    pub name: String,
    /// Without line breaks.
    pub value: String,
}

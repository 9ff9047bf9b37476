//! A request of a case, and what has to come of it.

use serde::Deserialize;

/// Nothing of an answer is looked at unless a field says so. In lines `…` stands for any text.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Step {
    /// Method and target, then header lines, an empty line and a body. What is missing of a request is added.
    pub send: String,
    /// What the connection begins with, before the request.
    pub before: String,
    /// Sent as it stands, in place of a request that is whole.
    pub raw: String,
    /// A body of so many bytes.
    pub body_bytes: usize,
    /// Whether it is sent to the TLS listener; the name is that of the host.
    pub tls: bool,
    /// The name in the handshake, where that is another one.
    pub sni: Option<String>,
    /// Whether it is sent to the address of health and metrics.
    pub admin: bool,
    /// Whose certificate the host shows.
    pub shows: Option<String>,
    /// Whether it speaks TLS 1.2 alone.
    pub tls12: bool,
    /// Who the client says it is: `friend` or `stranger`.
    pub certificate: Option<String>,
    /// Shows the cookies that the steps before have got.
    pub cookies: bool,
    /// Waits for no answer, and leaves the connection open until the case ends.
    pub hold: bool,
    /// Asked so often, with the same outcome each time; once unless it says so.
    pub times: usize,
    /// Asked again until everything is as it should be.
    pub until: bool,

    /// The client reads nothing of the answer: whether the backend can send all of it nevertheless.
    pub done: Option<bool>,
    pub status: Option<u16>,
    /// Header lines of the answer.
    pub has: Vec<String>,
    /// Names of headers that the answer has not.
    pub lacks: Vec<String>,
    /// Lines of the answer's body; a backend's answer is what it was asked.
    pub saw: Vec<String>,
    /// Beginnings of lines that the body has not.
    pub hid: Vec<String>,
    pub body: Option<String>,
    pub length: Option<usize>,
    pub backend: Option<String>,
    pub same_backend: bool,
    pub other_backend: bool,
    /// How many of five requests on one connection are answered.
    pub served: Option<usize>,
    /// The connection ends by itself when nothing is asked any more.
    pub ends_idle: bool,
    /// `refused` where there is to be no handshake.
    pub handshake: Option<String>,
    /// Whether a second handshake resumes the session of a first one.
    pub resumed: Option<bool>,
    /// How keys are agreed on.
    pub group: Option<String>,
    /// How many requests at once a connection of HTTP/2 may have.
    pub streams: Option<u32>,
    /// What is agreed on where HTTP/2 and HTTP/1.1 are offered.
    pub alpn: Option<String>,
    pub max_length: Option<usize>,
    /// A line of the access log.
    pub logged: Option<String>,
    /// A line of the file `access.log` beside the manifests.
    pub filed: Option<String>,
    /// A line that the access log has not.
    pub unlogged: Option<String>,
    /// The cipher of the connection.
    pub cipher: Option<String>,
    pub same_cookie: bool,
    /// Milliseconds.
    pub takes_at_least: u64,
    /// Milliseconds.
    pub takes_at_most: Option<u64>,
    /// The connection ends without an answer.
    pub silence: bool,
    /// Lines of a request that some backend has got.
    pub recorded: Vec<String>,
    /// A line that this request has not.
    pub unrecorded: Option<String>,
}

/// The same line, whatever the case of its name.
pub fn is_header(wanted: &str, line: &str) -> bool {
    match (wanted.split_once(": "), line.split_once(": ")) {
        (Some((name, wanted)), Some((other, value))) => {
            name.eq_ignore_ascii_case(other) && is_like(wanted, value)
        }
        _ => is_like(wanted, line),
    }
}

/// The same text, where `…` in what is wanted stands for any.
pub fn is_like(wanted: &str, text: &str) -> bool {
    let mut parts = wanted.split('…');
    let Some(mut rest) = text.strip_prefix(parts.next().unwrap_or_default()) else { return false };
    let parts: Vec<&str> = parts.collect();
    let Some((last, between)) = parts.split_last() else { return rest.is_empty() };
    for part in between {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

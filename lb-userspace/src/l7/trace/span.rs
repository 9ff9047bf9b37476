//! The span of a request: begun while its bytes are there, ended with its response. Names and attributes are those of
//! ingress-nginx's module for OpenTelemetry.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::super::buffer::Scratch;
use super::super::digits::addr_text;
use super::super::h1::Version;
use super::super::log::{self, End, Subject};
use super::Context;
use crate::model::l7::Traced;
use crate::model::span::{Attribute, Span};

/// Longest text of a span: it may wait in memory, with many others.
const TEXT_MAX: usize = 2048;

/// A span that has not ended.
pub(in crate::l7) struct Begun {
    span: Span,
    traced: Arc<Traced>,
    /// What of its name the request tells.
    name: Scratch,
}

impl Begun {
    pub(super) fn new(traced: &Arc<Traced>, context: &Context<'_>, subject: &Subject<'_, '_, '_>) -> Self {
        let span = Span {
            trace: context.trace,
            id: context.span,
            parent: context.parent,
            state: text(context.state()),
            name: String::new(),
            began: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default(),
            took: Default::default(),
            status: 0,
            attributes: attributes(subject),
        };
        Self { span, traced: Arc::clone(traced), name: log::begin_text(&traced.operation, subject) }
    }

    /// It waited for the rest of its head before it was begun here.
    pub(in crate::l7) fn end(self, waited: Duration, end: &End<'_>) -> Span {
        let Self { span, traced, name: begun } = self;
        let mut name = Scratch::take();
        log::end_text(&traced.operation, &begun, end, &mut name);
        let began = span.began.saturating_sub(waited);
        Span { name: text(&name), began, took: end.took, status: end.status, ..span }
    }
}

fn attributes(subject: &Subject<'_, '_, '_>) -> Vec<(&'static str, Attribute)> {
    let Subject { request, place, client, effective, is_http2, .. } = *subject;
    let word = |word: &[u8]| Attribute::Text(text(word));
    // One allocation for all of them.
    let mut all = Vec::with_capacity(10);
    if let Some(request) = request {
        let flavor = match request.version {
            _ if is_http2 => "2.0",
            Version::Http10 => "1.0",
            Version::Http11 => "1.1",
        };
        all.push(("http.method", word(request.method.as_bytes())));
        all.push(("http.flavor", Attribute::Word(flavor)));
        all.push(("http.target", word(request.target)));
        all.extend(place.map(|place| ("http.server_name", word(place.route.labels.host.as_bytes()))));
        if !request.host.is_empty() {
            all.push(("http.host", word(request.host)));
        }
        all.extend(request.headers("user-agent").next().map(|agent| ("http.user_agent", word(agent))));
    }
    all.push(("http.scheme", Attribute::Word(client.scheme.as_str())));
    all.push(("net.host.port", Attribute::Number(client.port.into())));
    all.push(("net.peer.ip", peer(effective.addr)));
    // Whoever stands in front has not told that of its client.
    if effective.addr == client.addr {
        all.push(("net.peer.port", Attribute::Number(client.remote_port.into())));
    }
    all
}

fn peer(addr: IpAddr) -> Attribute {
    Attribute::Text(text(addr_text(addr, &mut [0; 48])))
}

/// As far as it has room, and with a sign in the place of what is no text.
fn text(bytes: &[u8]) -> String {
    let mut text = String::from_utf8_lossy(bytes.get(..TEXT_MAX).unwrap_or(bytes)).into_owned();
    // Each of those signs has three bytes.
    text.truncate(text.floor_char_boundary(TEXT_MAX));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_one_and_has_its_bounds_whatever_it_is_made_of() {
        for (bytes, expected) in [
            (b"/caf\xc3\xa9".to_vec(), "/caf\u{e9}".to_owned()),
            (b"/\xff".to_vec(), "/\u{fffd}".to_owned()),
            (vec![b'a'; 3000], "a".repeat(TEXT_MAX)),
            (vec![0xff; 3000], "\u{fffd}".repeat(TEXT_MAX / 3)),
        ] {
            assert_eq!(text(&bytes), expected);
        }
    }
}

//! The parsers of what clients and upstreams send, for fuzzing: each takes any bytes, must not panic, and checks
//! of itself what must hold for every input.

use super::buffer::BUFFER_BYTES;
use super::client::Effective;
use super::client_auth::Session;
use super::credentials::Credentials;
use super::filters::Scheme;
use super::h1::body::Body;
use super::h1::head::{Lines, Refusal, Sizes};
use super::h1::{Request, Response};
use super::heads::{self, Client, Onward};
use super::path::{normalize, split_query};
use super::variable::Known;
use super::{authorities, client_hello, fcgi, h2, proxy_protocol, tls_session, trace};
use crate::model::l7::Forwarding;

/// A parser under test.
pub type Target = fn(&[u8]);

/// Every target by its name.
pub const TARGETS: [(&str, Target); 12] = [
    ("request-head", request_head),
    ("response-head", response_head),
    ("chunked", chunked),
    ("proxy-protocol", proxy_protocol::fuzz),
    ("client-hello", client_hello::fuzz),
    ("fastcgi", fcgi::fuzz),
    ("traceparent", trace::fuzz),
    ("certificate", authorities::fuzz),
    ("path", path),
    ("basic-auth", basic_auth),
    ("h2-frames", h2::fuzz),
    ("tls-records", tls_session::fuzz),
];

/// What is taken for a head is one for every reader: no byte but CRLF ends a line, no shorter piece
/// is a head, and what goes upstream is read there as it was judged here.
pub(super) fn request_head(bytes: &[u8]) {
    let mut lines = Lines::new();
    let Ok(Some(request)) = Request::parse(bytes, &mut lines, Sizes::default()) else { return };
    let head = bytes.get(..request.len).expect("a head is within its bytes");
    assert!(head.ends_with(b"\r\n\r\n"));
    for (at, _) in head.iter().enumerate().filter(|(_, byte)| **byte == b'\n') {
        assert!(at > 0 && head.get(at - 1) == Some(&b'\r'), "a bare line feed");
    }
    assert!(!head.contains(&0));
    assert!(!(request.chunked && request.length.is_some()), "two lengths");
    forwarded(&request);
    let mut again = Lines::new();
    let shorter = head.get(..head.len() - 1).unwrap_or_default();
    assert!(!matches!(Request::parse(shorter, &mut again, Sizes::default()), Ok(Some(_))));
}

fn forwarded(request: &Request<'_, '_>) {
    let addr = std::net::Ipv4Addr::LOCALHOST.into();
    let client = Client {
        addr,
        remote_port: 1024,
        scheme: Scheme::Http,
        server: addr,
        port: 80,
        session: Session::Plain,
        handshake: None,
        told: None,
        serial: 1,
    };
    let mut head = Vec::new();
    let effective = Effective::of(&client, request.host);
    let onward = Onward {
        target: None,
        prefix: None,
        certificate: None,
        policy: None,
        forwarding: &Forwarding::default(),
    };
    let known = Known {
        request,
        client: &client,
        effective,
        id: b"id",
        found: None,
        is_http2: false,
        requests: 1,
        trace: None,
    };
    heads::request(known, onward, &mut head);
    let roomy = Sizes { line: BUFFER_BYTES * 2, head: BUFFER_BYTES * 2, ..Sizes::default() };
    let mut lines = Lines::new();
    // HTTP/1.0 needs no Host, and is sent on as HTTP/1.1 with an empty one.
    if request.host.is_empty() {
        return;
    }
    match Request::parse(&head, &mut lines, roomy) {
        Ok(Some(upstream)) => {
            assert_eq!(upstream.len, head.len());
            assert_eq!((upstream.method, upstream.target), (request.method, request.target));
            assert_eq!(upstream.host, request.host);
            assert_eq!((upstream.length, upstream.chunked), (request.length, request.chunked));
        }
        // Ours come on top of the client's.
        Err(Refusal::HeadTooLarge) => {}
        other => panic!("forwarded as {:?}: {other:?}", String::from_utf8_lossy(&head)),
    }
}

pub(super) fn response_head(bytes: &[u8]) {
    let mut lines = Lines::new();
    if let Ok(Some(response)) = Response::parse(bytes, &mut lines) {
        assert!(bytes.get(..response.len).is_some_and(|head| head.ends_with(b"\r\n\r\n")));
    }
}

/// However the bytes are cut, the same of them belong to the body.
fn chunked(bytes: &[u8]) {
    let whole = take(bytes, bytes.len().max(1));
    for size in [1, 2, 7] {
        assert_eq!(take(bytes, size), whole, "in pieces of {size}");
    }
}

/// Bytes of the body and whether it is complete, `size` at a time; `None` if it is malformed.
fn take(bytes: &[u8], size: usize) -> Option<(usize, bool)> {
    let mut body = Body::Chunked(Default::default());
    let mut taken = 0;
    for piece in bytes.chunks(size) {
        let n = body.take(piece).ok()?;
        taken += n;
        if n < piece.len() {
            break;
        }
    }
    Some((taken, body.is_done()))
}

/// What a path is compared as stays what it is, and leads nowhere but down.
fn path(bytes: &[u8]) {
    let (path, _) = split_query(bytes);
    // A head with a NUL in it is refused before anybody looks at the path.
    let Some(normal) = normalize(path).ok().filter(|_| !path.contains(&0)) else { return };
    assert!(!normal.contains(&0));
    let below = normal.strip_prefix(b"/").expect("it begins at the root");
    let mut segments = below.split(|byte| *byte == b'/');
    let last = segments.next_back();
    assert!(segments.all(|segment| !matches!(segment, b"" | b"." | b"..")), "{normal:?}");
    assert!(!matches!(last, Some(b"." | b"..")), "{normal:?}");
    if !normal.contains(&b'%') {
        assert_eq!(normalize(&normal).as_deref(), Ok(&*normal), "normal twice");
    }
}

/// A user is named, and by its colon alone kept from the password.
fn basic_auth(bytes: &[u8]) {
    if let Some(Credentials { user, .. }) = Credentials::read(bytes) {
        assert!(!user.is_empty() && !user.contains(&b':'));
    }
}

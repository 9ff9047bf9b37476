//! What arrives on a stream, as HTTP/1.1 bytes.
//!
//! Bodies of unknown length become chunks, trailers the trailers of the last one. What RFC 9113 8.2
//! and 8.3 forbid and the h2 crate lets through is refused here; the rest is for the parser of
//! HTTP/1.1, which reads what this makes.

use std::cell::RefCell;
use std::future::Future;
use std::io::{self, Write as _};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use h2::RecvStream;
use http::header::{self, HeaderMap};
use http::{Method, StatusCode, request, response};

use super::super::buffer::{BUFFER_BYTES, Scratch, copy};
use super::super::h1::chunked;
use super::super::h1::head::Refusal;
use super::intake::{Body, Intake};

/// One direction of a stream.
pub(super) struct Inbound {
    source: Source,
    /// Bytes of heads and trailers that wait to be read.
    staged: Option<Scratch>,
    staged_read: usize,
    /// Content of the frame at hand, and how much of it the window lacks.
    data: Bytes,
    unreleased: usize,
    framing: Framing,
    /// Those of a response do, but for some; those of a request go no further whatever carries it.
    passes_trailers: bool,
    refused: bool,
    /// Of its connection.
    intake: Rc<Intake>,
}

enum Source {
    /// The request was not sent yet.
    Unsent,
    /// Its response is to come; `true` if it has no body whatever its head says.
    Response(h2::client::ResponseFuture, bool),
    Body(Rc<RefCell<Body>>),
    Trailers(Rc<RefCell<Body>>),
    Ended,
}

/// How the receiver learns where the body ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Framing {
    /// By a Content-Length, or because there can be none.
    Known,
    Chunked,
}

impl Inbound {
    /// Reads a request: its head, then `body`. Where the head is refused it may not be whole.
    pub(super) fn request(
        parts: &request::Parts,
        body: RecvStream,
        intake: Rc<Intake>,
    ) -> (Self, Result<(), Refusal>) {
        let mut head = Scratch::take();
        let ends = body.is_end_stream();
        let known = ends || parts.headers.contains_key(header::CONTENT_LENGTH);
        let verdict = request_head(parts, known, &mut head);
        let inbound = Self {
            source: if ends { Source::Ended } else { Source::Body(intake.body(body)) },
            staged: Some(head),
            staged_read: 0,
            data: Bytes::new(),
            unreleased: 0,
            framing: if known { Framing::Known } else { Framing::Chunked },
            passes_trailers: false,
            refused: false,
            intake,
        };
        (inbound, verdict)
    }

    /// Waits for the response to a request that is not sent yet.
    pub(super) fn response(intake: Rc<Intake>) -> Self {
        Self {
            source: Source::Unsent,
            staged: None,
            staged_read: 0,
            data: Bytes::new(),
            unreleased: 0,
            framing: Framing::Known,
            passes_trailers: true,
            refused: false,
            intake,
        }
    }

    /// The other side did nothing about the request.
    pub(super) fn was_refused(&self) -> bool {
        self.refused
    }

    /// The request cannot be sent any more; the other side did nothing about it.
    pub(super) fn unsent(&mut self) {
        if matches!(self.source, Source::Unsent) {
            (self.source, self.refused) = (Source::Ended, true);
        }
    }

    /// The request was sent; `bodyless` if it asked for the head alone.
    pub(super) fn sent(&mut self, response: h2::client::ResponseFuture, bodyless: bool) {
        self.source = Source::Response(response, bodyless);
    }

    /// There is something to read, or the end.
    pub(super) fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.staged.is_none() && self.data.is_empty() {
            match &mut self.source {
                Source::Unsent => return Poll::Pending,
                Source::Response(response, bodyless) => {
                    let bodyless = *bodyless;
                    match ready!(Pin::new(response).poll(cx)) {
                        Ok(response) => {
                            let (parts, body) = response.into_parts();
                            self.answered(&parts, body, bodyless);
                        }
                        Err(error) => {
                            self.refused = is_refusal(&error);
                            return Poll::Ready(Err(broken(error)));
                        }
                    }
                }
                Source::Body(body) => {
                    let polled = body.borrow_mut().poll_data(cx);
                    match ready!(polled) {
                        Some(data) => {
                            self.data = data.map_err(broken)?;
                            self.unreleased = self.data.len();
                        }
                        None => match std::mem::replace(&mut self.source, Source::Ended) {
                            Source::Body(body) if self.framing == Framing::Chunked => {
                                self.source = Source::Trailers(body);
                            }
                            _ => {}
                        },
                    }
                }
                Source::Trailers(body) => {
                    let trailers = body.borrow_mut().poll_trailers(cx);
                    let trailers = ready!(trailers).map_err(broken)?;
                    let mut end = Scratch::take();
                    end.extend_from_slice(b"0\r\n");
                    // Those that could be taken for something else in the head are left out.
                    for (name, value) in trailers.iter().flatten() {
                        if self.passes_trailers && chunked::may_trail(name.as_str().as_bytes()) {
                            line(name.as_str(), value.as_bytes(), &mut end);
                        }
                    }
                    end.extend_from_slice(b"\r\n");
                    self.stage(end);
                    self.source = Source::Ended;
                }
                Source::Ended => break,
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Reads what there is; 0 is the end.
    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>, into: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut filled = 0;
        loop {
            match self.poll_ready(cx) {
                Poll::Ready(Ok(())) => {}
                // What is filled goes first; the error comes again.
                Poll::Pending | Poll::Ready(Err(_)) if filled > 0 => break,
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
            }
            let n = self.take(into.get_mut(filled..).unwrap_or_default());
            filled += n;
            if n == 0 {
                break;
            }
        }
        Poll::Ready(Ok(filled))
    }

    /// Copies the next piece. 0 if there is none or no room.
    fn take(&mut self, into: &mut [u8]) -> usize {
        if let Some(staged) = &self.staged {
            let rest = staged.get(self.staged_read..).unwrap_or_default();
            let n = copy(rest, into);
            self.staged_read += n;
            if self.staged_read >= staged.len() {
                (self.staged, self.staged_read) = (None, 0);
            }
            return n;
        }
        let n = match self.framing {
            Framing::Known => copy(&self.data, into),
            Framing::Chunked => chunked::write(&self.data, into),
        };
        let framing = if self.framing == Framing::Chunked { chunked::OVERHEAD } else { 0 };
        self.data.advance(n.saturating_sub(framing).min(self.data.len()));
        if self.data.is_empty() {
            self.release();
        }
        n
    }

    /// Lets the sender send as much again.
    fn release(&mut self) {
        let n = std::mem::take(&mut self.unreleased);
        if let Source::Body(body) = &self.source {
            body.borrow_mut().release(n);
        }
    }

    fn stage(&mut self, bytes: Scratch) {
        (self.staged, self.staged_read) = (Some(bytes), 0);
    }

    /// A response head from an upstream.
    fn answered(&mut self, parts: &response::Parts, body: RecvStream, bodyless: bool) {
        let bodyless = bodyless || matches!(parts.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        let ends = body.is_end_stream();
        let headers = &parts.headers;
        // A length would hide the trailers of gRPC from HTTP/1.1's framing.
        let by_length = !is_grpc(headers) && headers.contains_key(header::CONTENT_LENGTH);
        self.framing = if bodyless || by_length { Framing::Known } else { Framing::Chunked };
        let mut head = Scratch::take();
        let _ = write!(head, "HTTP/1.1 {} \r\n", parts.status.as_str());
        for (name, value) in headers {
            if by_length || bodyless || name != header::CONTENT_LENGTH {
                line(name.as_str(), value.as_bytes(), &mut head);
            }
        }
        let chunked = self.framing == Framing::Chunked;
        head.extend_from_slice(if chunked { b"transfer-encoding: chunked\r\n\r\n" } else { b"\r\n" });
        if chunked && ends {
            // In one piece with the head, so that whoever passes it on can end both at once.
            head.extend_from_slice(b"0\r\n\r\n");
        }
        self.stage(head);
        self.source = if ends || bodyless { Source::Ended } else { Source::Body(self.intake.body(body)) };
    }
}

/// The head in HTTP/1.1, also where it is refused: whole but for what is longer than any that is taken. `length_known`:
/// no chunks are needed to tell the body's end.
fn request_head(parts: &request::Parts, length_known: bool, out: &mut Vec<u8>) -> Result<(), Refusal> {
    let (path, authority) = (parts.uri.path_and_query(), parts.uri.authority());
    let target = path.map(|path| path.as_str()).or(authority.map(|authority| authority.as_str()));
    let target = target.unwrap_or_default();
    let host = host(parts);
    let mut verdict = match host {
        _ if parts.method == Method::CONNECT => Err(Refusal::Method),
        // An absolute form here would name a second authority; `*` goes nowhere.
        _ if !target.starts_with('/') => Err(Refusal::Target),
        Ok(_) => Ok(()),
        Err(refusal) => Err(refusal),
    };
    for part in [parts.method.as_str(), " ", target, " HTTP/1.1\r\nhost: "] {
        out.extend_from_slice(part.as_bytes());
    }
    out.extend_from_slice(host.unwrap_or_default());
    out.extend_from_slice(b"\r\n");
    let mut cookies = false;
    for (name, value) in &parts.headers {
        let value = value.as_bytes();
        // RFC 9113 8.2.1; h2 lets it through, and HTTP/1.1 would cut it off.
        if value.first().is_some_and(is_blank) || value.last().is_some_and(is_blank) {
            verdict = verdict.and(Err(Refusal::Malformed));
        }
        if out.len() + name.as_str().len() + value.len() > BUFFER_BYTES {
            return verdict.and(Err(Refusal::HeadTooLarge));
        }
        match *name {
            header::HOST => {}
            header::COOKIE => cookies = true,
            // RFC 9113 8.2.2 allows it and the value `trailers`; hop by hop in HTTP/1.1.
            header::TE => {}
            _ => line(name.as_str(), value, out),
        }
    }
    if cookies {
        // RFC 9113 8.2.3: crumbs are one header for HTTP/1.1.
        out.extend_from_slice(b"cookie: ");
        for (i, crumb) in parts.headers.get_all(header::COOKIE).iter().enumerate() {
            if out.len() + crumb.len() > BUFFER_BYTES {
                return verdict.and(Err(Refusal::HeadTooLarge));
            }
            out.extend_from_slice(if i == 0 { b"" } else { b"; " });
            out.extend_from_slice(crumb.as_bytes());
        }
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(if length_known { b"\r\n" } else { b"transfer-encoding: chunked\r\n\r\n" });
    verdict
}

/// `:authority`, or Host without it; where both are there they say the same.
fn host(parts: &request::Parts) -> Result<&[u8], Refusal> {
    let authority = parts.uri.authority().map(|authority| authority.as_str().as_bytes());
    let mut hosts = parts.headers.get_all(header::HOST).iter();
    let host = hosts.next().map(|host| host.as_bytes());
    if hosts.next().is_some() {
        return Err(Refusal::Host);
    }
    match (authority, host) {
        (Some(authority), Some(host)) if !authority.eq_ignore_ascii_case(host) => Err(Refusal::Host),
        (Some(host), _) | (None, Some(host)) => Ok(host),
        (None, None) => Err(Refusal::Host),
    }
}

fn is_blank(byte: &u8) -> bool {
    matches!(byte, b' ' | b'\t')
}

fn line(name: &str, value: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

/// REFUSED_STREAM, or beyond the last stream of a GOAWAY: RFC 9113 8.7.
fn is_refusal(error: &h2::Error) -> bool {
    error.is_remote() && (error.reason() == Some(h2::Reason::REFUSED_STREAM) || error.is_go_away())
}

fn broken(error: h2::Error) -> io::Error {
    let kind = if error.is_io() { io::ErrorKind::BrokenPipe } else { io::ErrorKind::ConnectionReset };
    io::Error::new(kind, error)
}

#[cfg(test)]
mod tests {
    use http::Request;
    use proptest::prelude::*;

    use super::super::super::h1;
    use super::super::super::h1::chunked::{Decoder, Piece};
    use super::super::super::h1::head::{Lines, Sizes};
    use super::*;

    fn head(request: http::request::Builder, known: bool) -> Result<String, Refusal> {
        let (parts, ()) = request.body(()).expect("request").into_parts();
        let mut out = Vec::new();
        request_head(&parts, known, &mut out)?;
        Ok(String::from_utf8(out).expect("ascii"))
    }

    #[test]
    fn a_head_becomes_what_the_strict_parser_reads() {
        let request = Request::put("http://a.example/x?y").header("a", "1").header("te", "trailers");

        let text = head(request, false).expect("a head");

        assert_eq!(
            text,
            "PUT /x?y HTTP/1.1\r\nhost: a.example\r\na: 1\r\ntransfer-encoding: chunked\r\n\r\n"
        );
        let mut lines = Lines::new();
        let parsed = h1::Request::parse(text.as_bytes(), &mut lines, Sizes::default());
        let parsed = parsed.expect("accepted").expect("complete");
        assert_eq!((parsed.host, parsed.target, parsed.chunked), (&b"a.example"[..], &b"/x?y"[..], true));
    }

    #[test]
    fn host_and_authority_have_to_agree() {
        let same = Request::get("http://a.example/").header("host", "A.example");
        let other = Request::get("http://a.example/").header("host", "b.example");
        let alone = Request::get("/").header("host", "b.example");

        assert!(head(same, true).is_ok_and(|text| text.contains("host: a.example\r\n")));
        assert_eq!(head(other, true), Err(Refusal::Host));
        assert!(head(alone, true).is_ok_and(|text| text.contains("host: b.example\r\n")));
        assert_eq!(head(Request::get("/"), true), Err(Refusal::Host));
    }

    proptest! {
        #[test]
        fn chunks_hold_the_content_whatever_room_there_is(
            content in proptest::collection::vec(any::<u8>(), 1..2000),
            rooms in proptest::collection::vec(chunked::OVERHEAD + 1..300, 1..20),
        ) {
            let mut data = Bytes::from(content.clone());
            let mut wire = Vec::new();
            for room in rooms.iter().cycle() {
                let mut into = vec![0; *room];
                let n = chunked::write(&data, &mut into);
                prop_assert!(n > chunked::OVERHEAD);
                wire.extend_from_slice(&into[..n]);
                data.advance(n - chunked::OVERHEAD);
                if data.is_empty() {
                    break;
                }
            }
            wire.extend_from_slice(b"0\r\n\r\n");
            let (mut decoder, mut read, mut at) = (Decoder::default(), Vec::new(), 0);
            while !decoder.is_done() {
                let piece = decoder.next(&wire[at..]).expect("well-formed");
                if let Piece::Content(n) = piece {
                    read.extend_from_slice(&wire[at..at + n]);
                }
                at += piece.len();
            }
            prop_assert_eq!(read, content);
        }
    }
}

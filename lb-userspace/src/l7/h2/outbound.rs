//! HTTP/1.1 bytes of ours, sent as the frames of a stream.
//!
//! Heads and the last piece of content are held until more follows, the message ends or the writer
//! flushes: so the frame that is last in the message can say so, and costs no empty one behind it.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::server::SendResponse;
use h2::{Reason, SendStream};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode, Uri, uri};

use super::super::buffer::poll_each;
use super::super::digits::hex;
use super::super::h1::chunked::{self, Decoder, Piece};
use super::super::h1::head::{OwnLines, Unsayable};
use super::super::h1::{self, Body};
use crate::model::l7::Buffers;

/// Content of one frame: with its head it fills one TLS record.
const PIECE: usize = 16 * 1024 - 9;
/// Longest head of ours: what a location may allow an upstream, and what we add.
const HEAD_MAX: usize = Buffers::HEAD_MAX + 64 * 1024;
/// Bytes of all trailers, the end of the body included; the parser of chunks passes no more.
const TRAILERS_MAX: usize = chunked::RESPONSE_TRAILER_BYTES as usize + 2;

/// One direction of a stream.
pub(super) struct Outbound {
    sink: Sink,
    /// A head that came in parts.
    partial: Vec<u8>,
    /// Rest of the body; `None` before the head.
    body: Option<Body>,
    held: Held,
    trailers: Vec<u8>,
    /// The response to the request that was sent, until somebody takes it.
    answer: Option<(ResponseFuture, bool)>,
    frames: u32,
}

/// Where frames go.
enum Sink {
    /// To a client; `head_only` if it asked for no body.
    Respond {
        to: SendResponse<Bytes>,
        head_only: bool,
    },
    /// To an upstream.
    Request {
        to: SendRequest<Bytes>,
        scheme: uri::Scheme,
        endpoint: SocketAddr,
    },
    Streaming(SendStream<Bytes>),
    /// The last frame was sent.
    Finished,
}

/// What goes out next.
enum Held {
    Nothing,
    Response(Response<()>),
    Request(Request<()>),
    Content(Bytes),
}

impl Outbound {
    /// Sends a response to `to`.
    pub(super) fn response(to: SendResponse<Bytes>, head_only: bool) -> Self {
        Self::new(Sink::Respond { to, head_only })
    }

    /// Sends a request to `to`, which is ready for one. `endpoint` is the authority of a request
    /// that names none.
    pub(super) fn request(to: SendRequest<Bytes>, scheme: uri::Scheme, endpoint: SocketAddr) -> Self {
        Self::new(Sink::Request { to, scheme, endpoint })
    }

    fn new(sink: Sink) -> Self {
        Self {
            sink,
            partial: Vec::new(),
            body: None,
            held: Held::Nothing,
            trailers: Vec::new(),
            answer: None,
            frames: 0,
        }
    }

    /// The response to come, once the request is sent; `true` if it has a head alone.
    pub(super) fn take_answer(&mut self) -> Option<(ResponseFuture, bool)> {
        self.answer.take()
    }

    /// DATA frames since the last call.
    pub(super) fn take_frames(&mut self) -> u32 {
        std::mem::take(&mut self.frames)
    }

    /// Takes some of `parts`.
    pub(super) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        poll_each(parts, |bytes| self.poll_take(cx, bytes))
    }

    fn poll_take(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let in_content = match &self.body {
            None => return Poll::Ready(self.head(bytes)),
            Some(body) if body.is_done() => return Poll::Ready(Err(malformed("bytes after the end"))),
            Some(body) => body.is_in_content(),
        };
        let room = if in_content { ready!(self.poll_room(cx, bytes.len()))? } else { bytes.len() };
        let now = bytes.get(..room).unwrap_or(bytes);
        let Some(body) = &mut self.body else { return Poll::Ready(Ok(0)) };
        let piece = body.piece(now).map_err(|_| malformed("chunks"))?;
        let ended = body.is_done();
        let n = piece.len();
        let content = now.get(..n).unwrap_or_default();
        match piece {
            Piece::Content(_) => self.held = Held::Content(Bytes::copy_from_slice(content)),
            Piece::Framing(_) => {}
            Piece::Trailers(_) if self.trailers.len() + n > TRAILERS_MAX => {
                return Poll::Ready(Err(malformed("trailers")));
            }
            Piece::Trailers(_) => self.trailers.extend_from_slice(content),
        }
        if ended {
            self.end()?;
        }
        Poll::Ready(Ok(n))
    }

    /// Bytes of content that may be taken now, at most `want`.
    fn poll_room(&mut self, cx: &mut Context<'_>, want: usize) -> Poll<io::Result<usize>> {
        self.flush()?;
        let Sink::Streaming(stream) = &mut self.sink else {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        };
        let want = want.min(PIECE);
        stream.reserve_capacity(want);
        let mut capacity = stream.capacity();
        while capacity == 0 {
            capacity = match ready!(stream.poll_capacity(cx)) {
                Some(capacity) => capacity.map_err(broken)?,
                None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            };
        }
        Poll::Ready(Ok(capacity.min(want)))
    }

    /// Sends what is held; more of the message follows.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.send(false)
    }

    /// The message ends here, whatever its framing.
    pub(super) fn finish(&mut self) -> io::Result<()> {
        match (&self.sink, &self.body) {
            (Sink::Finished, _) => Ok(()),
            (_, Some(Body::UntilClose)) => self.end(),
            _ => {
                self.reset(Reason::INTERNAL_ERROR);
                Ok(())
            }
        }
    }

    /// Cuts the message off.
    pub(super) fn reset(&mut self, reason: Reason) {
        match std::mem::replace(&mut self.sink, Sink::Finished) {
            Sink::Respond { mut to, .. } => to.send_reset(reason),
            Sink::Streaming(mut stream) => stream.send_reset(reason),
            Sink::Request { .. } | Sink::Finished => {}
        }
    }

    /// Ready when the receiver wants no more of it.
    pub(super) fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.sink {
            Sink::Respond { to, .. } => to.poll_reset(cx).map(drop),
            Sink::Streaming(stream) => stream.poll_reset(cx).map(drop),
            Sink::Request { .. } | Sink::Finished => Poll::Pending,
        }
    }

    /// Sends what is held as the last of the message, or before its trailers.
    fn end(&mut self) -> io::Result<()> {
        let trailers = trailers(&self.trailers)?;
        if trailers.is_empty() && !matches!(self.held, Held::Nothing) {
            return self.send(true);
        }
        self.send(false)?;
        let Sink::Streaming(mut stream) = std::mem::replace(&mut self.sink, Sink::Finished) else {
            return Err(io::ErrorKind::BrokenPipe.into());
        };
        if trailers.is_empty() {
            stream.send_data(Bytes::new(), true).map_err(broken)
        } else {
            stream.send_trailers(trailers).map_err(broken)
        }
    }

    fn send(&mut self, last: bool) -> io::Result<()> {
        let held = std::mem::replace(&mut self.held, Held::Nothing);
        let stream = match (held, &mut self.sink) {
            (Held::Nothing, _) => return Ok(()),
            (Held::Response(head), Sink::Respond { to, .. }) => {
                to.send_response(head, last).map_err(broken)?
            }
            (Held::Request(head), Sink::Request { to, .. }) => {
                let head_only = head.method() == Method::HEAD;
                let (answer, stream) = to.send_request(head, last).map_err(broken)?;
                self.answer = Some((answer, head_only));
                stream
            }
            (Held::Content(content), Sink::Streaming(stream)) => {
                self.frames += 1;
                stream.send_data(content, last).map_err(broken)?;
                if last {
                    self.sink = Sink::Finished;
                }
                return Ok(());
            }
            _ => return Err(io::ErrorKind::BrokenPipe.into()),
        };
        self.sink = if last { Sink::Finished } else { Sink::Streaming(stream) };
        Ok(())
    }

    /// Takes a head, or a part of one.
    fn head(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let before = self.partial.len();
        if before + bytes.len() > HEAD_MAX {
            return Err(Unsayable::Head.into());
        }
        // Nearly always the head comes in one piece.
        let joined;
        let whole = if before == 0 {
            bytes
        } else {
            self.partial.extend_from_slice(bytes);
            joined = std::mem::take(&mut self.partial);
            &joined
        };
        let len = match &self.sink {
            Sink::Respond { .. } => self.response_head(whole)?,
            Sink::Request { .. } => self.request_head(whole)?,
            Sink::Streaming(_) | Sink::Finished => return Err(malformed("bytes after the end")),
        };
        let Some(len) = len else {
            self.partial = whole.to_vec();
            return Ok(bytes.len());
        };
        if self.body.as_ref().is_some_and(Body::is_done) {
            self.end()?;
        }
        Ok(len.saturating_sub(before))
    }

    /// A response head; `None` while it is incomplete. An interim one goes out at once.
    fn response_head(&mut self, bytes: &[u8]) -> io::Result<Option<usize>> {
        let Sink::Respond { to, head_only } = &mut self.sink else { return Err(malformed("head")) };
        let Some(len) = end_of_head(bytes) else { return Ok(None) };
        // Header values share this one copy.
        let head = Bytes::copy_from_slice(bytes.get(..len).unwrap_or_default());
        let mut lines = OwnLines::new();
        let Some(response) = h1::response::sent(&head, &mut lines) else { return Err(malformed("head")) };
        let mut message = Response::new(());
        *message.status_mut() = StatusCode::from_u16(response.status).map_err(|_| malformed("status"))?;
        *message.headers_mut() = fields(response.headers(), &head)?;
        if response.status < 200 {
            to.send_informational(message).map_err(broken)?;
            return Ok(Some(len));
        }
        let bodyless = *head_only || matches!(response.status, 204 | 304);
        self.body = Some(match (bodyless, response.chunked, response.length) {
            (true, ..) => Body::Length(0),
            (false, true, _) => Body::Chunked(Decoder::of_response()),
            (false, false, Some(length)) => Body::Length(length),
            (false, false, None) => Body::UntilClose,
        });
        self.held = Held::Response(message);
        Ok(Some(len))
    }

    /// A request head; `None` while it is incomplete.
    fn request_head(&mut self, bytes: &[u8]) -> io::Result<Option<usize>> {
        let Sink::Request { scheme, endpoint, .. } = &self.sink else { return Err(malformed("head")) };
        let Some(len) = end_of_head(bytes) else { return Ok(None) };
        let head = Bytes::copy_from_slice(bytes.get(..len).unwrap_or_default());
        let mut lines = OwnLines::new();
        let request = h1::request::sent(&head, &mut lines).ok_or(Unsayable::Head)?;
        let mut message = Request::new(());
        *message.method_mut() = Method::from_bytes(request.method.as_bytes()).map_err(|_| Unsayable::Head)?;
        *message.headers_mut() = fields(request.headers(), &head).map_err(|_| Unsayable::Head)?;
        // gRPC asks every hop for it, and tells trailers apart from nothing else.
        message.headers_mut().insert(header::TE, HeaderValue::from_static("trailers"));
        let authority = match request.host {
            [] => uri::Authority::from_maybe_shared(Bytes::from(endpoint.to_string())),
            host => uri::Authority::from_maybe_shared(head.slice_ref(host)),
        };
        *message.uri_mut() = Uri::builder()
            .scheme(scheme.clone())
            .authority(authority.map_err(|_| Unsayable::Host)?)
            .path_and_query(target(request.target).map_err(|_| Unsayable::Head)?)
            .build()
            .map_err(|_| Unsayable::Head)?;
        self.body = Some(match (request.chunked, request.length) {
            (true, _) => Body::Chunked(Default::default()),
            (false, length) => Body::Length(length.unwrap_or(0)),
        });
        self.held = Held::Request(message);
        Ok(Some(len))
    }
}

/// Length of the head at the start of `bytes`.
fn end_of_head(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|end| end == b"\r\n\r\n").map(|at| at + 4)
}

/// Header lines that stand in `head` as a map whose values share its memory.
fn fields<'b>(lines: impl Iterator<Item = (&'b str, &'b [u8])>, head: &Bytes) -> io::Result<HeaderMap> {
    let (_, most) = lines.size_hint();
    let mut map = HeaderMap::with_capacity(most.unwrap_or_default());
    for (name, value) in lines {
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| malformed("header name"))?;
        let value =
            HeaderValue::from_maybe_shared(head.slice_ref(value)).map_err(|_| malformed("header value"))?;
        map.try_append(name, value).map_err(|_| malformed("too many headers"))?;
    }
    Ok(map)
}

/// Trailer lines with the empty line at their end, or nothing.
fn trailers(lines: &[u8]) -> io::Result<HeaderMap> {
    let mut map = HeaderMap::new();
    for line in lines.split(|&b| b == b'\n').map(<[u8]>::trim_ascii_end).filter(|line| !line.is_empty()) {
        let colon = line.iter().position(|&b| b == b':').ok_or_else(|| malformed("trailer"))?;
        let (name, value) = line.split_at_checked(colon).ok_or_else(|| malformed("trailer"))?;
        let value = value.strip_prefix(b":").unwrap_or(value).trim_ascii();
        let name = HeaderName::from_bytes(name).map_err(|_| malformed("trailer"))?;
        let value = HeaderValue::from_bytes(value).map_err(|_| malformed("trailer"))?;
        map.try_append(name, value).map_err(|_| malformed("trailers"))?;
    }
    Ok(map)
}

/// A request target with everything escaped that the URI type refuses and HTTP/1.1 lets pass.
fn target(bytes: &[u8]) -> Result<uri::PathAndQuery, uri::InvalidUri> {
    let is_plain = |b: &u8| matches!(b, b'!' | b'$'..=b';' | b'=' | b'?'..=b'_' | b'a'..=b'z' | b'~');
    if bytes.iter().all(is_plain) {
        return uri::PathAndQuery::try_from(bytes);
    }
    let mut escaped = Vec::with_capacity(bytes.len() + 16);
    for byte in bytes {
        if is_plain(byte) {
            escaped.push(*byte);
        } else {
            escaped.push(b'%');
            escaped.extend_from_slice(&hex(*byte));
        }
    }
    uri::PathAndQuery::from_maybe_shared(Bytes::from(escaped))
}

fn malformed(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn broken(error: h2::Error) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_escaped_where_the_uri_type_refuses_it_and_nowhere_else() {
        let cases = [
            ("/a/b;c=d?x=%41&y=~", "/a/b;c=d?x=%41&y=~"),
            ("/a|b", "/a%7Cb"),
            ("/{x}\"", "/%7Bx%7D%22"),
            ("/\u{e4}", "/%C3%A4"),
        ];
        for (sent, expected) in cases {
            assert_eq!(target(sent.as_bytes()).expect(sent).as_str(), expected);
        }
    }

    #[test]
    fn trailer_lines_become_a_map() {
        let map = trailers(b"grpc-status: 0\r\ngrpc-message:a b\r\n\r\n").expect("trailers");

        assert_eq!(
            (map.len(), &map["grpc-status"], &map["grpc-message"]),
            (2, &"0".parse().unwrap(), &"a b".parse().unwrap())
        );
        assert!(trailers(b"\r\n").expect("none").is_empty());
        assert!(trailers(b"no colon\r\n\r\n").is_err());
    }
}

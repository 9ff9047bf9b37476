//! One line, made in two steps: what only the request's bytes tell is written while they are there,
//! the rest when the response has ended.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::super::buffer::Scratch;
use super::super::client::Effective;
use super::super::credentials::Credentials;
use super::super::digits::{addr, number, seconds};
use super::super::filters::Scheme;
use super::super::h1::{Request, Version};
use super::super::heads::Client;
use super::super::path;
use super::super::policy::Headers;
use super::super::route::{Route, bare_host};
use super::super::trace::Context;
use super::super::upstream::{Attempt, Record};
use super::super::variable;
use super::Tally;
use super::escape::{absent, value};
use super::kept::Kept;
use super::stamp::Stamp;
use crate::model::l7::fastcgi::DOCUMENT_ROOT;
use crate::model::l7::log::{Early, Escape, Format, Late, Part};
use crate::model::l7::policy::Satisfy;

/// A request as its line sees it.
#[derive(Clone, Copy)]
pub(in crate::l7) struct Subject<'a, 'h, 'b> {
    /// As far as it could be read; `None`: not at all.
    pub(in crate::l7) request: Option<&'a Request<'h, 'b>>,
    /// The first line of what was refused, as far as it came; empty otherwise.
    pub(in crate::l7) line: &'a [u8],
    pub(in crate::l7) place: Option<Place<'a>>,
    pub(in crate::l7) client: &'a Client,
    pub(in crate::l7) effective: Effective<'a>,
    /// It came on a stream of HTTP/2.
    pub(in crate::l7) is_http2: bool,
    pub(in crate::l7) id: &'a [u8],
    /// Requests of its connection, this one included.
    pub(in crate::l7) requests: u32,
    /// Its place in a trace, where its location is traced.
    pub(in crate::l7) trace: Option<&'a Context<'b>>,
}

/// Where a request was led.
#[derive(Clone, Copy)]
pub(in crate::l7) struct Place<'a> {
    pub(in crate::l7) route: &'a Route,
    /// Name of its upstream; empty without one.
    pub(in crate::l7) upstream: &'a str,
    /// Name of the default backend of its Ingress that stands in for that; empty without one.
    pub(in crate::l7) stand_in: &'a str,
    /// Name of the canary's upstream that took it instead; empty without one.
    pub(in crate::l7) alternative: &'a str,
    /// Target after rewriting, if it was rewritten.
    pub(in crate::l7) target: Option<&'a [u8]>,
}

/// How a request ended.
#[derive(Clone, Copy)]
pub(in crate::l7) struct End<'a> {
    pub(in crate::l7) status: u16,
    pub(in crate::l7) took: Duration,
    /// Who answered, in the end; empty where there is nobody to name.
    pub(in crate::l7) upstream: &'a str,
    /// Bytes of the request's head.
    pub(in crate::l7) head: usize,
    /// The client got all of its response.
    pub(in crate::l7) is_whole: bool,
    pub(in crate::l7) tally: Tally,
    /// Endpoints that were tried.
    pub(in crate::l7) record: &'a Record,
    /// The heads of its response, where the format asks for them.
    pub(in crate::l7) kept: Option<&'a Kept>,
}

/// Writes every stretch of text and early values, each behind its length.
pub(super) fn begin(format: &Format, subject: &Subject<'_, '_, '_>) -> Scratch {
    let mut line = Scratch::take();
    let mut stretch = None;
    for part in &format.parts {
        if let Part::Late(_) = part {
            close(&mut line, stretch.take());
            continue;
        }
        if stretch.is_none() {
            stretch = Some(line.len());
            line.extend_from_slice(&[0; LENGTH]);
        }
        match part {
            Part::Text(text) => line.extend_from_slice(text.as_bytes()),
            Part::Early(early) => early_value(early, format.escape, subject, &mut line),
            Part::Late(_) => {}
        }
    }
    close(&mut line, stretch);
    line
}

/// Bytes of a stretch's length.
const LENGTH: usize = 4;

fn close(line: &mut [u8], stretch: Option<usize>) {
    let Some(start) = stretch else { return };
    let length = u32::try_from(line.len() - start - LENGTH).unwrap_or(u32::MAX);
    if let Some(place) = line.get_mut(start..start + LENGTH) {
        place.copy_from_slice(&length.to_ne_bytes());
    }
}

/// Puts what was begun and how it ended together, without a line end.
pub(super) fn finish(format: &Format, begun: &[u8], end: &End<'_>, stamp: &Stamp, out: &mut Vec<u8>) {
    let mut rest = begun;
    let mut in_stretch = false;
    for part in &format.parts {
        match part {
            Part::Late(late) => {
                in_stretch = false;
                late_value(late, format.escape, end, stamp, out);
            }
            Part::Text(_) | Part::Early(_) if in_stretch => {}
            Part::Text(_) | Part::Early(_) => {
                in_stretch = true;
                let Some((length, behind)) = rest.split_first_chunk::<LENGTH>() else { return };
                let length = usize::try_from(u32::from_ne_bytes(*length)).unwrap_or(usize::MAX);
                let Some((stretch, after)) = behind.split_at_checked(length) else { return };
                out.extend_from_slice(stretch);
                rest = after;
            }
        }
    }
}

pub(super) fn early_value(early: &Early, escape: Escape, subject: &Subject<'_, '_, '_>, out: &mut Vec<u8>) {
    let Subject { request, place, client, effective, is_http2, id, requests, trace, line: _ } = *subject;
    let labels = place.map(|place| &*place.route.labels);
    let (handshake, identity) = (client.handshake.as_deref(), client.session.identity());
    let target = || place.and_then(|place| place.target).or(request.map(|request| request.target));
    let query = || target().and_then(|target| path::split_query(target).1);
    let found: Option<&[u8]> = match early {
        Early::Unknown => return out.push(b'-'),
        Early::RemoteAddr => return addr(effective.addr, out),
        Early::PeerAddr => return addr(client.addr, out),
        Early::RequestId => Some(id).filter(|id| !id.is_empty()),
        Early::ConnectionRequests => return number(requests, out),
        Early::Connection => return number(client.serial, out),
        Early::ProxyProtocolAddr => match &client.told {
            Some(told) => return addr(told.ip(), out),
            None => None,
        },
        Early::ProxyProtocolPort => match &client.told {
            Some(told) => return number(told.port(), out),
            None => None,
        },
        Early::Scheme => Some(client.scheme.as_str().as_bytes()),
        // The https listener is 443 to the outside, whatever port it really has.
        Early::ServerPort if client.scheme == Scheme::Https => Some(b"443"),
        Early::ServerPort => return number(client.port, out),
        Early::AccessScheme => Some(effective.scheme_word()),
        Early::AccessPort => return number(effective.port, out),
        Early::AccessHost => Some(effective.host).filter(|host| !host.is_empty()),
        Early::Request => return request_line(subject, escape, out),
        Early::RemoteUser => return user(request, escape, out),
        Early::VerifiedUser if place.is_some_and(|place| asks_for_password(place.route)) => {
            return user(request, escape, out);
        }
        Early::VerifiedUser => None,
        Early::Method => request.map(|request| request.method.as_bytes()),
        Early::Target => request.map(|request| request.target),
        Early::Uri => {
            return match normal_path(target()) {
                Some(normal) => value(&normal, escape, out),
                None => absent(escape, out),
            };
        }
        Early::ScriptName => {
            let Some(normal) = normal_path(target()) else { return absent(escape, out) };
            value(&normal, escape, out);
            let fastcgi = place.and_then(|place| place.route.filters.fastcgi.as_deref());
            let index = fastcgi.map_or("", |fastcgi| fastcgi.index.as_str());
            return value(if normal.ends_with(b"/") { index.as_bytes() } else { b"" }, escape, out);
        }
        Early::PathInfo => Some(b""),
        Early::Hostname => return value(rustix::system::uname().nodename().to_bytes(), escape, out),
        Early::Pid => return number(std::process::id(), out),
        Early::Http2 => Some(if is_http2 { b"h2" } else { b"" }),
        Early::EscapedTarget => {
            let Some(request) = request else { return absent(escape, out) };
            return path::escape_component(request.target, out);
        }
        Early::PeerPort => return number(client.remote_port, out),
        Early::SslClientCertificate => {
            identity.map(|identity| identity.escaped_pem().as_bytes()).filter(|pem| !pem.is_empty())
        }
        Early::DocumentRoot => Some(DOCUMENT_ROOT.as_bytes()),
        // Whoever stands in front has not told that of its client.
        Early::RemotePort if effective.addr != client.addr => None,
        Early::RemotePort => return number(client.remote_port, out),
        Early::ServerAddr => return addr(client.server, out),
        Early::Https => Some(if client.scheme == Scheme::Https { b"on" } else { b"" }),
        Early::IsArgs => Some(if query().is_some_and(|query| !query.is_empty()) { b"?" } else { b"" }),
        Early::Query => query(),
        Early::Argument(name) => query().and_then(|query| variable::argument(query, name)),
        Early::Protocol => request.map(|request| protocol(request, is_http2)),
        Early::Host => return host(request, escape, out),
        Early::Header(name) => return header(request, name, escape, out),
        Early::Cookie(name) => request.and_then(|request| Headers::Sent(request.block).cookie(name)),
        Early::ServerName => labels.map(|labels| labels.host.as_bytes()),
        Early::Upstream => {
            let names = place.map(|place| [place.stand_in, place.upstream]);
            names.and_then(|names| names.into_iter().find(|name| !name.is_empty())).map(str::as_bytes)
        }
        // Never absent: nginx has set it to nothing by then.
        Early::Alternative => Some(place.map_or(&b""[..], |place| place.alternative.as_bytes())),
        Early::Namespace => labels.map(|labels| labels.namespace.as_bytes()),
        Early::Ingress => labels.map(|labels| labels.ingress.as_bytes()),
        Early::Service => labels.map(|labels| labels.service.as_bytes()),
        Early::ServicePort => place.and_then(|place| Some(place.route.backend.as_deref()?.port.as_bytes())),
        Early::LocationPath => labels.map(|labels| labels.path.as_bytes()),
        Early::ForwardedFor => return forwarded_for(request, effective.addr, escape, out),
        Early::SslProtocol => handshake.map(|handshake| handshake.protocol.as_bytes()),
        Early::SslCipher => handshake.map(|handshake| handshake.cipher.as_bytes()),
        Early::SslServerName => {
            handshake.and_then(|handshake| handshake.server_name.as_deref()).map(str::as_bytes)
        }
        Early::SslClientVerify => {
            return match identity {
                Some(identity) => value(identity.verify().as_bytes(), escape, out),
                None => absent(escape, out),
            };
        }
        Early::TraceId => {
            let Some(trace) = trace else { return absent(escape, out) };
            return out.extend_from_slice(&trace.trace_id());
        }
        Early::SpanId => {
            let Some(trace) = trace else { return absent(escape, out) };
            return out.extend_from_slice(&trace.span_id());
        }
        Early::Traceparent => {
            let Some(trace) = trace else { return absent(escape, out) };
            return out.extend_from_slice(&trace.traceparent());
        }
        Early::Tracestate => trace.map(Context::state).filter(|state| !state.is_empty()),
        Early::SslClientSubject => {
            identity.map(|identity| identity.subject.as_bytes()).filter(|dn| !dn.is_empty())
        }
        Early::SslClientIssuer => {
            identity.map(|identity| identity.issuer.as_bytes()).filter(|dn| !dn.is_empty())
        }
    };
    match found {
        Some(found) => value(found, escape, out),
        None => absent(escape, out),
    }
}

/// The path of a target as locations see it.
fn normal_path(target: Option<&[u8]>) -> Option<Cow<'_, [u8]>> {
    path::normalize(path::split_query(target?).0).ok()
}

pub(super) fn socket(endpoint: SocketAddr, out: &mut Vec<u8>) {
    match endpoint.ip() {
        IpAddr::V4(_) => addr(endpoint.ip(), out),
        IpAddr::V6(_) => {
            out.push(b'[');
            addr(endpoint.ip(), out);
            out.push(b']');
        }
    }
    out.push(b':');
    number(endpoint.port(), out);
}

fn protocol(request: &Request<'_, '_>, is_http2: bool) -> &'static [u8] {
    match request.version {
        _ if is_http2 => b"HTTP/2.0",
        Version::Http10 => b"HTTP/1.0",
        Version::Http11 => b"HTTP/1.1",
    }
}

/// As it was sent; of HTTP/2, what it would have been. Of what was no request, its first line.
fn request_line(subject: &Subject<'_, '_, '_>, escape: Escape, out: &mut Vec<u8>) {
    let Some(request) = subject.request.filter(|_| subject.line.is_empty()) else {
        return value(subject.line, escape, out);
    };
    if !subject.is_http2 {
        return value(request.line(), escape, out);
    }
    for part in [request.method.as_bytes(), b" ", request.target, b" HTTP/2.0"] {
        value(part, escape, out);
    }
}

fn host(request: Option<&Request<'_, '_>>, escape: Escape, out: &mut Vec<u8>) {
    let start = out.len();
    match request.map(|request| bare_host(request.host)).filter(|host| !host.is_empty()) {
        Some(host) => value(host, escape, out),
        None => return absent(escape, out),
    }
    if let Some(host) = out.get_mut(start..) {
        host.make_ascii_lowercase();
    }
}

/// All lines of the header, as nginx joins them.
fn header(request: Option<&Request<'_, '_>>, name: &str, escape: Escape, out: &mut Vec<u8>) {
    let lines = request.iter().flat_map(|request| request.headers(name));
    joined(lines, variable::separator(name), escape, out);
}

fn joined<'b>(lines: impl Iterator<Item = &'b [u8]>, separator: &[u8], escape: Escape, out: &mut Vec<u8>) {
    let mut found = false;
    for line in lines {
        if found {
            out.extend_from_slice(separator);
        }
        found = true;
        value(line, escape, out);
    }
    if !found {
        absent(escape, out);
    }
}

fn user(request: Option<&Request<'_, '_>>, escape: Escape, out: &mut Vec<u8>) {
    let authorization = request.and_then(|request| request.headers("authorization").next());
    match authorization.and_then(Credentials::read) {
        Some(Credentials { user, .. }) => value(&user, escape, out),
        None => absent(escape, out),
    }
}

/// Nobody gets through without one.
fn asks_for_password(route: &Route) -> bool {
    let auth = route.filters.policies.as_ref().and_then(|policies| policies.auth.as_ref());
    auth.is_some_and(|auth| auth.basic.is_some() && auth.satisfy == Satisfy::All)
}

fn forwarded_for(request: Option<&Request<'_, '_>>, client: IpAddr, escape: Escape, out: &mut Vec<u8>) {
    for line in request.iter().flat_map(|request| request.headers("x-forwarded-for")) {
        value(line, escape, out);
        out.extend_from_slice(b", ");
    }
    addr(client, out);
}

fn late_value(late: &Late, escape: Escape, end: &End<'_>, stamp: &Stamp, out: &mut Vec<u8>) {
    let End { status, took, upstream, head, is_whole, tally, record, kept } = *end;
    match late {
        Late::TimeLocal => out.extend_from_slice(stamp.local()),
        Late::TimeIso => out.extend_from_slice(stamp.iso()),
        Late::Epoch => seconds(stamp.since_epoch(), out),
        Late::Status => {
            // Three digits, as nginx: a response that never had one is 000.
            out.extend_from_slice(&[100, 10, 1].map(|unit| b'0' + (status / unit % 10) as u8));
        }
        Late::Upstream if upstream.is_empty() => absent(escape, out),
        Late::Upstream => value(upstream.as_bytes(), escape, out),
        Late::BodyBytesSent => number(tally.body_sent, out),
        Late::BytesSent => number(tally.head_sent + tally.body_sent, out),
        Late::RequestLength => number(head as u64 + tally.body_received, out),
        Late::RequestTime => seconds(took, out),
        Late::Completion if is_whole => out.extend_from_slice(b"OK"),
        Late::Completion => {}
        Late::UpstreamAddr => each(record, escape, out, |attempt| Some(Figure::Addr(attempt.addr))),
        Late::UpstreamStatus => each(record, escape, out, |attempt| {
            Some(u64::from(attempt.status)).filter(|status| *status > 0).map(Figure::Number)
        }),
        Late::UpstreamResponseLength => {
            each(record, escape, out, |attempt| Some(Figure::Number(attempt.bytes)));
        }
        Late::UpstreamBytesSent => {
            each(record, escape, out, |attempt| Some(Figure::Number(attempt.traffic.sent)))
        }
        Late::UpstreamBytesReceived => {
            each(record, escape, out, |attempt| Some(Figure::Number(attempt.traffic.received)));
        }
        Late::UpstreamConnectTime => each(record, escape, out, |attempt| attempt.connect.map(Figure::Time)),
        Late::UpstreamHeaderTime => each(record, escape, out, |attempt| attempt.header.map(Figure::Time)),
        Late::UpstreamResponseTime => {
            each(record, escape, out, |attempt| Some(Figure::Time(attempt.response)));
        }
        Late::SentHeader(name) => match kept {
            Some(kept) => joined(kept.sent_header(name), b", ", escape, out),
            None => absent(escape, out),
        },
        Late::UpstreamHeader(name) => {
            joined(kept.into_iter().flat_map(|kept| kept.upstream_header(name)), b", ", escape, out);
        }
        Late::UpstreamCookie(name) => match kept.and_then(|kept| kept.upstream_cookie(name)) {
            Some(found) => value(found, escape, out),
            None => absent(escape, out),
        },
    }
}

/// A value of one attempt.
enum Figure {
    Addr(SocketAddr),
    Number(u64),
    Time(Duration),
}

/// One value of every attempt, `-` where it has none, and a colon where an error page was asked for.
fn each(record: &Record, escape: Escape, out: &mut Vec<u8>, one: impl Fn(&Attempt) -> Option<Figure>) {
    let mut found = false;
    for (place, attempt) in record.all().enumerate() {
        if found {
            out.extend_from_slice(if record.begins_anew(place) { b" : " } else { b", " });
        }
        found = true;
        match one(attempt) {
            Some(Figure::Addr(endpoint)) => socket(endpoint, out),
            Some(Figure::Number(figure)) => number(figure, out),
            Some(Figure::Time(time)) => seconds(time, out),
            None => out.push(b'-'),
        }
    }
    if !found {
        absent(escape, out);
    }
}

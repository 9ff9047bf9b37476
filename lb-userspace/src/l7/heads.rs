//! Heads and pages we write: the request head for the upstream, the response head for the client,
//! and responses of our own.

use std::hint::cold_path;
use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::{SystemTime, UNIX_EPOCH};

use super::calendar::Moment;
use super::client::Effective;
use super::client_auth::{Identity, Session};
use super::compress::Verdict;
use super::digits::{addr_text, number};
use super::filters::{Answer, Scheme};
use super::h1::{Request, Response, Version};
use super::handshake::Handshake;
use super::policy::{HeaderEdits, Set, is_same_name};
use super::variable::Known;
use crate::model::l7::Forwarding;
use crate::model::l7::forwarding::Chain;
use crate::model::l7::policy::{Persistence, RequestHeaders};

/// Who sent the request, as its connection has it.
#[derive(Debug, Clone)]
pub(super) struct Client {
    pub(super) addr: IpAddr,
    pub(super) remote_port: u16,
    pub(super) scheme: Scheme,
    /// Address and port it connected to, or as its PROXY header says where that is believed. The https listener is 443
    /// to the outside, whatever port it really has.
    pub(super) server: IpAddr,
    pub(super) port: u16,
    /// What its handshake told of it.
    pub(super) session: Session,
    /// The handshake with us, if there was one.
    pub(super) handshake: Option<Rc<Handshake>>,
    /// What a PROXY header says that it is, believed or not. Apart: most have none.
    pub(super) told: Option<Box<SocketAddr>>,
    /// Number of its connection, which no other one of this process has.
    pub(super) serial: u64,
}

impl Client {
    /// Where it comes from.
    pub(super) fn source(&self) -> SocketAddr {
        SocketAddr::new(self.addr, self.remote_port)
    }

    /// Of its connection with us, whatever a PROXY header tells of another one.
    pub(super) fn own_scheme(&self) -> Scheme {
        if self.handshake.is_some() { Scheme::Https } else { Scheme::Http }
    }
}

/// What becomes of the connection after a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum After {
    Keep,
    Close,
}

/// What the decision says of the request for the upstream.
#[derive(Clone, Copy)]
pub(super) struct Onward<'a> {
    /// Target if it is not the client's.
    pub(super) target: Option<&'a [u8]>,
    /// `X-Forwarded-Prefix`.
    pub(super) prefix: Option<&'a [u8]>,
    pub(super) certificate: Option<Certificate<'a>>,
    pub(super) policy: Option<&'a RequestHeaders>,
    pub(super) forwarding: &'a Forwarding,
}

/// Request head for the upstream.
pub(super) fn request(known: Known<'_, '_, '_>, onward: Onward<'_>, out: &mut Vec<u8>) {
    let Known { request, client, effective, id, trace, .. } = known;
    let Onward { target, prefix, certificate, policy, forwarding } = onward;
    let set = Set(policy.map_or(&[][..], |policy| &policy.set));
    let version: &[u8] = match policy.is_some_and(|policy| policy.speaks_http10) {
        true => b" HTTP/1.0\r\nHost: ",
        false => b" HTTP/1.1\r\nHost: ",
    };
    for part in [request.method.as_bytes(), b" ", target.unwrap_or(request.target), version] {
        out.extend_from_slice(part);
    }
    set.host(policy.and_then(|policy| policy.host.as_ref()), known, out);
    out.extend_from_slice(b"\r\n");
    let named_as = |ours: &[u8]| request.block.named(|name| is_same_name(name.as_bytes(), ours));
    let mut drop = request.drop.with(set.replaced(&request.block));
    if prefix.is_some() {
        cold_path();
        drop = drop.with(named_as(b"x-forwarded-prefix"));
    }
    if forwarding.original_uri {
        cold_path();
        drop = drop.with(named_as(b"x-original-uri"));
    }
    if let Some(trace) = trace {
        cold_path();
        drop = drop.with(trace.replaced(&request.block));
    }
    request.block.copy_except(drop, out);
    let mut addr = [0u8; 48];
    let addr = addr_text(effective.addr, &mut addr);
    let mut port = itoa::Buffer::new();
    let port = port.format(effective.port).as_bytes();
    if !id.is_empty() && !set.has(b"X-Request-ID") {
        line(out, b"X-Request-ID: ", id);
    }
    let appended = forwarding.chain == Chain::Appended;
    if appended && !set.has(b"X-Forwarded-For") {
        cold_path();
        chain(request, client.addr, out);
    }
    match set.is_empty() && !appended {
        true => tell(effective, addr, port, out),
        false => {
            cold_path();
            tell_unless(effective, addr, port, |name| appended && name == CHAIN || set.has(name), out);
        }
    }
    let originals = match forwarding.header.as_str() {
        "x-forwarded-for" => request.forwarded_for,
        header => request.block.named(|name| name.eq_ignore_ascii_case(header)),
    };
    for (name, originals) in [
        (&b"X-Original-Forwarded-For: "[..], originals),
        (b"X-Original-Forwarded-Host: ", request.forwarded_host),
    ] {
        if originals.is_empty() {
            continue;
        }
        cold_path();
        for original in request.block.values(originals).filter(|_| !set.has(name)) {
            line(out, name, original);
        }
    }
    let has_prefix = set.has(b"X-Forwarded-Prefix");
    if let Some(prefix) = prefix.filter(|prefix| !prefix.is_empty() && !has_prefix) {
        cold_path();
        line(out, b"X-Forwarded-Prefix: ", prefix);
    }
    if forwarding.original_uri && !set.has(b"X-Original-URI") {
        cold_path();
        line(out, b"X-Original-URI: ", request.target);
    }
    if let Some(trace) = trace {
        cold_path();
        trace.tell(|name| !set.has(name), out);
    }
    if let Some(certificate) = certificate {
        cold_path();
        client_certificate(certificate, |name| set.has(name.as_bytes()), out);
    }
    set.put(known, out);
    match (policy.and_then(|policy| policy.connection), request.upgrade) {
        (Some(Persistence::Close), _) => out.extend_from_slice(b"Connection: close\r\n"),
        (Some(Persistence::KeepAlive), _) => out.extend_from_slice(b"Connection: keep-alive\r\n"),
        (None, Some(upgrade)) => {
            cold_path();
            line(out, b"Upgrade: ", upgrade);
            out.extend_from_slice(b"Connection: upgrade\r\n");
        }
        (None, None) => {}
    }
    out.extend_from_slice(b"\r\n");
}

/// What every upstream is told of the client, in few pieces.
fn tell(effective: Effective<'_>, addr: &[u8], port: &[u8], out: &mut Vec<u8>) {
    let by_scheme: &[u8] = match (effective.scheme, effective.word) {
        (_, Some(_)) => b"\r\n",
        (Scheme::Http, None) => {
            b"\r\nX-Forwarded-Proto: http\r\nX-Forwarded-Scheme: http\r\nX-Scheme: http\r\n"
        }
        (Scheme::Https, None) => {
            b"\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Scheme: https\r\nX-Scheme: https\r\n"
        }
    };
    // Ours, or a host that was looked at: nothing in it ends a line.
    for part in [
        &b"X-Real-IP: "[..],
        addr,
        b"\r\nX-Forwarded-For: ",
        addr,
        b"\r\nX-Forwarded-Host: ",
        effective.host,
        b"\r\nX-Forwarded-Port: ",
        port,
        by_scheme,
    ] {
        out.extend_from_slice(part);
    }
    if let Some(word) = effective.word {
        SCHEME_LINES.into_iter().for_each(|name| line(out, name, word));
    }
}

/// Lines that tell the scheme.
const SCHEME_LINES: [&[u8]; 3] = [b"X-Forwarded-Proto: ", b"X-Forwarded-Scheme: ", b"X-Scheme: "];

const CHAIN: &[u8] = b"X-Forwarded-For: ";

/// The same but for lines that somebody else writes.
#[inline(never)]
fn tell_unless(
    effective: Effective<'_>,
    addr: &[u8],
    port: &[u8],
    is_said: impl Fn(&[u8]) -> bool,
    out: &mut Vec<u8>,
) {
    let lines = [
        (&b"X-Real-IP: "[..], addr),
        (CHAIN, addr),
        (b"X-Forwarded-Host: ", effective.host),
        (b"X-Forwarded-Port: ", port),
    ];
    let scheme = effective.scheme_word();
    for (name, value) in lines.into_iter().chain(SCHEME_LINES.map(|name| (name, scheme))) {
        if !is_said(name) {
            for part in [name, value, b"\r\n"] {
                out.extend_from_slice(part);
            }
        }
    }
}

/// What was sent of the way so far, and who sent it to us.
fn chain(request: &Request<'_, '_>, peer: IpAddr, out: &mut Vec<u8>) {
    out.extend_from_slice(b"X-Forwarded-For: ");
    for hops in request.block.values(request.forwarded_for) {
        out.extend_from_slice(hops);
        out.extend_from_slice(b", ");
    }
    line(out, addr_text(peer, &mut [0u8; 48]), b"");
}

/// Tells the length of a body in a finished head that does not.
pub(super) fn add_length(length: u64, head: &mut Vec<u8>) {
    head.truncate(head.len().saturating_sub(2));
    let _ = write!(head, "Content-Length: {length}\r\n\r\n");
}

/// Tells in a finished head that the body comes in chunks.
pub(super) fn add_chunks(head: &mut Vec<u8>) {
    head.truncate(head.len().saturating_sub(2));
    head.extend_from_slice(b"Transfer-Encoding: chunked\r\n\r\n");
}

/// What the upstream is told of a client's certificate; what the client itself said of it was dropped.
#[derive(Debug, Clone, Copy)]
pub(super) struct Certificate<'a> {
    /// `None`: nobody asked for one.
    pub(super) identity: Option<&'a Identity>,
    /// The certificate itself is passed on, too.
    pub(super) whole: bool,
}

/// As nginx, which sends no header without a value; those that others say are left to them.
pub(super) fn client_certificate(
    certificate: Certificate<'_>,
    is_said: impl Fn(&str) -> bool,
    out: &mut Vec<u8>,
) {
    let Certificate { identity, whole } = certificate;
    let verify = identity.map_or_else(|| "NONE".to_owned(), Identity::verify);
    let (subject, issuer) = identity.map_or(("", ""), |known| (&known.subject, &known.issuer));
    let pem = identity.filter(|_| whole).map_or("", Identity::escaped_pem);
    for (name, value) in [
        ("ssl-client-verify", verify.as_str()),
        ("ssl-client-subject-dn", subject),
        ("ssl-client-issuer-dn", issuer),
        ("ssl-client-cert", pem),
    ] {
        if !value.is_empty() && !is_said(name) {
            out.extend_from_slice(name.as_bytes());
            line(out, b": ", value.as_bytes());
        }
    }
}

/// Response head for the client, from the upstream's.
pub(super) fn response(
    response: &Response<'_, '_>,
    verdict: Verdict,
    client: Version,
    scheme: Scheme,
    after: After,
    edits: &HeaderEdits,
    out: &mut Vec<u8>,
) {
    status_line(response, out);
    let mut drop = response.drop;
    if client == Version::Http10 && response.chunked {
        drop = drop.with(response.transfer_encoding);
    }
    let gone = edits.upstream(response, drop.with(verdict.untrue(response)), scheme, out);
    verdict.put_on(response, gone, out);
    if !response.dated && !edits.sets("Date") {
        date(out);
    }
    connection(client, after, out);
    out.extend_from_slice(b"\r\n");
}

/// Head of what the upstream says before its response (RFC 9110 15.2): it frames nothing, and its connection is not the
/// client's.
pub(super) fn interim(response: &Response<'_, '_>, scheme: Scheme, edits: &HeaderEdits, out: &mut Vec<u8>) {
    status_line(response, out);
    let lengths = response.block.named(|name| name.eq_ignore_ascii_case("content-length"));
    let drop = response.drop.with(response.transfer_encoding).with(lengths);
    edits.interim(response, drop, scheme, out);
    out.extend_from_slice(b"\r\n");
}

/// Head of the answer that switches protocols.
pub(super) fn switching(response: &Response<'_, '_>, scheme: Scheme, edits: &HeaderEdits, out: &mut Vec<u8>) {
    out.extend_from_slice(b"HTTP/1.1 101 Switching Protocols\r\n");
    edits.upstream(response, response.drop, scheme, out);
    if let Some(upgrade) = response.upgrade {
        line(out, b"Upgrade: ", upgrade);
    }
    out.extend_from_slice(b"Connection: upgrade\r\n\r\n");
}

fn status_line(response: &Response<'_, '_>, out: &mut Vec<u8>) {
    if let Some(line) = response.line {
        return out.extend_from_slice(line);
    }
    out.extend_from_slice(b"HTTP/1.1 ");
    number(response.status, out);
    out.push(b' ');
    out.extend_from_slice(response.reason.as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// What a response has to be like for its request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Form {
    pub(super) version: Version,
    /// The head alone is wanted.
    pub(super) is_head: bool,
}

/// A whole response of our own; a HEAD request gets it without body. Returns its status and the
/// length of its body.
pub(super) fn answer(
    answer: &Answer,
    form: Form,
    scheme: Scheme,
    after: After,
    edits: &HeaderEdits,
    out: &mut Vec<u8>,
) -> (u16, usize) {
    let (status, location) = match answer {
        Answer::Status(status) => (*status, None),
        Answer::Certificate(_) => (400, None),
        Answer::Redirect { status, location } => (*status, Some(location)),
        Answer::Healthy | Answer::NginxStatus(_) => (200, None),
        Answer::Preflight => (204, None),
    };
    let reason = reason(status);
    let heading = if status == 401 { "Authorization Required" } else { reason };
    let (title, why) = match answer {
        Answer::Certificate(flaw) => (flaw.as_str(), format!("<center>{}</center>\r\n", flaw.as_str())),
        _ => (heading, String::new()),
    };
    let page = match answer {
        Answer::Healthy | Answer::Preflight => String::new(),
        Answer::NginxStatus(page) => page.clone(),
        Answer::Status(_) | Answer::Certificate(_) | Answer::Redirect { .. } => format!(
            "<html>\r\n<head><title>{status} {title}</title></head>\r\n<body>\r\n\
             <center><h1>{status} {heading}</h1></center>\r\n{why}<hr><center>nginx</center>\r\n\
             </body>\r\n</html>\r\n"
        ),
    };
    let _ = write!(out, "HTTP/1.1 {status} {reason}\r\n");
    if !edits.sets("Date") {
        date(out);
    }
    let content_type = match answer {
        // Without the semicolon, as ingress-nginx has it.
        Answer::Preflight => "text/plain charset=UTF-8",
        Answer::NginxStatus(_) => "text/plain",
        _ => "text/html",
    };
    if !edits.sets("Content-Type") {
        let _ = write!(out, "Content-Type: {content_type}\r\n");
    }
    let _ = write!(out, "Content-Length: {}\r\n", page.len());
    if let Some(location) = location.filter(|_| !edits.sets("Location")) {
        line(out, b"Location: ", location);
    }
    edits.own(status, scheme, out);
    connection(form.version, after, out);
    out.extend_from_slice(b"\r\n");
    if form.is_head {
        return (status, 0);
    }
    out.extend_from_slice(page.as_bytes());
    (status, page.len())
}

fn line(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.extend_from_slice(name);
    // Values of ours never hold line ends; a captured path could, once decoded.
    let is_odd = |byte: &u8| matches!(byte, b'\r' | b'\n' | 0);
    if value.iter().fold(false, |odd, byte| odd | is_odd(byte)) {
        cold_path();
        out.extend(value.iter().filter(|byte| !is_odd(byte)));
    } else {
        out.extend_from_slice(value);
    }
    out.extend_from_slice(b"\r\n");
}

fn connection(client: Version, after: After, out: &mut Vec<u8>) {
    match (after, client) {
        (After::Close, _) => out.extend_from_slice(b"Connection: close\r\n"),
        (After::Keep, Version::Http10) => out.extend_from_slice(b"Connection: keep-alive\r\n"),
        (After::Keep, Version::Http11) => {}
    }
}

/// `Date`.
fn date(out: &mut Vec<u8>) {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs());
    out.extend_from_slice(b"Date: ");
    Moment::of(seconds).imf_fixdate(out);
    out.extend_from_slice(b"\r\n");
}

/// Reason phrases as nginx writes them.
fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        204 => "No Content",
        300 => "Multiple Choices",
        301 => "Moved Permanently",
        302 => "Found",
        303 => "See Other",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Not Allowed",
        408 => "Request Time-out",
        413 => "Request Entity Too Large",
        414 => "Request-URI Too Large",
        421 => "Misdirected Request",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Temporarily Unavailable",
        504 => "Gateway Time-out",
        505 => "HTTP Version Not Supported",
        _ => "Response",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_date_is_in_fixdate_form() {
        let mut out = Vec::new();

        date(&mut out);

        let text = String::from_utf8(out).expect("ascii");
        assert_eq!(text.len(), "Date: Sun, 06 Nov 1994 08:49:37 GMT\r\n".len(), "{text}");
    }

    #[test]
    fn an_upstream_is_told_the_same_in_few_pieces_as_line_by_line() {
        for scheme in [Scheme::Http, Scheme::Https] {
            let (addr, host) = (IpAddr::from([192, 0, 2, 1]), &b"shop.example.com:8080"[..]);
            let effective = Effective { addr, scheme, host, port: 8080, word: None };
            let (mut together, mut apart) = (Vec::new(), Vec::new());

            tell(effective, b"192.0.2.1", b"8080", &mut together);
            tell_unless(effective, b"192.0.2.1", b"8080", |_| false, &mut apart);

            assert_eq!(together.escape_ascii().to_string(), apart.escape_ascii().to_string());
        }
    }

    #[test]
    fn the_client_hears_no_header_twice() {
        let (mut out, mut edits) = (Vec::new(), HeaderEdits::default());
        edits
            .replacing()
            .extend_from_slice(b"content-type: text/plain\r\nDate: never\r\nWWW-Authenticate: a\r\n");
        edits.challenge(b"www-authenticate: b\r\nwww-authenticate: c\r\n");

        let form = Form { version: Version::Http11, is_head: true };
        answer(&Answer::Status(401), form, Scheme::Http, After::Keep, &edits, &mut out);

        let text = String::from_utf8(out).expect("ascii");
        let (_, lines) = text
            .split_once("Content-Length: ")
            .and_then(|(_, rest)| rest.split_once("\r\n"))
            .expect("a head");
        let expected =
            "content-type: text/plain\r\nDate: never\r\nwww-authenticate: b\r\nwww-authenticate: c\r\n\r\n";
        assert_eq!(lines, expected, "{text}");
        assert!(text.starts_with("HTTP/1.1 401 Unauthorized\r\nContent-Length: "), "{text}");
    }

    #[test]
    fn a_location_cannot_smuggle_a_header() {
        let mut out = Vec::new();
        let evil = Answer::Redirect { status: 302, location: b"/x\r\nSet-Cookie: a=b".to_vec() };

        let form = Form { version: Version::Http11, is_head: false };
        answer(&evil, form, Scheme::Http, After::Keep, &HeaderEdits::default(), &mut out);

        let text = String::from_utf8(out).expect("ascii");
        assert!(text.contains("Location: /xSet-Cookie: a=b\r\n"), "{text}");
    }
}

//! nginx variables of a request, where a setting is made of them.

use std::io::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use super::balance;
use super::client::Effective;
use super::credentials::Credentials;
use super::h1::Request;
use super::heads::Client;
use super::log::{self, Place, Subject};
use super::path;
use super::policy::Headers;
use super::route::{Route, Router, bare_host};
use super::trace::Context;
use crate::model::expression::{Expression, Part, Variable};

/// Longest key that is hashed; what is longer counts with its beginning.
const KEY_MAX: usize = 4096;

/// A request whose variables are asked for.
#[derive(Clone, Copy)]
pub(super) struct Known<'a, 'h, 'b> {
    pub(super) request: &'a Request<'h, 'b>,
    pub(super) client: &'a Client,
    pub(super) effective: Effective<'a>,
    /// Its `X-Request-ID`.
    pub(super) id: &'a [u8],
    /// Where it was led.
    pub(super) found: Option<(&'a Router, &'a Route)>,
    /// It came on a stream of HTTP/2.
    pub(super) is_http2: bool,
    /// Requests of its connection, this one included.
    pub(super) requests: u32,
    /// Its place in a trace, where its location is traced.
    pub(super) trace: Option<&'a Context<'b>>,
}

/// Hash of a key's text for this request.
pub(super) fn hash(key: &Expression, known: Known<'_, '_, '_>) -> u64 {
    let mut text = super::buffer::Scratch::take();
    fill_in(key, known, &mut text);
    text.truncate(KEY_MAX);
    balance::hash(&text)
}

/// Appends the text with the request's values.
pub(super) fn fill_in(expression: &Expression, known: Known<'_, '_, '_>, out: &mut Vec<u8>) {
    for part in &expression.0 {
        match part {
            Part::Literal(literal) => out.extend_from_slice(literal.as_bytes()),
            Part::Variable(variable) => value_of(variable, known, out),
        }
    }
}

/// Appends the value; nothing where there is none. Whole: writing to a vector cannot fail.
fn value_of(variable: &Variable, known: Known<'_, '_, '_>, out: &mut Vec<u8>) {
    let Known { request, client, effective, id, .. } = known;
    let (raw_path, query) = path::split_query(request.target);
    match variable {
        Variable::RequestUri => out.extend_from_slice(request.target),
        Variable::EscapedRequestUri => path::escape_component(request.target, out),
        Variable::Uri => match path::normalize(raw_path) {
            Ok(normal) => out.extend_from_slice(&normal),
            Err(_) => out.extend_from_slice(raw_path),
        },
        Variable::Args => out.extend_from_slice(query.unwrap_or_default()),
        Variable::Host => out.extend(bare_host(request.host).iter().map(u8::to_ascii_lowercase)),
        Variable::RemoteAddr => {
            let _ = write!(out, "{}", effective.addr);
        }
        Variable::AppendedChain => {
            for hops in request.block.values(request.forwarded_for) {
                out.extend_from_slice(hops);
                out.extend_from_slice(b", ");
            }
            let _ = write!(out, "{}", effective.addr);
        }
        Variable::RemoteUser => {
            let authorization = request.headers("authorization").next();
            if let Some(Credentials { user, .. }) = authorization.and_then(Credentials::read) {
                out.extend_from_slice(&user);
            }
        }
        Variable::RequestId => out.extend_from_slice(id),
        Variable::ServerPort => {
            let _ = write!(out, "{}", client.port);
        }
        Variable::SslClientVerify => {
            let verify = client.session.identity().map(|identity| identity.verify());
            out.extend_from_slice(verify.unwrap_or_default().as_bytes());
        }
        Variable::SslClientSubject => {
            let subject = client.session.identity().map(|identity| identity.subject.as_bytes());
            out.extend_from_slice(subject.unwrap_or_default());
        }
        Variable::SslClientIssuer => {
            let issuer = client.session.identity().map(|identity| identity.issuer.as_bytes());
            out.extend_from_slice(issuer.unwrap_or_default());
        }
        Variable::SslClientCertificate => {
            let pem = client.session.identity().map(|identity| identity.escaped_pem().as_bytes());
            out.extend_from_slice(pem.unwrap_or_default());
        }
        Variable::Msec => {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let _ = write!(out, "{}.{:03}", now.as_secs(), now.subsec_millis());
        }
        Variable::Scheme => out.extend_from_slice(client.scheme.as_str().as_bytes()),
        Variable::AccessScheme => out.extend_from_slice(effective.scheme_word()),
        Variable::BestHost => out.extend_from_slice(effective.host),
        Variable::RequestMethod => out.extend_from_slice(request.method.as_bytes()),
        Variable::Header(name) if name == "host" => out.extend_from_slice(request.host),
        Variable::Header(name) => put_header(Headers::Sent(request.block), name, out),
        Variable::Argument(name) => {
            out.extend_from_slice(argument(query.unwrap_or_default(), name).unwrap_or_default());
        }
        Variable::Cookie(name) => {
            out.extend_from_slice(Headers::Sent(request.block).cookie(name).unwrap_or_default());
        }
        Variable::Other(_, early) => log::expand(early, &known.subject(), out),
    }
}

impl<'a, 'h, 'b> Known<'a, 'h, 'b> {
    /// As the access log sees it, before it was rewritten.
    fn subject(self) -> Subject<'a, 'h, 'b> {
        let Self { request, client, effective, id, found, is_http2, requests, trace } = self;
        let place = found.map(|(_, route)| {
            let upstream = log::upstream_name(route);
            Place { route, upstream, stand_in: "", alternative: "", target: None }
        });
        Subject { request: Some(request), line: b"", place, client, effective, is_http2, id, requests, trace }
    }
}

/// Appends all lines of the header that a variable has this name for.
pub(super) fn put_header(headers: Headers<'_>, name: &str, out: &mut Vec<u8>) {
    let lines = headers.lines().filter(|(line, _)| is_header(line, name));
    for (at, (_, value)) in lines.enumerate() {
        if at > 0 {
            out.extend_from_slice(separator(name));
        }
        out.extend_from_slice(value);
    }
}

/// The header that a variable has this name for: words are separated by `_`.
fn is_header(line: &str, name: &str) -> bool {
    line.len() == name.len()
        && line.bytes().zip(name.bytes()).all(|(is, wanted)| match wanted {
            b'_' => is == b'-' || is == b'_',
            wanted => is.eq_ignore_ascii_case(&wanted),
        })
}

/// What nginx joins the lines of a request's header by.
pub(super) fn separator(name: &str) -> &'static [u8] {
    if name.eq_ignore_ascii_case("cookie") { b"; " } else { b", " }
}

/// Value of the first argument of a query with this name, in any case as nginx has it.
pub(super) fn argument<'q>(query: &'q [u8], name: &str) -> Option<&'q [u8]> {
    query.split(|byte| *byte == b'&').find_map(|pair| {
        let (known, rest) = pair.split_at_checked(name.len())?;
        rest.strip_prefix(b"=").filter(|_| known.eq_ignore_ascii_case(name.as_bytes()))
    })
}

//! What redirects and rewrites say of their request.

use regex::bytes::Captures;

use super::super::buffer::Scratch;
use super::super::credentials::Credentials;
use super::super::digits::{addr, number};
use super::super::path;
use super::super::route::{Labels, bare_host};
use super::super::variable as variables;
use super::Asked;
use crate::model::expression::Variable;
use crate::model::l7::log::Early;
use crate::model::l7::{Piece, Template};

/// A request that one is made of.
#[derive(Clone, Copy)]
pub(super) struct Subject<'a> {
    pub(super) asked: &'a Asked<'a>,
    /// Of its location.
    pub(super) labels: &'a Labels,
    /// Normalised.
    pub(super) path: &'a [u8],
    pub(super) query: Option<&'a [u8]>,
}

impl Subject<'_> {
    /// Where the pattern matches anywhere, the whole path becomes the target. Behind its `?` captures are arguments, which
    /// nginx escapes as such where the path that was sent has escapes or a `+`. Variables stand there as they are, and
    /// elsewhere are part of the path, whatever they hold: with nginx, too.
    pub(super) fn target(self, template: &Template, captures: &Captures<'_>, raw_path: &[u8]) -> Vec<u8> {
        let is_quoted = raw_path.iter().any(|byte| matches!(byte, b'%' | b'+'));
        let mut target = Vec::with_capacity(64);
        let mut own_query = false;
        for piece in &template.0 {
            match piece {
                Piece::Literal(literal) => {
                    own_query |= literal.contains('?');
                    path::escape_literal(literal.as_bytes(), &mut target);
                }
                Piece::Capture(n) => {
                    let captured = captures.get(*n).map_or(&b""[..], |found| found.as_bytes());
                    match own_query && is_quoted {
                        true => path::escape_argument(captured, &mut target),
                        false => path::escape_path(captured, &mut target),
                    }
                }
                Piece::Variable(variable) => {
                    let mut value = Scratch::take();
                    self.put(variable, &mut value);
                    match own_query {
                        true => path::escape_literal(&value, &mut target),
                        false => path::escape_path(&value, &mut target),
                    }
                }
            }
        }
        // What a client says of itself sends nobody elsewhere.
        let has_variables = template.0.iter().any(|piece| matches!(piece, Piece::Variable(_)));
        if !target.starts_with(b"/") && (has_variables || !is_absolute(&target)) {
            target.insert(0, b'/');
        }
        append_query(&mut target, self.query);
        target
    }

    /// Text for a header: all as it is.
    pub(super) fn header(self, template: &Template, captures: &Captures<'_>) -> Vec<u8> {
        let mut text = Vec::new();
        for piece in &template.0 {
            match piece {
                Piece::Literal(literal) => text.extend_from_slice(literal.as_bytes()),
                Piece::Capture(n) => {
                    text.extend_from_slice(captures.get(*n).map_or(&b""[..], |found| found.as_bytes()));
                }
                Piece::Variable(variable) => self.put(variable, &mut text),
            }
        }
        text
    }

    /// Appends what a Location header says.
    pub(super) fn put_location(
        self,
        template: &Template,
        captures: Option<&Captures<'_>>,
        out: &mut Vec<u8>,
    ) {
        for piece in &template.0 {
            match piece {
                Piece::Literal(literal) => out.extend_from_slice(literal.as_bytes()),
                Piece::Capture(n) => {
                    let captured = captures.and_then(|found| found.get(*n));
                    path::escape_path(captured.map_or(&b""[..], |found| found.as_bytes()), out);
                }
                Piece::Variable(variable) => self.put_url(variable, out),
            }
        }
    }

    /// Appends what a URL says of it.
    fn put_url(self, variable: &Variable, out: &mut Vec<u8>) {
        match variable {
            Variable::Uri => path::escape_path(self.path, out),
            other => self.put(other, out),
        }
    }

    /// Appends it as it is.
    fn put(self, variable: &Variable, out: &mut Vec<u8>) {
        let Self { asked, labels, path, query } = self;
        let query = query.unwrap_or_default();
        match variable {
            Variable::RequestUri => out.extend_from_slice(asked.target),
            Variable::EscapedRequestUri => path::escape_component(asked.target, out),
            Variable::Uri => out.extend_from_slice(path),
            Variable::Args => out.extend_from_slice(query),
            Variable::Host => out.extend(bare_host(asked.named).iter().map(u8::to_ascii_lowercase)),
            Variable::BestHost => out.extend_from_slice(asked.named),
            Variable::Scheme | Variable::AccessScheme => {
                out.extend_from_slice(asked.scheme.as_str().as_bytes());
            }
            Variable::RemoteAddr => addr(asked.client, out),
            Variable::RemoteUser => {
                let authorization = asked.headers.first("authorization");
                if let Some(Credentials { user, .. }) = authorization.and_then(Credentials::read) {
                    out.extend_from_slice(&user);
                }
            }
            Variable::ServerPort => number(asked.port, out),
            Variable::RequestMethod => out.extend_from_slice(asked.method.as_bytes()),
            Variable::Argument(name) => {
                out.extend_from_slice(variables::argument(query, name).unwrap_or_default());
            }
            Variable::Cookie(name) => {
                out.extend_from_slice(asked.headers.cookie(name).unwrap_or_default());
            }
            Variable::Header(name) => variables::put_header(asked.headers, name, out),
            Variable::Other(_, early) => out.extend_from_slice(match early {
                Early::Namespace => labels.namespace.as_bytes(),
                Early::Ingress => labels.ingress.as_bytes(),
                Early::Service => labels.service.as_bytes(),
                Early::LocationPath => labels.path.as_bytes(),
                Early::IsArgs if !query.is_empty() => b"?",
                _ => b"",
            }),
            // The translation lets no others in.
            _ => {}
        }
    }
}

/// As nginx rewrites: what was asked goes behind the arguments of the target's own; a `?` at its end only says that
/// nothing does.
pub(super) fn append_query(target: &mut Vec<u8>, query: Option<&[u8]>) {
    if target.ends_with(b"?") {
        target.pop();
        return;
    }
    if let Some(query) = query.filter(|query| !query.is_empty()) {
        target.push(if target.contains(&b'?') { b'&' } else { b'?' });
        target.extend_from_slice(query);
    }
}

pub(super) fn is_absolute(target: &[u8]) -> bool {
    target.starts_with(b"http://") || target.starts_with(b"https://")
}

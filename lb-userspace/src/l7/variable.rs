//! nginx variables of a request, where a setting is made of them.

use super::balance;
use super::filters::Scheme;
use super::h1::Request;
use super::heads::Client;
use super::path;
use super::route::bare_host;
use crate::model::upstream::{HashKey, KeyPart, Variable};

/// Longest key that is hashed; what is longer counts with its beginning.
const KEY_MAX: usize = 4096;

/// Hash of a key's text for this request.
pub(super) fn hash(key: &HashKey, request: &Request<'_, '_>, client: &Client) -> u64 {
    let mut text = super::buffer::Scratch::take();
    for part in &key.0 {
        match part {
            KeyPart::Literal(literal) => text.extend_from_slice(literal.as_bytes()),
            KeyPart::Variable(variable) => expand(variable, request, client, &mut text),
        }
    }
    text.truncate(KEY_MAX);
    balance::hash(&text)
}

/// Appends the value; nothing where there is none.
fn expand(variable: &Variable, request: &Request<'_, '_>, client: &Client, out: &mut Vec<u8>) {
    let (raw_path, query) = path::split_query(request.target);
    match variable {
        Variable::RequestUri => out.extend_from_slice(request.target),
        Variable::Uri => match path::normalize(raw_path) {
            Ok(normal) => out.extend_from_slice(&normal),
            Err(_) => out.extend_from_slice(raw_path),
        },
        Variable::Args => out.extend_from_slice(query.unwrap_or_default()),
        Variable::Host => out.extend(bare_host(request.host).iter().map(u8::to_ascii_lowercase)),
        Variable::RemoteAddr => {
            use std::io::Write as _;
            let _ = write!(out, "{}", client.addr);
        }
        Variable::Scheme => out.extend_from_slice(match client.scheme {
            Scheme::Http => b"http",
            Scheme::Https => b"https",
        }),
        Variable::RequestMethod => out.extend_from_slice(request.method.as_bytes()),
        Variable::Header(name) if name == "host" => out.extend_from_slice(request.host),
        Variable::Header(name) => out.extend_from_slice(header(request, name).unwrap_or_default()),
        Variable::Argument(name) => {
            let pairs = query.unwrap_or_default().split(|byte| *byte == b'&');
            out.extend_from_slice(value(pairs, name).unwrap_or_default());
        }
        Variable::Cookie(name) => {
            let pairs = header(request, "cookie").unwrap_or_default().split(|byte| *byte == b';');
            out.extend_from_slice(value(pairs.map(<[u8]>::trim_ascii), name).unwrap_or_default());
        }
    }
}

/// Value of the first line with this name, whose words a variable separates by `_`.
fn header<'b>(request: &Request<'_, 'b>, name: &str) -> Option<&'b [u8]> {
    request.block.first(|line| {
        line.len() == name.len()
            && line.bytes().zip(name.bytes()).all(|(is, wanted)| match wanted {
                b'_' => is == b'-' || is == b'_',
                wanted => is.eq_ignore_ascii_case(&wanted),
            })
    })
}

fn value<'b>(pairs: impl Iterator<Item = &'b [u8]>, name: &str) -> Option<&'b [u8]> {
    pairs.filter_map(|pair| pair.strip_prefix(name.as_bytes())).find_map(|rest| rest.strip_prefix(b"="))
}

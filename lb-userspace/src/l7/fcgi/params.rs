//! The parameters of a request: those of its location, made when it is decided, and those of the head
//! that is sent.

use std::sync::Arc;

use super::super::buffer::Scratch;
use super::super::h1::request::Sent;
use super::super::log::{self, Subject};
use super::super::variable;
use super::record::{self, Kind};
use crate::model::l7::FastCgi;
use crate::model::l7::log::Part;

/// The location's parameters for one request; empty, and free of charge, for one that goes to no
/// FastCGI application.
#[derive(Default)]
pub(in crate::l7) struct Params(
    /// Boxed: every request carries the place for it.
    Option<Box<Expanded>>,
);

struct Expanded {
    pairs: Vec<u8>,
    of: Arc<FastCgi>,
}

impl Params {
    /// Expands what the location says for this request.
    pub(in crate::l7) fn of(location: &Arc<FastCgi>, subject: &Subject<'_, '_, '_>) -> Self {
        let mut pairs = Vec::with_capacity(1024);
        let mut value = Scratch::take();
        for (name, parts) in &location.params {
            value.clear();
            for part in parts {
                match part {
                    Part::Text(text) => value.extend_from_slice(text.as_bytes()),
                    Part::Early(early) => log::expand(early, subject, &mut value),
                    // Not known yet; the translation lets none through.
                    Part::Late(_) => {}
                }
            }
            // As nginx's `if_not_empty`: applications ask whether it is there at all.
            if name != "HTTPS" || !value.is_empty() {
                record::pair(name.as_bytes(), &value, &mut pairs);
            }
        }
        Self(Some(Box::new(Expanded { pairs, of: Arc::clone(location) })))
    }

    /// The beginning of a request, up to its body: it is begun, all parameters follow.
    pub(super) fn request(&self, head: &Sent<'_, '_>, out: &mut Vec<u8>) {
        let mut pairs = Scratch::take();
        if let Some(expanded) = &self.0 {
            pairs.extend_from_slice(&expanded.pairs);
        }
        // A body of unknown length has none; without a body it is empty, as nginx has it.
        if !head.chunked {
            let length = head.length.map(|length| length.to_string()).unwrap_or_default();
            record::pair(b"CONTENT_LENGTH", length.as_bytes(), &mut pairs);
        }
        if !head.host.is_empty() {
            self.header("host", [head.host].into_iter(), &mut pairs);
        }
        let headers: Vec<_> = head.headers().collect();
        for (at, (name, _)) in headers.iter().enumerate() {
            let same = headers.iter().enumerate().filter(|(_, (other, _))| other.eq_ignore_ascii_case(name));
            // The first one speaks for all of its name.
            if same.clone().next().is_some_and(|(first, _)| first == at) {
                self.header(name, same.map(|(_, (_, value))| *value), &mut pairs);
            }
        }
        record::begin(out);
        record::stream(Kind::Params, &pairs, out);
        record::end(Kind::Params, out);
    }

    /// `HTTP_NAME`, its lines joined, unless the location has a parameter of that name.
    fn header<'b>(&self, header: &str, lines: impl Iterator<Item = &'b [u8]>, pairs: &mut Vec<u8>) {
        let mut name = String::with_capacity(5 + header.len());
        name.push_str("HTTP_");
        name.extend(header.chars().map(|c| if c == '-' { '_' } else { c.to_ascii_uppercase() }));
        let is_own = self.0.as_ref().is_some_and(|expanded| expanded.of.params.contains_key(&name));
        // Libraries take it for the proxy that they are to use themselves (CVE-2016-5385).
        if is_own || name == "HTTP_PROXY" {
            return;
        }
        let separator = variable::separator(header);
        let mut value = Scratch::take();
        for (at, line) in lines.enumerate() {
            value.extend_from_slice(if at == 0 { b"" } else { separator });
            value.extend_from_slice(line);
        }
        record::pair(name.as_bytes(), &value, pairs);
    }
}

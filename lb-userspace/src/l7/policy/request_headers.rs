//! Headers of the ConfigMap that a request fills in: those of every request for an upstream, and of every response.

use super::super::buffer::Scratch;
use super::super::h1::head::{Block, LineSet};
use super::super::variable::{self, Known};
use crate::model::expression::Expression;
use crate::model::l7::policy::FilledHeader;

/// They take the place of the client's and of ours; empty for a location without.
#[derive(Clone, Copy)]
pub(in crate::l7) struct Set<'a>(pub(in crate::l7) &'a [FilledHeader]);

const HOST: &str = "host";

impl Set<'_> {
    /// There is none.
    pub(in crate::l7) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// One of them has the name; `Name` or `Name: `.
    pub(in crate::l7) fn has(&self, name: &[u8]) -> bool {
        let name = name.strip_suffix(b": ").unwrap_or(name);
        self.0.iter().any(|header| header.name.as_bytes().eq_ignore_ascii_case(name))
    }

    /// Lines of the client that give way.
    pub(in crate::l7) fn replaced(&self, block: &Block<'_, '_>) -> LineSet {
        if self.0.is_empty() {
            return LineSet::default();
        }
        let is_set = |name: &[u8]| self.0.iter().any(|set| super::is_same_name(set.name.as_bytes(), name));
        block.named(|name| is_set(name.as_bytes()))
    }

    /// Writes the value of Host, which every request has exactly once: of ours, else of the location, else
    /// the client's.
    pub(in crate::l7) fn host(
        &self,
        location: Option<&Expression>,
        known: Known<'_, '_, '_>,
        out: &mut Vec<u8>,
    ) {
        let start = out.len();
        let ours = self.0.iter().find(|header| header.name.eq_ignore_ascii_case(HOST));
        for value in ours.map(|header| &header.value).into_iter().chain(location) {
            if out.len() == start {
                fill_in(value, known, out);
            }
        }
        if out.len() == start {
            out.extend_from_slice(known.effective.host);
        }
    }

    /// Writes all of them as lines, also those that come out empty: they take others off.
    pub(super) fn put_all(&self, known: Known<'_, '_, '_>, out: &mut Vec<u8>) {
        for header in self.0 {
            out.extend_from_slice(header.name.as_bytes());
            out.extend_from_slice(b": ");
            let value = out.len();
            fill_in(&header.value, known, out);
            out.truncate(value.max(out.trim_ascii_end().len()));
            out.extend_from_slice(b"\r\n");
        }
    }

    /// Writes them as lines, but for Host; one that comes out empty is left out.
    pub(in crate::l7) fn put(&self, known: Known<'_, '_, '_>, out: &mut Vec<u8>) {
        for header in self.0.iter().filter(|header| !header.name.eq_ignore_ascii_case(HOST)) {
            let start = out.len();
            out.extend_from_slice(header.name.as_bytes());
            out.extend_from_slice(b": ");
            let value = out.len();
            fill_in(&header.value, known, out);
            if out.len() == value {
                out.truncate(start);
            } else {
                out.extend_from_slice(b"\r\n");
            }
        }
    }
}

/// A decoded path may hold line ends, which would end the header.
fn fill_in(text: &Expression, known: Known<'_, '_, '_>, out: &mut Vec<u8>) {
    let mut value = Scratch::take();
    variable::fill_in(text, known, &mut value);
    out.extend(value.iter().filter(|byte| !matches!(byte, b'\r' | b'\n' | 0)));
}

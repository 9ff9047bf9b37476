//! What a response is dressed with: header lines of ours, on an upstream's answer and on our own alike
//! (reference 4.1, item 10).

use super::super::buffer::Scratch;
use super::super::h1::head::{Block, LineSet};
use super::{Headers, cors};
use crate::model::l7::Policies;
use crate::model::l7::policy::Header;

/// Header lines for one response. Empty for a location without policies, and then free.
#[derive(Default)]
pub(in crate::l7) struct Dress {
    replacing: Option<Scratch>,
    beside: Option<Scratch>,
}

impl Dress {
    /// What a request with these headers has coming.
    pub(in crate::l7) fn of(policies: Option<&Policies>, headers: &Headers<'_>) -> Self {
        let mut dress = Self::default();
        let Some(policies) = policies else { return dress };
        if let Some(cors) = &policies.cors {
            cors::dress(cors, headers, &mut dress);
        }
        for Header { name, value } in policies.response.iter().flat_map(|response| &response.set) {
            let lines = dress.replacing();
            for part in [name.as_str(), ": ", value, "\r\n"] {
                lines.extend_from_slice(part.as_bytes());
            }
        }
        dress
    }

    /// Room for whole lines that take the place of the upstream's of the same names.
    pub(in crate::l7) fn replacing(&mut self) -> &mut Vec<u8> {
        self.replacing.get_or_insert_with(Scratch::take)
    }

    /// Room for whole lines that stand beside the upstream's, like cookies.
    pub(super) fn beside(&mut self) -> &mut Vec<u8> {
        self.beside.get_or_insert_with(Scratch::take)
    }

    /// Lines of the upstream's head that give way.
    pub(in crate::l7) fn replaced(&self, block: &Block<'_, '_>) -> LineSet {
        let Some(lines) = &self.replacing else { return LineSet::default() };
        block.named(|name| names(lines).any(|ours| ours.eq_ignore_ascii_case(name.as_bytes())))
    }

    /// Puts the lines on; one without a value only took the upstream's off.
    pub(in crate::l7) fn put_on(&self, out: &mut Vec<u8>) {
        for lines in [&self.replacing, &self.beside].into_iter().flatten() {
            for line in lines.split_inclusive(|byte| *byte == b'\n').filter(|line| !line.ends_with(b": \r\n"))
            {
                out.extend_from_slice(line);
            }
        }
    }
}

fn names(lines: &[u8]) -> impl Iterator<Item = &[u8]> {
    lines.split(|byte| *byte == b'\n').filter_map(|line| line.split(|byte| *byte == b':').next())
}

//! A request's place in a trace (W3C Trace Context), and the span it leaves there.
//!
//! A location that is traced tells its upstream of a new span whether or not that is recorded; what is
//! recorded goes to whoever takes spans, who never waits. Where spans go from there is not known here.

mod parent;
mod span;

use std::borrow::Cow;
use std::hint::cold_path;

use super::balance::Random;
use super::digits::lower_hex;
use super::h1::head::{Block, LineSet};
use super::log::Subject;
use crate::model::l7::{Choice, Policies, Traced};
use parent::Parent;

pub(super) use parent::fuzz;
pub(super) use span::Begun;

/// Where a request of a traced location stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Context<'b> {
    trace: u128,
    /// What the request is to those behind us.
    span: u64,
    parent: Option<u64>,
    /// `tracestate` of whoever began the trace; empty: none.
    state: Cow<'b, [u8]>,
    sampled: bool,
}

/// Bytes of a `traceparent`.
const TRACEPARENT: usize = 55;

impl<'b> Context<'b> {
    /// `None` where the location is not traced.
    pub(super) fn of(policies: Option<&Policies>, block: &Block<'_, 'b>, random: &Random) -> Option<Self> {
        let traced = policies?.traced.as_deref()?;
        cold_path();
        Some(Self::new(traced, block, random))
    }

    fn new(traced: &Traced, block: &Block<'_, 'b>, random: &Random) -> Self {
        let parent = traced.trusts.then(|| Parent::of(block)).flatten();
        let span = random.word();
        let Some(Parent { trace, span: parent, sampled }) = parent else {
            let trace = (u128::from(random.word()) << 64) | u128::from(random.word());
            let sampled = traced.sampler.choice.takes(trace);
            return Self { trace, span, parent: None, state: Cow::Borrowed(b""), sampled };
        };
        // Where nothing is recorded, nothing is decided either.
        let follows = traced.sampler.follows || !traced.exports;
        let sampled = if follows { sampled } else { traced.sampler.choice.takes(trace) };
        Self { trace, span, parent: Some(parent), state: parent::state(block), sampled }
    }

    /// As whoever is asked next gets it.
    pub(super) fn traceparent(&self) -> [u8; TRACEPARENT] {
        let mut text = [b'-'; TRACEPARENT];
        let flags: &[u8] = if self.sampled { b"01" } else { b"00" };
        let mut at = 0;
        for field in [&b"00"[..], &self.trace_id(), &self.span_id(), flags] {
            if let Some(place) = text.get_mut(at..at + field.len()) {
                place.copy_from_slice(field);
            }
            at += field.len() + 1;
        }
        text
    }

    pub(super) fn trace_id(&self) -> [u8; 32] {
        let mut digits = [0; 32];
        lower_hex(self.trace, &mut digits);
        digits
    }

    pub(super) fn span_id(&self) -> [u8; 16] {
        let mut digits = [0; 16];
        lower_hex(self.span.into(), &mut digits);
        digits
    }

    /// Empty: none.
    pub(super) fn state(&self) -> &[u8] {
        &self.state
    }

    /// Appends the lines that tell whoever is asked next, those of them that are wanted.
    pub(super) fn tell(&self, is_wanted: impl Fn(&[u8]) -> bool, out: &mut Vec<u8>) {
        let [parent, state] = LINES;
        for (name, value) in [(parent, &self.traceparent()[..]), (state, self.state())] {
            if value.is_empty() || !is_wanted(name.as_bytes()) {
                continue;
            }
            for part in [name.as_bytes(), b": ", value, b"\r\n"] {
                out.extend_from_slice(part);
            }
        }
    }

    /// Lines of the client's in whose place ours stand.
    pub(super) fn replaced(&self, block: &Block<'_, '_>) -> LineSet {
        block.named(|name| LINES.iter().any(|line| name.eq_ignore_ascii_case(line)))
    }
}

/// Names of the header lines.
pub(super) const LINES: [&str; 2] = ["traceparent", "tracestate"];

/// Begins the span of a request that is recorded.
pub(super) fn begin(subject: &Subject<'_, '_, '_>) -> Option<Box<Begun>> {
    let context = subject.trace.filter(|context| context.sampled)?;
    let route = subject.place?.route;
    let traced = route.filters.policies.as_deref()?.traced.as_ref().filter(|traced| traced.exports)?;
    Some(Box::new(Begun::new(traced, context, subject)))
}

/// What becomes of a request in this regard.
pub(super) fn explain(traced: &Traced) -> String {
    let Traced { operation: _, trusts, sampler, exports } = traced;
    let whose = if *trusts { "the trace of the client, or one of its own" } else { "a trace of its own" };
    let chosen = match sampler.choice {
        Choice::All => "recorded".to_owned(),
        Choice::None => "not recorded".to_owned(),
        Choice::Below(bound) => {
            format!("{:.1} % are recorded", bound as f64 / (1_u64 << 63) as f64 * 100.0)
        }
    };
    let follows =
        if (sampler.follows || !exports) && *trusts { ", unless the client's says otherwise" } else { "" };
    let exported = if *exports { "" } else { "; no collector takes spans" };
    format!("it is a span of {whose}: {chosen}{follows}{exported}")
}

#[cfg(test)]
mod tests;

//! What is changed in the head of a response: header lines of ours, on an upstream's answer and on our own alike.

use std::hint::cold_path;
use std::rc::Rc;

use super::super::buffer::Scratch;
use super::super::filters::Scheme;
use super::super::h1::Response;
use super::super::h1::head::LineSet;
use super::super::snapshot::Snapshot;
use super::super::variable::Known;
use super::common_headers::CommonHeaders;
use super::rewriting::Swaps;
use super::{Headers, Set, cors};
use crate::model::l7::Policies;
use crate::model::l7::policy::Header;

/// Header lines for one response: those of every response, and those of its location. Free for a location
/// without policies.
#[derive(Default)]
pub(in crate::l7) struct HeaderEdits {
    /// `None` before there is a request.
    snapshot: Option<Rc<Snapshot>>,
    /// Apart, so that a connection does not carry its size.
    extras: Option<Box<Extras>>,
}

/// What only some responses have.
#[derive(Default)]
struct Extras {
    replacing: Option<Scratch>,
    /// Lines of every response that its request has filled in.
    filled: Option<Scratch>,
    beside: Option<Scratch>,
    swaps: Option<Swaps>,
    cookies: Option<Cookies>,
    /// The cookie of a session that began, or moved, with this request.
    session: Option<Scratch>,
}

/// `Set-Cookie` lines of an auth service.
#[derive(Default)]
struct Cookies {
    lines: Vec<u8>,
    /// Whatever the status.
    always: bool,
}

impl Cookies {
    /// Statuses with which a cookie is told: those that nginx adds headers to.
    fn go_with(&self, status: u16) -> bool {
        const USUAL: [u16; 10] = [200, 201, 204, 206, 301, 302, 303, 304, 307, 308];
        self.always || USUAL.contains(&status)
    }
}

impl HeaderEdits {
    /// What any response has.
    pub(in crate::l7) fn plain(snapshot: &Rc<Snapshot>) -> Self {
        Self { snapshot: Some(Rc::clone(snapshot)), extras: None }
    }

    /// What a request has coming.
    pub(in crate::l7) fn of(
        snapshot: &Rc<Snapshot>,
        policies: Option<&Policies>,
        known: Known<'_, '_, '_>,
    ) -> Self {
        let mut edits = Self::plain(snapshot);
        let filled = &snapshot.router.common_headers.filled;
        if !filled.is_empty() {
            cold_path();
            let mut lines = Scratch::take();
            Set(filled).put_all(known, &mut lines);
            edits.extras.get_or_insert_default().filled = Some(lines);
        }
        let Some(policies) = policies else { return edits };
        cold_path();
        if let Some(cors) = &policies.cors {
            cors::edit(cors, &Headers::Sent(known.request.block), &mut edits);
        }
        for header in policies.response.iter().flat_map(|response| &response.set) {
            let lines = edits.replacing();
            take_off(&header.name, lines);
            push(header, lines);
        }
        if let Some(rewriting) = &policies.rewriting {
            edits.extras.get_or_insert_default().swaps = Some(Swaps::of(rewriting, known));
        }
        edits
    }

    /// Room for whole lines that take the place of the upstream's of the same names.
    pub(in crate::l7) fn replacing(&mut self) -> &mut Vec<u8> {
        self.extras.get_or_insert_default().replacing.get_or_insert_with(Scratch::take)
    }

    /// Tells how the client may show who it is: whole `WWW-Authenticate` lines.
    pub(in crate::l7) fn challenge(&mut self, challenges: &[u8]) {
        let lines = self.replacing();
        take_off("WWW-Authenticate", lines);
        lines.extend_from_slice(challenges);
    }

    /// A line of this name is set, or taken off: then nobody else writes one.
    pub(in crate::l7) fn sets(&self, name: &str) -> bool {
        let sets = |lines: &[u8]| has(lines, name.as_bytes());
        self.lines_of(|extras| &extras.replacing).is_some_and(sets)
            || self.lines_of(|extras| &extras.filled).is_some_and(sets)
            || self.common_headers().is_some_and(|common| sets(&common.lines))
    }

    /// Adds whole `Set-Cookie` lines, for every response or for those that nginx adds headers to.
    pub(in crate::l7) fn add_cookies(&mut self, lines: &[u8], always: bool) {
        let cookies = self.extras.get_or_insert_default().cookies.get_or_insert_default();
        cookies.lines.extend_from_slice(lines);
        cookies.always |= always;
    }

    /// Room for whole lines that stand beside the upstream's, like cookies.
    pub(super) fn beside(&mut self) -> &mut Vec<u8> {
        self.extras.get_or_insert_default().beside.get_or_insert_with(Scratch::take)
    }

    /// What knows of lines that no client sees of an upstream.
    pub(in crate::l7) fn withholding(&self) -> Option<Rc<Snapshot>> {
        self.snapshot.clone()
    }

    /// Copies the lines of the upstream's head that the client gets, and puts ours on. Returns those of its
    /// lines that give way to ours, or are taken off.
    pub(in crate::l7) fn upstream(
        &self,
        response: &Response<'_, '_>,
        drop: LineSet,
        scheme: Scheme,
        out: &mut Vec<u8>,
    ) -> LineSet {
        let replaced = self.copied(response, drop, scheme, out);
        self.put_on(response.status, Some(response), scheme, out);
        replaced
    }

    /// Copies the lines of a head that comes before the response: those that the client would get of the response's,
    /// and none of ours.
    pub(in crate::l7) fn interim(
        &self,
        response: &Response<'_, '_>,
        drop: LineSet,
        scheme: Scheme,
        out: &mut Vec<u8>,
    ) {
        self.copied(response, drop, scheme, out);
    }

    fn copied(
        &self,
        response: &Response<'_, '_>,
        drop: LineSet,
        scheme: Scheme,
        out: &mut Vec<u8>,
    ) -> LineSet {
        let replaced = self.replaced(response, scheme);
        let gone = drop.with(replaced);
        match self.extras.as_ref().and_then(|extras| extras.swaps.as_ref()) {
            None => response.block.copy_except(gone, out),
            Some(swaps) => {
                cold_path();
                let swapped = swaps.lines(&response.block).without(gone);
                response.block.copy_except(gone.with(swapped), out);
                swaps.write(&response.block, swapped, out);
            }
        }
        replaced
    }

    /// Puts ours on an answer of our own.
    pub(in crate::l7) fn own(&self, status: u16, scheme: Scheme, out: &mut Vec<u8>) {
        self.put_on(status, None, scheme, out);
    }

    /// Room for the cookie that binds the session; a later one takes the place of an earlier one.
    pub(in crate::l7) fn session(&mut self) -> &mut Vec<u8> {
        let line = self.extras.get_or_insert_default().session.insert(Scratch::take());
        line.clear();
        line
    }

    /// Nobody answered who the session could be bound to.
    pub(in crate::l7) fn without_session(&mut self) {
        if let Some(extras) = &mut self.extras {
            extras.session = None;
        }
    }

    /// Lines of the upstream's head that give way.
    fn replaced(&self, response: &Response<'_, '_>, scheme: Scheme) -> LineSet {
        let mut gone = LineSet::default();
        if let Some(CommonHeaders { hsts, gone: names, passes_server, .. }) = self.common_headers() {
            if !passes_server {
                gone = gone.with(response.server);
            }
            if scheme == Scheme::Https && !hsts.is_empty() {
                gone = gone.with(response.hsts);
            }
            if !names.is_empty() {
                let is_gone = |name: &str| names.iter().any(|listed| listed.eq_ignore_ascii_case(name));
                gone = gone.with(response.block.named(is_gone));
            }
        }
        if let Some(lines) = self.lines_of(|extras| &extras.replacing) {
            gone = gone.with(response.block.named(|name| has(lines, name.as_bytes())));
        }
        gone
    }

    fn put_on(&self, status: u16, upstream: Option<&Response<'_, '_>>, scheme: Scheme, out: &mut Vec<u8>) {
        let own = self.lines_of(|extras| &extras.replacing).unwrap_or_default();
        if let Some(CommonHeaders { hsts, lines, names_server, passes_server, .. }) = self.common_headers() {
            let keeps_server = *passes_server && upstream.is_some_and(|upstream| !upstream.server.is_empty());
            if *names_server && !keeps_server && !self.sets("Server") {
                out.extend_from_slice(b"Server: nginx\r\n");
            }
            if scheme == Scheme::Https && !self.sets("Strict-Transport-Security") {
                out.extend_from_slice(hsts);
            }
            put(lines, own, out);
            put(self.lines_of(|extras| &extras.filled).unwrap_or_default(), own, out);
        }
        put(own, &[], out);
        for lines in [self.lines_of(|extras| &extras.beside), self.lines_of(|extras| &extras.session)] {
            out.extend_from_slice(lines.unwrap_or_default());
        }
        let cookies = self.extras.as_ref().and_then(|extras| extras.cookies.as_ref());
        if let Some(cookies) = cookies.filter(|cookies| cookies.go_with(status)) {
            out.extend_from_slice(&cookies.lines);
        }
    }

    fn lines_of(&self, which: impl FnOnce(&Extras) -> &Option<Scratch>) -> Option<&[u8]> {
        which(self.extras.as_ref()?).as_ref().map(|lines| lines.as_slice())
    }

    fn common_headers(&self) -> Option<&CommonHeaders> {
        self.snapshot.as_ref().map(|snapshot| &snapshot.router.common_headers)
    }
}

/// Appends a header as a line.
pub(super) fn push(header: &Header, lines: &mut Vec<u8>) {
    for part in [header.name.as_str(), ": ", &header.value, "\r\n"] {
        lines.extend_from_slice(part.as_bytes());
    }
}

/// Takes the lines of a name off: one that comes later takes their place.
pub(super) fn take_off(wanted: &str, lines: &mut Vec<u8>) {
    let is_wanted = |line: &[u8]| name(line).eq_ignore_ascii_case(wanted.as_bytes());
    if lines.split(|byte| *byte == b'\n').any(is_wanted) {
        let kept = lines.split_inclusive(|byte| *byte == b'\n').filter(|line| !is_wanted(line));
        *lines = kept.flatten().copied().collect();
    }
}

/// Takes the lines off whose names stand in others.
pub(in crate::l7) fn give_way(lines: &mut Vec<u8>, others: &[u8]) {
    let goes = |line: &[u8]| has(others, name(line));
    if lines.split_inclusive(|byte| *byte == b'\n').any(goes) {
        let kept = lines.split_inclusive(|byte| *byte == b'\n').filter(|line| !goes(line));
        *lines = kept.flatten().copied().collect();
    }
}

/// Appends lines, but not those that others take the place of. One without a value is none: it only took
/// the upstream's off.
fn put(lines: &[u8], others: &[u8], out: &mut Vec<u8>) {
    for line in lines.split_inclusive(|byte| *byte == b'\n').filter(|line| !line.ends_with(b": \r\n")) {
        if others.is_empty() || !has(others, name(line)) {
            out.extend_from_slice(line);
        }
    }
}

/// One of the lines has the name.
fn has(lines: &[u8], wanted: &[u8]) -> bool {
    lines.split(|byte| *byte == b'\n').any(|line| name(line).eq_ignore_ascii_case(wanted))
}

fn name(line: &[u8]) -> &[u8] {
    line.split(|byte| *byte == b':').next().unwrap_or_default()
}

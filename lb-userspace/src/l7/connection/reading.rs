//! The head of a request in the bytes that came.

use std::hint::cold_path;

use super::super::h1::Request;
use super::super::h1::head::{Lines, Refusal, Sizes};
use super::super::h1::request::missing_path;
use super::super::h2;
use super::Connection;
use super::plan::Head;

impl Connection<'_, '_> {
    /// Some clients end a body by a line that belongs to nothing (RFC 9112 2.2).
    pub(super) fn skip_empty_lines(&mut self) {
        while self.buf.bytes().starts_with(b"\r\n") {
            cold_path();
            self.buf.consume(2);
        }
    }

    /// Parsed anew after each read; heads nearly always arrive in one.
    pub(super) fn read_head(&mut self) -> Head {
        match self.parse_head() {
            Head::Refused(Refusal::Pathless) if self.add_path() => {
                cold_path();
                self.parse_head()
            }
            head => head,
        }
    }

    /// Where a target has no path, it means the root (RFC 9110 4.2.3).
    fn add_path(&mut self) -> bool {
        missing_path(self.buf.bytes()).is_some_and(|at| self.buf.insert(at, b'/'))
    }

    /// No future may hold the lines: they would be most of what an idle connection costs.
    fn parse_head(&self) -> Head {
        let mut lines = Lines::new();
        match Request::parse(self.buf.bytes(), &mut lines, Sizes::of(&self.limits)) {
            Ok(None) if self.buf.is_full() => Head::Refused(Refusal::HeadTooLarge),
            Ok(None) => Head::Incomplete,
            Ok(Some(request)) => Head::Planned(self.plan(&request)),
            // Prior knowledge (RFC 9113 3.3): looked for only in what is no HTTP/1.1.
            Err(_) if self.may_be_http2() => Head::Http2,
            Err(refusal) => {
                cold_path();
                Head::Refused(refusal)
            }
        }
    }

    /// Over TLS the handshake has said so, or it is not.
    fn may_be_http2(&self) -> bool {
        self.requests == 0 && !self.socket.is_tls() && h2::is_preface(self.buf.bytes())
    }
}

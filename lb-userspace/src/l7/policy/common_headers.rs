//! Header lines that all responses of a snapshot have, rendered once but for those that a request fills in.

use std::io::Write as _;

use crate::model::l7::policy::FilledHeader;
use crate::model::l7::{Hsts, Responses};

/// What every response has.
#[derive(Debug, Default)]
pub(in crate::l7) struct CommonHeaders {
    /// Line for TLS; empty for none.
    pub(super) hsts: Vec<u8>,
    /// Lines that take the place of the upstream's.
    pub(super) lines: Vec<u8>,
    /// Those that a request fills in.
    pub(super) filled: Vec<FilledHeader>,
    /// Names of both, and names that never reach the client; lower case.
    pub(super) gone: Vec<String>,
    pub(super) names_server: bool,
    pub(super) passes_server: bool,
}

impl CommonHeaders {
    pub(in crate::l7) fn new(responses: &Responses) -> Self {
        let Responses { hsts, names_server, passes_server, hidden, set, filled } = responses;
        let mut common = Self {
            hsts: hsts.map(line).unwrap_or_default(),
            gone: hidden.clone(),
            filled: filled.clone(),
            names_server: *names_server,
            passes_server: *passes_server,
            ..Self::default()
        };
        common.gone.extend(filled.iter().map(|header| header.name.to_ascii_lowercase()));
        for header in set {
            common.gone.push(header.name.to_ascii_lowercase());
            super::header_edits::take_off(&header.name, &mut common.lines);
            super::header_edits::push(header, &mut common.lines);
        }
        common
    }

    /// No client sees this of an upstream, in a head or behind a body.
    pub(in crate::l7) fn withholds(&self, name: &[u8]) -> bool {
        let is = |listed: &str| name.eq_ignore_ascii_case(listed.as_bytes());
        let is_gone = self.gone.iter().any(|listed| is(listed));
        is_gone
            || is("server") && !self.passes_server
            || is("strict-transport-security") && !self.hsts.is_empty()
    }
}

fn line(hsts: Hsts) -> Vec<u8> {
    let Hsts { max_age, subdomains, preload } = hsts;
    let mut line = Vec::new();
    let subdomains = if subdomains { "; includeSubDomains" } else { "" };
    let preload = if preload { "; preload" } else { "" };
    // A vector takes everything.
    let _ = write!(line, "Strict-Transport-Security: max-age={max_age}{subdomains}{preload}\r\n");
    line
}

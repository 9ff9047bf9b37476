//! Cross-origin requests: who is told that it may read the answer.

use std::io::Write as _;

use super::Headers;
use super::header_edits::HeaderEdits;
use crate::model::l7::policy::{Cors, Origins};

/// What the request's origin is told as `Access-Control-Allow-Origin`; `None`: nothing.
pub(super) fn allowed<'a>(cors: &Cors, headers: &Headers<'a>) -> Option<&'a [u8]> {
    match &cors.origins {
        Origins::Any => Some(b"*"),
        Origins::Listed(origins) => {
            headers.first("origin").filter(|origin| origins.iter().any(|listed| listed.takes(origin)))
        }
    }
}

/// Adds the headers that the origin gets. What depends on the origin must not be cached for others.
pub(super) fn edit(cors: &Cors, headers: &Headers<'_>, edits: &mut HeaderEdits) {
    if let Origins::Listed(_) = cors.origins {
        edits.beside().extend_from_slice(b"Vary: Origin\r\n");
    }
    let Some(origin) = allowed(cors, headers) else { return };
    let Cors { origins: _, methods, headers, credentials, expose, max_age } = cors;
    let lines = edits.replacing();
    lines.extend_from_slice(b"Access-Control-Allow-Origin: ");
    lines.extend_from_slice(origin);
    if *credentials {
        lines.extend_from_slice(b"\r\nAccess-Control-Allow-Credentials: true");
    }
    if let Some(expose) = expose {
        let _ = write!(lines, "\r\nAccess-Control-Expose-Headers: {expose}");
    }
    let _ = write!(
        lines,
        "\r\nAccess-Control-Allow-Methods: {methods}\r\nAccess-Control-Allow-Headers: {headers}\r\n\
         Access-Control-Max-Age: {max_age}\r\n"
    );
}

pub(super) fn explain(cors: &Cors, headers: &Headers<'_>) -> String {
    match (allowed(cors, headers), headers.first("origin")) {
        (Some(b"*"), _) => "every origin may read the answer; OPTIONS is answered 204".to_owned(),
        (Some(origin), _) => {
            let origin = String::from_utf8_lossy(origin);
            format!("{origin} may read the answer; OPTIONS is answered 204")
        }
        (None, Some(origin)) => {
            format!("{} is not among the origins; it gets no headers", String::from_utf8_lossy(origin))
        }
        (None, None) => "no Origin, so no headers".to_owned(),
    }
}

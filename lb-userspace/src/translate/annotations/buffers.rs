//! What is held of a message: sizes and switches, and their defaults.

use std::num::NonZeroU64;

use super::{errors, value};
use crate::model::l7::{Buffers, Rate, ReadAhead};

/// `proxy-buffers-number` where it is not set.
const BUFFERS: usize = 4;
/// `proxy-max-temp-file-size` where it is not set.
const FILE_BYTES: u64 = 1 << 30;

/// Of annotations and settings by name. A size of 0 says nothing, as an unset one, but for the file's.
pub(super) fn read<'t>(text: &impl Fn(&str) -> Option<&'t str>) -> Buffers {
    let size = |name: &str| text(name).and_then(value::size);
    let bytes = |name: &str| bytes(text, name);
    let is_on = |name: &str| text(name).is_some_and(|text| text.eq_ignore_ascii_case("on"));
    let is_off = |name: &str| text(name).is_some_and(|text| text.eq_ignore_ascii_case("off"));
    let number = |name: &str| text(name).and_then(|text| text.parse::<u64>().ok());
    // What an error backend is to get as well must still be here when the upstream has had it.
    let holds = is_on("proxy-request-buffering")
        || text("proxy-request-buffering").is_none() && text(errors::STATUSES).is_some();
    let head_bytes = bytes("proxy-buffer-size").unwrap_or(Buffers::default().head_bytes);
    let buffers = number("proxy-buffers-number").filter(|number| *number > 0);
    let buffers = buffers.map_or(BUFFERS, |number| usize::try_from(number).unwrap_or(usize::MAX));
    let kilobytes = |name: &str| number(name).unwrap_or(0).saturating_mul(1024);
    Buffers {
        head_bytes: head_bytes.min(Buffers::HEAD_MAX),
        request: holds.then(|| of_a_request(text)),
        again: (!is_off("proxy-request-buffering")).then(|| of_a_request(text)),
        response: is_on("proxy-buffering").then(|| ReadAhead {
            memory_bytes: held(head_bytes.saturating_mul(buffers)),
            file_bytes: size("proxy-max-temp-file-size").unwrap_or(FILE_BYTES),
            rate: NonZeroU64::new(kilobytes("limit-rate"))
                .map(|bytes| Rate { bytes, after: kilobytes("limit-rate-after") }),
        }),
    }
}

/// How much of a request that is held is held in memory.
pub(super) fn of_a_request<'t>(text: &impl Fn(&str) -> Option<&'t str>) -> usize {
    held(bytes(text, "client-body-buffer-size").unwrap_or(Buffers::REQUEST_BYTES))
}

fn bytes<'t>(text: &impl Fn(&str) -> Option<&'t str>, name: &str) -> Option<usize> {
    let bytes = text(name).and_then(value::size).filter(|bytes| *bytes > 0)?;
    Some(usize::try_from(bytes).unwrap_or(usize::MAX))
}

fn held(bytes: usize) -> usize {
    bytes.min(Buffers::MEMORY_MAX)
}

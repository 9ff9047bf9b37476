//! `upstream-vhost`: what the upstream is told otherwise than by the client.

use super::policies::Source;
use crate::model::l7::policy::RequestHeaders;

pub(super) fn read(source: &Source<'_>) -> Option<RequestHeaders> {
    let headers = RequestHeaders { host: source.text("upstream-vhost").map(str::to_owned) };
    (headers != RequestHeaders::default()).then_some(headers)
}

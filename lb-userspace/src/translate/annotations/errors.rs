//! `custom-http-errors` and `disable-proxy-intercept-errors`. Who words the
//! errors, `default-backend`, is an upstream, and found where those are made.

use std::collections::BTreeSet;

use super::policies::Source;
use crate::model::l7::policy::ErrorPages;

pub(super) const STATUSES: &str = "custom-http-errors";

pub(super) fn read(source: &Source<'_>) -> Option<ErrorPages> {
    let statuses = source.text(STATUSES).and_then(statuses)?;
    let only_ours = source.boolean("disable-proxy-intercept-errors").unwrap_or(false);
    Some(ErrorPages { statuses, only_ours, backend: None })
}

/// Statuses of errors with commas; `None` where one of them is none.
pub(in crate::translate) fn statuses(text: &str) -> Option<BTreeSet<u16>> {
    let status = |text: &str| text.trim().parse().ok().filter(|status| (400..600).contains(status));
    text.split(',').map(status).collect()
}

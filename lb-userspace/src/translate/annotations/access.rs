//! `allowlist-source-range` with its older name, `denylist-source-range`; in the ConfigMap the lists of
//! every location that has none of its own.

use super::policies::{Source, Unusable};
use super::value;
use crate::model::l7::policy::{Access, AddressSet};

/// Names of the list of those who may enter; the first that is set counts.
const ALLOWED: [&str; 2] = ["allowlist-source-range", "whitelist-source-range"];
const DENIED: &str = "denylist-source-range";

/// A list replaces that of the ConfigMap, whichever of its names is used where.
pub(super) fn read(source: &Source<'_>) -> Result<Option<Access>, Unusable> {
    let annotated = ALLOWED.iter().find_map(|name| Some((*name, *source.valid.get(name)?)));
    let set = || ALLOWED.iter().find_map(|name| Some((*name, source.settings.text(name)?)));
    let allowed = annotated.or_else(set).map(|(name, text)| addresses(name, text)).transpose()?;
    let denied = source.text(DENIED).map(|text| addresses(DENIED, text)).transpose()?;
    if allowed.is_none() && denied.is_none() {
        return Ok(None);
    }
    Ok(Some(Access { denied: denied.unwrap_or_default(), allowed }))
}

fn addresses(name: &'static str, text: &str) -> Result<AddressSet, Unusable> {
    let message = || format!("{text:?} is not a list of addresses and CIDR ranges");
    value::ranges(text).ok_or_else(|| Unusable::new(name, message()))
}

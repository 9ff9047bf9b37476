//! `custom-headers`: headers that every response of a location gets.

use super::super::header_map;
use super::policies::{Source, Unusable};
use crate::model::l7::policy::{Header, ResponseHeaders};

const CUSTOM: &str = "custom-headers";
/// Key of the ConfigMap with the names that annotations may set.
const ALLOWED: &str = "global-allowed-response-headers";

pub(super) fn read(source: &Source<'_>) -> Result<Option<ResponseHeaders>, Unusable> {
    let Some(reference) = source.valid.get(CUSTOM) else { return Ok(None) };
    let set = custom(reference, source).map_err(|message| Unusable::new(CUSTOM, message))?;
    Ok((!set.is_empty()).then_some(ResponseHeaders { set }))
}

fn custom(reference: &str, source: &Source<'_>) -> Result<Vec<Header>, String> {
    let headers = header_map::read(reference, source.namespace, source.crosses(), source.objects)?;
    let allowed = source.settings.text(ALLOWED).unwrap_or_default();
    let is_allowed = |name: &str| allowed.split(',').any(|listed| listed.trim().eq_ignore_ascii_case(name));
    match headers.iter().find(|header| !is_allowed(&header.name)) {
        None => Ok(headers),
        Some(Header { name, .. }) => Err(format!("{name} is not among the {ALLOWED} of the ConfigMap")),
    }
}

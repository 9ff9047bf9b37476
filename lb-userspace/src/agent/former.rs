//! Last good versions on their way from an agent to its successor, which finds something else in their files, or
//! nothing that can be read.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use super::desired::State;
use crate::manifests;
use crate::objects::{Former, Object, file_of};
use crate::takeover::Document;

/// Longest text of one: a ConfigMap may have a MiB, and a message of the takeover 64.
const LENGTH_MAX: usize = 16 << 20;

/// What is in force of these places (files, and directories with a `/` behind them), and all whose newest version
/// cannot be used.
pub(super) fn documents(state: &State, places: &[String]) -> Vec<Document> {
    let kept: HashMap<(&str, &str, &str), SystemTime> = state
        .kept
        .iter()
        .map(|kept| {
            let id = &kept.object;
            ((id.kind.as_str(), id.namespace.as_str(), id.name.as_str()), kept.since)
        })
        .collect();
    if kept.is_empty() && places.is_empty() {
        return Vec::new();
    }
    let is_wanted = |file: &str| {
        places.iter().any(|place| match place.strip_suffix('/') {
            Some("") => true,
            Some(_) => file.starts_with(place),
            None => file == place,
        })
    };
    let document = |(object, origin): (Object, Arc<str>)| {
        let id = object.key().id("");
        let since = kept.get(&(id.kind.as_str(), id.namespace.as_str(), id.name.as_str())).copied();
        if since.is_none() && !is_wanted(file_of(&origin)) {
            return None;
        }
        let text = object.to_value().ok()?.to_string();
        (text.len() <= LENGTH_MAX).then(|| Document { origin: origin.to_string(), since, text })
    };
    state.objects.all().into_iter().filter_map(document).collect()
}

/// The same at its destination.
pub(super) fn read(documents: Vec<Document>) -> Vec<Former> {
    let former = |Document { origin, since, text }| {
        let object = manifests::object_of(serde_json::from_str(&text).ok()?)?;
        Some(Former { object, origin: origin.into(), since })
    };
    documents.into_iter().filter_map(former).collect()
}

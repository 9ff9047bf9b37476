//! `block-cidrs`, `block-user-agents`, `block-referers`.

use super::super::annotations::value;
use super::keys::{Keys, field};
use crate::model::l7::{Blocked, Listed};

/// A list that cannot be read would let in who it keeps out: then nobody is served.
pub(super) struct Unreadable;

pub(super) fn read(keys: &mut Keys<'_>) -> Result<Option<Blocked>, Unreadable> {
    let mut is_readable = true;
    let mut closed = |keys: &mut Keys<'_>, key: &str, message: String| {
        is_readable = false;
        let fix = "every Ingress answers 503 until it is corrected";
        keys.about.error_fix("bad-value", field(key), message, fix);
    };
    let mut blocked = Blocked::default();
    if let Some(text) = keys.text("block-cidrs") {
        match value::ranges(text) {
            Some(clients) => blocked.clients = clients,
            None => {
                closed(keys, "block-cidrs", format!("{text:?} is not a list of addresses and CIDR ranges"))
            }
        }
    }
    for (key, list) in [("block-user-agents", &mut blocked.agents), ("block-referers", &mut blocked.referers)]
    {
        let entries = keys.text(key).unwrap_or_default().split(',').map(str::trim);
        for entry in entries.filter(|entry| !entry.is_empty()) {
            match Listed::parse(entry) {
                Ok(listed) => list.push(listed),
                Err(error) => {
                    closed(keys, key, format!("{entry:?} is no pattern that can be used: {error}"));
                }
            }
        }
    }
    if !is_readable {
        return Err(Unreadable);
    }
    Ok((blocked != Blocked::default()).then_some(blocked))
}

//! The ingress controller's ConfigMap. None of its keys is honoured yet; those that protect
//! something close every route rather than leave it open.

use super::findings::Findings;
use crate::objects::{Key, Kind, Objects};

/// Name under which ingress-nginx's chart installs it.
const NAME: &str = "ingress-nginx-controller";
/// Keys that keep somebody out.
const PROTECTING: [&str; 7] = [
    "block-cidrs",
    "block-referers",
    "block-user-agents",
    "denylist-source-range",
    "global-auth-url",
    "allowlist-source-range",
    "whitelist-source-range",
];

/// What the ConfigMap means for routes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Gate {
    /// Nothing.
    Open,
    /// Every route answers 503.
    Closed,
}

/// Reads the ConfigMap and says what of it is not honoured.
pub(super) fn gate(objects: &Objects, findings: &mut Findings) -> Gate {
    let mut gate = Gate::Open;
    for (name, sourced) in objects.config_maps.iter().filter(|(name, _)| name.name == NAME) {
        let id = Key { kind: Kind::ConfigMap, name: name.clone() }.id(&sourced.origin);
        let mut about = findings.about(&id);
        for (key, value) in sourced.object.data.iter().flatten() {
            let field = format!("data.{key}");
            if PROTECTING.contains(&key.as_str()) && !value.trim().is_empty() {
                gate = Gate::Closed;
                about.error_fix(
                    "protection-not-yet",
                    field,
                    "not honoured yet; every Ingress answers 503, rather than stand open",
                    "remove it only if something else protects these hosts",
                );
            } else {
                about.warn("not-yet", field, "not honoured yet; the default is used", "");
            }
        }
    }
    gate
}

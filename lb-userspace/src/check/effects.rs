//! What an object brings about, one line each.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::l4::{Access, BackendState, Pool};
use crate::model::l7::{Action, Location, PathMatch};
use crate::model::{ObjectName, Snapshot};

/// Routes of every Ingress that has some.
pub(super) fn routes(snapshot: &Snapshot) -> BTreeMap<&ObjectName, Vec<String>> {
    let mut by_ingress: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for (host, server) in &snapshot.l7.servers {
        let scheme = if server.tls { "https" } else { "http" };
        for location in &server.locations {
            let Some(ingress) = &location.ingress else { continue };
            let kind = match location.path {
                PathMatch::Exact(_) => "exactly ",
                PathMatch::Prefix(_) => "",
                PathMatch::Regex(_) => "~ ",
            };
            let target = target(location, snapshot);
            let line = format!("{kind}{scheme}://{host}{} -> {target}", location.path_label);
            by_ingress.entry(ingress).or_default().push(line);
        }
    }
    by_ingress
}

/// Ingresses of which a path answers 503, whatever the reason.
pub(super) fn closed(snapshot: &Snapshot) -> BTreeSet<&ObjectName> {
    let locations = snapshot.l7.servers.values().flat_map(|server| &server.locations);
    locations
        .filter(|location| location.action == Action::Deny)
        .filter_map(|location| location.ingress.as_ref())
        .collect()
}

fn target(location: &Location, snapshot: &Snapshot) -> String {
    match &location.action {
        Action::Proxy(name) => {
            let upstream = snapshot.l7.upstreams.get(name);
            match upstream.and_then(|upstream| upstream.external.as_ref()) {
                Some(external) => format!("{} ({}:{} by DNS)", name.0, external.name, external.port),
                None => {
                    let endpoints = upstream.map_or(0, |upstream| upstream.endpoints.len());
                    format!("{} ({})", name.0, count(endpoints, "endpoint"))
                }
            }
        }
        Action::DefaultBackend => "the default backend".to_owned(),
        Action::Redirect(redirect) => format!("redirect {}", redirect.status),
        Action::Deny => "503, refused".to_owned(),
    }
}

/// Addresses of every Service that has some.
pub(super) fn vips(snapshot: &Snapshot) -> BTreeMap<&ObjectName, Vec<String>> {
    let mut by_service: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for (id, pool) in &snapshot.l4.pools {
        let backends = backends(pool);
        let lines = pool.vips.iter().map(|(vip, access)| match access {
            Access::Open => format!("{vip} -> {backends}"),
            Access::Restricted => format!("{vip} from {} -> {backends}", sources(pool)),
        });
        by_service.entry(&*id.service).or_default().extend(lines);
    }
    by_service
}

fn sources(pool: &Pool) -> String {
    const SHOWN: usize = 4;
    let mut ranges = pool.source_ranges.iter();
    let shown: Vec<_> = ranges.by_ref().take(SHOWN).map(ToString::to_string).collect();
    match (shown.is_empty(), ranges.count()) {
        (true, _) => "nobody".to_owned(),
        (false, 0) => shown.join(", "),
        (false, more) => format!("{} and {more} more", shown.join(", ")),
    }
}

/// `3 backends, nat`, or `3 backends, 1 local, 2 tunnel`.
fn backends(pool: &Pool) -> String {
    let mut modes: BTreeMap<&str, usize> = BTreeMap::new();
    for backend in pool.backends.values() {
        *modes.entry(backend.mode.as_str()).or_default() += 1;
    }
    let mut text = count(pool.backends.len(), "backend");
    let draining = pool.backends.values().filter(|backend| backend.state != BackendState::Active).count();
    if draining > 0 {
        text += &format!(" ({draining} draining)");
    }
    let mixed = modes.len() > 1;
    for (mode, number) in modes {
        text += &if mixed { format!(", {number} {mode}") } else { format!(", {mode}") };
    }
    text
}

fn count(number: usize, noun: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {noun}{plural}")
}

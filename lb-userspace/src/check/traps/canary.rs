//! Canaries split more than their authors think.

use std::collections::{BTreeMap, BTreeSet};

use super::world::{Place, Target, World, field, shown};
use super::{Caught, listed};

/// A canary attaches to the Service of its primary, so every other route to that Service is split
/// as well.
pub(super) fn shared_upstream(world: &World<'_>, caught: &mut Caught) {
    let mut owners: BTreeMap<_, &Place<'_>> = BTreeMap::new();
    let mut routes: BTreeMap<&Target<'_>, BTreeSet<(&str, &str, String)>> = BTreeMap::new();
    for primary in world.primaries() {
        for place in &primary.paths {
            owners.entry((place.host.as_str(), place.path, place.path_type)).or_insert(place);
            if let Some(target) = &place.target {
                let route = (place.host.as_str(), place.path, primary.name.to_string());
                routes.entry(target).or_default().insert(route);
            }
        }
    }
    for canary in world.ingresses.iter().filter(|ingress| ingress.is_on("canary")) {
        // Services that its paths split, each with the paths that it means to split.
        let mut meant: BTreeMap<&Target<'_>, BTreeSet<(&str, &str)>> = BTreeMap::new();
        for place in &canary.paths {
            let place = (place.host.as_str(), place.path, place.path_type);
            let Some(primary) = owners.get(&place) else { continue };
            let Some(target) = primary.target.as_ref() else { continue };
            meant.entry(target).or_default().insert((place.0, place.1));
        }
        for (target, meant) in meant {
            let others = routes.get(target).into_iter().flatten();
            let others = others.filter(|(host, path, _)| !meant.contains(&(host, path)));
            let others: Vec<_> = others
                .map(|(host, path, ingress)| format!("{}{path} (Ingress {ingress})", shown(host)))
                .collect();
            if !others.is_empty() {
                let message = format!("splits every route to Service {target}, so also {}", listed(&others));
                let fix = "give the primary of the canary a Service of its own";
                caught.note(&canary.id, "canary-splits-others", field("canary"), message, fix);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::tests::{ingress_of, messages};

    #[test]
    fn routes_that_share_the_service_of_a_canary_are_named() {
        let canary = "
            nginx.ingress.kubernetes.io/canary: 'true'
            nginx.ingress.kubernetes.io/canary-weight: '10'";
        let input = [
            ingress_of("a", "", "a.example.com", &["/"]),
            ingress_of("b", "", "b.example.com", &["/x"]),
            ingress_of("c", canary, "a.example.com", &["/"]),
        ]
        .join("---\n");

        assert_eq!(
            messages(&input, &["canary-splits-others"]),
            ["splits every route to Service default/web:80, so also b.example.com/x (Ingress default/b)"]
        );
    }
}

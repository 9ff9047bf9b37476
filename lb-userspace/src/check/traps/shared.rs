//! What one Ingress says and another one gets: settings of a Service and of a host.

use std::collections::{BTreeMap, BTreeSet};

use super::world::{Seen, Target, World, field, shown};
use super::{Caught, listed};
use crate::translate::{Scope, TABLE, check_value};

/// Annotations that are kept with the Service and so hold for every route to it.
const OF_UPSTREAM: [&str; 4] = ["affinity", "upstream-hash-by", "load-balance", "service-upstream"];

/// How the endpoints of a Service are chosen is said once, by the oldest Ingress that says it.
pub(super) fn balancing<'a>(world: &World<'a>, caught: &mut Caught) {
    let mut users: BTreeMap<&Target<'_>, Vec<&Seen<'a>>> = BTreeMap::new();
    for ingress in world.primaries() {
        let targets: BTreeSet<_> = ingress.paths.iter().filter_map(|place| place.target.as_ref()).collect();
        for target in targets {
            users.entry(target).or_default().push(ingress);
        }
    }
    for (target, users) in users.iter().filter(|(_, users)| users.len() > 1) {
        for name in OF_UPSTREAM {
            // What is no value of it says nothing.
            let says = |ingress: &Seen<'a>| ingress.text(name).filter(|text| is_value(name, text));
            let Some(first) = users.iter().find(|ingress| says(ingress).is_some()) else { continue };
            let value = says(first).unwrap_or_default();
            let others = users.iter().filter(|ingress| ingress.name != first.name);
            let (silent, contrary): (Vec<&Seen<'a>>, Vec<_>) = others
                .copied()
                .filter(|ingress| says(ingress) != Some(value))
                .partition(|ingress| says(ingress).is_none());
            for ingress in contrary {
                let message = format!(
                    "Ingress {} said {value:?} for Service {target} first, which is what holds",
                    first.name
                );
                let fix = "give each its own Service";
                caught.note(&ingress.id, "balancing-of-another", field(name), message, fix);
            }
            if !silent.is_empty() {
                let names: Vec<_> = silent.iter().map(|ingress| ingress.name).collect();
                let message =
                    format!("holds for Service {target} and so for Ingress {}, too", listed(&names));
                let fix = "give it a Service of its own, if that is not meant";
                caught.note(&first.id, "leaking-balancing", field(name), message, fix);
            }
        }
    }
}

fn is_value(name: &str, text: &str) -> bool {
    TABLE.iter().any(|row| row.name == name && check_value(row.value, text).is_ok())
}

/// Of settings of a host the oldest Ingress that says something wins, each setting by itself.
pub(super) fn host_settings(world: &World<'_>, caught: &mut Caught) {
    // These do not exclude each other: one Ingress is enough.
    const ADDING: [&str; 2] = ["use-regex", "from-to-www-redirect"];
    let of_host = TABLE.iter().filter(|row| row.scope == Scope::Host && !ADDING.contains(&row.name));
    for row in of_host {
        let mut first: BTreeMap<&str, &Seen<'_>> = BTreeMap::new();
        for ingress in world.primaries() {
            let Some(text) = ingress.text(row.name) else { continue };
            for host in &ingress.hosts {
                let owner = first.entry(host).or_insert(ingress);
                let theirs = owner.text(row.name).unwrap_or_default();
                if theirs != text {
                    let message = format!(
                        "{} has {} {theirs:?} from the older Ingress {} already; this one is ignored",
                        shown(host),
                        row.name,
                        owner.name
                    );
                    let fix = "say it in one Ingress of the host";
                    caught.say(
                        &ingress.id,
                        super::Verdict::Ignored,
                        "host-setting-conflict",
                        field(row.name),
                        message,
                        fix.to_owned(),
                    );
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::tests::{ingress_of, messages, reported};

    #[test]
    fn balancing_that_reaches_another_ingress_is_named_at_both() {
        let input = [
            ingress_of("c", "nginx.ingress.kubernetes.io/load-balance: ewma", "a", &["/"]),
            ingress_of("b", "", "b", &["/"]),
            ingress_of("a", "nginx.ingress.kubernetes.io/load-balance: round_robin", "c", &["/"]),
        ]
        .join("---\n");

        assert_eq!(
            messages(&input, &["leaking-balancing", "balancing-of-another"]),
            [
                "Ingress default/c said \"ewma\" for Service default/web:80 first, which is what holds",
                "holds for Service default/web:80 and so for Ingress default/b, too"
            ]
        );
    }

    #[test]
    fn a_host_setting_that_an_older_ingress_decided_is_ignored_and_told_once() {
        let with = |name, value: &str| {
            let annotations = format!(
                "
            nginx.ingress.kubernetes.io/app-root: /{value}
            nginx.ingress.kubernetes.io/ssl-ciphers: {value}"
            );
            ingress_of(name, &annotations, "a.example.com", &[if value == "HIGH" { "/" } else { "/b" }])
        };
        let input = [with("b", "HIGH"), with("a", "ECDSA")].join("---\n");

        assert_eq!(
            reported(&input, &["host-setting-conflict"]),
            [
                "Ingress default/a ignored: app-root [host-setting-conflict]",
                "Ingress default/a ignored: ssl-ciphers [host-setting-conflict]"
            ]
        );
    }
}

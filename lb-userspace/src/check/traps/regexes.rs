//! Hosts whose paths are patterns, and patterns elsewhere.

use std::collections::BTreeMap;

use super::world::{Place, Seen, World, field, shown};
use super::{Caught, listed};
use crate::model::l7::{HostMatch, PathMatch, Pattern};

/// Locations of a host that are compared with each other; beyond, it takes too long.
const COMPARED: usize = 1000;
const SPECIAL: [char; 13] = ['(', ')', '[', ']', '{', '}', '*', '+', '?', '^', '$', '|', '\\'];

/// An Ingress that makes its host a regex host changes the paths of all others there.
pub(super) fn flipped_hosts(world: &World<'_>, caught: &mut Caught) {
    let mut by_host: BTreeMap<&str, Vec<(&Seen<'_>, &Place<'_>)>> = BTreeMap::new();
    for ingress in world.primaries() {
        for place in &ingress.paths {
            by_host.entry(&place.host).or_default().push((ingress, place));
        }
    }
    for (host, places) in by_host {
        let Some((flipper, by)) =
            places.iter().find_map(|(ingress, place)| Some((ingress, flips(ingress, place)?)))
        else {
            continue;
        };
        let is_victim = |(ingress, place): &&(&Seen<'_>, &Place<'_>)| {
            flips(ingress, place).is_none() && !ingress.is_strict && place.path != "/"
        };
        let mut victims: Vec<String> = Vec::new();
        for (ingress, place) in places.iter().filter(is_victim) {
            let message = format!(
                "{by} of Ingress {} makes {} a regex host: {:?} is a case-insensitive pattern anchored at its start only",
                flipper.name,
                shown(host),
                place.path
            );
            let fix = "give the patterns a host of their own, or end this path with a pattern like (/|$)";
            caught.note(&ingress.id, "regex-host", format!("{}.path", place.field), message, fix);
            if ingress.name != flipper.name && !victims.contains(&ingress.name.to_string()) {
                victims.push(ingress.name.to_string());
            }
        }
        if !victims.is_empty() {
            let message = format!("makes the paths of {} on {} patterns, too", listed(&victims), shown(host));
            caught.note(&flipper.id, "flips-host", field(by), message, "");
        }
    }
}

/// The annotation by which a path makes its host a regex host.
fn flips(ingress: &Seen<'_>, place: &Place<'_>) -> Option<&'static str> {
    if ingress.is_strict {
        return None;
    }
    if ingress.is_on("use-regex") {
        return Some("use-regex");
    }
    ingress.text("rewrite-target").is_some_and(|target| target != place.path).then_some("rewrite-target")
}

/// On a regex host the longest text comes first, so a longer pattern takes what a shorter path
/// names letter by letter.
pub(super) fn shadowed_paths(world: &World<'_>, caught: &mut Caught) {
    let fields = path_fields(world);
    for (host, server) in &world.snapshot.l7.servers {
        let locations = server.locations.get(..COMPARED).unwrap_or(&server.locations);
        for (index, location) in locations.iter().enumerate() {
            let label = &location.path_label;
            let (PathMatch::Regex(_), Some(ingress), false) =
                (&location.path, &location.ingress, label.contains(SPECIAL))
            else {
                continue;
            };
            let earlier = locations.iter().take(index).find(|earlier| match &earlier.path {
                PathMatch::Regex(pattern) => pattern.regex().is_match(label.as_bytes()),
                PathMatch::Exact(_) | PathMatch::Prefix(_) => false,
            });
            let host_text = host_text(host);
            let key = (ingress.to_string(), host_text, label.clone());
            if let (Some(earlier), Some((id, field))) = (earlier, fields.get(&key)) {
                let owner = earlier.ingress.as_ref().map(ToString::to_string).unwrap_or_default();
                let message = format!(
                    "a request for {label:?} goes to {:?} of Ingress {owner}: of patterns the longest text is tried first, whatever matches better",
                    earlier.path_label
                );
                caught.note(
                    id,
                    "shadowed-path",
                    field.clone(),
                    message,
                    "make this path the longer text, or the pattern narrower",
                );
            }
        }
    }
}

type PathKey = (String, String, String);

/// Where each path is written.
fn path_fields(world: &World<'_>) -> BTreeMap<PathKey, (crate::model::ObjectId, String)> {
    let mut fields = BTreeMap::new();
    for ingress in &world.ingresses {
        for place in &ingress.paths {
            let key = (ingress.name.to_string(), place.host.clone(), place.path.to_owned());
            fields.entry(key).or_insert_with(|| (ingress.id.clone(), format!("{}.path", place.field)));
        }
    }
    fields
}

fn host_text(host: &HostMatch) -> String {
    match host {
        HostMatch::Any => String::new(),
        named => named.to_string(),
    }
}

/// A target that is the path itself rewrites nothing.
pub(super) fn rewrites_to_itself(world: &World<'_>, caught: &mut Caught) {
    for ingress in world.primaries() {
        let Some(target) = ingress.text("rewrite-target") else { continue };
        let same = ingress.paths.iter().filter(|place| place.path == target).count();
        if same > 0 {
            let which = if same == ingress.paths.len() { "the path" } else { "one of the paths" };
            let message =
                format!("is {which} itself: nothing is rewritten there, and what is below arrives as it is");
            let fix = "remove it, or write a path with a group and a target with $1";
            caught.note(&ingress.id, "rewrite-to-itself", field("rewrite-target"), message, fix);
        }
    }
}

/// A group of the target that the path does not have is empty.
pub(super) fn missing_groups(world: &World<'_>, caught: &mut Caught) {
    for ingress in world.primaries() {
        let Some(target) = ingress.text("rewrite-target") else { continue };
        let Some(group) = highest_group(target) else { continue };
        let groups = |path: &str| Pattern::unanchored(path).map(|pattern| pattern.regex().captures_len() - 1);
        let lacks = |place: &&Place<'_>| groups(place.path).is_ok_and(|groups| groups < group);
        let lacking: Vec<_> = ingress.paths.iter().filter(lacks).map(|place| place.path).collect();
        if lacking.is_empty() {
            continue;
        }
        let paths = listed(&lacking);
        let message = match lacking.len() {
            1 => format!(
                "names ${group}, which {paths} has no group for: it is empty, and so every request there arrives alike"
            ),
            _ => format!(
                "names ${group}, which {paths} have no group for: it is empty, and so every request there arrives alike"
            ),
        };
        let fix = format!(
            "write {group} groups into the path, like /api(/|$)(.*) for $2, or name the one that it has"
        );
        match lacking.len() == ingress.paths.len() {
            true => caught.needs_action(&ingress.id, "missing-group", field("rewrite-target"), message, fix),
            // A path beside those that the target was written for.
            false => caught.note(&ingress.id, "missing-group", field("rewrite-target"), message, fix),
        }
    }
}

/// The highest group that a target names.
fn highest_group(target: &str) -> Option<usize> {
    let digits = target.split('$').skip(1).map(|rest| rest.strip_prefix('{').unwrap_or(rest));
    digits.filter_map(|rest| rest.chars().next()?.to_digit(10)).map(|group| group as usize).max()
}

/// Patterns that only a backtracking engine knows.
pub(super) fn patterns_of_annotations(world: &World<'_>, caught: &mut Caught) {
    for ingress in &world.ingresses {
        let aliases = ingress.text("server-alias").unwrap_or_default().split([',', ' ']);
        let aliases = aliases.filter_map(|alias| Some(("server-alias", alias.trim().strip_prefix('~')?)));
        for (name, text) in aliases {
            if Pattern::subject(text).is_ok() {
                continue;
            }
            let message = match beyond(text) {
                Some(what) => format!("{text:?} needs {what}, which patterns that never stall cannot have"),
                None => format!("{text:?} is no pattern"),
            };
            caught.needs_action(&ingress.id, "bad-pattern", field(name), message, "list the values instead");
        }
    }
}

/// What of a pattern is beyond linear time.
fn beyond(pattern: &str) -> Option<&'static str> {
    let has = |part: &str| pattern.contains(part);
    if has("(?=") || has("(?!") {
        Some("look-ahead")
    } else if has("(?<=") || has("(?<!") {
        Some("look-behind")
    } else if has("(?>") || has("*+") || has("++") || has("?+") {
        Some("possessive matching")
    } else if pattern.as_bytes().windows(2).any(|pair| matches!(pair, [b'\\', b'1'..=b'9'])) {
        Some("back-references")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::tests::{caught, ingress_of, messages};

    #[test]
    fn who_flips_a_host_and_whose_paths_it_changes_is_named() {
        let input = [
            ingress_of("z-old", "", "a.example.com", &["/shop", "/"]),
            ingress_of(
                "b",
                "nginx.ingress.kubernetes.io/rewrite-target: /$1",
                "a.example.com",
                &["/api/(.*)"],
            ),
            ingress_of("c", "nginx.ingress.kubernetes.io/rewrite-target: /", "b.example.com", &["/"]),
        ]
        .join("---\n");

        assert_eq!(
            caught(&input, &["regex-host", "flips-host"]),
            [
                "identical: rewrite-target [flips-host]",
                "identical: spec.rules[0].http.paths[0].path [regex-host]"
            ]
        );
        let messages = messages(&input, &["flips-host"]);
        assert_eq!(messages, ["makes the paths of default/z-old on a.example.com patterns, too"]);
    }

    #[test]
    fn a_literal_path_that_a_longer_pattern_takes_is_named() {
        let regex = "nginx.ingress.kubernetes.io/use-regex: 'true'";
        let input = ingress_of("a", regex, "a.example.com", &["/foo/bar/bar", "/foo/bar/[a-z]{3}", "/foo"]);

        assert_eq!(
            messages(&input, &["shadowed-path"]),
            [
                "a request for \"/foo/bar/bar\" goes to \"/foo/bar/[a-z]{3}\" of Ingress default/a: of patterns the longest text is tried first, whatever matches better"
            ]
        );
    }

    #[test]
    fn a_target_equal_to_the_path_is_named() {
        let rewrite = "nginx.ingress.kubernetes.io/rewrite-target: /";

        assert_eq!(caught(&ingress_of("a", rewrite, "a", &["/"]), &["rewrite-to-itself"]).len(), 1);
        assert_eq!(caught(&ingress_of("a", rewrite, "a", &["/b"]), &["rewrite-to-itself"]).len(), 0);
    }

    #[test]
    fn a_target_with_a_group_that_no_path_has_needs_action() {
        let found = |target: &str, paths: &[&str]| {
            let annotations = format!("nginx.ingress.kubernetes.io/rewrite-target: {target}");
            caught(&ingress_of("a", &annotations, "a", paths), &["missing-group"])
        };

        assert_eq!(found("/$2", &["/api/(.*)"]), ["needs action: rewrite-target [missing-group]"]);
        assert_eq!(found("/$2", &["/api(/|$)(.*)", "/"]), ["identical: rewrite-target [missing-group]"]);
        assert_eq!(found("/$2", &["/api(?:/|$)(.*)"]), ["needs action: rewrite-target [missing-group]"]);
        assert!(found("/$2", &["/api(/|$)(.*)"]).is_empty());
        assert!(found("/x", &["/api"]).is_empty());
    }

    #[test]
    fn patterns_beyond_linear_time_are_named_wherever_they_stand() {
        let annotations = "
            nginx.ingress.kubernetes.io/canary: 'true'
            nginx.ingress.kubernetes.io/canary-by-header: X-A
            nginx.ingress.kubernetes.io/canary-by-header-pattern: a(?!b)
            nginx.ingress.kubernetes.io/server-alias: ~^(a)\\1$, b.example.com, ~^www\\d+$";

        assert_eq!(
            caught(&ingress_of("a", annotations, "a", &["/"]), &["bad-pattern"]),
            [
                "needs action: canary-by-header-pattern [bad-pattern]",
                "needs action: server-alias [bad-pattern]"
            ]
        );
    }
}

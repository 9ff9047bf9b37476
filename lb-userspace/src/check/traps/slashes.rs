//! Paths that end in a slash: nginx adds it to a request that leaves it out.

use std::collections::BTreeSet;

use super::Caught;
use super::regexes::{host_text, path_fields};
use super::world::World;
use crate::model::l7::PathMatch;

/// A request for `/x` is redirected to the path `/x/`, whatever would take it otherwise.
pub(super) fn added(world: &World<'_>, caught: &mut Caught) {
    let fields = path_fields(world);
    for (host, server) in &world.snapshot.l7.servers {
        let literal = |path: &PathMatch| match path {
            PathMatch::Exact(text) | PathMatch::Prefix(text) => Some(text.clone()),
            PathMatch::Regex(_) => None,
        };
        let texts: BTreeSet<String> =
            server.locations.iter().filter_map(|location| literal(&location.path)).collect();
        for location in &server.locations {
            let (Some(text), Some(ingress)) = (literal(&location.path), &location.ingress) else { continue };
            let Some(without) = text.strip_suffix('/').filter(|without| !without.is_empty()) else {
                continue;
            };
            let key = (ingress.to_string(), host_text(host), location.path_label.clone());
            let Some((id, field)) = fields.get(&key).filter(|_| !texts.contains(without)) else { continue };
            let message = format!("a request for {without:?} is answered 301, to {text:?}");
            let fix = format!("write {without} as well, if it is to be served");
            caught.note(id, "slash-added", field.clone(), message, fix);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::tests::{caught, ingress_of, messages};

    #[test]
    fn a_path_that_ends_in_a_slash_is_named_unless_it_is_there_without() {
        let of = |annotations: &str, paths: &[&str]| {
            messages(&ingress_of("a", annotations, "a.example.com", paths), &["slash-added"])
        };
        let regex = "nginx.ingress.kubernetes.io/use-regex: 'true'";

        assert_eq!(of("", &["/x/", "/"]), [r#"a request for "/x" is answered 301, to "/x/""#]);
        assert!(of("", &["/x/", "/x"]).is_empty());
        assert!(of("", &["/x", "/"]).is_empty());
        assert!(of(regex, &["/x/"]).is_empty());
        assert_eq!(
            caught(&ingress_of("a", "", "a.example.com", &["/x/"]), &["slash-added"]),
            ["identical: spec.rules[0].http.paths[0].path [slash-added]"]
        );
    }
}

//! Redirects that lead to themselves: a browser gives up, and nobody ever gets an answer.

use super::Caught;
use super::world::{Seen, World, field};
use crate::model::expression::Variable;
use crate::model::l7::{Action, HostMatch, Location, PathMatch, Piece, Server, Template};

/// An `app-root` that is the root.
pub(super) fn app_roots(world: &World<'_>, caught: &mut Caught) {
    for ingress in world.primaries() {
        let path = ingress.text("app-root").map(path_of);
        if path == Some("/") {
            let message = "sends a request for / to / again, without an end";
            let fix = "write the path where the application begins, or remove it";
            caught.needs_action(&ingress.id, "endless-redirect", field("app-root"), message, fix);
        }
    }
}

/// A redirect whose target is redirected by the same location. Only hosts that are named exactly are looked at: of others
/// it depends on the request.
pub(super) fn redirects(world: &World<'_>, caught: &mut Caught) {
    for (host, server) in &world.snapshot.l7.servers {
        let HostMatch::Exact(host) = host else { continue };
        let is_moved = server.moved.is_some();
        for location in
            server.locations.iter().filter(|location| !is_moved && leads_back(location, host, server))
        {
            let Some(ingress) = owner(world, location) else { continue };
            let Some(name) = ingress.first_of(&["temporal-redirect", "permanent-redirect"]) else { continue };
            let message = format!("leads from {host}{} to itself, without an end", location.path_label);
            let fix = "redirect to another host, or to a path that another Ingress serves";
            caught.needs_action(&ingress.id, "endless-redirect", field(name), message, fix);
        }
    }
}

fn owner<'w>(world: &'w World<'_>, location: &Location) -> Option<&'w Seen<'w>> {
    let owner = location.ingress.as_ref()?;
    world.ingresses.iter().find(|ingress| ingress.name == owner)
}

fn leads_back(location: &Location, host: &str, server: &Server) -> bool {
    let Action::Redirect(redirect) = &location.action else { return false };
    match target(&redirect.location, host) {
        Some(Target::SamePath) => true,
        Some(Target::Path(path)) => {
            let takes = server.locations.iter().find(|other| takes(&other.path, &path));
            takes.is_some_and(|other| std::ptr::eq(other, location))
        }
        None => false,
    }
}

/// Where on the same host a redirect leads.
enum Target {
    /// To the path of the request.
    SamePath,
    Path(String),
}

/// `None`: elsewhere, or where only a request tells.
fn target(template: &Template, host: &str) -> Option<Target> {
    const PATH: &str = "\0";
    let mut url = String::new();
    for piece in &template.0 {
        match piece {
            Piece::Literal(text) => url.push_str(text),
            Piece::Variable(Variable::Host | Variable::BestHost) => url.push_str(host),
            Piece::Variable(Variable::Header(name)) if name == "host" => url.push_str(host),
            Piece::Variable(Variable::Scheme | Variable::AccessScheme) => url.push_str("https"),
            Piece::Variable(Variable::RequestUri | Variable::Uri) => url.push_str(PATH),
            Piece::Variable(_) | Piece::Capture(_) => return None,
        }
    }
    let rest = match url.split_once("://") {
        Some((_, rest)) => {
            let end = rest.find(['/', '?', '#', '\0']).unwrap_or(rest.len());
            let (authority, rest) = rest.split_at_checked(end)?;
            let usual_port = authority.strip_suffix(":443").or_else(|| authority.strip_suffix(":80"));
            if !usual_port.unwrap_or(authority).eq_ignore_ascii_case(host) {
                return None;
            }
            rest
        }
        None => &url,
    };
    match path_of(rest) {
        PATH => Some(Target::SamePath),
        "" => Some(Target::Path("/".to_owned())),
        path if path.starts_with('/') && !path.contains(PATH) => Some(Target::Path(path.to_owned())),
        _ => None,
    }
}

fn path_of(target: &str) -> &str {
    target.split(['?', '#']).next().unwrap_or_default()
}

fn takes(location: &PathMatch, path: &str) -> bool {
    match location {
        PathMatch::Exact(own) => own == path,
        PathMatch::Prefix(own) => {
            let own = own.trim_end_matches('/');
            path.strip_prefix(own).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        }
        PathMatch::Regex(pattern) => pattern.is_match(path.as_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::tests::{caught, ingress, ingress_of};

    fn found(input: &str) -> Vec<String> {
        caught(input, &["endless-redirect"])
    }

    #[test]
    fn an_app_root_that_is_the_root_never_ends() {
        let root = |path: &str| ingress("a", &format!("nginx.ingress.kubernetes.io/app-root: {path}"));

        assert_eq!(found(&root("/")), ["needs action: app-root [endless-redirect]"]);
        assert_eq!(found(&root("/?a")), ["needs action: app-root [endless-redirect]"]);
        assert!(found(&root("/start")).is_empty());
    }

    #[test]
    fn a_redirect_to_what_it_redirects_never_ends() {
        for (url, path, is_endless) in [
            ("https://a.example.com", "/", true),
            ("http://A.example.com:80/b?c", "/", true),
            ("https://a.example.com/b", "/b", true),
            ("https://a.example.com/c", "/b", false),
            ("https://a.example.com:8443/", "/", false),
            ("https://b.example.com/", "/", false),
            ("https://$host$request_uri", "/b", true),
            ("https://$host/b$request_uri", "/b", false),
            ("https://b.example.com$request_uri", "/", false),
            ("/b/c", "/b", true),
            ("/", "/b", false),
        ] {
            let annotations = format!("nginx.ingress.kubernetes.io/permanent-redirect: {url}");
            let input = ingress_of("a", &annotations, "a.example.com", &[path]);

            let expected: &[&str] =
                if is_endless { &["needs action: permanent-redirect [endless-redirect]"] } else { &[] };
            assert_eq!(found(&input), expected, "{path} to {url}");
        }
    }

    #[test]
    fn a_redirect_to_a_path_that_another_ingress_serves_ends_there() {
        let away = "nginx.ingress.kubernetes.io/temporal-redirect: https://a.example.com/new";
        let away = ingress_of("a", away, "a.example.com", &["/"]);
        let there = ingress_of("b", "", "a.example.com", &["/new"]);

        assert_eq!(found(&away), ["needs action: temporal-redirect [endless-redirect]"]);
        assert!(found(&format!("{away}---\n{there}")).is_empty());
    }
}

//! Ingresses as large as an API server takes them. What would grow with the square of them does not end here.

use std::fmt::Write as _;

use crate::{read, report};

const MANY: usize = 4_000;

const SERVICE: &str =
    "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {ports: [{port: 80}]}\n---\n";

/// An Ingress of this name, with what stands in its `annotations` and `spec`.
fn ingress(name: &str, annotations: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: networking.k8s.io/v1\nkind: Ingress\nmetadata: {{name: {name}, annotations: {{{annotations}}}}}\nspec:\n  ingressClassName: nginx\n{spec}"
    )
}

fn path(path: &str) -> String {
    format!("{{path: {path}, pathType: Prefix, backend: {{service: {{name: web, port: {{number: 80}}}}}}}}")
}

#[test]
fn hosts_of_one_ingress_with_tls() {
    let mut spec = "  tls:\n  - hosts:\n".to_owned();
    for n in 0..MANY {
        let _ = writeln!(spec, "    - h{n}.example.com\n    - unused{n}.example.com");
    }
    spec += "  rules:\n";
    for n in 0..MANY {
        let _ = writeln!(spec, "  - {{host: h{n}.example.com, http: {{paths: [{}]}}}}", path("/"));
    }
    let (_, translated) = read(&format!("{SERVICE}{}", ingress("a", "", &spec)));

    assert_eq!(translated.snapshot.l7.servers.iter().filter(|(_, server)| server.tls).count(), MANY);
    let unused = translated.problems.iter().filter(|problem| problem.reason == "tls-host-without-rule");
    assert_eq!(unused.count(), MANY);
}

#[test]
fn paths_of_a_canary() {
    let mut paths = "  rules:\n  - host: a.example.com\n    http:\n      paths:\n".to_owned();
    for n in 0..MANY {
        let _ = writeln!(paths, "      - {}", path(&format!("/{n}")));
    }
    let canary = "nginx.ingress.kubernetes.io/canary: 'true', nginx.ingress.kubernetes.io/canary-weight: '5'";
    let other = paths.replace("name: web", "name: other");
    let input = format!("{SERVICE}{}{}", ingress("a", "", &paths), ingress("b", canary, &other));

    let (_, translated) = read(&input);
    assert_eq!(
        translated.snapshot.l7.servers.values().map(|server| server.locations.len()).max(),
        Some(MANY + 1)
    );
    report(&input, false);
}

/// A short text can ask for a large program.
#[test]
fn patterns_of_aliases_have_a_budget() {
    let aliases: Vec<_> = (0..200).map(|n| format!(r"~^(\w{{100}}){{99}}x{n}")).collect();
    let annotation = format!("nginx.ingress.kubernetes.io/server-alias: '{}'", aliases.join(","));
    let spec = format!("  rules:\n  - {{host: a.example.com, http: {{paths: [{}]}}}}\n", path("/"));
    let (_, translated) = read(&format!("{SERVICE}{}", ingress("a", &annotation, &spec)));

    let bytes: usize =
        translated.snapshot.l7.aliases.patterns.iter().map(|(pattern, _)| pattern.size()).sum();
    assert!((32 << 20..=66 << 20).contains(&bytes), "{bytes}");
    let refused = translated.problems.iter().filter(|problem| problem.reason == "bad-alias").count();
    assert_eq!(refused + translated.snapshot.l7.aliases.patterns.len(), aliases.len());
}

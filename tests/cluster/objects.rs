//! Objects as users write them. `NAMESPACE` stands for the test's, which is the name of its class, too.

use std::net::SocketAddr;

/// The class of the test's Ingresses.
pub fn class() -> String {
    "apiVersion: networking.k8s.io/v1\nkind: IngressClass\nmetadata: {name: NAMESPACE}\nspec: {controller: \
     k8s.io/ingress-nginx}\n"
        .to_owned()
}

/// A Service and the slice that a controller would make for it.
pub fn service(name: &str, endpoints: &[SocketAddr]) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  selector: {{app: {name}}}\n  ports:\n  - \
         {{name: http, port: 80, targetPort: 8080, protocol: TCP}}\n---\n{}",
        slice(name, endpoints)
    )
}

/// The slice alone.
pub fn slice(name: &str, endpoints: &[SocketAddr]) -> String {
    let port = endpoints.first().map_or(8080, SocketAddr::port);
    let endpoints: String = endpoints
        .iter()
        .map(|endpoint| format!("- addresses: [\"{}\"]\n  conditions: {{ready: true}}\n", endpoint.ip()))
        .collect();
    let endpoints =
        if endpoints.is_empty() { "endpoints: []\n".into() } else { format!("endpoints:\n{endpoints}") };
    format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: {name}-1\n  labels: \
         {{kubernetes.io/service-name: {name}}}\naddressType: IPv4\nports:\n- {{name: http, port: {port}, protocol: \
         TCP}}\n{endpoints}"
    )
}

/// An Ingress of the test's class for one host and the path `/`, with these annotations of
/// ingress-nginx as `name: value` lines.
pub fn ingress(name: &str, host: &str, service: &str, annotations: &[&str]) -> String {
    ingress_with(name, host, service, annotations, "")
}

/// The same with TLS by a Secret.
pub fn ingress_tls(name: &str, host: &str, service: &str, secret: &str) -> String {
    ingress_with(
        name,
        host,
        service,
        &[],
        &format!("  tls:\n  - {{hosts: [{host}], secretName: {secret}}}\n"),
    )
}

fn ingress_with(name: &str, host: &str, service: &str, annotations: &[&str], tls: &str) -> String {
    let annotations: String =
        annotations.iter().map(|line| format!("    nginx.ingress.kubernetes.io/{line}\n")).collect();
    let annotations =
        if annotations.is_empty() { String::new() } else { format!("  annotations:\n{annotations}") };
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: Ingress\nmetadata:\n  name: {name}\n{annotations}spec:\n  \
         ingressClassName: NAMESPACE\n{tls}  rules:\n  - host: {host}\n    http:\n      paths:\n      - path: /\n        \
         pathType: Prefix\n        backend: {{service: {{name: {service}, port: {{number: 80}}}}}}\n"
    )
}

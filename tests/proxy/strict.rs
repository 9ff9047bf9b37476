//! What `penstock-mode: strict` changes, from objects to answers: each request beside what it is answered in compat
//! mode.

use penstock::{manifests, translate};

use crate::rig::{Backend, Rig};
use crate::tls_client::Tls;

/// `a:secret`.
const PASSWORD: &str = "Authorization: Basic YTpzZWNyZXQ=\r\n";

/// A proxy for these objects, whose Service leads to the backend.
fn rig(mode: &str, believed: &str, backend: &Backend) -> Rig {
    let port = backend.addr.port();
    let objects = format!(
        r#"
apiVersion: v1
kind: ConfigMap
metadata: {{name: ingress-nginx-controller, namespace: ingress-nginx}}
data: {{penstock-mode: {mode}, use-forwarded-headers: "true", proxy-real-ip-cidr: {believed}}}
---
apiVersion: v1
kind: Service
metadata: {{name: web}}
spec: {{ports: [{{port: 80}}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: web, labels: {{kubernetes.io/service-name: web}}}}
addressType: IPv4
ports: [{{port: {port}}}]
endpoints: [{{addresses: [127.0.0.1]}}]
---
apiVersion: v1
kind: Secret
metadata: {{name: users}}
stringData: {{auth: "a:{{SHA}}5en6G6MezRroT3XKqkdPOmY/BfQ="}}
"#
    );
    let ingress = |name: &str, path: &str, annotations: &[(&str, &str)]| {
        let annotations: serde_json::Map<_, _> = annotations
            .iter()
            .map(|(name, text)| (format!("nginx.ingress.kubernetes.io/{name}"), (*text).into()))
            .collect();
        let object = serde_json::json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "Ingress",
            "metadata": {"name": name, "annotations": annotations},
            "spec": {"ingressClassName": "nginx", "rules": [{"host": format!("{name}.example.com"), "http": {"paths": [{
                "path": path, "pathType": "ImplementationSpecific",
                "backend": {"service": {"name": "web", "port": {"number": 80}}},
            }]}}]},
        });
        format!("---\n{object}\n")
    };
    let password = [("auth-type", "basic"), ("auth-secret", "users")];
    let all = [
        objects,
        ingress("patterns", "/a/[0-9]+", &[("use-regex", "true")]),
        ingress("limited", "/", &[("limit-rpm", "1"), ("limit-burst-multiplier", "0")]),
        ingress(
            "moved",
            "/",
            &[&password[..], &[("permanent-redirect", "https://elsewhere.example")]].concat(),
        ),
        ingress("root", "/", &[&password[..], &[("app-root", "/app")]].concat()),
        ingress("cors", "/", &[&password[..], &[("enable-cors", "true")]].concat()),
        ingress("inner", "/", &[("enable-cors", "true"), ("whitelist-source-range", "10.0.0.0/8")]),
        ingress("tls", "/", &[("force-ssl-redirect", "true")]),
    ];
    let options = translate::Options::default();
    let loaded = manifests::load_text("strict.yaml", all.concat().as_bytes(), translate::admission(&options));
    assert_eq!(loaded.problems, []);
    Rig::start((*translate::translate(&loaded.objects, &options).snapshot.l7).clone())
}

#[test]
fn a_strict_proxy_differs_in_what_surprises_people() {
    let backend = Backend::mirror();
    let (compat, strict) = (rig("compat", "10.0.0.0/8", &backend), rig("strict", "10.0.0.0/8", &backend));
    let get = |host: &str, path: &str, lines: &str| {
        format!("GET {path} HTTP/1.1\r\nHost: {host}.example.com\r\n{lines}\r\n")
    };
    let preflight = |host: &str| {
        format!("OPTIONS / HTTP/1.1\r\nHost: {host}.example.com\r\nOrigin: https://a.example\r\n\r\n")
    };
    let cases = [
        ("a whole path", get("patterns", "/a/1", ""), 200, 200),
        ("a path that begins so", get("patterns", "/a/1/b", ""), 200, 404),
        ("letters of the other case", get("patterns", "/A/1", ""), 200, 404),
        ("within the limit", get("limited", "/", ""), 200, 200),
        ("beyond it", get("limited", "/", ""), 503, 429),
        ("a redirect without the password", get("moved", "/", ""), 301, 401),
        ("with it", get("moved", "/", PASSWORD), 301, 301),
        ("to the first page without the password", get("root", "/", ""), 302, 401),
        ("to the first page with it", get("root", "/", PASSWORD), 302, 302),
        ("a preflight, which shows no password", preflight("cors"), 204, 204),
        ("what comes after it without one", get("cors", "/", ""), 401, 401),
        ("a preflight from where nobody may come", preflight("inner"), 204, 403),
        ("https by the word of anybody", get("tls", "/", "X-Forwarded-Proto: https\r\n"), 200, 308),
    ];
    for (case, request, in_compat, in_strict) in cases {
        assert_eq!(
            (compat.ask(&request).status, strict.ask(&request).status),
            (in_compat, in_strict),
            "{case}"
        );
    }

    let of_one_in_front = rig("strict", "127.0.0.0/8", &backend);
    let request = get("tls", "/", "X-Forwarded-Proto: https\r\n");
    assert_eq!(of_one_in_front.ask(&request).status, 200, "https by the word of one that is believed");
}

#[test]
fn a_strict_host_is_not_had_through_the_handshake_of_another() {
    let backend = Backend::mirror();
    let ask = |rig: &Rig, host: &str| {
        let request = format!("GET /a/1 HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        let answer = Tls::connect(rig.https, "patterns.example.com").ask(&request);
        answer.split(' ').nth(1).unwrap_or_default().to_owned()
    };
    let (compat, strict) = (rig("compat", "10.0.0.0/8", &backend), rig("strict", "10.0.0.0/8", &backend));

    let other = "tls.example.com";
    assert_eq!((ask(&compat, other), ask(&strict, other)), ("200".to_owned(), "421".to_owned()));
    assert_eq!(ask(&strict, "Patterns.example.com:443"), "200");
}

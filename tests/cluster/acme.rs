//! HTTP-01 as cert-manager plays it: beside an Ingress that sends everybody to https, a solver's
//! Ingress is made, asked for over http until it answers, and removed; then the certificate comes.

use std::process::Command;
use std::time::{Duration, Instant};

use lb_tests::agent::{DEADLINE, eventually};
use lb_tests::manifests::Authority;

use crate::agent::{Agent, backend};
use crate::objects;
use crate::rig::Rig;

const HOST: &str = "shop.example.com";
const CHALLENGE: &str = "/.well-known/acme-challenge/tOkEn-1_x";

/// As cert-manager makes it: an exact path of a host that is somebody else's, and open to everybody.
fn solver() -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: Ingress\nmetadata:\n  name: cm-acme-http-solver-x7k2p\n  labels:\n    \
         acme.cert-manager.io/http01-solver: \"true\"\n  annotations:\n    \
         nginx.ingress.kubernetes.io/whitelist-source-range: 0.0.0.0/0,::/0\nspec:\n  ingressClassName: NAMESPACE\n  \
         rules:\n  - host: {HOST}\n    http:\n      paths:\n      - path: {CHALLENGE}\n        pathType: \
         ImplementationSpecific\n        backend: {{service: {{name: cm-acme-http-solver-d4tq9, port: {{number: \
         8089}}}}}}\n---\napiVersion: v1\nkind: Service\nmetadata:\n  name: cm-acme-http-solver-d4tq9\nspec:\n  type: \
         NodePort\n  selector: {{acme.cert-manager.io/http01-solver: \"true\"}}\n  ports:\n  - {{name: http, port: 8089, \
         targetPort: 8089, protocol: TCP}}\n"
    )
}

#[test]
fn the_solver_of_a_challenge_is_served_within_a_second_beside_a_redirect() {
    let Some(rig) = Rig::new() else { return };
    let (Some(shop), Some(answerer)) = (backend("shop"), backend("solver")) else { return };
    rig.apply(&[objects::class(), objects::service("shop", &[shop])].join("---\n"));
    // The Secret is what cert-manager is to make.
    rig.apply(&objects::ingress_tls("shop", HOST, "shop", "shop-tls"));
    let agent = Agent::of(&rig);
    agent.until(HOST, "/cart", "http goes to https", |reply| reply.status == 308);

    rig.apply(&format!("{}---\n{}", solver(), objects::slice("cm-acme-http-solver-d4tq9", &[answerer])));
    let made = Instant::now();
    let reply = agent.until(HOST, CHALLENGE, "the challenge is answered", |reply| reply.status == 200);

    assert!(made.elapsed() < Duration::from_secs(1), "after {:?}", made.elapsed());
    assert_eq!(reply.backend(), Some("solver"));
    assert_eq!(agent.get(HOST, "/cart").status, 308);

    rig.delete("Ingress", "cm-acme-http-solver-x7k2p");
    rig.delete("Service", "cm-acme-http-solver-d4tq9");
    let authority = Authority::new("Test CA").expect("an authority");
    rig.apply(&authority.secret("shop-tls", HOST).expect("a Secret"));
    let dir = tempfile::tempdir().expect("a directory");
    let trusted = dir.path().join("ca.pem");
    std::fs::write(&trusted, authority.pem()).expect("writable");
    let port = agent.https.port();
    let asked = || {
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--resolve", &format!("{HOST}:{port}:127.0.0.1"), "--cacert"]).arg(&trusted);
        let output = curl.arg(format!("https://{HOST}:{port}/cart")).output().expect("curl is here");
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let page = eventually(DEADLINE, asked).unwrap_or_else(|| panic!("no certificate: {}", agent.log()));
    assert!(page.starts_with("backend: shop\n"), "{page}");
}

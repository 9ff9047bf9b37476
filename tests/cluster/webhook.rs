//! The API server asks the real agent about Ingresses before it stores them.

use std::net::TcpListener;

use lb_tests::agent::{DEADLINE, eventually};
use serde_json::Value;

use crate::agent::{Agent, Start};
use crate::deploy::{kubectl, said_by_kubectl, try_kubectl};
use crate::objects;
use crate::rig::Rig;

/// Takes away what every other test would be asked by.
pub struct Configuration<'a>(&'a Rig);

impl Drop for Configuration<'_> {
    fn drop(&mut self) {
        let name = &self.0.namespace;
        let _ = try_kubectl(self.0, &["delete", "validatingwebhookconfiguration", name], "");
    }
}

/// Has the server ask at a free port about Ingresses of the test's label, believing nobody yet; and where that is.
pub fn configured(rig: &Rig) -> (Configuration<'_>, String) {
    let place = TcpListener::bind("127.0.0.1:0").expect("a port");
    let addr = place.local_addr().expect("an address").to_string();
    let (name, path) = (&rig.namespace, penstock::webhook::PATH);
    let configuration = format!(
        "apiVersion: admissionregistration.k8s.io/v1\nkind: ValidatingWebhookConfiguration\nmetadata: {{name: {name}}}\n\
         webhooks:\n- name: validate.nginx.ingress.kubernetes.io\n  admissionReviewVersions: [v1]\n  sideEffects: None\n  \
         failurePolicy: Fail\n  objectSelector: {{matchLabels: {{test: {name}}}}}\n  \
         clientConfig: {{url: \"https://{addr}{path}\"}}\n  rules:\n  - {{apiGroups: [networking.k8s.io], \
         apiVersions: [v1], operations: [CREATE, UPDATE], resources: [ingresses]}}\n"
    );
    let configured = Configuration(rig);
    kubectl(rig, &["apply", "--filename", "-"], &configuration);
    (configured, addr)
}

#[test]
fn an_ingress_that_can_never_work_is_refused_with_the_reason_and_others_are_stored() {
    let Some(rig) = Rig::new() else { return };
    // Both agents answer at one port, so the API server asks either.
    let (_configured, addr) = configured(&rig);
    rig.apply(&objects::class());
    rig.apply(&objects::service("web", &[]));
    let (watch, webhook, own) = (
        format!("--watch-namespace={}", rig.namespace),
        format!("--validating-webhook={addr}"),
        format!("--validating-webhook-configuration={}", rig.namespace),
    );
    let (flags, env) = ([&*watch, &*webhook, &*own], [("POD_NAMESPACE", &*rig.namespace)]);
    let start = Start { kubeconfig: &rig.kubeconfig, flags: &flags, env: &env };
    let agents = [Agent::launch(&start), Agent::launch(&start)];
    for agent in &agents {
        agent.wait_for_log("webhook answers");
    }
    let ingress = |name: &str, host: &str, annotation: &str| ingress(&rig, name, host, annotation);
    let apply = |yaml: &str| try_kubectl(&rig, &["apply", "--filename", "-"], yaml);
    // A configuration takes effect a moment after it is stored.
    let snippet =
        ingress("snippet", "b.example.com", "nginx.ingress.kubernetes.io/configuration-snippet: deny all;");
    let refused = eventually(DEADLINE, || apply(&snippet).err())
        .unwrap_or_else(|| panic!("let in: {}", agents[0].log()));

    let rps = apply(&ingress("rps", "b.example.com", "nginx.ingress.kubernetes.io/limit-rps: ten"));
    // None of those that are looked at; it is of this class all the same.
    let elsewhere = ingress(&rig.namespace, "b.example.com", "nginx.ingress.kubernetes.io/limit-rps: ten");
    let own = format!("namespace: {}\n", rig.namespace);
    rig.apply(&elsewhere.replacen(&own, "namespace: default\n", 1));
    kubectl(&rig, &["delete", "ingress", "--namespace=default", &rig.namespace], "");
    let good = apply(&ingress("good", "b.example.com", ""));

    assert!(refused.contains("configuration-snippet: never honoured"), "{refused}");
    let rps = rps.expect_err("refused");
    assert!(rps.contains("limit-rps: \"ten\" is not a whole number"), "{rps}");
    assert!(good.is_ok(), "{good:?}");
    assert!(rig.get("Ingress", "good").is_some() && rig.get("Ingress", "rps").is_none());
    let made =
        agents.iter().filter(|agent| agent.log().contains("the webhook has another certificate")).count();
    assert_eq!(made, 1, "one makes it, both show it");
    let secret = rig.get("Secret", &rig.namespace).expect("the certificate is kept");
    let bundle = kubectl(
        &rig,
        &[
            "get",
            "validatingwebhookconfiguration",
            &rig.namespace,
            "--output",
            "jsonpath={.webhooks[0].clientConfig.caBundle}",
        ],
        "",
    );
    assert_eq!(secret.data["data"]["ca"], Value::from(bundle.trim()));
}

#[test]
fn a_webhook_that_only_warns_lets_everything_in_and_kubectl_shows_why_it_would_not() {
    let Some(rig) = Rig::new() else { return };
    let (_configured, addr) = configured(&rig);
    rig.apply(&objects::class());
    let (watch, webhook, own) = (
        format!("--watch-namespace={}", rig.namespace),
        format!("--validating-webhook={addr}"),
        format!("--validating-webhook-configuration={}", rig.namespace),
    );
    let flags = [&*watch, &*webhook, &*own, "--validating-webhook-warn-only"];
    let env = [("POD_NAMESPACE", &*rig.namespace)];
    let agent = Agent::launch(&Start { kubeconfig: &rig.kubeconfig, flags: &flags, env: &env });
    agent.wait_for_log("webhook answers");

    // Until the configuration takes effect it is let in without a word.
    let yaml = |number: usize| {
        let snippet = "nginx.ingress.kubernetes.io/configuration-snippet: deny all;";
        ingress(&rig, &format!("snippet-{number}"), "b.example.com", snippet)
    };
    let mut number = 0;
    let warned = eventually(DEADLINE, || {
        number += 1;
        let said = said_by_kubectl(&rig, &["apply", "--filename", "-"], &yaml(number));
        said.contains("Warning: ").then_some(said)
    });

    let warned = warned.unwrap_or_else(|| panic!("no warning: {}", agent.log()));
    assert!(warned.contains("Warning: would be refused: "), "{warned}");
    assert!(warned.contains("configuration-snippet: never honoured"), "{warned}");
    assert!(rig.get("Ingress", &format!("snippet-{number}")).is_some(), "it is stored");
}

/// An Ingress that the test's configuration asks about.
pub fn ingress(rig: &Rig, name: &str, host: &str, annotation: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: Ingress\nmetadata:\n  name: {name}\n  namespace: {namespace}\n  \
         labels: {{test: {namespace}}}\n  annotations: {{{annotation}}}\nspec:\n  ingressClassName: {namespace}\n  rules:\n  \
         - host: {host}\n    http: {{paths: [{{path: /, pathType: Prefix, backend: {{service: {{name: web, port: \
         {{number: 80}}}}}}}}]}}\n",
        namespace = rig.namespace
    )
}

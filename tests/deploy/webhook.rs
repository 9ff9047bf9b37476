//! The webhook of the chart: who vouches for it, and what it is asked about.

use lb_tests::helm::{Helm, Object};
use serde_json::{Value, json};

use crate::chart::{arguments, kinds, one, render};

#[test]
fn the_webhook_makes_its_own_certificate_and_may_nothing_else_for_that() {
    let Some(mut helm) = Helm::start() else { return };
    let objects = render(&mut helm, json!({"controller": {"admissionWebhooks": {"enabled": true}}}));

    let configuration = one(&objects, "ValidatingWebhookConfiguration", "ingress-nginx-admission");
    let webhook = &configuration["webhooks"][0];
    let client = &webhook["clientConfig"];
    assert_eq!(client["caBundle"], Value::Null, "the agents fill it in");
    assert_eq!(
        client["service"],
        json!({"name": "ingress-nginx-controller-admission", "namespace": "ingress-nginx", "port": 443,
               "path": penstock::webhook::PATH})
    );
    assert_eq!(webhook["failurePolicy"], "Fail");
    let service = one(&objects, "Service", "ingress-nginx-controller-admission");
    assert_eq!(service["spec"]["ports"][0]["targetPort"], "webhook");
    let pod = &one(&objects, "Deployment", "ingress-nginx-controller")["spec"]["template"]["spec"];
    assert_eq!(
        pod["containers"][0]["ports"][3],
        json!({"name": "webhook", "containerPort": 8443, "protocol": "TCP"})
    );
    let policy = one(&objects, "NetworkPolicy", "ingress-nginx-controller");
    assert_eq!(policy["spec"]["ingress"][1]["ports"], json!([{"port": "webhook", "protocol": "TCP"}]));
    let words = arguments(&objects);
    assert!(words.contains(&"--validating-webhook=:8443".to_owned()), "{words:?}");
    let own = "--validating-webhook-configuration=ingress-nginx-admission".to_owned();
    assert!(words.contains(&own), "{words:?}");
    assert!(!kinds(&objects).contains(&"Secret"));
    let rules =
        |kind: &str| one(&objects, kind, "ingress-nginx")["rules"].as_array().cloned().expect("rules");
    let named = json!(["ingress-nginx-admission"]);
    let of = |rules: &[Value]| {
        let named: Vec<_> = rules.iter().filter(|rule| rule["resourceNames"] == named).cloned().collect();
        serde_json::to_value(named).expect("rules")
    };
    assert_eq!(
        of(&rules("ClusterRole")),
        json!([{"apiGroups": ["admissionregistration.k8s.io"], "resources": ["validatingwebhookconfigurations"],
                "resourceNames": named, "verbs": ["get", "patch"]}])
    );
    assert_eq!(
        of(&rules("Role")),
        json!([{"apiGroups": [""], "resources": ["secrets"], "resourceNames": named, "verbs": ["update"]}])
    );
    let pod = pod["volumes"].to_string();
    assert!(!pod.contains("webhook-cert"), "{pod}");
}

#[test]
fn cert_manager_or_a_secret_may_bring_the_webhooks_certificate() {
    let Some(mut helm) = Helm::start() else { return };
    let managed = render(
        &mut helm,
        json!({"controller": {"admissionWebhooks": {"enabled": true, "certManager": {"enabled": true}}}}),
    );
    let own = json!({"enabled": true, "existingSecret": "mine", "caBundle": "QUJD"});
    let own = render(&mut helm, json!({"controller": {"admissionWebhooks": own}}));
    let off = render(&mut helm, json!({}));

    let name = "ingress-nginx-admission";
    let certificate = one(&managed, "Certificate", name);
    assert_eq!(certificate["spec"]["dnsNames"][0], "ingress-nginx-controller-admission.ingress-nginx.svc");
    assert_eq!(certificate["spec"]["secretName"], "ingress-nginx-admission-certificate");
    let configuration = one(&managed, "ValidatingWebhookConfiguration", name);
    assert_eq!(
        configuration["metadata"]["annotations"],
        json!({"cert-manager.io/inject-ca-from": "ingress-nginx/ingress-nginx-admission"})
    );
    let bundle = |objects: &[Object]| {
        one(objects, "ValidatingWebhookConfiguration", name)["webhooks"][0]["clientConfig"]["caBundle"]
            .clone()
    };
    assert_eq!((bundle(&managed), bundle(&own)), (Value::Null, json!("QUJD")));
    let mounted = |objects: &[Object]| {
        let pod = &one(objects, "Deployment", "ingress-nginx-controller")["spec"]["template"]["spec"];
        pod["volumes"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|volume| volume["name"] == "webhook-cert")
            .cloned()
    };
    let keys = json!([{"key": "tls.crt", "path": "cert"}, {"key": "tls.key", "path": "key"}]);
    assert_eq!(
        mounted(&own),
        Some(json!({"name": "webhook-cert", "secret": {"secretName": "mine", "items": keys}}))
    );
    assert_eq!(mounted(&off), None);
    assert!(!kinds(&managed).contains(&"Secret") && !kinds(&own).contains(&"Secret"));
    assert!(!kinds(&off).contains(&"ValidatingWebhookConfiguration"));
}

#[test]
fn a_webhook_is_asked_about_the_namespaces_that_are_looked_at() {
    let Some(mut helm) = Helm::start() else { return };
    let cases = [
        ("team=a", json!({"matchLabels": {"team": "a"}})),
        ("team==a, example.com/tier = 1", json!({"matchLabels": {"team": "a", "example.com/tier": "1"}})),
        ("team in (a, b)", Value::Null),
        ("", Value::Null),
    ];
    for (selector, expected) in cases {
        let values = json!({"controller": {
            "scope": {"namespaceSelector": selector}, "admissionWebhooks": {"enabled": true},
        }});
        let objects = render(&mut helm, values);

        let configuration = one(&objects, "ValidatingWebhookConfiguration", "ingress-nginx-admission");
        assert_eq!(configuration["webhooks"][0]["namespaceSelector"], expected, "{selector:?}");
    }
}

#[test]
fn a_webhook_that_only_warns_keeps_nobody_from_anything() {
    let Some(mut helm) = Helm::start() else { return };
    let values =
        json!({"controller": {"admissionWebhooks": {"enabled": true, "warnOnly": true, "labels": {"a": 1}}}});
    let objects = render(&mut helm, values);

    let configuration = one(&objects, "ValidatingWebhookConfiguration", "ingress-nginx-admission");
    assert_eq!(configuration["webhooks"][0]["failurePolicy"], "Ignore");
    assert_eq!(configuration["metadata"]["labels"]["a"], "1");
    assert!(arguments(&objects).contains(&"--validating-webhook-warn-only=true".to_owned()));
}

use serde_json::{Value, json};

use super::*;
use crate::manifests;

/// A cluster with an Ingress of the class, one of another class, and their Services.
const CLUSTER: &str = r#"
apiVersion: networking.k8s.io/v1
kind: IngressClass
metadata: {name: nginx}
spec: {controller: k8s.io/ingress-nginx}
---
apiVersion: networking.k8s.io/v1
kind: IngressClass
metadata: {name: other}
spec: {controller: example.com/other}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {ports: [{port: 80}]}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: there, namespace: shop}
spec:
  ingressClassName: nginx
  rules:
  - host: a.example.com
    http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: web, port: {number: 80}}}}]}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: foreign, namespace: shop}
spec:
  ingressClassName: other
  rules:
  - host: c.example.com
    http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: web, port: {number: 80}}}}]}
"#;

fn ingress(edit: impl Fn(&mut Value)) -> Value {
    let mut ingress = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "Ingress",
        "metadata": {"name": "new", "namespace": "shop", "annotations": {}},
        "spec": {"ingressClassName": "nginx", "rules": [{"host": "b.example.com", "http": {"paths": [
            {"path": "/", "pathType": "Prefix", "backend": {"service": {"name": "web", "port": {"number": 80}}}},
        ]}}]},
    });
    edit(&mut ingress);
    ingress
}

fn annotate(ingress: &mut Value, name: &str, value: &str) {
    ingress["metadata"]["annotations"][format!("nginx.ingress.kubernetes.io/{name}")] = json!(value);
}

fn judged_beside(extra: &str, options: &Options, ingress: Value) -> Review {
    let text = format!("{CLUSTER}---\n{extra}");
    let loaded = manifests::load_text("cluster.yaml", text.as_bytes(), translate::ADMISSION);
    assert_eq!(loaded.problems, Vec::new());
    review(&loaded.objects, options, ingress)
}

fn judged(edit: impl Fn(&mut Value)) -> Review {
    judged_beside("", &Options::default(), ingress(edit))
}

#[test]
fn an_ingress_without_a_fault_is_let_in_without_a_word() {
    assert_eq!(judged(|_| {}), Review::default());
}

#[test]
fn the_uid_of_an_api_server_is_let_in() {
    let review = judged(|ingress| {
        ingress["metadata"]["uid"] = json!("2f4a9c1e-77d0-4b1c-9b6e-0A1b2C3d4E5f");
    });

    assert_eq!(review, Review::default());
}

#[test]
fn what_is_refused_for_a_value_is_not_told_what_the_value_would_do() {
    let review = judged(|ingress| annotate(ingress, "limit-rps", "ten"));

    let [refused] = review.refused.as_slice() else { panic!("{review:?}") };
    assert!(refused.contains("this version of the Ingress is not served"), "{refused}");
    assert_eq!(review.warnings, Vec::<String>::new());
}

#[test]
fn one_that_is_being_deleted_is_let_go() {
    let review = judged(|ingress| {
        annotate(ingress, "configuration-snippet", "deny all;");
        ingress["metadata"]["deletionTimestamp"] = json!("2026-11-26T12:00:00Z");
        ingress["metadata"]["finalizers"] = json!([]);
    });

    assert_eq!(review, Review::default());
}

#[test]
fn what_can_never_work_is_refused_with_the_sentence_of_the_report() {
    type Edit = fn(&mut Value);
    let cases: [(&str, Edit, &str); 9] = [
        (
            "a value of class A",
            |i| annotate(i, "limit-rps", "ten"),
            "limit-rps: \"ten\" is not a whole number",
        ),
        (
            "a snippet",
            |i| annotate(i, "configuration-snippet", "deny all;"),
            "configuration-snippet: never honoured",
        ),
        ("a firewall", |i| annotate(i, "enable-modsecurity", "true"), "enable-modsecurity: never honoured"),
        ("a host", |i| i["spec"]["rules"][0]["host"] = json!("10.0.0.1"), "spec.rules[0].host"),
        (
            "a pattern",
            |i| {
                annotate(i, "use-regex", "true");
                i["spec"]["rules"][0]["http"]["paths"][0]["path"] = json!("/a/(?!b).*");
                i["spec"]["rules"][0]["http"]["paths"][0]["pathType"] = json!("ImplementationSpecific");
            },
            "cannot be used",
        ),
        ("no rules", |i| i["spec"] = json!({"ingressClassName": "nginx"}), "an Ingress needs rules"),
        (
            "a path that is taken",
            |i| i["spec"]["rules"][0]["host"] = json!("a.example.com"),
            "host \"a.example.com\" and path \"/\" are defined in Ingress shop/there already",
        ),
        (
            "a UID that is none",
            |i| i["metadata"]["uid"] = json!("; evil {}"),
            "metadata.uid: \"; evil {}\" is no UUID",
        ),
        ("no Ingress", |i| i["spec"]["rules"] = json!("none"), "not an Ingress"),
    ];
    for (case, edit, words) in cases {
        let review = judged(edit);

        assert!(review.refused.iter().any(|reason| reason.contains(words)), "case {case}: {review:?}");
    }
}

#[test]
fn what_is_configuration_by_its_name_or_aims_at_files_of_an_nginx_is_refused() {
    for (name, path) in
        [("foo-snippet", "/"), ("x", "/etc/passwd"), ("x", "/var/run/secrets/a"), ("x", "/content_by_lua")]
    {
        let review = judged(|ingress| {
            annotate(ingress, name, "a b;");
            ingress["spec"]["rules"][0]["http"]["paths"][0]["path"] = json!(path);
        });
        assert_eq!(review.refused.len(), 1, "{name} {path}: {:?}", review.refused);
    }
    let ignoring = Options { snippets: SnippetPolicy::Ignore, ..Options::default() };
    let mut with = ingress(|_| {});
    annotate(&mut with, "foo-snippet", "a b;");
    assert_eq!(judged_beside("", &ignoring, with).refused, Vec::<String>::new());
}

#[test]
fn what_waits_for_another_object_is_told_and_let_in() {
    type Edit = fn(&mut Value);
    let cases: [(&str, Edit, &str); 3] = [
        (
            "a Secret that cert-manager makes later",
            |i| i["spec"]["tls"] = json!([{"hosts": ["b.example.com"], "secretName": "later"}]),
            "later",
        ),
        (
            "a Service of the same roll-out",
            |i| i["spec"]["rules"][0]["http"]["paths"][0]["backend"]["service"]["name"] = json!("soon"),
            "soon",
        ),
        ("a misspelt name", |i| annotate(i, "rewrite-targt", "/"), "rewrite-target"),
    ];
    for (case, edit, words) in cases {
        let Review { refused, warnings } = judged(edit);

        assert_eq!(refused, Vec::<String>::new(), "case {case}");
        assert!(warnings.iter().any(|warning| warning.contains(words)), "case {case}: {warnings:?}");
    }
}

#[test]
fn an_ingress_of_another_class_is_not_judged() {
    let review = judged(|ingress| {
        ingress["spec"]["ingressClassName"] = json!("other");
        annotate(ingress, "configuration-snippet", "deny all;");
    });

    assert_eq!(review, Review::default());
}

#[test]
fn a_path_of_another_class_or_of_its_own_last_version_is_free() {
    let of_other_class = judged(|ingress| ingress["spec"]["rules"][0]["host"] = json!("c.example.com"));
    let updated = judged(|ingress| {
        ingress["metadata"]["name"] = json!("there");
        ingress["spec"]["rules"][0]["host"] = json!("a.example.com");
    });

    assert_eq!((of_other_class, updated), (Review::default(), Review::default()));
}

#[test]
fn a_canary_shares_the_paths_of_the_one_it_belongs_to() {
    // As Go reads booleans.
    for (value, refused) in [("true", 0), ("t", 0), ("1", 0), ("false", 1), ("tRuE", 1)] {
        let review = judged(|ingress| {
            ingress["spec"]["rules"][0]["host"] = json!("a.example.com");
            annotate(ingress, "canary", value);
            annotate(ingress, "canary-weight", "10");
        });

        assert_eq!(review.refused.len(), refused, "{value}: {review:?}");
    }
}

#[test]
fn a_path_is_taken_whatever_its_type() {
    for path_type in ["Exact", "ImplementationSpecific"] {
        let review = judged(|ingress| {
            ingress["spec"]["rules"][0]["host"] = json!("a.example.com");
            ingress["spec"]["rules"][0]["http"]["paths"][0]["pathType"] = json!(path_type);
        });

        assert_eq!(review.refused.len(), 1, "{path_type}: {review:?}");
    }
}

#[test]
fn services_that_annotations_name_are_there() {
    let errors = "apiVersion: v1\nkind: Service\nmetadata: {name: errors, namespace: shop}\nspec: {ports: [{port: 80}]}\n";
    let auth = "apiVersion: v1\nkind: Service\nmetadata: {name: auth, namespace: login}\nspec: {ports: [{port: 80}]}\n";
    let named = ingress(|ingress| {
        annotate(ingress, "default-backend", "errors");
        annotate(ingress, "custom-http-errors", "404");
        annotate(ingress, "auth-url", "http://auth.login.svc.cluster.local/verify");
    });

    let there = judged_beside(&format!("{errors}---\n{auth}"), &Options::default(), named.clone());
    let missing = judged_beside("", &Options::default(), named);

    assert_eq!(there, Review::default());
    assert!(missing.warnings.iter().any(|warning| warning.contains("shop/errors")), "{missing:?}");
}

#[test]
fn of_hundreds_that_share_a_host_few_are_looked_at_closely() {
    let mut others = String::new();
    for number in 0..300 {
        others.push_str(&format!(
            "---\napiVersion: networking.k8s.io/v1\nkind: Ingress\nmetadata: {{name: n{number}, namespace: shop, annotations: \
             {{nginx.ingress.kubernetes.io/use-regex: 'true', nginx.ingress.kubernetes.io/limit-rps: '7'}}}}\nspec: \
             {{ingressClassName: nginx, rules: [{{host: b.example.com, http: {{paths: [{{path: /n{number}, pathType: \
             ImplementationSpecific, backend: {{service: {{name: web, port: {{number: 80}}}}}}}}]}}}}]}}\n"
        ));
    }
    let text = format!("{CLUSTER}{others}");
    let objects = manifests::load_text("cluster.yaml", text.as_bytes(), translate::ADMISSION).objects;
    let new: Arc<Ingress> = Arc::new(
        serde_json::from_value(ingress(|ingress| {
            ingress["spec"]["rules"][0]["http"]["paths"][0]["path"] = json!("/n299");
        }))
        .expect("an Ingress"),
    );
    let name = ObjectName::new("shop", "new");

    let neighbours = neighbours(&objects, &name, &Object::Ingress(Arc::clone(&new)));
    let served = translate::served(&neighbours, &Options::default());
    let others: Vec<_> = served.iter().map(|served| (served.name, served.ingress)).collect();
    let others: Vec<_> = others.into_iter().filter(|(other, _)| **other != name).collect();
    let beside = beside(&objects, &Options::default(), &name, &new, &others);

    assert_eq!(others.len(), 300);
    let names: BTreeSet<&str> = beside.ingresses.keys().map(|name| name.name.as_str()).collect();
    // Itself, who has its path, and who makes the host and its patterns.
    assert!(names.contains("new") && names.contains("n299"), "{names:?}");
    assert_eq!(names.len(), 3, "{names:?}");
}

/// Ingresses of one host, the oldest first: their annotations and paths.
fn sharing_a_host(all: &[(&str, &str)]) -> String {
    let ingresses = all.iter().enumerate().map(|(number, (annotations, path))| {
        format!(
            "apiVersion: networking.k8s.io/v1\nkind: Ingress\nmetadata: {{name: n{number}, namespace: shop, \
             creationTimestamp: '2026-11-0{}T12:00:00Z', annotations: {{{annotations}}}}}\nspec: {{ingressClassName: \
             nginx, rules: [{{host: b.example.com, http: {{paths: [{{path: {path}, pathType: Prefix, backend: {{service: \
             {{name: web, port: {{number: 80}}}}}}}}]}}}}]}}\n",
            number + 1
        )
    });
    ingresses.collect::<Vec<_>>().join("---\n")
}

#[test]
fn a_neighbour_that_makes_patterns_counts_behind_one_that_seems_to() {
    let bad = ingress(|ingress| {
        ingress["spec"]["rules"][0]["http"]["paths"][0]["path"] = json!("/x[");
        ingress["spec"]["rules"][0]["http"]["paths"][0]["pathType"] = json!("ImplementationSpecific");
    });
    let on = "nginx.ingress.kubernetes.io/use-regex: 'true'";
    let rewrites = "nginx.ingress.kubernetes.io/rewrite-target: /new";
    let seeming = [
        "nginx.ingress.kubernetes.io/use-regex: 'false'".to_owned(),
        "nginx.ingress.kubernetes.io/use-regex: 'maybe'".to_owned(),
        "nginx.ingress.kubernetes.io/rewrite-target: /a".to_owned(),
        "nginx.ingress.kubernetes.io/rewrite-target: 'a;'".to_owned(),
        format!("{on}, penstock.dev/mode: strict"),
        format!("{rewrites}, penstock.dev/mode: strict"),
        format!("{on}, nginx.ingress.kubernetes.io/canary: 'true'"),
        format!("{rewrites}, nginx.ingress.kubernetes.io/canary: 'true'"),
    ];
    for first in &seeming {
        // The oldest of all makes the host, and is looked at for that.
        let one = sharing_a_host(&[("", "/"), (first, "/a")]);
        let alone = judged_beside(&one, &Options::default(), bad.clone());
        assert_eq!(alone.refused, Vec::<String>::new(), "{first}");
        for second in [on, rewrites] {
            let both = sharing_a_host(&[("", "/"), (first, "/a"), (second, "/b")]);
            let review = judged_beside(&both, &Options::default(), bad.clone());
            assert!(
                review.refused.iter().any(|reason| reason.contains("/x[")),
                "{first}; {second}: {review:?}"
            );
        }
    }
}

#[test]
fn a_canary_that_is_older_does_not_stand_for_who_makes_the_host() {
    let canary = "nginx.ingress.kubernetes.io/canary: 'true', nginx.ingress.kubernetes.io/use-regex: 'true'";
    let all = sharing_a_host(&[(canary, "/a"), ("", "/a")]);
    let objects = manifests::load_text("a.yaml", all.as_bytes(), translate::ADMISSION).objects;
    let new: Arc<Ingress> = Arc::new(serde_json::from_value(ingress(|_| {})).expect("an Ingress"));
    let served = objects.ingresses.iter().map(|(name, sourced)| (name, &*sourced.object)).collect::<Vec<_>>();

    let beside = beside(&objects, &Options::default(), &ObjectName::new("shop", "new"), &new, &served);

    assert_eq!(beside.ingresses.len(), 3);
}

#[test]
fn what_the_config_map_demands_is_kept() {
    let config = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: ingress-nginx-controller, namespace: ingress-nginx}\n\
                  data: {annotation-value-word-blocklist: lua_package}\n";
    let forbidden = ingress(|ingress| annotate(ingress, "auth-realm", "lua_package"));

    let review = judged_beside(config, &Options::default(), forbidden);

    assert!(
        review.refused.iter().any(|reason| reason.contains("annotation-value-word-blocklist")),
        "{review:?}"
    );
}

#[test]
fn a_catch_all_is_refused_where_none_may_be() {
    let options = Options { disable_catch_all: true, ..Options::default() };
    let catch_all = ingress(|ingress| {
        ingress["spec"]["defaultBackend"] = json!({"service": {"name": "web", "port": {"number": 80}}});
    });

    let review = judged_beside("", &options, catch_all.clone());

    assert!(review.refused.iter().any(|reason| reason.contains("--disable-catch-all")), "{review:?}");
    assert_eq!(judged_beside("", &Options::default(), catch_all).refused, Vec::<String>::new());
}

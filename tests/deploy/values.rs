//! The values: what is documented, what the schema knows and what the chart reads are the same.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::helm::{self, Helm, Release};

fn defaults() -> Value {
    let text = std::fs::read_to_string(helm::chart().join("values.yaml")).expect("values.yaml");
    serde_saphyr::from_str(&text).expect("YAML")
}

fn schema() -> Value {
    let text = std::fs::read_to_string(helm::chart().join("values.schema.json")).expect("values.schema.json");
    serde_json::from_str(&text).expect("JSON")
}

#[test]
fn the_schema_knows_the_values_that_are_documented_and_no_others() {
    let mut wrong = Vec::new();
    compare("", &defaults(), &schema(), &mut wrong);

    assert!(wrong.is_empty(), "{wrong:#?}");
}

fn compare(path: &str, value: &Value, schema: &Value, wrong: &mut Vec<String>) {
    let (Some(values), Some(known)) = (value.as_object(), schema["properties"].as_object()) else { return };
    for name in values.keys().chain(known.keys()).collect::<BTreeSet<_>>() {
        match (values.get(name), known.get(name)) {
            (Some(value), Some(schema)) => compare(&format!("{path}.{name}"), value, schema, wrong),
            (Some(_), None) => wrong.push(format!("{path}.{name} is not in the schema")),
            (None, _) => wrong.push(format!("{path}.{name} is not in values.yaml")),
        }
    }
}

#[test]
fn the_notes_know_which_values_have_no_effect() {
    let helpers = std::fs::read_to_string(helm::chart().join("templates/_helpers.tpl")).expect("the helpers");
    let list = |name: &str| -> BTreeSet<String> {
        let start = format!("${name} := list ");
        let line = helpers.lines().find_map(|line| line.split_once(&start)).expect("the list").1;
        line.trim_end_matches(" -}}").split(' ').map(|word| word.trim_matches('"').to_owned()).collect()
    };
    let keys = |value: &Value| -> BTreeSet<String> {
        value.as_object().into_iter().flat_map(|o| o.keys().cloned()).collect()
    };
    // Helm itself puts `global` there.
    let mut top = keys(&defaults());
    top.insert("global".to_owned());

    assert_eq!(list("known"), keys(&defaults()["controller"]));
    assert_eq!(list("top"), top);
    let below: Vec<_> = helpers.lines().filter_map(|line| line.split_once("set $below ")).collect();
    assert!(!below.is_empty());
    for (_, line) in below {
        let words: Vec<&str> = line.split('"').collect();
        let [_, path, _, known, ..] = words[..] else { panic!("{line}") };
        let pointer = format!("/controller/{}", path.replace('.', "/"));
        let defaults = defaults();
        let values = defaults.pointer(&pointer).unwrap_or_else(|| panic!("no {path}"));
        assert_eq!(known.split(' ').map(str::to_owned).collect::<BTreeSet<_>>(), keys(values), "{path}");
    }
}

#[test]
fn the_notes_list_what_was_given_and_has_no_effect() {
    let Some(mut helm) = Helm::start() else { return };
    let cases = [
        (
            json!({"controller": {"replicaCuont": 3}, "defaultBackend": {"enabled": true}}),
            "controller.replicaCuont, defaultBackend",
        ),
        (
            json!({"controller": {"service": {"internal": {"enabled": true}}, "metrics": {"foo": 1}}}),
            "controller.metrics.foo, controller.service.internal",
        ),
        (
            json!({"controller": {"metrics": {"serviceMonitor": {"enabled": true}}}}),
            "controller.metrics.serviceMonitor (without controller.metrics.enabled)",
        ),
        (
            json!({"controller": {"announce": {"interfaces": ["eth0"]}, "addressPools": {"a": {"addresses": ["203.0.113.1"]}}}}),
            "controller.announce (without a kernel part), controller.addressPools (without a kernel part addresses are given \
             away that nobody serves)",
        ),
    ];
    for (values, expected) in cases {
        let release = Release { name: "ingress-nginx", namespace: "x", values };

        let notes = helm.notes(&release).unwrap_or_else(|error| panic!("{error}"));

        let listed = notes.lines().find_map(|line| line.split_once("have no effect here: "));
        assert_eq!(listed.map(|(_, listed)| listed), Some(expected), "{notes}");
    }
}

#[test]
fn values_that_cannot_work_are_refused_by_name() {
    let Some(mut helm) = Helm::start() else { return };
    let cases = [
        (json!({"controller": {"kind": "Both"}}), "kind"),
        (json!({"controller": {"replicaCount": "two"}}), "replicaCount"),
        (json!({"controller": {"datapath": "fast"}}), "datapath"),
        (json!({"controller": {"service": {"externalTrafficPolicy": "local"}}}), "externalTrafficPolicy"),
        (json!({"controller": {"containerPort": {"http": 70000}}}), "http"),
        (json!({"controller": {"networkPolicy": {"enable": true}}}), "networkPolicy"),
        (json!({"controller": {"image": {"digest": "latest"}}}), "digest"),
        (json!({"tcp": {"http": "a/b:1"}}), "'http'"),
        (json!({"tcp": {"80": "b:1"}}), "'/tcp/80'"),
    ];
    for (values, name) in cases {
        let case = values.to_string();
        let refused = helm.template(&Release { name: "ingress-nginx", namespace: "x", values });

        let reason = refused.err().unwrap_or_else(|| panic!("taken: {case}"));
        assert!(reason.contains(name), "case {case}: {reason}");
    }
}

#[test]
fn values_of_ingress_nginx_without_a_meaning_here_are_taken() {
    let Some(mut helm) = Helm::start() else { return };
    let values = json!({"defaultBackend": {"enabled": false}, "controller": {
        "allowSnippetAnnotations": false, "maxmindLicenseKey": "", "opentelemetry": {"enabled": false},
        "service": {"internal": {"enabled": false}}, "admissionWebhooks": {"enabled": false},
    }});

    let taken = helm.template(&Release { name: "ingress-nginx", namespace: "x", values });

    assert!(taken.is_ok(), "{taken:?}");
}

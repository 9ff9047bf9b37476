//! The values: what is documented, what the schema knows and what the chart reads are the same.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use lb_tests::helm::{self, Helm, Release};

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

/// Maps of the values whose keys are told apart, by path, with these keys; those that the schema closes are left out.
fn maps(path: &str, value: &Value, schema: &Value, found: &mut BTreeMap<String, BTreeSet<String>>) {
    let (Some(values), Some(known)) = (value.as_object(), schema["properties"].as_object()) else { return };
    if schema["additionalProperties"] != false {
        found.insert(path.to_owned(), values.keys().cloned().collect());
    }
    for (name, value) in values {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        maps(&path, value, &known[name], found);
    }
}

/// Lines of the template that defines `name`.
fn lines_of(name: &str) -> Vec<String> {
    let file = helm::chart().join("templates/_ignored.tpl");
    let text = std::fs::read_to_string(file).expect("the template");
    let start = format!("{{{{- define \"penstock.{name}\" -}}}}");
    let (_, text) = text.split_once(&start).expect(name);
    text.lines().skip(1).take_while(|line| *line != "{{- end -}}").map(str::to_owned).collect()
}

#[test]
fn the_notes_know_every_map_of_the_values() {
    let mut expected = BTreeMap::new();
    maps("", &defaults(), &schema(), &mut expected);

    let lines = lines_of("known");
    let known = lines.iter().filter_map(|line| {
        let words: Vec<&str> = line.split_once("set $known ")?.1.split('"').collect();
        let [_, path, _, keys, ..] = words[..] else { panic!("{line}") };
        Some((path.to_owned(), keys.split(' ').map(str::to_owned).collect::<BTreeSet<_>>()))
    });

    assert_eq!(known.collect::<BTreeMap<_, _>>(), expected);
}

#[test]
fn what_is_told_instead_of_a_value_is_told_of_none_that_there_is() {
    let lines = lines_of("instead");

    assert!(!lines.is_empty());
    for line in lines {
        let (path, sentence) = line.split_once(": ").unwrap_or_else(|| panic!("{line}"));
        let pointer = format!("/{}", path.replace('.', "/"));
        assert_eq!(defaults().pointer(&pointer), None, "{path}");
        assert!(sentence.len() > 10, "{line}");
    }
}

/// What the notes list.
fn listed(helm: &mut Helm, values: Value) -> Vec<String> {
    let release = Release { name: "ingress-nginx", namespace: "x", values };
    let notes = helm.notes(&release).unwrap_or_else(|error| panic!("{error}"));
    let Some((_, listed)) = notes.split_once("have no effect here:\n") else { return Vec::new() };
    listed.lines().map_while(|line| line.strip_prefix("  ")).map(str::to_owned).collect()
}

#[test]
fn the_notes_list_what_was_given_and_has_no_effect() {
    let Some(mut helm) = Helm::start() else { return };
    let cases = [
        (
            json!({"controller": {"replicaCuont": 3, "metrics": {"foo": 1}}, "defaultBackend": {"prot": 1}}),
            vec!["controller.metrics.foo", "controller.replicaCuont", "defaultBackend.prot"],
        ),
        (
            json!({"dhParam": "abc", "rbac": {"scope": true}}),
            vec![
                "dhParam: ciphers with DHE are not offered, so they need no parameters",
                "rbac.scope: with controller.scope.enabled rights are given in that namespace alone",
            ],
        ),
        (
            json!({"controller": {"lifecycle": {"preStop": {"exec": {"command": ["/wait-shutdown"]}}}}}),
            vec![
                "controller.lifecycle.preStop: the program /wait-shutdown is ingress-nginx's; SIGTERM waits as \
                 shutdownGracePeriod says",
            ],
        ),
        (
            json!({"controller": {"metrics": {"serviceMonitor": {"enabled": true}}}}),
            vec!["controller.metrics.serviceMonitor: without controller.metrics.enabled"],
        ),
        (
            json!({"controller": {"announce": {"interfaces": ["eth0"]}, "addressPools": {"a": {"addresses": ["203.0.113.1"]}}}}),
            vec![
                "controller.addressPools: there is no kernel part, so addresses are given away that nobody serves",
                "controller.announce.interfaces: there is no kernel part, see controller.datapath",
            ],
        ),
        (
            json!({"controller": {"kind": "DaemonSet", "replicaCount": 3, "minAvailable": 2, "autoscaling": {"enabled": true}}}),
            vec![
                "controller.autoscaling: a DaemonSet has one pod on each node",
                "controller.minAvailable: evictions leave the pods of a DaemonSet alone; how many are replaced at once, \
                 controller.updateStrategy says",
                "controller.replicaCount: a DaemonSet has one pod on each node",
            ],
        ),
        (
            json!({"controller": {"kind": "DaemonSet", "maxUnavailable": 1, "unhealthyPodEvictionPolicy": "AlwaysAllow"}}),
            vec![
                "controller.maxUnavailable: evictions leave the pods of a DaemonSet alone; how many are replaced at once, \
                 controller.updateStrategy says",
                "controller.unhealthyPodEvictionPolicy: evictions leave the pods of a DaemonSet alone; how many are replaced at \
                 once, controller.updateStrategy says",
            ],
        ),
        (json!({"controller": {"kind": "DaemonSet"}}), vec![]),
        (
            json!({"defaultBackend": {"enabled": true}, "controller": {"defaultBackendService": "a/b"}}),
            vec!["defaultBackend: controller.defaultBackendService names another Service"],
        ),
    ];
    for (values, expected) in cases {
        let case = values.to_string();

        assert_eq!(listed(&mut helm, values), expected, "{case}");
    }
}

#[test]
fn who_has_the_kernel_part_is_told_how_nodes_get_tunnel_addresses() {
    let Some(mut helm) = Helm::start() else { return };
    for (kind, expected) in [("DaemonSet", true), ("Deployment", false)] {
        let values = json!({"controller": {"kind": kind}});
        let release = Release { name: "ingress-nginx", namespace: "x", values };
        let notes = helm.notes(&release).unwrap_or_else(|error| panic!("{error}"));

        assert_eq!(notes.contains("penstock.dev/tunnel-address="), expected, "{kind}: {notes}");
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
        (
            json!({"controller": {"image": {"image": "ingress-nginx/controller"}}}),
            "names the image of ingress-nginx",
        ),
        (
            json!({"controller": {"image": {"repository": "r.io/ingress-nginx/controller"}}}),
            "the image of ingress-nginx",
        ),
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

/// Values of ingress-nginx's chart that are not asked for anything, as a copy of its values file has them.
#[test]
fn defaults_of_ingress_nginx_are_taken_and_nothing_is_said_of_those_that_ask_for_nothing() {
    let Some(mut helm) = Helm::start() else { return };
    let values = json!({"defaultBackend": {"enabled": false, "existingPsp": ""}, "dhParam": "", "podSecurityPolicy": {"enabled": false},
        "rbac": {"create": true, "scope": false}, "controller": {
        "allowSnippetAnnotations": false, "maxmindLicenseKey": "", "opentelemetry": {"enabled": false, "image": "x"},
        "existingPsp": "", "hostname": {}, "tcp": {"configMapNamespace": "", "annotations": {}}, "keda": {"enabled": false, "minReplicas": 1},
        "customTemplate": {"configMapName": "", "configMapKey": ""}, "extraModules": [], "configMapNamespace": "",
        "service": {"internal": {"enabled": false}, "external": {"enabled": true}}, "image": {"chroot": false},
        "admissionWebhooks": {"enabled": false, "createSecretJob": {"resources": {}}, "patch": {"enabled": false}, "extraEnvs": []},
    }});
    let taken = helm.template(&Release { name: "ingress-nginx", namespace: "x", values: values.clone() });

    assert!(taken.is_ok(), "{taken:?}");
    assert_eq!(listed(&mut helm, values), Vec::<String>::new());
}

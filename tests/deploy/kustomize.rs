//! The base for kustomize: what the chart makes of a few values, without a release. `PENSTOCK_UPDATE=1 cargo
//! test -p lb-tests --test deploy` writes it anew.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};

use lb_tests::helm::{self, Helm, Object, Release};

const HEAD: &str = "# Made from the chart; see CONTRIBUTING.md.\n";

fn folder(name: &str) -> PathBuf {
    helm::top().join("deploy/kustomize").join(name)
}

fn render(helm: &mut Helm, controller: Value) -> Vec<Object> {
    let values = json!({"controller": controller});
    let release = Release { name: "ingress-nginx", namespace: "ingress-nginx", values };
    helm.template(&release).expect("rendered")
}

/// The object's text without what speaks of a chart.
fn plain(object: &Object) -> String {
    let of_helm = ["# Source: ", "helm.sh/chart: ", "app.kubernetes.io/managed-by: "];
    let lines =
        object.text.lines().filter(|line| !of_helm.iter().any(|start| line.trim_start().starts_with(start)));
    lines.map(|line| format!("{line}\n")).collect()
}

fn file<'a>(objects: impl Iterator<Item = &'a Object>) -> String {
    let documents: Vec<_> = objects.map(plain).collect();
    format!("{HEAD}{}", documents.join("---\n"))
}

#[test]
fn the_base_is_what_the_chart_makes() {
    let Some(mut helm) = Helm::start() else { return };
    let metrics = json!({"enabled": true});
    let deployment = render(&mut helm, json!({"replicaCount": 2, "metrics": metrics}));
    let key = json!({"existingSecret": "ingress-nginx-hash-key"});
    let daemon_set = render(&mut helm, json!({"kind": "DaemonSet", "metrics": metrics, "hashKey": key}));
    let texts: BTreeSet<_> = daemon_set.iter().map(plain).collect();
    let (shared, of_deployment): (Vec<_>, Vec<_>) =
        deployment.iter().partition(|object| texts.contains(&plain(object)));
    let ids: BTreeSet<_> = shared.iter().map(|object| object.id()).collect();
    let of_daemon_set = daemon_set.iter().filter(|object| !ids.contains(&object.id()));

    let files = [
        ("base/objects.yaml", file(shared.into_iter())),
        ("deployment/objects.yaml", file(of_deployment.into_iter())),
        ("daemonset/objects.yaml", file(of_daemon_set)),
    ];

    for (name, actual) in files {
        if std::env::var_os("PENSTOCK_UPDATE").is_some() {
            fs::write(folder(name), &actual).expect("writable");
        }
        let written = fs::read_to_string(folder(name)).unwrap_or_default();
        assert!(
            written == actual,
            "deploy/kustomize/{name} is stale; PENSTOCK_UPDATE=1 cargo test -p lb-tests --test deploy writes it"
        );
    }
}

#[test]
fn kustomize_builds_either_shape() {
    let there = || match Command::new("kubectl").args(["kustomize", "--help"]).output() {
        // Before 1.21 its kustomize was one that takes no folder as a resource, nor this flag.
        Ok(output) if String::from_utf8_lossy(&output.stdout).contains("--load-restrictor") => Ok(()),
        Ok(output) if output.status.success() => Err("kubectl is older than 1.21".to_owned()),
        _ => Err("there is no kubectl with kustomize".to_owned()),
    };
    if !lb_tests::tier::require("deploy", there) {
        return;
    }
    for (shape, kind, others) in [("deployment", "Deployment", 2), ("daemonset", "DaemonSet", 0)] {
        let built = Command::new("kubectl").arg("kustomize").arg(folder(shape)).output().expect("kubectl");
        assert!(built.status.success(), "{shape}: {}", String::from_utf8_lossy(&built.stderr));

        let text = String::from_utf8_lossy(&built.stdout).into_owned();
        let objects: Vec<Value> =
            text.split("\n---\n").map(|text| serde_saphyr::from_str(text).expect("YAML")).collect();
        let written = ["base", shape].into_iter().map(|name| {
            let text = fs::read_to_string(folder(name).join("objects.yaml")).expect("objects");
            text.split("---\n").count()
        });
        // And the namespace.
        assert_eq!(objects.len(), written.sum::<usize>() + 1, "{shape}");
        let workload = objects.iter().find(|object| object["kind"] == kind);
        assert_eq!(
            workload.map(|object| &object["metadata"]["name"]),
            Some(&json!("ingress-nginx-controller"))
        );
        let only_here = ["NetworkPolicy", "PodDisruptionBudget"];
        let found =
            objects.iter().filter(|object| only_here.iter().any(|kind| object["kind"] == *kind)).count();
        assert_eq!(found, others, "{shape}");
    }
}

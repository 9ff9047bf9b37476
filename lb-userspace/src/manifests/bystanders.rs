//! Objects beside those that are read, as far as a report looks at them: what workloads are started with, what
//! alerts and dashboards ask for, and what webhooks and autoscalers point at.

use std::collections::BTreeMap;

use serde_json::Value;

use super::document;
use crate::model::ObjectId;
use crate::objects::{Bystander, Container};

/// Kinds that are looked at; others do not even have their text parsed a second time.
const KINDS: [&str; 7] = [
    "Deployment",
    "DaemonSet",
    "StatefulSet",
    "PrometheusRule",
    "GrafanaDashboard",
    "ValidatingWebhookConfiguration",
    "HorizontalPodAutoscaler",
];

/// Those of a file. What cannot be read says nothing here: it is told where objects are read.
pub(super) fn of_file(file: &str, bytes: &[u8]) -> Vec<Bystander> {
    let Ok(text) = std::str::from_utf8(bytes) else { return Vec::new() };
    if !KINDS.iter().any(|kind| text.contains(kind)) {
        return Vec::new();
    }
    let mut found = Vec::new();
    document::each_value(file, text, &mut |origin, value| found.extend(bystander(origin, &value)));
    found
}

fn bystander(origin: &str, value: &Value) -> Option<Bystander> {
    let kind = KINDS.into_iter().find(|kind| value.get("kind").and_then(Value::as_str) == Some(kind))?;
    let metadata = |field: &str| text(value.pointer(&format!("/metadata/{field}"))).to_owned();
    let id = ObjectId {
        kind: kind.to_owned(),
        namespace: metadata("namespace"),
        name: metadata("name"),
        origin: origin.to_owned(),
    };
    let (mut containers, mut queries, mut points_at) = (Vec::new(), Vec::new(), Vec::new());
    match kind {
        "PrometheusRule" => rules(value, &mut queries),
        "GrafanaDashboard" => {
            queries.extend(
                value.pointer("/spec/json").map(|json| ("spec.json".to_owned(), text(Some(json)).to_owned())),
            );
        }
        "ValidatingWebhookConfiguration" => webhooks(value, &mut points_at),
        "HorizontalPodAutoscaler" => {
            let target = |field: &str| text(value.pointer(&format!("/spec/scaleTargetRef/{field}")));
            points_at
                .push(("spec.scaleTargetRef".to_owned(), format!("{}/{}", target("kind"), target("name"))));
        }
        _ => {
            containers = list(value.pointer("/spec/template/spec/containers"))
                .map(|(i, of)| container(i, of, &id))
                .collect()
        }
    }
    Some(Bystander { id, containers, queries, points_at })
}

fn rules(value: &Value, queries: &mut Vec<(String, String)>) {
    for (group, rules) in list(value.pointer("/spec/groups")) {
        for (rule, value) in list(rules.get("rules")) {
            let field = format!("spec.groups[{group}].rules[{rule}].expr");
            queries.push((field, text(value.get("expr")).to_owned()));
        }
    }
}

/// Namespace, name and path of their Services.
fn webhooks(value: &Value, points_at: &mut Vec<(String, String)>) {
    for (index, webhook) in list(value.get("webhooks")) {
        if let Some(service) = webhook.pointer("/clientConfig/service") {
            let of = |field: &str| text(service.get(field));
            let to = format!("{}/{}{}", of("namespace"), of("name"), of("path"));
            points_at.push((format!("webhooks[{index}].clientConfig.service"), to));
        }
    }
}

fn container(index: usize, value: &Value, of: &ObjectId) -> Container {
    let place = format!("spec.template.spec.containers[{index}]");
    let variables = list(value.get("env")).map(|(_, variable)| {
        let reference = text(variable.pointer("/valueFrom/fieldRef/fieldPath"));
        let known = if reference == "metadata.namespace" {
            of.namespace.as_str()
        } else {
            text(variable.get("value"))
        };
        (text(variable.get("name")), known)
    });
    let variables: BTreeMap<_, _> = variables.filter(|(_, known)| !known.is_empty()).collect();
    let arguments = ["command", "args"].into_iter().flat_map(|list_name| {
        let place = &place;
        let said = list(value.get(list_name));
        said.map(move |(i, argument)| (format!("{place}.{list_name}[{i}]"), text(Some(argument)).to_owned()))
    });
    let arguments = arguments.map(|(field, mut argument)| {
        for (name, known) in &variables {
            argument = argument.replace(&format!("$({name})"), known);
        }
        (field, argument)
    });
    Container { image: text(value.get("image")).to_owned(), arguments: arguments.collect() }
}

fn list(value: Option<&Value>) -> impl Iterator<Item = (usize, &Value)> {
    value.and_then(Value::as_array).into_iter().flatten().enumerate()
}

fn text(value: Option<&Value>) -> &str {
    value.and_then(Value::as_str).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_told_with_their_place_and_their_variables() {
        let input = "kind: List\napiVersion: v1\nitems:\n- kind: Deployment\n  apiVersion: apps/v1\n  \
            metadata: {name: c, namespace: edge}\n  spec:\n    template:\n      spec:\n        containers:\n        \
            - image: controller:v1\n          args: [/c, '--configmap=$(NS)/c', '--v=$(V)', '--x=$(NO)']\n          \
              env:\n          - {name: NS, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}}\n          \
            - {name: V, value: '2'}\n";

        let found = of_file("a.yaml", input.as_bytes());

        let arguments = ["/c", "--configmap=edge/c", "--v=2", "--x=$(NO)"];
        let arguments = arguments.into_iter().enumerate();
        let arguments = arguments
            .map(|(i, text)| (format!("spec.template.spec.containers[0].args[{i}]"), text.to_owned()))
            .collect();
        let id = ObjectId {
            kind: "Deployment".to_owned(),
            namespace: "edge".to_owned(),
            name: "c".to_owned(),
            origin: "a.yaml#1.items[0]".to_owned(),
        };
        let containers = vec![Container { image: "controller:v1".to_owned(), arguments }];
        assert_eq!(found, [Bystander { id, containers, queries: Vec::new(), points_at: Vec::new() }]);
    }

    #[test]
    fn expressions_of_rules_are_told() {
        let input = "apiVersion: monitoring.coreos.com/v1\nkind: PrometheusRule\nmetadata: {name: r}\n\
            spec: {groups: [{rules: [{alert: A, expr: up == 0}]}]}\n---\nkind: Deployment\nspec: 7\n";

        let found = of_file("a.yaml", input.as_bytes());

        let queries: Vec<_> = found.into_iter().map(|bystander| bystander.queries).collect();
        assert_eq!(
            queries,
            [vec![("spec.groups[0].rules[0].expr".to_owned(), "up == 0".to_owned())], vec![]]
        );
    }
}

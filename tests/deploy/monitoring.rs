//! Alerts and dashboard: every query is one, and asks for metrics that exist.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use lb_common::Verdict;
use serde_json::Value;

use lb_tests::helm;

/// Where a query stands and what it is.
fn queries() -> Vec<(String, String)> {
    let text = fs::read_to_string(helm::chart().join("rules/penstock.yaml")).expect("the rules");
    let rules: Value = serde_saphyr::from_str(&text).expect("YAML");
    let text = fs::read_to_string(helm::chart().join("dashboards/penstock.json")).expect("the dashboard");
    let dashboard: Value = serde_json::from_str(&text).expect("JSON");
    let mut found = Vec::new();
    collect(&rules, "", &mut found);
    collect(&dashboard, "", &mut found);
    assert!(found.len() > 30, "{found:?}");
    found
}

fn collect(value: &Value, name: &str, found: &mut Vec<(String, String)>) {
    let title = value["alert"].as_str().or(value["title"].as_str()).unwrap_or(name);
    match value {
        Value::Object(fields) => fields.iter().for_each(|(key, value)| match (key.as_str(), value) {
            ("expr", Value::String(expression)) => found.push((title.to_owned(), expression.clone())),
            ("query", Value::Object(query)) => {
                // label_values(QUERY, label)
                let text = query["query"].as_str().unwrap_or_default();
                let inner = text.strip_prefix("label_values(").and_then(|rest| rest.rsplit_once(','));
                found.push((text.to_owned(), inner.expect("label_values").0.to_owned()));
            }
            _ => collect(value, title, found),
        }),
        Value::Array(values) => values.iter().for_each(|value| collect(value, title, found)),
        _ => {}
    }
}

/// Names of metrics in a query.
fn metrics(query: &str) -> impl Iterator<Item = &str> {
    let words = query.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("penstock_") || word.starts_with("nginx_ingress_controller_"))
}

/// All text of the agent's sources.
fn sources(dir: &Path, out: &mut String) {
    for entry in fs::read_dir(dir).expect("the sources") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, out);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            out.push_str(&fs::read_to_string(&path).expect("a source"));
        }
    }
}

#[test]
fn queries_ask_for_metrics_that_exist() {
    let mut text = String::new();
    sources(&helm::top().join("lb-userspace/src"), &mut text);
    let exists = |name: &str| {
        let base =
            ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix)).unwrap_or(name);
        [name, base].iter().any(|name| text.contains(&format!("\"{name}\"")))
    };

    let missing: BTreeSet<_> = queries()
        .iter()
        .flat_map(|(place, query)| metrics(query).map(|name| format!("{place}: {name}")).collect::<Vec<_>>())
        .filter(|line| !line.rsplit(' ').next().is_some_and(exists))
        .collect();

    assert!(missing.is_empty(), "{missing:#?}");
}

#[test]
fn metrics_that_the_report_knows_exist() {
    let mut text = String::new();
    sources(&helm::top().join("lb-userspace/src"), &mut text);

    for name in penstock::check::METRICS {
        assert!(text.contains(&format!("\"nginx_ingress_controller_{name}\"")), "{name}");
    }
}

#[test]
fn queries_name_verdicts_that_exist() {
    let names: BTreeSet<_> = Verdict::ALL.iter().map(|verdict| verdict.as_str()).collect();
    for (place, query) in queries() {
        let matchers = query.split([',', '{', '}']).filter_map(|part| part.trim().strip_prefix("verdict"));
        for pattern in matchers.filter_map(|rest| rest.split('"').nth(1)) {
            for word in pattern.split('|') {
                let known = match word.strip_suffix(".*") {
                    Some(start) => names.iter().any(|name| name.starts_with(start)),
                    None => names.contains(word),
                };
                assert!(known, "{place}: no verdict is called {word}");
            }
        }
    }
}

#[test]
fn queries_parse() {
    let program = "import sys, promql_parser\nfor line in sys.stdin: promql_parser.parse(line.rstrip('\\n'))";
    let packages = helm::packages();
    let python = || {
        let mut command = Command::new("python3");
        command.env("PYTHONPATH", packages.as_deref().unwrap_or(Path::new(""))).args(["-c", program]);
        command
    };
    let there =
        || match python().stdin(Stdio::null()).output() {
            Ok(output) if output.status.success() => Ok(()),
            _ => Err("there is no promql-parser below target/helm; `cargo xtask setup test` installs it"
                .to_owned()),
        };
    if !lb_tests::tier::require("deploy", there) {
        return;
    }
    let mut child = python().stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("python3");
    let lines: String =
        queries().iter().map(|(_, query)| format!("{}\n", query.replace('\n', " "))).collect();
    child.stdin.take().expect("a pipe").write_all(lines.as_bytes()).expect("python3 reads");

    let output = child.wait_with_output().expect("python3");

    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

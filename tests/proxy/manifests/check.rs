//! `penstock check` as people and pipelines start it: what it reads, what it prints, how it ends.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use lb_tests::agent::binary;
use lb_tests::manifests;

/// How it ended, and what it printed.
fn check(args: &[&str], stdin: &str) -> (i32, String) {
    let mut command = Command::new(binary().expect("built"));
    command.arg("check").args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("start penstock");
    let mut input = child.stdin.take().expect("a pipe");
    // One that reads no standard input may have ended.
    let _ = input.write_all(stdin.as_bytes());
    drop(input);
    let output = child.wait_with_output().expect("an end");
    (output.status.code().expect("a code"), String::from_utf8(output.stdout).expect("text"))
}

/// A good Ingress with its Service, and one with these annotations.
fn folder(annotation: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    let slice = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: web-1\n  labels:\n    \
                 kubernetes.io/service-name: web\naddressType: IPv4\nports: [{port: 8080}]\nendpoints:\n- addresses: [\"10.0.0.1\"]\n";
    let odd = manifests::ingress("odd", "odd.example.com", "web", None);
    let odd = odd.replacen("annotations:\n", &format!("annotations:\n    {annotation}\n"), 1);
    let files = [
        ("web.yaml", format!("{}---\n{slice}", manifests::service("web", 8080))),
        ("good.yaml", manifests::ingress("good", "good.example.com", "web", None)),
        ("odd.yaml", odd),
    ];
    std::fs::create_dir(dir.path().join("below")).expect("writable");
    for (name, text) in files {
        let place = if name == "odd.yaml" { dir.path().join("below") } else { dir.path().to_owned() };
        std::fs::write(place.join(name), text).expect("writable");
    }
    dir
}

const SNIPPET: &str = "nginx.ingress.kubernetes.io/configuration-snippet: deny all;";
const DIFFERS: &str = "nginx.ingress.kubernetes.io/upstream-health-check-path: /health";

fn text(path: &Path) -> &str {
    path.to_str().expect("text")
}

#[test]
fn a_folder_is_judged_with_what_is_below_it() {
    let dir = folder(SNIPPET);

    let (code, printed) = check(&[text(dir.path())], "");

    assert_eq!(code, 1, "{printed}");
    assert!(printed.contains("Ingress default/odd  (below/odd.yaml"), "{printed}");
    assert!(printed.contains("refused"), "{printed}");
    assert!(!printed.contains('\u{1b}'), "no colours in a pipe: {printed}");
}

#[test]
fn standard_input_is_read_like_files() {
    let dir = folder(SNIPPET);
    let all = ["web.yaml", "good.yaml", "below/odd.yaml"]
        .map(|name| std::fs::read_to_string(dir.path().join(name)));
    let all = all.map(|text| text.expect("readable")).join("---\n");

    let (code, printed) = check(&["-"], &all);
    let (_, json) = check(&["-", "--output", "json"], &all);
    let (_, of_folder) = check(&[text(dir.path()), "--output", "json"], "");

    assert_eq!(code, 1, "{printed}");
    let verdicts = |json: &str| {
        let report: serde_json::Value = serde_json::from_str(json).expect("JSON");
        report["summary"].clone()
    };
    assert_eq!(verdicts(&json), verdicts(&of_folder));
}

#[test]
fn the_end_tells_a_pipeline_what_it_asked_for() {
    let (refused, differs) = (folder(SNIPPET), folder(DIFFERS));
    let (refused, differs) = (text(refused.path()), text(differs.path()));
    let missing = format!("{refused}/nobody");
    let cases: [(&[&str], i32); 10] = [
        (&[refused], 1),
        (&[refused, "--fail-on", "refused"], 1),
        (&[refused, "--fail-on", "never"], 0),
        (&[differs], 0),
        (&[differs, "--fail-on", "needs-action"], 0),
        (&[differs, "--fail-on", "differs"], 1),
        (&[differs, "--fail-on", "ignored"], 1),
        (&["-"], 1),
        (&[&missing], 65),
        (&["--no-such-flag"], 2),
    ];
    for (args, expected) in cases {
        let (code, printed) = check(args, "");

        assert_eq!(code, expected, "{args:?}: {printed}");
    }
}

#[test]
fn json_has_every_object_with_its_verdict_and_why() {
    let dir = folder(SNIPPET);

    let (code, json) = check(&[text(dir.path()), "--output", "json"], "");

    let report: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    let objects = report["objects"].as_array().expect("objects");
    let of = |name: &str| {
        objects.iter().find(|object| object["name"] == name && object["kind"] == "Ingress").expect(name)
    };
    assert_eq!((code, of("good")["verdict"].as_str()), (1, Some("identical")));
    let odd = of("odd");
    assert_eq!(
        (odd["verdict"].as_str(), odd["origin"].as_str()),
        (Some("refused"), Some("below/odd.yaml#1"))
    );
    let finding = &odd["findings"][0];
    let field = finding["field"].as_str().expect("a field");
    assert!(field.ends_with("nginx.ingress.kubernetes.io/configuration-snippet"), "{finding}");
    assert!(finding["fix"].as_str().is_some_and(|fix| !fix.is_empty()), "{finding}");
}

#[test]
fn junit_fails_what_the_end_fails() {
    let dir = folder(SNIPPET);
    let path = text(dir.path());
    let failures = |xml: &str| xml.matches("<failure ").count();

    let (code, xml) = check(&[path, "--output", "junit"], "");
    let (never, all) = check(&[path, "--output", "junit", "--fail-on", "never"], "");

    assert_eq!((code, failures(&xml), never, failures(&all)), (1, 1, 0, 0), "{xml}");
    assert!(xml.starts_with("<?xml version=\"1.0\""), "{xml}");
    assert!(
        xml.contains("failures=\"1\"")
            && xml.contains("<testcase classname=\"Ingress\" name=\"default/odd\""),
        "{xml}"
    );
}

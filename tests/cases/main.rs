//! Golden cases: Kubernetes objects in, snapshot and problems out.
//!
//! Each directory holds `input.yaml`, or `input.examples` with names of files in `deploy/examples` (and option lines),
//! and `expected.txt`; where there is a `check.txt` or a `check-verbose.txt`, it is what
//! `penstock check` (`--verbose`) prints. `PENSTOCK_UPDATE=1 cargo test -p lb-tests --test cases` rewrites
//! the expectations; review the diff.
//!
//! In an input, `"@crt a.example.com *.b@"` and `"@key a.example.com *.b@"` stand for a certificate
//! made for these names and its key; `# option: name=value` lines set what a flag would.

mod dump;
mod l4_rules;
mod live;
mod policies;
mod properties;
mod sizes;
mod wrong_values;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use penstock::model::ObjectName;
use penstock::{check, manifests, translate};

#[test]
fn every_case_comes_out_as_written() {
    let mut wrong = Vec::new();
    for case in cases() {
        let actual = outcome(&input(&case));
        compare(&case, "expected.txt", &actual, &mut wrong);
        for (file, all) in [("check.txt", false), ("check-verbose.txt", true)] {
            if root().join(&case).join(file).exists() {
                compare(&case, file, &report(&input(&case), all), &mut wrong);
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn compare(case: &str, file: &str, actual: &str, wrong: &mut Vec<String>) {
    let path = root().join(case).join(file);
    let expected = fs::read_to_string(&path).unwrap_or_default();
    if actual == expected {
        return;
    }
    if std::env::var_os("PENSTOCK_UPDATE").is_some() {
        fs::write(&path, actual).expect("the case is writable");
    } else {
        wrong.push(format!("== {case}/{file}\n{}", difference(&expected, actual)));
    }
}

#[test]
fn the_order_of_objects_decides_nothing() {
    for case in cases() {
        let input = input(&case);
        let mut documents: Vec<_> = input.split("\n---\n").collect();
        let forward = without_origins(&outcome(&documents.join("\n---\n")));
        documents.reverse();
        let backward = without_origins(&outcome(&documents.join("\n---\n")));

        assert_eq!(forward, backward, "{case}");
    }
}

fn root() -> PathBuf {
    lb_tests::workspace().join("tests/cases")
}

fn cases() -> Vec<String> {
    let entries = fs::read_dir(root()).expect("the cases").map(|entry| entry.expect("an entry"));
    let mut cases: Vec<_> = entries
        .filter(|entry| entry.path().is_dir())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    cases.sort();
    assert!(!cases.is_empty());
    cases
}

fn input(case: &str) -> String {
    let directory = root().join(case);
    let Ok(names) = fs::read_to_string(directory.join("input.examples")) else {
        return fs::read_to_string(directory.join("input.yaml")).expect("a case has an input");
    };
    let examples = lb_tests::workspace().join("deploy/examples");
    let read = |name: &str| fs::read_to_string(examples.join(format!("{name}.yaml"))).expect("an example");
    let (options, names): (Vec<_>, Vec<_>) = names.lines().partition(|line| line.starts_with('#'));
    let options: String = options.iter().map(|line| format!("{line}\n")).collect();
    options + &names.into_iter().map(read).collect::<Vec<_>>().join("---\n")
}

fn outcome(input: &str) -> String {
    let (loaded, translated) = read(input);
    // The report must cope with whatever a case holds.
    report(input, false);
    dump::dump(&translated, &loaded.problems)
}

fn report(input: &str, all: bool) -> String {
    let (loaded, translated) = read(input);
    let report = check::report(&check::Input {
        objects: &loaded.objects,
        options: &options(input),
        translated: &translated,
        load_problems: &loaded.problems,
        bystanders: &[],
        started: &[],
        now: 0,
    });
    check::render_text(&report, check::Style { all, ..check::Style::default() })
}

fn read(input: &str) -> (manifests::Loaded, translate::Translated) {
    let text = with_certificates(input);
    let loaded = manifests::load_text("input.yaml", text.as_bytes(), translate::admission(&options(input)));
    let translated = translate::translate(&loaded.objects, &options(input));
    (loaded, translated)
}

fn options(input: &str) -> translate::Options {
    let mut options = translate::Options::default();
    for line in input.lines() {
        let Some((name, value)) = line.strip_prefix("# option: ").and_then(|option| option.split_once('='))
        else {
            continue;
        };
        let object = || value.split_once('/').map(|(namespace, name)| ObjectName::new(namespace, name));
        match name {
            "publish-service" => options.publish_service = object(),
            "default-backend-service" => options.default_backend_service = object(),
            "default-ssl-certificate" => options.default_ssl_certificate = object(),
            "watch-ingress-without-class" => options.watch_ingress_without_class = value == "true",
            "configmap" => options.config_map = object(),
            "tcp-services-configmap" => options.tcp_services = object(),
            "datapath" if value == "off" => options.streams = translate::StreamsBy::Proxy,
            "udp-services-configmap" => options.udp_services = object(),
            "ingress-class-by-name" => options.ingress_class_by_name = value == "true",
            "disable-catch-all" => options.disable_catch_all = value == "true",
            "node-name" => options.node = Some(value.to_owned()),
            "load-balancer-class" => options.load_balancer_class = Some(value.to_owned()),
            "enable-ssl-passthrough" => options.enable_ssl_passthrough = value == "true",
            "snippet-policy" if value == "ignore" => options.snippets = translate::SnippetPolicy::Ignore,
            "disable-svc-external-name" => options.disable_external_names = value == "true",
            "enable-topology-aware-routing" => options.routes_by_zone = value == "true",
            "address-pools" => options.address_pools = object(),
            "writer" => options.writer = Some(value.to_owned()),
            "annotations-prefix" => options.annotations_prefix = Some(value.to_owned()),
            "vips" => options.vips = value == "true",
            "external-ips" => options.external_ips = value == "true",
            _ => panic!("unknown option {name}"),
        }
    }
    options
}

fn with_certificates(input: &str) -> String {
    let mut pairs: BTreeMap<String, (String, String)> = BTreeMap::new();
    let mut out = String::new();
    let mut rest = input;
    while let Some(at) = rest.find("\"@") {
        let (before, marker) = rest.split_at(at);
        let (marker, after) = marker[2..].split_once("@\"").expect("a marker ends");
        let (kind, names) = marker.split_once(' ').expect("a marker has names");
        let (crt, key) = pairs.entry(names.to_owned()).or_insert_with(|| pair(names));
        let pem = if kind == "crt" { crt } else { key };
        out.push_str(before);
        out.push_str(&serde_json::to_string(pem).expect("a string"));
        rest = after;
    }
    out + rest
}

fn pair(names: &str) -> (String, String) {
    let names: Vec<String> = names.split(' ').map(str::to_owned).collect();
    let made = rcgen::generate_simple_self_signed(names).expect("a certificate");
    (made.cert.pem(), made.signing_key.serialize_pem())
}

/// Lines in the order of their text, without the document they came from.
fn without_origins(outcome: &str) -> Vec<String> {
    let digit_run = |text: &str| text.trim_start_matches(|digit: char| digit.is_ascii_digit()).to_owned();
    let strip = |line: &str| match line.split_once("input.yaml#") {
        Some((before, after)) => format!("{before}{}", digit_run(after)),
        None => line.to_owned(),
    };
    let mut lines: Vec<_> =
        outcome.lines().filter(|line| !line.contains("duplicate-object")).map(strip).collect();
    lines.sort();
    lines
}

fn difference(expected: &str, actual: &str) -> String {
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
    let (expected, actual) = (lines(expected), lines(actual));
    let missing = expected.iter().filter(|line| !actual.contains(line)).map(|line| format!("- {line}"));
    let extra = actual.iter().filter(|line| !expected.contains(line)).map(|line| format!("+ {line}"));
    missing.chain(extra).collect::<Vec<_>>().join("\n")
}

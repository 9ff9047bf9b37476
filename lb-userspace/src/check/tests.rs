//! Builders and views for the tests of the report and its traps.

use super::*;
use crate::manifests;

/// 2026-01-01.
pub(super) const NOW: i64 = 1_767_225_600;

/// The whole report about a text of manifests.
pub(super) fn of(input: &str) -> Report {
    with(&Options::default(), input)
}

fn with(options: &Options, input: &str) -> Report {
    let files = manifests::Files::of_text("input.yaml", input.as_bytes());
    let bystanders = files.bystanders();
    let loaded = files.load(translate::ADMISSION);
    let translated = translate::translate(&loaded.objects, options);
    report(&Input {
        objects: &loaded.objects,
        options,
        translated: &translated,
        load_problems: &loaded.problems,
        bystanders: &bystanders,
        started: &[],
        now: NOW,
    })
}

/// Findings with one of these reasons, the objects in the order of their names.
fn with_objects(input: &str, reasons: &[&str]) -> Vec<(String, Finding)> {
    let mut objects = of(input).objects;
    objects.sort_by(|left, right| (&left.kind, &left.name).cmp(&(&right.kind, &right.name)));
    let findings = objects.into_iter().flat_map(|object| {
        let title = format!("{} {}/{}", object.kind, object.namespace, object.name);
        object.findings.into_iter().map(move |finding| (title.clone(), finding))
    });
    findings.filter(|(_, finding)| reasons.contains(&finding.reason)).collect()
}

pub(super) fn found(input: &str, reasons: &[&str]) -> Vec<Finding> {
    with_objects(input, reasons).into_iter().map(|(_, finding)| finding).collect()
}

/// The same of a balancer that was started otherwise.
pub(super) fn found_with(options: &Options, input: &str, reasons: &[&str]) -> Vec<Finding> {
    let findings = with(options, input).objects.into_iter().flat_map(|object| object.findings);
    findings.filter(|finding| reasons.contains(&finding.reason)).collect()
}

pub(super) fn messages(input: &str, reasons: &[&str]) -> Vec<String> {
    found(input, reasons).into_iter().map(|finding| finding.message).collect()
}

pub(super) fn line(finding: &Finding) -> String {
    let field = finding.field.strip_prefix("metadata.annotations.").unwrap_or(&finding.field);
    let field = field.strip_prefix("nginx.ingress.kubernetes.io/").unwrap_or(field);
    format!("{}: {field} [{}]", finding.verdict.word(), finding.reason)
}

/// Verdict, field and reason of each.
pub(super) fn caught(input: &str, reasons: &[&str]) -> Vec<String> {
    found(input, reasons).iter().map(line).collect()
}

/// The same with the object.
pub(super) fn reported(input: &str, reasons: &[&str]) -> Vec<String> {
    with_objects(input, reasons)
        .iter()
        .map(|(object, finding)| format!("{object} {}", line(finding)))
        .collect()
}

/// An Ingress with these paths to port 80 of Service `web`.
pub(super) fn ingress_of(name: &str, annotations: &str, host: &str, paths: &[&str]) -> String {
    let lines = annotations.lines().map(|line| line.strip_prefix("            ").unwrap_or(line));
    let lines = lines.filter(|line| !line.is_empty()).map(|line| format!("    {line}\n"));
    let annotations: String = lines.collect();
    let path = |path: &&str| {
        format!(
            "      - path: {path}\n        pathType: ImplementationSpecific\n        backend: {{service: {{name: web, port: {{number: 80}}}}}}\n"
        )
    };
    let paths: String = paths.iter().map(path).collect();
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: Ingress\nmetadata:\n  name: {name}\n  annotations:\n{annotations}\
         spec:\n  ingressClassName: nginx\n  rules:\n  - host: {host}\n    http:\n      paths:\n{paths}"
    )
}

pub(super) fn ingress(name: &str, annotations: &str) -> String {
    ingress_of(name, annotations, "a.example.com", &["/"])
}

pub(super) fn tls_ingress(host: &str, secret: &str) -> String {
    ingress_of("tls", "", host, &["/"]) + &format!("  tls: [{{hosts: [{host}], secretName: {secret}}}]\n")
}

pub(super) fn service(name: &str, spec: &str) -> String {
    format!("apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  {spec}\n")
}

pub(super) fn config_map(data: &str) -> String {
    format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: ingress-nginx-controller, namespace: ingress-nginx}}\ndata:\n  {data}\n"
    )
}

/// A Secret with an `htpasswd` file.
pub(super) fn passwords(name: &str, file: &str) -> String {
    let file = serde_json::to_string(file).expect("a string");
    format!("apiVersion: v1\nkind: Secret\nmetadata: {{name: {name}}}\nstringData: {{auth: {file}}}\n")
}

/// A certificate for this host that ends then.
pub(super) fn secret(name: &str, host: &str, not_after: i64) -> String {
    let mut params = rcgen::CertificateParams::new(vec![host.to_owned()]).expect("a name");
    let key = rcgen::KeyPair::generate().expect("a key");
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after =
        rcgen::date_time_ymd(1970, 1, 1) + std::time::Duration::from_secs(not_after.unsigned_abs());
    let crt = params.self_signed(&key).expect("a certificate").pem();
    let (crt, key) = (serde_json::to_string(&crt), serde_json::to_string(&key.serialize_pem()));
    format!(
        "apiVersion: v1\nkind: Secret\ntype: kubernetes.io/tls\nmetadata: {{name: {name}}}\nstringData: {{tls.crt: {}, tls.key: {}}}\n",
        crt.expect("a string"),
        key.expect("a string")
    )
}

#[test]
fn the_verdict_of_an_object_is_its_worst_finding_and_what_works_is_never_ignored() {
    let cases = [
        ("", Verdict::Identical),
        ("nginx.ingress.kubernetes.io/http2-push-preload: 'true'", Verdict::Identical),
        ("nginx.ingress.kubernetes.io/made-up: 'true'", Verdict::Differs),
        ("nginx.ingress.kubernetes.io/limit-rps: '1'", Verdict::Differs),
        ("nginx.ingress.kubernetes.io/server-snippet: a b;", Verdict::Refused),
    ];
    for (annotations, expected) in cases {
        let report = of(&ingress("a", annotations));

        assert_eq!(report.objects.first().map(|object| object.verdict), Some(expected), "{annotations}");
    }
    let foreign = ingress("a", "").replace("ingressClassName: nginx", "ingressClassName: traefik");
    assert_eq!(of(&foreign).objects.first().map(|object| object.verdict), Some(Verdict::Ignored));
}

#[test]
fn an_ingress_that_the_config_map_closes_is_refused() {
    let input = format!("{}---\n{}", ingress("a", ""), config_map("server-snippet: 'deny all;'"));

    assert_eq!(
        reported(&input, &["closed-from-elsewhere"]),
        ["Ingress default/a refused:  [closed-from-elsewhere]"]
    );
}

#[test]
fn what_is_missing_altogether_is_said_once() {
    let alone = of(&ingress("a", ""));
    assert_eq!(alone.objects.first().map(|object| object.findings.len()), Some(0));
    assert!(alone.hints.iter().any(|hint| hint.contains("Services")), "{:?}", alone.hints);

    let with_another = of(&format!("{}---\n{}", ingress("a", ""), service("other", "ports: [{port: 80}]")));
    let reasons: Vec<_> = with_another
        .objects
        .iter()
        .flat_map(|object| object.findings.iter().map(|finding| finding.reason))
        .collect();
    assert!(reasons.contains(&"missing-service"), "{reasons:?}");
}

#[test]
fn that_bodies_stream_is_said_once_unless_somebody_has_said_how_they_shall_go() {
    let hints = |input: &str| {
        let hints = of(input).hints;
        hints.iter().filter(|hint| hint.contains("proxy-request-buffering")).count()
    };
    let said = "nginx.ingress.kubernetes.io/proxy-request-buffering: 'on'";
    let two = format!("{}---\n{}", ingress("a", ""), ingress_of("b", said, "b", &["/"]));

    assert_eq!(hints(&two), 1);
    assert_eq!(hints(&format!("{two}---\n{}", config_map("proxy-request-buffering: 'off'"))), 0);
    assert_eq!(hints(&ingress("a", said)), 0);
    assert_eq!(hints(&service("web", "ports: [{port: 80}]")), 0);
}

#[test]
fn junit_counts_failures_and_escapes_what_objects_say() {
    let input = format!(
        "{}---\n{}",
        ingress("a", "nginx.ingress.kubernetes.io/server-snippet: 'return 301 \"https://b/?a&b<c>\";'"),
        ingress_of("b", "", "b.example.com", &["/"])
    );

    let xml = render_junit(&of(&input), Some(Verdict::NeedsAction));

    assert!(xml.contains("tests=\"2\" failures=\"1\" errors=\"0\" skipped=\"0\""), "{xml}");
    assert!(xml.contains("a&amp;b&lt;c&gt;"), "{xml}");
    assert!(
        xml.contains("<testcase classname=\"Ingress\" name=\"default/b\" file=\"input.yaml\"/>"),
        "{xml}"
    );
}

#[test]
fn text_shows_what_would_move_a_cursor() {
    let annotations = "\"nginx.ingress.kubernetes.io/\\x1b[2Jodd\": \"\\x07\"";

    let text = render_text(&of(&ingress("a", annotations)), Style::default());

    assert!(text.contains("\\u{1b}[2Jodd"), "{text}");
    assert!(!text.contains(|c: char| c.is_control() && c != '\n'), "{text}");
}

#[test]
fn text_tells_the_worst_first_and_names_what_needs_no_reading_in_one_line() {
    let input = format!(
        "{}---\n{}---\n{}",
        ingress("a", "nginx.ingress.kubernetes.io/server-snippet: a b;"),
        ingress_of("b", "", "b.example.com", &["/"]),
        ingress_of("c", "", "c.example.com", &["/"])
    );

    let text = render_text(&of(&input), Style::default());

    let refused = text.find("── refused").expect("a section");
    let identical = text.find("── identical").expect("a section");
    assert!(text.starts_with("3 objects\n  ✗     1 refused"), "{text}");
    assert!(refused < identical, "{text}");
    assert!(text.ends_with("Ingress: default/b, default/c\n"), "{text}");
    assert!(!text.contains('\x1b'), "{text}");
    let colour = Style { paint: Paint::Colour, ..Style::default() };
    assert!(render_text(&of(&input), colour).contains("\x1b[31m"));
}

//! A wrong value of every annotation and of every key of the ConfigMap is told: by the name of what holds it, with
//! the value and with what counts in its place. Walks the tables, so that a new row comes with its wrong value.

use penstock::model::{Problem, Severity};
use penstock::translate::{Annotation, ConfigKey, Fate, Form, KEYS, PREFIX, Status, TABLE, Value};
use serde_json::{Map, json};

/// How a problem says what counts in the place of a value.
const INSTEAD: [&str; 20] = [
    "answer 503",
    "answered",
    "answers 503",
    "burst is allowed",
    "counts as",
    "everybody gets gzip",
    "get 400",
    "is believed",
    "is ignored",
    "is limited by it",
    "is logged",
    "is used",
    "left out",
    "no headers are added",
    "not hashed",
    "not served",
    "nothing is copied",
    "output it is",
    "the rate holds",
    "tickets are given",
];

/// Of annotations whose form alone makes no value wrong.
const TEXTS: &[(&str, &str)] = &[
    ("auth-cache-duration", "soon"),
    ("auth-cache-key", "$nope"),
    ("auth-method", "BREW"),
    ("auth-request-redirect", "$nope"),
    ("auth-response-headers", "two words"),
    ("auth-signin", "nowhere"),
    ("auth-tls-error-page", "nowhere"),
    ("auth-tls-match-cn", "nobody"),
    ("auth-url", "ftp://a"),
    ("canary-by-header-pattern", "("),
    ("cors-allow-headers", "a;b"),
    ("cors-allow-methods", "a;b"),
    ("cors-allow-origin", "a.example.com"),
    ("cors-expose-headers", "a;b"),
    ("mirror-host", "$nope"),
    ("mirror-target", "nowhere"),
    ("proxy-cookie-domain", "alone"),
    ("proxy-cookie-path", "alone"),
    ("proxy-redirect-from", "$nope"),
    ("proxy-redirect-to", "$nope"),
    ("server-alias", "a..b"),
    ("session-cookie-path", "no-slash"),
    ("upstream-vhost", "$nope"),
    ("x-forwarded-prefix", "$nope"),
];

/// Of annotations that have their form and are wrong for what they say.
const MORE: &[(&str, &str)] = &[
    ("app-root", "/$nope"),
    ("auth-secret", "none"),
    ("auth-tls-secret", "default/none"),
    ("auth-type", "digest"),
    ("canary-weight-total", "50"),
    ("client-body-buffer-size", "1b"),
    ("custom-headers", "default/none"),
    ("custom-http-errors", "404,"),
    ("default-backend", "none"),
    ("fastcgi-params-configmap", "none"),
    ("limit-burst-multiplier", "-1"),
    ("limit-connections", "-1"),
    ("limit-rate", "-1"),
    ("limit-rate-after", "-1"),
    ("limit-rpm", "-1"),
    ("limit-rps", "-1"),
    ("permanent-redirect", "https://$nope/"),
    ("permanent-redirect-code", "200"),
    ("proxy-connect-timeout", "5s"),
    ("proxy-ssl-secret", "default/none"),
    ("rewrite-target", "/$nope"),
    ("server-alias", "a;b"),
    ("ssl-ciphers", "RC4-SHA"),
    ("temporal-redirect", "https://$nope/"),
    ("temporal-redirect-code", "308"),
    ("upstream-hash-by", "$nope"),
    ("upstream-hash-by-subset-size", "0"),
    ("upstream-vhost", "a;b"),
    ("x-forwarded-prefix", "/a;b"),
];

/// Any text is right there.
const FREE: [&str; 1] = ["canary-by-header-value"];

/// What an annotation needs beside it to mean something.
const BESIDE: &[(&str, &[(&str, &str)])] = &[
    ("auth-secret-type", &[("auth-secret", "users")]),
    ("auth-realm", &[("auth-secret", "users")]),
    ("fastcgi-params-configmap", &[("backend-protocol", "FCGI")]),
    ("permanent-redirect-code", &[("permanent-redirect", "https://a.example.com")]),
    ("proxy-redirect-from", &[("proxy-redirect-to", "/")]),
    ("proxy-redirect-to", &[("proxy-redirect-from", "/a")]),
    ("temporal-redirect-code", &[("temporal-redirect", "https://a.example.com")]),
];

/// A right value of those that others mean something beside.
const COMPANIONS: &[(&str, &str)] = &[
    ("affinity", "cookie"),
    ("auth-type", "basic"),
    ("auth-url", "https://auth.example.com/"),
    ("auth-tls-secret", "default/ca"),
    ("canary", "true"),
    ("canary-by-header", "X-Canary"),
    ("enable-cors", "true"),
    ("enable-modsecurity", "true"),
    ("mirror-target", "https://mirror.example.com"),
    ("proxy-ssl-secret", "default/ca"),
    ("rewrite-target", "/rewritten"),
    ("upstream-hash-by", "$request_uri"),
];

#[test]
fn a_wrong_value_of_every_annotation_is_told() {
    let mut silent = Vec::new();
    for row in TABLE {
        let wrong = looked_up(TEXTS, row.name).or_else(|| wrong_form(row.value));
        assert!(
            wrong.is_some() || row.status == Status::Refused || is_idle(row) || FREE.contains(&row.name),
            "{}: no value of it is known to be wrong",
            row.name
        );
        let wrong = wrong.into_iter().chain(looked_up(MORE, row.name));
        silent.extend(wrong.filter_map(|wrong| untold_annotation(row, wrong)));
    }
    for row in TABLE.iter().filter(|row| is_idle(row)) {
        silent.extend(untold_annotation(row, "true"));
    }
    assert!(silent.is_empty(), "{}", silent.join("\n"));
}

/// What is wrong with how a wrong value of an annotation is told.
fn untold_annotation(row: &Annotation, wrong: &str) -> Option<String> {
    let mut annotations = Map::new();
    let mut beside = looked_up(BESIDE, row.name).unwrap_or_default().to_vec();
    let mut status = row.status;
    while let Status::With(other) = status {
        beside.push((other, looked_up(COMPANIONS, other).expect("a companion with a right value")));
        status = TABLE.iter().find(|row| row.name == other).expect("a companion of the table").status;
    }
    if beside.iter().any(|(name, _)| *name == "auth-type") {
        beside.push(("auth-secret", "users"));
    }
    for (name, text) in beside {
        annotations.insert(format!("{PREFIX}/{name}"), json!(text));
    }
    annotations.insert(format!("{PREFIX}/{}", row.name), json!(wrong));
    let ingress = |name: &str, annotations: &Map<_, _>| {
        json!({
            "apiVersion": "networking.k8s.io/v1",
            "kind": "Ingress",
            "metadata": {"name": name, "annotations": annotations},
            "spec": {"ingressClassName": "nginx", "rules": [{"host": "a.example.com", "http": {"paths": [{
                "path": "/", "pathType": "Prefix",
                "backend": {"service": {"name": "web", "port": {"number": 80}}},
            }]}}]},
        })
    };
    let mut documents = vec![ingress("x", &annotations)];
    if row.name.starts_with("canary") {
        documents.push(ingress("primary", &Map::new()));
    }
    let field = format!("metadata.annotations.{PREFIX}/{}", row.name);

    let told = problems(&documents, &field);

    let least = if is_idle(row) || row.name == "ssl-ciphers" { Severity::Info } else { Severity::Warning };
    untold(row.name, wrong, least, is_idle(row) || row.status == Status::Refused, &told)
}

/// Accepted, and nothing comes of it.
fn is_idle(row: &Annotation) -> bool {
    match row.status {
        Status::NoEffect => true,
        Status::With(other) => TABLE.iter().any(|row| row.name == other && row.status == Status::Refused),
        Status::Honoured | Status::Refused => false,
    }
}

fn wrong_form(value: Value) -> Option<&'static str> {
    Some(match value {
        Value::Bool => "perhaps",
        Value::Int => "five",
        Value::From(_) => "-1",
        Value::ErrorStatus | Value::Statuses => "200",
        Value::One(_) | Value::Word(_) | Value::Words(_) => "nonsense",
        Value::Interval => "soon",
        Value::Size => "50mb",
        Value::Ranges => "10.0.0.0/33",
        Value::Reference => "a/b/c",
        Value::Token => "two words",
        Value::Path => "no-slash",
        Value::Url => "ftp://a.example.com",
        Value::Target => "a b",
        Value::Chars(_) => "\u{2603}",
        Value::Text | Value::Origins | Value::Names => return None,
    })
}

/// Of keys whose form alone makes no value wrong.
const KEY_TEXTS: &[(&str, &str)] = &[
    ("access-log-path", "relative"),
    ("add-headers", "none/such"),
    ("allowlist-source-range", "10.0.0.0/33"),
    ("annotations-risk-level", "Lowest"),
    ("block-cidrs", "10.0.0.0/33"),
    ("block-referers", "~("),
    ("block-user-agents", "~("),
    ("brotli-types", "plain"),
    ("custom-http-errors", "200"),
    ("denylist-source-range", "10.0.0.0/33"),
    ("forwarded-for-header", "two words"),
    ("global-allowed-response-headers", "two words"),
    ("global-auth-cache-duration", "soon"),
    ("global-auth-cache-key", "$nope"),
    ("global-auth-method", "BREW"),
    ("global-auth-request-redirect", "$nope"),
    ("global-auth-response-headers", "two words"),
    ("global-auth-signin", "nowhere"),
    ("global-auth-signin-redirect-param", "two words"),
    ("global-auth-url", "ftp://a"),
    ("gzip-disable", "("),
    ("gzip-types", "plain"),
    ("hide-headers", "two words"),
    ("http-access-log-path", "relative"),
    ("large-client-header-buffers", "8k"),
    ("limit-conn-zone-variable", "$nope"),
    ("load-balance", "nonsense"),
    ("log-format-stream", "$nope"),
    ("log-format-upstream", "$nope"),
    ("no-auth-locations", "no-slash"),
    ("no-tls-redirect-locations", "no-slash"),
    ("opentelemetry-operation-name", "$nope"),
    ("otel-sampler-ratio", "2"),
    ("otlp-collector-host", "otel:4317"),
    ("penstock-mode", "Strict"),
    ("proxy-buffering", "nonsense"),
    ("proxy-cookie-domain", "alone"),
    ("proxy-cookie-path", "alone"),
    ("proxy-http-version", "2"),
    ("proxy-next-upstream", "nonsense"),
    ("proxy-real-ip-cidr", "10.0.0.0/33"),
    ("proxy-redirect-from", "$nope"),
    ("proxy-redirect-to", "$nope"),
    ("proxy-request-buffering", "nonsense"),
    ("proxy-set-headers", "none/such"),
    ("skip-access-log-urls", "~("),
    ("ssl-ciphers", "RC4-SHA"),
    ("ssl-ecdh-curve", "nonsense"),
    ("ssl-protocols", "SSLv3"),
    ("stream-access-log-path", "relative"),
    ("syslog-host", "two words"),
    ("upstream-hash-by", "$nope"),
    ("whitelist-source-range", "10.0.0.0/33"),
];

/// Of keys that have their form and are wrong for what they say.
const MORE_KEYS: &[(&str, &str)] = &[
    ("brotli-level", "12"),
    ("gzip-level", "0"),
    ("http-redirect-code", "200"),
    ("http2-max-concurrent-streams", "0"),
    ("limit-conn-status-code", "200"),
    ("limit-req-status-code", "600"),
    ("max-worker-connections", "0"),
    ("otel-max-exportbatchsize", "4096"),
    ("otel-max-queuesize", "0"),
    ("otel-schedule-delay-millis", "3600001"),
    ("otlp-collector-port", "65536"),
    ("proxy-buffers-number", "0"),
    ("proxy-read-timeout", "60s"),
];

/// Any text is right there.
const FREE_KEYS: [&str; 2] = ["annotation-value-word-blocklist", "otel-service-name"];

#[test]
fn a_wrong_value_of_every_key_is_told() {
    let mut silent = Vec::new();
    for row in KEYS {
        let wrong = looked_up(KEY_TEXTS, row.name).or_else(|| wrong_key(row));
        let more = looked_up(MORE_KEYS, row.name);
        silent.extend(wrong.into_iter().chain(more).filter_map(|wrong| untold_key(row, wrong)));
    }
    assert!(silent.is_empty(), "{}", silent.join("\n"));
}

/// What is wrong with how a wrong value of a key is told.
fn untold_key(row: &ConfigKey, wrong: &str) -> Option<String> {
    let document = json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"namespace": "ingress-nginx", "name": "ingress-nginx-controller"},
        "data": {row.name: wrong},
    });

    let told = problems(&[document], &format!("data.{}", row.name));

    let is_neutral = row.fate == Fate::Neutral;
    let is_unread =
        told.iter().any(|problem| problem.reason == "not-yet" && !problem.message.contains(wrong));
    let idle = row.fate != Fate::Plain || is_unread || row.name == "ssl-session-ticket-key";
    let least = if is_neutral || row.name == "ssl-ciphers" { Severity::Info } else { Severity::Warning };
    untold(row.name, wrong, least, idle, &told)
}

fn wrong_key(row: &ConfigKey) -> Option<&'static str> {
    match (row.fate, row.form) {
        (Fate::Plain, _) if FREE_KEYS.contains(&row.name) => None,
        (_, Form::Bool) => Some("perhaps"),
        (_, Form::Number) => Some("-1"),
        (_, Form::Time) => Some("soon"),
        (_, Form::Size) => Some("50mb"),
        (_, Form::List | Form::Reference | Form::Text) => Some("nonsense"),
    }
}

/// What is said of a field when this is loaded and translated.
fn problems(documents: &[serde_json::Value], field: &str) -> Vec<Problem> {
    let backend = r#"
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {ports: [{port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{port: 8080}]
endpoints: [{addresses: [10.0.0.1]}]
---
apiVersion: v1
kind: Secret
metadata: {name: ca}
stringData: {ca.crt: "@crt ca.example.com@"}
---
apiVersion: v1
kind: Secret
metadata: {name: users}
stringData: {auth: "a:{SHA}qUqP5cyxm6YcTAhz05Hph5gvu9M="}
"#;
    let documents = documents.iter().map(|document| format!("---\n{document}\n")).collect::<String>();
    let (loaded, translated) = crate::read(&format!("{backend}{documents}"));
    let translated = translated.problems.iter().map(|problem| (**problem).clone());
    loaded.problems.into_iter().chain(translated).filter(|problem| problem.field == field).collect()
}

/// `None`: it is told as it should be.
fn untold(name: &str, wrong: &str, least: Severity, idle: bool, told: &[Problem]) -> Option<String> {
    let shown: Vec<_> = told
        .iter()
        .map(|problem| format!("{}: {} ({})", problem.reason, problem.message, problem.fix))
        .collect();
    let shown = shown.join("; ");
    let heard: Vec<_> = told.iter().filter(|problem| problem.severity <= least).collect();
    if heard.is_empty() {
        return Some(format!("{name}: {wrong:?} is silent: {shown}"));
    }
    let names = |problem: &&&Problem| {
        let quoted = format!("{wrong:?}");
        problem.message.contains(wrong) || problem.message.contains(quoted.trim_matches('"'))
    };
    let says = |problem: &Problem| {
        INSTEAD.iter().any(|words| problem.message.contains(words) || problem.fix.contains(words))
    };
    if idle || heard.iter().filter(names).any(|problem| says(problem)) {
        return None;
    }
    Some(format!("{name}: {wrong:?} is not said to be wrong, or not what counts instead: {shown}"))
}

fn looked_up<T: Copy>(table: &[(&str, T)], name: &str) -> Option<T> {
    table.iter().find(|(of, _)| *of == name).map(|(_, value)| *value)
}

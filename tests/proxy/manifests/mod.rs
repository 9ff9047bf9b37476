//! From manifest to answer: Ingresses in a directory, the built binary, and what clients and backends see of them. What is
//! expected is what ingress-nginx does, written down in YAML beside this file, a file for each theme.

mod answer;
mod backend;
mod case;
mod check;
mod client;
mod guide;
mod live;
mod stage;
mod step;

use std::collections::BTreeSet;

use penstock::translate::{self, KeyStatus, Status, TABLE};

use case::Theme;

/// Files of cases about annotations.
const THEMES: [&str; 11] = [
    "routing",
    "redirects",
    "headers",
    "auth",
    "global-auth",
    "canary",
    "limits",
    "bodies",
    "upstream",
    "tls",
    "traces",
];

/// Files of cases about keys of the controller's ConfigMap.
const KEYS: [&str; 5] = ["keys-clients", "keys-upstreams", "keys-answers", "keys-access", "keys-traces"];

/// Annotations without a case, each with the reason.
const WITHOUT: [(&str, &str); 7] = [
    ("proxy-max-temp-file-size", "shows by what is not sent, however long one waits: module buffers"),
    (
        "modsecurity-transaction-id",
        "names requests for a firewall that is never there: enable-modsecurity decides",
    ),
    ("auth-tls-verify-depth", "shows by a chain of several: module client_auth"),
    ("proxy-ssl-verify-depth", "shows by a chain of several: module upstream_tls"),
    ("upstream-health-check-interval", "shows by how often somebody is asked: module health"),
    ("opentelemetry-operation-name", "shows at a collector: module traces"),
    ("enable-rewrite-log", "shows in the log of the program: module logs"),
];

/// Keys without a case, each with the reason.
const KEYS_WITHOUT: [(&str, &str); 27] = [
    ("gzip-level", "shows by a few bytes"),
    ("brotli-level", "shows by a few bytes"),
    ("proxy-max-temp-file-size", "shows by what is not sent, however long one waits: module buffers"),
    ("proxy-stream-timeout", "of TCP and UDP Services, which are no Ingresses: module streams"),
    ("proxy-stream-next-upstream", "as proxy-stream-timeout"),
    ("proxy-stream-next-upstream-timeout", "as proxy-stream-timeout"),
    ("proxy-stream-next-upstream-tries", "as proxy-stream-timeout"),
    ("proxy-stream-responses", "as proxy-stream-timeout"),
    ("log-format-stream", "of TCP and UDP Services: module logs"),
    ("stream-access-log-path", "as log-format-stream"),
    ("disable-stream-access-log", "as log-format-stream"),
    ("enable-syslog", "goes to a collector: module logs"),
    ("syslog-host", "as enable-syslog"),
    ("syslog-port", "as enable-syslog"),
    ("enable-auth-access-log", "adds lines to those of others: module logs"),
    ("max-worker-connections", "shows where a worker is full: module limits"),
    ("worker-shutdown-timeout", "shows when the process ends: module change"),
    ("ssl-session-cache-size", "shows by thousands of sessions"),
    ("ssl-session-timeout", "is a minute at least"),
    ("ssl-session-ticket-key", "shows by two agents: module arrival"),
    ("opentelemetry-operation-name", "shows at a collector: module traces"),
    ("otlp-collector-port", "as opentelemetry-operation-name"),
    ("otel-service-name", "as opentelemetry-operation-name"),
    ("otel-max-queuesize", "as opentelemetry-operation-name"),
    ("otel-max-exportbatchsize", "as opentelemetry-operation-name"),
    ("otel-schedule-delay-millis", "as opentelemetry-operation-name"),
    ("allow-snippet-annotations", "nothing of nginx's configuration is ever run"),
];

#[test]
fn every_annotation_has_a_case() {
    let themes: Vec<Theme> = THEMES.into_iter().map(Theme::read).collect();
    let cases = themes.iter().flat_map(|theme| &theme.cases);
    let proven: BTreeSet<&str> = cases.flat_map(|case| case.proves()).collect();
    let excepted: BTreeSet<&str> = WITHOUT.iter().map(|(name, _)| *name).collect();
    let honoured = TABLE.iter().filter(|row| row.status != Status::NoEffect);

    let missing: Vec<&str> = honoured
        .map(|row| row.name)
        .filter(|name| !proven.contains(name) && !excepted.contains(name))
        .collect();

    assert_eq!(missing, Vec::<&str>::new());
    assert!(excepted.is_disjoint(&proven), "with a case: {:?}", excepted.intersection(&proven));
}

#[test]
fn every_key_has_a_case() {
    let themes: Vec<Theme> = KEYS.into_iter().map(Theme::read).collect();
    let admission = Theme::read("admission");
    let live = themes.iter().flat_map(|theme| &theme.cases).flat_map(|case| case.sets());
    let proven: BTreeSet<&str> = live.chain(admission.config.keys().map(String::as_str)).collect();
    let excepted: BTreeSet<&str> = KEYS_WITHOUT.iter().map(|(name, _)| *name).collect();
    let honoured = translate::key_statuses().into_iter().filter(|(_, status)| *status == KeyStatus::Honoured);

    let missing: Vec<&str> = honoured
        .map(|(row, _)| row.name)
        .filter(|name| !proven.contains(name) && !excepted.contains(name))
        .collect();

    assert_eq!(missing, Vec::<&str>::new());
    assert!(excepted.is_disjoint(&proven), "with a case: {:?}", excepted.intersection(&proven));
}

#[test]
fn routing() {
    Theme::read("routing").prove();
}

#[test]
fn admission() {
    Theme::read("admission").prove();
}

#[test]
fn redirects() {
    Theme::read("redirects").prove();
}

#[test]
fn headers() {
    Theme::read("headers").prove();
}

#[test]
fn auth() {
    Theme::read("auth").prove();
}

#[test]
fn global_auth() {
    Theme::read("global-auth").prove();
}

#[test]
fn canary() {
    Theme::read("canary").prove();
}

#[test]
fn limits() {
    Theme::read("limits").prove();
}

#[test]
fn bodies() {
    Theme::read("bodies").prove();
}

#[test]
fn upstream() {
    Theme::read("upstream").prove();
}

#[test]
fn tls() {
    Theme::read("tls").prove();
}

#[test]
fn traces() {
    Theme::read("traces").prove();
}

#[test]
fn keys_about_traces() {
    Theme::read("keys-traces").prove_live();
}

#[test]
fn keys_about_clients() {
    Theme::read("keys-clients").prove_live();
}

#[test]
fn keys_about_upstreams() {
    Theme::read("keys-upstreams").prove_live();
}

#[test]
fn keys_about_answers() {
    Theme::read("keys-answers").prove_live();
}

#[test]
fn keys_about_access() {
    Theme::read("keys-access").prove_live();
}

#[test]
fn flags() {
    Theme::read("flags").prove_flags();
}

#[test]
fn flags_about_how_ingresses_are_read() {
    Theme::read("flags-reading").prove_flags();
}

#[test]
fn flags_about_which_ingresses_count() {
    Theme::read("flags-scope").prove_flags();
}

//! The annotations that are a value of [`Policy`] each, without an object or another annotation to ask.

use std::collections::BTreeMap;
use std::time::Duration;

use super::super::config::Settings;
use super::super::upstreams::Reach;
use super::super::{checks, client_auth};
use super::policy::{Policy, ProxySsl};
use super::{buffers, redirects, value};
use crate::model::expression::Expression;
use crate::model::l7::TlsVersions;
use crate::model::upstream::{Balance, Condition, Conditions, Protocol, Retry};

/// `no-tls-redirect-locations` where it is not set: authorities ask for HTTP-01 challenges over plain HTTP.
const CHALLENGES: &str = "/.well-known/acme-challenge";

/// Fills in what is honoured; where an annotation is not set, the setting of its name counts.
pub(super) fn honour(valid: &BTreeMap<&str, &str>, settings: &Settings, policy: &mut Policy) {
    let text = |name: &str| valid.get(name).copied().or_else(|| settings.text(name));
    let boolean = |name: &str| text(name).and_then(value::boolean);
    let seconds = |name: &str| text(name).and_then(seconds);
    policy.use_regex = boolean("use-regex").unwrap_or(false);
    policy.rewrite_target = text("rewrite-target").map(str::to_owned);
    policy.ssl_redirect = boolean("ssl-redirect").unwrap_or(true);
    policy.force_ssl_redirect = boolean("force-ssl-redirect").unwrap_or(false);
    policy.redirects = redirects::style(&text, &policy.redirects);
    let plain = text("no-tls-redirect-locations").unwrap_or(CHALLENGES);
    let starts = plain.split(',').map(str::trim).filter(|start| !start.is_empty());
    policy.plain = starts.map(str::to_owned).collect();
    policy.app_root = text("app-root").map(str::to_owned);
    let aliases = text("server-alias").unwrap_or_default().split(|c: char| c == ',' || c.is_whitespace());
    policy.aliases = aliases.filter(|alias| !alias.is_empty()).map(str::to_owned).collect();
    policy.redirects_www = boolean("from-to-www-redirect").unwrap_or(false);
    policy.client_auth = text("auth-tls-secret").map(|secret| client_auth::Written {
        secret: secret.to_owned(),
        crosses: settings.crosses(),
        verify_client: text("auth-tls-verify-client").map(str::to_owned),
        depth: text("auth-tls-verify-depth").map(str::to_owned),
        error_page: text("auth-tls-error-page").map(str::to_owned),
        pass_certificate: boolean("auth-tls-pass-certificate-to-upstream").unwrap_or(false),
        match_cn: text("auth-tls-match-cn").map(str::to_owned),
    });
    policy.ssl_ciphers = text("ssl-ciphers").map(str::to_owned);
    policy.ssl_prefer_server_ciphers = boolean("ssl-prefer-server-ciphers");
    policy.ssl_passthrough = boolean("ssl-passthrough").unwrap_or(false);
    policy.connect_timeout = seconds("proxy-connect-timeout");
    policy.send_timeout = seconds("proxy-send-timeout");
    policy.read_timeout = seconds("proxy-read-timeout");
    policy.body_bytes = text("proxy-body-size").and_then(value::size);
    policy.buffers = buffers::read(&text);
    policy.default_backend = text("default-backend").map(str::to_owned);
    policy.protocol = text("backend-protocol").map_or(Protocol::Http, protocol);
    policy.retry = retry(&text, settings);
    policy.proxy_ssl = proxy_ssl(&text, settings.crosses());
    policy.load_balance = valid.get("load-balance").copied().map(load_balance);
    // The ConfigMap's counts less than any way that an Ingress names.
    policy.hash_by = valid.get("upstream-hash-by").and_then(|by| {
        let key = Expression::parse(by).ok()?;
        let size = text("upstream-hash-by-subset-size").and_then(|size| size.parse().ok()).unwrap_or(3);
        Some(match boolean("upstream-hash-by-subset") {
            Some(true) => Balance::Subset { key, size },
            _ => Balance::Hash(key),
        })
    });
    policy.reach = if boolean("service-upstream") == Some(true) { Reach::Address } else { Reach::Endpoints };
    // Of the same name in the ConfigMap is the number of all upstreams together.
    policy.idle = valid.get("upstream-keepalive-connections").and_then(|text| text.parse().ok());
    policy.check = checks::Written::read(valid);
    policy.logged = boolean("enable-access-log").unwrap_or(true);
    policy.logs_rewrites = boolean("enable-rewrite-log").unwrap_or(false);
    policy.redirect = redirects::elsewhere(&text);
}

/// Value of `load-balance`.
pub(in crate::translate) fn load_balance(text: &str) -> Balance {
    match text.to_ascii_lowercase().as_str() {
        "ewma" => Balance::PeakEwma,
        "least_requests" => Balance::LeastRequests,
        _ => Balance::RoundRobin,
    }
}

/// Whole seconds; negative ones are none.
fn seconds(text: &str) -> Option<Duration> {
    text.parse().ok().map(Duration::from_secs)
}

fn protocol(text: &str) -> Protocol {
    match text.to_ascii_uppercase().as_str() {
        "HTTPS" => Protocol::Https,
        "AUTO_HTTP" => Protocol::AutoHttp,
        "GRPC" => Protocol::Grpc,
        "GRPCS" => Protocol::Grpcs,
        "FCGI" => Protocol::FastCgi,
        _ => Protocol::Http,
    }
}

fn retry<'t>(text: &impl Fn(&str) -> Option<&'t str>, settings: &Settings) -> Retry {
    let default = Retry::default();
    let on = text("proxy-next-upstream").and_then(Conditions::parse).unwrap_or(default.on);
    let repeats_all = settings.boolean("retry-non-idempotent").unwrap_or(false);
    Retry {
        on: if repeats_all { on.with(Condition::NonIdempotent) } else { on },
        tries: text("proxy-next-upstream-tries").and_then(|text| text.parse().ok()).unwrap_or(default.tries),
        within: text("proxy-next-upstream-timeout").and_then(seconds).unwrap_or(default.within),
    }
}

fn proxy_ssl<'t>(text: &impl Fn(&str) -> Option<&'t str>, crosses: bool) -> Option<ProxySsl> {
    let is_on = |name: &str| text(name).is_some_and(|text| text.eq_ignore_ascii_case("on"));
    let versions = text("proxy-ssl-protocols").unwrap_or("TLSv1.2");
    Some(ProxySsl {
        secret: text("proxy-ssl-secret")?.to_owned(),
        crosses,
        verify: is_on("proxy-ssl-verify"),
        depth: text("proxy-ssl-verify-depth").and_then(|text| text.parse().ok()).unwrap_or(1),
        name: text("proxy-ssl-name").map(str::to_owned),
        send_name: is_on("proxy-ssl-server-name"),
        versions: match (versions.contains("TLSv1.2"), versions.contains("TLSv1.3")) {
            (true, true) => TlsVersions::Both,
            (false, true) => TlsVersions::Tls13,
            (_, false) => TlsVersions::Tls12,
        },
    })
}

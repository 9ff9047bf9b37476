//! Annotations of one Ingress as typed values, and what is to be said about each.

mod access;
mod auth;
mod buffers;
mod canary;
mod cors;
mod errors;
mod external_auth;
mod fastcgi;
mod limits;
mod mirror;
mod policies;
mod redirects;
mod removed;
mod response_headers;
mod rewriting;
mod session;
mod spelling;
pub(super) mod table;
mod upstream_headers;
pub(super) mod value;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use self::policies::Source;
pub(super) use self::policies::Unusable;
pub(super) use self::spelling::nearest;
use self::table::{Annotation, BadValue, Status, TABLE, Value};
use super::config::{self, Settings};
use super::findings::About;
use super::mode;
use super::ours;
use super::upstreams::Reach;
use super::view::View;
use super::{SnippetPolicy, checks, client_auth};
use crate::model::ObjectName;
use crate::model::canary::{Rules, Sessions};
use crate::model::expression::Expression;
use crate::model::l7::{Buffers, FastCgi, Mode, Policies, RedirectStyle, TlsVersions};
use crate::model::session::Affinity;
use crate::model::upstream::{Balance, Condition, Conditions, Protocol, Retry, UpstreamName};

/// `--annotations-prefix`.
pub const PREFIX: &str = "nginx.ingress.kubernetes.io";

/// `no-tls-redirect-locations` where it is not set: authorities ask for HTTP-01 challenges over plain HTTP.
const CHALLENGES: &str = "/.well-known/acme-challenge";

/// What the annotations of one Ingress ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Policy {
    /// Something must fail closed: every location answers 503.
    pub denied: bool,
    /// What it has instead of an answer may be what guards its hosts, whose every location answers 503.
    pub closes_hosts: bool,
    /// It is a canary, and takes these requests.
    pub canary: Option<Rules>,
    pub use_regex: bool,
    pub mode: Mode,
    pub rewrite_target: Option<String>,
    pub ssl_redirect: bool,
    pub force_ssl_redirect: bool,
    /// How redirects of ours are written.
    pub redirects: Arc<RedirectStyle>,
    /// `no-tls-redirect-locations`: locations whose paths begin so are served over plain HTTP.
    pub plain: Vec<String>,
    pub app_root: Option<String>,
    /// `server-alias`, as written.
    pub aliases: Vec<String>,
    /// `from-to-www-redirect`.
    pub redirects_www: bool,
    /// `auth-tls-*`, where there is an `auth-tls-secret`.
    pub client_auth: Option<client_auth::Written>,
    pub ssl_ciphers: Option<String>,
    pub ssl_prefer_server_ciphers: Option<bool>,
    pub ssl_passthrough: bool,
    /// Status and URL.
    pub redirect: Option<(u16, String)>,
    pub connect_timeout: Option<Duration>,
    pub send_timeout: Option<Duration>,
    pub read_timeout: Option<Duration>,
    /// `Some(None)`-free: 0 means unlimited, as written.
    pub body_bytes: Option<u64>,
    pub buffers: Buffers,
    pub protocol: Protocol,
    pub fastcgi: Option<Arc<FastCgi>>,
    pub retry: Retry,
    pub proxy_ssl: Option<ProxySsl>,
    /// `load-balance`; `None` leaves it to others.
    pub load_balance: Option<Balance>,
    /// `upstream-hash-by`, which counts more.
    pub hash_by: Option<Balance>,
    /// `service-upstream`.
    pub reach: Reach,
    /// `upstream-keepalive-connections`.
    pub idle: Option<usize>,
    /// `upstream-health-check-*`.
    pub check: Option<checks::Written>,
    /// `affinity`, without the places where its cookie is handed out.
    pub affinity: Option<Affinity>,
    /// `affinity-canary-behavior`.
    pub at_canary: Sessions,
    pub logged: bool,
    /// What the locations do beyond proxying.
    pub policies: Option<Arc<Policies>>,
    /// `default-backend`: a Service beside the Ingress.
    pub default_backend: Option<String>,
    /// The Service that is asked whether a request may go on, where it is one of ours.
    pub asks: Option<(ObjectName, u16)>,
    /// The Service that gets copies of requests, where it is one of ours.
    pub copies_to: Option<(ObjectName, u16)>,
    /// `no-auth-locations`: paths that begin so ask nobody to show anything.
    pub unguarded: Vec<String>,
}

/// `proxy-ssl-*`, which mean nothing without the Secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ProxySsl {
    /// As written: `name` or `namespace/name`.
    pub secret: String,
    pub verify: bool,
    pub depth: u32,
    pub name: Option<String>,
    pub send_name: bool,
    pub versions: TlsVersions,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            denied: false,
            closes_hosts: false,
            canary: None,
            use_regex: false,
            mode: Mode::Compat,
            rewrite_target: None,
            ssl_redirect: true,
            force_ssl_redirect: false,
            redirects: Arc::default(),
            plain: Vec::new(),
            app_root: None,
            aliases: Vec::new(),
            redirects_www: false,
            client_auth: None,
            ssl_ciphers: None,
            ssl_prefer_server_ciphers: None,
            ssl_passthrough: false,
            redirect: None,
            connect_timeout: None,
            send_timeout: None,
            read_timeout: None,
            body_bytes: None,
            buffers: Buffers::default(),
            protocol: Protocol::Http,
            fastcgi: None,
            retry: Retry::default(),
            proxy_ssl: None,
            load_balance: None,
            hash_by: None,
            reach: Reach::Endpoints,
            idle: None,
            check: None,
            affinity: None,
            at_canary: Sessions::default(),
            logged: true,
            policies: None,
            default_backend: None,
            asks: None,
            copies_to: None,
            unguarded: Vec::new(),
        }
    }
}

impl Policy {
    /// The location of this path redirects to https, on a host that has TLS or has not.
    pub(super) fn redirects_to_https(&self, path: &str, tls: bool) -> bool {
        let wants = self.force_ssl_redirect || (tls && self.ssl_redirect);
        wants && !self.plain.iter().any(|start| path.starts_with(start))
    }

    /// What the location of this path does beyond proxying.
    pub(super) fn policies_at(&self, path: &str) -> Option<Arc<Policies>> {
        let policies = self.policies.as_ref()?;
        let is_guarded =
            policies.auth.is_some() && !self.unguarded.iter().any(|start| path.starts_with(start));
        if is_guarded || policies.auth.is_none() {
            return Some(Arc::clone(policies));
        }
        let open = Policies { auth: None, ..Policies::clone(policies) };
        (open != Policies::default()).then(|| Arc::new(open))
    }

    /// Who is asked whether a request may go on is asked at this upstream.
    pub(super) fn ask_at(&mut self, upstream: UpstreamName) {
        let policies = self.policies.as_mut().map(Arc::make_mut);
        let auth = policies.and_then(|policies| policies.auth.as_mut());
        if let Some(external) = auth.and_then(|auth| auth.external.as_mut()) {
            external.upstream = Some(upstream);
        }
    }

    /// Errors are worded by this upstream, and it stands in for those without endpoints.
    pub(super) fn errors_to(&mut self, upstream: UpstreamName) {
        let policies = Arc::make_mut(self.policies.get_or_insert_default());
        policies.errors.get_or_insert_default().backend = Some(upstream);
    }

    /// Errors are worded by the default backend of all.
    pub(super) fn has_plain_error_pages(&self) -> bool {
        let errors = self.policies.as_ref().and_then(|policies| policies.errors.as_ref());
        errors.is_some_and(|errors| errors.backend.is_none())
    }

    /// Copies of requests go to this upstream.
    pub(super) fn copy_to(&mut self, upstream: UpstreamName) {
        let policies = self.policies.as_mut().map(Arc::make_mut);
        if let Some(mirror) = policies.and_then(|policies| policies.mirror.as_mut()) {
            mirror.upstream = Some(upstream);
        }
    }

    /// That of a place without an Ingress.
    pub(super) fn of_settings(settings: &Settings, objects: &View<'_>, about: &mut About<'_>) -> Self {
        let (mut policy, valid) = (Self::default(), BTreeMap::new());
        honour(&valid, settings, &mut policy);
        policy.mode = mode::of_settings(settings);
        let source = Source { valid: &valid, settings, objects, namespace: "", name: "", mode: policy.mode };
        policies::read(&source, &mut policy, about);
        policy
    }
}

/// Class A: a version of an Ingress with such a value is not admitted.
pub(super) fn admit(metadata: &ObjectMeta, about: &mut About<'_>) {
    for (row, text) in known(metadata).filter(|(row, _)| row.bad_value == BadValue::Refuse) {
        if let Err(message) = value::check(row.value, text) {
            let fix = value::advice(row.value, text);
            about.error_fix("bad-annotation", field(row.name), message, fix);
        }
    }
}

/// Reads the annotations of an Ingress; says what is wrong, ignored or not yet honoured.
pub(super) fn read(
    metadata: &ObjectMeta,
    settings: &Settings,
    objects: &View<'_>,
    snippets: SnippetPolicy,
    about: &mut About<'_>,
) -> Policy {
    unknown(metadata, about);
    ours::of_ingress(metadata, about);
    let mut valid: BTreeMap<&str, &str> = BTreeMap::new();
    let mut policy = Policy::default();
    let is_canary =
        known(metadata).any(|(row, text)| row.name == "canary" && value::boolean(text) == Some(true));
    for (row, text) in known(metadata) {
        if is_canary && !canary::counts(row.name) {
            let message = "ignored: a canary's requests are treated as its primary says";
            about.info("ignored-on-canary", field(row.name), message, "");
            continue;
        }
        // A snippet has lines; it is refused for what it is.
        let is_snippet = row.status == Status::Refused && row.value == Value::Text;
        let verdict = if is_snippet { Ok(()) } else { value::check(row.value, text) };
        match verdict {
            Ok(()) => {
                valid.insert(row.name, text);
            }
            Err(message) => match (row.status, row.bad_value) {
                // What guards something and cannot be read still guards it.
                (Status::Refused, _) | (_, BadValue::Deny | BadValue::Refuse) => {
                    policy.denied = true;
                    let fix = "its locations answer 503 until it is corrected";
                    about.error_fix("bad-annotation", field(row.name), message, fix);
                }
                // No Secret has such a name, which is told where the Secret is looked for.
                (_, BadValue::Close) => {
                    valid.insert(row.name, text);
                }
                (_, BadValue::Default) => {
                    let message = format!("{message}; the default is used");
                    about.warn("bad-annotation", field(row.name), message, value::advice(row.value, text));
                }
            },
        }
    }
    policy.canary = canary::read(&valid, about);
    policy.affinity = session::read(&valid, about);
    policy.at_canary = session::at_canary(&valid);
    for (row, text) in known(metadata).filter(|(row, _)| valid.contains_key(row.name)) {
        status(row, text, &valid, snippets, &mut policy, about);
    }
    honour(&valid, settings, &mut policy);
    policy.mode = mode::of(metadata, settings);
    if known(metadata).any(|(row, _)| row.name == "temporal-redirect" && !valid.contains_key(row.name)) {
        // As in ingress-nginx, where a bad one takes the permanent one with it.
        policy.redirect = None;
    }
    unknown_variable(&valid, about);
    redirects::tell(&valid, about);
    if is_canary {
        return policy;
    }
    let namespace = metadata.namespace.as_deref().unwrap_or_default();
    let name = metadata.name.as_deref().unwrap_or_default();
    let source = Source { valid: &valid, settings, objects, namespace, name, mode: policy.mode };
    policies::read(&source, &mut policy, about);
    fastcgi::complete(&source, &mut policy, about);
    new_effects(&valid, about);
    checks::tell(&policy, about);
    policy
}

/// What there is to say about a valid annotation that is not simply honoured.
fn status(
    row: &Annotation,
    text: &str,
    valid: &BTreeMap<&str, &str>,
    snippets: SnippetPolicy,
    policy: &mut Policy,
    about: &mut About<'_>,
) {
    let off = row.value == Value::Bool && value::boolean(text) == Some(false);
    match row.status {
        Status::Honoured => {}
        _ if off => {}
        Status::NotYet => {
            about.warn("not-yet", field(row.name), format!("not honoured yet ({}); ignored", row.doc), "");
        }
        Status::With(other) if valid.contains_key(other) && is_honoured(other) => {}
        Status::With(other) if valid.contains_key(other) => {
            about.info(
                "not-yet",
                field(row.name),
                format!("goes with {other}, which is not honoured yet"),
                "",
            );
        }
        Status::With(other) => {
            about.info("no-effect", field(row.name), format!("has no effect without {other}"), "");
        }
        Status::NoEffect => {
            about.info("no-effect", field(row.name), format!("accepted without effect ({})", row.doc), "")
        }
        Status::Refused
            if snippets == SnippetPolicy::Ignore
                && row.name.ends_with("-snippet")
                && !config::is_firewall(row.name) =>
        {
            let message = format!("never honoured ({}); ignored, as --snippet-policy says", row.doc);
            about.warn("ignored-snippet", field(row.name), message, native_alternative(row.name));
        }
        Status::Refused => {
            policy.denied = true;
            // Of the whole server, as nginx calls it: of all Ingresses that have the host in common.
            policy.closes_hosts |= row.name == "server-snippet";
            let closed =
                if policy.closes_hosts { "its hosts answer 503" } else { "its locations answer 503" };
            about.error_fix(
                "refused-annotation",
                field(row.name),
                format!("never honoured ({}); {closed}", row.doc),
                native_alternative(row.name),
            );
        }
    }
}

fn native_alternative(name: &str) -> &'static str {
    if name.ends_with("-snippet") {
        "say the same with annotations: redirects, custom headers, source ranges, timeouts"
    } else {
        "no web application firewall runs here; put one in front or remove the annotation"
    }
}

/// Fills in what is honoured; where an annotation is not set, the setting of its name counts.
fn honour(valid: &BTreeMap<&str, &str>, settings: &Settings, policy: &mut Policy) {
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
    let aliases = text("server-alias").unwrap_or_default().split([',', ' ']);
    policy.aliases = aliases.filter(|alias| !alias.is_empty()).map(str::to_owned).collect();
    policy.redirects_www = boolean("from-to-www-redirect").unwrap_or(false);
    policy.client_auth = text("auth-tls-secret").map(|secret| client_auth::Written {
        secret: secret.to_owned(),
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
    policy.proxy_ssl = proxy_ssl(&text);
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
    policy.redirect = redirects::redirect(&text);
}

/// Value of `load-balance`.
pub(super) fn load_balance(text: &str) -> Balance {
    match text.to_ascii_lowercase().as_str() {
        "ewma" => Balance::PeakEwma,
        "least_requests" => Balance::LeastRequests,
        _ => Balance::RoundRobin,
    }
}

/// What `upstream-hash-by` names and nobody knows.
fn unknown_variable(valid: &BTreeMap<&str, &str>, about: &mut About<'_>) {
    if let Some(Err(message)) = valid.get("upstream-hash-by").map(|text| Expression::parse(text)) {
        let fix = "$request_uri, $uri, $args, $host, $remote_addr, $scheme, $request_method, $http_*, $arg_*, $cookie_*";
        about.warn("unknown-variable", field("upstream-hash-by"), format!("{message}; not hashed"), fix);
    }
}

/// What ingress-nginx does not know: whoever comes from there wrote it in vain until now.
fn new_effects(valid: &BTreeMap<&str, &str>, about: &mut About<'_>) {
    for name in [checks::PATH, checks::INTERVAL, "upstream-keepalive-connections"] {
        if valid.contains_key(name) {
            let message = "has no effect with ingress-nginx and takes effect here";
            about.info("new-effect", field(name), message, "");
        }
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

fn proxy_ssl<'t>(text: &impl Fn(&str) -> Option<&'t str>) -> Option<ProxySsl> {
    let is_on = |name: &str| text(name).is_some_and(|text| text.eq_ignore_ascii_case("on"));
    let versions = text("proxy-ssl-protocols").unwrap_or("TLSv1.2");
    Some(ProxySsl {
        secret: text("proxy-ssl-secret")?.to_owned(),
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

/// Annotations of the table that are set, trimmed; an alias only while its proper name is empty.
pub(super) fn known(metadata: &ObjectMeta) -> impl Iterator<Item = (&'static Annotation, &str)> {
    let all = metadata.annotations.as_ref();
    let is_set = move |name: &str| {
        let text = all.and_then(|all| all.get(&format!("{PREFIX}/{name}")));
        text.is_some_and(|text| !text.trim().is_empty())
    };
    all.into_iter().flatten().filter_map(move |(name, text)| {
        let row = row(short_name(name)?)?;
        let text = text.trim();
        let shadowed = match row.name {
            "whitelist-source-range" => is_set("allowlist-source-range"),
            "limit-whitelist" => is_set("limit-allowlist"),
            _ => false,
        };
        (!text.is_empty() && !shadowed).then_some((row, text))
    })
}

/// Name without the prefix; `None` where it has another.
fn short_name(name: &str) -> Option<&str> {
    name.strip_prefix(PREFIX)?.strip_prefix('/')
}

fn row(short: &str) -> Option<&'static Annotation> {
    TABLE.iter().find(|row| row.name == short)
}

fn unknown(metadata: &ObjectMeta, about: &mut About<'_>) {
    for name in metadata.annotations.iter().flatten().map(|(name, _)| name) {
        let Some(short) = short_name(name).filter(|short| row(short).is_none()) else { continue };
        if let Some(fix) = removed::successor(short) {
            let message = "ingress-nginx has no such annotation any more; ignored";
            about.warn("removed-annotation", field(short), message, fix);
            continue;
        }
        let names = TABLE.iter().map(|row| row.name);
        let fix = nearest(short, names).map_or(String::new(), |name| format!("did you mean {name}?"));
        about.warn("unknown-annotation", field(short), "no such annotation; ignored", fix);
    }
}

/// Field of an annotation, as problems name it.
pub(super) fn field(name: &str) -> String {
    format!("metadata.annotations.{PREFIX}/{name}")
}

/// Names of the annotations of an object that are honoured, for `check`.
pub(super) fn honoured(metadata: &ObjectMeta) -> Vec<&'static str> {
    let set: Vec<_> = known(metadata).map(|(row, _)| row).collect();
    let counts = |row: &&Annotation| match row.status {
        Status::With(other) => is_honoured(other) && set.iter().any(|row| row.name == other),
        status => status == Status::Honoured,
    };
    set.iter().copied().filter(counts).map(|row| row.name).collect()
}

fn is_honoured(name: &str) -> bool {
    row(name).is_some_and(|row| match row.status {
        Status::With(other) => is_honoured(other),
        status => status == Status::Honoured,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_names_each_annotation_once_and_only_known_companions() {
        let mut names: Vec<_> = TABLE.iter().map(|row| row.name).collect();
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
        for row in TABLE {
            if let Status::With(other) = row.status {
                assert!(names.contains(&other), "{}: {other}", row.name);
            }
        }
    }
}

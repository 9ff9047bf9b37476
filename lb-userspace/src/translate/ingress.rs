//! Ingresses to virtual servers: hosts, their paths, default backends and certificates.

mod canaries;
mod error_backend;
mod further;
mod one;
mod tls;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use k8s_openapi::api::networking::v1::Ingress;

use self::tls::Tls;
use super::Options;
use super::annotations::{self, Policy};
use super::certificates::{self, Certificates};
use super::ciphers;
use super::classes::{Seniority, Served};
use super::config::{Config, Gate, Settings};
use super::endpoints::Slices;
use super::findings::{About, Findings};
use super::parts::Claim;
use super::routes::{self, Draft, PatternBudget};
use super::streams;
use super::template::template;
use super::upstream_tls::ProxySsl;
use super::upstreams::{Laid, Upstreams};
use super::view::View;
use crate::model::l7::{
    Action, Aliases, Certificate, Cipher, CipherOrder, Ciphers, ClientAuth, Edge, HostMatch, Pattern, Server,
    ServicePort, Streams, UpstreamName,
};
use crate::model::{ObjectId, ObjectName};

/// A host as Ingresses build it up, oldest first.
#[derive(Default)]
struct Host {
    drafts: Vec<Draft>,
    /// Which draft owns a path, by the path and whether it is exact.
    owners: BTreeMap<(String, bool), usize>,
    /// The oldest Ingress on the host: its annotations hold for the implicit `/` too.
    oldest: Option<(ObjectId, Arc<Policy>)>,
    /// Its `spec.defaultBackend`, never that of another one: what guards a backend stands where it is named.
    default: Option<DefaultBackend>,
    app_root: Option<(String, ObjectName)>,
    /// The oldest Ingress on the host that closes it.
    closed_by: Option<ObjectName>,
    /// `server-alias` of the oldest Ingress on the host that has it.
    aliases: Option<further::Claim>,
    /// `from-to-www-redirect` of any; and the status of it.
    www: Option<(u16, ObjectId)>,
    /// `proxy-ssl-*` of the oldest Ingress on the host that has them.
    proxy_ssl: Option<Arc<ProxySsl>>,
    /// What the oldest Ingress with `auth-tls-secret` demands of clients.
    client_auth: Option<(Arc<ClientAuth>, ObjectName)>,
    /// Ciphers of the oldest Ingress that names them, and whose order counts by the oldest that says so.
    ciphers: Option<Vec<Cipher>>,
    order: Option<CipherOrder>,
    tls: Option<Tls>,
}

/// `spec.defaultBackend` of an Ingress.
#[derive(Clone)]
struct DefaultBackend {
    ingress: ObjectName,
    action: Action,
    backend: Option<Arc<ServicePort>>,
}

/// What Ingresses are made of, and what has been made of them so far.
struct Making<'a> {
    objects: &'a View<'a>,
    options: &'a Options,
    gate: Gate,
    settings: &'a Settings,
    hosts: BTreeMap<HostMatch, Host>,
    passthrough: BTreeMap<String, UpstreamName>,
    upstreams: Upstreams<'a>,
    certificates: Certificates<'a>,
}

/// What a part of the Ingresses comes to.
#[derive(Default)]
pub(super) struct Output {
    pub servers: BTreeMap<HostMatch, Arc<Server>>,
    /// Further names, but for those that are patterns.
    pub aliases: Aliases,
    /// Those; of all that there are the first that fits counts, in the order of their Ingresses and rules.
    pub patterns: Vec<((Seniority, usize), Pattern, HostMatch)>,
    pub certificates: BTreeMap<HostMatch, Arc<Certificate>>,
    pub passthrough: BTreeMap<String, UpstreamName>,
    pub upstreams: BTreeMap<UpstreamName, Laid>,
    pub default_backend: Option<UpstreamName>,
    /// Ports beside http and https, of the flags.
    pub streams: Arc<Streams>,
    pub default_certificate: Option<Arc<Certificate>>,
}

/// Ingresses of ours that have to do with each other and with no others.
pub(super) struct Together<'a> {
    /// In the order in which they win conflicts.
    pub served: Vec<Served<'a>>,
    /// What the flags name belongs to them, and the host that nobody names.
    pub flags: bool,
}

/// Everything the proxy serves of these Ingresses.
pub(super) fn translate(
    together: Together<'_>,
    objects: &View<'_>,
    slices: &Slices,
    known: &mut certificates::Known,
    config: &Config,
    options: &Options,
    findings: &mut Findings,
) -> Output {
    let Together { served, flags } = together;
    let Config { gate, edge, settings, .. } = config;
    let gate = *gate;
    let mut making = Making {
        objects,
        options,
        gate,
        settings,
        hosts: BTreeMap::new(),
        passthrough: BTreeMap::new(),
        upstreams: Upstreams::new(objects, slices, options),
        certificates: Certificates::new(objects, known),
    };
    let mut canaries = Vec::new();
    for served in served {
        canaries.extend(one::add(served, &mut making, findings));
    }
    let Making { mut hosts, passthrough, mut upstreams, mut certificates, .. } = making;
    if flags && has_nameless_host(config) {
        hosts.entry(HostMatch::Any).or_default();
    }
    let primaries = canaries::Primaries::of(&hosts);
    for waiting in &canaries {
        canaries::attach(waiting, &hosts, &primaries, &mut upstreams, findings);
    }
    let flag = |name: &str| ObjectId { origin: name.to_owned(), ..ObjectId::default() };
    let default_backend = options.default_backend_service.as_ref().filter(|_| flags).and_then(|service| {
        let id = flag("--default-backend-service");
        upstreams.of_first_port(service, &mut findings.about(&id))
    });
    let streams =
        if flags { streams::proxied(objects, options, &mut upstreams, findings) } else { Streams::default() };
    let default_certificate = options.default_ssl_certificate.as_ref().filter(|_| flags).and_then(|secret| {
        let id = flag("--default-ssl-certificate");
        match certificates.of(secret) {
            Ok(checked) => Some(checked.certificate.clone()),
            Err(message) => {
                findings.about(&id).error("bad-certificate", "", message);
                None
            }
        }
    });
    if let Some(name) = options.publish_service.as_ref().filter(|_| flags)
        && objects.services.get(name).is_none()
    {
        let message = format!("there is no Service {name}: Ingresses get no address in their status");
        let fix =
            "name the Service that traffic arrives by, or leave the flag out to get the nodes' addresses";
        findings.about(&flag("--publish-service")).warn("missing-service", "", message, fix);
    }
    let streams = Arc::new(streams);
    let mut output =
        Output { passthrough, default_backend, default_certificate, streams, ..Output::default() };
    let mut patterns = PatternBudget::default();
    further::add(&hosts, &mut output, &mut patterns, findings);
    for (host, built) in hosts {
        if let Some(checked) = built.tls.as_ref().and_then(|tls| tls.certificate.as_ref()) {
            output.certificates.insert(host.clone(), checked.certificate.clone());
        }
        let server = server(&host, built, edge, objects, settings, gate, (&mut patterns, findings));
        output.servers.insert(host, Arc::new(server));
    }
    output.upstreams = upstreams.into_built(settings);
    output
}

/// Whether the ConfigMap holds for hosts that nobody names, too.
fn has_nameless_host(config: &Config) -> bool {
    let Config { gate, settings, .. } = config;
    *gate == Gate::Closed || settings.restricts_sources() || settings.text("custom-http-errors").is_some()
}

impl Output {
    /// What no other Ingresses may have, if they are translated apart from these.
    pub(super) fn claims(&self) -> HashMap<Claimed, Claim> {
        let Self { servers, aliases, certificates, passthrough, upstreams, .. } = self;
        let names = aliases.exact.keys().map(|name| HostMatch::Exact(name.clone()));
        let names = names.chain(aliases.below.keys().map(|name| HostMatch::Wildcard(name.clone())));
        let passed = passthrough.keys().map(|host| HostMatch::Exact(host.clone()));
        let hosts = servers.keys().chain(certificates.keys()).cloned().chain(names).chain(passed);
        let mut claims: HashMap<_, _> = hosts.map(|host| (Claimed::Host(host), Claim::Alone)).collect();
        for (name, laid) in upstreams {
            claims.insert(Claimed::Upstream(name.clone()), Claim::With(laid.of.clone()));
            if laid.is_settled {
                claims.insert(Claimed::Settled(name.clone()), Claim::Alone);
            }
        }
        claims
    }
}

/// What Ingresses can have in common.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Claimed {
    Host(HostMatch),
    /// The name of an upstream.
    Upstream(UpstreamName),
    /// How an upstream is dealt with, where somebody says how.
    Settled(UpstreamName),
}

/// The hosts that an Ingress has to do with, whether anything is made of them or not: a canary waits for its
/// primary.
pub(super) fn claims_of(ingress: &Ingress) -> Vec<Claimed> {
    let rules = ingress.spec.iter().flat_map(|spec| spec.rules.iter().flatten());
    rules.map(|rule| Claimed::Host(host_match(rule.host.as_deref().unwrap_or_default()))).collect()
}

/// The same of what the flags name.
pub(super) fn claims_of_flags(config: &Config) -> Vec<Claimed> {
    has_nameless_host(config).then_some(Claimed::Host(HostMatch::Any)).into_iter().collect()
}

/// The first owner of (host, path, kind of path) keeps it.
fn add(host: &mut Host, name: &HostMatch, draft: Draft, about: &mut About<'_>) {
    let place = (draft.path.clone(), draft.exact);
    if let Some(owner) = host.owners.get(&place).and_then(|index| host.drafts.get(*index)) {
        let winner = owner.ingress.as_ref().map(ToString::to_string).unwrap_or_default();
        about.warn(
            "path-conflict",
            draft.field,
            format!("{name}{} belongs to Ingress {winner} already; this one is ignored", draft.path),
            "the older Ingress wins, of the same age the last by name; remove one",
        );
        return;
    }
    host.owners.insert(place, host.drafts.len());
    host.drafts.push(draft);
}

fn app_root(
    host: &mut Host,
    host_match: &HostMatch,
    served: &Served<'_>,
    policy: &Policy,
    about: &mut About<'_>,
) {
    // Also where the Ingress is closed: ingress-nginx sends away from `/` before it looks at any path.
    let Some(root) = &policy.app_root else { return };
    if let Err(message) = template(root) {
        let field = annotations::field("app-root");
        return about.warn("unknown-variable", field, format!("{message}; it is ignored"), "");
    }
    match &host.app_root {
        None => host.app_root = Some((root.clone(), served.name.clone())),
        Some((known, owner)) if known != root && owner != served.name => about.warn(
            "host-setting-conflict",
            annotations::field("app-root"),
            format!("{host_match} has app-root {known:?} from Ingress {owner} already; this one is ignored"),
            "",
        ),
        Some(_) => {}
    }
}

/// The oldest Ingress of the host that asks for client certificates decides.
fn client_auth(
    host: &mut Host,
    host_match: &HostMatch,
    served: &Served<'_>,
    policy: &Policy,
    objects: &View<'_>,
    about: &mut About<'_>,
) {
    let Some(written) = &policy.client_auth else { return };
    match &host.client_auth {
        None => {
            let auth = super::client_auth::read(written, &served.name.namespace, objects, about);
            host.client_auth = Some((Arc::new(auth), served.name.clone()));
        }
        Some((_, owner)) if owner != served.name => about.warn(
            "host-setting-conflict",
            annotations::field("auth-tls-secret"),
            format!("{host_match} has client certificates from Ingress {owner} already; these are ignored"),
            "",
        ),
        Some(_) => {}
    }
}

fn host_ciphers(host: &mut Host, host_match: &HostMatch, policy: &Policy, about: &mut About<'_>) {
    let ignored = |name: &str, about: &mut About<'_>| {
        let message =
            format!("an older Ingress says otherwise for {host_match} already; this one is ignored");
        about.warn("host-setting-conflict", annotations::field(name), message, "");
    };
    if let (None, Some(text)) = (&host.ciphers, &policy.ssl_ciphers) {
        let list = ciphers::read(text);
        ciphers::tell(&list, &annotations::field("ssl-ciphers"), about);
        host.ciphers = Some(list.suites);
    } else if let Some(text) = &policy.ssl_ciphers
        && host.ciphers.as_ref() != Some(&ciphers::read(text).suites)
    {
        ignored("ssl-ciphers", about);
    }
    let order = policy.ssl_prefer_server_ciphers.map(|ours| match ours {
        true => CipherOrder::Ours,
        false => CipherOrder::Clients,
    });
    if host.order.is_none() {
        host.order = order;
    } else if order.is_some() && host.order != order {
        ignored("ssl-prefer-server-ciphers", about);
    }
}

/// Hands the TLS of a host to the Service of its path `/`.
fn hand_on(
    host: &Host,
    host_match: &HostMatch,
    options: &Options,
    passthrough: &mut BTreeMap<String, UpstreamName>,
    upstreams: &mut Upstreams<'_>,
    about: &mut About<'_>,
) {
    let mut not = |message: String, fix: &str| {
        about.warn("passthrough-ignored", annotations::field("ssl-passthrough"), message, fix);
    };
    let root = host.owners.get(&("/".to_owned(), false)).and_then(|index| host.drafts.get(*index));
    let to = root.and_then(|draft| Some((draft, draft.ingress.as_ref()?, draft.backend.as_ref()?)));
    match (host_match, to) {
        _ if !options.enable_ssl_passthrough => {
            not(format!("TLS of {host_match} is ended here"), "start with --enable-ssl-passthrough");
        }
        (HostMatch::Exact(name), Some((draft, ingress, backend))) => {
            passthrough.entry(name.clone()).or_insert_with(|| {
                upstreams.of_handed_on(&ingress.namespace, backend, draft.policy.reach, about)
            });
        }
        (HostMatch::Exact(_), _) => {
            not(format!("TLS of {host_match} is ended here: no path / leads to a Service"), "add the path /");
        }
        (HostMatch::Wildcard(_) | HostMatch::Any, _) => {
            not(format!("TLS of {host_match} is ended here: only a host named exactly can be handed on"), "");
        }
    }
}

fn server(
    name: &HostMatch,
    host: Host,
    edge: &Edge,
    objects: &View<'_>,
    settings: &Settings,
    gate: Gate,
    (patterns, findings): (&mut PatternBudget, &mut Findings),
) -> Server {
    let Host {
        mut drafts,
        owners,
        oldest,
        default,
        app_root,
        closed_by,
        proxy_ssl,
        client_auth,
        ciphers,
        order,
        tls,
        ..
    } = host;
    let own_ciphers = (ciphers.is_some() || order.is_some()).then(|| Ciphers {
        suites: ciphers.unwrap_or_else(|| edge.tls.ciphers.suites.clone()),
        order: order.unwrap_or(edge.tls.ciphers.order),
    });
    if !owners.contains_key(&("/".to_owned(), false)) {
        let (id, policy) = match oldest {
            // Without a default backend the catch-all server is nobody's: no Ingress lends it annotations.
            Some((id, policy)) if *name != HostMatch::Any => (id, policy),
            Some((id, policy)) if default.is_some() => (id, Arc::new(of_catch_all(&policy))),
            oldest => {
                // Without any Ingress there is nobody to tell.
                let mut unheard = Findings::default();
                let (id, findings) = match oldest {
                    Some((id, _)) => (id, &mut *findings),
                    None => (ObjectId::default(), &mut unheard),
                };
                let mut policy = Policy::of_settings(settings, objects, &mut findings.about(&id));
                policy.denied |= gate == Gate::Closed;
                (id, Arc::new(policy))
            }
        };
        let (ingress, action, backend) = match default {
            Some(DefaultBackend { ingress, action, backend }) => (Some(ingress), action, backend),
            None => (None, Action::DefaultBackend, None),
        };
        drafts.push(Draft {
            path: "/".to_owned(),
            exact: false,
            specific: false,
            field: String::new(),
            ingress,
            id,
            backend,
            action,
            policy,
            proxy_ssl: None,
        });
    }
    if let Some(closed_by) = closed_by {
        close(&mut drafts, name, &closed_by, findings);
    }
    if !settings.boolean("proxy-ssl-location-only").unwrap_or(false) {
        for draft in &mut drafts {
            draft.proxy_ssl.clone_from(&proxy_ssl);
        }
    }
    Server {
        locations: routes::locations(drafts, tls.is_some(), patterns, findings),
        tls: tls.is_some(),
        app_root: app_root.and_then(|(root, _)| template(&root).ok()),
        client_auth: client_auth.map(|(auth, _)| auth),
        ciphers: own_ciphers,
        moved: None,
    }
}

/// What of an Ingress's annotations holds for requests that no host takes: no redirects, no rewrites.
fn of_catch_all(policy: &Policy) -> Policy {
    Policy { redirect: None, rewrite_target: None, app_root: None, use_regex: false, ..policy.clone() }
}

/// Closes all paths of a host, and tells the Ingresses whose fault it is not.
fn close(drafts: &mut [Draft], host: &HostMatch, closed_by: &ObjectName, findings: &mut Findings) {
    let mut told = BTreeSet::new();
    for draft in drafts.iter_mut().filter(|draft| !draft.policy.denied) {
        draft.policy = Arc::new(Policy { denied: true, ..(*draft.policy).clone() });
        if told.insert(draft.id.clone()) {
            findings.about(&draft.id).error_fix(
                "host-closed",
                "",
                format!("{host} answers 503: Ingress {closed_by} has a server-snippet, which may be what guards this one, too"),
                "remove the snippet there; say the same with annotations",
            );
        }
    }
}

fn host_match(host: &str) -> HostMatch {
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    match host.strip_prefix("*.") {
        _ if host.is_empty() => HostMatch::Any,
        Some(suffix) => HostMatch::Wildcard(suffix.to_owned()),
        None => HostMatch::Exact(host),
    }
}

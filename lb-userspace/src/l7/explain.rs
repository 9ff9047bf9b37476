//! `penstock explain URL`: the decision of [`super::filters::decide`] in words.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::model::health::{Failing, Unwell};
use crate::model::l7::policy::{Auth, Satisfy};
use crate::model::l7::{ClientAuth, Demand, L7, Mode, SslRedirect};
use crate::model::problem::{ObjectId, Problem, Problems, Severity};
use crate::model::report::{Explanation, Step};
use crate::model::upstream::External;

use super::balance::too_many;
use super::canary;
use super::client::Effective;
use super::client_auth::Shown;
use super::compress;
use super::filters::{Answer, Asked, Decision, Next, canary_choice, decide_by_words};
use super::policy::{self, Headers};

pub use super::filters::Scheme;
use super::route::{HostFound, Labels, Maker, RouteAction, Router, UpstreamEntry, bare_host, host_label};

/// A request to explain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// By which listener it comes.
    pub scheme: Scheme,
    /// Host header, with or without port.
    pub host: String,
    /// Path and query.
    pub target: String,
    /// Method.
    pub method: String,
    /// Further headers; Content-Length counts.
    pub headers: Vec<(String, String)>,
    /// Who asks.
    pub client: IpAddr,
}

/// A snapshot that is made ready once for many questions.
pub struct Prepared(Maker, Router);

impl Prepared {
    /// Makes what workers look routes up in.
    pub fn new(l7: &L7) -> Self {
        let mut maker = Maker::default();
        let router = maker.make(l7);
        Self(maker, router)
    }

    /// The same of the next snapshot.
    pub fn update(&mut self, l7: &L7) {
        self.1 = self.0.make(l7);
    }

    /// The path, as its Ingress writes it, of the location that takes this host and normalised path.
    pub fn path_label(&self, host: &str, path: &str) -> &str {
        let (site, _) = self.1.site(host.as_bytes());
        &site.find(path.as_bytes()).route.labels.path
    }
}

/// What a running agent knows of endpoints.
#[derive(Debug, Default)]
pub struct Known {
    /// By its active checks.
    pub unwell: Arc<Unwell>,
    /// By requests.
    pub failing: Failing,
}

/// Tells step by step which location takes the request, what its policies do and where it goes.
/// `known` of the endpoints; `None`: nobody is there who asks them. `problems` say why a location is closed.
pub fn explain(l7: &L7, known: Option<&Known>, problems: &Problems, request: &Request) -> Explanation {
    let router = Router::new(l7);
    let length = request
        .headers
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .and_then(|(_, value)| value.parse().ok());
    let (host, headers) = (request.host.as_bytes(), Headers::Given(&request.headers));
    let port = if request.scheme == Scheme::Https { 443 } else { 80 };
    let arrived = Effective { addr: request.client, scheme: request.scheme, host, port, word: None };
    let asked = Asked {
        method: &request.method,
        scheme: arrived.scheme,
        host,
        named: host,
        target: request.target.as_bytes(),
        length,
        port,
        https_port: 443,
        client: arrived.addr,
        headers,
        random: None,
        // That of the URL, as a client would have it.
        server_name: None,
        shown: match request.scheme {
            Scheme::Http => Shown::Plain,
            Scheme::Https => Shown::Whatever,
        },
    };
    let (effective, asked, decision) = decide_by_words(&router, arrived, asked);

    let question =
        format!("{} {}://{}{}", request.method, request.scheme.as_str(), request.host, request.target);
    if let Some(upstream) = handed_on(&router, request) {
        let mut steps = vec![host_step(&request.host, &decision)];
        let detail = "its TLS is handed on unopened (ssl-passthrough): nothing else is asked of it";
        steps.push(step("passthrough", detail.to_owned()));
        steps.push(step("upstream", endpoints_of(upstream)));
        steps.extend(known.and_then(|known| failing_step(upstream, &known.failing)));
        let verdict = format!("handed on to {}", upstream.name.0);
        return Explanation { question, steps, verdict };
    }

    let mut steps: Vec<_> = client_step(&arrived, &effective).into_iter().collect();
    steps.extend([host_step(&request.host, &decision), path_step(&request.target, &decision)]);
    steps.extend(certificate_step(&decision));
    steps.extend(blocked_step(&router, &asked));
    steps.extend(filter_steps(asked.scheme, &decision));
    if let Some(policies) = &decision.route.filters.policies {
        let told = policy::explain(policies, &asked);
        steps.extend(told.into_iter().map(|(name, detail)| step(name, detail)));
    }
    if let Some(choice) = canary_choice(&router, decision.route, &asked) {
        let name = router.upstreams.get(choice.canary.upstream).map_or("", |entry| &entry.name.0);
        steps.push(step("canary", canary::explain(&choice, name)));
    }
    steps.extend(session_step(&router, &decision, &asked.headers));
    steps.push(upstream_step(&router, &decision, problems));
    steps.extend(health_step(&router, known, &decision));
    let asked_of = upstream(&router, &decision);
    steps.extend(known.and_then(|known| failing_step(asked_of?, &known.failing)));
    if let (Some(compression), Next::Proxy { .. }) = (&router.compression, &decision.next) {
        steps.push(step("compression", compress::explain(compression, &request.headers)));
    }
    let verdict = verdict(&router, request, &decision);
    let verdict = if asks(&asked, &decision) { format!("once let in: {verdict}") } else { verdict };
    Explanation { question, steps, verdict }
}

/// Where the TLS of the request's host goes, if that is not ours to open.
fn handed_on<'r>(router: &'r Router, request: &Request) -> Option<&'r UpstreamEntry> {
    let named = String::from_utf8_lossy(bare_host(request.host.as_bytes())).to_ascii_lowercase();
    let place = router.passthrough(&named).filter(|_| request.scheme == Scheme::Https)?;
    router.upstreams.get(place).map(Arc::as_ref)
}

fn step(name: &str, detail: String) -> Step {
    Step { name: name.to_owned(), detail }
}

/// What is believed of the request's headers about its client.
fn client_step(arrived: &Effective<'_>, effective: &Effective<'_>) -> Option<Step> {
    let Effective { addr, scheme: _, host, port, word: _ } = effective;
    let (scheme, host) = (effective.scheme_word(), String::from_utf8_lossy(host));
    let scheme = String::from_utf8_lossy(scheme);
    let detail = || format!("its headers say: {addr} asks {scheme}://{host}, port {port}");
    (arrived != effective).then(|| step("client", detail()))
}

fn host_step(host: &str, decision: &Decision<'_>) -> Step {
    let label = host_label(&decision.site.host);
    let detail = match decision.host {
        HostFound::Exact if bare_host(host.as_bytes()).eq_ignore_ascii_case(label.as_bytes()) => {
            format!("{label}: named exactly")
        }
        HostFound::Exact | HostFound::Alias => format!("{host} is another name of {label} (server-alias)"),
        HostFound::Wildcard => format!("{host} matches the wildcard {label}; no server names it exactly"),
        HostFound::Unnamed => format!("no server names {host:?}: the catch-all host _ takes it"),
    };
    step("host", detail)
}

fn path_step(target: &str, decision: &Decision<'_>) -> Step {
    let labels = &decision.route.labels;
    let by = match labels.ingress.as_str() {
        "" => "the default backend".to_owned(),
        name => format!("Ingress {}/{name}, path {}", labels.namespace, labels.path),
    };
    step("path", format!("{target} is taken by {} of {by}", decision.route.describe()))
}

fn certificate_step(decision: &Decision<'_>) -> Option<Step> {
    let detail = match decision.site.client_auth.as_deref()? {
        ClientAuth::Unusable => "its authority cannot be used: every request is answered 403".to_owned(),
        ClientAuth::Verify(verify) => {
            let authority = match &verify.trust {
                None => "not asked for".to_owned(),
                Some(trust) => {
                    let demand = match trust.demand {
                        Demand::Required => "required, else 400 (403 over plain http)",
                        Demand::Optional => "optional; a bad one is answered 400",
                        Demand::OptionalAnyAuthority => "optional, of any authority",
                    };
                    format!("{demand}; trusted: Secret {}", trust.secret)
                }
            };
            match &verify.subject {
                Some(subject) => {
                    format!("{authority}; its subject has to match {}, else 403", subject.regex())
                }
                None => authority,
            }
        }
    };
    Some(step("client-certificate", detail))
}

/// Only where it is the reason.
fn blocked_step(router: &Router, asked: &Asked<'_>) -> Option<Step> {
    let blocked = router.blocked.as_deref()?;
    let list = match (
        policy::blocked::names(blocked, &asked.headers),
        policy::blocked::holds(blocked, asked.client),
    ) {
        (true, _) => "block-user-agents or block-referers of the ConfigMap",
        (false, true) => "block-cidrs of the ConfigMap",
        (false, false) => return None,
    };
    Some(step("blocked", format!("{list} turns it away with 403")))
}

fn filter_steps(scheme: Scheme, decision: &Decision<'_>) -> Vec<Step> {
    let filters = &decision.route.filters;
    let mut steps = Vec::new();
    if filters.mode == Mode::Strict {
        steps.push(step(
            "strict",
            "who may enter is asked before redirects, and by address before preflights".to_owned(),
        ));
    }
    if let Some(moved) = &decision.site.moved {
        steps.push(step("www-redirect", format!("every request is sent to {}", moved.to)));
        return steps;
    }
    if let Some(max) = filters.max_body_bytes {
        steps.push(step("body-size", format!("bodies up to {max} bytes; longer ones are answered 413")));
    }
    if let Next::Proxy { target: Some(target), prefix, .. } = &decision.next {
        steps.push(step("rewrite", format!("becomes {}", String::from_utf8_lossy(target))));
        let prefix = prefix.as_deref().map(String::from_utf8_lossy);
        steps.extend(prefix.map(|prefix| step("x-forwarded-prefix", format!("the upstream gets {prefix}"))));
    }
    if filters.ssl_redirect == SslRedirect::Always {
        let detail = match scheme {
            Scheme::Http => "plain http is redirected to https",
            Scheme::Https => "already https, nothing to redirect",
        };
        steps.push(step("ssl-redirect", detail.to_owned()));
    }
    steps
}

fn upstream_step(router: &Router, decision: &Decision<'_>, problems: &Problems) -> Step {
    let detail = match decision.route.action {
        RouteAction::Redirect => "none: the location answers with a redirect".to_owned(),
        RouteAction::Deny => {
            let why = why_closed(&decision.route.labels, problems);
            format!("denied: its Ingress holds what cannot be honoured{why}")
        }
        RouteAction::Proxy(_) | RouteAction::DefaultBackend(_) => {
            upstream(router, decision).map_or_else(|| "none".to_owned(), endpoints_of)
        }
    };
    step("upstream", detail)
}

/// What keeps the locations of an Ingress closed, after a colon.
fn why_closed(labels: &Labels, problems: &Problems) -> String {
    let is_its = |problem: &&Arc<Problem>| {
        let ObjectId { kind, namespace, name, origin: _ } = &problem.object;
        let is_error = problem.severity == Severity::Error && kind == "Ingress";
        is_error && (namespace, name) == (&labels.namespace, &labels.ingress)
    };
    let told =
        problems.iter().filter(is_its).map(|problem| format!("{}: {}", problem.field, problem.message));
    let told: Vec<_> = told.collect();
    if told.is_empty() { String::new() } else { format!(": {}", told.join("; ")) }
}

fn endpoints_of(upstream: &UpstreamEntry) -> String {
    let told = |endpoint: &SocketAddr| match &upstream.external {
        // What stands for a name that nobody was asked about.
        Some(External { name, port, .. }) if endpoint.ip().is_unspecified() => {
            format!("{name}:{port} by DNS, which only the running agent asks")
        }
        _ => endpoint.to_string(),
    };
    let endpoints: Vec<_> = upstream.endpoints.iter().map(told).collect();
    let flaw = match &upstream.external {
        Some(External { name, flaw: Some(flaw), .. }) => format!("; {name} has no address: {flaw}"),
        _ => String::new(),
    };
    let (name, count) = (&upstream.name.0, endpoints.len());
    format!("{name}: {count} ready endpoints [{}]{flaw}", endpoints.join(", "))
}

/// Where its cookie leads, if sessions are kept.
fn session_step(router: &Router, decision: &Decision<'_>, headers: &Headers<'_>) -> Option<Step> {
    let upstream = upstream(router, decision)?;
    let sessions = upstream.sessions.as_ref()?;
    let name = sessions.cookie_name();
    let labels = &decision.route.labels;
    let endpoint = sessions.endpoint(headers).and_then(|index| upstream.endpoints.get(index));
    let detail = match endpoint {
        Some(endpoint) => format!("the cookie {name} leads to {endpoint}"),
        None if sessions.begin_at(&labels.host, &labels.path) => {
            format!("any endpoint; the answer sets the cookie {name}")
        }
        None => format!("any endpoint, without a cookie {name}: another Ingress keeps sessions here"),
    };
    Some(step("session", detail))
}

/// What active checks say of its endpoints, if they are checked.
fn health_step(router: &Router, known: Option<&Known>, decision: &Decision<'_>) -> Option<Step> {
    let upstream = upstream(router, decision)?;
    let check = upstream.check.as_ref()?;
    let Some(Known { unwell, .. }) = known else {
        return Some(step("health", format!("{check}: only the running agent knows who is unwell")));
    };
    let unwell: Vec<_> = unwell
        .of(&upstream.name)
        .filter(|(endpoint, _)| upstream.endpoints.contains(endpoint))
        .map(|(endpoint, finding)| format!("{endpoint} ({})", finding.fault))
        .collect();
    let found = match unwell.len() {
        0 => "nobody is unwell".to_owned(),
        n if too_many(n, upstream.endpoints.len()) => {
            format!("unwell: {}; more than half, so all are asked nevertheless", unwell.join(", "))
        }
        _ => format!("unwell and passed over: {}", unwell.join(", ")),
    };
    Some(step("health", format!("{check}: {found}")))
}

/// What requests found of its endpoints, if some fail.
fn failing_step(upstream: &UpstreamEntry, failing: &Failing) -> Option<Step> {
    let failing: Vec<_> = failing.of(&upstream.name).collect();
    let told: Vec<_> =
        failing.iter().map(|(endpoint, failures)| format!("{endpoint} ({failures})")).collect();
    let ejected = failing.iter().filter(|(_, failures)| failures.ejected.is_some()).count();
    let end = match ejected {
        0 => "",
        n if too_many(n, upstream.endpoints.len()) => {
            "; more than half ejected, so all are asked nevertheless"
        }
        _ => "; who is ejected is passed over",
    };
    (!told.is_empty()).then(|| step("failing", format!("{}{end}", told.join(", "))))
}

fn upstream<'r>(router: &'r Router, decision: &Decision<'_>) -> Option<&'r UpstreamEntry> {
    match decision.route.action {
        RouteAction::Proxy(index) | RouteAction::DefaultBackend(index) => match decision.next {
            Next::Proxy { upstream, .. } => router.upstreams.get(upstream).map(Arc::as_ref),
            Next::Answer(_) => router.upstreams.get(index?).map(Arc::as_ref),
        },
        RouteAction::Redirect | RouteAction::Deny => None,
    }
}

/// The client has to show something first, which nobody here looks at.
fn asks(asked: &Asked<'_>, decision: &Decision<'_>) -> bool {
    let policies = decision.route.filters.policies.as_deref().filter(|_| decision.lets_in());
    policies.is_some_and(|policies| {
        let is_enough = |auth: &Auth| {
            auth.satisfy == Satisfy::Any && policy::entry(policies, asked.client) == policy::Entry::Listed
        };
        policies.auth.as_ref().is_some_and(|auth| !is_enough(auth))
    })
}

fn verdict(router: &Router, request: &Request, decision: &Decision<'_>) -> String {
    match &decision.next {
        Next::Proxy { upstream, target, .. } => {
            let name = router.upstreams.get(*upstream).map_or("", |u| u.name.0.as_str());
            let target = match target {
                Some(target) => String::from_utf8_lossy(target).into_owned(),
                None => request.target.clone(),
            };
            format!("proxied to {name} as {} {target}", request.method)
        }
        Next::Answer(Answer::Status(status)) => format!("answered {status}"),
        Next::Answer(Answer::Certificate(flaw)) => format!("answered 400 ({})", flaw.as_str()),
        Next::Answer(Answer::Redirect { status, location }) => {
            format!("answered {status} to {}", String::from_utf8_lossy(location))
        }
        Next::Answer(Answer::Preflight) => "answered 204 (preflight)".to_owned(),
        Next::Answer(Answer::Healthy) => "answered 200 (health check)".to_owned(),
        Next::Answer(Answer::NginxStatus(_)) => "answered 200 (figures of the proxy)".to_owned(),
    }
}

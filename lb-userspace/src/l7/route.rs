//! Which location takes a request: pure lookups in an index built once per snapshot.
//!
//! The snapshot's order of locations is the precedence. The index only skips what cannot match,
//! so a host with a thousand paths costs a few hash lookups.

mod hosts;

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::model::ObjectName;
use crate::model::health::Check;
use crate::model::l7::{
    AccessLog, Action, Blocked, ClientAuth, Edge, Filters, HostMatch, L7, Location, Moved, PathMatch,
    Protocol, Redirect, Upstream, UpstreamName, UpstreamTls,
};

use crate::model::expression::Expression;
use crate::model::l7::policy::ErrorPages;
use crate::model::upstream::{Balance, Care, Keepalive};

use super::balance::Rule;
use super::canary::{CanaryEntry, Side};
use super::filters::Scheme;
use super::policy::Livery;
use super::session;
use super::upstream::{Client, Speech, Transport};
use super::zones::Zones;
use hosts::{Hosts, UNNAMED};

pub(super) use hosts::{HostFound, bare_host, host_label};

/// A snapshot prepared for lookups; shared by all workers.
#[derive(Debug)]
pub(super) struct Router {
    hosts: Hosts,
    sites: Vec<Site>,
    /// Those of each route, by its number.
    pub(super) labels: Vec<Arc<Labels>>,
    /// Upstreams by index.
    pub(super) upstreams: Vec<UpstreamEntry>,
    pub(super) keepalive: Keepalive,
    /// Ways to speak TLS to upstreams, each once.
    pub(super) tls: Vec<TlsEntry>,
    /// What speaks them, in the same order; empty where nobody is going to.
    pub(super) clients: Vec<Arc<Client>>,
    /// Where clients of Ingresses with limits are counted; empty where nobody counts.
    pub(super) zones: Zones,
    /// How clients are received.
    pub(super) edge: Edge,
    /// Upstreams of the hosts whose TLS is handed on, by index.
    passthrough: HashMap<Box<str>, usize>,
    /// `None`: requests are not logged.
    pub(super) log: Option<Arc<AccessLog>>,
    /// What every response says.
    pub(super) livery: Livery,
    /// Who is turned away everywhere.
    pub(super) blocked: Option<Arc<Blocked>>,
}

/// A way to speak TLS to an upstream.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct TlsEntry {
    pub(super) tls: Arc<UpstreamTls>,
    /// HTTP/2 is asked for.
    pub(super) h2: bool,
}

/// One upstream of the snapshot.
#[derive(Debug)]
pub(super) struct UpstreamEntry {
    pub(super) name: UpstreamName,
    pub(super) endpoints: Vec<SocketAddr>,
    pub(super) rule: Rule,
    /// What its endpoints are chosen by, where that is a hash.
    pub(super) key: Option<Expression>,
    pub(super) care: Care,
    /// Most idle connections; `None`: as the keep-alive of all says.
    pub(super) idle: Option<usize>,
    /// How its endpoints are checked.
    pub(super) check: Option<Arc<Check>>,
    /// How sessions are kept, if they are.
    pub(super) sessions: Option<session::Sessions>,
    pub(super) canary: Option<CanaryEntry>,
}

impl UpstreamEntry {
    fn new(name: &UpstreamName, upstream: &Upstream, index: &BTreeMap<&UpstreamName, usize>) -> Self {
        let Upstream { endpoints, external: _, weights, balance, care, idle, check, affinity, canary } =
            upstream;
        let canary = canary.as_ref().and_then(|canary| {
            let upstream = *index.get(&canary.upstream)?;
            Some(CanaryEntry { upstream, rules: canary.rules.clone(), sessions: canary.sessions })
        });
        let endpoints: Vec<_> = endpoints.iter().copied().collect();
        let weights: Vec<_> = endpoints.iter().map(|addr| weights.get(addr).copied().unwrap_or(1)).collect();
        // Who begins a session gets the next endpoint.
        let balance = if affinity.is_some() { &Balance::RoundRobin } else { balance };
        let sessions =
            affinity.as_ref().map(|affinity| session::Sessions::new(name, affinity, &endpoints, &weights));
        let key = match balance {
            Balance::Hash(key) | Balance::Subset { key, .. } => Some(key.clone()),
            Balance::RoundRobin | Balance::PeakEwma | Balance::LeastRequests => None,
        };
        Self {
            name: name.clone(),
            rule: Rule::new(balance, &endpoints, &weights),
            endpoints,
            key,
            care: *care,
            idle: *idle,
            check: check.clone(),
            sessions,
            canary,
        }
    }
}

/// One host.
#[derive(Debug)]
pub(super) struct Site {
    /// What it answers for.
    pub(super) host: HostMatch,
    /// Where a request for `/` is sent instead.
    pub(super) app_root: Option<String>,
    /// What it demands of its clients.
    pub(super) client_auth: Option<Arc<ClientAuth>>,
    /// Where every request is sent instead.
    pub(super) moved: Option<Moved>,
    locations: Vec<Route>,
    /// Index of locations by full path.
    exact: HashMap<Box<[u8]>, usize>,
    /// Index of locations by prefix without its trailing slash.
    prefix: HashMap<Box<[u8]>, Prefixes>,
    /// Bit `n`: there is a prefix of `n` bytes; the last bit stands for all longer ones.
    prefix_lengths: u64,
    /// Regex locations, which have to be tried one by one.
    regex: Vec<usize>,
    /// Takes what no location takes.
    fallback: Route,
}

#[derive(Debug, Default)]
struct Prefixes {
    /// `/foo`: takes `/foo` and everything below.
    whole: Option<usize>,
    /// `/foo/`: takes everything below `/foo`, and redirects `/foo` to itself.
    below: Option<usize>,
}

/// One location, with everything a request needs of it.
#[derive(Debug)]
pub(super) struct Route {
    /// Number of the route within its router.
    id: usize,
    pub(super) action: RouteAction,
    pub(super) filters: Filters,
    /// Shared by workers: a request borrows them.
    pub(super) labels: Arc<Labels>,
    /// Number of what goes to the canary of its upstream, if there is one.
    as_canary: Option<usize>,
    /// Index of the way to speak TLS to its upstream, where its protocol asks for one.
    pub(super) tls: Option<usize>,
    /// Who words its errors, where its policies say anything about that.
    pub(super) pages: Option<Pages>,
    /// What [`RouteAction::Redirect`] answers.
    pub(super) redirect: Option<Redirect>,
    /// What it matches; `None` takes what nothing else takes.
    pub(super) path: Option<PathMatch>,
}

/// [`ErrorPages`] with their names resolved to upstreams that have endpoints.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pages {
    /// Who is asked in the place of an upstream without endpoints.
    pub(super) stand_in: Option<usize>,
    /// Who words errors; `None`: nobody, they become the built-in 404.
    pub(super) backend: Option<usize>,
}

/// [`Action`] with its names resolved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RouteAction {
    /// To an upstream by index; `None` if the snapshot lacks it, which is like no endpoints.
    Proxy(Option<usize>),
    /// To the default backend; `None` is the built-in 404.
    DefaultBackend(Option<usize>),
    /// See [`Route::redirect`].
    Redirect,
    /// 503.
    Deny,
}

/// How a route appears in metrics and explanations.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Labels {
    pub(super) host: String,
    pub(super) path: String,
    pub(super) namespace: String,
    pub(super) ingress: String,
    pub(super) service: String,
    /// Name of the canary's upstream; empty for what the primary got.
    pub(super) canary: String,
}

impl Labels {
    /// Of no host and no Ingress.
    pub(super) fn are_unclaimed(&self) -> bool {
        self.host == UNNAMED && self.ingress.is_empty()
    }
}

/// Location found for a path.
#[derive(Debug, Clone, Copy)]
pub(super) struct Found<'r> {
    pub(super) route: &'r Route,
    /// The path lacks the trailing slash its location is written with.
    pub(super) add_slash: bool,
}

impl Router {
    /// Builds the index. Never fails: what the snapshot names and does not hold has no endpoints.
    pub(super) fn new(l7: &L7) -> Self {
        let index: BTreeMap<_, _> = l7.upstreams.keys().enumerate().map(|(i, name)| (name, i)).collect();
        let upstreams: Vec<_> =
            l7.upstreams.iter().map(|(name, upstream)| UpstreamEntry::new(name, upstream, &index)).collect();
        let ready = |name: &UpstreamName| {
            let is_ready =
                |i: &usize| upstreams.get(*i).is_some_and(|u: &UpstreamEntry| !u.endpoints.is_empty());
            index.get(name).copied().filter(is_ready)
        };
        let default_backend = l7.default_backend.as_ref().and_then(ready);
        let resolve = |action: &Action| match action {
            Action::Proxy(name) => RouteAction::Proxy(index.get(name).copied()),
            Action::DefaultBackend => RouteAction::DefaultBackend(default_backend),
            Action::Redirect(_) => RouteAction::Redirect,
            Action::Deny => RouteAction::Deny,
        };

        let pages = |ErrorPages { statuses: _, only_ours: _, backend }: &ErrorPages| {
            let stand_in = backend.as_ref().and_then(ready);
            Pages { stand_in, backend: stand_in.or(default_backend) }
        };

        let mut builder = SiteBuilder {
            resolve: &resolve,
            pages: &pages,
            upstreams: &upstreams,
            labels: Vec::new(),
            tls: Vec::new(),
            tls_index: HashMap::new(),
        };
        let mut sites = Vec::new();
        for (host, server) in &l7.servers {
            let mut site = builder.site(host, &server.locations);
            if server.moved.is_some() {
                // Nobody is asked.
                site.fallback.action = RouteAction::Redirect;
            }
            sites.push(Site {
                app_root: server.app_root.clone(),
                client_auth: server.client_auth.clone(),
                moved: server.moved.clone(),
                ..site
            });
        }
        if !l7.servers.contains_key(&HostMatch::Any) {
            sites.push(builder.site(&HostMatch::Any, &[]));
        }
        let handed_on =
            |(host, name): (&String, &UpstreamName)| Some((host.as_str().into(), *index.get(name)?));
        let passthrough = l7.passthrough.iter().filter_map(handed_on).collect();
        let hosts = Hosts::new(sites.iter().map(|site| &site.host), &l7.aliases);
        let SiteBuilder { labels, tls, .. } = builder;
        Self {
            hosts,
            sites,
            labels,
            upstreams,
            tls,
            keepalive: l7.keepalive,
            clients: Vec::new(),
            zones: Zones::new(),
            edge: l7.edge.clone(),
            passthrough,
            log: l7.log.clone(),
            livery: Livery::new(&l7.responses),
            blocked: l7.blocked.clone(),
        }
    }

    /// Every route there is.
    pub(super) fn routes(&self) -> impl Iterator<Item = &Route> {
        self.sites.iter().flat_map(|site| site.locations.iter().chain([&site.fallback]))
    }

    /// The upstream that a ClientHello with this name belongs to, if it is not ours to answer.
    pub(super) fn passthrough(&self, name: &str) -> Option<usize> {
        self.passthrough.get(name).copied()
    }

    /// The site for a Host header (with or without port).
    pub(super) fn site(&self, host: &[u8]) -> (&Site, HostFound) {
        let (index, found) = self.hosts.find(host);
        // The index was made for these sites.
        (&self.sites[index], found)
    }
}

impl Site {
    /// Whether the upstream is told of the client's certificate, and if so whether it gets all of it.
    pub(super) fn passes_certificate(&self) -> Option<bool> {
        match self.client_auth.as_deref()? {
            ClientAuth::Verify(verify) => Some(verify.pass_certificate),
            ClientAuth::Unusable => None,
        }
    }

    /// The first location, in the snapshot's order, that takes this normalised path.
    pub(super) fn find(&self, path: &[u8]) -> Found<'_> {
        let mut best = self.exact.get(path).copied();
        let mut redirect = None;
        // A location that takes the path as a whole wins over one that would add a slash to it.
        let mut whole = best.is_some();
        let mut end = path.len();
        loop {
            if self.has_prefix_of(end) {
                let entry = path.get(..end).and_then(|prefix| self.prefix.get(prefix));
                if let Some(Prefixes { whole: takes, below }) = entry {
                    let all = end == path.len();
                    whole |= all && takes.is_some();
                    best = earlier(best, *takes);
                    if all {
                        redirect = *below;
                    } else {
                        best = earlier(best, *below);
                    }
                }
            }
            // The next shorter prefix ends before the last slash.
            match path.get(..end).and_then(|rest| rest.iter().rposition(|&b| b == b'/')) {
                Some(at) => end = at,
                None => break,
            }
        }
        if let Some(redirect) = redirect.filter(|_| !whole) {
            let first = earlier(best, Some(redirect));
            if first == Some(redirect) {
                best = self.first_regex(path, first).or(first);
                if best == Some(redirect) {
                    return Found { route: self.route(best), add_slash: true };
                }
                return Found { route: self.route(best), add_slash: false };
            }
        }
        best = self.first_regex(path, best).or(best);
        Found { route: self.route(best), add_slash: false }
    }

    fn has_prefix_of(&self, len: usize) -> bool {
        self.prefix_lengths & (1 << len.min(63)) != 0
    }

    /// The first regex location before `limit` that matches.
    fn first_regex(&self, path: &[u8], limit: Option<usize>) -> Option<usize> {
        if self.regex.is_empty() {
            return None;
        }
        self.regex.iter().copied().take_while(|&i| limit.is_none_or(|limit| i < limit)).find(|&i| match self
            .locations
            .get(i)
            .and_then(|route| route.path.as_ref())
        {
            Some(PathMatch::Regex(pattern)) => pattern.regex().is_match(path),
            _ => false,
        })
    }

    fn route(&self, index: Option<usize>) -> &Route {
        index.and_then(|i| self.locations.get(i)).unwrap_or(&self.fallback)
    }
}

fn earlier(a: Option<usize>, b: Option<usize>) -> Option<usize> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

impl Route {
    /// Number under which a request is counted.
    pub(super) fn counted(&self, side: Side) -> usize {
        match (side, self.as_canary) {
            (Side::Canary, Some(id)) => id,
            _ => self.id,
        }
    }

    /// How its upstream is spoken to, for a client that came by `scheme`.
    pub(super) fn transport(&self, scheme: Scheme) -> Transport {
        match (self.filters.protocol, self.tls) {
            (Protocol::AutoHttp, _) if scheme == Scheme::Http => Transport::Plain,
            (_, Some(index)) => Transport::Tls(index),
            (_, None) => Transport::Plain,
        }
    }

    /// On no host, by no Ingress: what the default backend is for.
    pub(super) fn is_unclaimed(&self) -> bool {
        self.labels.are_unclaimed()
    }

    /// What its upstream speaks.
    pub(super) fn speech(&self) -> Speech {
        match self.filters.protocol {
            Protocol::Grpc | Protocol::Grpcs => Speech::Http2,
            Protocol::FastCgi => Speech::FastCgi,
            Protocol::Http | Protocol::Https | Protocol::AutoHttp => Speech::Http1,
        }
    }

    /// How the location is written; the implicit one of a host is a prefix `/`.
    pub(super) fn describe(&self) -> String {
        match &self.path {
            Some(PathMatch::Exact(path)) => format!("exact {path}"),
            Some(PathMatch::Prefix(path)) => format!("prefix {path}"),
            Some(PathMatch::Regex(pattern)) => format!("regex {}", pattern.regex()),
            None => "no location".to_owned(),
        }
    }

    /// Bytes of the path it is written with; 0 for a regex or none.
    pub(super) fn literal_len(&self) -> usize {
        match &self.path {
            Some(PathMatch::Exact(path) | PathMatch::Prefix(path)) => path.len(),
            Some(PathMatch::Regex(_)) | None => 0,
        }
    }
}

/// Numbers routes across sites.
struct SiteBuilder<'f> {
    resolve: &'f dyn Fn(&Action) -> RouteAction,
    pages: &'f dyn Fn(&ErrorPages) -> Pages,
    upstreams: &'f [UpstreamEntry],
    /// Those of the routes so far, each behind the number it stands for.
    labels: Vec<Arc<Labels>>,
    tls: Vec<TlsEntry>,
    tls_index: HashMap<TlsEntry, usize>,
}

impl SiteBuilder<'_> {
    fn site(&mut self, host: &HostMatch, locations: &[Location]) -> Site {
        let label = host_label(host);
        let mut site = Site {
            host: host.clone(),
            app_root: None,
            client_auth: None,
            moved: None,
            locations: Vec::with_capacity(locations.len()),
            exact: HashMap::new(),
            prefix: HashMap::new(),
            prefix_lengths: 0,
            regex: Vec::new(),
            fallback: self.fallback(&label),
        };
        for (i, location) in locations.iter().enumerate() {
            match &location.path {
                PathMatch::Exact(path) => {
                    site.exact.entry(path.as_bytes().into()).or_insert(i);
                }
                PathMatch::Prefix(path) => {
                    let (key, slash) = match path.strip_suffix('/') {
                        Some(key) => (key, true),
                        None => (path.as_str(), false),
                    };
                    site.prefix_lengths |= 1 << key.len().min(63);
                    let entry = site.prefix.entry(key.as_bytes().into()).or_default();
                    let place = if slash { &mut entry.below } else { &mut entry.whole };
                    place.get_or_insert(i);
                }
                PathMatch::Regex(_) => site.regex.push(i),
            }
            site.locations.push(self.route(&label, location));
        }
        site
    }

    fn route(&mut self, host: &str, location: &Location) -> Route {
        let Location { path, path_label, ingress, service, action, filters } = location;
        let ObjectName { namespace, name } = ingress.clone().unwrap_or_default();
        let labels = Labels {
            host: host.to_owned(),
            path: path_label.clone(),
            namespace,
            ingress: name,
            service: service.clone(),
            canary: String::new(),
        };
        let action = (self.resolve)(action);
        let as_canary = self.canary_of(action).map(|canary| Labels { canary, ..labels.clone() });
        let as_canary = as_canary.map(|labels| self.number(labels).0);
        let (id, labels) = self.number(labels);
        Route {
            id,
            action,
            tls: self.tls(filters),
            pages: filters.policies.as_ref().and_then(|policies| policies.errors.as_ref()).map(self.pages),
            filters: filters.clone(),
            labels,
            as_canary,
            redirect: match &location.action {
                Action::Redirect(redirect) => Some(redirect.clone()),
                _ => None,
            },
            path: Some(path.clone()),
        }
    }

    fn fallback(&mut self, host: &str) -> Route {
        let (id, labels) = self.number(Labels { host: host.to_owned(), ..Labels::default() });
        Route {
            id,
            action: (self.resolve)(&Action::DefaultBackend),
            tls: None,
            pages: None,
            filters: Filters::default(),
            labels,
            as_canary: None,
            redirect: None,
            path: None,
        }
    }

    fn canary_of(&self, action: RouteAction) -> Option<String> {
        let RouteAction::Proxy(Some(index)) = action else { return None };
        let canary = self.upstreams.get(index)?.canary.as_ref()?;
        self.upstreams.get(canary.upstream).map(|entry| entry.name.0.clone())
    }

    fn tls(&mut self, filters: &Filters) -> Option<usize> {
        let h2 = match filters.protocol {
            Protocol::Http | Protocol::Grpc | Protocol::FastCgi => return None,
            Protocol::Https | Protocol::AutoHttp => false,
            Protocol::Grpcs => true,
        };
        let entry = TlsEntry { tls: Arc::clone(&filters.upstream_tls), h2 };
        if let Some(index) = self.tls_index.get(&entry) {
            return Some(*index);
        }
        self.tls.push(entry.clone());
        self.tls_index.insert(entry, self.tls.len() - 1);
        Some(self.tls.len() - 1)
    }

    fn number(&mut self, labels: Labels) -> (usize, Arc<Labels>) {
        let labels = Arc::new(labels);
        self.labels.push(Arc::clone(&labels));
        (self.labels.len() - 1, labels)
    }
}

#[cfg(test)]
mod tests;

//! Which location takes a request: pure lookups in an index built once per snapshot.
//!
//! The snapshot's order of locations is the precedence. The index only skips what cannot match,
//! so a host with a thousand paths costs a few hash lookups.

mod hosts;
mod maker;

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;

use imbl::OrdMap;
use imbl::ordmap::DiffItem;

use serde::{Deserialize, Serialize};

use crate::model::health::Check;
use crate::model::l7::{
    AccessLog, Blocked, ClientAuth, Compression, Edge, Filters, HostMatch, L7, Moved, PathMatch, Protocol,
    Redirect, ServicePort, Streams, Template, Upstream, UpstreamName, UpstreamTls,
};

use crate::model::expression::Expression;
use crate::model::upstream::{Balance, Care, External, Keepalive};

use super::auth::Scope;
use super::balance::Rule;
use super::canary::{CanaryEntry, Side};
use super::filters::Scheme;
use super::limit_zones::LimitZones;
use super::map::Map;
use super::policy::CommonHeaders;
use super::session;
use super::upstream::{Client, Speech, Transport};
use hosts::{Hosts, UNNAMED};

pub(super) use hosts::{HostFound, bare_host, host_label};
pub(super) use maker::Maker;

/// A snapshot prepared for lookups; shared by all workers. What it has in common with the one before is
/// the same in memory, and stands at the same places.
#[derive(Debug)]
pub(super) struct Router {
    hosts: Arc<Hosts>,
    /// By place; nothing where a host was that is gone.
    sites: Vec<Option<Arc<Site>>>,
    /// By place; without a name where one was that is gone.
    pub(super) upstreams: Vec<Arc<UpstreamEntry>>,
    /// Their places.
    index: OrdMap<UpstreamName, usize>,
    /// Every endpoint, and how many upstreams have it.
    pub(super) endpoints: OrdMap<SocketAddr, usize>,
    pub(super) keepalive: Keepalive,
    /// What speaks TLS to upstreams, by place.
    pub(super) clients: Arc<Vec<Option<Arc<Client>>>>,
    /// Where clients of Ingresses with limits are counted.
    pub(super) limit_zones: Arc<LimitZones>,
    /// How clients are received.
    pub(super) edge: Edge,
    /// Upstreams of the hosts whose TLS is handed on, by place.
    passthrough: Arc<HashMap<Box<str>, usize>>,
    /// Ports beside http and https.
    pub(super) streams: Arc<Streams>,
    /// `None`: requests are not logged.
    pub(super) log: Option<Arc<AccessLog>>,
    /// What every response says.
    pub(super) common_headers: CommonHeaders,
    /// Who is turned away everywhere.
    pub(super) blocked: Option<Arc<Blocked>>,
    /// Which responses are compressed; `None`: none.
    pub(super) compression: Option<Arc<Compression>>,
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
    /// The name that they are the addresses of, if DNS knows them.
    pub(super) external: Option<External>,
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
    fn new(name: &UpstreamName, upstream: &Upstream, index: &OrdMap<UpstreamName, usize>) -> Self {
        let Upstream { endpoints, external, weights, balance, care, idle, check, affinity, canary } =
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
            external: external.clone(),
            key,
            care: *care,
            idle: *idle,
            check: check.clone(),
            sessions,
            canary,
        }
    }
}

impl Default for UpstreamEntry {
    /// Nobody's.
    fn default() -> Self {
        Self::new(&UpstreamName(String::new()), &Upstream::default(), &OrdMap::default())
    }
}

/// One host.
#[derive(Debug)]
pub(super) struct Site {
    /// What it answers for.
    pub(super) host: HostMatch,
    /// Where a request for `/` is sent instead.
    pub(super) app_root: Option<Template>,
    /// What it demands of its clients.
    pub(super) client_auth: Option<Arc<ClientAuth>>,
    /// Where every request is sent instead.
    pub(super) moved: Option<Moved>,
    locations: Vec<Route>,
    /// Index of locations by full path.
    exact: Map<Box<[u8]>, usize>,
    /// Index of locations by prefix without its trailing slash, and of exact ones that have one.
    prefix: Map<Box<[u8]>, Prefixes>,
    /// Bit `n`: there is a prefix of `n` bytes; the last bit stands for all longer ones.
    prefix_lengths: u64,
    /// Bytes of the longest one.
    longest_prefix: usize,
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
    /// `/foo/` exactly, which redirects `/foo` to itself as well.
    slash: Option<usize>,
}

/// One location, with everything a request needs of it.
#[derive(Debug)]
pub(super) struct Route {
    /// Number of the route, which no other ever gets.
    number: usize,
    /// Where it stands.
    at: At,
    pub(super) action: RouteAction,
    /// What its location names, whatever the action.
    pub(super) backend: Option<Arc<ServicePort>>,
    pub(super) filters: Filters,
    /// Shared by workers: a request borrows them.
    pub(super) labels: Arc<Labels>,
    /// What goes to the canary of its upstream, if there is one.
    as_canary: Option<(usize, Arc<Labels>)>,
    /// Place of the way to speak TLS to its upstream, where its protocol asks for one.
    pub(super) tls: Option<usize>,
    /// Who words its errors, where its policies say anything about that.
    pub(super) pages: Option<Pages>,
    /// What [`RouteAction::Redirect`] answers.
    pub(super) redirect: Option<Redirect>,
    /// What it matches; `None` takes what nothing else takes.
    pub(super) path: Option<PathMatch>,
    /// Within what answers of its auth service are remembered, if they are.
    pub(super) scope: Option<Box<Scope>>,
}

/// [`ErrorPages`] with their names resolved to upstreams that have endpoints.
///
/// [`ErrorPages`]: crate::model::l7::policy::ErrorPages
#[derive(Debug, Clone, Copy)]
pub(super) struct Pages {
    /// Who is asked in the place of an upstream without endpoints.
    pub(super) stand_in: Option<usize>,
    /// Who words errors; `None`: nobody, they become the built-in 404.
    pub(super) backend: Option<usize>,
}

/// Where a route stands in its router.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct At {
    site: usize,
    /// `None`: what takes what no location takes.
    location: Option<usize>,
}

/// An action with its names resolved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RouteAction {
    /// To an upstream by place; `None` if the snapshot lacks it, which is like no endpoints.
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
    /// That of a snapshot alone. Never fails: what the snapshot names and does not hold has no endpoints.
    pub(super) fn new(l7: &L7) -> Self {
        Maker::default().make(l7)
    }

    /// The place of an upstream.
    pub(super) fn place_of(&self, name: &UpstreamName) -> Option<usize> {
        self.index.get(name).copied()
    }

    /// The route at a place that this router gave.
    pub(super) fn route(&self, at: At) -> Option<&Route> {
        let site = self.sites.get(at.site)?.as_ref()?;
        Some(site.route(at.location))
    }

    /// Whether the route of this number is still at its place.
    pub(super) fn stands(&self, number: usize, at: At) -> bool {
        self.route(at).is_some_and(|route| route.labels().any(|(known, _)| known == number))
    }

    /// Endpoints that the router before had and this one has not. Costs what differs.
    pub(super) fn left_endpoints(&self, before: &Self) -> HashSet<SocketAddr> {
        let changes = before.endpoints.diff(&self.endpoints);
        let left = changes.filter_map(|change| match change {
            DiffItem::Remove(addr, _) => Some(*addr),
            DiffItem::Add(..) | DiffItem::Update { .. } => None,
        });
        left.collect()
    }

    /// Sites of another router, made before, that are not in this one.
    pub(super) fn gone<'r>(&self, before: &'r Self) -> impl Iterator<Item = &'r Arc<Site>> {
        before.sites.iter().enumerate().filter_map(|(place, site)| {
            let (site, now) = (site.as_ref()?, self.sites.get(place).and_then(Option::as_ref));
            (!now.is_some_and(|now| Arc::ptr_eq(now, site))).then_some(site)
        })
    }

    /// Whether a route is told of under these labels.
    pub(super) fn has(&self, labels: &Labels) -> bool {
        self.labelled(&labels.host).is_some_and(|site| {
            site.routes().any(|route| route.labels().any(|(_, known)| **known == *labels))
        })
    }

    /// The site that is told of as this host.
    pub(super) fn labelled(&self, host: &str) -> Option<&Site> {
        self.sites.get(self.hosts.labelled(host)?)?.as_deref()
    }

    /// The upstream that a ClientHello with this name belongs to, if it is not ours to answer.
    pub(super) fn passthrough(&self, name: &str) -> Option<usize> {
        self.passthrough.get(name).copied()
    }

    /// The site for a Host header (with or without port).
    pub(super) fn site(&self, host: &[u8]) -> (&Site, HostFound) {
        let (place, found) = self.hosts.find(host);
        // The index was made for these sites, and there always is one for any host.
        let site = self.sites.get(place).and_then(Option::as_ref);
        (site.expect("a host stands where the index says"), found)
    }
}

impl Site {
    /// The first location, in the snapshot's order, that takes this normalised path.
    pub(super) fn find(&self, path: &[u8]) -> Found<'_> {
        let mut best = self.exact.get(path).copied();
        let mut redirect = None;
        // A location that takes the path as a whole wins over one that would add a slash to it.
        let mut whole = best.is_some();
        // A prefix ends where the path does, or before one of its slashes.
        let last_slash = |within: &[u8]| within.iter().rposition(|&b| b == b'/');
        let mut next = match path.get(..=self.longest_prefix) {
            Some(beginning) => last_slash(beginning),
            None => Some(path.len()),
        };
        while let Some(end) = next {
            if self.has_prefix_of(end) {
                let entry = path.get(..end).and_then(|prefix| self.prefix.get(prefix));
                if let Some(Prefixes { whole: takes, below, slash }) = entry {
                    let all = end == path.len();
                    whole |= all && takes.is_some();
                    best = earlier(best, *takes);
                    if all {
                        redirect = earlier(*below, *slash);
                    } else {
                        best = earlier(best, *below);
                    }
                }
            }
            next = path.get(..end).and_then(last_slash);
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

    /// What is indexed at a prefix without its trailing slash.
    fn prefixes(&mut self, key: &str) -> &mut Prefixes {
        self.prefix_lengths |= 1 << key.len().min(63);
        self.longest_prefix = self.longest_prefix.max(key.len());
        self.prefix.entry(key.as_bytes().into()).or_default()
    }

    /// Every route there is.
    pub(super) fn routes(&self) -> impl Iterator<Item = &Route> {
        self.locations.iter().chain([&self.fallback])
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
            Some(PathMatch::Regex(pattern)) => pattern.is_match(path),
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
    /// Where it stands.
    pub(super) fn at(&self) -> At {
        self.at
    }

    /// Number and labels under which a request is counted.
    pub(super) fn counted(&self, side: Side) -> (usize, &Arc<Labels>) {
        match (side, &self.as_canary) {
            (Side::Canary, Some((number, labels))) => (*number, labels),
            _ => (self.number, &self.labels),
        }
    }

    /// All numbers and labels under which requests are counted.
    pub(super) fn labels(&self) -> impl Iterator<Item = (usize, &Arc<Labels>)> {
        let as_canary = self.as_canary.as_ref().map(|(number, labels)| (*number, labels));
        [(self.number, &self.labels)].into_iter().chain(as_canary)
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

#[cfg(test)]
mod tests;

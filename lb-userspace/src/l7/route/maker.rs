//! Makes routers, one after the other: only what a snapshot has changed is made anew, the rest is taken over
//! from the router before and stays at its place.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use imbl::OrdMap;

use super::{
    At, Hosts, Labels, Pages, Route, RouteAction, Router, Site, TlsEntry, UpstreamEntry, host_label,
};
use crate::l7::auth::Scope;
use crate::l7::client_auth;
use crate::l7::limit_zones::{LimitZone, LimitZones, Remembered};
use crate::l7::map::Map;
use crate::l7::policy::CommonHeaders;
use crate::l7::upstream::{Client, Clients};
use crate::model::ObjectName;
use crate::model::l7::policy::ErrorPages;
use crate::model::l7::{
    Action, Aliases, Filters, HostMatch, L7, Location, PathMatch, Protocol, Server, Upstream, UpstreamName,
};

/// What the last router was made of.
#[derive(Default)]
pub(in crate::l7) struct Maker {
    l7: L7,
    hosts: Arc<Hosts>,
    sites: Places<Option<Arc<Site>>>,
    upstreams: Places<Arc<UpstreamEntry>>,
    index: OrdMap<UpstreamName, usize>,
    endpoints: OrdMap<std::net::SocketAddr, usize>,
    /// Sites by the upstreams that they send to.
    senders: HashMap<UpstreamName, BTreeSet<HostMatch>>,
    /// Upstreams with a canary.
    split: BTreeSet<UpstreamName>,
    default_backend: Option<usize>,
    ways: Ways,
    /// Routes with limits, by the Ingress whose they are.
    limited: BTreeMap<ObjectName, usize>,
    limit_zones: Arc<LimitZones>,
    /// Clients of all of them.
    remembered: Arc<Remembered>,
    passthrough: Arc<HashMap<Box<str>, usize>>,
    /// Routes that were ever numbered.
    numbered: usize,
}

/// Things at places that they keep.
struct Places<T> {
    all: Vec<T>,
    free: Vec<usize>,
}

impl<T> Default for Places<T> {
    fn default() -> Self {
        Self { all: Vec::new(), free: Vec::new() }
    }
}

impl<T> Places<T> {
    /// A place for something new.
    fn put(&mut self, thing: T) -> usize {
        if let Some(place) = self.free.pop() {
            self.set(place, thing);
            return place;
        }
        self.all.push(thing);
        self.all.len() - 1
    }

    fn set(&mut self, place: usize, thing: T) {
        if let Some(known) = self.all.get_mut(place) {
            *known = thing;
        }
    }

    /// Gives a place away; until somebody takes it, this stands there.
    fn clear(&mut self, place: usize, nothing: T) {
        self.set(place, nothing);
        self.free.push(place);
    }
}

/// Ways to speak TLS to upstreams, each once.
#[derive(Default)]
struct Ways {
    /// Places, and how many routes use them.
    known: HashMap<TlsEntry, (usize, usize)>,
    entries: Places<Option<TlsEntry>>,
    clients: Clients,
    made: Arc<Vec<Option<Arc<Client>>>>,
    changed: bool,
}

impl Ways {
    /// The place of the way that a route takes; `None`: it is not encrypted.
    fn take(&mut self, filters: &Filters) -> Option<usize> {
        let entry = entry(filters)?;
        if let Some((place, users)) = self.known.get_mut(&entry) {
            *users += 1;
            return Some(*place);
        }
        self.changed = true;
        let place = self.entries.put(Some(entry.clone()));
        self.known.insert(entry, (place, 1));
        Some(place)
    }

    /// A route takes it no more.
    fn leave(&mut self, filters: &Filters) {
        let Some(entry) = entry(filters) else { return };
        let Some((place, users)) = self.known.get_mut(&entry) else { return };
        *users -= 1;
        if *users == 0 {
            let place = *place;
            self.known.remove(&entry);
            self.entries.clear(place, None);
            self.changed = true;
        }
    }

    /// What speaks TLS, by place.
    fn clients(&mut self) -> Arc<Vec<Option<Arc<Client>>>> {
        if std::mem::take(&mut self.changed) {
            self.made = Arc::new(self.clients.of(&self.entries.all));
        }
        Arc::clone(&self.made)
    }
}

fn entry(filters: &Filters) -> Option<TlsEntry> {
    let h2 = match filters.protocol {
        Protocol::Http | Protocol::Grpc | Protocol::FastCgi => return None,
        Protocol::Https | Protocol::AutoHttp => false,
        Protocol::Grpcs => true,
    };
    Some(TlsEntry { tls: Arc::clone(&filters.upstream_tls), h2 })
}

impl Maker {
    /// The router of the next snapshot.
    pub(in crate::l7) fn make(&mut self, l7: &L7) -> Router {
        let before = std::mem::replace(&mut self.l7, l7.clone());
        let moved = self.follow_upstreams(l7, &before);
        let default_backend = l7.default_backend.as_ref().and_then(|name| self.index.get(name).copied());
        let default_backend = default_backend.filter(|place| self.has_endpoints(*place));
        let mut stale: BTreeSet<HostMatch> =
            l7.servers.changes(&before.servers).map(|change| change.key.clone()).collect();
        if default_backend != self.default_backend {
            self.default_backend = default_backend;
            stale.extend(l7.servers.keys().cloned());
            stale.insert(HostMatch::Any);
        }
        if self.sites.all.is_empty() {
            stale.insert(HostMatch::Any);
        }
        stale.extend(moved.iter().filter_map(|name| self.senders.get(name)).flatten().cloned());
        let hosts = Arc::clone(&self.hosts);
        for host in stale {
            self.replace_site(&host, before.servers.get(&host), l7.servers.get(&host));
        }
        // A place that came or went copied them.
        let are_others = !Arc::ptr_eq(&hosts, &self.hosts) && l7.aliases != Aliases::default();
        if are_others || l7.aliases != before.aliases {
            Arc::make_mut(&mut self.hosts).set_aliases(&l7.aliases);
        }
        if l7.passthrough != before.passthrough || !moved.is_empty() && !l7.passthrough.is_empty() {
            let place =
                |(host, name): (&String, &UpstreamName)| Some((host.as_str().into(), *self.index.get(name)?));
            self.passthrough = Arc::new(l7.passthrough.iter().filter_map(place).collect());
        }
        if self.limit_zones.len() != self.limited.len()
            || self.limited.keys().any(|name| !self.limit_zones.contains_key(name))
        {
            let zone = |name: &ObjectName| {
                let known = self.limit_zones.get(name).cloned();
                known.unwrap_or_else(|| Arc::new(LimitZone::new(&self.remembered)))
            };
            self.limit_zones = Arc::new(self.limited.keys().map(|name| (name.clone(), zone(name))).collect());
        }
        Router {
            hosts: Arc::clone(&self.hosts),
            sites: self.sites.all.clone(),
            upstreams: self.upstreams.all.clone(),
            index: self.index.clone(),
            endpoints: self.endpoints.clone(),
            keepalive: l7.keepalive,
            clients: self.ways.clients(),
            limit_zones: Arc::clone(&self.limit_zones),
            edge: l7.edge.clone(),
            passthrough: Arc::clone(&self.passthrough),
            streams: Arc::clone(&l7.streams),
            log: l7.log.clone(),
            common_headers: CommonHeaders::new(&l7.responses),
            blocked: l7.blocked.clone(),
            compression: l7.compression.clone(),
        }
    }

    fn has_endpoints(&self, place: usize) -> bool {
        self.upstreams.all.get(place).is_some_and(|upstream| !upstream.endpoints.is_empty())
    }

    /// Makes the upstreams that have changed; names of those that came or went, got or lost their endpoints, or
    /// have another canary, which the routes to them have to know.
    fn follow_upstreams(&mut self, l7: &L7, before: &L7) -> BTreeSet<UpstreamName> {
        let (mut moved, mut stale) = (BTreeSet::new(), BTreeSet::new());
        for change in l7.upstreams.changes(&before.upstreams) {
            let (name, was, is) = (change.key, change.before, change.now);
            let canary = |upstream: Option<&'_ Arc<Upstream>>| {
                upstream.and_then(|upstream| Some(upstream.canary.as_ref()?.upstream.clone()))
            };
            let is_ready = |upstream: Option<&Arc<Upstream>>| {
                upstream.is_some_and(|upstream| !upstream.endpoints.is_empty())
            };
            if was.is_none() || is.is_none() || canary(was) != canary(is) || is_ready(was) != is_ready(is) {
                moved.insert(name.clone());
            }
            self.count_endpoints(was.map(Arc::as_ref), is.map(Arc::as_ref));
            match is {
                Some(is) => {
                    if was.is_none() {
                        self.index.insert(name.clone(), self.upstreams.put(Arc::default()));
                    }
                    if is.canary.is_some() {
                        self.split.insert(name.clone());
                    } else {
                        self.split.remove(name);
                    }
                    stale.insert(name.clone());
                }
                None => {
                    self.split.remove(name);
                    if let Some(place) = self.index.remove(name) {
                        self.upstreams.clear(place, Arc::default());
                    }
                }
            }
        }
        if !moved.is_empty() {
            // They know their canary by its place.
            stale.extend(self.split.iter().cloned());
        }
        for name in stale {
            let (Some(place), Some(upstream)) = (self.index.get(&name), l7.upstreams.get(&name)) else {
                continue;
            };
            self.upstreams.set(*place, Arc::new(UpstreamEntry::new(&name, upstream, &self.index)));
        }
        moved
    }

    fn count_endpoints(&mut self, was: Option<&Upstream>, is: Option<&Upstream>) {
        for endpoint in is.into_iter().flat_map(|is| &is.endpoints) {
            *self.endpoints.entry(*endpoint).or_default() += 1;
        }
        for endpoint in was.into_iter().flat_map(|was| &was.endpoints) {
            match self.endpoints.get_mut(endpoint) {
                Some(users) if *users > 1 => *users -= 1,
                _ => drop(self.endpoints.remove(endpoint)),
            }
        }
    }

    /// Makes a host anew, or takes it away.
    fn replace_site(&mut self, host: &HostMatch, was: Option<&Server>, is: Option<&Server>) {
        self.leave(host, was);
        let empty = Server::default();
        // There is always one that takes what no other does.
        let is = is.or((*host == HostMatch::Any).then_some(&empty));
        match (self.hosts.place_of(host), is) {
            (Some(place), Some(server)) => {
                let site = self.site(place, host, server);
                self.sites.set(place, Some(Arc::new(site)));
            }
            (None, Some(server)) => {
                let place = self.sites.put(None);
                Arc::make_mut(&mut self.hosts).insert(host, place);
                let site = self.site(place, host, server);
                self.sites.set(place, Some(Arc::new(site)));
            }
            (Some(place), None) => {
                self.sites.clear(place, None);
                Arc::make_mut(&mut self.hosts).remove(host);
            }
            (None, None) => {}
        }
    }

    /// What a server used is not used by it any more.
    fn leave(&mut self, host: &HostMatch, server: Option<&Server>) {
        for location in server.into_iter().flat_map(|server| &server.locations) {
            for name in upstreams_of(location) {
                let Some(senders) = self.senders.get_mut(name) else { continue };
                senders.remove(host);
                if senders.is_empty() {
                    self.senders.remove(name);
                }
            }
            self.ways.leave(&location.filters);
            if let Some(ingress) = limits_of(location)
                && let Some(routes) = self.limited.get_mut(ingress)
            {
                *routes -= 1;
                if *routes == 0 {
                    self.limited.remove(ingress);
                }
            }
        }
    }

    fn site(&mut self, place: usize, host: &HostMatch, server: &Server) -> Site {
        let label = host_label(host);
        let mut site = Site {
            host: host.clone(),
            app_root: server.app_root.clone(),
            client_auth: client_auth::usable(host, server.client_auth.as_ref()),
            moved: server.moved.clone(),
            locations: Vec::with_capacity(server.locations.len()),
            exact: Map::default(),
            prefix: Map::default(),
            prefix_lengths: 0,
            longest_prefix: 0,
            regex: Vec::new(),
            fallback: self.fallback(place, &label),
        };
        for (i, location) in server.locations.iter().enumerate() {
            match &location.path {
                PathMatch::Exact(path) => {
                    site.exact.entry(path.as_bytes().into()).or_insert(i);
                    if let Some(key) = path.strip_suffix('/') {
                        site.prefixes(key).slash.get_or_insert(i);
                    }
                }
                PathMatch::Prefix(path) => {
                    let place = match path.strip_suffix('/') {
                        Some(key) => &mut site.prefixes(key).below,
                        None => &mut site.prefixes(path).whole,
                    };
                    place.get_or_insert(i);
                }
                PathMatch::Regex(_) => site.regex.push(i),
            }
            for name in upstreams_of(location) {
                self.senders.entry(name.clone()).or_default().insert(host.clone());
            }
            if let Some(ingress) = limits_of(location) {
                *self.limited.entry(ingress.clone()).or_default() += 1;
            }
            let at = At { site: place, location: Some(i) };
            site.locations.push(self.route(at, &label, location));
        }
        if server.moved.is_some() {
            // Nobody is asked.
            site.fallback.action = RouteAction::Redirect;
        }
        site
    }

    fn route(&mut self, at: At, host: &str, location: &Location) -> Route {
        let Location { path, path_label, ingress, backend, action, filters } = location;
        let ObjectName { namespace, name } = ingress.clone().unwrap_or_default();
        let labels = Labels {
            host: host.to_owned(),
            path: path_label.clone(),
            namespace,
            ingress: name,
            service: location.service().to_owned(),
            canary: String::new(),
        };
        let resolved = self.resolve(action);
        let as_canary = self.canary_of(resolved).map(|canary| Labels { canary, ..labels.clone() });
        let as_canary = as_canary.map(|labels| (self.number(), Arc::new(labels)));
        let mut route = Route {
            number: self.number(),
            at,
            action: resolved,
            backend: backend.clone(),
            tls: self.ways.take(filters),
            pages: errors_of(filters).map(|errors| self.pages(errors)),
            filters: filters.clone(),
            labels: Arc::new(labels),
            as_canary,
            redirect: match action {
                Action::Redirect(redirect) => Some(redirect.clone()),
                _ => None,
            },
            path: Some(path.clone()),
            scope: None,
        };
        route.scope = Scope::of(&route);
        route
    }

    fn fallback(&mut self, place: usize, host: &str) -> Route {
        Route {
            number: self.number(),
            at: At { site: place, location: None },
            action: self.resolve(&Action::DefaultBackend),
            backend: None,
            tls: None,
            pages: None,
            filters: Filters::default(),
            labels: Arc::new(Labels { host: host.to_owned(), ..Labels::default() }),
            as_canary: None,
            redirect: None,
            path: None,
            scope: None,
        }
    }

    fn resolve(&self, action: &Action) -> RouteAction {
        match action {
            Action::Proxy(name) => RouteAction::Proxy(self.index.get(name).copied()),
            Action::DefaultBackend => RouteAction::DefaultBackend(self.default_backend),
            Action::Redirect(_) => RouteAction::Redirect,
            Action::Deny => RouteAction::Deny,
        }
    }

    fn pages(&self, errors: &ErrorPages) -> Pages {
        let place = errors.backend.as_ref().and_then(|name| self.index.get(name).copied());
        let stand_in = place.filter(|place| self.has_endpoints(*place));
        Pages { stand_in, backend: stand_in.or(self.default_backend) }
    }

    fn canary_of(&self, action: RouteAction) -> Option<String> {
        let RouteAction::Proxy(Some(place)) = action else { return None };
        let canary = self.upstreams.all.get(place)?.canary.as_ref()?;
        self.upstreams.all.get(canary.upstream).map(|entry| entry.name.0.clone())
    }

    fn number(&mut self) -> usize {
        self.numbered += 1;
        self.numbered
    }
}

fn errors_of(filters: &Filters) -> Option<&ErrorPages> {
    filters.policies.as_ref()?.errors.as_ref()
}

/// Upstreams that a location has to do with.
fn upstreams_of(location: &Location) -> impl Iterator<Item = &UpstreamName> {
    let proxied = match &location.action {
        Action::Proxy(name) => Some(name),
        Action::DefaultBackend | Action::Redirect(_) | Action::Deny => None,
    };
    proxied.into_iter().chain(errors_of(&location.filters).and_then(|errors| errors.backend.as_ref()))
}

/// The Ingress whose limits a location has.
fn limits_of(location: &Location) -> Option<&ObjectName> {
    Some(&location.filters.policies.as_ref()?.limits.as_ref()?.ingress)
}

#[cfg(test)]
mod tests;

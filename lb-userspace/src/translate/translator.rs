//! Translates one state of the objects after the other, at the price of what has changed in between.
//!
//! Nothing is remembered that could not be found out again: the result is the same as that of a translator
//! that sees the objects for the first time.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use super::certificates;
use super::classes::{self, Served};
use super::config::{self, Config};
use super::endpoints::{self, Slices};
use super::findings::{Findings, ProblemSet};
use super::ingress::{self, Claimed, Together};
use super::nodes::Nodes;
use super::parts::{Made, Parts, Update};
use super::pools::Allocator;
use super::services::{self, Held};
use super::streams::Streams;
use super::view::View;
use super::{Options, StreamsBy, Translated};
use crate::model::l4::{L4, PoolId};
use crate::model::l7::{HostMatch, L7};
use crate::model::pool::Given;
use crate::model::{Names, ObjectName, Problem, Shared, Snapshot};
use crate::objects::{self, Key, Kind, Map, Objects};

/// What was translated last, and what is known of it.
#[derive(Default)]
pub struct Translator {
    /// `None`: nothing was.
    options: Option<Options>,
    objects: Objects,
    classified: HashMap<ObjectName, Class>,
    /// Those that are ours.
    served: Names,
    /// What the Node objects say.
    nodes: Arc<Nodes>,
    /// See [`Nodes::silent`].
    silent: BTreeSet<IpAddr>,
    slices: Slices,
    allocator: Allocator,
    given: Arc<Given>,
    certificates: certificates::Known,
    services: Parts<ObjectName, Held, services::Output>,
    ingresses: Parts<Member, Claimed, ingress::Output>,
    config: Option<ReadConfig>,
    /// Ours, as all routes were made by it.
    zone: Option<String>,
    /// Of slices and nodes.
    asides: HashMap<Key, Vec<Arc<Problem>>>,
    told: ProblemSet,
    snapshot: Snapshot,
}

/// What the routes are made of.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Member {
    /// What the flags and the ConfigMap name.
    Flags,
    /// An Ingress of ours.
    Ingress(ObjectName),
}

struct Class {
    is_ours: bool,
    problems: Vec<Arc<Problem>>,
}

struct ReadConfig {
    config: Config,
    /// See [`config::unread`].
    unread: Option<ObjectName>,
    reads: BTreeSet<Key>,
    problems: Vec<Arc<Problem>>,
}

/// Names of what is another than before.
struct Changes {
    ingresses: BTreeSet<ObjectName>,
    classes: bool,
    services: BTreeSet<ObjectName>,
    slices: BTreeSet<ObjectName>,
    secrets: BTreeSet<ObjectName>,
    config_maps: BTreeSet<ObjectName>,
    nodes: bool,
}

impl Changes {
    fn between(before: &Objects, now: &Objects) -> Self {
        // Whether it is there matters to who misses it.
        let unread = before.unread.symmetric_difference(&now.unread).flatten();
        let unread = unread.filter(|key| key.kind == Kind::Secret).map(|key| key.name.clone());
        let mut secrets = changed(&before.secrets, &now.secrets);
        secrets.extend(unread);
        Self {
            ingresses: changed(&before.ingresses, &now.ingresses),
            classes: before.ingress_classes != now.ingress_classes,
            services: changed(&before.services, &now.services),
            slices: changed(&before.endpoint_slices, &now.endpoint_slices),
            secrets,
            config_maps: changed(&before.config_maps, &now.config_maps),
            nodes: before.nodes != now.nodes,
        }
    }
}

fn changed<T: PartialEq>(before: &Map<ObjectName, T>, now: &Map<ObjectName, T>) -> BTreeSet<ObjectName> {
    use imbl::ordmap::DiffItem;
    let names = before.diff(now).map(|item| match item {
        DiffItem::Add(name, _) | DiffItem::Update { new: (name, _), .. } | DiffItem::Remove(name, _) => name,
    });
    names.cloned().collect()
}

impl Translator {
    /// The desired state that these objects describe.
    pub fn translate(&mut self, objects: &Objects, options: &Options) -> Translated {
        if self.options.as_ref() != Some(options) {
            *self = Self { options: Some(options.clone()), ..Self::default() };
        }
        let changes = Changes::between(&self.objects, objects);
        let mut stirred = changes.services.clone();
        for name in &changes.slices {
            let (before, now) = (self.objects.endpoint_slices.get(name), objects.endpoint_slices.get(name));
            stirred.extend(self.slices.follow(name, before, now));
        }
        self.look_at_slices(&changes, objects);
        let l4 = self.balance(&changes, &stirred, objects, options);

        let key = |kind| move |name: &ObjectName| Key { kind, name: name.clone() };
        let mut read: BTreeSet<Key> = stirred.iter().map(key(Kind::Service)).collect();
        read.extend(changes.secrets.iter().map(key(Kind::Secret)));
        read.extend(changes.config_maps.iter().map(key(Kind::ConfigMap)));
        self.certificates.forget(&read);
        let l7 = self.route(&changes, &read, objects, options);

        self.objects = objects.clone();
        self.snapshot = Snapshot {
            l4: l4.map_or_else(|| Arc::clone(&self.snapshot.l4), Arc::new),
            l7: if *self.snapshot.l7 == l7 { Arc::clone(&self.snapshot.l7) } else { Arc::new(l7) },
        };
        Translated {
            snapshot: self.snapshot.clone(),
            problems: self.told.all().clone(),
            given: Arc::clone(&self.given),
            served: self.served.clone(),
        }
    }

    /// Says what is wrong with slices that are new or whose Service came or went.
    fn look_at_slices(&mut self, changes: &Changes, objects: &Objects) {
        let exists = |objects: &Objects, name: &ObjectName| objects.services.contains_key(name);
        let came_or_went =
            changes.services.iter().filter(|name| exists(&self.objects, name) != exists(objects, name));
        let mut names = changes.slices.clone();
        names.extend(came_or_went.flat_map(|service| self.slices.names_of(service)).cloned());
        for name in names {
            let mut findings = Findings::default();
            if let Some(sourced) = objects.endpoint_slices.get(&name) {
                endpoints::tell(&name, sourced, &objects.services, &mut findings);
            }
            self.tell_aside(Key { kind: Kind::EndpointSlice, name }, findings);
        }
    }

    /// Problems that belong to no part, instead of those of before.
    fn tell_aside(&mut self, about: Key, findings: Findings) {
        let problems = findings.into_shared();
        self.told.add(&problems);
        let before = if problems.is_empty() {
            self.asides.remove(&about)
        } else {
            self.asides.insert(about, problems)
        };
        self.told.remove(&before.unwrap_or_default());
    }

    /// Which agents are known not to run: the pods of the agents' own Service say so.
    fn look_for_silence(&mut self, options: &Options) {
        let mut findings = Findings::default();
        self.silent = match &options.publish_service {
            Some(agents) => self.nodes.silent(self.slices.unready_nodes(agents), agents, &mut findings),
            None => BTreeSet::new(),
        };
        self.tell_aside(Key { kind: Kind::EndpointSlice, name: ObjectName::default() }, findings);
    }

    /// Has addresses of the pools given anew if claims or pools are others than before; returns the Services
    /// that it matters to.
    fn give(
        &mut self,
        changes: &Changes,
        begins: bool,
        taken: &BTreeSet<IpAddr>,
        objects: &Objects,
        options: &Options,
    ) -> BTreeSet<ObjectName> {
        let mut findings = Findings::default();
        let look = begins || !changes.config_maps.is_empty();
        let followed =
            self.allocator.follow(Some(&changes.services), taken, look, objects, options, &mut findings);
        if followed.is_read {
            self.tell_aside(Key { kind: Kind::ConfigMap, name: ObjectName::default() }, findings);
        }
        if !followed.touched.is_empty() {
            self.given = Arc::new(self.allocator.given());
        }
        followed.touched
    }

    /// The half of the kernel program, if it is another than before.
    fn balance(
        &mut self,
        changes: &Changes,
        stirred: &BTreeSet<ObjectName>,
        objects: &Objects,
        options: &Options,
    ) -> Option<L4> {
        let mut touched = stirred.clone();
        let begins = self.snapshot.l4.punts.is_empty();
        if changes.nodes || begins {
            let mut findings = Findings::default();
            let nodes = Nodes::new(&objects.nodes, options, &mut findings);
            self.tell_aside(Key { kind: Kind::Node, name: ObjectName::default() }, findings);
            if nodes != *self.nodes {
                touched.extend(self.services.members().cloned());
                self.nodes = Arc::new(nodes);
            }
        }
        if changes.nodes || begins || options.publish_service.iter().any(|agents| stirred.contains(agents)) {
            self.look_for_silence(options);
        }
        let nodes = Arc::clone(&self.nodes);
        touched.extend(self.give(changes, begins, nodes.addresses(), objects, options));
        // Ports beside http and https make all Services one part, which has a member without a name.
        let streams = options.tcp_services.iter().chain(&options.udp_services);
        let streams: Vec<&ObjectName> = streams.filter(|_| options.streams == StreamsBy::Kernel).collect();
        if !streams.is_empty() && (begins || streams.iter().any(|name| changes.config_maps.contains(*name))) {
            touched.insert(ObjectName::default());
        }
        let is_there =
            |name: &ObjectName| objects.services.contains_key(name) || *name == ObjectName::default();
        let (touched, gone) = touched.into_iter().partition(is_there);
        let Self { services: parts, slices, allocator, .. } = self;
        let make = |members: &BTreeSet<ObjectName>| {
            let mut findings = Findings::default();
            let services = members.iter().filter_map(|name| objects.services.get_key_value(name)).collect();
            let streams = if members.contains(&ObjectName::default()) {
                Streams::read(objects, options, &mut findings)
            } else {
                Streams::default()
            };
            let (output, claims) =
                services::translate(services, streams, slices, &nodes, allocator, options, &mut findings);
            Made { output, claims, reads: BTreeSet::new(), problems: findings.into_shared(), failed: false }
        };
        let glue = |_: &ObjectName| if streams.is_empty() { Vec::new() } else { vec![Held::Streams] };
        let failed = |members: &BTreeSet<ObjectName>, panic: &str| {
            let told = members.iter().filter_map(|name| {
                let origin = &objects.services.get(name)?.origin;
                Some(told_of_panic(Kind::Service, name, origin, panic))
            });
            told.collect()
        };
        let update = parts.update(touched, &gone, &BTreeSet::new(), glue, make, failed);
        settle(&mut self.told, parts, &update);

        let known = &self.snapshot.l4;
        let rest = (nodes.own(), nodes.peers(), services::is_unread(objects));
        let of_nodes = (nodes.is_excluded(), nodes.addresses(), nodes.named(), &self.silent);
        let new = update.new.iter().filter_map(|id| parts.get(*id));
        // Most Services have no VIP.
        let has_nothing = update.gone.iter().chain(new).all(|part| part.made.output.is_empty());
        let stays = (&known.tunnel, &known.peers, &known.unread) == (&rest.0, &rest.1, &rest.2)
            && (known.excluded, &known.taken, &known.nodes, &known.silent) == of_nodes;
        if has_nothing && stays && !known.punts.is_empty() {
            return None;
        }
        let mut l4 = L4::clone(known);
        if l4.punts.is_empty() {
            l4.punts = services::own_punts(options);
        }
        let new = || update.new.iter().filter_map(|id| Some(&parts.get(*id)?.made.output));
        let kept: BTreeSet<&PoolId> = new().flat_map(|output| output.pools.keys()).collect();
        for output in update.gone.iter().map(|part| &part.made.output) {
            let gone = output.pools.keys().filter(|id| !kept.contains(id));
            gone.for_each(|id| l4.pools.remove(id));
            output.punts.keys().for_each(|vip| drop(l4.punts.remove(vip)));
            output.health_ports.keys().for_each(|port| drop(l4.health_ports.remove(port)));
        }
        for output in new() {
            output.pools.iter().for_each(|(id, pool)| l4.pools.insert(id.clone(), Arc::clone(pool)));
            l4.punts.extend(output.punts.iter().map(|(vip, punt)| (*vip, punt.clone())));
            l4.health_ports.extend(output.health_ports.iter().map(|(port, it)| (*port, it.clone())));
        }
        (l4.tunnel, l4.peers, l4.unread) = rest;
        (l4.excluded, l4.taken, l4.nodes, l4.silent) =
            (of_nodes.0, of_nodes.1.clone(), Arc::clone(of_nodes.2), of_nodes.3.clone());
        (l4 != **known).then_some(l4)
    }

    /// The half of the proxy.
    fn route(&mut self, changes: &Changes, read: &BTreeSet<Key>, objects: &Objects, options: &Options) -> L7 {
        let (mut touched, gone) = self.classify(changes, objects, options);
        let begins = self.config.is_none();
        let is_other = self.read_config(changes, read, objects, options);
        if begins {
            touched.insert(Member::Flags);
        }
        let matters = options.routes_by_zone || options.enable_ssl_passthrough;
        let zone = self.nodes.zone().filter(|_| matters).map(str::to_owned);
        if is_other || zone != self.zone {
            touched.extend(self.ingresses.members().cloned());
        }
        self.zone = zone;
        let Self { config, ingresses: parts, slices, certificates, snapshot, told, nodes, .. } = self;
        let config = config.as_ref().map(|read| &read.config).expect("it was read above");
        let glue = |member: &Member| match member {
            Member::Flags => ingress::claims_of_flags(config),
            Member::Ingress(name) => match objects.ingresses.get(name) {
                Some(sourced) => ingress::claims_of(&sourced.object),
                None => Vec::new(),
            },
        };
        let make = |members: &BTreeSet<Member>| {
            let (mut findings, view) = (Findings::default(), View::new(objects, nodes));
            let served = members.iter().filter_map(|member| match member {
                Member::Flags => None,
                Member::Ingress(name) => Some(Served::new(name, objects.ingresses.get(name)?)),
            });
            let together = Together {
                served: classes::in_order(served.collect()),
                flags: members.contains(&Member::Flags),
            };
            let output =
                ingress::translate(together, &view, slices, certificates, config, options, &mut findings);
            let claims = output.claims();
            Made {
                output,
                claims,
                reads: view.into_reads(),
                problems: findings.into_shared_as_written(options),
                failed: false,
            }
        };
        let failed = |members: &BTreeSet<Member>, panic: &str| {
            let told = members.iter().filter_map(|member| match member {
                Member::Flags => Some(told_of_panic(Kind::ConfigMap, &ObjectName::default(), "", panic)),
                Member::Ingress(name) => {
                    let origin = &objects.ingresses.get(name)?.origin;
                    Some(told_of_panic(Kind::Ingress, name, origin, panic))
                }
            });
            told.collect()
        };
        let update = parts.update(touched, &gone, read, glue, make, failed);
        settle(told, parts, &update);
        let mut l7 = L7::clone(&snapshot.l7);
        put_in(&mut l7, parts, &update);
        if is_other {
            let Config {
                gate: _,
                edge,
                settings: _,
                log,
                keepalive,
                responses,
                blocked,
                compression,
                collector,
            } = config.clone();
            (l7.edge, l7.keepalive, l7.responses) = (edge, keepalive, responses);
            (l7.log, l7.blocked) = (log.map(Arc::new), blocked.map(Arc::new));
            (l7.compression, l7.collector) = (compression.map(Arc::new), collector.map(Arc::new));
        }
        l7
    }

    /// Which Ingresses that have to do with a change are ours, and which are not or no more.
    fn classify(
        &mut self,
        changes: &Changes,
        objects: &Objects,
        options: &Options,
    ) -> (BTreeSet<Member>, BTreeSet<Member>) {
        let (mut touched, mut gone) = (BTreeSet::new(), BTreeSet::new());
        let mut names = changes.ingresses.clone();
        if changes.classes {
            names.extend(objects.ingresses.keys().cloned());
        }
        for name in names {
            let mut findings = Findings::default();
            let is_ours = objects.ingresses.get(&name).is_some_and(|sourced| {
                classes::is_ours(&name, sourced, &objects.ingress_classes, options, &mut findings)
            });
            let class = Class { is_ours, problems: findings.into_shared_as_written(options) };
            self.told.add(&class.problems);
            let before = if is_ours || !class.problems.is_empty() {
                self.classified.insert(name.clone(), class)
            } else {
                self.classified.remove(&name)
            };
            let was_ours = before.as_ref().is_some_and(|before| before.is_ours);
            self.told.remove(&before.map(|before| before.problems).unwrap_or_default());
            if is_ours && !was_ours {
                self.served.insert(name.clone());
            } else if was_ours && !is_ours {
                self.served.remove(&name);
            }
            let differs = changes.ingresses.contains(&name) || is_ours != was_ours;
            match Member::Ingress(name) {
                member if is_ours && differs => drop(touched.insert(member)),
                member if was_ours && !is_ours => drop(gone.insert(member)),
                _ => {}
            }
        }
        (touched, gone)
    }

    /// Reads the ConfigMap anew if something changed that it names; whether it says something else.
    fn read_config(
        &mut self,
        changes: &Changes,
        read: &BTreeSet<Key>,
        objects: &Objects,
        options: &Options,
    ) -> bool {
        let unread = config::unread(objects, options);
        if let Some(known) = &self.config
            && !changes.config_maps.iter().any(|name| config::may_count(name, options.config_map.as_ref()))
            && known.reads.is_disjoint(read)
            && known.unread == unread
        {
            return false;
        }
        let (mut findings, view) = (Findings::default(), View::new(objects, &self.nodes));
        let config = config::read(&objects.config_maps, unread.as_ref(), &view, options, &mut findings);
        let (reads, problems) = (view.into_reads(), findings.into_shared_as_written(options));
        let now = ReadConfig { config, unread, reads, problems };
        self.told.add(&now.problems);
        let Some(before) = self.config.replace(now) else { return true };
        self.told.remove(&before.problems);
        self.config.as_ref().is_none_or(|now| now.config != before.config)
    }
}

/// Tells the problems of parts that are new, and no more those of parts that are gone.
fn settle<M, C, T>(told: &mut ProblemSet, parts: &Parts<M, C, T>, update: &Update<M, C, T>)
where
    M: Ord + std::hash::Hash + Clone,
    C: std::hash::Hash + Eq + Clone,
{
    for part in update.new.iter().filter_map(|id| parts.get(*id)) {
        told.add(&part.made.problems);
    }
    for part in &update.gone {
        told.remove(&part.made.problems);
    }
}

/// Gives hosts and upstreams of parts that are gone or new to who has them now. What is equal stays the
/// same `Arc`, in the parts, too.
fn put_in(
    l7: &mut L7,
    parts: &mut Parts<Member, Claimed, ingress::Output>,
    update: &Update<Member, Claimed, ingress::Output>,
) {
    let (mut hosts, mut upstreams) = (BTreeSet::new(), BTreeSet::new());
    let new = update.new.iter().filter_map(|id| parts.get(*id));
    for claim in update.gone.iter().chain(new).flat_map(|part| part.made.claims.keys()) {
        match claim {
            Claimed::Host(host) => drop(hosts.insert(host.clone())),
            Claimed::Upstream(name) => drop(upstreams.insert(name.clone())),
            Claimed::Settled(_) => {}
        }
    }
    for host in hosts {
        let claim = Claimed::Host(host.clone());
        let output = parts.claiming(&claim).next().map(|part| &part.made.output);
        set(&mut l7.servers, &host, output.and_then(|output| output.servers.get(&host)).cloned());
        set(&mut l7.certificates, &host, output.and_then(|output| output.certificates.get(&host)).cloned());
        match &host {
            HostMatch::Exact(name) => {
                let to = output.and_then(|output| output.passthrough.get(name));
                set(&mut l7.passthrough, name, to.map(|to| Arc::new(to.clone())));
                let alias = output.and_then(|output| output.aliases.exact.share(name));
                set(&mut l7.aliases.exact, name, alias.cloned());
            }
            HostMatch::Wildcard(name) => {
                let alias = output.and_then(|output| output.aliases.below.share(name));
                set(&mut l7.aliases.below, name, alias.cloned());
            }
            HostMatch::Any => {}
        }
    }
    for name in upstreams {
        let claim = Claimed::Upstream(name.clone());
        let laid = parts.claiming(&claim);
        let laid = laid.filter_map(|part| part.made.output.upstreams.get(&name));
        let laid = laid.max_by_key(|laid| laid.is_settled);
        set(&mut l7.upstreams, &name, laid.map(|laid| Arc::clone(&laid.upstream)));
    }
    let new = update.new.iter().filter_map(|id| parts.get(*id));
    if update.gone.iter().chain(new).any(|part| !part.made.output.patterns.is_empty()) {
        let mut patterns: Vec<_> = parts.all().flat_map(|part| &part.made.output.patterns).collect();
        patterns.sort_by_key(|(place, ..)| place);
        let patterns = patterns.into_iter().map(|(_, pattern, host)| (pattern.clone(), host.clone()));
        let patterns: Arc<[_]> = patterns.collect();
        if l7.aliases.patterns != patterns {
            l7.aliases.patterns = patterns;
        }
    }
    if let Some(part) = parts.of(&Member::Flags) {
        l7.default_backend.clone_from(&part.made.output.default_backend);
        l7.default_certificate.clone_from(&part.made.output.default_certificate);
        if l7.streams != part.made.output.streams {
            l7.streams = Arc::clone(&part.made.output.streams);
        }
    }
    for id in &update.new {
        let Some(part) = parts.get_mut(*id) else { continue };
        for (host, server) in &mut part.made.output.servers {
            if let Some(known) = l7.servers.share(host) {
                *server = Arc::clone(known);
            }
        }
        for (name, laid) in &mut part.made.output.upstreams {
            if let Some(known) = l7.upstreams.share(name).filter(|known| **known == laid.upstream) {
                laid.upstream = Arc::clone(known);
            }
        }
    }
}

fn told_of_panic(kind: Kind, name: &ObjectName, origin: &str, panic: &str) -> Arc<Problem> {
    Arc::new(objects::panicked(&Key { kind, name: name.clone() }.id(origin), panic))
}

fn set<K: Ord + Clone, V: Eq>(map: &mut Shared<K, V>, key: &K, value: Option<Arc<V>>) {
    match value {
        Some(value) => map.insert(key.clone(), value),
        None => map.remove(key),
    }
}

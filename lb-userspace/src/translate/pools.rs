//! Address pools: the ConfigMap that describes them, and what each Service of type LoadBalancer asks of them.
//! Who gets what is arithmetic of `model::pool`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{ConfigMap, LoadBalancerIngress, Service, ServiceSpec};
use k8s_openapi::jiff::Timestamp;
use serde::Deserialize;

use super::findings::{About, Findings};
use super::{Options, StreamsBy, config, names, ours, services, vips};
use crate::model::ObjectName;
use crate::model::l4::{Family, IpMode, Protocol};
use crate::model::pool::{
    Block, CONFIG_MAP, Claim, Given, GivenTo, Grant, Needs, NotShared, Pool, Refusal, grant,
};
use crate::objects::{self, Key, Kind, Objects, Sourced};

/// Where addresses are asked for; our own name first, then MetalLB's.
const ADDRESSES: [&str; 3] =
    [ours::ADDRESSES, "metallb.io/loadBalancerIPs", "metallb.universe.tf/loadBalancerIPs"];
/// Where a pool is asked for.
const POOL: [&str; 3] = [ours::ADDRESS_POOL, "metallb.io/address-pool", "metallb.universe.tf/address-pool"];
/// Where a Service says with whom it shares.
const SHARING: [&str; 3] =
    [ours::SHARE_ADDRESS, "metallb.io/allow-shared-ip", "metallb.universe.tf/allow-shared-ip"];

/// A pool as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Written {
    addresses: Vec<String>,
    #[serde(default = "yes")]
    auto_assign: bool,
    #[serde(default)]
    namespaces: BTreeSet<String>,
    #[serde(default)]
    priority: u32,
    #[serde(default, rename = "avoidBuggyIPs")]
    avoid_buggy_ips: bool,
}

fn yes() -> bool {
    true
}

/// Who has which addresses of the pools. Worked out anew over all Services when a claim or the pools are others
/// than before; whatever else changes costs nothing here.
#[derive(Default)]
pub(super) struct Allocator {
    written: Option<(ObjectName, Sourced<ConfigMap>)>,
    pools: Vec<Pool>,
    claims: BTreeMap<ObjectName, Dated>,
    grants: BTreeMap<ObjectName, Grant>,
    /// Services that claim nothing any more while their status names addresses of the pools.
    leavers: BTreeSet<ObjectName>,
    /// Addresses that nodes have.
    taken: BTreeSet<IpAddr>,
    /// The ConfigMap, where it is written and no version of it can be used.
    unread: Option<ObjectName>,
    /// The ConfigMap, where a flag names it and it is not written.
    missing: Option<ObjectName>,
}

/// A claim, when its Service was made, and what the status is to say of the addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Dated {
    created: Option<Timestamp>,
    mode: IpMode,
    claim: Claim,
}

/// What a change came to.
#[derive(Default)]
pub(super) struct Followed {
    /// Services to be looked at again.
    pub touched: BTreeSet<ObjectName>,
    /// The pools were read anew, or looked for in vain, and what is wrong with them was told.
    pub is_read: bool,
}

impl Allocator {
    /// Follows a change of these Services (`None`: of any), of what nodes have, and of ConfigMaps if it is to
    /// `look` at them.
    pub(super) fn follow(
        &mut self,
        services: Option<&BTreeSet<ObjectName>>,
        taken: &BTreeSet<IpAddr>,
        look: bool,
        objects: &Objects,
        options: &Options,
        findings: &mut Findings,
    ) -> Followed {
        let mut followed = Followed::default();
        let claim_of = |name: &ObjectName, sourced: &Sourced<Service>| dated(name, &sourced.object, options);
        let written =
            config_map(objects, options).filter(|_| look).map(|(name, it)| (name.clone(), it.clone()));
        let mut differs = *taken != self.taken;
        self.taken.clone_from(taken);
        let unread = unread(objects, options);
        if unread != self.unread {
            followed.touched.extend(objects.services.keys().cloned());
            self.unread = unread;
        }
        let missing = missing(objects, options);
        if missing != self.missing {
            followed.is_read = true;
            self.missing = missing;
        }
        if look && written != self.written {
            (followed.is_read, differs) = (true, true);
            self.pools.clear();
            if let Some((name, sourced)) = &written {
                let id = Key { kind: Kind::ConfigMap, name: name.clone() }.id(&sourced.origin);
                let mut about = findings.about(&id);
                self.pools = read(&sourced.object, &mut about);
                if options.streams == StreamsBy::Proxy && !self.pools.is_empty() {
                    about.warn(
                        "pools-without-datapath",
                        "data",
                        "this agent serves none of these addresses, because of --datapath off, and yet gives them away",
                        "run the kernel part, or leave the pools out",
                    );
                }
            }
            followed.touched.extend(self.claims.keys().cloned());
            let all = objects.services.iter().filter(|_| written.is_some());
            let all = all.filter_map(|(name, sourced)| Some((name.clone(), claim_of(name, sourced)?)));
            self.claims = all.collect();
            followed.touched.extend(self.claims.keys().cloned());
            let leavers =
                objects.services.iter().filter(|(_, sourced)| self.is_left_by(&sourced.object, options));
            self.leavers = leavers.map(|(name, _)| name.clone()).collect();
            self.written = written;
        } else if self.written.is_some() {
            for name in services.into_iter().flatten() {
                let now = objects.services.get(name).and_then(|sourced| claim_of(name, sourced));
                let before = match now.clone() {
                    Some(now) => self.claims.insert(name.clone(), now),
                    None => self.claims.remove(name),
                };
                differs |= before != now;
                let mode = |dated: &Option<Dated>| dated.as_ref().map(|dated| dated.mode);
                followed.touched.extend((mode(&before) != mode(&now)).then(|| name.clone()));
                let service = objects.services.get(name);
                let is_other = if service.is_some_and(|sourced| self.is_left_by(&sourced.object, options)) {
                    self.leavers.insert(name.clone())
                } else {
                    self.leavers.remove(name)
                };
                followed.touched.extend(is_other.then(|| name.clone()));
            }
        }
        if let Some(name) = self.missing.as_ref().filter(|_| followed.is_read) {
            let id = Key { kind: Kind::ConfigMap, name: name.clone() }.id("");
            let message = "does not exist, though --address-pools names it: no Service gets an address";
            findings.about(&id).warn("missing-config-map", "", message, "add it, or leave out the flag");
        }
        if differs {
            let grants = self.grant();
            let is_other = |name: &&ObjectName| self.grants.get(*name) != grants.get(*name);
            let names = self.grants.keys().chain(grants.keys());
            followed.touched.extend(names.filter(is_other).cloned());
            self.grants = grants;
        }
        followed
    }

    /// The oldest first, as everywhere.
    fn grant(&self) -> BTreeMap<ObjectName, Grant> {
        let mut claims: Vec<&Dated> = self.claims.values().collect();
        claims.sort_by_key(|dated| (dated.created, &dated.claim.service));
        grant(&self.pools, &self.taken, &claims.iter().map(|dated| &dated.claim).collect::<Vec<_>>())
    }

    /// It asks for none, and still says that it has an address of the pools: it is of another type now, or somebody else
    /// serves it, who could not have given it that. What has a class of others is theirs for good.
    fn is_left_by(&self, service: &Service, options: &Options) -> bool {
        let spec = service.spec.as_ref().filter(|spec| spec.type_.as_deref() == Some("LoadBalancer"));
        let is_left = spec.is_none_or(|spec| {
            vips::has_our_class(spec, options) && services::other_proxy(service).is_some()
        });
        is_left && held(service).any(|addr| self.gives(addr))
    }

    /// What one Service has and is refused; `None`: no pool has a say.
    pub(super) fn of(&self, service: &ObjectName) -> Option<&Grant> {
        self.grants.get(service)
    }

    /// The address is in a pool.
    pub(super) fn gives(&self, addr: IpAddr) -> bool {
        self.pools.iter().any(|pool| pool.has(addr))
    }

    /// The ConfigMap that says which addresses there are and cannot be used: any address may be one of them.
    pub(super) fn unread(&self) -> Option<&ObjectName> {
        self.unread.as_ref()
    }

    /// What each Service has: nothing, where it once had something. Those that others balance are left out.
    pub(super) fn given(&self) -> Given {
        let given = self.grants.iter().filter(|(_, grant)| !grant.is_of_others());
        let given = given.map(|(name, grant)| {
            let addresses = grant.addresses.keys().copied().collect();
            let mode = self.claims.get(name).map(|dated| dated.mode).unwrap_or_default();
            (name.clone(), GivenTo { addresses, mode })
        });
        given.chain(self.leavers.iter().map(|name| (name.clone(), GivenTo::default()))).collect()
    }
}

/// The ConfigMap, where it is known before anything is read.
pub(super) fn named(options: &Options) -> Option<ObjectName> {
    let beside =
        options.publish_service.as_ref().map(|service| ObjectName::new(&service.namespace, CONFIG_MAP));
    options.address_pools.clone().or_else(|| options.own_pools.clone()).or(beside)
}

/// Whether it can be the ConfigMap of the pools, by the name that it is known to have or else by the usual one.
pub(super) fn may_count(name: &ObjectName, named: Option<&ObjectName>) -> bool {
    named.map_or(name.name == CONFIG_MAP, |named| named == name)
}

/// Refuses a version that would take addresses away by a typing error: the last good one stays in force.
pub(super) fn admit(config_map: &ConfigMap, about: &mut About<'_>) {
    for (name, text) in config_map.data.iter().flatten() {
        if let Err(message) = pool(name, text) {
            bad(name, message, about);
        }
    }
}

fn bad(name: &str, message: String, about: &mut About<'_>) {
    let fix = "correct it, e.g. addresses: [192.0.2.0/28]";
    about.error_fix("bad-pool", format!("data.{name}"), message, fix);
}

/// Whoever may write ConfigMaps somewhere must not give addresses away: only the controller's own namespace
/// counts, where it is known. Elsewhere they are known by their name, as the controller's ConfigMap is.
fn config_map<'a>(
    objects: &'a Objects,
    options: &Options,
) -> Option<(&'a ObjectName, &'a Sourced<ConfigMap>)> {
    if let Some(name) = named(options) {
        return objects.config_maps.get_key_value(&name);
    }
    match config::controller(objects, options) {
        Some((own, _)) => objects.config_maps.get_key_value(&ObjectName::new(&own.namespace, CONFIG_MAP)),
        None => objects.config_maps.iter().find(|(name, _)| name.name == CONFIG_MAP),
    }
}

/// One that would count, could not be read, and has no version before. Not [`named`], it is one of the usual name
/// beside the controller's, wherever that is.
fn unread(objects: &Objects, options: &Options) -> Option<ObjectName> {
    if objects.unread.is_empty() || config_map(objects, options).is_some() {
        return None;
    }
    let named = named(options);
    let own = config::controller(objects, options).filter(|_| named.is_none());
    let unread = objects.unread.iter().flatten().filter(|key| key.kind == Kind::ConfigMap);
    unread
        .map(|key| &key.name)
        .find(|name| {
            let is_beside = own.is_none_or(|(own, _)| own.namespace == name.namespace);
            is_beside && may_count(name, named.as_ref())
        })
        .cloned()
}

/// The one that the flag names, where it is not there at all.
fn missing(objects: &Objects, options: &Options) -> Option<ObjectName> {
    let named = options.address_pools.as_ref().filter(|name| !objects.config_maps.contains_key(*name));
    named.filter(|_| unread(objects, options).is_none()).cloned()
}

/// Pools by name. A pool that cannot be read is left out as a whole.
fn read(config_map: &ConfigMap, about: &mut About<'_>) -> Vec<Pool> {
    let mut pools: Vec<Pool> = Vec::new();
    for (name, text) in config_map.data.iter().flatten() {
        let field = format!("data.{name}");
        let pool = match pool(name, text) {
            Ok(pool) => pool,
            Err(message) => {
                bad(name, message, about);
                continue;
            }
        };
        let common = |other: &&Pool| {
            pool.blocks.iter().any(|block| other.blocks.iter().any(|theirs| block.overlaps(theirs)))
        };
        if let Some(other) = pools.iter().find(common) {
            let message = format!("has addresses in common with {:?}", other.name);
            about.warn("pool-overlap", field, message, "what both hold is given by either");
        }
        pools.push(pool);
    }
    pools
}

fn pool(name: &str, text: &str) -> Result<Pool, String> {
    let written: Written =
        serde_saphyr::from_str(text).map_err(|error| error.without_snippet().render().replace('\n', " "))?;
    let Written { addresses, auto_assign, namespaces, priority, avoid_buggy_ips } = written;
    let blocks: Vec<Block> = addresses.iter().map(|text| block(text)).collect::<Result<_, _>>()?;
    if blocks.is_empty() {
        return Err("it has no addresses".to_owned());
    }
    Ok(Pool {
        name: name.to_owned(),
        blocks,
        auto_assign,
        namespaces,
        priority,
        avoid_edges: avoid_buggy_ips,
    })
}

/// Addresses that can all be a VIP.
fn block(text: &str) -> Result<Block, String> {
    let block: Block = text.parse()?;
    match names::unusable_vip_within(&block) {
        Some((addr, why)) => Err(format!("{text:?} holds {addr}, which {why}: nobody could be served there")),
        None => Ok(block),
    }
}

fn dated(name: &ObjectName, service: &Service, options: &Options) -> Option<Dated> {
    let created = service.metadata.creation_timestamp.as_ref().map(|time| time.0);
    let mode = services::ip_mode(name, service, options);
    Some(Dated { created, mode, claim: claim(name, service, options)? })
}

fn claim(name: &ObjectName, service: &Service, options: &Options) -> Option<Claim> {
    let spec = service.spec.as_ref().filter(|spec| spec.type_.as_deref() == Some("LoadBalancer"))?;
    let is_ours = vips::has_our_class(spec, options) && services::other_proxy(service).is_none();
    is_ours.then(|| Claim {
        service: name.clone(),
        families: families(spec),
        needs: match spec.ip_family_policy.as_deref() {
            Some("RequireDualStack") => Needs::All,
            _ => Needs::Any,
        },
        requested: requested(service).filter_map(|(_, text)| text.parse().ok()).collect(),
        pool: first(service, POOL).map(str::to_owned),
        held: held(service).collect(),
        foreign: foreign(service, options),
        sharing: first(service, SHARING).map(str::to_owned),
        ports: ports(spec),
        local_pods: (spec.external_traffic_policy.as_deref() == Some("Local"))
            .then(|| spec.selector.clone().unwrap_or_default()),
    })
}

/// As written, else as an API server would fill in.
fn families(spec: &ServiceSpec) -> Vec<Family> {
    let written = spec.ip_families.iter().flatten().filter_map(|family| match family.as_str() {
        "IPv4" => Some(Family::V4),
        "IPv6" => Some(Family::V6),
        _ => None,
    });
    let written: Vec<_> = written.collect();
    match spec.ip_family_policy.as_deref() {
        _ if !written.is_empty() => written,
        Some("PreferDualStack" | "RequireDualStack") => vec![Family::V4, Family::V6],
        _ => vec![Family::V4],
    }
}

/// Addresses that the Service asks for and the fields that do.
pub(super) fn requested(service: &Service) -> impl Iterator<Item = (String, &str)> {
    let spec = service.spec.as_ref().and_then(|spec| spec.load_balancer_ip.as_deref());
    let spec = spec.filter(|addr| !addr.is_empty()).map(|addr| ("spec.loadBalancerIP".to_owned(), addr));
    let named = ADDRESSES.iter().find_map(|name| Some((*name, ours::text(&service.metadata, name)?)));
    let listed = named.into_iter().flat_map(|(name, list)| {
        let list = list.split(',').map(str::trim).filter(|addr| !addr.is_empty());
        list.map(move |addr| (ours::field(name), addr))
    });
    spec.into_iter().chain(listed)
}

/// Addresses that its status says it has.
pub(super) fn held(service: &Service) -> impl Iterator<Item = IpAddr> {
    given(service).filter_map(|ingress| ingress.ip.as_deref()?.parse().ok())
}

/// What its status says it has.
pub(super) fn given(service: &Service) -> impl Iterator<Item = &LoadBalancerIngress> {
    let status = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    status.and_then(|status| status.ingress.as_ref()).into_iter().flatten()
}

/// What its status says that it was given by somebody else.
fn foreign(service: &Service, options: &Options) -> Vec<String> {
    match &options.writer {
        Some(writer) if !objects::wrote(service, writer) => {
            let given = given(service);
            given.filter_map(|entry| entry.ip.clone().or_else(|| entry.hostname.clone())).collect()
        }
        _ => Vec::new(),
    }
}

fn first<'a>(service: &'a Service, names: [&str; 3]) -> Option<&'a str> {
    names.iter().find_map(|name| ours::text(&service.metadata, name))
}

fn ports(spec: &ServiceSpec) -> BTreeSet<(Protocol, u16)> {
    let ports = spec.ports.iter().flatten().filter_map(|port| {
        let protocol = match port.protocol.as_deref().unwrap_or("TCP") {
            "TCP" => Protocol::Tcp,
            "UDP" => Protocol::Udp,
            _ => return None,
        };
        Some((protocol, u16::try_from(port.port).ok()?))
    });
    ports.collect()
}

/// Says what the pools refuse a Service.
pub(super) fn refusals(grant: &Grant, service: &Service, about: &mut About<'_>) {
    let mut asked: BTreeMap<IpAddr, String> = BTreeMap::new();
    for (field, text) in requested(service) {
        match text.parse() {
            Ok(addr) => drop(asked.insert(addr, field)),
            Err(_) => about.warn(
                "bad-address",
                field,
                format!("{text:?} is not an IP address, so it is not asked for"),
                "correct or remove it",
            ),
        }
    }
    let pool_field = || {
        let name = POOL.into_iter().find(|name| ours::text(&service.metadata, name).is_some());
        ours::field(name.unwrap_or(ours::ADDRESS_POOL))
    };
    let field_of = |addr: &IpAddr| asked.get(addr).cloned().unwrap_or_default();
    for refusal in &grant.refusals {
        let (reason, field, fix) = match refusal {
            Refusal::UnknownPool(_) => ("unknown-pool", pool_field(), "correct the name, or add the pool"),
            Refusal::NotPooled(addr) => {
                ("address-not-pooled", field_of(addr), "ask for another, or widen a pool")
            }
            Refusal::OfNode(addr) => {
                ("address-of-a-node", field_of(addr), "ask for another, and leave it out of the pool")
            }
            Refusal::Unwanted(addr) => {
                ("address-not-used", field_of(addr), "ask for one address of each of spec.ipFamilies")
            }
            Refusal::InUse(addr, _, why) => {
                let fix = match why {
                    NotShared::Keys => {
                        "ask for another, or let both share it by the annotation penstock.dev/share-address"
                    }
                    NotShared::Port(..) => "ask for another, or use another port",
                    NotShared::Policies => {
                        "ask for another, or give both the same externalTrafficPolicy and, with Local, selector"
                    }
                };
                ("address-in-use", field_of(addr), fix)
            }
            Refusal::NotFor(_) => (
                "pool-of-others",
                pool_field(),
                "ask for another, or add the namespace to the pool's namespaces",
            ),
            Refusal::NoPool(_) => (
                "no-address-pool",
                "spec".to_owned(),
                "add a pool of that family for this namespace with autoAssign, or ask for one by the annotation penstock.dev/address-pool",
            ),
            Refusal::Exhausted(_) | Refusal::Incomplete(_) => {
                ("pool-exhausted", "spec".to_owned(), "widen a pool, or remove Services")
            }
            Refusal::OfOthers(_) => (
                "address-of-others",
                "status.loadBalancer".to_owned(),
                "give one of the two a class of its own by --load-balancer-class; where nobody else serves it any more, remove it from the status",
            ),
        };
        about.warn(reason, field, refusal.to_string(), fix);
    }
}

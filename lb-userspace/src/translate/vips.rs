//! The addresses of a Service: which it has, of which families, and who may use them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{LoadBalancerIngress, Service, ServiceSpec};

use super::Options;
use super::endpoints::Slices;
use super::findings::About;
use super::names;
use super::ours;
use super::pools::{self, Allocator};
use super::services;
use crate::model::ObjectName;
use crate::model::l4::{Access, Family, IpMode, Prefix, VipAddr};
use crate::model::pool::{CONFIG_MAP, Grant};
use crate::objects;

/// `spec.loadBalancerClass` that names us where the flag names no other.
const OUR_CLASS: &str = "penstock.dev/load-balancer";
/// Read where `spec.loadBalancerSourceRanges` is empty, as ever.
const OLD_RANGES: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";

/// `ipMode` of addresses that nodes leave alone.
const PROXY: &str = "Proxy";

/// Addresses that clients may use.
#[derive(Default)]
pub(super) struct Addresses {
    pub by_addr: BTreeMap<IpAddr, Address>,
    /// Blocks of either family that may use the restricted ones.
    ranges: BTreeSet<Prefix>,
    ranges_field: String,
    /// Those that the nodes' service proxy sends to endpoints of the Service, as far as the API server tells it so.
    shortcuts: BTreeSet<IpAddr>,
    /// There would be more, but for a reason that was told.
    pub left_out: bool,
}

/// One address.
#[derive(Clone)]
pub(super) struct Address {
    /// The field that names it first.
    pub field: String,
    pub access: Access,
}

impl Addresses {
    pub(super) fn new(
        name: &ObjectName,
        service: &Service,
        spec: &ServiceSpec,
        allocator: &Allocator,
        options: &Options,
        about: &mut About<'_>,
    ) -> Self {
        let mut addresses = Self { shortcuts: shortcuts(service, spec, options), ..Self::default() };
        for (field, text) in addresses.external(spec, options, about) {
            addresses.add(field, text, Access::Open, about);
        }
        if spec.type_.as_deref() != Some("LoadBalancer") {
            return addresses;
        }
        let balanced = addresses.balanced(name, service, spec, (allocator, options), about);
        if !is_our_class(spec, options, about) {
            addresses.left_out = true;
            return addresses;
        }
        if balanced.is_empty() {
            return addresses;
        }
        let access = match source_ranges(service, spec, about) {
            None => Access::Open,
            Some((field, ranges)) => {
                addresses.ranges_field = field;
                addresses.ranges = ranges;
                Access::Restricted
            }
        };
        for (field, text) in balanced {
            addresses.add(field, &text, access, about);
        }
        addresses
    }

    fn external<'a>(
        &mut self,
        spec: &'a ServiceSpec,
        options: &Options,
        about: &mut About<'_>,
    ) -> Vec<(String, &'a str)> {
        let written = spec.external_ips.iter().flatten().enumerate();
        let named: Vec<_> =
            written.map(|(index, addr)| (format!("spec.externalIPs[{index}]"), addr.as_str())).collect();
        if named.is_empty() || options.external_ips {
            return named;
        }
        let fix = if options.vips {
            "use spec.loadBalancerIP, or start with --external-ips".to_owned()
        } else {
            format!("ask an address pool by the annotation {}, or start with --external-ips", ours::ADDRESSES)
        };
        self.claimed("spec.externalIPs", &fix, about);
        Vec::new()
    }

    /// An address is not taken by writing it down.
    fn claimed(&mut self, field: &str, fix: &str, about: &mut About<'_>) {
        let message = "not served: any author of a Service could claim any address by it";
        about.warn("external-ips-off", field, message, fix);
        self.left_out = true;
    }

    /// It may be an address of a pool, which nobody may just take.
    fn unknown(&mut self, field: &str, pools: &ObjectName, about: &mut About<'_>) {
        let message = format!(
            "not served: ConfigMap {pools} cannot be read, nor was any version of it, so nobody knows whose the address is"
        );
        about.warn("pools-unread", field, message, "correct the ConfigMap as its own problem says");
        self.left_out = true;
    }

    /// Addresses that the Service, of type LoadBalancer, has as one.
    fn balanced(
        &mut self,
        name: &ObjectName,
        service: &Service,
        spec: &ServiceSpec,
        (allocator, options): (&Allocator, &Options),
        about: &mut About<'_>,
    ) -> Vec<(String, String)> {
        let mut balanced: Vec<(String, String)> = Vec::new();
        match allocator.of(name) {
            // With pools nobody may just take what he asks for.
            Some(grant) => {
                let given = grant.addresses.iter();
                balanced.extend(given.map(|(addr, pool)| (format!("pool {pool}"), addr.to_string())));
            }
            None if let Some(unread) = allocator.unread() => {
                ungiven(service).for_each(|field| self.unknown(&field, unread, about));
            }
            // Those of another class are not served anyhow, which is told.
            None if options.vips || !has_our_class(spec, options) => {
                balanced.extend(pools::requested(service).map(|(field, addr)| (field, addr.to_owned())));
            }
            None => {
                for field in ungiven(service) {
                    let fix = format!(
                        "give Services addresses by a ConfigMap {CONFIG_MAP}, or start with --external-ips"
                    );
                    self.claimed(&field, &fix, about);
                }
            }
        }
        let is_of_others = allocator.of(name).is_some_and(Grant::is_of_others);
        let status = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
        let ingress = status.and_then(|status| status.ingress.as_ref()).filter(|_| !is_of_others);
        // With what agents write they tell others to leave addresses alone that are theirs.
        let wrote = options.writer.as_deref().is_some_and(|writer| objects::wrote(service, writer));
        let grant = allocator.of(name);
        let is_own = |addr: &str| {
            let is_given = |grant: &Grant| addr.parse().is_ok_and(|addr| grant.addresses.contains_key(&addr));
            wrote || grant.is_some_and(is_given)
        };
        for (index, ingress) in ingress.into_iter().flatten().enumerate() {
            let field = format!("status.loadBalancer.ingress[{index}].ip");
            match ingress.ip.as_deref() {
                Some(addr) if ingress.ip_mode.as_deref() == Some(PROXY) && !is_own(addr) => {
                    self.left_out = true;
                    about.info(
                        "ip-mode-proxy",
                        field,
                        "ipMode Proxy: packets arrive with another address, so this one is not served",
                        "",
                    );
                }
                Some(addr) => balanced.push((field, addr.to_owned())),
                None => {}
            }
        }
        let list = ours::text(&service.metadata, ours::VIPS).unwrap_or_default();
        if !options.vips && !list.is_empty() {
            let fix = format!(
                "ask an address pool by the annotation {}, or start with --external-ips",
                ours::ADDRESSES
            );
            self.claimed(&ours::field(ours::VIPS), &fix, about);
            return balanced;
        }
        if !list.is_empty()
            && let Some(unread) = allocator.unread()
        {
            self.unknown(&ours::field(ours::VIPS), unread, about);
            return balanced;
        }
        for addr in list.split(',').map(str::trim).filter(|addr| !addr.is_empty()) {
            if addr.parse().is_ok_and(|addr| allocator.gives(addr)) {
                self.left_out = true;
                about.warn(
                    "address-of-a-pool",
                    ours::field(ours::VIPS),
                    format!("{addr} is an address of a pool, which nobody may just take; not served for it"),
                    format!("ask for it by the annotation {}", ours::ADDRESSES),
                );
            } else {
                balanced.push((ours::field(ours::VIPS), addr.to_owned()));
            }
        }
        balanced
    }

    fn add(&mut self, field: String, text: &str, access: Access, about: &mut About<'_>) {
        match text.trim().parse::<IpAddr>() {
            Err(_) => about.error("bad-address", field, format!("{text:?} is not an IP address")),
            Ok(addr) => match names::unusable_vip(addr) {
                Some(why) => about.error("bad-address", field, format!("{addr} {why}")),
                None => {
                    let known = self.by_addr.entry(addr).or_insert(Address { field, access });
                    // Named twice, once without ranges: what one field closes no other opens.
                    known.access = known.access.max(access);
                }
            },
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_addr.is_empty()
    }

    /// Whether the nodes' service proxy may take packets to it. Nobody asks for addresses of nodes.
    pub(super) fn ip_mode(&self, addr: VipAddr) -> IpMode {
        match addr {
            VipAddr::Ip(addr) if self.shortcuts.contains(&addr) => IpMode::Vip,
            VipAddr::Ip(_) | VipAddr::Node(_) => IpMode::Proxy,
        }
    }

    /// Blocks of one family that may use its restricted addresses.
    pub(super) fn ranges(&self, family: Family) -> BTreeSet<Prefix> {
        self.ranges.iter().filter(|range| range.family() == family).copied().collect()
    }

    /// Families of the Service: as written, else those it has addresses or slices of.
    pub(super) fn families(
        &self,
        name: &ObjectName,
        spec: &ServiceSpec,
        slices: &Slices,
    ) -> BTreeSet<Family> {
        let written = spec.ip_families.iter().flatten().filter_map(|family| match family.as_str() {
            "IPv4" => Some(Family::V4),
            "IPv6" => Some(Family::V6),
            _ => None,
        });
        let written: BTreeSet<_> = written.collect();
        if !written.is_empty() {
            return written;
        }
        let mut families: BTreeSet<_> = self.by_addr.keys().map(|addr| Family::of(*addr)).collect();
        families
            .extend([Family::V4, Family::V6].into_iter().filter(|family| slices.exist(name, Some(*family))));
        if families.is_empty() {
            families.insert(Family::V4);
        }
        families
    }

    /// Leaves out addresses of other families, and says where ranges leave nobody.
    pub(super) fn keep(&mut self, families: &BTreeSet<Family>, about: &mut About<'_>) {
        self.by_addr.retain(|addr, Address { field, .. }| {
            let kept = families.contains(&Family::of(*addr));
            if !kept {
                about.warn(
                    "address-of-other-family",
                    field.clone(),
                    format!("{addr} is of a family that spec.ipFamilies does not list; it is not served"),
                    "add the family to spec.ipFamilies",
                );
            }
            kept
        });
        for family in families {
            let restricted = |(addr, entry): (&IpAddr, &Address)| {
                Family::of(*addr) == *family && entry.access == Access::Restricted
            };
            if self.by_addr.iter().any(restricted) && self.ranges(*family).is_empty() {
                let all = if *family == Family::V4 { "0.0.0.0/0" } else { "::/0" };
                about.warn(
                    "source-ranges-of-other-family",
                    &self.ranges_field,
                    format!(
                        "no range is of family IP{family}: nobody may use the Service's IP{family} addresses"
                    ),
                    format!("list who may, or {all} for everybody"),
                );
            }
        }
    }
}

/// Fields by which it asks for an address that its status does not have: what somebody else has given is his to give.
fn ungiven(service: &Service) -> impl Iterator<Item = String> {
    let given: BTreeSet<IpAddr> = pools::held(service).collect();
    let is_given = move |addr: &str| addr.parse().is_ok_and(|addr| given.contains(&addr));
    pools::requested(service).filter(move |(_, addr)| !is_given(addr)).map(|(field, _)| field)
}

/// Addresses that kube-proxy translates on every node. It leaves alone what names a service proxy, and of what is read from
/// files it knows nothing, unless a mode shows that an API server had it.
fn shortcuts(service: &Service, spec: &ServiceSpec, options: &Options) -> BTreeSet<IpAddr> {
    if services::names_proxy(service) {
        return BTreeSet::new();
    }
    let is_known = options.writer.is_some();
    let is_shared = |entry: &&LoadBalancerIngress| match entry.ip_mode.as_deref() {
        Some(mode) => mode != PROXY,
        None => is_known,
    };
    let given = pools::given(service).filter(is_shared).filter_map(|entry| entry.ip.as_deref());
    let external = spec.external_ips.iter().flatten().filter(|_| is_known).map(String::as_str);
    given.chain(external).filter_map(|addr| addr.parse().ok()).collect()
}

/// Whether the Service's addresses are ours to serve.
pub(super) fn has_our_class(spec: &ServiceSpec, options: &Options) -> bool {
    match (&options.load_balancer_class, spec.load_balancer_class.as_deref()) {
        (None, None) => true,
        (ours, written) => written == Some(ours.as_deref().unwrap_or(OUR_CLASS)),
    }
}

/// A class is somebody's claim to the balanced addresses; node ports and externalIPs are nobody's.
fn is_our_class(spec: &ServiceSpec, options: &Options, about: &mut About<'_>) -> bool {
    if has_our_class(spec, options) {
        return true;
    }
    let (ours, message) = match (&options.load_balancer_class, spec.load_balancer_class.as_deref()) {
        (ours, Some(class)) => (
            ours.as_deref().unwrap_or(OUR_CLASS),
            format!("addresses left to the load balancer of class {class:?}"),
        ),
        (ours, None) => {
            (ours.as_deref().unwrap_or(OUR_CLASS), "addresses left to the default load balancer".to_owned())
        }
    };
    let or_none = if options.load_balancer_class.is_none() { ", or none" } else { "" };
    about.info(
        "other-load-balancer-class",
        "spec.loadBalancerClass",
        message,
        format!("ours is {ours}{or_none}"),
    );
    false
}

/// Who may use the balanced addresses; `None`: everybody. A range that cannot be read lets nobody in.
fn source_ranges(
    service: &Service,
    spec: &ServiceSpec,
    about: &mut About<'_>,
) -> Option<(String, BTreeSet<Prefix>)> {
    let (field, written) = written_ranges(service, spec)?;
    let mut ranges = BTreeSet::new();
    for text in written {
        match text.parse() {
            Ok(range) => {
                ranges.insert(range);
            }
            Err(message) => about.error_fix("bad-source-range", &field, message, "correct or remove it"),
        }
    }
    Some((field, ranges))
}

/// The ranges as written, trimmed, and the field that holds them.
pub(super) fn written_ranges<'a>(
    service: &'a Service,
    spec: &'a ServiceSpec,
) -> Option<(String, Vec<&'a str>)> {
    let field = spec.load_balancer_source_ranges.as_deref().unwrap_or_default();
    if !field.is_empty() {
        let written = field.iter().map(|range| range.trim()).collect();
        return Some(("spec.loadBalancerSourceRanges".to_owned(), written));
    }
    let old = ours::text(&service.metadata, OLD_RANGES)?;
    Some((ours::field(OLD_RANGES), old.split(',').map(str::trim).collect()))
}

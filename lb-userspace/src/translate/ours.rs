//! The `penstock.dev/*` annotations: their names, on which kinds they stand, what they may say.

use std::net::IpAddr;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::annotations;
use super::choice::Hints;
use super::findings::About;
use super::modes::Wanted;
use super::names;
use crate::model::l4::{FlowMemory, Weight};
use crate::objects::Kind;

const PREFIX: &str = "penstock.dev/";

/// Service, EndpointSlice: how packets reach the backends.
pub(super) const MODE: &str = "penstock.dev/forwarding-mode";
/// Service: addresses to serve besides those of spec and status.
pub(super) const VIPS: &str = "penstock.dev/vips";
/// Service: addresses to have from the pools, with commas.
pub(super) const ADDRESSES: &str = "penstock.dev/addresses";
/// Service: the pool to have an address from.
pub(super) const ADDRESS_POOL: &str = "penstock.dev/address-pool";
/// Service: those with the same value may have one address.
pub(super) const SHARE_ADDRESS: &str = "penstock.dev/share-address";
/// Service: its http and https ports belong to the proxy.
pub(super) const INGRESS: &str = "penstock.dev/ingress";
/// Service: which flows are remembered.
pub(super) const MEMORY: &str = "penstock.dev/flow-memory";
/// Service: whether the hints of its endpoints choose among them.
pub(super) const HINTS: &str = "penstock.dev/topology-hints";
/// Service: seconds until a new endpoint of the proxy gets its full part.
pub(super) const SLOW_START: &str = "penstock.dev/slow-start";
/// Service: failures in a row after which the proxy leaves an endpoint alone for a while; 0: never.
pub(super) const EJECT_AFTER: &str = "penstock.dev/eject-after";
/// EndpointSlice: share of new flows for each of its endpoints.
pub(super) const WEIGHT: &str = "penstock.dev/weight";
/// Ingress: `compat` or `strict`.
pub(super) const READING: &str = "penstock.dev/mode";
/// Node: where it takes tunnelled packets, one address for each family.
pub(super) const TUNNEL: &str = "penstock.dev/tunnel-address";

const MAX_WEIGHT: u16 = 1000;

/// One annotation.
struct Row {
    name: &'static str,
    kinds: &'static [Kind],
    check: fn(&str) -> Result<(), String>,
}

const TABLE: &[Row] = &[
    Row { name: MODE, kinds: &[Kind::Service, Kind::EndpointSlice], check: |text| mode(text).map(drop) },
    Row { name: VIPS, kinds: &[Kind::Service], check: |_| Ok(()) },
    Row { name: ADDRESSES, kinds: &[Kind::Service], check: |_| Ok(()) },
    Row { name: ADDRESS_POOL, kinds: &[Kind::Service], check: |_| Ok(()) },
    Row { name: SHARE_ADDRESS, kinds: &[Kind::Service], check: |_| Ok(()) },
    Row { name: INGRESS, kinds: &[Kind::Service], check: switch },
    Row { name: MEMORY, kinds: &[Kind::Service], check: |text| memory(text).map(drop) },
    Row { name: HINTS, kinds: &[Kind::Service], check: |text| hints(text).map(drop) },
    Row { name: SLOW_START, kinds: &[Kind::Service], check: |text| seconds(text).map(drop) },
    Row { name: EJECT_AFTER, kinds: &[Kind::Service], check: |text| failures(text).map(drop) },
    Row { name: WEIGHT, kinds: &[Kind::EndpointSlice], check: |text| weight(text).map(drop) },
    Row { name: READING, kinds: &[Kind::Ingress], check: super::mode::check },
    Row { name: TUNNEL, kinds: &[Kind::Node], check: tunnel_list },
];

/// Trimmed value; `None` where absent or empty.
pub(super) fn text<'a>(metadata: &'a ObjectMeta, name: &str) -> Option<&'a str> {
    let text = metadata.annotations.as_ref()?.get(name)?.trim();
    (!text.is_empty()).then_some(text)
}

/// Field of an annotation, as problems name it.
pub(super) fn field(name: &str) -> String {
    format!("metadata.annotations.{name}")
}

/// Names of the annotations of an object that do what they say.
pub(super) fn honoured(metadata: &ObjectMeta, kind: Kind) -> Vec<&'static str> {
    let rows = TABLE.iter().filter(|row| row.kinds.contains(&kind));
    rows.filter(|row| text(metadata, row.name).is_some_and(|text| (row.check)(text).is_ok()))
        .map(|row| row.name)
        .collect()
}

/// Says which annotations with our prefix mean nothing on this kind.
pub(super) fn unknown(metadata: &ObjectMeta, kind: Kind, about: &mut About<'_>) {
    for name in metadata.annotations.iter().flatten().map(|(name, _)| name) {
        let Some(short) = name.strip_prefix(PREFIX) else { continue };
        let fix = match TABLE.iter().find(|row| row.name == name) {
            Some(row) if row.kinds.contains(&kind) => continue,
            Some(row) => {
                let kinds: Vec<_> = row.kinds.iter().map(ToString::to_string).collect();
                format!("it belongs on: {}", kinds.join(", "))
            }
            None => {
                let names = TABLE.iter().filter_map(|row| row.name.strip_prefix(PREFIX));
                annotations::nearest(short, names)
                    .map_or(String::new(), |name| format!("did you mean {PREFIX}{name}?"))
            }
        };
        about.warn("unknown-annotation", field(name), format!("means nothing on a {kind}; ignored"), fix);
    }
}

/// Says which values for the upstreams of a Service cannot be read.
pub(super) fn bad_upstream(metadata: &ObjectMeta, about: &mut About<'_>) {
    for name in [SLOW_START, EJECT_AFTER] {
        let row = TABLE.iter().find(|row| row.name == name);
        if let (Some(row), Some(text)) = (row, text(metadata, name))
            && let Err(message) = (row.check)(text)
        {
            about.warn("bad-value", field(name), message, "the default is used");
        }
    }
}

/// Says what annotations of ours an Ingress has and cannot have so.
pub(super) fn of_ingress(metadata: &ObjectMeta, about: &mut About<'_>) {
    unknown(metadata, Kind::Ingress, about);
    if let Some(Err(message)) = text(metadata, READING).map(super::mode::check) {
        about.warn("bad-value", field(READING), message, "the ConfigMap's penstock-mode counts, else compat");
    }
}

/// Value of [`MODE`].
pub(super) fn mode(text: &str) -> Result<Wanted, String> {
    Wanted::named(text)
        .ok_or_else(|| format!("{text:?} is none of auto, local, tunnel, l2, ipip, nat; auto is used"))
}

/// Value of [`MEMORY`].
pub(super) fn memory(text: &str) -> Result<FlowMemory, String> {
    [FlowMemory::JustEnough, FlowMemory::Conservative]
        .into_iter()
        .find(|memory| memory.to_string() == text)
        .ok_or_else(|| format!("{text:?} is neither just-enough nor conservative; just-enough is used"))
}

/// Value of [`HINTS`].
pub(super) fn hints(text: &str) -> Result<Hints, String> {
    match text {
        "follow" => Ok(Hints::Follow),
        "ignore" => Ok(Hints::Ignore),
        _ => Err(format!("{text:?} is neither follow nor ignore; they are followed")),
    }
}

/// Seconds, with or without an `s`; at most a day.
pub(super) fn seconds(text: &str) -> Result<Duration, String> {
    match text.strip_suffix('s').unwrap_or(text).parse::<u32>() {
        Ok(seconds) if seconds <= 86_400 => Ok(Duration::from_secs(seconds.into())),
        _ => Err(format!("{text:?} is not a number of seconds up to a day")),
    }
}

/// Value of [`EJECT_AFTER`].
pub(super) fn failures(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| format!("{text:?} is not a whole number from 0"))
}

/// Value of [`WEIGHT`].
pub(super) fn weight(text: &str) -> Result<Weight, String> {
    match text.parse::<u16>() {
        Ok(weight) if weight <= MAX_WEIGHT => Ok(Weight(weight)),
        _ => Err(format!("weight {text:?} is not a whole number from 0 to {MAX_WEIGHT}")),
    }
}

/// One address of [`TUNNEL`].
pub(super) fn tunnel_addr(text: &str) -> Result<IpAddr, String> {
    let addr: IpAddr = text.trim().parse().map_err(|_| format!("{text:?} is not an IP address"))?;
    names::unusable_vip(addr).map_or(Ok(addr), |why| Err(format!("{addr} {why}")))
}

fn tunnel_list(text: &str) -> Result<(), String> {
    text.split(',').try_for_each(|addr| tunnel_addr(addr).map(drop))
}

fn switch(text: &str) -> Result<(), String> {
    if matches!(text, "true" | "false") { Ok(()) } else { Err(format!("{text:?} is neither true nor false")) }
}

//! TCP and UDP ports beside http and https: what the ConfigMaps of
//! `--tcp-services-configmap` and `--udp-services-configmap` name becomes VIPs on the addresses of the
//! ingress Service, over the backends of the Service that an entry names. Not on the addresses of the
//! nodes: port 22 there is somebody else's. Where there is no kernel part, the proxy listens on them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, Service, ServicePort};

use super::endpoints::{self, Slices, Use};
use super::findings::{About, Findings};
use super::names;
use super::nodes::Nodes;
use super::services::{self, Claims, Output, Terms};
use super::upstreams::Upstreams;
use super::view::View;
use super::vips::Addresses;
use super::{Options, StreamsBy};
use crate::model::l4::{Access, BackendState, Family, Pool, PoolId, Prefix, Protocol, Vip, VipAddr};
use crate::model::l7::{self, Preamble};
use crate::model::{ObjectId, ObjectName};
use crate::objects::{Key, Kind, Objects, Sourced};

/// The entries of both ConfigMaps that can be served, by the port that clients use.
#[derive(Default)]
pub(super) struct Streams<'a>(BTreeMap<(Protocol, u16), Stream<'a>>);

/// One entry.
struct Stream<'a> {
    /// The ConfigMap and the field of the entry.
    config_map: ObjectId,
    field: String,
    /// The Service that is named, and its port.
    service: ObjectName,
    origin: &'a str,
    object: &'a Service,
    port: &'a ServicePort,
    number: u16,
    /// Where it is served so far, and from where alone where that is restricted.
    vips: BTreeMap<Vip, Access>,
    sources: BTreeMap<Family, BTreeSet<Prefix>>,
}

/// An entry as written: `namespace/service:port[:PROXY[:PROXY]]`.
#[derive(Debug, PartialEq, Eq)]
struct Written<'t> {
    service: ObjectName,
    port: &'t str,
    /// Whether a PROXY header is read, and written.
    received: Preamble,
    sent: Preamble,
}

/// A ConfigMap of entries, if there is one.
struct Entries<'a> {
    protocol: Protocol,
    id: ObjectId,
    data: Option<&'a BTreeMap<String, String>>,
}

impl<'a> Entries<'a> {
    fn new(
        protocol: Protocol,
        name: &ObjectName,
        sourced: Option<&'a Sourced<ConfigMap>>,
        findings: &mut Findings,
    ) -> Self {
        let key = Key { kind: Kind::ConfigMap, name: name.clone() };
        let Some(Sourced { object, origin }) = sourced else {
            let id = key.id("");
            let message = format!("does not exist, though --{protocol}-services-configmap names it");
            findings.about(&id).warn("missing-config-map", "", message, "add it, or leave out the flag");
            return Self { protocol, id, data: None };
        };
        Self { protocol, id: key.id(origin), data: object.data.as_ref() }
    }

    /// Those that can be read, by port, with their fields.
    fn each(&self, options: &Options, findings: &mut Findings) -> Vec<(u16, String, Written<'a>)> {
        let mut about = findings.about(&self.id);
        let entries = self.data.into_iter().flatten().filter_map(|(port, text)| {
            let field = format!("data.{port}");
            let (port, written) = entry(port, text, self.protocol, &field, options, &mut about)?;
            Some((port, field, written))
        });
        entries.collect()
    }
}

/// The flags' ConfigMaps.
fn named(options: &Options) -> impl Iterator<Item = (Protocol, &ObjectName)> {
    let maps = [(Protocol::Tcp, &options.tcp_services), (Protocol::Udp, &options.udp_services)];
    maps.into_iter().filter_map(|(protocol, name)| Some((protocol, name.as_ref()?)))
}

/// The ports that the proxy listens on, and where their connections go.
pub(super) fn proxied(
    objects: &View<'_>,
    options: &Options,
    upstreams: &mut Upstreams<'_>,
    findings: &mut Findings,
) -> l7::Streams {
    let mut streams = l7::Streams::new();
    if options.streams == StreamsBy::Kernel {
        return streams;
    }
    for (protocol, name) in named(options) {
        let entries = Entries::new(protocol, name, objects.config_maps.get(name), findings);
        for (port, field, Written { service, port: wanted, received, sent }) in
            entries.each(options, findings)
        {
            let mut about = findings.about(&entries.id);
            let upstream = upstreams.of_stream(&service, wanted, protocol, &field, &mut about);
            streams.insert((protocol, port), l7::Stream { upstream, received, sent });
        }
    }
    streams
}

impl<'a> Streams<'a> {
    /// Reads what is written, and says what of it cannot be served.
    pub(super) fn read(objects: &'a Objects, options: &Options, findings: &mut Findings) -> Self {
        let mut streams = Self::default();
        if options.streams == StreamsBy::Proxy {
            return streams;
        }
        for (protocol, name) in named(options) {
            let entries = Entries::new(protocol, name, objects.config_maps.get(name), findings);
            for (port, field, written) in entries.each(options, findings) {
                let mut about = findings.about(&entries.id);
                if let Some(stream) = resolve(objects, written, protocol, &field, &entries.id, &mut about) {
                    streams.0.insert((protocol, port), stream);
                }
            }
        }
        streams
    }

    /// Whether a port of the ingress Service is one of these.
    pub(super) fn has(&self, port: u16, protocol: Protocol) -> bool {
        self.0.contains_key(&(protocol, port))
    }
}

/// Port and value of an entry; `None`: it was said what is wrong.
fn entry<'t>(
    port: &str,
    text: &'t str,
    protocol: Protocol,
    field: &str,
    options: &Options,
    about: &mut About<'_>,
) -> Option<(u16, Written<'t>)> {
    const FORM: &str = "write \"port\": \"namespace/service:port\"";
    let Some(number) = port.trim().parse().ok().filter(|port: &u16| *port != 0) else {
        about.error_fix("bad-stream", field, format!("{port:?} is no port"), FORM);
        return None;
    };
    let Some(written) = parse(text) else {
        about.error_fix("bad-stream", field, format!("{text:?} names no Service and port"), FORM);
        return None;
    };
    let is_ours = options.http_ports.contains(&number) || options.https_ports.contains(&number);
    if protocol == Protocol::Tcp && (is_ours || matches!(number, 80 | 443)) {
        let message = format!("port {number} is that of Ingresses; not served for {}", written.service);
        about.error_fix("reserved-port", field, message, "use another port");
        return None;
    }
    let is_plain = (written.received, written.sent) == (Preamble::None, Preamble::None);
    if protocol == Protocol::Udp && !is_plain {
        let message = "PROXY headers are neither read from nor written into datagrams; not served";
        about.error_fix("stream-proxy-protocol", field, message, "leave out PROXY");
        return None;
    }
    if options.streams == StreamsBy::Kernel && !is_plain {
        about.error_fix(
            "stream-proxy-protocol",
            field,
            "the kernel part neither reads nor writes PROXY headers; not served, because the two sides would not understand each other",
            "leave out PROXY: backends see the address of the client itself, but in mode nat; or start with --datapath off",
        );
        return None;
    }
    Some((number, written))
}

fn parse(text: &str) -> Option<Written<'_>> {
    let mut parts = text.trim().split(':').map(str::trim);
    let (namespace, name) = parts.next()?.split_once('/')?;
    let port = parts.next().filter(|port| !port.is_empty())?;
    if namespace.is_empty() || name.is_empty() || name.contains('/') {
        return None;
    }
    let mut preamble = || match parts.next() {
        Some(part) if part.eq_ignore_ascii_case("PROXY") => Preamble::Proxy,
        _ => Preamble::None,
    };
    let (received, sent) = (preamble(), preamble());
    Some(Written { service: ObjectName::new(namespace, name), port, received, sent })
}

fn resolve<'a>(
    objects: &'a Objects,
    written: Written<'_>,
    protocol: Protocol,
    field: &str,
    config_map: &ObjectId,
    about: &mut About<'_>,
) -> Option<Stream<'a>> {
    let Written { service, port: wanted, received: _, sent: _ } = written;
    let Some(Sourced { object, origin }) = objects.services.get(&service) else {
        let message = format!("Service {service} does not exist");
        about.warn("missing-service", field, message, "add the Service, or correct the name");
        return None;
    };
    let spec = object.spec.as_ref()?;
    let is_meant = |port: &&ServicePort| match wanted.parse::<i32>() {
        Ok(number) => port.port == number,
        Err(_) => port.name.as_deref() == Some(wanted),
    };
    let speaks = |port: &&ServicePort| endpoints::protocol_of(port.protocol.as_deref()) == Some(protocol);
    let port = spec.ports.iter().flatten().filter(is_meant).find(speaks);
    let number = port.and_then(|port| names::port(port.port).ok());
    let (Some(port), Some(number)) = (port, number) else {
        let message = format!("Service {service} has no port {wanted} of protocol {protocol}");
        about.warn("missing-port", field, message, "correct the port's name or number");
        return None;
    };
    Some(Stream {
        config_map: config_map.clone(),
        field: field.to_owned(),
        service,
        origin,
        object,
        port,
        number,
        vips: BTreeMap::new(),
        sources: BTreeMap::new(),
    })
}

/// Takes the ports on the addresses of an ingress Service, before anybody else may.
pub(super) fn claim(
    name: &ObjectName,
    service: &Service,
    slices: &Slices,
    options: &Options,
    claims: &mut Claims<'_>,
    findings: &mut Findings,
) {
    let Some(spec) = &service.spec else { return };
    // What is to be said of its addresses is said where it is translated itself.
    let (id, mut said) = (ObjectId::default(), Findings::default());
    let mut addresses = Addresses::new(name, service, spec, claims.allocator, options, &mut said.about(&id));
    let families = addresses.families(name, spec, slices);
    addresses.keep(&families, &mut said.about(&id));
    let has_node_ports = matches!(spec.type_.as_deref(), Some("NodePort" | "LoadBalancer"));
    let mut streams = std::mem::take(&mut claims.streams);
    for ((protocol, port), stream) in &mut streams.0 {
        let own = spec.ports.iter().flatten().find(|own| {
            own.port == i32::from(*port) && endpoints::protocol_of(own.protocol.as_deref()) == Some(*protocol)
        });
        let mut about = findings.about(&stream.config_map);
        if own.is_some_and(|own| services::listener_of(own, *protocol).is_some()) {
            let message = format!("port {port} of Service {name} is that of Ingresses; not served");
            about.error_fix("reserved-port", &stream.field, message, "use another port");
            continue;
        }
        let node_port = own.and_then(|own| own.node_port).filter(|_| has_node_ports);
        let node_port = node_port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0);
        let owner = format!(
            "{} of ConfigMap {}/{}",
            stream.field, stream.config_map.namespace, stream.config_map.name
        );
        let by_addr = addresses.by_addr.iter().map(|(addr, entry)| (VipAddr::Ip(*addr), *port, entry.access));
        let of_nodes =
            families.iter().filter_map(|family| Some((VipAddr::Node(*family), node_port?, Access::Open)));
        for (addr, port, access) in by_addr.chain(of_nodes) {
            let vip = Vip { addr, port, protocol: *protocol };
            let family = family_of(&vip);
            if access == Access::Restricted {
                let ranges = addresses.ranges(family);
                if stream.sources.get(&family).is_some_and(|known| *known != ranges) {
                    let message =
                        format!("{vip} is open to other sources than the addresses before it; not served");
                    about.error("source-ranges-differ", &stream.field, message);
                    continue;
                }
                stream.sources.insert(family, ranges);
            }
            if claims.take(vip, &owner, &stream.field, &mut about) {
                stream.vips.insert(vip, access);
            }
        }
    }
    claims.streams = streams;
}

/// The pools, in place or beside those that the same Services have for addresses of their own.
pub(super) fn serve(
    streams: Streams<'_>,
    slices: &Slices,
    nodes: &Nodes,
    output: &mut Output,
    findings: &mut Findings,
) {
    for ((protocol, client_port), stream) in streams.0 {
        let Stream { config_map, field, service, origin, object, port, number, vips, sources } = stream;
        if vips.is_empty() {
            findings.about(&config_map).warn(
                "no-vip",
                field,
                "no ingress Service has an address that this port could be served on",
                "give the ingress Service an address, or name it by --publish-service",
            );
            continue;
        }
        let Some(spec) = &object.spec else { continue };
        for family in [Family::V4, Family::V6] {
            let mut vips: BTreeMap<_, _> = vips
                .iter()
                .filter(|(vip, _)| family_of(vip) == family)
                .map(|(vip, access)| (*vip, *access))
                .collect();
            if vips.is_empty() {
                continue;
            }
            let ranges = sources.get(&family).cloned().unwrap_or_default();
            let id = PoolId { service: Arc::new(service.clone()), port: number, protocol, family };
            if let Some(pool) = output.pools.get_mut(&id).map(Arc::make_mut) {
                keep_held(&mut vips, pool, &field, &mut findings.about(&config_map));
                let is_restricted =
                    |vips: &BTreeMap<Vip, Access>| vips.values().any(|access| *access == Access::Restricted);
                if is_restricted(&vips) && is_restricted(&pool.vips) && pool.source_ranges != ranges {
                    findings.about(&config_map).error(
                        "source-ranges-differ",
                        field.clone(),
                        format!("Service {service} has other loadBalancerSourceRanges than the ingress Service; not served"),
                    );
                    continue;
                }
                if is_restricted(&vips) {
                    pool.source_ranges = ranges;
                }
                pool.vips.extend(vips);
                continue;
            }
            let id_of_service = services::id(&service, origin);
            let terms = Terms::read(object, spec, &mut findings.about(&id_of_service));
            let mut about = findings.about(&config_map);
            let endpoints = slices.of(&service, port, protocol, Some(family), Use::Vip);
            let mut pool = terms.pool(&id, &endpoints, nodes, &field, &mut about);
            services::reachable(&mut pool, client_port, &field, port, &mut about);
            keep_held(&mut vips, &pool, &field, &mut about);
            if vips.is_empty() {
                continue;
            }
            let takes_flows = pool
                .backends
                .values()
                .any(|backend| backend.state == BackendState::Active && backend.weight.0 > 0);
            if !takes_flows {
                services::nobody(&id, &pool, port, slices, &endpoints, &field, &mut about);
            }
            pool.vips = vips;
            pool.source_ranges = ranges;
            output.pools.insert(id, Arc::new(pool));
        }
    }
}

/// Leaves out what backends that get packets as they came could not answer: they hold no address of a node, and
/// listen on ports of their own.
fn keep_held(vips: &mut BTreeMap<Vip, Access>, pool: &Pool, field: &str, about: &mut About<'_>) {
    let holders = pool.backends.iter().filter(|(_, backend)| backend.mode.keeps_destination());
    let ports: BTreeSet<u16> = holders.map(|(addr, _)| addr.port()).collect();
    let Some(held) = ports.first() else { return };
    vips.retain(|vip, _| {
        if let VipAddr::Node(_) = vip.addr {
            let message = "is not served: in l2 and ipip mode the backend must hold the address";
            about.info("l2-node-port", field, format!("nodePort {} {message}", vip.port), "");
            return false;
        }
        let is_held = ports.iter().all(|port| *port == vip.port);
        if !is_held {
            let message =
                format!("{vip} is not served: in l2 and ipip mode backends get packets as they came, but listen on {held}");
            about.error_fix("l2-port-mismatch", field, message, format!("use port {held}, or mode nat"));
        }
        is_held
    });
}

fn family_of(vip: &Vip) -> Family {
    match vip.addr {
        VipAddr::Ip(addr) => Family::of(addr),
        VipAddr::Node(family) => family,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_read_as_ingress_nginx_reads_them() {
        let service = ObjectName::new("default", "db");
        let written = |port, received, sent| Some(Written { service: service.clone(), port, received, sent });
        let (none, proxy) = (Preamble::None, Preamble::Proxy);
        let cases = [
            ("default/db:5432", written("5432", none, none)),
            (" default/db:pg ", written("pg", none, none)),
            ("default/db:5432:PROXY", written("5432", proxy, none)),
            ("default/db:5432::proxy", written("5432", none, proxy)),
            ("default/db:5432:PROXY:PROXY", written("5432", proxy, proxy)),
            ("default/db", None),
            ("default/db:", None),
            ("db:5432", None),
            ("a/b/c:1", None),
            ("", None),
        ];
        for (text, expected) in cases {
            assert_eq!(parse(text), expected, "{text}");
        }
    }
}

//! What the datapath tells: `status` and metrics.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::Serialize;

use super::engine::{Engine, Totals};
use super::kernel::{Attached, Translated};
use super::want::{Place, Target};
use crate::model::Problem;
use crate::model::l4::{ForwardingMode, PoolId};
use crate::model::report::{Metric, MetricKind, Sample};

/// State of the datapath.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Status {
    /// Interfaces and how the program sits on them.
    pub interfaces: BTreeMap<String, Attached>,
    /// Whose tables are in force, and whether they outlive this agent.
    pub tables: TablesStatus,
    /// VIPs in force.
    pub vips: Vec<VipStatus>,
    /// Pools behind them.
    pub pools: Vec<PoolStatus>,
    /// Translated flows remembered.
    pub translated_flows: Translated,
    /// Ports that `nat` has towards one backend.
    pub nat_ports: usize,
    /// Flows in the flow table, and how many fit.
    pub flow_table: (usize, usize),
    /// What happened beside the verdicts, as far as it did.
    pub events: BTreeMap<&'static str, u64>,
    /// Packets by verdict, those that occurred.
    pub verdicts: BTreeMap<&'static str, u64>,
}

/// The tables in the kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TablesStatus {
    /// This agent took them over from the one before.
    pub adopted: bool,
    /// Seconds since they were made.
    pub age_seconds: u64,
    /// They stay when this agent ends.
    pub pinned: bool,
}

/// One VIP.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VipStatus {
    /// Address and port.
    pub addr: SocketAddr,
    /// `tcp` or `udp`.
    pub protocol: String,
    /// Its pool, or the proxy's listener.
    pub target: String,
    /// What it got; 0 for the proxy's.
    pub totals: Totals,
}

/// One pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PoolStatus {
    /// Service, port, protocol and family.
    pub pool: String,
    /// Slots of its Maglev table; 0 without backends.
    pub slots: u32,
    /// How many of them have not settled after a change.
    pub contested: usize,
    /// What all its backends got.
    pub totals: Totals,
    /// Its backends.
    pub backends: Vec<BackendStatus>,
}

/// One backend.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BackendStatus {
    /// Address and port.
    pub addr: SocketAddr,
    /// Forwarding mode.
    pub mode: &'static str,
    /// Share of new flows.
    pub weight: u16,
    /// Takes no new flows.
    pub draining: bool,
    /// MAC, interface index, VLAN tag and node of a tunnel; `unresolved`; or the host's stack.
    pub next_hop: String,
    /// What it got.
    pub totals: Totals,
}

/// Reads the status.
pub fn status(engine: &Engine, interfaces: &BTreeMap<String, Attached>, translated: Translated) -> Status {
    let want = engine.want();
    let vips = want.vips.iter().map(|(place, target)| VipStatus {
        addr: SocketAddr::new(place.addr, place.port),
        protocol: place.protocol.to_string(),
        target: match target {
            Target::Pool(id) => id.to_string(),
            Target::Punt(listener) => format!("proxy {}", format!("{listener:?}").to_lowercase()),
        },
        totals: match target {
            Target::Pool(id) => engine.vip_totals(place, id),
            Target::Punt(_) => Totals::default(),
        },
    });
    let happened = engine.events().into_iter().filter(|(_, count)| *count > 0);
    let counted = engine.verdicts().into_iter().filter(|(_, count)| *count > 0);
    Status {
        interfaces: interfaces.clone(),
        tables: TablesStatus {
            adopted: engine.start().adopted,
            age_seconds: engine.tables_age(),
            pinned: engine.kernel.is_pinned(),
        },
        vips: vips.collect(),
        pools: want.pools.keys().map(|id| pool(engine, id)).collect(),
        translated_flows: translated,
        nat_ports: nat_ports(engine),
        flow_table: engine.flow_table_use_lately(),
        events: happened.map(|(event, count)| (event.as_str(), count)).collect(),
        verdicts: counted.map(|(verdict, count)| (verdict.as_str(), count)).collect(),
    }
}

fn nat_ports(engine: &Engine) -> usize {
    let (first, last) = engine.nat_ports();
    usize::from(last.saturating_sub(first)) + 1
}

fn pool(engine: &Engine, id: &PoolId) -> PoolStatus {
    let (slots, contested) = engine.table_size(id).unwrap_or_default();
    let mut status = PoolStatus {
        pool: id.to_string(),
        slots,
        contested,
        totals: Totals::default(),
        backends: Vec::new(),
    };
    let Some(pool) = engine.want().pools.get(id) else { return status };
    let mut all = engine.totals(id);
    all.values().for_each(|totals| status.totals += *totals);
    for (addr, backend) in &pool.backends {
        let (hop, tags) = (backend.way.next_hop, backend.way.tags);
        let totals = all.remove(&(*addr, backend.mode)).unwrap_or_default();
        status.backends.push(BackendStatus {
            addr: *addr,
            mode: backend.mode.as_str(),
            weight: backend.weight,
            draining: backend.draining,
            next_hop: match (backend.mode, hop.ifindex) {
                (ForwardingMode::Local, _) => "this host's stack".to_owned(),
                _ if hop.is_here() => "this host's stack, as they came".to_owned(),
                (_, 0) => "unresolved".to_owned(),
                (mode, ifindex) => {
                    let tag = if tags.is_none() { String::new() } else { format!(" vlan {tags}") };
                    let node = if mode == ForwardingMode::Tunnel {
                        format!(" to node {}", backend.to)
                    } else {
                        String::new()
                    };
                    format!("{} interface {ifindex}{tag}{node}", hop.dst())
                }
            },
            totals,
        });
    }
    status.backends.extend(all.into_iter().map(|((addr, mode), totals)| BackendStatus {
        addr,
        mode: mode.as_str(),
        weight: 0,
        draining: true,
        next_hop: "flows that began in this mode".to_owned(),
        totals,
    }));
    status
}

/// Reads the metrics.
pub fn metrics(
    engine: &Engine,
    interfaces: &BTreeMap<String, Attached>,
    translated: Translated,
) -> Vec<Metric> {
    let want = engine.want();
    let mut packets = Vec::new();
    let mut bytes = Vec::new();
    let mut begun = Vec::new();
    for id in want.pools.keys() {
        for ((addr, mode), totals) in engine.totals(id) {
            let labels = vec![
                ("namespace", id.service.namespace.clone()),
                ("service", id.service.name.clone()),
                ("port", id.port.to_string()),
                ("protocol", id.protocol.to_string()),
                ("backend", addr.to_string()),
                ("mode", mode.to_string()),
            ];
            begun.push(sample(labels.clone(), totals.flows));
            packets.push(sample(labels.clone(), totals.packets));
            bytes.push(sample(labels, totals.bytes));
        }
    }
    let verdicts = engine
        .verdicts()
        .into_iter()
        .map(|(verdict, count)| sample(vec![("verdict", verdict.as_str().to_owned())], count));
    let events = engine
        .events()
        .into_iter()
        .map(|(event, count)| sample(vec![("event", event.as_str().to_owned())], count));
    let (remembered, capacity) = engine.flow_table_use_lately();
    let (ids_used, ids) = engine.backend_ids();
    let contested =
        want.pools.keys().filter_map(|id| engine.table_size(id)).map(|(_, contested)| contested).sum();
    let vips: Vec<_> = want
        .vips
        .iter()
        .filter_map(|(place, target)| match target {
            Target::Pool(id) => Some((place, id, engine.vip_totals(place, id))),
            Target::Punt(_) => None,
        })
        .collect();
    let attached = interfaces.iter().map(|(name, mode)| {
        let mode = format!("{mode:?}").to_lowercase();
        sample(vec![("interface", name.clone()), ("mode", mode)], 1)
    });
    let metric = |name, help, kind, samples| Metric { name, help, kind, samples };
    let gauge =
        |name, help, value: usize| metric(name, help, MetricKind::Gauge, vec![sample(vec![], value as u64)]);
    let of_mode = |mode: ForwardingMode, flows: usize| sample(vec![("mode", mode.to_string())], flows as u64);
    vec![
        metric(
            "penstock_datapath_packets_total",
            "Packets to our addresses by what became of them",
            MetricKind::Counter,
            verdicts.collect(),
        ),
        metric(
            "penstock_datapath_backend_packets_total",
            "Packets sent to a backend",
            MetricKind::Counter,
            packets,
        ),
        metric(
            "penstock_datapath_backend_bytes_total",
            "Bytes of IP packets sent to a backend",
            MetricKind::Counter,
            bytes,
        ),
        metric(
            "penstock_datapath_backend_flows_total",
            "Flows that began at a backend: TCP by its SYN, UDP where flows are remembered",
            MetricKind::Counter,
            begun,
        ),
        of_vips("penstock_datapath_vip_packets_total", "Packets to a VIP", &vips, |totals| totals.packets),
        of_vips("penstock_datapath_vip_bytes_total", "Bytes of IP packets to a VIP", &vips, |totals| {
            totals.bytes
        }),
        of_vips("penstock_datapath_vip_flows_total", "Flows that began at a VIP", &vips, |totals| {
            totals.flows
        }),
        metric(
            "penstock_datapath_events_total",
            "What the program did beside forwarding",
            MetricKind::Counter,
            events.collect(),
        ),
        gauge("penstock_datapath_flow_table_flows", "Flows in the flow table", remembered),
        gauge("penstock_datapath_flow_table_size", "Flows that fit into the flow table", capacity),
        gauge("penstock_datapath_contested_slots", "Slots that have not settled after a change", contested),
        metric(
            "penstock_datapath_interface_info",
            "Interfaces the program is attached to",
            MetricKind::Gauge,
            attached.collect(),
        ),
        gauge(
            "penstock_datapath_tables_adopted",
            "1: the agent took the tables over from the one before it",
            engine.start().adopted.into(),
        ),
        gauge(
            "penstock_datapath_tables_age_seconds",
            "Seconds since the tables in the kernel were made, by whichever agent",
            engine.tables_age() as usize,
        ),
        gauge("penstock_datapath_nat_ports", "Ports that `nat` has towards one backend", nat_ports(engine)),
        gauge(
            "penstock_datapath_nat_ports_used",
            "Those that are taken, towards the backend with most",
            translated.fullest.map_or(0, |fullest| fullest.flows),
        ),
        metric(
            "penstock_datapath_translated_flows",
            "Translated flows remembered",
            MetricKind::Gauge,
            vec![
                of_mode(ForwardingMode::Nat, translated.nat),
                of_mode(ForwardingMode::Local, translated.local),
            ],
        ),
        gauge("penstock_datapath_vips", "VIPs in force", want.vips.len()),
        gauge(
            "penstock_datapath_backends",
            "Backends in force",
            want.pools.values().map(|pool| pool.backends.len()).sum(),
        ),
        gauge("penstock_datapath_backend_ids", "Ids that there are for backends", ids),
        gauge("penstock_datapath_backend_ids_used", "Those that are taken", ids_used),
    ]
}

fn of_vips(
    name: &'static str,
    help: &'static str,
    vips: &[(&Place, &PoolId, Totals)],
    read: impl Fn(&Totals) -> u64,
) -> Metric {
    let samples = vips.iter().map(|(place, id, totals)| {
        let labels = vec![
            ("namespace", id.service.namespace.clone()),
            ("service", id.service.name.clone()),
            ("vip", SocketAddr::new(place.addr, place.port).to_string()),
            ("protocol", place.protocol.to_string()),
        ];
        sample(labels, read(totals))
    });
    Metric { name, help, kind: MetricKind::Counter, samples: samples.collect() }
}

/// What is wrong with the kernel part, and how often we set again what somebody undid.
pub fn upkeep_metrics(problems: &[Problem], restored: &BTreeMap<&'static str, u64>) -> Vec<Metric> {
    let mut by_reason: BTreeMap<(&str, String), u64> = BTreeMap::new();
    for problem in problems {
        *by_reason.entry((problem.reason, problem.severity.to_string())).or_default() += 1;
    }
    let problems = by_reason.into_iter().map(|((reason, severity), count)| {
        sample(vec![("reason", reason.to_owned()), ("severity", severity)], count)
    });
    let restored = restored.iter().map(|(part, count)| sample(vec![("part", (*part).to_owned())], *count));
    vec![
        Metric {
            name: "penstock_datapath_problems",
            help: "What is wrong with the kernel part",
            kind: MetricKind::Gauge,
            samples: problems.collect(),
        },
        Metric {
            name: "penstock_datapath_restored_total",
            help: "Times that something of ours in the kernel was undone by somebody else and set again",
            kind: MetricKind::Counter,
            samples: restored.collect(),
        },
    ]
}

fn sample(labels: Vec<(&'static str, String)>, value: u64) -> Sample {
    Sample { suffix: "", labels, value: value as f64 }
}

//! What the datapath tells: `status` and metrics.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::Serialize;

use super::engine::{Engine, Totals};
use super::kernel::Attached;
use super::want::Target;
use crate::model::l4::PoolId;
use crate::model::report::{Metric, MetricKind, Sample};

/// State of the datapath.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Status {
    /// Interfaces and how the program sits on them.
    pub interfaces: BTreeMap<String, Attached>,
    /// VIPs in force.
    pub vips: Vec<VipStatus>,
    /// Pools behind them.
    pub pools: Vec<PoolStatus>,
    /// Translated flows remembered.
    pub nat_flows: usize,
    /// Packets by verdict, those that occurred.
    pub verdicts: BTreeMap<&'static str, u64>,
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
}

/// One pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PoolStatus {
    /// Service, port, protocol and family.
    pub pool: String,
    /// Forwarding mode.
    pub mode: String,
    /// Slots of its Maglev table; 0 without backends.
    pub slots: u32,
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
    /// Share of new flows.
    pub weight: u16,
    /// MAC and interface index, or `unresolved`.
    pub next_hop: String,
    /// What it got.
    pub totals: Totals,
}

/// Reads the status.
pub fn status(engine: &Engine, interfaces: &BTreeMap<String, Attached>, nat_flows: usize) -> Status {
    let want = engine.want();
    let vips = want.vips.iter().map(|(place, target)| VipStatus {
        addr: SocketAddr::new(place.addr, place.port),
        protocol: place.protocol.to_string(),
        target: match target {
            Target::Pool(id) => id.to_string(),
            Target::Punt(listener) => format!("proxy {}", format!("{listener:?}").to_lowercase()),
        },
    });
    let counted = engine.verdicts().into_iter().filter(|(_, count)| *count > 0);
    Status {
        interfaces: interfaces.clone(),
        vips: vips.collect(),
        pools: want.pools.keys().map(|id| pool(engine, id)).collect(),
        nat_flows,
        verdicts: counted.map(|(verdict, count)| (verdict.as_str(), count)).collect(),
    }
}

fn pool(engine: &Engine, id: &PoolId) -> PoolStatus {
    let mut status = PoolStatus {
        pool: id.to_string(),
        mode: String::new(),
        slots: engine.table_size(id).filter(|slots| *slots > 1).unwrap_or(0),
        totals: Totals::default(),
        backends: Vec::new(),
    };
    let Some(pool) = engine.want().pools.get(id) else { return status };
    status.mode = pool.mode.to_string();
    for (addr, backend) in &pool.backends {
        let hop = backend.way.next_hop;
        let totals = engine.totals(id, pool.mode, *addr);
        status.totals += totals;
        status.backends.push(BackendStatus {
            addr: *addr,
            weight: backend.weight,
            next_hop: if hop.ifindex == 0 {
                "unresolved".to_owned()
            } else {
                format!("{} interface {}", hop.dst(), hop.ifindex)
            },
            totals,
        });
    }
    status
}

/// Reads the metrics.
pub fn metrics(engine: &Engine, interfaces: &BTreeMap<String, Attached>, nat_flows: usize) -> Vec<Metric> {
    let want = engine.want();
    let mut packets = Vec::new();
    let mut bytes = Vec::new();
    for (id, pool) in &want.pools {
        for addr in pool.backends.keys() {
            let totals = engine.totals(id, pool.mode, *addr);
            let labels = vec![
                ("namespace", id.service.namespace.clone()),
                ("service", id.service.name.clone()),
                ("port", id.port.to_string()),
                ("protocol", id.protocol.to_string()),
                ("backend", addr.to_string()),
            ];
            packets.push(sample(labels.clone(), totals.packets));
            bytes.push(sample(labels, totals.bytes));
        }
    }
    let verdicts = engine
        .verdicts()
        .into_iter()
        .map(|(verdict, count)| sample(vec![("verdict", verdict.as_str().to_owned())], count));
    let attached = interfaces.iter().map(|(name, mode)| {
        let mode = format!("{mode:?}").to_lowercase();
        sample(vec![("interface", name.clone()), ("mode", mode)], 1)
    });
    let metric = |name, help, kind, samples| Metric { name, help, kind, samples };
    let gauge =
        |name, help, value: usize| metric(name, help, MetricKind::Gauge, vec![sample(vec![], value as u64)]);
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
            "penstock_datapath_interface_info",
            "Interfaces the program is attached to",
            MetricKind::Gauge,
            attached.collect(),
        ),
        gauge("penstock_datapath_nat_flows", "Translated flows remembered", nat_flows),
        gauge("penstock_datapath_vips", "VIPs in force", want.vips.len()),
        gauge(
            "penstock_datapath_backends",
            "Backends in force",
            want.pools.values().map(|pool| pool.backends.len()).sum(),
        ),
    ]
}

fn sample(labels: Vec<(&'static str, String)>, value: u64) -> Sample {
    Sample { suffix: "", labels, value: value as f64 }
}

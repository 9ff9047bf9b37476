//! Tells where a flow goes and why, by walking the tables as the program does.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use lb_common::config::Settings;
use lb_common::{Flow, HashKey, TCP, UDP, backend, wire_port};

use super::memory::Tables;
use super::plan::Book;
use super::walk::{Found, walk};
use super::want::{self, Network, Target, Want, Way};
use crate::model::l4::{FiveTuple, ForwardingMode, L4, Listener, Protocol};
use crate::model::report::{Explanation, Step};

/// Where a flow would go with these VIPs, without an agent: tables are built in memory as the
/// agent builds them. Without the key of the balancers in question the slot is only an example.
pub fn explain_offline(l4: &L4, hash_key: Option<[u8; 16]>, flow: FiveTuple) -> Explanation {
    let backends: BTreeSet<IpAddr> = backend_addrs(l4);
    let ways = backends.into_iter().map(|addr| (addr, Ok(unknown_way(addr)))).collect();
    let network = Network { ways, ..Network::default() };
    let (want, _) = want::join(l4, &network);
    let tables = Tables::owned();
    let mut book = Book::default();
    for op in book.plan(&want).ops {
        op.apply(&tables, &mut || {});
    }
    let key = HashKey::expand(hash_key.unwrap_or_default());
    tables.store_settings(&Settings { key, ..Settings::default() });
    let mut explanation = explain(&tables, &book, &want, flow);
    if hash_key.is_none() {
        let detail = "no hash key given: each agent makes its own, so slot and backend are only an example";
        explanation.steps.insert(0, step("hash key", detail.to_owned()));
    }
    explanation
}

/// Addresses of every backend.
pub(super) fn backend_addrs(l4: &L4) -> BTreeSet<IpAddr> {
    let pools = l4.pools.values().filter(|pool| !pool.vips.is_empty());
    pools.flat_map(|pool| pool.backends.keys().map(SocketAddr::ip)).collect()
}

fn unknown_way(addr: IpAddr) -> Way {
    Way { source: addr, next_hop: backend::NextHop::default(), mtu: u16::MAX, vlan: None }
}

/// Where a flow goes with the tables as they are.
pub(super) fn explain(tables: &Tables, book: &Book, want: &Want, flow: FiveTuple) -> Explanation {
    let found = walk(tables, &wire_flow(flow), lb_common::config::hash_key(&tables.config));
    let mut steps = Vec::new();
    let vip = format!("{} {}", flow.protocol, flow.dst);
    let verdict = match found {
        Found::NotOurs => {
            steps.push(step("address", format!("{} is none of our addresses", flow.dst.ip())));
            format!("{}: passed untouched", found.verdict().as_str())
        }
        Found::NoVip { node } => {
            let whose = if node { "an address of this host" } else { "the address of a VIP" };
            steps.push(step("address", format!("{} is {whose}", flow.dst.ip())));
            steps.push(step("vip", format!("nothing serves {vip}")));
            let what = if node { "left to the host" } else { "dropped, the host never sees it" };
            format!("{}: {what}", found.verdict().as_str())
        }
        Found::Punted { https, worker } => {
            let listener = if https { Listener::Https } else { Listener::Http };
            steps.push(step("vip", format!("{vip} is punted to the proxy's {listener:?} listener")));
            if let Some(worker) = worker {
                steps.push(step("worker", format!("hash % workers = {worker}")));
            }
            format!("{}: served by the proxy", found.verdict().as_str())
        }
        Found::Balanced { hash, record, tables: line, slot, backend } => {
            steps.push(step("vip", vip_detail(want, flow, record)));
            let table = line.descriptor;
            steps.push(step("hash", format!("keyed hash of the five-tuple {hash:#018x}")));
            let Some(id) = backend else {
                steps.push(step("table", "the pool has no backend that takes flows".to_owned()));
                let verdict = format!("{}: dropped", found.verdict().as_str());
                return Explanation { question: flow.to_string(), steps, verdict };
            };
            steps.push(step(
                "slot",
                format!("slot {slot} of {} (table generation {})", 1u32 << table.bits(), table.generation()),
            ));
            let addr = backend_socket(tables, id);
            let owner = book.backend_of(id).map(|(pool, _)| format!(" of {pool}")).unwrap_or_default();
            steps.push(step("backend", format!("{addr}{owner} (id {})", id.0)));
            steps.push(step("next hop", next_hop(tables, id)));
            if line.stateful {
                steps.push(step("flow", "a flow seen before keeps its backend while that lives".to_owned()));
            }
            format!("{} to {addr}", found.verdict().as_str())
        }
    };
    Explanation { question: flow.to_string(), steps, verdict }
}

fn vip_detail(want: &Want, flow: FiveTuple, record: u32) -> String {
    let place = want::Place { addr: flow.dst.ip(), port: flow.dst.port(), protocol: flow.protocol };
    let Some(Target::Pool(id)) = want.vips.get(&place) else { return format!("record {record}") };
    let pool = want.pools.get(id);
    let mode = pool.map_or(ForwardingMode::default(), |pool| pool.mode);
    let count = pool.map_or(0, |pool| pool.backends.len());
    format!("{} {} belongs to {id}, mode {mode}, {count} backends", flow.protocol, flow.dst)
}

fn next_hop(tables: &Tables, id: lb_common::BackendId) -> String {
    let hop = backend::next_hop(&tables.backends, id);
    if hop.ifindex == 0 {
        return "not resolved here; the kernel's routing is asked per packet".to_owned();
    }
    format!("{} by interface {} ({})", hop.dst(), hop.ifindex, hop.src())
}

fn backend_socket(tables: &Tables, id: lb_common::BackendId) -> SocketAddr {
    let port = backend::identity(&tables.backends, id).wire_port().swap_bytes();
    SocketAddr::new(backend::addr(&tables.backends, id).into(), port)
}

fn wire_flow(flow: FiveTuple) -> Flow {
    let FiveTuple { protocol, src, dst } = flow;
    Flow {
        src: src.ip().into(),
        dst: dst.ip().into(),
        ports: Flow::ports(wire_port(src.port()), wire_port(dst.port())),
        proto: match protocol {
            Protocol::Tcp => TCP,
            Protocol::Udp => UDP,
        }
        .into(),
    }
}

fn step(name: &str, detail: String) -> Step {
    Step { name: name.to_owned(), detail }
}

//! Tells where a flow goes and why, by walking the tables as the program does.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use lb_common::config::Settings;
use lb_common::flows::{self, FlowWords};
use lb_common::nat::Forward;
use lb_common::steer::{self, How, Kind};
use lb_common::{BackendId, Flow, HashKey, Rules, TCP, Tags, UDP, Verdict, backend, config, wire_port};

use super::exhaustion;
use super::memory::{ReadOnly, Tables};
use super::plan::{Book, Op};
use super::walk::{Balanced, Found, Ranges, Sources, walk};
use super::want::{self, Network, Target, Want, Way};
use crate::model::l4::{FiveTuple, L4, Listener, Protocol};
use crate::model::report::{Explanation, Step};

mod port;

pub(super) use port::Translations;

/// Where a flow would go with these VIPs, without an agent: tables are built in memory as the
/// agent builds them. Without the key of the balancers in question the slot is only an example.
pub fn explain_offline(l4: &L4, hash_key: Option<[u8; 16]>, flow: FiveTuple) -> Explanation {
    let backends = want::Destinations::of(&l4.pools);
    let ways = backends.all().iter().map(|addr| (*addr, Ok(unknown_way(*addr)))).collect();
    let network = Network { ways, ..Network::default() };
    let (mut want, _) = want::join(l4, &network);
    // Nor does anybody know better here.
    want.ways = want::Ways::new();
    let tables = Tables::owned();
    let key = HashKey::expand(hash_key.unwrap_or_default());
    let mut book = Book::new(key);
    let mut ranges = Ranges::new();
    for op in book.plan(&want, 0).ops {
        if let Op::Ranges(set, content) = &op {
            ranges.insert(*set, content.clone());
        }
        op.apply(&tables, &mut ());
    }
    tables.store_settings(&Settings { key, ..Settings::default() });
    let known = Known { tables: &tables, ranges: &ranges, book: &book, want: &want, now: 0 };
    let mut explanation = explain(known, flow, &());
    if hash_key.is_none() {
        let detail = "no hash key given: each agent makes its own, so slot and backend are only an example";
        explanation.steps.insert(0, step("hash key", detail.to_owned()));
    }
    explanation
}

fn unknown_way(addr: IpAddr) -> Way {
    Way { source: addr, next_hop: backend::NextHop::default(), mtu: u16::MAX, tags: Tags::NONE }
}

/// What an explanation is made from.
#[derive(Clone, Copy)]
pub(super) struct Known<'a> {
    pub(super) tables: &'a Tables,
    pub(super) ranges: &'a Ranges,
    pub(super) book: &'a Book,
    pub(super) want: &'a Want,
    /// See [`flows::clock`].
    pub(super) now: u32,
}

/// Where a flow goes with the tables as they are; `translated` knows what is remembered of flows
/// that are translated.
pub(super) fn explain(known: Known<'_>, flow: FiveTuple, translated: &impl Translations) -> Explanation {
    let Known { tables, ranges, book, want, now } = known;
    let sources = Sources::Listed(ranges);
    let key = config::hash_key(&tables.config);
    let kind = match flow.protocol {
        // Of a flow that is asked about, more than its SYN was seen.
        Protocol::Tcp => Kind::Segment,
        Protocol::Udp => Kind::Datagram,
    };
    let found = walk(tables, sources, &wire_flow(flow), kind, now, key);
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
        Found::Restricted => {
            let sources = format!("{} is none of the sources that may use {vip}", flow.src.ip());
            steps.push(step("sources", sources));
            format!("{}: dropped", found.verdict().as_str())
        }
        Found::Punted { https, worker } => {
            let listener = if https { Listener::Https } else { Listener::Http };
            steps.push(step("vip", format!("{vip} is punted to the proxy's {listener:?} listener")));
            if let Some(worker) = worker {
                steps.push(step("worker", format!("hash % workers = {worker}")));
            }
            format!("{}: served by the proxy", found.verdict().as_str())
        }
        Found::Balanced(balanced) => {
            steps.push(step("vip", vip_detail(want, flow, balanced.index)));
            steps.extend(steering(tables, book, &balanced, now));
            let id = balanced.choice.backend;
            if let Found::Balanced(new) = walk(tables, sources, &wire_flow(flow), Kind::Syn, now, key)
                && flow.protocol == Protocol::Tcp
                && new.choice.backend != id
            {
                let to = if new.choice.backend.0 == 0 {
                    "nobody".to_owned()
                } else {
                    backend_socket(tables, new.choice.backend).to_string()
                };
                steps.push(step("new flow", format!("a SYN would go to {to}")));
            }
            let verdict = balanced.verdict.as_str();
            let remembered = if balanced.record.rules.any(Rules::TRANSLATED) {
                translation(tables, translated, balanced.hashes.flow, flow)
            } else {
                None
            };
            let told = if let Some(known) = remembered {
                let to = backend_socket(tables, BackendId(known.backend));
                let age = seconds(now.wrapping_sub(known.seen));
                let mode = backend::identity(&tables.backends, BackendId(known.backend)).mode();
                let is_local = mode == backend::Mode::Local as u8;
                let how = if is_local { Verdict::ForwardedLocal } else { Verdict::ForwardedNat };
                let port = known.snat_port.swap_bytes();
                let whose = if is_local { "its" } else { "our" };
                steps.push(step("flow", format!("remembered: translated to {to}, from {whose} port {port}")));
                steps.push(step("last packet", format!("about {age} s ago")));
                format!("{} to {to}", how.as_str())
            } else if id.0 == 0 {
                format!("{verdict}: nobody serves it")
            } else if balanced.verdict == Verdict::PassedOn {
                format!("{verdict} to {}", backend_socket(tables, balanced.choice.other))
            } else if let (first, count @ 1..) = config::nat_range(&tables.config)
                && matches!(balanced.verdict, Verdict::ForwardedNat | Verdict::ForwardedLocal)
            {
                let to = backend_socket(tables, id);
                match port::port(tables, translated, id, &wire_flow(flow), now) {
                    Ok(port) => {
                        steps.push(step("port", format!("its packets would come from port {port}")));
                        format!("{verdict} to {to}")
                    }
                    Err(none @ Verdict::NatTableFull) => {
                        steps.push(step("port", exhaustion::NO_ENTRY.to_owned()));
                        steps.push(step("fix", exhaustion::FIX_ENTRIES.to_owned()));
                        format!("{}: dropped", none.as_str())
                    }
                    Err(none) => {
                        let range = (first, first.saturating_add(count - 1));
                        steps.push(step("port", exhaustion::no_port(range, &to.to_string())));
                        steps.push(step("fix", exhaustion::FIX_PORTS.to_owned()));
                        format!("{}: dropped", none.as_str())
                    }
                }
            } else {
                format!("{verdict} to {}", backend_socket(tables, id))
            };
            match unresolved(&known, id) {
                Unresolved::No => told,
                Unresolved::Perhaps => {
                    format!(
                        "{told}, if the kernel knows its next hop; else {}: dropped",
                        Verdict::Unresolved.as_str()
                    )
                }
                Unresolved::Surely(why) => {
                    steps.push(step("next hop", format!("none: {why}")));
                    steps.push(step("fix", "see `ip route get` for its address".to_owned()));
                    format!("{}: dropped", Verdict::Unresolved.as_str())
                }
            }
        }
    };
    Explanation { question: flow.to_string(), steps, verdict }
}

/// How the backend was chosen.
fn steering(tables: &Tables, book: &Book, balanced: &Balanced, now: u32) -> Vec<Step> {
    let Balanced { hashes, record, slot: (slot, cell), previous, choice, .. } = balanced;
    let table = record.descriptor;
    let mut steps = Vec::new();
    steps.push(step(
        "hash",
        if record.rules.any(Rules::AFFINITY) {
            format!("keyed hash of the source {:#018x} (ClientIP affinity)", hashes.source)
        } else {
            format!("keyed hash of the five-tuple {:#018x}", hashes.flow)
        },
    ));
    if table.is_none() {
        steps.push(step("table", "the pool has no backend".to_owned()));
        return steps;
    }
    let name = |id: lb_common::BackendId| match id.0 {
        0 => "nobody".to_owned(),
        _ => format!("{} (id {})", backend_socket(tables, id), id.0),
    };
    let owner = name(cell.backend());
    let state = match previous {
        Some(previous) if cell.is_contested() => {
            format!("contested: owner {owner}, previous owner {}", name(previous.backend()))
        }
        _ => format!("settled: owner {owner}"),
    };
    let size = 1u32 << table.bits();
    steps.push(step(
        "slot",
        format!("slot {slot} of {size} (table generation {}), {state}", table.generation()),
    ));
    steps.extend(remembered(tables, balanced, now));
    let is_bound = record.rules.any(Rules::AFFINITY)
        && steer::of_source(&ReadOnly(tables), record.rules, hashes.source, now) == choice.backend;
    let why = match choice.how {
        How::Began | How::Moved if is_bound => "by ClientIP affinity its source has it",
        How::Settled => "the slot's owner",
        How::Remembered => "the flow table remembers it for this flow",
        How::Began => "a new flow goes to the owner",
        How::Kept => "a flow that is not remembered is the previous owner's",
        How::Moved => "no other owner is known for a flow that is not remembered",
        How::Nobody => "nobody takes new flows",
    };
    if choice.backend.0 == 0 {
        steps.push(step("backend", why.to_owned()));
        return steps;
    }
    let pool = book.backend_of(choice.backend).map(|(pool, _)| format!(" of {pool}")).unwrap_or_default();
    steps.push(step("backend", format!("{}{pool}: {why}", name(choice.backend))));
    steps.push(step("mode", mode(tables, choice.backend)));
    steps.push(step("next hop", next_hop(tables, choice.backend)));
    // The tunnel alone has a place for the other owner.
    let is_named = balanced.verdict == Verdict::PassedOn
        || mode_of(tables, choice.backend) == Some(backend::Mode::Tunnel);
    if choice.other.0 != 0 && is_named {
        let other = name(choice.other);
        let who = match balanced.verdict {
            Verdict::PassedOn => "this host, while it does not know the flow,",
            _ => "a balancer that does not know the flow",
        };
        steps.push(step("second chance", format!("{who} hands it to {other}")));
    }
    if record.rules.any(Rules::TRANSLATED) {
        steps.push(step("flow", "a flow seen before keeps its backend while that lives".to_owned()));
    }
    steps
}

/// What the flow table holds of the flow, and with affinity of its source, where it is asked.
fn remembered(tables: &Tables, balanced: &Balanced, now: u32) -> Vec<Step> {
    let Balanced { hashes, record, slot: (_, cell), .. } = balanced;
    if steer::is_settled(record.rules, *cell) {
        return Vec::new();
    }
    let memory = ReadOnly(tables);
    let (entry, _) = flows::find(&memory, hashes.flow);
    let flow = if entry.is_none() {
        "does not know the flow".to_owned()
    } else {
        let (age, grace) = (entry.age(now), memory.grace());
        // See where it is written: a SYN alone is worth little.
        let syn = if age + 8 >= grace && age <= grace { ", or its SYN alone a moment ago" } else { "" };
        let backend = backend_socket(tables, entry.backend());
        let spare = if entry.is_spare() { "; it would keep it without that" } else { "" };
        format!("remembers the flow with {backend}, last seen about {} s ago{syn}{spare}", seconds(age))
    };
    let mut steps = vec![step("flow table", flow)];
    let (source, _) = flows::find(&memory, hashes.source);
    if record.rules.any(Rules::AFFINITY) && !source.is_none() {
        steps.push(step(
            "affinity",
            format!(
                "new flows of the source go to {} for {} s after its last new one, which was about {} s ago",
                backend_socket(tables, source.backend()),
                seconds(record.rules.affinity_timeout()),
                seconds(source.age(now))
            ),
        ));
    }
    steps
}

/// Whole seconds of so many units of the clock.
fn seconds(units: u32) -> u64 {
    (u64::from(units) << 30) / 1_000_000_000
}

/// What is remembered of a translated flow, if it is this one's, of a backend that is still the same one, and of a port that no
/// other flow has taken.
fn translation(tables: &Tables, flows: &impl Translations, hash: u64, flow: FiveTuple) -> Option<Forward> {
    let known = flows.forward(hash)?;
    let backend = backend::identity(&tables.backends, BackendId(known.backend));
    let lives = known.flow == wire_flow(flow) && backend.generation() == known.generation;
    let has_port = || flows.reverse(known.reverse_key).is_some_and(|reverse| reverse.forward_key == hash);
    (lives && has_port()).then_some(known)
}

fn vip_detail(want: &Want, flow: FiveTuple, record: u32) -> String {
    let place = want::Place { addr: flow.dst.ip(), port: flow.dst.port(), protocol: flow.protocol };
    let Some(Target::Pool(id)) = want.vips.get(&place) else { return format!("record {record}") };
    let vip = format!("{} {} belongs to {id}", flow.protocol, flow.dst);
    let Some(pool) = want.pools.get(id).filter(|pool| !pool.backends.is_empty()) else {
        let is_local = want.pools.get(id).is_some_and(|pool| !pool.reject);
        let why =
            if is_local { ": externalTrafficPolicy is Local, and no endpoint is on this node" } else { "" };
        return format!("{vip}, which has no backends{why}");
    };
    let modes: BTreeSet<&str> = pool.backends.values().map(|backend| backend.mode.as_str()).collect();
    let modes = Vec::from_iter(modes).join(" and ");
    format!("{vip}, mode {modes}, {} backends", pool.backends.len())
}

fn mode_of(tables: &Tables, id: lb_common::BackendId) -> Option<backend::Mode> {
    backend::Mode::from_number(backend::identity(&tables.backends, id).mode())
}

/// How packets reach a backend, and by which node.
fn mode(tables: &Tables, id: lb_common::BackendId) -> String {
    let to = IpAddr::from(backend::addr(&tables.backends, id));
    match mode_of(tables, id) {
        Some(backend::Mode::L2 | backend::Mode::Ipip) if is_here(tables, id) => {
            "none: this host is the backend, and its packets stay as they came".to_owned()
        }
        Some(backend::Mode::L2) => "l2: by its MAC, addresses untouched".to_owned(),
        Some(backend::Mode::Ipip) => format!("ipip: wrapped for {to}"),
        Some(backend::Mode::Tunnel) => {
            format!("tunnel: wrapped for the balancer on node {to}, which delivers")
        }
        Some(backend::Mode::Nat) => "nat: both addresses translated, answers come back here".to_owned(),
        Some(backend::Mode::Local) => "local: on this node, destination translated".to_owned(),
        None => "none: nobody wrote this backend".to_owned(),
    }
}

fn next_hop(tables: &Tables, id: lb_common::BackendId) -> String {
    if mode_of(tables, id) == Some(backend::Mode::Local) || is_here(tables, id) {
        return "left to this host's stack".to_owned();
    }
    let plain = backend::next_hop(&tables.backends, id);
    let (tagged, tags) = backend::tagged_next_hop(&tables.backends, id);
    let (hop, vlan) = match (plain.ifindex, tagged.ifindex) {
        (0, ifindex) if ifindex != 0 => (tagged, format!(", VLAN {tags}")),
        _ => (plain, String::new()),
    };
    if hop.ifindex == 0 {
        return "not resolved here; the kernel's routing is asked per packet".to_owned();
    }
    let mtu = backend::identity(&tables.backends, id).mtu();
    format!("{} by interface {}{vlan} ({}), MTU {mtu}", hop.dst(), hop.ifindex, hop.src())
}

/// Whether nobody knows where packets to a backend leave.
enum Unresolved {
    No,
    /// We do not; the kernel may.
    Perhaps,
    Surely(String),
}

fn unresolved(known: &Known<'_>, id: lb_common::BackendId) -> Unresolved {
    let Known { tables, want, .. } = known;
    let ifindexes =
        [backend::ifindex(&tables.backends, id), backend::tagged_next_hop(&tables.backends, id).0.ifindex];
    let leaves = !matches!(mode_of(tables, id), None | Some(backend::Mode::Local)) && !is_here(tables, id);
    if !leaves || ifindexes != [0, 0] {
        return Unresolved::No;
    }
    match want.ways.get(&IpAddr::from(backend::addr(&tables.backends, id))) {
        Some(Err(want::NoWay::NoRoute(why))) => Unresolved::Surely(why.clone()),
        Some(_) => Unresolved::Perhaps,
        None => Unresolved::No,
    }
}

/// Whether this host itself is a backend that gets packets as they came.
fn is_here(tables: &Tables, id: lb_common::BackendId) -> bool {
    backend::wrap(&tables.backends, id) == backend::Wrap::HERE
}

fn backend_socket(tables: &Tables, id: lb_common::BackendId) -> SocketAddr {
    let port = backend::identity(&tables.backends, id).wire_port().swap_bytes();
    SocketAddr::new(backend::inner(&tables.backends, id).into(), port)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ObjectName;
    use crate::model::l4::{
        self, Access, At, BackendState, Family, ForwardingMode, OnEmpty, PoolId, Vip, VipAddr, Weight,
    };

    /// A Service on 203.0.113.10:80 over these backends, all reached by `nat`.
    fn web(backends: &[&str], empty: OnEmpty) -> L4 {
        let (port, protocol, family) = (80, Protocol::Tcp, Family::V4);
        let id = PoolId { service: ObjectName::new("shop", "web").into(), port, protocol, family };
        let addr = VipAddr::Ip("203.0.113.10".parse().expect("address"));
        let backend = l4::Backend {
            weight: Weight(1),
            state: BackendState::Active,
            mode: ForwardingMode::Nat,
            at: At::Elsewhere,
        };
        let backends = backends.iter().map(|addr| (addr.parse().expect("address"), backend));
        let pool = l4::Pool {
            vips: [(Vip { addr, port, protocol }, Access::Open)].into(),
            backends: backends.collect(),
            empty,
            ..l4::Pool::default()
        };
        L4 { pools: [(id, pool)].into(), ..L4::default() }
    }

    fn flow(port: u16) -> FiveTuple {
        format!("tcp 198.51.100.7:{port} > 203.0.113.10:80").parse().expect("a flow")
    }

    #[test]
    fn a_service_without_backends_says_why_it_has_none() {
        for (empty, expected) in [
            (OnEmpty::Reject, "tcp 203.0.113.10:80 belongs to shop/web:80/tcp/v4, which has no backends"),
            (
                OnEmpty::Drop,
                "tcp 203.0.113.10:80 belongs to shop/web:80/tcp/v4, which has no backends: externalTrafficPolicy is \
                 Local, and no endpoint is on this node",
            ),
        ] {
            let explained = explain_offline(&web(&[], empty), Some([7; 16]), flow(40_001));

            let vip = explained.steps.iter().find(|step| step.name == "vip").map(|step| step.detail.as_str());
            assert_eq!(vip, Some(expected));
        }
    }

    #[test]
    fn only_the_tunnel_gives_a_flow_a_second_chance() {
        let (tables, mut book, ranges) =
            (Tables::owned(), Book::new(HashKey::expand([7; 16])), Ranges::new());
        let ways = ["10.0.0.1", "10.0.0.2"].map(|addr| addr.parse().expect("address"));
        let ways = ways.into_iter().map(|addr: IpAddr| (addr, Ok(unknown_way(addr)))).collect();
        let network = Network { ways, ..Network::default() };
        let mut want = Want::default();
        for backends in [&["10.0.0.1:80"][..], &["10.0.0.1:80", "10.0.0.2:80"]] {
            want = want::join(&web(backends, OnEmpty::Reject), &network).0;
            book.plan(&want, 0).ops.into_iter().for_each(|op| op.apply(&tables, &mut ()));
        }
        tables.store_settings(&Settings { key: HashKey::expand([7; 16]), ..Settings::default() });
        let known = Known { tables: &tables, ranges: &ranges, book: &book, want: &want, now: 0 };

        let explained = (40_000..40_100).map(|port| format!("{:?}", explain(known, flow(port), &())));

        let contested: Vec<_> = explained.filter(|text| text.contains("contested")).collect();
        assert!(!contested.is_empty());
        assert!(!contested.iter().any(|text| text.contains("second chance")), "{contested:?}");
    }

    #[test]
    fn a_flow_whose_backend_has_no_next_hop_is_not_said_to_be_forwarded() {
        let addr: IpAddr = "10.0.0.1".parse().expect("address");
        let network =
            Network { ways: [(addr, Ok(unknown_way(addr)))].into_iter().collect(), ..Network::default() };
        let (tables, mut book) = (Tables::owned(), Book::new(HashKey::expand([7; 16])));
        let mut want = want::join(&web(&["10.0.0.1:80"], OnEmpty::Reject), &network).0;
        book.plan(&want, 0).ops.into_iter().for_each(|op| op.apply(&tables, &mut ()));
        tables.store_settings(&Settings { key: HashKey::expand([7; 16]), ..Settings::default() });
        let told = |want: &Want| {
            let ranges = Ranges::new();
            let known = Known { tables: &tables, ranges: &ranges, book: &book, want, now: 0 };
            explain(known, flow(40_000), &()).verdict
        };

        let perhaps = "forwarded-nat to 10.0.0.1:80, if the kernel knows its next hop; else unresolved-next-hop: dropped";
        assert_eq!(told(&want), perhaps);
        want.ways.insert(addr, Err(want::NoWay::NoRoute("its route is of type BlackHole".to_owned())));
        assert_eq!(told(&want), "unresolved-next-hop: dropped");
    }
}

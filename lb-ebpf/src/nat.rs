//! `nat` mode: destination and source translated, the answer translated back.
//!
//! State is one entry per direction (lb-common, `nat`). An established flow costs one lookup per
//! packet; only a new flow runs the loop that claims a port.

use aya_ebpf::{helpers::bpf_ktime_get_coarse_ns, programs::XdpContext};
use lb_common::{
    AddrEntry, BackendId, Flow, HashKey, TCP, Verdict,
    backend::{self, NextHop},
    config, maglev,
    nat::{Forward, Reverse, state},
    wire_port,
};

use crate::{
    forward::{self, Outcome},
    maps::{self, Scratch},
    packet::Packet,
    parse::Family,
    steer,
};

/// Ports tried for a new flow. With nine tenths of the range taken, one flow in 800 finds none.
const PROBES: u16 = 64;
const NOEXIST: u64 = 1;
const EEXIST: i32 = -17;

const TCP_FIN: u8 = 1;
const TCP_SYN: u8 = 2;
const TCP_RST: u8 = 4;

/// A packet from a client to a VIP in `nat` mode.
#[inline(always)]
pub fn to_backend<F: Family>(
    ctx: &XdpContext,
    packet: &Packet,
    head: &F::Head,
    flow: &Flow,
    table: maglev::Descriptor,
    key: HashKey,
    addr: AddrEntry,
) -> Outcome {
    if F::ttl(head) <= 1 {
        // On an address that is only a VIP the stack may have a local route (for a punted port),
        // and would hand the packet to whatever else listens on this port.
        return if addr.is_node() { Verdict::Ttl } else { Verdict::TtlOfVip }.into();
    }
    let flags = match F::tcp_flags(packet, flow.proto) {
        Ok(flags) => flags,
        Err(verdict) => return verdict.into(),
    };
    let (Some(backends), Some(config)) = (maps::backends(), maps::config()) else {
        return Verdict::Corrupt.into();
    };
    let Some(client) = sender(packet) else { return Verdict::Truncated.into() };
    let hash = F::hash(flow, key);
    let now = now();

    let mut found = known(hash, flow, &backends);
    if let Known::Stranger = found {
        return Verdict::NatCollision.into();
    }
    if let Known::Nobody = found {
        // A reset ends a flow; it must not begin one, or a flood of them fills the table.
        if flags & TCP_RST != 0 {
            return Verdict::StrayReset.into();
        }
        let Some(chosen) = steer::pick(table, hash) else { return Verdict::NoBackend.into() };
        let new =
            NewFlow { flow, hash, key, backend: chosen, client, now, ports: config::nat_range(&config) };
        found = match claim(&new) {
            Ok(snat_port) => Known::Flow { backend: chosen, snat_port },
            Err(verdict) => return verdict.into(),
        };
    }
    let Known::Flow { backend, snat_port } = found else { return Verdict::Corrupt.into() };
    refresh(hash, flags, now, client);

    let line = backend::identity(&backends, backend);
    let length = F::length(head);
    if length > line.mtu() as u32 {
        return Verdict::TooBig.into();
    }
    let addr = backend::addr(&backends, backend);
    let mut next_hop = backend::next_hop(&backends, backend);
    if next_hop.ifindex == 0 && !forward::resolve(forward::raw(ctx), packet.ifindex, &addr, &mut next_hop) {
        return Verdict::Unresolved.into();
    }
    let new = Flow {
        src: backend::snat(&backends, backend),
        dst: addr,
        ports: Flow::ports(snat_port, line.wire_port()),
        proto: flow.proto,
    };
    translate::<F>(packet, head, flow, &new);
    maps::count_backend(backend.0, length as u64);
    forward::send(packet, next_hop, Verdict::ForwardedNat)
}

/// A packet to one of the host's addresses on a port of the SNAT range.
#[inline(always)]
pub fn to_client<F: Family>(packet: &Packet, head: &F::Head, flow: &Flow, key: HashKey) -> Outcome {
    let hash = F::hash(flow, key);
    let Some(entry) = maps::NAT_REVERSE.get_ptr_mut(hash) else {
        return Verdict::NatReplyMiss.into();
    };
    // SAFETY: a hash map entry stays readable for the whole run; a concurrent removal may reuse
    // it, which the comparison below notices but for the moment of the race itself.
    let entry = unsafe { &mut *entry };
    if entry.flow != *flow {
        return Verdict::NatReplyMiss.into();
    }
    if F::ttl(head) <= 1 {
        return Verdict::Ttl.into();
    }
    let flags = match F::tcp_flags(packet, flow.proto) {
        Ok(flags) => flags,
        Err(verdict) => return verdict.into(),
    };
    entry.seen = now();
    // A SYN begins a new connection on the same ports: an old RST or FIN is not its own.
    entry.state = if flags & TCP_SYN != 0 { state_of(flags) } else { entry.state | state_of(flags) };
    let new = entry.reply;
    let client = entry.client;
    translate::<F>(packet, head, flow, &new);
    forward::send(packet, client, Verdict::RepliedNat)
}

enum Known {
    Flow { backend: BackendId, snat_port: u16 },
    Nobody,
    Stranger,
}

/// The remembered flow. One whose backend is gone is forgotten, so that the client's next packet
/// begins anew with a backend that lives.
#[inline(always)]
fn known(hash: u64, flow: &Flow, backends: &impl lb_common::Lines) -> Known {
    let Some(entry) = maps::NAT_FORWARD.get_ptr(hash) else { return Known::Nobody };
    // SAFETY: as in `to_client`.
    let entry = unsafe { &*entry };
    if entry.flow != *flow {
        return Known::Stranger;
    }
    let backend = BackendId(entry.backend);
    if backend::identity(backends, backend).generation() != entry.generation {
        let reverse = entry.reverse_key;
        let _ = maps::NAT_REVERSE.remove(reverse);
        let _ = maps::NAT_FORWARD.remove(hash);
        return Known::Nobody;
    }
    Known::Flow { backend, snat_port: entry.snat_port }
}

struct NewFlow<'a> {
    flow: &'a Flow,
    hash: u64,
    key: HashKey,
    backend: BackendId,
    client: NextHop,
    now: u32,
    ports: (u16, u16),
}

/// Claims a port for a new flow and remembers both directions. A function of its own, and both
/// entries are built in a per-CPU scratch value: a program has 512 bytes of stack in all.
#[inline(never)]
fn claim(new: &NewFlow<'_>) -> Result<u16, Verdict> {
    let (Some(backends), Some(scratch)) = (maps::backends(), maps::scratch()) else {
        return Err(Verdict::Corrupt);
    };
    // SAFETY: the scratch value is this CPU's own, and XDP does not nest.
    let Scratch { reverse, forward } = unsafe { &mut *scratch };
    let (first, count) = new.ports;
    if count == 0 {
        return Err(Verdict::NatPortsExhausted);
    }
    let identity = backend::identity(&backends, new.backend);
    reverse.flow.src = backend::addr(&backends, new.backend);
    reverse.flow.dst = backend::snat(&backends, new.backend);
    reverse.flow.proto = new.flow.proto;
    reverse.reply.src = new.flow.dst;
    reverse.reply.dst = new.flow.src;
    reverse.reply.ports = Flow::ports(new.flow.dst_port(), new.flow.src_port());
    reverse.reply.proto = new.flow.proto;
    reverse.client = new.client;
    reverse.forward_key = new.hash;
    reverse.seen = new.now;
    reverse.backend = new.backend.0;
    reverse.state = 0;
    forward.flow = *new.flow;
    forward.seen = new.now;
    forward.backend = new.backend.0;
    forward.generation = identity.generation();
    forward.state = 0;
    forward.client_mac = sender_tag(new.client);

    let start = (new.hash >> 32) as u32;
    // An odd step spreads the probes of flows that start at one port.
    let step = (new.hash >> 16) as u32 | 1;
    for probe in 0..PROBES {
        let offset = start.wrapping_add(step.wrapping_mul(probe as u32)) % count as u32;
        let port = wire_port(first.wrapping_add(offset as u16));
        reverse.flow.ports = Flow::ports(identity.wire_port(), port);
        let reverse_key = reverse.flow.hash(new.key);
        // By reference: by value each would be copied to the stack first.
        let entry: &Reverse = reverse;
        match maps::NAT_REVERSE.insert(reverse_key, entry, NOEXIST) {
            Ok(()) => {}
            Err(EEXIST) => continue,
            Err(_) => return Err(Verdict::NatTableFull),
        }
        forward.reverse_key = reverse_key;
        forward.snat_port = port;
        let entry: &Forward = forward;
        if maps::NAT_FORWARD.insert(new.hash, entry, NOEXIST).is_err() {
            // Full, or another CPU began the same flow a moment ago: its retransmission will
            // find that entry.
            let _ = maps::NAT_REVERSE.remove(reverse_key);
            return Err(Verdict::NatTableFull);
        }
        return Ok(port);
    }
    Err(Verdict::NatPortsExhausted)
}

/// Notes that the client sent something, and from where if that changed.
#[inline(always)]
fn refresh(hash: u64, flags: u8, now: u32, client: NextHop) {
    let Some(entry) = maps::NAT_FORWARD.get_ptr_mut(hash) else { return };
    // SAFETY: as in `to_client`; the fields written are hints about time and closing.
    let entry = unsafe { &mut *entry };
    if entry.seen != now {
        entry.seen = now;
    }
    let seen = state_of(flags);
    if flags & TCP_SYN != 0 {
        entry.state = seen;
    } else if entry.state & seen != seen {
        entry.state |= seen;
    }
    if entry.client_mac == sender_tag(client) {
        return;
    }
    entry.client_mac = sender_tag(client);
    if let Some(reverse) = maps::NAT_REVERSE.get_ptr_mut(entry.reverse_key) {
        // SAFETY: as above.
        unsafe { (*reverse).client = client };
    }
}

#[inline(always)]
fn translate<F: Family>(packet: &Packet, head: &F::Head, old: &Flow, new: &Flow) {
    let delta = F::rewrite(head, old, new);
    F::rewrite_transport(packet, new, delta);
}

/// Where answers to this packet go: back to the MAC it came from.
#[inline(always)]
fn sender(packet: &Packet) -> Option<NextHop> {
    let ether = packet.view::<{ crate::parse::ETHERNET }>()?;
    let (first, second): (u64, u32) = (ether.read(0), ether.read(8));
    // Bytes 0-5 destination, 6-11 source; swapped.
    let source = first >> 48 | (second as u64) << 16;
    let own = first & 0xffff_ffff_ffff;
    Some(NextHop { head: source | own << 48, tail: (own >> 16) as u32, ifindex: packet.ifindex })
}

/// Last four bytes of the sender's MAC: the vendor's part seldom tells two routers apart.
#[inline(always)]
fn sender_tag(client: NextHop) -> u32 {
    (client.head >> 16) as u32
}

#[inline(always)]
fn state_of(flags: u8) -> u16 {
    let mut bits = state::SEEN;
    if flags & TCP_FIN != 0 {
        bits |= state::FIN;
    }
    if flags & TCP_RST != 0 {
        bits |= state::RST;
    }
    bits
}

/// Seconds of the coarse monotonic clock: a seventh of the precise one's cost, and user space
/// reads the same one.
#[inline(always)]
fn now() -> u32 {
    // SAFETY: the helper has no preconditions.
    let nanoseconds = unsafe { bpf_ktime_get_coarse_ns() };
    (nanoseconds >> 30) as u32
}

const _: () = assert!(TCP == 6);

//! The two entries of a flow that begins, and the source port that they are noted under.
//!
//! Both are built in this CPU's scratch memory and tried under one port after the other, as lb-common's `ports` says.

use lb_common::{
    BackendId, Flow, Mode, Verdict,
    backend::{self, NextHop},
    config,
    nat::state,
    ports::{self, Claims, Search, Tried},
    steer::Memory,
    tunnel,
};

use crate::{
    maps::{self, Scratch},
    nat::{forget, sender_tag, state_after},
    room,
};

const NOEXIST: u64 = 1;
const EEXIST: i32 = -17;

/// Claims a source port for the flow of this CPU's carry and remembers both directions. In `local`
/// mode the client's own port is tried first. A function of its own, and both entries are built in
/// scratch memory: a program has 512 bytes of stack in all.
#[inline(never)]
pub fn claim(id: BackendId, client: NextHop, now: u32) -> Result<u16, Verdict> {
    let tables = maps::tables();
    let Some(scratch) = maps::scratch() else {
        return Err(Verdict::Corrupt);
    };
    let backends = tables.backends();
    // SAFETY: the scratch value is this CPU's own, and XDP does not nest.
    let Scratch { carry, reverse, forward, .. } = unsafe { &mut *scratch };
    let (first, count) = config::nat_range(&tables.config());
    let (flow, hash) = (&carry.flow, carry.hashes.flow);
    let identity = backend::identity(&backends, id);
    let local = identity.mode() == Mode::Local as u8;
    reverse.flow.src = backend::addr(&backends, id);
    reverse.flow.dst = if local { flow.src } else { backend::source(&backends, id) };
    reverse.flow.ports = Flow::ports(identity.wire_port(), 0);
    reverse.flow.proto = flow.proto;
    reverse.reply.src = flow.dst;
    reverse.reply.dst = flow.src;
    reverse.reply.ports = Flow::ports(flow.dst_port(), flow.src_port());
    reverse.reply.proto = flow.proto;
    reverse.client = client;
    reverse.tags = carry.tags;
    reverse.offered = 0;
    reverse.forward_key = hash;
    reverse.seen = now;
    reverse.backend = id.0;
    reverse.state = match carry.tunnelled.overhead as usize {
        _ if !local => 0,
        0 => state::LOCAL,
        tunnel::OVERHEAD_V4 => state::LOCAL | state::TUNNEL_V4,
        _ => state::LOCAL | state::TUNNEL_V6,
    };
    forward.flow = *flow;
    forward.seen = now;
    forward.backend = id.0;
    forward.generation = identity.generation();
    forward.state = state_after(0, carry.tcp_flags as u8) | state::BEGUN;
    forward.client_mac = sender_tag(client, carry.tags);

    let own = if local { flow.src_port() } else { 0 };
    match penstock_claim(hash, Flow::ports(first, count), own.into(), now) {
        TABLE_FULL => Err(Verdict::NatTableFull),
        NO_PORT => Err(Verdict::NatPortsExhausted),
        port => Ok(port as u16),
    }
}

const TABLE_FULL: u64 = 1 << 16;
const NO_PORT: u64 = 2 << 16;

/// [`ports::claim`]: a port, or one of the above. A global function, whose loop the verifier follows once and not
/// from every path that leads here. `range`: first port, and how many.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn penstock_claim(hash: u64, range: u32, own: u32, now: u32) -> u64 {
    let search = Search { hash, first: range as u16, count: (range >> 16) as u16, own: own as u16 };
    if search.count == 0 {
        return NO_PORT;
    }
    match ports::claim(&Entries { now }, &search) {
        Ok(port) => port.into(),
        Err(Verdict::NatTableFull) => TABLE_FULL,
        Err(_) => NO_PORT,
    }
}

/// The entries of this CPU's scratch value, which are to be noted under some port, and those that are.
struct Entries {
    now: u32,
}

impl Claims for Entries {
    #[inline(always)]
    fn try_claim(&self, port: u16) -> Tried {
        Tried::unpack(penstock_try_port(port.into(), self.now))
    }

    #[inline(always)]
    fn take(&self, port: u16) -> Tried {
        Tried::unpack(penstock_take_port(port.into(), self.now))
    }

    #[inline(always)]
    fn willing(&self, port: u16) -> u32 {
        penstock_willing(port.into(), self.now) as u32
    }

    #[inline(always)]
    fn make_room(&self) -> bool {
        room::penstock_make_room(self.now) != 0
    }
}

/// [`Claims::willing`], as a global function, too.
#[unsafe(no_mangle)]
#[inline(never)]
#[cold]
pub extern "C" fn penstock_willing(port: u32, now: u32) -> u64 {
    let Some(key) = with_port(port as u16) else { return 0 };
    holder(key, now).map_or(0, |(willing, _)| willing.into())
}

/// [`Claims::try_claim`]. A global function, which the verifier looks at once and not with every port that is tried.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn penstock_try_port(port: u32, now: u32) -> u64 {
    let Some(key) = with_port(port as u16) else { return Tried::Lost.pack() };
    let Some((willing, _)) = holder(key, now) else { return note(key).pack() };
    Tried::Held(willing).pack()
}

/// [`Claims::take`], as a global function, too.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn penstock_take_port(port: u32, now: u32) -> u64 {
    let Some(key) = with_port(port as u16) else { return Tried::Lost.pack() };
    let Some((willing, owner)) = holder(key, now) else { return note(key).pack() };
    if willing == 0 {
        return Tried::Held(0).pack();
    }
    match owner {
        Some(owner) => forget(owner),
        None => drop(maps::NAT_REVERSE.remove(key)),
    }
    note(key).pack()
}

/// Key of the entry with this port.
#[inline(always)]
fn with_port(port: u16) -> Option<u64> {
    let (tables, scratch) = (maps::tables(), maps::scratch()?);
    // SAFETY: the scratch value is this CPU's own, and XDP does not nest.
    let reverse = unsafe { &mut (*scratch).reverse };
    reverse.flow.ports = Flow::ports(reverse.flow.src_port(), port);
    Some(reverse.flow.hash(config::hash_key(&tables.config())))
}

/// How willingly whoever has the entry with this key gives way, and the hash of that flow, unless it has
/// another port by now.
#[inline(always)]
fn holder(key: u64, now: u32) -> Option<(u32, Option<u64>)> {
    let reverse = maps::NAT_REVERSE.get_ptr(key)?;
    // SAFETY: as in `to_client`.
    let reverse = unsafe { &*reverse };
    let forward = maps::NAT_FORWARD.get_ptr(reverse.forward_key);
    // SAFETY: as in `to_client`.
    let forward = forward.map(|forward| unsafe { &*forward }).filter(|forward| forward.reverse_key == key);
    Some((reverse.gives_way(forward, now), forward.map(|_| reverse.forward_key)))
}

/// Remembers the flow in both directions, if nobody has taken the port's entry.
#[inline(always)]
fn note(key: u64) -> Tried {
    let Some(scratch) = maps::scratch() else { return Tried::Lost };
    // SAFETY: the scratch value is this CPU's own, and XDP does not nest.
    let Scratch { carry, reverse, forward, .. } = unsafe { &mut *scratch };
    // By reference: by value each would be copied to the stack first.
    let entry: &lb_common::nat::Reverse = reverse;
    match maps::NAT_REVERSE.insert(key, entry, NOEXIST) {
        Ok(()) => {}
        Err(EEXIST) => return Tried::Held(0),
        Err(_) => return Tried::Full,
    }
    forward.reverse_key = key;
    forward.snat_port = reverse.flow.dst_port();
    let entry: &lb_common::nat::Forward = forward;
    match maps::NAT_FORWARD.insert(carry.hashes.flow, entry, NOEXIST) {
        Ok(()) => {
            room::began(carry.hashes.flow);
            Tried::Claimed
        }
        Err(error) => {
            let _ = maps::NAT_REVERSE.remove(key);
            if error == EEXIST { Tried::Lost } else { Tried::Full }
        }
    }
}

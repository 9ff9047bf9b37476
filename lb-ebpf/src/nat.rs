//! `nat` and `local` mode: destination translated, in `nat` mode the source too, and the answer of a
//! `nat` backend translated back. (`out` translates the answers of `local` backends.)
//!
//! State is one entry per direction (lb-common, `nat`). A packet of an established flow looks both up, unless a
//! lease spares it that; only a new flow runs the loop that claims a port. Both programs are reached by a tail
//! call from the ladder and begin with what it carried over.

use core::hint::cold_path;

use aya_ebpf::{helpers::bpf_check_mtu, macros::xdp, programs::XdpContext};
use lb_common::{
    Addr, AddrEntry, BackendId, Flow, Mode, TCP, Tags, Verdict,
    backend::{self, NextHop},
    config,
    lease::{self, Lease},
    maps::Program,
    nat::{Forward, Reverse, state},
    steer::{Choice, How, Kind, Memory},
    tunnel::{self, Round},
    vip::Rules,
};

use crate::{
    carry::{Carry, Tunnelled},
    claim::claim,
    end, finish_carried, former,
    forward::{self, Outcome, Way},
    maps::{self, Tables},
    options,
    packet::Packet,
    parse::{Family, TCP_ACKNOWLEDGED, TCP_SEQUENCE, V4, V6, kind, rewrite_transport, tcp_flag},
    steer, tags,
};

/// A packet to a VIP some of whose backends are translated to.
#[xdp(frags)]
pub fn penstock_translate(ctx: XdpContext) -> u32 {
    let Some(scratch) = maps::scratch() else { return end(&ctx, Verdict::Corrupt) };
    // SAFETY: the scratch value is this CPU's own, and XDP does not nest.
    let carry = unsafe { &mut (*scratch).carry };
    let Outcome { verdict, action } =
        if carry.flow.src.is_v4() { to_backend::<V4>(&ctx, carry) } else { to_backend::<V6>(&ctx, carry) };
    finish_carried(&ctx, verdict, action)
}

/// A packet to one of the host's addresses on a port of the SNAT range.
#[xdp(frags)]
pub fn penstock_reply(ctx: XdpContext) -> u32 {
    let Some(scratch) = maps::scratch() else { return end(&ctx, Verdict::Corrupt) };
    // SAFETY: as above.
    let carry = unsafe { &mut (*scratch).carry };
    let Outcome { verdict, action } =
        if carry.flow.src.is_v4() { to_client::<V4>(&ctx, carry) } else { to_client::<V6>(&ctx, carry) };
    finish_carried(&ctx, verdict, action)
}

#[inline(always)]
fn to_backend<F: Family>(ctx: &XdpContext, carry: &mut Carry) -> Outcome {
    let packet = carry.packet(ctx);
    let tables = maps::tables();
    let Some(head) = F::head(&packet, carry.at()) else {
        return Verdict::Corrupt.into();
    };
    let Some(client) = sender(ctx, &packet) else { return Verdict::Truncated.into() };
    let flags = carry.tcp_flags as u8;
    let kind = kind(carry.flow.proto as u8, flags);
    let hash = carry.hashes.flow;
    let now = steer::now();
    // Read before an outer header may move the packet.
    let length = F::length(&head);

    let lease = leased::<F>(carry, length, client);
    let mut found = match lease {
        Some(lease) => Known::Flow { backend: lease.backend(), port: lease.wire_port() },
        None => known(hash, &carry.flow, kind, now, &tables.backends()),
    };
    if let Known::Stranger = found {
        return Verdict::NatCollision.into();
    }
    let mut begins = false;
    // Of a flow that begins here, the entry says already what its first packet showed.
    let mut since = if lease.is_some() { Since::Leased } else { Since::Earlier };
    if let Known::Nobody | Known::Over = found {
        let mode_of = |id| backend::identity(&tables.backends(), id).mode();
        let mut choice = match carry.tunnelled.backend {
            BackendId(0) => steer::choose(&tables, carry.record_index, &carry.record, carry.hashes, kind),
            chosen => Choice::settled(chosen),
        };
        let here = Mode::Local as u8;
        if carry.tunnelled != Tunnelled::NOT
            && choice.how == How::Kept
            && mode_of(choice.backend) != here
            && mode_of(choice.other) == here
        {
            // Its sender takes it for one of a backend here. A SYN is for who owns the slot now alone.
            choice = Choice::settled(choice.other);
        }
        let mode = Mode::from_number(mode_of(choice.backend));
        if carry.tunnelled != Tunnelled::NOT && !matches!(mode, Some(Mode::Local)) {
            // Whoever sent it takes a backend to be here. To send it on would make circles.
            return Verdict::TunnelStray.into();
        }
        if choice.backend.0 == 0 {
            return refuse(ctx, carry, Verdict::NoBackend, 0, carry.record.rules.any(Rules::REJECT));
        }
        let was_over = matches!(found, Known::Over);
        let (choice, round) = if carry.tunnelled == Tunnelled::NOT {
            tunnel::second_chance(choice, kind, mode_of)
        } else {
            (choice, Round::First)
        };
        // A flow that is translated here is remembered here, so this one began elsewhere, and no other than the former
        // holder knows it: what address and port of ours its backend sees, or, where either has its own backends alone,
        // which backend it has.
        if !was_over
            && round == Round::First
            && mode.is_some_and(Mode::is_translated)
            && carry.tunnelled == Tunnelled::NOT
            && former::may_know(&carry.flow, flags)
            && former::is_asked(ctx, carry)
        {
            maps::call(ctx, Program::Former);
            return Verdict::Corrupt.into();
        }
        if was_over {
            forget(hash);
        }
        if round != Round::First || !mode.is_some_and(Mode::is_translated) {
            let at = carry.at();
            let addr = carry.addr;
            return match forward::sent_on::<F>(ctx, &packet, &head, &tables, addr, &choice, hash, at, round) {
                Ok(outcome) => {
                    let begins = steer::begins(kind, choice.how);
                    count(carry, choice.backend, length, begins);
                    outcome
                }
                Err((Verdict::WouldCircle | Verdict::TtlOfVip, _)) if carry.record.rules.any(Rules::HERE) => {
                    Verdict::KeptHere.into()
                }
                Err((verdict, mtu)) => {
                    let tell = matches!(verdict, Verdict::TooBig | Verdict::TtlOfVip);
                    refuse(ctx, carry, verdict, mtu, tell)
                }
            };
        }
        // A reset ends a flow; it must not begin one, or a flood of them fills the table.
        if flags & tcp_flag::RST != 0 {
            return Verdict::StrayReset.into();
        }
        if martian(&tables, carry.flow.src) {
            return Verdict::Martian.into();
        }
        begins = matches!(choice.how, How::Settled | How::Began);
        since = Since::Now;
        let back = if kind == Kind::Segment { way_back(ctx, carry, client) } else { client };
        found = match claim(choice.backend, back, now) {
            Ok(port) => Known::Flow { backend: choice.backend, port },
            Err(verdict) => return verdict.into(),
        };
    }
    let Known::Flow { backend, port } = found else { return Verdict::Corrupt.into() };
    if F::ttl(&head) <= 1 {
        // On an address that is only a VIP the stack may have a local route (for a punted port),
        // and would hand the packet to whatever else listens on this port.
        if carry.addr.is_node() {
            return Verdict::Ttl.into();
        }
        return refuse(ctx, carry, Verdict::TtlOfVip, 0, true);
    }
    let state = match since {
        Since::Now | Since::Leased => state::BEGUN,
        Since::Earlier => refresh(&packet, carry, now, client),
    };
    if flags & tcp_flag::RST != 0 {
        // The next packet has to come here: it tells that the reset was forged.
        end_lease(hash);
    }
    // The flow's next packets have it shorter; but the next one has to be noted as long as it may be the one that shows
    // that the client goes on.
    if is_plain::<F>(carry) && state & state::BEGUN == 0 {
        let lease = Lease::new(backend, port, maps::stamp(), lessee(client));
        lease::grant(&tables, hash, lease);
    }

    let identity = backend::identity(&tables.backends(), backend);
    if length > identity.room() as u32 {
        return refuse(ctx, carry, Verdict::TooBig, identity.room(), true);
    }
    let mut new = Flow {
        src: carry.flow.src,
        dst: backend::addr(&tables.backends(), backend),
        ports: Flow::ports(port, identity.wire_port()),
        proto: carry.flow.proto,
    };
    if identity.mode() == Mode::Local as u8 {
        // The stack forwards it, and takes its hop.
        translate::<F>(&packet, carry, &head, &new, 0);
        count(carry, backend, length, begins);
        // It arrives in the VLAN that it came by.
        return match carry.lost_tags() {
            Tags::NONE => Verdict::ForwardedLocal.into(),
            lost => tags::behind(lost, 0, Verdict::ForwardedLocal.into()),
        };
    }
    let Way { next_hop, tags } = match forward::way(ctx, &tables, backend) {
        Ok(way) => way,
        Err(verdict) => return verdict.into(),
    };
    new.src = backend::source(&tables.backends(), backend);
    translate::<F>(&packet, carry, &head, &new, 1);
    count(carry, backend, length, begins);
    forward::send::<F>(ctx, &packet, carry.l3 as usize, next_hop, tags, Verdict::ForwardedNat)
}

/// Whether a lease may tell a packet's way, or be granted with it: what begins or ends a flow is to be noted, instead.
#[inline(always)]
fn is_plain<F: Family>(carry: &Carry) -> bool {
    let notes = carry.tcp_flags as u8 & tcp_flag::BEGIN_OR_END != 0;
    carry.at() == F::PLAIN && carry.tags.is_none() && !notes
}

/// Who holds a lease: the end of the sender's MAC, and the interface.
#[inline(always)]
fn lessee(client: NextHop) -> u32 {
    (client.head >> 24) as u32 ^ client.ifindex
}

/// The flow's lease, if it holds and its backend lives. The fast path asks for it by itself; this is for what only the ladder takes up.
#[inline(always)]
fn leased<F: Family>(carry: &Carry, length: u32, client: NextHop) -> Option<Lease> {
    if !is_plain::<F>(carry) {
        return None;
    }
    let tables = maps::tables();
    let lease = lease::find(&tables, carry.hashes.flow);
    if !lease.holds(maps::stamp(), lessee(client)) {
        return None;
    }
    let identity = backend::identity(&tables.backends(), lease.backend());
    let translated = Mode::from_number(identity.mode()).is_some_and(Mode::is_translated);
    (translated && length <= identity.room() as u32).then_some(lease)
}

/// Where the answer goes to a segment with which a flow begins. If another agent handed it on, nobody knows its flow, and the client
/// has to hear that: by our own way, if that is on the link that the segment came by, without tags. Another way may be one
/// that no frame can be redirected to, like an overlay's: then that agent takes the answer along.
#[inline(always)]
fn way_back(ctx: &XdpContext, carry: &Carry, client: NextHop) -> NextHop {
    if !carry.tags.is_none() || !former::is_agent(client) {
        return client;
    }
    let mut own = client;
    let found = forward::resolve(forward::raw(ctx), client.ifindex, &carry.flow.src, &mut own);
    if found && own.ifindex == client.ifindex { own } else { client }
}

/// Whether no flow may begin from here: nobody can have the address, or we have it ourselves, and the backend's
/// answer would come back here as a question.
#[inline(always)]
fn martian(tables: &Tables, src: Addr) -> bool {
    src.is_martian() || !AddrEntry::find(&tables.addrs(), config::epoch(&tables.config()), src).is_none()
}

#[inline(always)]
fn to_client<F: Family>(ctx: &XdpContext, carry: &mut Carry) -> Outcome {
    let packet = carry.packet(ctx);
    let Some(head) = F::head(&packet, carry.at()) else { return Verdict::Corrupt.into() };
    let Some(entry) = maps::NAT_REVERSE.get_ptr_mut(carry.hashes.flow) else {
        return Verdict::NatReplyMiss.into();
    };
    // SAFETY: a hash map entry stays readable for the whole run; a concurrent removal may reuse
    // it, which the comparison below notices but for the moment of the race itself.
    let entry = unsafe { &mut *entry };
    if entry.flow != carry.flow {
        return Verdict::NatReplyMiss.into();
    }
    if F::ttl(&head) <= 1 {
        return Verdict::Ttl.into();
    }
    // Everybody's way takes so much; and it leads back where the answer came from, as a rule.
    let length = F::length(&head);
    if length > LEAST_MTU
        && entry.client.ifindex != ctx.ingress_ifindex() as u32
        && let Some(mtu) = narrower(ctx, entry.client.ifindex, length)
    {
        return refuse(ctx, carry, Verdict::TooBig, mtu, true);
    }
    let flags = carry.tcp_flags as u8;
    entry.seen = steer::now();
    answered(entry, flags, || Some(packet.view_at::<20>(carry.l4 as usize)?.read(TCP_SEQUENCE)));
    let new = entry.reply;
    let (client, tags) = (entry.client, entry.tags);
    if flags & tcp_flag::SYN != 0 {
        let tables = maps::tables();
        // What the client will send goes the way to the backend, behind headers of this length.
        let room = backend::identity(&tables.backends(), BackendId(entry.backend)).room();
        let headers = (F::PLAIN.l4 - F::PLAIN.l3) as u16 + 20;
        let _ = options::lower_mss(ctx, &packet, carry.l4 as usize, room.saturating_sub(headers));
    }
    translate::<F>(&packet, carry, &head, &new, 1);
    forward::send::<F>(ctx, &packet, carry.l3 as usize, client, tags, Verdict::RepliedNat)
}

/// What every way takes: IPv6's least MTU (RFC 8200 5).
const LEAST_MTU: u32 = 1280;

/// MTU of an interface, if that is less than an IP packet of this length takes.
#[inline(always)]
fn narrower(ctx: &XdpContext, ifindex: u32, length: u32) -> Option<u16> {
    let mut mtu = length;
    // SAFETY: `ctx` is the program's own context; the helper reads the length and writes the MTU (Linux 5.12).
    let checked = unsafe { bpf_check_mtu(ctx.ctx.cast(), ifindex, &mut mtu, 0, 0) };
    (checked > 0).then_some(mtu as u16)
}

/// A packet that goes nowhere; `tell` its sender so.
#[inline(always)]
fn refuse(ctx: &XdpContext, carry: &mut Carry, verdict: Verdict, mtu: u16, tell: bool) -> Outcome {
    if tell {
        carry.verdict = verdict;
        carry.mtu = mtu;
        maps::call(ctx, Program::Refuse);
    }
    verdict.into()
}

#[inline(always)]
fn count(carry: &Carry, backend: BackendId, length: u32, begins: bool) {
    let Some(row) = maps::counts() else { return };
    row.backend(backend.0, length as u64, begins);
    if carry.record.rules.any(Rules::COUNTED) {
        row.vip(carry.record_index, length as u64, begins);
    }
}

/// Whether a flow is remembered here, and its backend lives.
#[inline(always)]
pub fn is_known(hash: u64, flow: &Flow, backends: &impl lb_common::Lines) -> bool {
    // Only of a SYN it matters when it comes.
    matches!(known(hash, flow, Kind::Segment, 0, backends), Known::Flow { .. })
}

/// When the flow of a packet began.
enum Since {
    Now,
    Earlier,
    /// So lately noted that this packet need not be.
    Leased,
}

enum Known {
    Flow {
        backend: BackendId,
        port: u16,
    },
    Nobody,
    /// The packet begins another flow on the same ports.
    Over,
    Stranger,
}

/// The remembered flow. One whose backend is gone, or whose port was given to another one, is forgotten, so that
/// the client's next packet begins anew with a backend that lives. So does a SYN, if the flow is over; until
/// there is another backend for it, what is remembered stays.
#[inline(always)]
fn known(hash: u64, flow: &Flow, kind: Kind, now: u32, backends: &impl lb_common::Lines) -> Known {
    let Some(entry) = maps::NAT_FORWARD.get_ptr(hash) else { return Known::Nobody };
    // SAFETY: as in `to_client`.
    let entry = unsafe { &*entry };
    if entry.flow != *flow {
        return Known::Stranger;
    }
    let backend = BackendId(entry.backend);
    let identity = backend::identity(backends, backend);
    let reverse = own_reverse(entry, hash).filter(|_| identity.generation() == entry.generation);
    let Some(reverse) = reverse else {
        forget(hash);
        return Known::Nobody;
    };
    if kind == Kind::Syn && entry.is_over(reverse, identity, now) {
        return Known::Over;
    }
    Known::Flow { backend, port: entry.snat_port }
}

/// The other direction of a flow, while its port is its own.
#[inline(always)]
pub fn own_reverse(entry: &Forward, hash: u64) -> Option<&'static Reverse> {
    let reverse = maps::NAT_REVERSE.get_ptr(entry.reverse_key)?;
    // SAFETY: as in `to_client`.
    let reverse = unsafe { &*reverse };
    (reverse.forward_key == hash).then_some(reverse)
}

/// Forgets a flow in both directions: its port is free again, and no lease leads where it went.
#[inline(never)]
pub fn forget(hash: u64) {
    let Some(entry) = maps::NAT_FORWARD.get_ptr(hash) else { return };
    // SAFETY: as in `to_client`.
    let entry = unsafe { &*entry };
    if own_reverse(entry, hash).is_some() {
        let _ = maps::NAT_REVERSE.remove(entry.reverse_key);
    }
    let _ = maps::NAT_FORWARD.remove(hash);
    end_lease(hash);
}

/// Whether a flow leaves its entry to another; `None`: it has none.
#[inline(always)]
pub fn gives_room(hash: u64, now: u32) -> Option<bool> {
    // SAFETY: as in `to_client`.
    let entry = unsafe { &*maps::NAT_FORWARD.get_ptr(hash)? };
    Some(own_reverse(entry, hash).is_none_or(|reverse| reverse.gives_room(entry, now)))
}

/// Lets the flow's next packet ask what is remembered.
#[inline(never)]
fn end_lease(hash: u64) {
    lease::end(&maps::tables(), hash);
}

/// Notes that the client sent something more, and from where if that changed. Returns its [`state`].
#[inline(always)]
fn refresh(packet: &Packet, carry: &Carry, now: u32, client: NextHop) -> u16 {
    let Some(entry) = maps::NAT_FORWARD.get_ptr_mut(carry.hashes.flow) else { return state::BEGUN };
    // SAFETY: as in `to_client`; the fields written are hints about time and closing.
    let entry = unsafe { &mut *entry };
    let mut before = entry.state;
    if before & state::BEGUN != 0 {
        cold_path();
        if goes_on(packet, carry, entry, now) {
            before &= !state::BEGUN;
        }
    }
    let after = state_after(before, carry.tcp_flags as u8);
    if entry.seen != now {
        entry.seen = now;
    }
    if entry.state != after {
        entry.state = after;
    }
    let sender = sender_tag(client, carry.tags);
    // What an agent hands on came to the wrong place: the way back is what it was.
    if entry.client_mac == sender || former::is_agent(client) {
        return after;
    }
    entry.client_mac = sender;
    if let Some(reverse) = maps::NAT_REVERSE.get_ptr_mut(entry.reverse_key) {
        // SAFETY: as above.
        let reverse = unsafe { &mut *reverse };
        (reverse.client, reverse.tags) = (client, carry.tags);
    }
    after
}

/// Whether a packet of a flow that has begun shows that its client goes on.
#[inline(always)]
fn goes_on(packet: &Packet, carry: &Carry, entry: &Forward, now: u32) -> bool {
    let Some(reverse) = own_reverse(entry, carry.hashes.flow) else { return false };
    let flags = carry.tcp_flags as u8;
    // No later fragment has flags.
    let acknowledged = match flags & tcp_flag::ACK {
        0 => None,
        _ => {
            packet.view_at::<20>(carry.l4 as usize).map(|tcp| tcp.read::<u32>(TCP_ACKNOWLEDGED).swap_bytes())
        }
    };
    entry.goes_on(reverse, kind(carry.flow.proto as u8, flags), acknowledged, now)
}

/// Notes what an answer with these TCP flags shows of its backend; `sequence`: its number, in wire order.
#[inline(always)]
pub fn answered(entry: &mut Reverse, flags: u8, sequence: impl FnOnce() -> Option<u32>) {
    if flags & tcp_flag::BEGIN_OR_END == 0 && state::is_alive(entry.state) {
        return;
    }
    cold_path();
    // Neither a reset nor a datagram or a later fragment, which have no flags.
    if flags & (tcp_flag::ACK | tcp_flag::RST) == tcp_flag::ACK
        && let Some(sequence) = sequence()
    {
        entry.offer(sequence.swap_bytes(), flags & tcp_flag::SYN != 0);
    }
    entry.state = state_after(entry.state, flags);
}

#[inline(always)]
fn translate<F: Family>(packet: &Packet, carry: &Carry, head: &F::Head, new: &Flow, hops: u8) {
    let delta = F::rewrite(head, &carry.flow, new, hops);
    rewrite_transport(packet, carry.at(), new, delta);
}

/// Where answers to this packet go: back to the MAC it came from.
#[inline(always)]
fn sender(ctx: &XdpContext, packet: &Packet) -> Option<NextHop> {
    let ether = packet.view::<{ crate::parse::ETHERNET }>()?;
    let (first, second): (u64, u32) = (ether.read(0), ether.read(8));
    // Bytes 0-5 destination, 6-11 source; swapped.
    let source = first >> 48 | (second as u64) << 16;
    let own = first & 0xffff_ffff_ffff;
    Some(NextHop {
        head: source | own << 48,
        tail: (own >> 16) as u32,
        ifindex: ctx.ingress_ifindex() as u32,
    })
}

/// What tells where a client's packets come from: the last four bytes of the sender's MAC (the vendor's part seldom tells two
/// routers apart), tags and interface. One MAC is on several where it is a virtual router's (RFC 5798).
#[inline(always)]
pub fn sender_tag(client: NextHop, tags: Tags) -> u32 {
    (client.head >> 16) as u32 ^ tags.0 ^ client.ifindex.rotate_left(16)
}

/// Bits of [`state`] after a packet with these TCP flags.
#[inline(always)]
pub fn state_after(before: u16, flags: u8) -> u16 {
    let mut bits = state::SEEN;
    if flags & tcp_flag::FIN != 0 {
        bits |= state::FIN;
    }
    if flags & tcp_flag::RST != 0 {
        bits |= state::RST;
    }
    let sent = if flags & tcp_flag::SYN != 0 { state::Sent::Syn } else { state::Sent::Other };
    state::after(before, sent, bits)
}

const _: () = assert!(TCP == 6);

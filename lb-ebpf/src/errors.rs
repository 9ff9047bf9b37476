//! ICMP errors about clients' packets that a backend on this host, or the stack in front of it, could not take:
//! no such port, too large, a filter's refusal. They quote a packet to the backend, of which the client never
//! heard; on their way out they become errors of the VIP about what the client sent.

use aya_ebpf::programs::TcContext;
use lb_common::{Addr, Flow, TCP, UDP, csum::Delta};

use crate::{
    headers::{Behind, Part, penstock_chain_out},
    icmp::Message,
    out,
    parse::{V4, V6},
};

/// Offsets within headers.
const TCP_CSUM: usize = 16;
const UDP_CSUM: usize = 6;
const V4_CSUM: usize = 10;

/// An IPv4 packet to `client` whose header begins at `l3` and whose ICMP message at `l4`.
#[inline(never)]
pub fn v4(ctx: &TcContext, l3: usize, l4: usize, client: u32) -> Option<()> {
    let (kind, at) = (ctx.load(l4).ok()?, l4 + 8);
    let [first, second, third, src, dst]: [u32; 5] = ctx.load(at).ok()?;
    let length = (first & 15) as usize * 4;
    // Wire order of the fragment offset; only the first fragment has ports.
    let later = (second >> 16) & 0xff1f != 0;
    if !V4::is_error(kind) || first as u8 >> 4 != 4 || length < 20 || later || src != client {
        return None;
    }
    let proto = (third >> 8) as u8;
    let Seen { asked, message, .. } = seen(ctx, at + length, Addr::v4(src), Addr::v4(dst), proto)?;
    let vip = asked.dst.raw_v4();
    // The quoted header's own checksum changes against its address: the message's does not notice.
    let inside: u16 = ctx.load(at + V4_CSUM).ok()?;
    ctx.store(at + V4_CSUM, &Delta::new().word(dst, vip).apply(inside), 0).ok()?;
    ctx.store(at + 16, &vip, 0).ok()?;
    let csum: u16 = ctx.load(l4 + 2).ok()?;
    ctx.store(l4 + 2, &message.apply(csum), 0).ok()?;
    let sender: u32 = ctx.load(l3 + 12).ok()?;
    ctx.l3_csum_replace(l3 + V4_CSUM, 0, Delta::new().word(sender, vip).wide() as u64, 0).ok()?;
    ctx.store(l3 + 12, &vip, 0).ok()
}

/// The same for IPv6, whose messages have the addresses in their checksum.
#[inline(never)]
pub fn v6(ctx: &TcContext, l3: usize, l4: usize, client: &Addr) -> Option<()> {
    let (kind, at) = (ctx.load(l4).ok()?, l4 + 8);
    let head: [u32; 2] = ctx.load(at).ok()?;
    let [src, dst]: [Addr; 2] = ctx.load(at + 8).ok()?;
    if !V6::is_error(kind) || head[0] as u8 >> 4 != 6 || src != *client {
        return None;
    }
    let next = (head[1] >> 16) as u8;
    let Behind { part, proto, l4: ports, .. } =
        Behind::unpack(penstock_chain_out(ctx.skb.skb, at as u32 + 40, next as u32));
    if !matches!(part, Part::Whole | Part::First) {
        return None;
    }
    let Seen { asked, message, addresses } = seen(ctx, ports, src, dst, proto)?;
    ctx.store(at + 24, &asked.dst, 0).ok()?;
    let sender: Addr = ctx.load(l3 + 8).ok()?;
    let outside = Delta::new().long(sender.hi, asked.dst.hi).long(sender.lo, asked.dst.lo);
    let csum: u16 = ctx.load(l4 + 2).ok()?;
    ctx.store(l4 + 2, &message.and(addresses).and(outside).apply(csum), 0).ok()?;
    ctx.store(l3 + 8, &asked.dst, 0).ok()
}

/// What the client sent, and what the message's checksum has to follow.
struct Seen {
    asked: Flow,
    /// Of the quoted transport header.
    message: Delta,
    /// Of the quoted addresses.
    addresses: Delta,
}

/// Rewrites the quoted transport header at `l4`, as far as it was quoted, to what the client sent.
#[inline(always)]
fn seen(ctx: &TcContext, l4: usize, src: Addr, dst: Addr, proto: u8) -> Option<Seen> {
    if proto != TCP && proto != UDP {
        return None;
    }
    let ports: u32 = ctx.load(l4).ok()?;
    let answer = Flow { src: dst, dst: src, ports: ports.rotate_left(16), proto: proto as u32 };
    let reply = out::flow(&answer)?.reply;
    let asked =
        Flow { src: reply.dst, dst: reply.src, ports: reply.ports.rotate_left(16), proto: proto as u32 };
    let addresses = Delta::new().long(dst.hi, asked.dst.hi).long(dst.lo, asked.dst.lo);
    let transport = addresses.word(ports, asked.ports);
    let mut message = Delta::new().word(ports, asked.ports);
    ctx.store(l4, &asked.ports, 0).ok()?;
    let at = l4 + if proto == TCP { TCP_CSUM } else { UDP_CSUM };
    if let Ok(csum) = ctx.load::<u16>(at) {
        let after = if proto == TCP { transport.apply(csum) } else { transport.apply_udp(csum) };
        ctx.store(at, &after, 0).ok()?;
        message = message.word(csum as u32, after as u32);
    }
    Some(Seen { asked, message, addresses })
}

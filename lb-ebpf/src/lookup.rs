//! sk_lookup: hands a connection to a punted VIP to one of the proxy's workers.

use aya_ebpf::{bindings::bpf_sk_lookup, macros::sk_lookup, programs::SkLookupContext};
use lb_common::{Addr, AddrEntry, Flow, TCP, VipEntry, config, maps as names, wire_port};

use crate::maps;

const DROP: u32 = 0;
const PASS: u32 = 1;
const AF_INET: u32 = 2;

/// Asked by the stack for every new connection and unconnected datagram. Everything that is not a
/// punted VIP goes on to the ordinary lookup; who may not use one finds nobody.
#[sk_lookup]
pub fn penstock_lookup(ctx: SkLookupContext) -> u32 {
    assign(&ctx).unwrap_or(PASS)
}

#[inline(always)]
fn assign(ctx: &SkLookupContext) -> Option<u32> {
    // SAFETY: the context is the program's own and valid for the whole run.
    let lookup: &bpf_sk_lookup = unsafe { &*ctx.lookup };
    if lookup.protocol != TCP as u32 {
        return None;
    }
    let tables = maps::tables();
    let (config, addrs, vips) = (tables.config(), tables.addrs(), tables.vips());
    let epoch = config::epoch(&config);
    let workers = config::workers(&config) as u32;
    if epoch.is_empty() || workers == 0 {
        return None;
    }
    let ipv6 = lookup.family != AF_INET;
    // All words are loaded before the branch: the verifier wants every field of the context at a
    // constant offset, and LLVM would otherwise join the two branches' loads into one.
    let (remote_v4, local_v4) = (load(&lookup.remote_ip4), load(&lookup.local_ip4));
    let (remote_v6, local_v6) = (v6(&lookup.remote_ip6), v6(&lookup.local_ip6));
    let (src, dst) = if ipv6 { (remote_v6, local_v6) } else { (Addr::v4(remote_v4), Addr::v4(local_v4)) };
    let addr = AddrEntry::find(&addrs, epoch, dst);
    if addr.is_none() {
        return None;
    }
    // `local_port` is in host order, `remote_port` in network order.
    let port = wire_port(lookup.local_port as u16);
    let vip = VipEntry::find(&vips, epoch, VipEntry::key(addr, port, TCP));
    if !vip.is_punted() {
        return None;
    }
    // What came by an interface with the XDP program was asked there; the local route of the VIP lets all others in,
    // and this host itself, which asks by the VIP's own address.
    if vip.is_restricted() && src != dst && !maps::may_use(vip.record(), &src) {
        return Some(DROP);
    }
    let flow = Flow { src, dst, ports: Flow::ports(lookup.remote_port, port), proto: TCP as u32 };
    let worker = (flow.hash(config::hash_key(&config)) >> 32) as u32 % workers;
    let index = names::socket_index(vip.is_https(), ipv6, worker);
    maps::SOCKETS.redirect_sk_lookup(ctx, index, 0).ok()?;
    Some(PASS)
}

#[inline(always)]
fn v6(words: &[u32; 4]) -> Addr {
    let [a, b, c, d] = words;
    let (a, b, c, d) = (load(a), load(b), load(c), load(d));
    Addr { hi: a as u64 | (b as u64) << 32, lo: c as u64 | (d as u64) << 32 }
}

#[inline(always)]
fn load(word: &u32) -> u32 {
    // SAFETY: a reference is always readable; volatile keeps the load where it stands.
    unsafe { core::ptr::from_ref(word).read_volatile() }
}

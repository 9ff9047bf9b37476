//! What [`ABI_VERSION`] is the version of, as one number that a change of any of it changes.

use core::mem::offset_of;
use std::vec::Vec;

use crate::config::{self, Settings};
use crate::flows::{self, Entry};
use crate::maps::{self, at, count, row};
use crate::nat::{Forward, Reverse, state};
use crate::shortcut::{self, Folded, Key};
use crate::verdict::Event;
use crate::{
    ABI_VERSION, Addr, AddrEntry, Backend, BackendId, Descriptor, Epoch, Flow, HashKey, Mac, Mode, Record,
    Rules, Slot, TCP, Tag, Tags, Verdict, VipEntry, backend, capture, lease, tunnel,
};

/// The version, and the layout that it names. Who changes the layout raises the version, or an agent would take
/// tables over that it reads wrongly.
const LAYOUT: (u32, u64) = (11, 0x2719_f2e2_ea5e_f483);

/// Values that make every bit of a layout show.
fn words() -> Vec<u64> {
    let key = HashKey::expand(*b"a secret of ours");
    let addr = |number: u64| Addr { hi: 0x1111_0000 + number, lo: 0x2222_0000 + number };
    let flow = Flow { src: addr(1), dst: addr(2), ports: 0x3333_4444, proto: TCP.into() };
    let (customer, service) = (Tag::customer(0x123), Tag::service(0x456));
    let tags = Tags::one(customer).within(service).expect("two fit");
    let line = |mode, tags, draining| {
        let hop = backend::NextHop::new(Mac([1, 2, 3, 4, 5, 6]), Mac([7, 8, 9, 10, 11, 12]), 13);
        let (wire_port, generation, mtu, pool_tag, tunnel_tag) = (14, 15, 16, 17, 18);
        let (addr, source, inner) = (addr(3), addr(4), addr(5));
        let next_hop = hop;
        Backend {
            addr,
            source,
            next_hop,
            tags,
            wire_port,
            mode,
            draining,
            generation,
            mtu,
            pool_tag,
            inner,
            tunnel_tag,
        }
    };
    let settings = Settings {
        key,
        nat_first: 19,
        nat_count: 20,
        workers: 21,
        flow_bits: 22,
        tunnel_port: 23,
        capturing: true,
        grace: 24,
    };
    let vip_key = VipEntry::key(AddrEntry::vip(25), 26, TCP);
    let descriptor = Descriptor::settled(27 * Descriptor::UNIT, 11, 28);
    let rules =
        [Rules::TRANSLATED, Rules::AFFINITY, Rules::CONSERVATIVE, Rules::HERE, Rules::REJECT, Rules::COUNTED];
    let record = Record {
        descriptor: descriptor.contested(29 * Descriptor::UNIT),
        rules: Rules::new(rules.iter().sum(), 30, 31),
        ranges: 32,
    };
    let states =
        [state::FIN, state::RST, state::SEEN, state::LOCAL, state::TUNNEL_V4, state::TUNNEL_V6, state::BEGUN];

    let mut words: Vec<u64> = Vec::new();
    // Where things stand.
    let places = [
        at::CONFIG,
        at::INTERFACES,
        at::ADDRS,
        at::VIPS,
        at::RECORDS,
        at::BACKENDS,
        at::POOL,
        at::FLOWS,
        at::LEASES,
        at::FILTER,
        at::END,
        count::PACKETS,
        count::BYTES,
        count::FLOWS,
        count::WORDS,
        row::VERDICTS,
        row::CLOCK,
        row::BACKENDS,
        row::VIPS,
        row::END,
        config::ABI_WORD,
        config::BORN_WORD,
        config::PAST_WORD,
        capture::HEAD,
        AddrEntry::WAYS,
        VipEntry::WAYS,
        shortcut::KEY_WORD,
    ];
    words.extend(places.map(|place| place as u64));
    let sizes =
        [maps::ADDR_LINES, maps::VIP_LINES, flows::WAYS, lease::WAYS, shortcut::WAYS, maps::RANGE_BITS];
    words.extend(sizes.map(u64::from));
    let fields = [
        size_of::<Flow>(),
        offset_of!(Flow, src),
        offset_of!(Flow, dst),
        offset_of!(Flow, ports),
        offset_of!(Flow, proto),
        size_of::<Forward>(),
        offset_of!(Forward, flow),
        offset_of!(Forward, reverse_key),
        offset_of!(Forward, seen),
        offset_of!(Forward, backend),
        offset_of!(Forward, generation),
        offset_of!(Forward, snat_port),
        offset_of!(Forward, state),
        offset_of!(Forward, client_mac),
        size_of::<Reverse>(),
        offset_of!(Reverse, flow),
        offset_of!(Reverse, reply),
        offset_of!(Reverse, client),
        offset_of!(Reverse, tags),
        offset_of!(Reverse, forward_key),
        offset_of!(Reverse, seen),
        offset_of!(Reverse, backend),
        offset_of!(Reverse, state),
    ];
    words.extend(fields.map(|field| field as u64));
    // What they say.
    words.push(Epoch::new(1, 12, 13, 33).0);
    words.extend(settings.words());
    words.extend([
        maps::interface(Mac([1, 2, 3, 4, 5, 6])),
        maps::NO_XDP_TX,
        maps::SHOWN,
        AddrEntry::vip(34).0.into(),
        AddrEntry::node(35).0.into(),
        AddrEntry::OVERFLOW,
    ]);
    words.extend([VipEntry::balanced(vip_key, 36).0, VipEntry::balanced(vip_key, 36).restricted(37).0]);
    words.extend([VipEntry::punted(vip_key, false).0, VipEntry::punted(vip_key, true).0, VipEntry::OVERFLOW]);
    words.extend(record.words());
    words.extend(shortcut::ADDR_WORDS.map(|word| word as u64));
    words.extend([shortcut::MORE_WORD as u64, shortcut::SEED_WORD as u64]);
    words.push(descriptor.0);
    words.extend(rules);
    words.extend([Slot::settled(BackendId(38)).0, Slot::contested(BackendId(38)).0].map(u64::from));
    for mode in [Mode::L2, Mode::Ipip, Mode::Tunnel, Mode::Nat, Mode::Local] {
        words.push(mode as u64);
        words.extend(
            [line(mode, Tags::NONE, false), line(mode, tags, true)]
                .map(|line| line.words())
                .concat()
                .concat(),
        );
    }
    let here = |mode| Backend { next_hop: backend::NextHop::HERE, ..line(mode, Tags::NONE, false) };
    words.extend([Mode::L2, Mode::Ipip].map(|mode| here(mode).words()).concat().concat());
    words.extend([tags.0, Tags::one(customer).0, Tags::one(service).0].map(u64::from));
    words.extend([Entry::new(39, BackendId(40), 41).0, Entry::new(39, BackendId(40), 41).spare(true).0]);
    words.push(lease::Lease::new(BackendId(42), 43, 44, 45).0);
    words.extend(states.map(u64::from));
    words.push(maps::tag_key(46, 47));
    words.extend(maps::former_key(addr(53), 54));
    words.extend([maps::socket_index(true, false, 48), maps::socket_index(false, true, 48)].map(u64::from));
    // What finds them.
    words.extend([flow.hash_v4(key), flow.hash_v6(key), flows::source_hash(&flow, 49, key)]);
    words.extend(
        [addr(50).bucket(14), VipEntry::bucket(vip_key, 14), descriptor.pool_index(flow.hash(key))]
            .map(u64::from),
    );
    let folded = [Folded::of(addr(53)), Folded::v4(54)];
    let keys = folded.map(|dst| Key::new(dst, 55, TCP));
    words.extend(folded.map(|dst| u64::from(dst.byte())));
    words.extend(keys.map(|key| key.0));
    words.extend(keys.map(|key| u64::from(key.line())));
    words.extend([tunnel::cluster(key), tunnel::tag(addr(51), 52, TCP, key)].map(u64::from));
    words.extend([flows::clock(1 << 50), lease::stamp(1 << 20).into()].map(u64::from));
    words
}

/// FNV-1a.
fn fingerprint() -> u64 {
    let names = Verdict::ALL.iter().map(|it| it.as_str()).chain(Event::ALL.iter().map(|it| it.as_str()));
    let numbers = Verdict::ALL.iter().map(|it| *it as u64).chain(Event::ALL.iter().map(|it| *it as u64));
    let bytes =
        words().into_iter().chain(numbers).flat_map(u64::to_le_bytes).chain(names.flat_map(str::bytes));
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

#[test]
fn a_layout_that_changes_has_another_version() {
    let now = (ABI_VERSION, fingerprint());
    assert!(
        now == LAYOUT,
        "what kernel and agent agree on is {now:#x?} and was {LAYOUT:#x?}: raise ABI_VERSION, and say both in LAYOUT"
    );
}

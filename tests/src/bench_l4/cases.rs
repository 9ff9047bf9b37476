//! The cases as data: which world, which program, which frame, what has to become of it and what
//! it may cost.

use lb_common::tunnel::{self, Round};
use lb_common::verdict::{Event, Verdict};

use super::worlds::{self, Which};
use crate::packet::{ACK, Packet, SYN, tcp, udp};
use crate::world::{self, backend_mac};

/// One row.
#[derive(Clone)]
pub struct Case {
    /// As printed, and in JSON.
    pub name: &'static str,
    /// What is installed.
    pub world: Which,
    /// What is run.
    pub program: &'static str,
    /// How the packet is put back between runs; `None` where nothing has to be.
    pub wrapper: Option<Wrapper>,
    /// The packet.
    pub frame: Vec<u8>,
    /// What each flow begins with before it is measured, where that is another packet.
    pub first: Option<Vec<u8>>,
    /// Flows, a power of two; 0: every packet is a new one.
    pub flows: u32,
    /// VIPs that packets are spread over; 0: that of the frame.
    pub vips: u32,
    /// Bytes of an encapsulation; below 0: that is taken off.
    pub grow: i32,
    /// XDP action.
    pub action: u32,
    /// What the program counts every packet as, where it counts.
    pub verdict: Option<Verdict>,
    /// What it counts for nearly every packet beside that.
    pub event: Option<Event>,
    /// Most that it may cost in units of the MAC swap.
    pub goal: Option<f64>,
}

/// What stands around the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wrapper {
    /// Nothing is run but the wrapper.
    Alone,
    /// The program is; the row `alone` says what the wrapper costs.
    Around {
        /// Name of that row.
        alone: &'static str,
    },
}

const PASS: u32 = 2;
const TX: u32 = 3;

const ONE: u32 = 1;
const SOME: u32 = 1 << 16;
const MANY: u32 = 1 << 20;
const ALL_NEW: u32 = 0;

/// What `ipip` and `tunnel` put in front, by family.
const WRAPPED: [i32; 2] = [20, 40];
const TUNNELLED: [i32; 2] = [tunnel::OVERHEAD_V4 as i32, tunnel::OVERHEAD_V6 as i32];

/// Every case, floors first, in the order of the report.
pub fn all() -> Vec<Case> {
    let mut cases = floors();
    cases.extend(steering("v4"));
    cases.extend(steering("v6"));
    cases.extend(sizes());
    cases
}

/// The same work on more of everything: rows of a table of their own, each with the row that it is
/// to be compared with.
pub const COMPARED: &[(&str, &str)] = &[
    ("flows-64k", "small"),
    ("flows-1m", "small"),
    ("vips-4000", "small"),
    ("backends-10000", "small"),
    ("backends-10000-64k", "flows-64k"),
    ("vips-4000-spread", "flows-64k"),
];

/// IPv6 twins and what they are twins of.
pub fn families() -> impl Iterator<Item = (&'static str, &'static str)> {
    rows().into_iter().map(|Row { name: [v4, v6], .. }| (v6, v4))
}

/// Settled tables of several sizes.
fn sizes() -> Vec<Case> {
    let base = Case {
        name: "small",
        world: Which::Small,
        program: "bench_vary_v4",
        wrapper: Some(Wrapper::Around { alone: "vary-v4" }),
        frame: frame(0, [worlds::SIZED, ""], ACK),
        first: None,
        flows: ONE,
        vips: 0,
        grow: WRAPPED[0],
        action: TX,
        verdict: Some(Verdict::ForwardedIpip),
        event: None,
        goal: None,
    };
    vec![
        base.clone(),
        Case { name: "flows-64k", flows: SOME, ..base.clone() },
        Case { name: "flows-1m", flows: MANY, ..base.clone() },
        Case { name: "vips-4000", world: Which::Vips, ..base.clone() },
        Case { name: "backends-10000", world: Which::Backends, ..base.clone() },
        Case { name: "backends-10000-64k", world: Which::Backends, flows: SOME, ..base.clone() },
        Case { name: "vips-4000-spread", world: Which::Vips, flows: SOME, vips: worlds::VIPS.into(), ..base },
    ]
}

/// A case of one family as [`steering`] lists them: everything but what follows from the family.
#[derive(Clone, Copy)]
struct Row {
    name: [&'static str; 2],
    world: [Which; 2],
    wrap: Wrap,
    to: [&'static str; 2],
    /// The frames come from another balancer.
    tunnelled: bool,
    flags: u8,
    /// Each flow begins with a SYN.
    begun: bool,
    flows: u32,
    grow: [i32; 2],
    action: u32,
    verdict: Option<Verdict>,
    event: Option<Event>,
    goal: Option<f64>,
}

/// Which of the wrappers.
#[derive(Clone, Copy)]
enum Wrap {
    /// The packet comes out as it went in.
    None,
    /// It comes out longer.
    Undo,
    /// Longer, and each belongs to another flow.
    Vary,
    /// Each belongs to another flow, and addresses, ports and checksums are rewritten.
    Renew,
    /// The same, and it comes out shorter.
    Rewrap,
}

fn rows() -> Vec<Row> {
    use worlds::{CONTESTED, IPIP, L2, LOCAL, NAT, NOT_OURS, TUNNEL};
    let base = Row {
        name: [""; 2],
        world: [Which::Main; 2],
        wrap: Wrap::None,
        to: NOT_OURS,
        tunnelled: false,
        flags: ACK,
        begun: false,
        flows: ONE,
        grow: [0; 2],
        action: TX,
        verdict: None,
        event: None,
        goal: None,
    };
    let ipip = Row { to: IPIP, grow: WRAPPED, verdict: Some(Verdict::ForwardedIpip), ..base };
    let vary = Row { wrap: Wrap::Vary, ..ipip };
    let local = Row {
        name: ["local-v4-64k", "local-v6-64k"],
        world: [Which::Local; 2],
        wrap: Wrap::Renew,
        to: LOCAL,
        begun: true,
        flows: SOME,
        action: PASS,
        verdict: Some(Verdict::ForwardedLocal),
        goal: Some(9.0),
        ..base
    };
    vec![
        Row { name: ["not-ours-v4", "not-ours-v6"], action: PASS, goal: Some(1.2), ..base },
        Row {
            name: ["l2-v4", "l2-v6"],
            to: L2,
            verdict: Some(Verdict::ForwardedL2),
            goal: Some(1.7),
            ..base
        },
        Row { name: ["ipip-v4", "ipip-v6"], wrap: Wrap::Undo, goal: Some(2.6), ..ipip },
        Row { name: ["ipip-v4-1m", "ipip-v6-1m"], flows: MANY, goal: Some(3.2), ..vary },
        Row {
            name: ["ipip-v4-synflood", "ipip-v6-synflood"],
            flags: SYN,
            flows: ALL_NEW,
            goal: Some(3.5),
            ..vary
        },
        Row {
            name: ["contested-v4-64k", "contested-v6-64k"],
            world: [Which::ContestedV4, Which::ContestedV6],
            to: CONTESTED,
            begun: true,
            flows: SOME,
            event: Some(Event::FlowHit),
            goal: Some(6.0),
            ..vary
        },
        Row {
            name: ["nat-v4-64k", "nat-v6-64k"],
            wrap: Wrap::Renew,
            to: NAT,
            begun: true,
            flows: SOME,
            verdict: Some(Verdict::ForwardedNat),
            goal: Some(9.0),
            ..base
        },
        local,
        Row {
            name: ["tunnel-v4", "tunnel-v6"],
            wrap: Wrap::Undo,
            to: TUNNEL,
            grow: TUNNELLED,
            verdict: Some(Verdict::ForwardedTunnel),
            goal: Some(2.6),
            ..base
        },
        Row {
            name: ["tunnel-here-v4-64k", "tunnel-here-v6-64k"],
            world: [Which::Here; 2],
            wrap: Wrap::Rewrap,
            tunnelled: true,
            grow: TUNNELLED.map(|bytes| -bytes),
            goal: None,
            ..local
        },
    ]
}

fn floors() -> Vec<Case> {
    let frame = |v6: bool| frame(usize::from(v6), worlds::L2, ACK);
    let bare = |name, program, action| Case {
        name,
        world: Which::Main,
        program,
        wrapper: None,
        frame: frame(false),
        first: None,
        flows: ONE,
        vips: 0,
        grow: 0,
        action,
        verdict: None,
        event: None,
        goal: None,
    };
    let alone = |name, program, v6, grow| Case {
        wrapper: Some(Wrapper::Alone),
        frame: frame(v6),
        flows: MANY,
        grow,
        ..bare(name, program, TX)
    };
    vec![
        bare("pass", "bench_pass", PASS),
        bare("mac-swap", "bench_swap", TX),
        bare("adjust-head-twice", "bench_adjust", TX),
        alone("undo-v4", "bench_undo", false, 20),
        alone("undo-v6", "bench_undo", true, 40),
        alone("vary-v4", "bench_vary_v4", false, 20),
        alone("vary-v6", "bench_vary_v6", true, 40),
        alone("restore-v4", "bench_renew_v4", false, 0),
        alone("restore-v6", "bench_renew_v6", true, 0),
        Case {
            frame: tunnelled(0, worlds::LOCAL, ACK),
            ..alone("rewrap-v4", "bench_rewrap_v4", false, -TUNNELLED[0])
        },
        Case {
            frame: tunnelled(1, worlds::LOCAL, ACK),
            ..alone("rewrap-v6", "bench_rewrap_v6", true, -TUNNELLED[1])
        },
    ]
}

fn steering(family: &str) -> Vec<Case> {
    let at = usize::from(family == "v6");
    rows().into_iter().map(|row| case(&row, at)).collect()
}

fn case(row: &Row, at: usize) -> Case {
    let v6 = at == 1;
    let pick = |v4, v6_| if v6 { v6_ } else { v4 };
    let (program, alone) = match row.wrap {
        Wrap::None => ("penstock", None),
        Wrap::Undo => ("bench_undo", Some(pick("undo-v4", "undo-v6"))),
        Wrap::Vary => (pick("bench_vary_v4", "bench_vary_v6"), Some(pick("vary-v4", "vary-v6"))),
        Wrap::Renew => (pick("bench_renew_v4", "bench_renew_v6"), Some(pick("restore-v4", "restore-v6"))),
        Wrap::Rewrap => (pick("bench_rewrap_v4", "bench_rewrap_v6"), Some(pick("rewrap-v4", "rewrap-v6"))),
    };
    let Row {
        name,
        world,
        wrap: _,
        to,
        tunnelled: is_tunnelled,
        flags,
        begun,
        flows,
        grow,
        action,
        verdict,
        event,
        goal,
    } = row;
    let frame = if *is_tunnelled { tunnelled } else { frame };
    Case {
        name: name[at],
        world: world[at],
        program,
        wrapper: alone.map(|alone| Wrapper::Around { alone }),
        frame: frame(at, *to, *flags),
        first: begun.then(|| frame(at, *to, SYN)),
        flows: *flows,
        vips: 0,
        grow: grow[at],
        action: *action,
        verdict: *verdict,
        event: *event,
        goal: *goal,
    }
}

/// A TCP segment whose destination MAC is the first backend's already: rewriting it again changes
/// nothing, and the program's check of the MAC passes every time.
fn frame(at: usize, to: [&str; 2], flags: u8) -> Vec<u8> {
    let from = ["10.0.0.0:1024", "[2001:db8:2::]:1024"];
    let payload = vec![0; 26];
    Packet { dst_mac: backend_mac(1), payload, flags, ..tcp(from[at], to[at]) }.bytes()
}

/// The same as another balancer sends it here, for a backend of ours.
fn tunnelled(at: usize, to: [&str; 2], flags: u8) -> Vec<u8> {
    let tag = world::tunnel_tag(worlds::HERE[at], lb_common::TCP);
    let payload = world::tunnelled(&frame(at, to, flags), Round::First, tag, 0);
    let from = [worlds::PEER[at], worlds::NODE[at]];
    Packet { dst_mac: backend_mac(1), payload, no_csum: true, ..udp(from[0], from[1]) }.bytes()
}

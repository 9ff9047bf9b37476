//! Segments of connections that this host does not know go back to who held their VIP before.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::net::{SocketAddr, TcpListener, TcpStream};

use lb_common::Mac;
use lb_tests::packet::{FIN, OURS, Packet, SYN, tcp};
use lb_tests::world::{LOOPBACK, World, can_run_programs};
use penstock::datapath::Formers;
use penstock::datapath::engine::Engine;
use penstock::model::announce::{Announced, Former};
use penstock::model::l4::{ForwardingMode, Listener, Protocol};

use crate::run::{Does, Pass, Send, count, run};

const FORMER: Mac = Mac([0x02, 0, 0, 0, 0, 0x51]);
const AGENT: Mac = Mac([0x02, 0, 0, 0, 0, 0x52]);
const RST: u8 = 4;

/// A listener of this host stands for the proxy's, its address for a VIP.
struct Proxy {
    listener: TcpListener,
    vip: SocketAddr,
    /// Of nobody's connection.
    stranger: String,
}

impl Proxy {
    fn all() -> [Self; 2] {
        [("127.0.0.9:0", "198.51.100.7:40000"), ("[::1]:0", "[2001:db8:2::7]:40000")].map(|(at, stranger)| {
            let listener = TcpListener::bind(at).expect("a port");
            let vip = listener.local_addr().expect("its address");
            Self { listener, vip, stranger: stranger.to_owned() }
        })
    }

    fn segment(&self, from: impl ToString) -> Packet {
        tcp(&from.to_string(), &self.vip.to_string())
    }
}

fn engine(proxies: &[Proxy]) -> (Engine, Formers) {
    let punt = |world: World, proxy: &Proxy| world.punt(&proxy.vip.to_string(), Listener::Http);
    let engine = proxies.iter().fold(World::new(), punt).load();
    engine.set_interface(LOOPBACK, OURS);
    let formers = engine.kernel.formers().expect("the maps");
    (engine, formers)
}

fn link(vips: &[SocketAddr]) -> Announced {
    let former = Former { name: "n2".to_owned(), mac: FORMER.0 };
    Announced {
        interface: "eth0".to_owned(),
        mac: OURS.0,
        agents: BTreeSet::from([FORMER.0, AGENT.0]),
        formers: vips.iter().map(|vip| (vip.ip(), former.clone())).collect(),
        ..Announced::default()
    }
}

fn sent_back(packet: &Packet) -> Does {
    Send(Packet { dst_mac: FORMER, src_mac: OURS, ..packet.clone() }.bytes())
}

fn tagged(frame: &[u8]) -> Vec<u8> {
    [&frame[..12], &[0x81, 0, 0, 5], &frame[12..]].concat()
}

#[test]
fn a_segment_that_no_socket_knows_goes_to_the_former_holder_once() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let proxies = Proxy::all();
    let (mut engine, mut formers) = engine(&proxies);
    for proxy in &proxies {
        assert_eq!(run(&mut engine, &proxy.segment(&proxy.stranger).bytes()), Pass, "nobody held it before");
    }
    formers.follow(&link(&proxies.each_ref().map(|proxy| proxy.vip))).expect("known");
    for proxy in &proxies {
        let vip = proxy.vip;
        let unknown = proxy.segment(&proxy.stranger);
        for (case, flags) in [("data", unknown.flags), ("the end", FIN | unknown.flags), ("a reset", RST)] {
            let segment = Packet { flags, ..unknown.clone() };
            let before = count(&engine, "forwarded-former");
            assert_eq!(run(&mut engine, &segment.bytes()), sent_back(&segment), "{case} to {vip}");
            assert_eq!(count(&engine, "forwarded-former"), before + 1, "{case} to {vip}");
        }
        let Send(expected) = sent_back(&unknown) else { unreachable!() };
        assert_eq!(run(&mut engine, &tagged(&unknown.bytes())), Send(tagged(&expected)), "tags stay: {vip}");

        let client = TcpStream::connect(vip).expect("connects");
        let (server, from) = proxy.listener.accept().expect("a connection");
        let stays = [
            ("a handshake", Packet { flags: SYN, ..unknown.clone() }),
            ("what another agent sent here", Packet { src_mac: AGENT, ..unknown.clone() }),
            ("what the former holder sent here", Packet { src_mac: FORMER, ..unknown.clone() }),
            ("a connection of this host", proxy.segment(from)),
        ];
        for (case, packet) in stays {
            let before = count(&engine, "punted");
            assert_eq!(run(&mut engine, &packet.bytes()), Pass, "{case}: {vip}");
            assert_eq!(count(&engine, "punted"), before + 1, "{case}: {vip}");
        }
        drop(server);
        let ended = (&client).read(&mut [0; 8]).expect("an end");
        assert_eq!(ended, 0);
        drop(client);
        assert_eq!(run(&mut engine, &proxy.segment(from).bytes()), Pass, "one that was closed: {vip}");
    }
}

#[test]
fn what_is_forgotten_is_left_to_the_stack_again() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let proxies = Proxy::all();
    let (mut engine, mut formers) = engine(&proxies);
    let [first, second] = &proxies;
    let [one, two] = [first, second].map(|proxy| proxy.segment(&proxy.stranger));

    formers.follow(&link(&[first.vip, second.vip])).expect("known");
    formers.follow(&Announced { interface: "eth1".to_owned(), ..link(&[]) }).expect("known");
    assert_eq!(run(&mut engine, &one.bytes()), sent_back(&one));
    assert_eq!(run(&mut engine, &two.bytes()), sent_back(&two));

    formers.follow(&link(&[second.vip])).expect("forgotten");
    assert_eq!(run(&mut engine, &one.bytes()), Pass);
    assert_eq!(run(&mut engine, &two.bytes()), sent_back(&two));
    // Taken over on a link where we have another hardware address: that frame came by another one.
    formers.follow(&Announced { mac: [2, 9, 9, 9, 9, 9], ..link(&[second.vip]) }).expect("another");
    assert_eq!(run(&mut engine, &two.bytes()), Pass);

    formers.follow(&Announced { formers: BTreeMap::new(), ..link(&[]) }).expect("forgotten");
    assert_eq!(run(&mut engine, &two.bytes()), Pass);
    assert_eq!(count(&engine, "forwarded-former"), 3);
}

/// Where a node balances over its own backends alone, its tables are no other's.
#[test]
fn a_segment_of_a_flow_that_no_backend_of_this_host_has_goes_to_the_former_holder_once() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    let flows = [
        ("203.0.113.1:80", "10.0.0.1:8080", "198.51.100.7:40000"),
        ("[2001:db8:1::1]:80", "[fd00::1]:8080", "[2001:db8:2::7]:40000"),
    ];
    for (vip, pod, client) in flows {
        let mut engine = World::new().service(Protocol::Tcp, vip, ForwardingMode::Local, &[pod]).load();
        engine.set_interface(LOOPBACK, OURS);
        let mut formers = engine.kernel.formers().expect("the maps");
        let vip: SocketAddr = vip.parse().expect("an address");
        let segment = tcp(client, &vip.to_string());
        formers.follow(&link(&[vip])).expect("known");

        for (case, flags) in [("data", segment.flags), ("the end", FIN | segment.flags), ("a reset", RST)] {
            let segment = Packet { flags, ..segment.clone() };
            assert_eq!(run(&mut engine, &segment.bytes()), sent_back(&segment), "{case} to {vip}");
        }
        assert_eq!(count(&engine, "forwarded-former"), 3);
        let Send(expected) = sent_back(&segment) else { unreachable!() };
        assert_eq!(run(&mut engine, &tagged(&segment.bytes())), Send(tagged(&expected)), "tags stay: {vip}");

        // What begins here, stays.
        let local = |engine: &Engine| count(engine, "forwarded-local");
        let syn = Packet { flags: SYN, ..segment.clone() };
        for (case, packet) in [("a handshake", &syn), ("its flow", &segment)] {
            let before = local(&engine);
            engine.kernel.test_run("penstock", &packet.bytes(), 1).expect("the program runs");
            assert_eq!(local(&engine), before + 1, "{case}: {vip}");
        }
        // So does what nobody else is to be asked about.
        let other = tcp(&client.replace("40000", "40001"), &vip.to_string());
        let sent = Packet { src_mac: AGENT, ..other.clone() };
        let before = local(&engine);
        engine.kernel.test_run("penstock", &sent.bytes(), 1).expect("the program runs");
        assert_eq!(local(&engine), before + 1, "an agent sent it here: {vip}");
        formers.follow(&link(&[])).expect("forgotten");
        let last = tcp(&client.replace("40000", "40002"), &vip.to_string());
        engine.kernel.test_run("penstock", &last.bytes(), 1).expect("the program runs");
        assert_eq!(local(&engine), before + 2, "nobody held it before: {vip}");
    }
}

//! Ports beside http and https that the proxy serves: TCP with and without PROXY headers, datagrams, changes.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use lb_tests::agent::eventually;
use penstock::model::l4::Protocol;
use penstock::model::l7::{Edge, L7, Preamble, ProxyProtocol, Stream, StreamTerms};

use crate::rig::{Backend, Client, DEADLINE, Rig, nobody, to};

/// The upstream of [`to`] on this port.
fn with_stream(mut l7: L7, protocol: Protocol, port: u16, received: Preamble, sent: Preamble) -> L7 {
    let (upstream, _) = l7.upstreams.first_key_value().expect("one upstream");
    let stream = Stream { upstream: upstream.clone(), received, sent };
    let known = Arc::make_mut(&mut l7.streams);
    known.insert((protocol, port), stream);
    l7
}

fn with_terms(l7: L7, streams: StreamTerms) -> L7 {
    L7 { edge: Edge { streams, ..Edge::default() }, ..l7 }
}

/// Says what it is, then repeats what it is told.
fn greeter(name: &'static str) -> Backend {
    Backend::start(move |mut peer| {
        if peer.try_send(name.as_bytes()) {
            let told = peer.rest();
            peer.try_send(&told);
        }
    })
}

fn connect(port: u16) -> Client {
    let addr = SocketAddr::from(([127, 0, 0, 1], port));
    let stream = eventually(DEADLINE, || TcpStream::connect(addr).ok()).expect("the port is listened on");
    Client::over(stream)
}

fn finish(client: &mut Client) -> String {
    client.stream.shutdown(std::net::Shutdown::Write).expect("shut down");
    String::from_utf8(client.rest()).expect("text")
}

#[test]
fn a_connection_goes_to_its_ports_service_and_the_server_may_speak_first() {
    let backend = greeter("hello ");
    let port = nobody().port();
    let rig =
        Rig::start(with_stream(to(&[backend.addr]), Protocol::Tcp, port, Preamble::None, Preamble::None));

    let mut client = connect(port);
    assert_eq!(client.exactly(6), b"hello ");
    client.send("world");

    assert_eq!(finish(&mut client), "world");
    assert_eq!(rig.metric("penstock_l7_stream_connections_total"), 1.0);
    assert!(
        eventually(DEADLINE, || (rig.metric("penstock_l7_stream_bytes_total") == 16.0).then_some(()))
            .is_some()
    );
}

#[test]
fn an_endpoint_that_refuses_is_passed_over_unless_it_is_the_only_try() {
    let backend = greeter("hello ");
    let port = nobody().port();
    let l7 = to(&[backend.addr, nobody()]);
    let l7 = with_stream(l7, Protocol::Tcp, port, Preamble::None, Preamble::None);
    let mut once = StreamTerms::default();
    once.retry.tries = 1;
    let rig = Rig::start(l7.clone());

    for _ in 0..4 {
        assert_eq!(connect(port).exactly(6), b"hello ");
    }
    drop(rig);
    let port = nobody().port();
    let l7 = with_stream(to(&[nobody()]), Protocol::Tcp, port, Preamble::None, Preamble::None);
    let rig = Rig::start(with_terms(l7, once));

    assert_eq!(connect(port).rest(), b"", "closed");
    assert_eq!(rig.metric("penstock_l7_stream_connections_total"), 0.0);
}

#[test]
fn failures_between_which_an_endpoint_answers_are_not_in_a_row() {
    let (good, flaky, port) = (greeter("good"), nobody(), nobody().port());
    let l7 = to(&[good.addr, flaky]);
    let rig = Rig::start(with_stream(l7, Protocol::Tcp, port, Preamble::None, Preamble::None));

    // Five in a row eject it.
    for failures in 1..=7 {
        while rig.metric("penstock_l7_failed_attempts_total") < f64::from(failures) {
            assert_eq!(connect(port).exactly(4), b"good");
        }
        let listener = TcpListener::bind(flaky).expect("its port is free");
        let once = std::thread::spawn(move || {
            let (stream, _) = listener.accept().expect("a connection");
            Client::over(stream).send("back");
        });
        while connect(port).exactly(4) == b"good" {}
        once.join().expect("it answered");
        assert_eq!(rig.metric("penstock_l7_ejected_endpoints"), 0.0, "after {failures}");
    }
}

#[test]
fn for_a_client_that_has_gone_nobody_goes_on_to_be_connected_to() {
    // Its queue is full, so whoever else connects is not answered.
    let hangs = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    hangs.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("bind");
    hangs.listen(0).expect("listen");
    let addr = hangs.local_addr().ok().and_then(|addr| addr.as_socket()).expect("bound");
    let _first = TcpStream::connect(addr).expect("a place in the queue");
    let port = nobody().port();
    let rig = Rig::start(with_stream(to(&[addr]), Protocol::Tcp, port, Preamble::None, Preamble::None));
    let client = connect(port);
    let open = || rig.metric("nginx_ingress_controller_nginx_process_connections");
    eventually(DEADLINE, || (open() > 0.0).then_some(())).expect("it is served");

    rustix::net::sockopt::set_socket_linger(&client.stream, Some(Duration::ZERO)).expect("linger");
    drop(client);

    eventually(DEADLINE, || (open() == 0.0).then_some(())).expect("it is given up");
    // That would have been told after all tries.
    assert_eq!(rig.metric("penstock_l7_refused_connections_total"), 0.0);
}

#[test]
fn a_port_is_given_up_by_a_worker_that_is_full_as_well() {
    let backend = greeter("hello ");
    let port = nobody().port();
    let plain = L7 { edge: Edge { connections: 1, ..Edge::default() }, ..to(&[backend.addr]) };
    let rig = Rig::start(with_stream(plain.clone(), Protocol::Tcp, port, Preamble::None, Preamble::None));
    let mut first = connect(port);
    assert_eq!(first.exactly(6), b"hello ");
    let mut second = connect(port);
    let is_full = || (rig.metric("penstock_l7_connection_limit_reached_total") > 0.0).then_some(());
    eventually(DEADLINE, is_full).expect("the worker is full");

    rig.publish(plain);

    let addr = SocketAddr::from(([127, 0, 0, 1], port));
    let refused = eventually(DEADLINE, || TcpStream::connect(addr).is_err().then_some(()));
    assert!(refused.is_some(), "nobody listens any more");
    assert_eq!((second.rest(), finish(&mut first)), (Vec::new(), String::new()));
}

#[test]
fn proxy_headers_are_read_written_or_both() {
    let backend = greeter("");
    let header = "PROXY TCP4 192.0.2.1 203.0.113.7 40000 5432\r\n";
    let cases = [
        ("neither", Preamble::None, Preamble::None, "", ""),
        ("read", Preamble::Proxy, Preamble::None, header, ""),
        ("both", Preamble::Proxy, Preamble::Proxy, header, header),
    ];
    for (case, received, sent, says, expected) in cases {
        let port = nobody().port();
        let rig = Rig::start(with_stream(to(&[backend.addr]), Protocol::Tcp, port, received, sent));
        let mut client = connect(port);
        client.send(format!("{says}payload"));

        assert_eq!(finish(&mut client), format!("{expected}payload"), "case {case}");
        drop(rig);
    }
    let port = nobody().port();
    let rig =
        Rig::start(with_stream(to(&[backend.addr]), Protocol::Tcp, port, Preamble::None, Preamble::Proxy));
    let mut client = connect(port);
    let own = client.stream.local_addr().expect("an address").port();
    client.send("payload");

    assert_eq!(finish(&mut client), format!("PROXY TCP4 127.0.0.1 127.0.0.1 {own} {port}\r\npayload"));
    drop(rig);
}

#[test]
fn without_the_header_that_is_due_a_connection_is_closed_and_a_stranger_is_not_believed() {
    let backend = greeter("");
    let port = nobody().port();
    let l7 = with_stream(to(&[backend.addr]), Protocol::Tcp, port, Preamble::Proxy, Preamble::Proxy);
    let header = ProxyProtocol { timeout: Duration::from_millis(300), trusted: Vec::new() };
    let rig = Rig::start(with_terms(l7, StreamTerms { header, ..StreamTerms::default() }));

    let mut plain = connect(port);
    plain.send("no header");
    assert_eq!(plain.rest(), b"");
    assert_eq!(connect(port).rest(), b"", "silence");
    let mut stranger = connect(port);
    let own = stranger.stream.local_addr().expect("an address").port();
    stranger.send("PROXY TCP4 192.0.2.1 203.0.113.7 40000 5432\r\nx");

    assert_eq!(finish(&mut stranger), format!("PROXY TCP4 127.0.0.1 127.0.0.1 {own} {port}\r\nx"));
    drop(rig);
}

#[test]
fn silence_of_both_sides_ends_a_connection() {
    let backend = greeter("hi");
    let port = nobody().port();
    let l7 = with_stream(to(&[backend.addr]), Protocol::Tcp, port, Preamble::None, Preamble::None);
    let terms = StreamTerms { idle: Duration::from_millis(100), ..StreamTerms::default() };
    let _rig = Rig::start(with_terms(l7, terms));

    assert_eq!(connect(port).rest(), b"hi");
}

#[test]
fn ports_come_and_go_and_connections_stay() {
    let backend = greeter("hello ");
    let (first, second) = (nobody().port(), nobody().port());
    let plain = |port| with_stream(to(&[backend.addr]), Protocol::Tcp, port, Preamble::None, Preamble::None);
    let rig = Rig::with_workers(plain(first), 2);
    let mut client = connect(first);
    assert_eq!(client.exactly(6), b"hello ");

    rig.publish(plain(second));

    assert_eq!(connect(second).exactly(6), b"hello ");
    let gone = || TcpStream::connect(("127.0.0.1", first)).is_err().then_some(());
    assert!(eventually(DEADLINE, gone).is_some(), "still listened on");
    client.send("still here");
    assert_eq!(finish(&mut client), "still here");
}

/// Answers every datagram with its name and what it was told; counts none.
fn answering(name: &'static str, times: usize) -> SocketAddr {
    let socket = UdpSocket::bind(("127.0.0.1", 0)).expect("bind");
    let addr = socket.local_addr().expect("bound");
    std::thread::spawn(move || {
        let mut datagram = [0; 65_536];
        while let Ok((length, client)) = socket.recv_from(&mut datagram) {
            let answer = [name.as_bytes(), &datagram[..length]].concat();
            for _ in 0..times {
                let _ = socket.send_to(&answer, client);
            }
        }
    });
    addr
}

fn udp_client(port: u16) -> UdpSocket {
    udp_client_of([127, 0, 0, 1], port)
}

/// Hears nobody but this address.
fn udp_client_of(server: [u8; 4], port: u16) -> UdpSocket {
    let socket = UdpSocket::bind(("127.0.0.1", 0)).expect("bind");
    socket.connect(SocketAddr::from((server, port))).expect("connect");
    socket.set_read_timeout(Some(Duration::from_millis(200))).expect("timeout");
    socket
}

/// What comes back; asks again until something does, because the port is opened a moment later.
fn ask_datagram(socket: &UdpSocket, text: &str) -> String {
    let mut datagram = [0; 65_536];
    let answer = eventually(DEADLINE, || {
        socket.send(text.as_bytes()).ok()?;
        socket.recv(&mut datagram).ok()
    });
    String::from_utf8(datagram[..answer.expect("an answer")].to_vec()).expect("text")
}

#[test]
fn datagrams_are_answered_and_each_answer_ends_an_exchange() {
    let backends = [answering("a:", 1), answering("b:", 1)];
    let port = nobody().port();
    let l7 = with_stream(to(&backends), Protocol::Udp, port, Preamble::None, Preamble::None);
    let rig = Rig::start(l7);
    let client = udp_client(port);

    let mut answers: BTreeMap<String, usize> = BTreeMap::new();
    for _ in 0..4 {
        *answers.entry(ask_datagram(&client, "q")).or_default() += 1;
    }

    assert_eq!(answers, BTreeMap::from([("a:q".to_owned(), 2), ("b:q".to_owned(), 2)]));
    assert_eq!(rig.metric("penstock_l7_stream_connections_total"), 4.0);
}

#[test]
fn answers_to_datagrams_leave_from_the_address_that_was_asked() {
    for any in [IpAddr::from(Ipv4Addr::UNSPECIFIED), Ipv6Addr::UNSPECIFIED.into()] {
        let backends = [answering("a:", 1)];
        let port = nobody().port();
        let l7 = with_stream(to(&backends), Protocol::Udp, port, Preamble::None, Preamble::None);
        let _rig = Rig::on(l7, any);

        for server in [[127, 0, 0, 1], [127, 0, 0, 2], [127, 0, 7, 3]] {
            assert_eq!(ask_datagram(&udp_client_of(server, port), "q"), "a:q", "{any} {server:?}");
        }
    }
}

#[test]
fn one_client_port_that_asks_two_addresses_is_answered_from_both() {
    let backends = [answering("a:", 1)];
    let port = nobody().port();
    let l7 = with_stream(to(&backends), Protocol::Udp, port, Preamble::None, Preamble::None);
    let terms = StreamTerms { responses: 2, ..StreamTerms::default() };
    let rig = Rig::on(with_terms(l7, terms), Ipv4Addr::UNSPECIFIED.into());
    ask_datagram(&udp_client(port), "q");
    let client = UdpSocket::bind(("127.0.0.1", 0)).expect("bind");
    client.set_read_timeout(Some(DEADLINE)).expect("timeout");

    for server in [[127, 0, 0, 1], [127, 0, 0, 2]] {
        let server = SocketAddr::from((server, port));
        client.send_to(b"q", server).expect("sent");
        let (_, from) = client.recv_from(&mut [0; 16]).expect("an answer");
        assert_eq!(from, server);
    }
    assert_eq!(rig.metric("penstock_l7_stream_connections_total"), 3.0);
}

#[test]
fn an_exchange_of_several_answers_stays_with_its_endpoint() {
    let backends = [answering("a:", 2), answering("b:", 2)];
    let port = nobody().port();
    let l7 = with_stream(to(&backends), Protocol::Udp, port, Preamble::None, Preamble::None);
    let rig = Rig::start(with_terms(l7, StreamTerms { responses: 3, ..StreamTerms::default() }));
    let client = udp_client(port);

    let first = ask_datagram(&client, "q");
    let mut datagram = [0; 64];
    let length = client.recv(&mut datagram).expect("the second answer");

    assert_eq!(&datagram[..length], first.as_bytes());
    assert_eq!(ask_datagram(&client, "q"), first);
    assert_eq!(rig.metric("penstock_l7_stream_connections_total"), 1.0);
}

#[test]
fn a_flood_of_clients_at_one_port_keeps_nobody_from_another() {
    let backends = [answering("a:", 1)];
    let (flooded, calm) = (nobody().port(), nobody().port());
    let l7 = with_stream(to(&backends), Protocol::Udp, flooded, Preamble::None, Preamble::None);
    let l7 = with_stream(l7, Protocol::Udp, calm, Preamble::None, Preamble::None);
    // Of two answers one comes, so that nobody's exchange ends.
    let rig = Rig::start(with_terms(l7, StreamTerms { responses: 2, ..StreamTerms::default() }));
    for port in [flooded, calm] {
        ask_datagram(&udp_client(port), "q");
    }
    let mut flood = (1..=250).flat_map(|third| (1..=250).map(move |fourth| [127, 7, third, fourth]));
    let crowd = eventually(DEADLINE, || {
        for from in flood.by_ref().take(64) {
            let client = UdpSocket::bind((Ipv4Addr::from(from), 0)).expect("bind");
            client.send_to(b"q", ("127.0.0.1", flooded)).expect("sent");
        }
        (rig.metric("penstock_l7_stream_connections_total") > 2200.0).then_some(())
    });
    assert!(crowd.is_some(), "more clients than there is room for");

    let client = udp_client(calm);
    client.set_read_timeout(Some(DEADLINE)).expect("timeout");
    client.send(b"q").expect("sent once");

    let mut answer = [0; 16];
    let length = client.recv(&mut answer).expect("an answer");
    assert_eq!(&answer[..length], b"a:q");
}

#[test]
fn a_port_that_is_gone_is_free_although_answers_are_missing() {
    // Of two answers one comes, so the exchange would wait for ten minutes.
    let backends = [answering("a:", 1)];
    let port = nobody().port();
    let with = || {
        let l7 = with_stream(to(&backends), Protocol::Udp, port, Preamble::None, Preamble::None);
        with_terms(l7, StreamTerms { responses: 2, ..StreamTerms::default() })
    };
    let rig = Rig::start(with());
    ask_datagram(&udp_client(port), "q");

    rig.publish(to(&backends));

    // A socket that nobody reads would swallow its share of all datagrams.
    let free = eventually(DEADLINE, || UdpSocket::bind(("127.0.0.1", port)).ok());
    assert!(free.is_some(), "still bound");
    drop(free);
    rig.publish(with());
    assert_eq!(ask_datagram(&udp_client(port), "q"), "a:q");
}

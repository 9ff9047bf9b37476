//! Messages at the edge of what the engine has to carry, and ends that come at odd moments.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Mutex, mpsc};
use std::time::{Duration, Instant};

use penstock::model::l7::Filters;

use lb_tests::agent::eventually;

use crate::access_log::Log;
use crate::h2_client::{self, exchange, get};
use crate::limits::active;
use crate::rig::{Backend, Client, DEADLINE, Rig, length_of, to, to_with};

const GET: &str = "GET / HTTP/1.1\r\nHost: h\r\n\r\n";

#[test]
fn a_pipelined_request_behind_a_body_is_not_part_of_it() {
    let backend = Backend::start(|mut peer| {
        while let Some(head) = peer.head() {
            let body = peer.exactly(length_of(&head));
            let body = format!("{} {}", &head[..4], String::from_utf8_lossy(&body));
            peer.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()));
        }
    });
    let rig = Rig::start(to(&[backend.addr]));
    let mut client = rig.client();

    client.send(format!("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\nbody{GET}"));

    assert_eq!(client.reply().text(), "POST body");
    assert_eq!(client.reply().text(), "GET  ");
}

#[test]
fn statuses_without_a_body_keep_both_connections() {
    let backend = Backend::start(|mut peer| {
        while let Some(head) = peer.head() {
            peer.send(format!("HTTP/1.1 {} Fine\r\n\r\n", &head[5..8]));
        }
    });
    let rig = Rig::start(to(&[backend.addr]));
    let mut client = rig.client();

    for status in [204, 304, 204] {
        client.send(format!("GET /{status} HTTP/1.1\r\nHost: h\r\n\r\n"));
        assert_eq!(client.reply().status, status);
    }

    assert_eq!(backend.connections(), 1);
}

#[test]
fn what_an_upstream_says_before_its_answer_reaches_who_knows_of_such_heads() {
    let backend = Backend::saying(
        "HTTP/1.1 100 Continue\r\nX-A: 1\r\n\r\n\
         HTTP/1.1 102 Processing\r\nConnection: X-Hop\r\nX-Hop: 1\r\nContent-Length: 5\r\nServer: up\r\n\r\n\
         HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nTransfer-Encoding: chunked\r\n\r\n\
         HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfinal",
    );
    let rig = Rig::start(to(&[backend.addr]));
    let mut client = rig.client();

    for _ in 0..2 {
        client.send(GET);

        assert_eq!(client.head().as_deref(), Some("HTTP/1.1 102 Processing\r\n\r\n"));
        assert_eq!(client.head().as_deref(), Some("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"));
        assert_eq!(client.reply().text(), "final");
    }
    let mut old = rig.client();
    old.send("GET / HTTP/1.0\r\nHost: h\r\n\r\n");
    assert_eq!(old.reply().text(), "final");
    assert_eq!(backend.connections(), 1);
}

#[test]
fn a_hint_comes_before_its_answer_and_while_the_client_still_sends() {
    let (go, waits) = mpsc::channel();
    let waits = Mutex::new(waits);
    let backend = Backend::start(move |mut peer| {
        let head = peer.head().unwrap_or_default();
        peer.send("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n");
        let body = peer.exactly(length_of(&head));
        waits.lock().unwrap().recv().unwrap();
        peer.send([b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n", body.as_slice()].concat());
    });
    let rig = Rig::start(to(&[backend.addr]));
    let mut client = rig.client();

    client.send("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n");
    assert!(client.head().expect("a hint").starts_with("HTTP/1.1 103 "));
    client.send("hi");
    go.send(()).unwrap();

    assert_eq!(client.reply().text(), "hi");
}

#[test]
fn an_upstream_that_only_hints_is_a_bad_one_after_some_hints() {
    let backend = Backend::start(|mut peer| {
        peer.head();
        peer.send("HTTP/1.1 103 Early Hints\r\n\r\n".repeat(9));
        peer.rest();
    });
    let rig = Rig::start(to(&[backend.addr]));
    let mut client = rig.client();

    client.send(GET);

    for _ in 0..8 {
        assert_eq!(client.head().as_deref(), Some("HTTP/1.1 103 Early Hints\r\n\r\n"));
    }
    assert_eq!(client.reply().status, 502);
}

#[test]
fn an_upgrade_nobody_asked_for_is_a_bad_response() {
    let backend =
        Backend::saying("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n");
    let rig = Rig::start(to(&[backend.addr]));

    assert_eq!(rig.ask(GET).status, 502);
}

#[test]
fn an_upgraded_connection_carries_early_bytes_and_closes_one_direction_at_a_time() {
    let backend = Backend::start(|mut peer| {
        peer.head();
        peer.send("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\nhi ");
        let all = peer.rest();
        peer.send([b"got ", all.as_slice()].concat());
    });
    let rig = Rig::start(to(&[backend.addr]));
    let mut client = rig.client();

    // What follows the request before the switch is confirmed belongs to the new protocol.
    client.send("GET / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\nearly ");
    assert_eq!(client.reply().status, 101);
    assert_eq!(client.exactly(3), b"hi ");
    client.send("late");
    client.stream.shutdown(Shutdown::Write).unwrap();

    assert_eq!(client.rest(), b"got early late");
}

#[test]
fn an_early_answer_reaches_a_client_that_is_still_sending() {
    let backend = Backend::start(|mut peer| {
        peer.head();
        peer.send("HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno");
        peer.rest();
    });
    let rig = Rig::start(to(&[backend.addr]));

    let reply = rig.ask("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000\r\n\r\n");

    assert_eq!((reply.status, reply.text().as_str(), reply.header("connection")), (403, "no", Some("close")));
}

#[test]
fn an_answer_of_our_own_arrives_although_the_body_was_not_read() {
    let rig = Rig::start(to(&[]));
    let mut client = rig.client();

    client.send("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000\r\n\r\n");
    client.send(vec![b'x'; 1_000_000]);

    assert_eq!(client.reply().status, 503);
    // The end is a FIN; a reset could have swallowed the answer.
    assert_eq!(client.stream.read(&mut [0]).unwrap(), 0);
}

#[test]
fn who_asks_for_the_end_gets_the_answer_whatever_comes_behind_the_request() {
    let backend = Backend::saying("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    let rig = Rig::start(to(&[backend.addr]));
    for behind in [0, 1, 1_000_000] {
        let mut client = rig.client();
        let mut bytes = b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n".to_vec();
        bytes.resize(bytes.len() + behind, b'x');

        client.send(bytes);

        let reply = client.reply();
        assert_eq!((reply.status, reply.header("connection")), (200, Some("close")), "{behind}");
        // The end is a FIN; a reset could have swallowed the answer.
        assert_eq!(client.stream.read(&mut [0]).unwrap(), 0, "{behind}");
    }
}

#[test]
fn nobody_is_told_to_continue_with_a_body_that_is_too_long() {
    let filters = Filters { max_body_bytes: Some(10), ..Filters::default() };
    let rig = Rig::start(to_with(&[Backend::mirror().addr], filters));

    let first_line = |length| {
        let mut client = rig.client();
        client.send(format!(
            "PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: {length}\r\nExpect: 100-continue\r\n\r\n"
        ));
        client.head().and_then(|head| head.lines().next().map(str::to_owned))
    };

    assert_eq!(first_line(11).as_deref(), Some("HTTP/1.1 413 Request Entity Too Large"));
    assert_eq!(first_line(10).as_deref(), Some("HTTP/1.1 100 Continue"));
}

#[test]
fn the_upstream_is_let_go_when_the_client_leaves() {
    let (came, comes) = mpsc::channel();
    let (left, leaves) = mpsc::channel();
    let backend = Backend::start(move |mut peer| {
        peer.head();
        came.send(()).unwrap();
        left.send(peer.rest()).unwrap();
    });
    let rig = Rig::start(to(&[backend.addr]));
    let mut client = rig.client();

    client.send(GET);
    comes.recv_timeout(DEADLINE).unwrap();
    drop(client);

    assert_eq!(leaves.recv_timeout(DEADLINE), Ok(vec![]));
}

#[test]
fn a_tls_handshake_on_the_plain_port_is_refused() {
    let rig = Rig::start(to(&[]));

    assert_eq!(rig.ask("\x16\x03\x01\x02\0\x01\0\x01").status, 400);
}

#[test]
fn a_backend_writes_no_faster_than_its_client_reads() {
    const LARGE: usize = 64 << 20;
    let (stalled, stalls) = mpsc::channel();
    let backend = Backend::start(move |mut peer| {
        peer.head();
        peer.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {LARGE}\r\n\r\n"));
        write_until_stalled(&mut peer.stream, LARGE, &stalled);
    });
    let rig = Rig::start(to(&[backend.addr]));
    let mut client = rig.client();

    client.send(GET);
    let before = stalls.recv_timeout(DEADLINE).unwrap();

    assert!(before < LARGE, "nothing held the backend back");
    assert_eq!(client.reply().body.len(), LARGE);
}

#[test]
fn a_client_writes_no_faster_than_its_backend_reads() {
    const LARGE: usize = 64 << 20;
    let (stalled, stalls) = mpsc::channel();
    let stalls = Mutex::new(stalls);
    let backend = Backend::start(move |mut peer| {
        peer.head();
        // Nothing is read before the client had to wait.
        let before: usize = stalls.lock().unwrap().recv_timeout(DEADLINE).unwrap();
        let body = format!("{} {}", before < LARGE, peer.exactly(LARGE).len());
        peer.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()));
    });
    let rig = Rig::start(to(&[backend.addr]));
    let mut client = rig.client();

    client.send(format!("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: {LARGE}\r\n\r\n"));
    write_until_stalled(&mut client.stream, LARGE, &stalled);

    assert_eq!(client.reply().text(), format!("true {LARGE}"));
}

/// Writes `n` bytes; tells how many went before one had to wait, or that none had to.
fn write_until_stalled(stream: &mut TcpStream, n: usize, stalled: &mpsc::Sender<usize>) {
    let chunk = vec![b'x'; 64 << 10];
    let (mut written, mut told) = (0, false);
    stream.set_nonblocking(true).unwrap();
    while written < n {
        match stream.write(&chunk[..chunk.len().min(n - written)]) {
            Ok(now) => written += now,
            Err(error) if error.kind() == ErrorKind::WouldBlock && !told => {
                told = true;
                stalled.send(written).unwrap();
                stream.set_nonblocking(false).unwrap();
            }
            Err(error) => panic!("{written} of {n} bytes written: {error}"),
        }
    }
    stream.set_nonblocking(false).unwrap();
    if !told {
        stalled.send(n).unwrap();
    }
}

#[test]
fn what_outlives_the_deadline_of_a_drain_is_cut_off_and_logged() {
    let (came, comes) = mpsc::channel();
    let backend = Backend::start(move |mut peer| {
        let Some(head) = peer.head() else { return };
        if head.starts_with("GET /begun") {
            peer.send("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab");
        }
        came.send(()).unwrap();
        peer.rest();
    });
    let log = Log::new();
    let rig = Rig::start(log.of(to(&[backend.addr]), "$request $status $upstream_addr"));
    let [mut silent, mut begun, mut sending, mut held] = std::array::from_fn(|_| rig.client());
    silent.send("GET /silent HTTP/1.1\r\nHost: h\r\n\r\n");
    begun.send("GET /begun HTTP/1.1\r\nHost: h\r\n\r\n");
    sending.send("POST /sending HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nab");
    // A body that may have to be sent again is read whole first.
    held.send("PUT /held HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n");
    assert_eq!(held.head().as_deref(), Some("HTTP/1.1 100 Continue\r\n\r\n"));
    let http2 = h2_client::Client::connect(rig.http);
    let requests = http2.requests.clone();
    let stream = http2.runtime.spawn(exchange(requests, get("/stream"), Vec::new(), None));
    (0..4).for_each(|_| comes.recv_timeout(DEADLINE).unwrap());
    assert!(begun.head().is_some() && begun.exactly(2) == b"ab");

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(rig.running.drain(Duration::from_millis(20)));

    assert_eq!([silent.rest(), begun.rest(), held.rest()], [b"", b"", b""]);
    assert!(http2.runtime.block_on(stream).expect("no panic").is_err());
    let mut lines = log.lines(5);
    lines.sort_unstable();
    let sent =
        ["GET /begun HTTP/1.1", "GET /silent HTTP/1.1", "GET /stream HTTP/2.0", "POST /sending HTTP/1.1"];
    let mut expected = sent.map(|request| format!("{request} 499 {}", backend.addr)).to_vec();
    expected.push("PUT /held HTTP/1.1 499 -".to_owned());
    assert_eq!(lines, expected);
}

#[test]
fn the_port_of_a_proxy_that_is_gone_is_free() {
    let rig = Rig::start(to(&[]));
    let addr = rig.http;

    drop(rig);

    let end = Instant::now() + DEADLINE;
    while TcpListener::bind(addr).is_err() {
        assert!(Instant::now() < end, "still bound");
        std::thread::yield_now();
    }
}

#[test]
fn who_connects_and_says_nothing_holds_up_no_drain() {
    let backend = Backend::mirror();
    let rig = Rig::start(to(&[backend.addr]));
    let silent = [rig.http, rig.https].map(Client::connect);
    let both = || (active(&rig) >= 2.0).then_some(());
    eventually(DEADLINE, both).expect("they are served");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let started = std::time::Instant::now();

    runtime.block_on(rig.running.drain(DEADLINE));

    assert!(started.elapsed() < DEADLINE / 2, "{:?}", started.elapsed());
    drop(silent);
}

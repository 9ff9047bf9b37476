//! Many, slow and large: what a client costs while it takes its time.
//!
//! Each test runs in a process of its own, so that its peak is that of the proxy plus clients and
//! backends with small buffers.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use lb_tests::agent::eventually;
use lb_tests::h2_frames::{Frames, Outcome, kind};
use penstock::model::l7::{ClientLimits, Edge, L7};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::rig::{Backend, Client, DEADLINE, Rig, and_to, length_of, to};
use crate::tls_client::Tls;

const MIB: u64 = 1 << 20;

/// Whether this is the process that a test has to itself; otherwise the test runs in one, and has to
/// pass there.
fn is_alone(test: &str) -> bool {
    if std::env::var_os("PENSTOCK_TEST_ALONE").is_some() {
        return true;
    }
    let mut command = std::process::Command::new(std::env::current_exe().expect("this program"));
    command.args([&format!("many::{test}"), "--exact", "--nocapture"]).env("PENSTOCK_TEST_ALONE", "1");
    assert!(command.status().expect("started").success(), "failed in its own process");
    false
}

/// The same with a backend in the process that started it, whose memory is not measured; that one answers `None`.
fn alone_with_backend(test: &str, start: impl FnOnce() -> Backend) -> Option<SocketAddr> {
    const BACKEND: &str = "PENSTOCK_TEST_BACKEND";
    if let Some(addr) = std::env::var_os(BACKEND) {
        return Some(addr.to_str().and_then(|addr| addr.parse().ok()).expect("an address"));
    }
    both_ends(1_000);
    let backend = start();
    let mut command = std::process::Command::new(std::env::current_exe().expect("this program"));
    command.args([&format!("many::{test}"), "--exact", "--nocapture"]).env(BACKEND, backend.addr.to_string());
    assert!(command.status().expect("started").success(), "failed in its own process");
    None
}

/// Highest resident memory since [`forget_peak`].
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("status");
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("VmHWM");
    let kilobytes: u64 = line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).expect("a number");
    kilobytes * 1024
}

/// Starts the measurement anew.
fn forget_peak() -> u64 {
    std::fs::write("/proc/self/clear_refs", "5").expect("clear_refs");
    peak()
}

/// So many connections as both ends of each fit into this process, at most `wanted`.
fn both_ends(wanted: u64) -> usize {
    // Some have an endpoint, and pipes.
    let wish = wanted * 5 / 2 + 1000;
    let limit = getrlimit(Resource::Nofile);
    let maximum = limit.maximum.unwrap_or(wish).max(wish);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(wish), maximum: Some(maximum) });
    let current = getrlimit(Resource::Nofile).current.unwrap_or(wish);
    if current < wish {
        let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    }
    let current = getrlimit(Resource::Nofile).current.unwrap_or(wish);
    usize::try_from(wanted.min(current.saturating_sub(1000) * 2 / 5)).expect("fits")
}

/// Takes its time with every request: the body of one may take as long as it likes, and `/large` is answered by 512 KiB.
fn patient() -> Backend {
    Backend::start(|mut peer| {
        peer.stream.set_read_timeout(None).expect("no timeout");
        peer.stream.set_write_timeout(None).expect("no timeout");
        while let Some(head) = peer.head() {
            peer.exactly(length_of(&head));
            let content = if head.starts_with("GET /large ") { &CONTENT[..] } else { &CONTENT[..5] };
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", content.len());
            if !peer.try_send(head.as_bytes()) || !peer.try_send(content) {
                return;
            }
        }
    })
}

static CONTENT: [u8; 512 << 10] = [b'x'; 512 << 10];

#[test]
fn ten_thousand_slow_clients_cost_what_they_sent() {
    let test = "ten_thousand_slow_clients_cost_what_they_sent";
    let Some(backend) = alone_with_backend(test, patient) else { return };
    let many = both_ends(10_000);
    let some = many / 20;
    // However long it takes here.
    let hour = Duration::from_secs(3600);
    let limits = ClientLimits { header_timeout: hour, body_timeout: hour, ..ClientLimits::default() };
    let rig = Rig::start(L7 { edge: Edge { limits, ..Edge::default() }, ..to(&[backend]) });
    assert_eq!(rig.ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n").status, 200);
    let before = forget_peak();

    let open = |request: &str| {
        let mut stream = TcpStream::connect(rig.http).expect("connect");
        stream.set_read_timeout(Some(DEADLINE)).expect("timeout");
        stream.write_all(request.as_bytes()).expect("send");
        stream
    };
    // Some send a body slowly, some take an answer slowly, all others are slow with a head.
    let body = "POST /slow HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 10\r\n\r\n12345";
    let mut heads: Vec<TcpStream> =
        (2 * some..many).map(|_| open("GET /slow HTTP/1.1\r\nHost: a\r\nX-Slow: ")).collect();
    let mut bodies: Vec<TcpStream> = (0..some).map(|_| open(body)).collect();
    let mut readers: Vec<TcpStream> =
        (0..some).map(|_| open("GET /large HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")).collect();
    for reader in &mut readers {
        let mut head = [0; 12];
        reader.read_exact(&mut head).expect("an answer");
        assert_eq!(&head, b"HTTP/1.1 200");
    }
    bodies.iter_mut().chain(&mut heads).for_each(|stream| stream.write_all(b"x").expect("send"));
    // Whoever is quick is served meanwhile.
    assert_eq!(rig.ask("GET /quick HTTP/1.1\r\nHost: a\r\n\r\n").status, 200);
    let cost = peak().saturating_sub(before);

    // A client that takes nothing for a minute is left.
    for reader in &mut readers {
        let mut rest = Vec::new();
        reader.read_to_end(&mut rest).expect("the rest");
        assert!(rest.len() > CONTENT.len(), "{} bytes", rest.len());
    }
    let all =
        bodies.iter_mut().map(|body| (body, "6789")).chain(heads.iter_mut().map(|head| (head, "\r\n\r\n")));
    for (stream, rest) in all {
        stream.write_all(rest.as_bytes()).expect("send");
        let mut head = [0; 12];
        stream.read_exact(&mut head).expect("an answer");
        assert_eq!(&head, b"HTTP/1.1 200");
    }
    let each = cost / many as u64;
    println!("{many} slow clients: {} KiB, {each} bytes each", cost >> 10);
    assert!(each < 4 * 1024, "{each} bytes for each of {many} slow clients");
}

/// Reads a request to its end and answers with `size` bytes, `part` at a time.
fn taking_and_giving(size: usize, part: usize) -> Backend {
    Backend::start(move |mut peer| {
        let head = peer.head().expect("a request");
        let mut left = length_of(&head) - peer.buffered().len();
        let mut part = vec![0; part];
        while left > 0 {
            match peer.stream.read(&mut part).expect("upload") {
                0 => panic!("{left} bytes were missing"),
                n => left -= n,
            }
        }
        peer.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n"));
        (0..size / part.len()).all(|_| peer.try_send(&part));
    })
}

#[test]
fn a_gigabyte_each_way_costs_a_few_buffers() {
    const SIZE: usize = 1 << 30;
    const PART: usize = 256 << 10;
    if !is_alone("a_gigabyte_each_way_costs_a_few_buffers") {
        return;
    }
    let backend = taking_and_giving(SIZE, PART);
    let rig = Rig::start(to(&[backend.addr]));
    let mut client = rig.client();
    let mut part = vec![0; PART];
    let before = forget_peak();

    client.send(format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {SIZE}\r\n\r\n"));
    for _ in 0..SIZE / PART {
        client.send(&part);
    }
    assert!(client.head().expect("a response").starts_with("HTTP/1.1 200"));
    let mut left = SIZE - client.buffered().len();
    while left > 0 {
        match client.stream.read(&mut part).expect("download") {
            0 => panic!("{left} bytes were missing"),
            n => left -= n,
        }
    }

    let cost = peak().saturating_sub(before);
    println!("a gigabyte up and down: {} KiB", cost >> 10);
    assert!(cost < 16 * MIB, "{cost} bytes");
}

#[test]
fn much_each_way_over_tls_costs_a_few_buffers() {
    const SIZE: usize = 128 << 20;
    const PART: usize = 64 << 10;
    if !is_alone("much_each_way_over_tls_costs_a_few_buffers") {
        return;
    }
    let backend = taking_and_giving(SIZE, PART);
    let rig = Rig::start(to(&[backend.addr]));
    let mut client = Tls::connect(rig.https, "a.example").0;
    let mut part = vec![0; PART];
    let before = forget_peak();

    let head =
        format!("POST / HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\nContent-Length: {SIZE}\r\n\r\n");
    client.write_all(head.as_bytes()).expect("send");
    (0..SIZE / PART).for_each(|_| client.write_all(&part).expect("send"));
    let (mut head, mut taken) = ([0; 12], 0);
    client.read_exact(&mut head).expect("a response");
    assert_eq!(&head, b"HTTP/1.1 200");
    while let Ok(n @ 1..) = client.read(&mut part) {
        taken += n;
    }

    assert!(taken > SIZE, "{taken} bytes");
    let cost = peak().saturating_sub(before);
    println!("{} MiB up and down over TLS: {} KiB", SIZE >> 20, cost >> 10);
    assert!(cost < 16 * MIB, "{cost} bytes");
}

#[test]
fn server_sent_events_arrive_one_by_one() {
    let (seen, go) = mpsc::channel::<()>();
    let go = std::sync::Mutex::new(go);
    let backend = Backend::start(move |mut peer| {
        peer.head();
        peer.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n");
        for event in 0..100 {
            let data = format!("data: {event:04}\n\n");
            peer.send(format!("{:x}\r\n{data}\r\n", data.len()));
            // The next event only when this one has arrived.
            go.lock().expect("one client").recv_timeout(DEADLINE).expect("the client saw the event");
        }
        peer.send("0\r\n\r\n");
    });
    let rig = Rig::start(to(&[backend.addr]));
    let mut client: Client = rig.client();
    client.send("GET /events HTTP/1.1\r\nHost: a\r\nAccept: text/event-stream\r\n\r\n");
    client.head().expect("a head");

    for event in 0..100 {
        assert_eq!(
            client.exactly("c\r\ndata: 0000\n\n\r\n".len()),
            format!("c\r\ndata: {event:04}\n\n\r\n").as_bytes()
        );
        seen.send(()).expect("the backend waits");
    }

    assert_eq!(client.exactly(5), b"0\r\n\r\n");
}

#[test]
fn idle_connections_hold_no_buffers() {
    if !is_alone("idle_connections_hold_no_buffers") {
        return;
    }
    let many = both_ends(4_000);
    let backend = Backend::mirror();
    let rig = Rig::start(to(&[backend.addr]));
    let before = forget_peak();

    let clients: Vec<Client> = (0..many)
        .map(|_| {
            let mut client = rig.client();
            client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
            assert_eq!(client.reply().status, 200);
            client
        })
        .collect();

    let each = peak().saturating_sub(before) / clients.len() as u64;
    println!("{many} idle connections: {each} bytes each, both ends");
    assert!(each < 4 * 1024, "{each} bytes for each of {many} idle connections");
    thread::spawn(move || drop(clients)).join().expect("closed");
}

#[test]
fn clients_that_ask_many_endpoints_at_once_leave_descriptors_to_others() {
    const GREEDY: usize = 8;
    const STREAMS: usize = 120;
    if !is_alone("clients_that_ask_many_endpoints_at_once_leave_descriptors_to_others") {
        return;
    }
    // Those of the proxy, of both its sides.
    let few = Rlimit { current: Some(1024), ..getrlimit(Resource::Nofile) };
    setrlimit(Resource::Nofile, few).expect("a lower limit");
    let silent = Backend::start(|mut peer| {
        peer.stream.set_read_timeout(None).expect("no timeout");
        peer.rest();
    });
    let mirror = Backend::mirror();
    let l7 = to(&[silent.addr]);
    let rig = Rig::start(and_to(l7, "/other", mirror.addr));

    let refused = Arc::new(AtomicUsize::new(0));
    for _ in 0..GREEDY {
        let mut client = Frames::connect(rig.http, 10 * DEADLINE);
        (0..STREAMS).for_each(|i| assert!(client.get(2 * i as u32 + 1, "/")));
        let refused = Arc::clone(&refused);
        thread::spawn(move || {
            while client.until(kind::HEADERS).is_some() {
                refused.fetch_add(1, Ordering::SeqCst);
            }
        });
    }
    let is_settled = || {
        let refused = refused.load(Ordering::SeqCst);
        (refused + silent.connections() == GREEDY * STREAMS).then_some(refused)
    };
    let refused = eventually(DEADLINE, is_settled).expect("each waits for its endpoint or is refused");

    println!("{refused} of {} refused", GREEDY * STREAMS);
    assert!(silent.connections() > 100, "{refused} refused");
    let mut others: Vec<Client> = Vec::new();
    for _ in 0..50 {
        let mut other = rig.client();
        other.send("GET /other HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(other.reply().status, 200);
        others.push(other);
    }
    let mut also = Frames::connect(rig.http, DEADLINE);
    assert!(also.get(1, "/other"));
    assert_eq!(also.outcome(1), Outcome::Status(200));
}

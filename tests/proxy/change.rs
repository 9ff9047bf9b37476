//! Nothing reloads: snapshots are swapped under running connections, and draining loses nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use penstock::model::l7::{HostMatch, Location, PathMatch};
use penstock::model::report::Sample;

use crate::rig::{Backend, Client, DEADLINE, Rig, to};

#[test]
fn a_hundred_swaps_under_64_kept_connections_and_a_download_lose_nothing() {
    const SIZE: usize = 32 << 20;
    let backends = [Backend::mirror(), Backend::mirror(), Backend::mirror()].map(|backend| backend.addr);
    let download = Backend::start(|mut peer| {
        peer.head();
        peer.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n"));
        peer.try_send(&vec![b'x'; SIZE]);
    });
    let rig = Rig::with_workers(to(&[download.addr]), 2);
    let mut slow = rig.client();
    slow.send("GET /big HTTP/1.1\r\nHost: a\r\n\r\n");
    slow.head().expect("a head");
    rig.publish(to(&backends));
    rig.ask_until("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", 200);
    let stop = Arc::new(AtomicBool::new(false));
    let load: Vec<_> = (0..64)
        .map(|_| {
            let (stop, mut client) = (Arc::clone(&stop), rig.client());
            thread::spawn(move || {
                let mut requests = 0;
                while !stop.load(Ordering::Relaxed) || requests == 0 {
                    client.send("GET /x HTTP/1.1\r\nHost: a\r\n\r\n");
                    let reply = client.reply();
                    assert_eq!(reply.status, 200);
                    requests += 1;
                    // As announced after a thousand requests of one connection.
                    if reply.header("connection") == Some("close") {
                        return requests;
                    }
                }
                requests
            })
        })
        .collect();

    for swap in 0..100 {
        let chosen: Vec<_> = backends.iter().copied().skip(swap % 3).take(1 + swap % 2).collect();
        rig.publish(to(&chosen));
        assert_eq!(rig.ask("GET /probe HTTP/1.1\r\nHost: a\r\n\r\n").status, 200);
    }
    stop.store(true, Ordering::Relaxed);

    let requests: usize = load.into_iter().map(|client| client.join().expect("no request lost")).sum();
    assert!(requests >= 64);
    assert_eq!(slow.exactly(SIZE).len(), SIZE);
}

#[test]
fn what_heads_may_be_counts_at_once_for_connections_that_wait() {
    let backend = Backend::mirror();
    let rig = Rig::with_workers(to(&[backend.addr]), 1);
    let long = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(9000));
    assert_eq!(rig.ask(&long).status, 414);
    let mut idle = rig.client();
    idle.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(idle.reply().status, 200);

    let mut after = to(&[backend.addr]);
    after.edge.limits.line_bytes = 16 << 10;
    after.edge.limits.keep_alive = std::time::Duration::ZERO;
    rig.publish(after);
    rig.ask_until(&long, 200);

    idle.send(&long);
    let reply = idle.reply();
    assert_eq!((reply.status, reply.header("connection")), (200, Some("close")));
}

#[test]
fn a_shorter_keep_alive_counts_for_connections_that_wait_already() {
    let backend = Backend::mirror();
    let rig = Rig::with_workers(to(&[backend.addr]), 1);
    let mut idle = rig.client();
    idle.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(idle.reply().status, 200);
    let idle2 = crate::h2_client::Client::connect(rig.http);
    assert_eq!(idle2.get("/").head.status(), 200);

    let mut after = to(&[backend.addr]);
    after.edge.limits.keep_alive = std::time::Duration::from_millis(10);
    rig.publish(after);

    assert_eq!(idle.rest(), b"", "it ends, long before the 75 s that it had");
    let crate::h2_client::Client { runtime, connection, .. } = idle2;
    let ended = runtime.block_on(crate::h2_client::limited(connection)).expect("no panic");
    ended.expect("told to go, and closed");
}

#[test]
fn an_upgraded_connection_outlives_a_hundred_swaps_and_its_endpoint() {
    let echo = Backend::start(|mut peer| {
        peer.head();
        peer.send("HTTP/1.1 101 Switching Protocols\r\nUpgrade: t\r\nConnection: Upgrade\r\n\r\n");
        for _ in 0..100 {
            let said = peer.exactly(4);
            peer.send(&said);
        }
    });
    let others = [Backend::mirror(), Backend::mirror()].map(|backend| backend.addr);
    let rig = Rig::start(to(&[echo.addr]));
    let mut client = rig.client();
    client.send("GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: t\r\n\r\n");
    assert_eq!(client.reply().status, 101);

    for swap in 0..100 {
        rig.publish(to(&others[swap % 2..=swap % 2]));
        client.send("ping");
        assert_eq!(client.exactly(4), b"ping", "swap {swap}");
    }
}

#[test]
fn draining_ends_idle_connections_and_lets_running_requests_finish() {
    let (release, released) = std::sync::mpsc::channel::<()>();
    let (arrived, arrivals) = std::sync::mpsc::channel::<()>();
    let gate = std::sync::Mutex::new(released);
    let backend = Backend::start(move |mut peer| {
        while let Some(head) = peer.head() {
            if head.starts_with("GET /slow") {
                arrived.send(()).expect("test runs");
                gate.lock().expect("one waiter").recv().expect("released");
            }
            peer.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        }
    });
    let rig = Rig::start(to(&[backend.addr]));
    let mut idle = rig.client();
    idle.send("GET /quick HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(idle.reply().status, 200);
    let mut running = rig.client();
    running.send("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n");
    arrivals.recv_timeout(DEADLINE).expect("the slow request is upstream");

    thread::scope(|scope| {
        let drain = scope.spawn(|| {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
            runtime.block_on(rig.running.drain(DEADLINE));
        });
        assert_eq!(idle.rest(), b"", "the idle connection ends");
        release.send(()).expect("backend waits");
        let reply = running.reply();
        assert_eq!((reply.status, reply.header("connection")), (200, Some("close")));
        drop(running);
        drop(idle);
        drain.join().expect("drained");
    });

    assert!(std::net::TcpStream::connect(rig.http).is_err(), "nothing is accepted any more");
}

#[test]
fn draining_loses_no_connection_that_was_made() {
    let backend = Backend::saying("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    let rig = Rig::with_workers(to(&[backend.addr]), 2);
    let busy = std::sync::Barrier::new(9);
    // Whoever connects is answered, until nobody can connect any more.
    let client = || {
        for request in 0u32.. {
            if request == 20 {
                busy.wait();
            }
            let Ok(stream) = std::net::TcpStream::connect(rig.http) else { return request };
            let mut client = Client::over(stream);
            assert!(client.try_send(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"));
            assert_eq!(client.reply().status, 200, "request {request}");
        }
        0
    };

    thread::scope(|scope| {
        let clients: Vec<_> = (0..8).map(|_| scope.spawn(client)).collect();
        busy.wait();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        runtime.block_on(rig.running.drain(DEADLINE));
        for client in clients {
            assert!(client.join().expect("every connection is served") >= 20);
        }
    });
}

#[test]
fn a_busy_connection_ends_by_an_answer_that_says_so() {
    let backend = Backend::saying("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    let rig = Rig::start(to(&[backend.addr]));
    let mut client = rig.client();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.reply().header("connection"), None);

    thread::scope(|scope| {
        let drain = scope.spawn(|| {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
            runtime.block_on(rig.running.drain(DEADLINE));
        });
        let mut answers = 0;
        loop {
            client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
            let reply = client.reply();
            assert_eq!(reply.status, 200);
            answers += 1;
            if reply.header("connection") == Some("close") {
                break;
            }
        }
        assert_eq!(client.rest(), b"", "after {answers} answers");
        drop(client);
        drain.join().expect("drained");
    });
}

#[test]
fn a_second_proxy_on_the_same_address_is_refused() {
    let rig = Rig::with_workers(to(&[]), 2);
    let options = penstock::l7::Options {
        http: vec![rig.http],
        https: vec![],
        workers: 2,
        ticket_keys: None,
        temp: Default::default(),
        metering: Default::default(),
    };

    let refused = penstock::l7::Proxy::bind(options).err().expect("two proxies would share the clients");

    assert!(refused.to_string().contains("another program listens there"), "{refused}");
}

#[test]
fn a_request_that_outlives_its_snapshot_is_counted_where_it_began() {
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let slow = Backend::start(move |mut peer| {
        while let Some(head) = peer.head() {
            let answer = match head.starts_with("GET /old ") {
                true => {
                    let _ = wait.lock().expect("one such request").recv();
                    "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
                }
                false => "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
            };
            peer.try_send(answer.as_bytes());
        }
    });
    let quick = Backend::mirror();
    let before = to(&[slow.addr]);
    let mut after = to(&[quick.addr]);
    // One location more in front: what was the first route is the second.
    let server = after.servers.get_mut(&HostMatch::Any).expect("the server");
    let first = Location {
        path: PathMatch::Prefix("/new".to_owned()),
        path_label: "/new".to_owned(),
        ..server.locations[0].clone()
    };
    server.locations.insert(0, first);
    let rig = Rig::start(before);
    let mut client = rig.client();
    client.send("GET /old HTTP/1.1\r\nHost: a\r\n\r\n");
    while slow.connections() == 0 {
        thread::yield_now();
    }

    rig.publish(after);
    rig.ask_until("GET /new HTTP/1.1\r\nHost: a\r\n\r\n", 200);
    go.send(()).expect("the backend waits");
    assert_eq!(client.reply().status, 200);
    // The line is counted after the response was sent: the next request comes after that.
    client.send("GET /new HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.reply().status, 200);

    let metrics = rig.running.metrics();
    let requests =
        metrics.iter().find(|m| m.name == "nginx_ingress_controller_requests").expect("the metric");
    let of = |path: &str| -> f64 {
        let wanted = [("path", path.to_owned()), ("status", "200".to_owned())];
        let with = |s: &&Sample| wanted.iter().all(|label| s.labels.contains(label));
        requests.samples.iter().filter(with).map(|sample| sample.value).sum()
    };
    assert_eq!(of("/"), 1.0);
}

//! Which connections to such upstreams stay, and for how long.

use std::io::{Read, Write};
use std::time::Instant;

use lb_tests::h2_frames::{PREFACE, flag, frame, kind};
use penstock::model::l7::L7;
use penstock::model::upstream::Keepalive;
use tokio::sync::Notify;

use super::*;

/// Calls one after the other, and how many connections they took.
fn connections_of(calls: usize, keepalive: Keepalive) -> usize {
    let upstream = Upstream::start(echo);
    let rig = Rig::start(L7 { keepalive, ..to_with(&[upstream.addr], filters()) });
    let client = Client::connect(rig.http);
    for _ in 0..calls {
        let reply = client.ask(call("/"), &[b"x"]).expect("a response");
        assert_eq!(reply.trailers, Some(status("0")));
    }
    upstream.connections()
}

#[test]
fn connections_carry_as_many_calls_and_idle_as_long_as_the_configmap_says() {
    let by_default = Keepalive::default();

    assert_eq!(connections_of(6, by_default), 1);
    assert_eq!(connections_of(6, Keepalive { requests: 2, ..by_default }), 3);
    assert_eq!(connections_of(6, Keepalive { age: Duration::ZERO, ..by_default }), 6);
    assert_eq!(connections_of(6, Keepalive { idle: Duration::ZERO, ..by_default }), 6);
    assert_eq!(connections_of(6, Keepalive { connections: 0, ..by_default }), 6);
}

/// Answers one request, and says in the same breath that it takes no more for now.
fn once(mut stream: std::net::TcpStream) -> Option<()> {
    stream.write_all(&frame(kind::SETTINGS, 0, 0, &[])).ok()?;
    stream.read_exact(&mut [0; PREFACE.len()]).ok()?;
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).ok()?;
        let [a, b, c, what, flags, stream_id @ ..] = head;
        stream.read_exact(&mut vec![0; u32::from_be_bytes([0, a, b, c]) as usize]).ok()?;
        if what == kind::DATA && flags & flag::END_STREAM != 0 {
            let ends = flag::END_STREAM | flag::END_HEADERS;
            // `:status: 200` of the static table; MAX_CONCURRENT_STREAMS of 0.
            let answer = frame(kind::HEADERS, ends, u32::from_be_bytes(stream_id), &[0x88]);
            let no_more = frame(kind::SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 0]);
            stream.write_all(&[answer, no_more].concat()).ok()?;
        }
    }
}

#[test]
fn an_upstream_that_allows_no_streams_gathers_no_connections() {
    let upstream = Backend::start(|peer| {
        let _ = once(peer.stream);
    });
    let rig = Rig::start(to_with(&[upstream.addr], filters()));
    let client = Client::connect(rig.http);

    for _ in 0..5 {
        assert_eq!(client.ask(call("/"), &[b"x"]).expect("a response").head.status(), 200);
    }

    assert_eq!(upstream.connections(), 5);
    assert!(rig.metric("penstock_l7_upstream_http2_connections") <= 1.0);
}

#[test]
fn of_connections_that_many_calls_at_once_left_few_stay() {
    let mut builder = h2::server::Builder::new();
    builder.max_concurrent_streams(1);
    let (arrived, all_there) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
    let upstream = Upstream::with(builder, None, move |request, respond| {
        let (arrived, all_there) = (Arc::clone(&arrived), Arc::clone(&all_there));
        async move {
            if request.uri().path() == "/wait" {
                let told = all_there.notified();
                if arrived.fetch_add(1, Ordering::SeqCst) + 1 == 6 {
                    all_there.notify_waiters();
                } else {
                    told.await;
                }
            }
            echo(request, respond).await;
        }
    });
    let l7 = to_with(&[upstream.addr], filters());
    let rig = Rig::start(l7.clone());
    let client = Client::connect(rig.http);
    client.ask(call("/"), &[b"first"]).expect("a response");
    client.runtime.block_on(async {
        let calls: Vec<_> = (0..6)
            .map(|_| tokio::spawn(exchange(client.requests.clone(), call("/wait"), vec![b"x"], None)))
            .collect();
        for call in calls {
            limited(call).await.expect("task").expect("a response");
        }
    });
    assert_eq!(upstream.connections(), 6);

    let keepalive = Keepalive { connections: 2, ..l7.keepalive };
    rig.publish(L7 { keepalive, ..l7 });

    let started = Instant::now();
    while rig.metric("penstock_l7_upstream_http2_connections") > 2.0 {
        assert!(started.elapsed() < DEADLINE, "connections that idle stay");
        std::thread::yield_now();
    }
}

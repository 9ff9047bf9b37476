//! Bodies of requests over HTTP/2 that nobody takes: answered early, or sent to an endpoint that hangs.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Request;
use lb_tests::h2_frames::{Frames, Outcome, kind, request};
use penstock::l7::Temp;
use penstock::model::l7::{Buffers, Filters, Protocol};

use crate::h2_client::{Client, limited, say};
use crate::rig::{Backend, DEADLINE, Rig, and_to, to_with};

#[test]
fn what_is_under_way_of_uploads_that_were_answered_ends_no_connection() {
    const STREAMS: u32 = 120;
    let backend = Backend::mirror();
    let limit = Filters { max_body_bytes: Some(1000), ..Filters::default() };
    let rig = Rig::start(to_with(&[backend.addr], limit));
    let mut client = Frames::connect(rig.http, DEADLINE);
    let upload = [&request("POST", "/")[..], &[("content-length", "5000")]].concat();
    for i in 0..STREAMS {
        client.headers(2 * i + 1, 0, &upload);
        // It is told that it is too large, and then that the rest is not wanted (RFC 9113 8.1).
        assert!(client.until(kind::HEADERS).is_some());
        assert_eq!(client.outcome(2 * i + 1), Outcome::Reset(0));
    }

    for i in 0..STREAMS {
        assert!((0..3).all(|_| client.send(kind::DATA, 0, 2 * i + 1, &[7; 100])));
    }

    client.get(2 * STREAMS + 1, "/");
    assert_eq!(client.outcome(2 * STREAMS + 1), Outcome::Status(200));
}

#[test]
fn uploads_that_nobody_takes_leave_room_for_all_others() {
    const STREAMS: usize = 60;
    static BODY: [u8; 250_000] = [7; 250_000];
    // Takes connections and says nothing to a TLS handshake.
    let silent = Backend::start(|mut peer| {
        peer.stream.set_read_timeout(None).expect("no timeout");
        peer.rest();
    });
    let mirror = Backend::mirror();
    let hangs = Filters {
        protocol: Protocol::Https,
        connect_timeout: Duration::from_secs(3600),
        max_body_bytes: None,
        ..Filters::default()
    };
    let l7 = to_with(&[silent.addr], hangs);
    let rig = Rig::start(and_to(l7, "/other", mirror.addr));
    let client = Client::connect(rig.http);
    let post = |path| Request::post(format!("http://a.example{path}")).body(()).expect("request");

    let requests = client.requests.clone();
    let waiting = client.runtime.block_on(limited(async {
        let mut waiting = Vec::new();
        for i in 0..STREAMS {
            let mut requests = requests.clone().ready().await.expect("ready");
            let (response, mut stream) = requests.send_request(post("/hangs"), false).expect("sent");
            say(&mut stream, Bytes::from_static(&BODY)).await;
            waiting.push((i, response, stream));
        }
        waiting
    }));

    let reply = client.ask(post("/other"), &[&BODY[..]]).expect("a response");
    assert_eq!(reply.head.status(), 200);
    drop(waiting);
}

#[test]
fn many_small_bodies_at_once_take_nothing_of_the_memory_of_all_bodies() {
    const STREAMS: u32 = 32;
    let backend = Backend::mirror();
    let rig = Rig::start(to_with(&[backend.addr], Filters::default()));
    let mut client = Frames::connect(rig.http, DEADLINE);
    let last = 2 * STREAMS + 1;
    for i in 0..STREAMS {
        client.headers(2 * i + 1, 0, &request("POST", "/"));
        client.send(kind::DATA, 0, 2 * i + 1, b"0123456789");
    }
    client.get(last, "/");
    assert_eq!(client.outcome(last), Outcome::Status(200));

    assert_eq!(rig.metric("penstock_l7_body_memory_bytes"), 0.0);
}

#[test]
fn bodies_of_one_connection_leave_memory_to_those_of_others() {
    const STREAMS: usize = 16;
    const MEMORY: u32 = 1 << 20;
    static BODY: [u8; 250_000] = [7; 250_000];
    let backend = Backend::mirror();
    let buffers = Buffers { request: Some(Buffers::MEMORY_MAX), ..Buffers::default() };
    let holding = Filters { max_body_bytes: None, buffers, ..Filters::default() };
    let temp = Temp { memory_bytes: MEMORY.into(), ..Temp::default() };
    let rig = Rig::with_temp(to_with(&[backend.addr], holding), temp);
    let taken = || rig.metric("penstock_l7_body_memory_bytes");
    let client = Client::connect(rig.http);
    let put = || Request::put("http://a.example/").body(()).expect("request");

    let requests = client.requests.clone();
    let greedy = client.runtime.block_on(limited(async {
        let mut unfinished = Vec::new();
        for _ in 0..STREAMS {
            let mut requests = requests.clone().ready().await.expect("ready");
            let (response, mut stream) = requests.send_request(put(), false).expect("sent");
            say(&mut stream, Bytes::from_static(&BODY)).await;
            unfinished.push((response, stream));
        }
        unfinished
    }));

    let started = Instant::now();
    while rig.metric("penstock_l7_temp_file_bytes") < 2.0 * f64::from(MEMORY) {
        assert!(started.elapsed() < DEADLINE, "all are in memory");
        std::thread::yield_now();
    }
    assert_eq!(taken(), f64::from(MEMORY / 4));
    let mut other = rig.client();
    other.send("PUT / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 1000000\r\n\r\n");
    other.send(BODY);
    while taken() <= f64::from(MEMORY / 4) {
        assert!(started.elapsed() < DEADLINE, "nothing is left");
        std::thread::yield_now();
    }
    drop(greedy);
}

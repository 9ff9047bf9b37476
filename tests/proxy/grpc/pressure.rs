//! Streams that somebody does not read, gives up, or fills with small and empty frames, and connections on which nothing
//! comes any more: the others go on.

use std::io::Read;
use std::net::TcpListener;

use lb_tests::h2_frames::{Frames, Outcome, PREFACE, block, flag, frame, kind, request};
use tokio::sync::Semaphore;

use super::*;
use crate::h2_client::Reply;

/// A message of ten bytes.
const MESSAGE: &[u8] = &[0, 0, 0, 0, 10, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10];
/// So many of them fit into the window of a stream.
const MESSAGES: usize = 17_000;

/// One whose streams leave little unsent.
fn eager() -> h2::server::Builder {
    let mut builder = h2::server::Builder::new();
    builder.max_send_buffer_size(1024);
    builder
}

/// Opens streams for calls whose answers it does not read.
fn reading_nothing(rig: &Rig, streams: u32, path: &str) -> Frames {
    let mut frames = Frames::connect(rig.http, DEADLINE);
    frames.send(kind::SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]);
    for i in 0..streams {
        frames.headers(2 * i + 1, flag::END_STREAM, &call_of(path));
    }
    frames
}

/// Reads DATA of `streams` streams to their ends, and says how many bytes that were.
fn read_all(frames: &mut Frames, streams: usize) -> usize {
    let (mut bytes, mut ended) = (0, 0);
    while ended < streams {
        let frame = frames.receive().expect("a frame");
        assert!(!matches!(frame.kind, kind::RST_STREAM | kind::GOAWAY), "{frame:?}");
        bytes += if frame.kind == kind::DATA { frame.payload.len() } else { 0 };
        let may_end = matches!(frame.kind, kind::DATA | kind::HEADERS);
        ended += usize::from(may_end && frame.flags & flag::END_STREAM != 0);
    }
    bytes
}

/// A head of HTTP/2 that is answered by gRPC.
fn call_of(path: &str) -> Vec<(&str, &str)> {
    [&request("POST", path)[..], &[("content-type", "application/grpc")]].concat()
}

/// A window's worth of messages, each in a frame of its own.
fn messages(stream: u32) -> Vec<u8> {
    frame(kind::DATA, 0, stream, MESSAGE).repeat(MESSAGES)
}

#[test]
fn small_messages_that_a_client_does_not_read_end_no_other_call() {
    const STREAMS: u32 = 4;
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("bind");
    let rig = Rig::start(to_with(&[listener.local_addr().expect("bound")], filters()));
    let mut client = reading_nothing(&rig, STREAMS, "/drip");
    let mut upstream = upstream_of_frames(&listener);
    let streams: Vec<_> = (0..STREAMS).map(|_| asked(&mut upstream)).collect();
    for stream in &streams {
        upstream.send(kind::HEADERS, flag::END_HEADERS, *stream, OK);
        upstream.send_raw(&messages(*stream));
    }

    // Behind all of that.
    let mut other = Frames::connect(rig.http, DEADLINE);
    other.headers(1, flag::END_STREAM, &call_of("/"));
    let stream = asked(&mut upstream);
    upstream.send(kind::HEADERS, flag::END_HEADERS | flag::END_STREAM, stream, OK);
    assert_eq!(other.outcome(1), Outcome::Status(200));

    for stream in streams {
        upstream.send(kind::DATA, flag::END_STREAM, stream, &[]);
    }
    client.send(kind::SETTINGS, 0, 0, &[0, 4, 0x10, 0, 0, 0]);
    client.send(kind::WINDOW_UPDATE, 0, 0, &[0x10, 0, 0, 0]);
    assert_eq!(read_all(&mut client, STREAMS as usize), STREAMS as usize * MESSAGES * MESSAGE.len());
}

#[test]
fn small_messages_that_an_upstream_does_not_read_end_no_other_call() {
    const STREAMS: u32 = 4;
    let may_read = Arc::new(Semaphore::new(0));
    let reads = Arc::clone(&may_read);
    let mut builder = h2::server::Builder::new();
    builder.data_frame_budget(usize::MAX);
    let upstream = Upstream::with(builder, None, move |request, mut respond| {
        let may_read = Arc::clone(&may_read);
        async move {
            let waits = request.uri().path() == "/later";
            let mut body = request.into_body();
            if waits {
                drop(may_read.acquire().await);
            }
            let mut length = 0;
            while let Some(Ok(data)) = body.data().await {
                length += data.len();
                let _ = body.flow_control().release_capacity(data.len());
            }
            let mut stream = respond.send_response(grpc_head(), false).expect("sent");
            let _ = stream.send_data(format!("{length} ").into(), false);
            let _ = stream.send_trailers(status("0"));
        }
    });
    let rig = Rig::start(to_with(&[upstream.addr], filters()));
    let mut client = Frames::connect(rig.http, DEADLINE);
    // From then on the windows are those that it was told.
    client.until(kind::SETTINGS).expect("settings");
    client.send(kind::SETTINGS, flag::ACK, 0, &[]);
    for i in 0..STREAMS {
        client.headers(2 * i + 1, 0, &call_of("/later"));
        client.send_raw(&messages(2 * i + 1));
    }

    // Behind all of that.
    let now = 2 * STREAMS + 1;
    client.headers(now, flag::END_STREAM, &call_of("/now"));
    assert_eq!(client.outcome(now), Outcome::Status(200));

    reads.add_permits(1);
    for i in 0..STREAMS {
        client.send(kind::DATA, flag::END_STREAM, 2 * i + 1, &[]);
    }
    let mut said = String::new();
    let expected = format!("{} ", MESSAGES * MESSAGE.len());
    while said.matches(&expected).count() < STREAMS as usize {
        let frame = client.receive().expect("a frame");
        assert!(!matches!(frame.kind, kind::RST_STREAM | kind::GOAWAY), "{frame:?}");
        if frame.kind == kind::DATA {
            said += &String::from_utf8_lossy(&frame.payload);
        }
    }
}

#[test]
fn small_messages_behind_many_calls_that_begin_at_once_end_none() {
    const STREAMS: u32 = 127;
    let mut builder = h2::server::Builder::new();
    builder.data_frame_budget(usize::MAX);
    let upstream = Upstream::with(builder, None, |request, mut respond| async move {
        if request.uri().path() == "/later" {
            return std::future::pending().await;
        }
        let mut stream = respond.send_response(grpc_head(), false).expect("sent");
        let _ = stream.send_trailers(status("0"));
    });
    let rig = Rig::start(to_with(&[upstream.addr], filters()));
    let mut client = Frames::connect(rig.http, DEADLINE);
    // From then on the windows are those that it was told.
    client.until(kind::SETTINGS).expect("settings");
    client.send(kind::SETTINGS, flag::ACK, 0, &[]);

    let call = block(&call_of("/later"));
    let heads = (0..STREAMS).flat_map(|i| frame(kind::HEADERS, flag::END_HEADERS, 2 * i + 1, &call));
    let bodies = (STREAMS - 3..STREAMS).flat_map(|i| messages(2 * i + 1));
    client.send_raw(&heads.chain(bodies).collect::<Vec<_>>());

    let now = 2 * STREAMS + 1;
    client.headers(now, flag::END_STREAM, &call_of("/now"));
    assert_eq!(client.outcome(now), Outcome::Status(200));
}

#[test]
fn calls_that_a_client_does_not_read_leave_room_for_all_others() {
    const STREAMS: u32 = 99;
    static ANSWER: [u8; 250_000] = [7; 250_000];
    let (sent, was_sent) = mpsc::channel();
    let upstream = Upstream::with(eager(), None, move |request, mut respond| {
        let sent = sent.clone();
        async move {
            if request.uri().path() != "/large" {
                return echo(request, respond).await;
            }
            let mut stream = respond.send_response(grpc_head(), false).expect("sent");
            say(&mut stream, Bytes::from_static(&ANSWER)).await;
            let _ = sent.send(());
            std::future::poll_fn(|cx| stream.poll_reset(cx)).await.ok();
        }
    });
    let rig = Rig::start(to_with(&[upstream.addr], filters()));
    let client = Client::connect(rig.http);
    assert_eq!(client.ask(call("/"), &[b"first"]).expect("a response").text(), "first");

    let frames = reading_nothing(&rig, STREAMS, "/large");

    for i in 0..STREAMS {
        was_sent.recv_timeout(DEADLINE).unwrap_or_else(|_| panic!("{i} streams hold all there is"));
    }
    assert_eq!(client.ask(call("/"), &[b"more"]).expect("a response").text(), "more");
    assert_eq!(upstream.connections(), 1);
    drop(frames);
}

/// An upstream of one connection, frame by frame; the first frames are behind.
fn upstream_of_frames(listener: &TcpListener) -> Frames {
    let (mut stream, _) = listener.accept().expect("a connection");
    stream.read_exact(&mut [0; PREFACE.len()]).expect("the preface");
    let mut frames = Frames::over(stream, DEADLINE);
    frames.send(kind::SETTINGS, 0, 0, &[]);
    // From then on the windows are those that it was told.
    frames.until(kind::SETTINGS).expect("settings");
    frames.send(kind::SETTINGS, flag::ACK, 0, &[]);
    frames
}

/// The stream of the next request.
fn asked(frames: &mut Frames) -> u32 {
    frames.until(kind::HEADERS).expect("a request").stream
}

/// `:status: 200` of the static table.
const OK: &[u8] = &[0x88];

#[test]
fn bytes_under_way_to_clients_that_gave_up_end_no_other_call() {
    const STREAMS: u32 = 90;
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("bind");
    let rig = Rig::start(to_with(&[listener.local_addr().expect("bound")], filters()));
    let mut client = Frames::connect(rig.http, DEADLINE);
    let call = |client: &mut Frames, stream| client.headers(stream, flag::END_STREAM, &call_of("/"));
    (0..STREAMS).for_each(|i| assert!(call(&mut client, 2 * i + 1)));
    let mut upstream = upstream_of_frames(&listener);
    let streams: Vec<_> = (0..STREAMS).map(|_| asked(&mut upstream)).collect();
    for stream in &streams {
        upstream.send(kind::HEADERS, flag::END_HEADERS, *stream, OK);
    }
    for i in 0..STREAMS {
        assert_eq!(client.until(kind::HEADERS).expect("an answer").stream % 2, 1, "{i}");
    }
    for i in 0..STREAMS {
        client.send(kind::RST_STREAM, 0, 2 * i + 1, &8u32.to_be_bytes());
    }
    for _ in 0..STREAMS {
        upstream.until(kind::RST_STREAM).expect("the call is given up");
    }

    for stream in streams {
        upstream.send_raw(&frame(kind::DATA, 0, stream, MESSAGE).repeat(50));
    }

    assert!(call(&mut client, 2 * STREAMS + 1));
    let stream = asked(&mut upstream);
    upstream.send(kind::HEADERS, flag::END_HEADERS | flag::END_STREAM, stream, OK);
    assert_eq!(client.outcome(2 * STREAMS + 1), Outcome::Status(200));
}

#[test]
fn an_upstream_may_send_an_empty_frame_with_each_answer() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("bind");
    let rig = Rig::start(to_with(&[listener.local_addr().expect("bound")], filters()));
    let mut client = Frames::connect(rig.http, DEADLINE);
    let mut ask = |i: u32| {
        // So may a client with each request.
        client.headers(2 * i + 1, 0, &call_of("/"));
        client.send(kind::DATA, 0, 2 * i + 1, &[]);
        client.send(kind::DATA, flag::END_STREAM, 2 * i + 1, MESSAGE);
    };
    ask(0);
    let mut upstream = upstream_of_frames(&listener);
    for i in 0..300 {
        let stream = asked(&mut upstream);
        upstream.send(kind::HEADERS, flag::END_HEADERS, stream, OK);
        upstream.send(kind::DATA, 0, stream, &[]);
        upstream.send(kind::DATA, flag::END_STREAM, stream, MESSAGE);
        ask(i + 1);
    }

    for i in 0..300 {
        assert_eq!(client.outcome(2 * i + 1), Outcome::Status(200), "{i}");
    }
}

#[test]
fn a_call_that_its_upstream_does_not_read_stops_no_other() {
    static MESSAGE: [u8; 80_000] = [7; 80_000];
    let (full, is_full) = mpsc::channel();
    let upstream = Upstream::start(move |request, respond| {
        let full = full.clone();
        async move {
            if request.uri().path() != "/stall" {
                return echo(request, respond).await;
            }
            // The window of the connection is that of one stream, and is never given back.
            let (mut body, mut length) = (request.into_body(), 0);
            while length < 65_535 {
                length += body.data().await.map_or(0, |data| data.expect("data").len());
            }
            let _ = full.send(());
            std::future::pending().await
        }
    });
    let rig = Rig::start(to_with(&[upstream.addr], filters()));
    let client = Client::connect(rig.http);
    let requests = client.requests.clone();
    let stalled = client.runtime.block_on(limited(async {
        let mut requests = requests.ready().await.expect("ready");
        let (response, mut stream) = requests.send_request(call("/stall"), false).expect("sent");
        stream.send_data(Bytes::from_static(&MESSAGE), false).expect("sent");
        (response, stream)
    }));
    is_full.recv_timeout(DEADLINE).expect("the window is used up");

    let reply = answered_before_long(&rig);

    assert_eq!((reply.text().as_str(), upstream.connections()), ("hello", 2));
    drop(stalled);
}

/// What a call is answered; those that come before it is known that a connection is of no use wait, and are given up.
fn answered_before_long(rig: &Rig) -> Reply {
    let client = Client::connect(rig.http);
    let patience = Duration::from_secs(2);
    let started = std::time::Instant::now();
    client.runtime.block_on(async {
        loop {
            let asked = exchange(client.requests.clone(), call("/"), vec![b"hello"], None);
            if let Ok(reply) = tokio::time::timeout(patience, asked).await {
                return reply.expect("a response");
            }
            assert!(started.elapsed() < DEADLINE, "nobody is served");
        }
    })
}

#[test]
fn a_connection_that_is_mute_takes_no_more_calls() {
    let mute = TcpListener::bind(("127.0.0.1", 0)).expect("bind");
    let addr = mute.local_addr().expect("bound");
    let rig = Rig::start(to_with(&[addr], filters()));
    let mut first = Frames::connect(rig.http, DEADLINE);
    first.headers(1, flag::END_STREAM, &call_of("/"));
    let mut lost = upstream_of_frames(&mute);
    // From now on it is as if its host had vanished, and another one had its address.
    asked(&mut lost);
    let upstream = std::thread::spawn(move || {
        let mut upstream = upstream_of_frames(&mute);
        let stream = asked(&mut upstream);
        upstream.send(kind::HEADERS, flag::END_HEADERS | flag::END_STREAM, stream, OK);
        upstream
    });

    assert_eq!(answered_before_long(&rig).head.status(), 200);

    drop((upstream.join().expect("no panic"), lost));
}

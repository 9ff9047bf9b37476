//! Calls that wait for a connection which another call is opening, and for what its upstream says first.

use std::io::{Read, Write};
use std::net::TcpListener;

use lb_tests::h2_frames::{Frames, PREFACE, flag, frame, kind};
use penstock::model::l7::{L7, PathMatch, Retry};
use tokio::sync::Notify;

use super::*;

const LONG: &str = "GET /long HTTP/1.1\r\nHost: a\r\n\r\n";
const SHORT: &str = "GET /short HTTP/1.1\r\nHost: a\r\n\r\n";

/// Two locations: to connect to the endpoint may take very long by one, and `short` by the other.
fn locations(endpoint: SocketAddr, short: Duration) -> L7 {
    let retry = Retry { tries: 1, ..Retry::default() };
    let connect_timeout = Duration::from_secs(3600);
    let filters = Filters { protocol: Protocol::Grpcs, connect_timeout, retry, ..filters() };
    let mut l7 = to_with(&[endpoint], filters);
    l7.servers.edit(|_, server| {
        let mut location = server.locations[0].clone();
        location.path = PathMatch::Prefix("/short".to_owned());
        location.filters.connect_timeout = short;
        server.locations.insert(0, location);
    });
    l7
}

/// An endpoint that takes connections, tells of each, and never says a word of TLS.
fn silent() -> (Backend, mpsc::Receiver<()>) {
    let (came, coming) = mpsc::channel();
    let backend = Backend::start(move |mut peer| {
        let _ = came.send(());
        peer.stream.set_read_timeout(None).expect("no timeout");
        peer.rest();
    });
    (backend, coming)
}

#[test]
fn a_call_waits_for_it_no_longer_than_its_own_location_says() {
    let (backend, coming) = silent();
    let rig = Rig::start(locations(backend.addr, Duration::from_millis(100)));
    let mut first = rig.client();
    first.send(LONG);
    coming.recv_timeout(DEADLINE).expect("a connection is being opened");

    assert_eq!(rig.ask(SHORT).status, 504);
    assert_eq!(backend.connections(), 1, "it had waited for the one");
}

#[test]
fn a_call_that_may_wait_longer_than_the_other_opens_one_of_its_own() {
    let (backend, coming) = silent();
    let rig = Rig::start(locations(backend.addr, Duration::from_secs(1)));
    let [mut first, mut second] = [rig.client(), rig.client()];
    first.send(SHORT);
    coming.recv_timeout(DEADLINE).expect("a connection is being opened");
    second.send(LONG);

    assert_eq!(first.reply().status, 504);
    coming.recv_timeout(DEADLINE).expect("another one is being opened");
}

/// Calls at once to an upstream that takes `limit` on a connection and refuses what is more: how many connections they
/// took, and how often it let one down.
fn cold_calls(calls: usize, limit: u32) -> (usize, f64) {
    let mut builder = h2::server::Builder::new();
    builder.max_concurrent_streams(limit);
    let (arrived, all_there) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
    let upstream = Upstream::with(builder, None, move |request, respond| {
        let (arrived, all_there) = (Arc::clone(&arrived), Arc::clone(&all_there));
        async move {
            let told = all_there.notified();
            if arrived.fetch_add(1, Ordering::SeqCst) + 1 == calls {
                all_there.notify_waiters();
            } else {
                told.await;
            }
            echo(request, respond).await;
        }
    });
    let rig = Rig::start(to_with(&[upstream.addr], filters()));
    let client = Client::connect(rig.http);

    client.runtime.block_on(async {
        let calls: Vec<_> = (0..calls)
            .map(|_| tokio::spawn(exchange(client.requests.clone(), call("/"), vec![b"x"], None)))
            .collect();
        for call in calls {
            let reply = limited(call).await.expect("task").expect("a response");
            assert_eq!(reply.trailers, Some(status("0")), "limit {limit}");
        }
    });

    (upstream.connections(), rig.metric("penstock_l7_upstream_failures_total"))
}

#[test]
fn calls_at_once_on_a_cold_endpoint_are_no_more_than_it_allows() {
    for (limit, calls) in [(1, 20), (3, 20), (10, 60), (50, 100)] {
        let (connections, failures) = cold_calls(calls, limit);

        let fewest = calls.div_ceil(limit as usize);
        assert_eq!(failures, 0.0, "limit {limit}");
        // More where an upstream takes a second for its first word.
        assert!((fewest..=2 * fewest).contains(&connections), "limit {limit}: {connections} connections");
    }
}

/// An upstream that says nothing before it has so many calls, by so many connections.
fn slow_to_begin(calls: usize, connections: usize) -> SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("bind");
    let addr = listener.local_addr().expect("bound");
    std::thread::spawn(move || {
        let (came, coming) = mpsc::channel();
        let mut ends: Vec<_> = (0..connections)
            .map(|number| {
                let (mut stream, _) = listener.accept().expect("a connection");
                let (end, came) = (stream.try_clone().expect("another end"), came.clone());
                std::thread::spawn(move || {
                    stream.read_exact(&mut [0; PREFACE.len()]).expect("the preface");
                    let mut frames = Frames::over(stream, DEADLINE);
                    while let Some(call) = frames.until(kind::HEADERS) {
                        let _ = came.send((number, call.stream));
                    }
                });
                end
            })
            .collect();
        let called: Vec<_> = coming.iter().take(calls).collect();
        let mut send = |number: usize, bytes: &[u8]| ends[number].write_all(bytes).expect("sent");
        (0..connections).for_each(|number| send(number, &frame(kind::SETTINGS, 0, 0, &[])));
        for (number, stream) in called {
            // `:status: 200` of the static table.
            send(number, &frame(kind::HEADERS, flag::END_HEADERS | flag::END_STREAM, stream, &[0x88]));
        }
    });
    addr
}

/// What so many calls at once come to by one that is `slow_to_begin`, where to connect may take so long.
fn calls_to_one_that_is_slow(calls: usize, connections: usize, connect_timeout: Duration) {
    let filters = Filters { connect_timeout, ..filters() };
    let rig = Rig::start(to_with(&[slow_to_begin(calls, connections)], filters));
    let mut clients: Vec<_> = (0..calls).map(|_| rig.client()).collect();

    clients.iter_mut().for_each(|client| client.send(SHORT));

    for client in &mut clients {
        assert_eq!(client.reply().status, 200, "{calls} calls, {connections} connections");
    }
}

#[test]
fn calls_to_an_endpoint_that_is_too_busy_to_begin_have_a_connection_each() {
    calls_to_one_that_is_slow(4, 4, Filters::default().connect_timeout);
}

#[test]
fn that_it_says_nothing_is_no_failure_to_connect() {
    calls_to_one_that_is_slow(3, 3, Duration::from_millis(100));
    calls_to_one_that_is_slow(130, 100, Duration::from_secs(2));
}

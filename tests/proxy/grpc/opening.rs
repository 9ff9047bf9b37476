//! Calls that wait for a connection which another call is opening.

use penstock::model::l7::{L7, PathMatch, Retry};

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

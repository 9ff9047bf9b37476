//! Clients that a cookie leads back to their endpoint.

use std::net::SocketAddr;

use penstock::model::canary::{self, Canary, Rules, Weight};
use penstock::model::l7::L7;
use penstock::model::session::{Affinity, Mode, OnFailure, SessionCookie};
use penstock::model::upstream::{Upstream, UpstreamName};

use crate::rig::{Backend, Reply, Rig, nobody, to};

const MODES: [Mode; 2] = [Mode::Balanced, Mode::Persistent];

/// Says at which address it was asked.
fn backend() -> Backend {
    Backend::start(|mut peer| {
        let name = peer.stream.local_addr().expect("bound").to_string();
        while peer.head().is_some() {
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{name}", name.len());
            if !peer.try_send(answer.as_bytes()) {
                return;
            }
        }
    })
}

fn affinity(mode: Mode) -> Affinity {
    let places = [("_".to_owned(), "/".to_owned())].into();
    Affinity { mode, cookie: SessionCookie::default(), on_failure: OnFailure::Stay, places }
}

fn keeping(endpoints: &[SocketAddr], affinity: &Affinity) -> L7 {
    let mut l7 = to(endpoints);
    l7.upstreams.edit(|_, upstream| {
        upstream.affinity = Some(affinity.clone());
    });
    l7
}

fn get(cookie: &str) -> String {
    format!("GET / HTTP/1.1\r\nHost: h\r\nCookie: other=1; {cookie}\r\n\r\n")
}

/// `name=value` of the cookie that a reply sets.
fn cookie(reply: &Reply) -> Option<String> {
    let line = reply.header("set-cookie")?;
    line.split(';').next().map(str::to_owned)
}

fn begin(rig: &Rig) -> (String, String) {
    let reply = rig.ask(&get("a=b"));
    (cookie(&reply).expect("a session begins"), reply.text())
}

#[test]
fn a_cookie_of_one_worker_leads_all_of_them_and_another_process_to_the_endpoint() {
    let backends: Vec<_> = (0..4).map(|_| backend()).collect();
    let addrs: Vec<_> = backends.iter().map(|backend| backend.addr).collect();
    for mode in MODES {
        let l7 = keeping(&addrs, &affinity(mode));
        let rig = Rig::with_workers(l7.clone(), 4);
        let first = rig.ask(&get("a=b"));
        let line = first.header("set-cookie").expect("a session begins");
        assert!(line.starts_with("INGRESSCOOKIE=") && line.ends_with("; Path=/; HttpOnly"), "{line}");
        let (cookie, endpoint) = (cookie(&first).expect("a cookie"), first.text());

        // Each on a connection of its own: they spread over the workers.
        for _ in 0..40 {
            let reply = rig.ask(&get(&cookie));
            assert_eq!(
                (reply.text().as_str(), reply.header("set-cookie")),
                (endpoint.as_str(), None),
                "{mode:?}"
            );
        }
        drop(rig);
        let restarted = Rig::with_workers(l7, 2);
        assert_eq!(restarted.ask(&get(&cookie)).text(), endpoint, "{mode:?}");
    }
}

#[test]
fn sessions_spread_over_the_endpoints() {
    let backends: Vec<_> = (0..4).map(|_| backend()).collect();
    let addrs: Vec<_> = backends.iter().map(|backend| backend.addr).collect();
    for mode in MODES {
        let rig = Rig::start(keeping(&addrs, &affinity(mode)));
        let endpoints: std::collections::BTreeSet<_> = (0..64).map(|_| begin(&rig).1).collect();
        assert_eq!(endpoints.len(), 4, "{mode:?}");
    }
}

#[test]
fn a_session_whose_endpoint_is_gone_gets_another_one_and_its_cookie() {
    let (one, other) = (backend(), backend());
    for mode in MODES {
        let rig = Rig::start(keeping(&[one.addr], &affinity(mode)));
        let (old, _) = begin(&rig);

        rig.publish(keeping(&[], &affinity(mode)));
        assert_eq!(rig.ask_until(&get(&old), 503).header("set-cookie"), None);
        rig.publish(keeping(&[other.addr], &affinity(mode)));
        let reply = rig.ask_until(&get(&old), 200);

        assert_eq!(reply.text(), other.addr.to_string(), "{mode:?}");
        match mode {
            // The key still leads somewhere.
            Mode::Balanced => assert_eq!(cookie(&reply), None),
            Mode::Persistent => assert!(cookie(&reply).is_some_and(|new| new != old)),
        }
    }
}

#[test]
fn a_session_whose_endpoint_fails_stays_unless_it_may_move() {
    let good = backend();
    for mode in MODES {
        let bad = nobody();
        let stays = affinity(mode);
        let moves = Affinity { on_failure: OnFailure::Move, ..affinity(mode) };

        let rig = Rig::start(keeping(&[good.addr, bad], &stays));
        // Whoever has no session yet is led to who answers, and stays there.
        for _ in 0..8 {
            let (cookie, endpoint) = begin(&rig);
            assert_eq!(endpoint, good.addr.to_string(), "{mode:?}");
            assert_eq!(rig.ask(&get(&cookie)).text(), endpoint);
        }
        // A session that began while the other one still answered.
        let lost = lost_session(mode, good.addr, bad);
        let reply = rig.ask(&get(&lost));
        assert_eq!((reply.status, cookie(&reply)), (502, None), "{mode:?}");

        let rig = Rig::start(keeping(&[good.addr, bad], &moves));
        let reply = rig.ask(&get(&lost));
        assert_eq!((reply.status, reply.text()), (200, good.addr.to_string()), "{mode:?}");
        let moved = cookie(&reply).expect("it moved");
        assert_eq!(rig.ask(&get(&moved)).header("set-cookie"), None, "{mode:?}");
    }
}

/// The cookie of a session at `bad`, as it was handed out before that one went away.
fn lost_session(mode: Mode, good: SocketAddr, bad: SocketAddr) -> String {
    let listener = std::net::TcpListener::bind(bad).expect("the port is still free");
    let serve = std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut peer = crate::rig::Client::over(stream);
            if peer.head().is_some_and(|head| head.contains("/end")) {
                peer.try_send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
                return;
            }
            peer.try_send(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbad");
        }
    });
    let rig = Rig::start(keeping(&[good, bad], &affinity(mode)));
    let lost = loop {
        let (cookie, endpoint) = begin(&rig);
        if endpoint == "bad" {
            break cookie;
        }
    };
    rig.ask(&format!("GET /end HTTP/1.1\r\nHost: h\r\nCookie: {lost}\r\n\r\n"));
    serve.join().expect("it ends");
    lost
}

#[test]
fn where_nobody_asks_for_sessions_none_begins_but_one_that_began_counts() {
    let backends: Vec<_> = (0..4).map(|_| backend()).collect();
    let addrs: Vec<_> = backends.iter().map(|backend| backend.addr).collect();
    let elsewhere = Affinity {
        places: [("other.example".to_owned(), "/".to_owned())].into(),
        ..affinity(Mode::Persistent)
    };
    let (cookie, endpoint) = begin(&Rig::start(keeping(&addrs, &affinity(Mode::Persistent))));
    let rig = Rig::start(keeping(&addrs, &elsewhere));

    assert_eq!(rig.ask(&get("a=b")).header("set-cookie"), None);
    for _ in 0..8 {
        assert_eq!(rig.ask(&get(&cookie)).text(), endpoint);
    }
}

#[test]
fn a_session_stays_with_canary_or_primary_unless_the_rules_decide_anew() {
    let (old, new) = (backend(), backend());
    let l7 = |part: u32, sessions: canary::Sessions| {
        let mut l7 = keeping(&[old.addr], &affinity(Mode::Persistent));
        let name = UpstreamName("default-next-80".to_owned());
        let rules = Rules { weight: Weight { part, of: 100 }, ..Rules::default() };
        l7.upstreams.edit(|_, upstream| {
            upstream.canary = Some(Canary { upstream: name.clone(), rules: rules.clone(), sessions });
        });
        let endpoints = [new.addr].into();
        let affinity = Some(affinity(Mode::Persistent));
        l7.upstreams.insert(name, Upstream { endpoints, affinity, ..Upstream::default() });
        l7
    };
    let (stay, anew) = (canary::Sessions::Stay, canary::Sessions::DecidedAnew);
    let (at_old, _) = begin(&Rig::start(l7(0, stay)));
    let (at_new, endpoint) = begin(&Rig::start(l7(100, stay)));
    assert_eq!(endpoint, new.addr.to_string());

    for (case, sessions, part, cookie, expected) in [
        ("primary stays", stay, 100, &at_old, old.addr),
        ("canary stays", stay, 0, &at_new, new.addr),
        ("primary, decided anew", anew, 100, &at_old, new.addr),
        ("canary, decided anew", anew, 0, &at_new, old.addr),
    ] {
        let reply = Rig::start(l7(part, sessions)).ask(&get(cookie));
        assert_eq!(reply.text(), expected.to_string(), "{case}");
    }
}

//! How often, and how often at once, a client may ask.

use std::sync::{Arc, Mutex, mpsc};

use penstock::model::ObjectName;
use penstock::model::expression::{Expression, Part, Variable};
use penstock::model::l4::Prefix;
use penstock::model::l7::policy::{Access, AddressSet, Allowance, Limits};
use penstock::model::l7::{Filters, L7, Policies};

use crate::h2_client;
use crate::rig::{Backend, Client, DEADLINE, Reply, Rig, to_with};

const GET: &str = "GET /a HTTP/1.1\r\nHost: h\r\n\r\n";

fn limits() -> Limits {
    Limits {
        ingress: ObjectName::new("default", "echo"),
        per_second: None,
        per_minute: None,
        often_status: 429,
        at_once: None,
        at_once_status: 503,
        by: None,
        exempt: AddressSet::default(),
    }
}

/// Two at once, and a minute later one more.
fn two_a_minute() -> Limits {
    Limits { per_minute: Some(Allowance { requests: 1, burst: 1 }), ..limits() }
}

#[test]
fn clients_are_told_apart_by_what_the_config_map_says() {
    let backend = Backend::mirror();
    let by = Expression(vec![Part::Variable(Variable::Header("x_tenant".to_owned()))]);
    let rig = Rig::start(limited(&backend, Limits { by: Some(Arc::new(by)), ..two_a_minute() }));
    let ask = |tenant: &str| rig.ask(&format!("GET / HTTP/1.1\r\nHost: h\r\n{tenant}\r\n")).status;

    let of_a: Vec<_> = (0..3).map(|_| ask("X-Tenant: a\r\n")).collect();

    assert_eq!(of_a, [200, 200, 429]);
    assert_eq!(ask("X-Tenant: b\r\n"), 200);
    // As with nginx: who shows nothing is not counted.
    assert!((0..5).all(|_| ask("") == 200));
    assert_eq!(rig.metric("penstock_l7_limited_requests_total"), 1.0);
}

#[test]
fn no_other_way_to_write_a_name_escapes_a_limit() {
    let backend = Backend::mirror();
    for (by, ways) in [
        ("$arg_key", ["/?key=k HTTP/1.1", "/?a&Key=k HTTP/1.1", "/?KEY=k HTTP/1.1"]),
        (
            "$cookie_key",
            [
                "/ HTTP/1.1\r\nCookie: key=k",
                "/ HTTP/1.1\r\nCookie: KEY=k",
                "/ HTTP/1.1\r\nCookie: a=1\r\nCookie: key=k",
            ],
        ),
    ] {
        let by = Some(Arc::new(Expression::parse(by).expect("a variable")));
        let rig = Rig::start(limited(&backend, Limits { by, ..two_a_minute() }));

        let statuses = ways.map(|way| rig.ask(&format!("GET {way}\r\nHost: h\r\n\r\n")).status);

        assert_eq!(statuses, [200, 200, 429], "{ways:?}");
    }
}

fn limited(backend: &Backend, limits: Limits) -> L7 {
    let policies = Some(Arc::new(Policies { limits: Some(limits), ..Policies::default() }));
    to_with(&[backend.addr], Filters { policies, ..Filters::default() })
}

fn loopback() -> AddressSet {
    Prefix::new([127, 0, 0, 1].into(), 32).into_iter().collect()
}

fn statuses(rig: &Rig, number: usize) -> Vec<u16> {
    (0..number).map(|_| rig.ask(GET).status).collect()
}

/// A backend that tells of every request, and answers it when it is told to.
fn patient() -> (Backend, mpsc::Receiver<()>, mpsc::Sender<()>) {
    let ((arrived, arrivals), (answer, answers)) = (mpsc::channel(), mpsc::channel::<()>());
    let answers = Mutex::new(answers);
    let backend = Backend::start(move |mut peer: Client| {
        while peer.head().is_some() {
            let _ = arrived.send(());
            let told = answers.lock().map(|answers| answers.recv().is_ok());
            if !told.unwrap_or(false) || !peer.try_send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n") {
                return;
            }
        }
    });
    (backend, arrivals, answer)
}

#[test]
fn what_is_too_often_is_refused_by_all_workers_together_and_not_passed_on() {
    let backend = Backend::mirror();
    let rig = Rig::with_workers(limited(&backend, two_a_minute()), 4);

    assert_eq!(statuses(&rig, 8), [200, 200, 429, 429, 429, 429, 429, 429]);
    // Two workers, or one that kept its connection.
    assert!((1..=2).contains(&backend.connections()));
}

#[test]
fn a_refusal_keeps_the_connection() {
    let backend = Backend::mirror();
    let rig = Rig::start(limited(&backend, two_a_minute()));
    let mut client = rig.client();

    let replies: Vec<Reply> = (0..4)
        .map(|_| {
            client.send(GET);
            client.reply()
        })
        .collect();

    assert_eq!(replies.iter().map(|reply| reply.status).collect::<Vec<_>>(), [200, 200, 429, 429]);
    assert!(replies[3].head.starts_with("HTTP/1.1 429 Too Many Requests\r\n"), "{}", replies[3].head);
}

#[test]
fn who_is_listed_has_no_limits() {
    let backend = Backend::mirror();
    let rig = Rig::start(limited(&backend, Limits { exempt: loopback(), ..two_a_minute() }));

    assert_eq!(statuses(&rig, 5), [200; 5]);
}

#[test]
fn who_may_not_enter_counts_too() {
    let backend = Backend::mirror();
    let closed = Access { denied: loopback(), allowed: None };
    let policies = Policies { limits: Some(two_a_minute()), access: Some(closed), ..Policies::default() };
    let filters = Filters { policies: Some(Arc::new(policies)), ..Filters::default() };
    let rig = Rig::start(to_with(&[backend.addr], filters));

    assert_eq!(statuses(&rig, 3), [403, 403, 429]);
}

#[test]
fn a_change_of_the_routes_forgets_nobody() {
    let backend = Backend::mirror();
    let rig = Rig::start(limited(&backend, two_a_minute()));
    assert_eq!(statuses(&rig, 3), [200, 200, 429]);

    // Another answer tells that the change is there.
    rig.publish(limited(&backend, Limits { often_status: 503, ..two_a_minute() }));
    rig.ask_until(GET, 503);

    assert_eq!(statuses(&rig, 1), [503]);
}

#[test]
fn a_request_counts_until_it_is_answered() {
    let (backend, arrivals, answer) = patient();
    let rig = Rig::start(limited(&backend, Limits { at_once: Some(1), ..limits() }));
    let mut first = rig.client();
    first.send(GET);
    arrivals.recv_timeout(DEADLINE).expect("the first request");

    assert_eq!(statuses(&rig, 2), [503, 503]);

    answer.send(()).expect("a backend");
    assert_eq!(first.reply().status, 200);
    // The same connection: there the first has ended for sure.
    first.send(GET);
    arrivals.recv_timeout(DEADLINE).expect("the second request");
    answer.send(()).expect("a backend");
    assert_eq!(first.reply().status, 200);
}

#[test]
fn a_client_that_left_makes_room() {
    let (backend, arrivals, answer) = patient();
    let rig = Rig::start(limited(&backend, Limits { at_once: Some(1), ..limits() }));
    let mut first = rig.client();
    first.send(GET);
    arrivals.recv_timeout(DEADLINE).expect("the first request");
    assert_eq!(rig.ask(GET).status, 503);

    drop(first);
    // For the backend, which did not notice, and for those that follow.
    for _ in 0..2 {
        answer.send(()).expect("a backend");
    }

    assert_eq!(rig.ask_until(GET, 200).status, 200);
}

async fn status(asked: tokio::task::JoinHandle<Result<h2_client::Reply, h2::Error>>) -> u16 {
    let reply = h2_client::limited(asked).await.expect("task").expect("a response");
    reply.head.status().as_u16()
}

#[test]
fn every_stream_of_http_2_counts() {
    let (backend, arrivals, answer) = patient();
    let rig = Rig::start(limited(&backend, Limits { at_once: Some(2), ..limits() }));
    let client = h2_client::Client::connect(rig.http);

    let statuses = client.runtime.block_on(async {
        let ask = || {
            let requests = client.requests.clone();
            tokio::spawn(h2_client::exchange(requests, h2_client::get("/"), vec![], None))
        };
        let held = [ask(), ask()];
        tokio::task::spawn_blocking(move || {
            for _ in 0..2 {
                arrivals.recv_timeout(DEADLINE).expect("a request");
            }
        })
        .await
        .expect("both arrived");
        let mut statuses = vec![status(ask()).await];
        for _ in 0..2 {
            answer.send(()).expect("a backend");
        }
        for held in held {
            statuses.push(status(held).await);
        }
        statuses
    });

    assert_eq!(statuses, [503, 200, 200]);
}

//! Active checks: who fails them is passed over until he recovers, and nobody else pays for it.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use lb_tests::agent::eventually;
use lb_tests::manifests;
use penstock::health::{Encrypt, Encrypting, Prober, Stream};
use penstock::l7::Dialer;
use penstock::model::health::{Check, Fault, HttpProbe, Probe, Unwell};
use penstock::model::l7::L7;
use penstock::model::upstream::{Keepalive, UpstreamTls};
use tokio::sync::watch;

use crate::rig::{Backend, Client, DEADLINE, Rig, nobody, to};
use crate::takeover::{Agents, HOST};
use crate::upstream_tls::{Chain, TlsBackend, verify};

const GET: &str = "GET /x HTTP/1.1\r\nHost: a.example\r\n\r\n";

/// A prober without a proxy.
struct Checked {
    runtime: tokio::runtime::Runtime,
    desired: watch::Sender<Arc<L7>>,
    prober: Prober,
}

impl Checked {
    fn start(l7: L7) -> Self {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(1).enable_all().build().expect("a runtime");
        let dialer = Arc::new(Dialer::default());
        let encrypt: Encrypt = Arc::new(move |stream, endpoint, tls| -> Encrypting {
            let dialer = Arc::clone(&dialer);
            Box::pin(
                async move { Ok(Box::new(dialer.encrypt(stream, endpoint, tls).await?) as Box<dyn Stream>) },
            )
        });
        let desired = watch::Sender::new(Arc::new(l7));
        let prober =
            runtime.block_on(async { Prober::start(desired.subscribe(), Default::default(), encrypt, 7) });
        Self { runtime, desired, prober }
    }

    fn unwell(&self) -> Arc<Unwell> {
        Arc::clone(&self.prober.unwell().borrow())
    }

    /// What is held against an endpoint once it was asked.
    fn outcome(&self, endpoint: SocketAddr) -> Option<Fault> {
        let outcome = || {
            let unwell = self.unwell();
            let finding = unwell.0.values().find_map(|of| of.get(&endpoint));
            let fault = finding.map(|finding| finding.fault);
            (fault.is_some() || self.probes("good") > 0.0).then_some(fault)
        };
        eventually(DEADLINE, outcome).expect("a probe")
    }

    /// Probes with this outcome.
    fn probes(&self, outcome: &str) -> f64 {
        let counts = |labels: &[_]| labels.contains(&("outcome", outcome.to_owned()));
        self.sum("penstock_health_probes_total", counts)
    }

    fn sum(&self, name: &str, counts: impl Fn(&[(&'static str, String)]) -> bool) -> f64 {
        let metrics = self.prober.metrics();
        let metric = metrics.iter().find(|metric| metric.name == name).expect("the metric");
        metric.samples.iter().filter(|sample| counts(&sample.labels)).map(|sample| sample.value).sum()
    }
}

/// All endpoints of these, checked in a hurry.
fn checked(endpoints: &[SocketAddr], probe: Probe) -> L7 {
    let interval = Duration::from_millis(20);
    // No machine is so busy that this is not enough.
    let check = Check { timeout: DEADLINE, ..Check::new(probe, interval) };
    with_check(endpoints, check)
}

fn with_check(endpoints: &[SocketAddr], check: Check) -> L7 {
    let mut l7 = to(endpoints);
    l7.upstreams.edit(|_, upstream| {
        upstream.check = Some(Arc::new(check.clone()));
    });
    l7
}

fn http(target: &str) -> Probe {
    Probe::Http(HttpProbe { target: target.to_owned(), host: None, tls: None })
}

/// Answers with its name, and a probe with 200 or 503.
fn named(name: &'static str, is_well: &Arc<AtomicBool>) -> Backend {
    let is_well = Arc::clone(is_well);
    Backend::start(move |mut peer| {
        while let Some(head) = peer.head() {
            let sick = head.starts_with("GET /health ") && !is_well.load(Ordering::SeqCst);
            let status = if sick { "503 Sick" } else { "200 OK" };
            let answer = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{name}", name.len());
            if !peer.try_send(answer.as_bytes()) {
                return;
            }
        }
    })
}

/// Who answers the next requests, and how often.
fn who(rig: &Rig, requests: usize) -> BTreeMap<String, usize> {
    let mut who = BTreeMap::new();
    for _ in 0..requests {
        *who.entry(rig.ask(GET).text()).or_default() += 1;
    }
    who
}

#[test]
fn an_endpoint_that_fails_its_checks_is_passed_over_until_it_recovers() {
    let wells = [(); 2].map(|()| Arc::new(AtomicBool::new(true)));
    let backends = [named("a", &wells[0]), named("b", &wells[1])].map(|backend| backend.addr);
    let l7 = checked(&backends, http("/health"));
    let rig = Rig::with_workers(l7.clone(), 2);
    let checks = Checked::start(l7);
    let told = |count: usize| {
        let unwell = || checks.unwell().0.values().map(BTreeMap::len).sum::<usize>() == count;
        eventually(DEADLINE, || unwell().then_some(())).expect("the checks see it");
        rig.running.set_unwell(&checks.unwell());
    };
    let settled = |expected: &[&str]| {
        eventually(DEADLINE, || {
            let who: Vec<_> = who(&rig, 12).into_keys().collect();
            (who == expected).then_some(())
        })
        .unwrap_or_else(|| panic!("{:?}, not {expected:?}", who(&rig, 12)));
    };

    settled(&["a", "b"]);
    wells[0].store(false, Ordering::SeqCst);
    told(1);
    settled(&["b"]);
    // A new snapshot forgets nothing.
    let mut other = checked(&backends, http("/health"));
    other.keepalive = Keepalive { connections: 7, ..Keepalive::default() };
    rig.publish(other);
    assert_eq!(who(&rig, 30), BTreeMap::from([("b".to_owned(), 30)]));
    // Where nobody is well, everybody is asked.
    wells[1].store(false, Ordering::SeqCst);
    told(2);
    settled(&["a", "b"]);
    wells[1].store(true, Ordering::SeqCst);
    told(1);
    settled(&["b"]);
    wells[0].store(true, Ordering::SeqCst);
    told(0);
    settled(&["a", "b"]);
}

#[test]
fn checks_that_find_more_than_half_unwell_leave_nobody_out() {
    const NAMES: [&str; 4] = ["a", "b", "c", "d"];
    let wells = [(); 4].map(|()| Arc::new(AtomicBool::new(true)));
    let backends: Vec<_> =
        NAMES.iter().zip(&wells).map(|(name, is_well)| named(name, is_well).addr).collect();
    let l7 = checked(&backends, http("/health"));
    let (rig, checks) = (Rig::start(l7.clone()), Checked::start(l7));
    let cases: [(usize, &[&str]); 5] =
        [(0, &NAMES), (1, &["b", "c", "d"]), (2, &["c", "d"]), (3, &NAMES), (4, &NAMES)];
    for (sick, asked) in cases {
        for (place, is_well) in wells.iter().enumerate() {
            is_well.store(place >= sick, Ordering::SeqCst);
        }
        let found = || checks.unwell().0.values().map(BTreeMap::len).sum::<usize>() == sick;
        eventually(DEADLINE, || found().then_some(())).expect("the checks see it");
        rig.running.set_unwell(&checks.unwell());

        let asks = || who(&rig, 16).into_keys().collect::<Vec<_>>() == asked;
        eventually(DEADLINE, || asks().then_some(())).unwrap_or_else(|| panic!("{sick} are sick"));
    }
}

#[test]
fn a_good_answer_is_one_with_2xx_or_3xx_and_anything_else_is_told_apart() {
    let saying = |answer| Backend::saying(answer).addr;
    let silent = || Backend::start(|mut peer| drop(peer.rest())).addr;
    let (long, short) = (DEADLINE, Duration::from_millis(300));
    let cases = [
        ("200", saying("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n"), http("/"), long, None),
        ("302", saying("HTTP/1.0 302 Found\r\nLocation: /b\r\n\r\n"), http("/"), long, None),
        ("103 first", saying("HTTP/1.1 103 Hints\r\n\r\nHTTP/1.1 204 No\r\n\r\n"), http("/"), long, None),
        ("404", saying("HTTP/1.1 404 No\r\n\r\n"), http("/"), long, Some(Fault::Status(404))),
        ("101", saying("HTTP/1.1 101 Switch\r\n\r\n"), http("/"), long, Some(Fault::Status(101))),
        ("no HTTP", saying("SSH-2.0-x\r\n\r\n"), http("/"), long, Some(Fault::NotHttp)),
        ("closed", Backend::start(|mut peer| drop(peer.head())).addr, http("/"), long, Some(Fault::Closed)),
        ("silent", silent(), http("/"), short, Some(Fault::Timeout)),
        ("refused", nobody(), http("/"), long, Some(Fault::Unreachable)),
        ("a silent connection", silent(), Probe::Tcp, long, None),
        ("no connection", nobody(), Probe::Tcp, long, Some(Fault::Unreachable)),
    ];
    for (case, endpoint, probe, timeout, expected) in cases {
        let check = Check { timeout, ..Check::new(probe, Duration::from_secs(60)) };
        let checks = Checked::start(with_check(&[endpoint], check));

        assert_eq!(checks.outcome(endpoint), expected, "{case}");

        let label = expected.map_or("good", Fault::label);
        assert_eq!(checks.probes(label), 1.0, "{case}");
        let well = checks.sum("penstock_health_endpoint_well", |_| true);
        assert_eq!(well, if expected.is_none() { 1.0 } else { 0.0 }, "{case}");
    }
}

#[test]
fn a_head_without_end_is_no_http() {
    let endless = Backend::start(|mut peer| {
        peer.head();
        peer.send("HTTP/1.1 200 OK\r\nX: ");
        while peer.try_send(&[b'x'; 1024]) {}
    });
    let check = Check { timeout: DEADLINE, ..Check::new(http("/"), Duration::from_secs(60)) };

    let checks = Checked::start(with_check(&[endless.addr], check));

    assert_eq!(checks.outcome(endless.addr), Some(Fault::NotHttp));
}

#[test]
fn a_probe_over_tls_takes_any_certificate_unless_it_is_to_verify() {
    let (chain, other) = (Chain::new("inner.example", 0), Chain::new("inner.example", 0));
    let backend = TlsBackend::start(&chain, None);
    let cases = [
        ("unverified", UpstreamTls::default(), None),
        (
            "verified",
            UpstreamTls { verify: Some(verify(&chain, "inner.example", 1)), ..UpstreamTls::default() },
            None,
        ),
        (
            "of another authority",
            UpstreamTls { verify: Some(verify(&other, "inner.example", 1)), ..UpstreamTls::default() },
            Some(Fault::Tls),
        ),
    ];
    for (case, tls, expected) in cases {
        let probe =
            Probe::Http(HttpProbe { target: "/health".to_owned(), host: None, tls: Some(Arc::new(tls)) });
        let checks = Checked::start(checked(&[backend.addr], probe));

        assert_eq!(checks.outcome(backend.addr), expected, "{case}");
    }
}

#[test]
fn a_probe_says_whom_it_asks_and_that_it_is_one() {
    let heads = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&heads);
    let backend = Backend::start(move |mut peer| {
        seen.lock().expect("heads").extend(peer.head());
        peer.try_send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    });
    for host in [None, Some("inner.example")] {
        let probe = HttpProbe { target: "/health?a=1".to_owned(), host: host.map(str::to_owned), tls: None };
        let check = Check::new(Probe::Http(probe), Duration::from_secs(60));
        let checks = Checked::start(with_check(&[backend.addr], Check { timeout: DEADLINE, ..check }));
        assert_eq!(checks.outcome(backend.addr), None);

        let head = heads.lock().expect("heads").pop().expect("a probe");
        let host = host.map_or(backend.addr.to_string(), str::to_owned);
        assert_eq!(
            head,
            format!(
                "GET /health?a=1 HTTP/1.1\r\nHost: {host}\r\nUser-Agent: penstock/0.1.0 (health check)\r\n\
                 Accept: */*\r\nConnection: close\r\n\r\n"
            )
        );
    }
}

#[test]
fn an_endpoint_that_left_is_asked_no_more() {
    let well = Arc::new(AtomicBool::new(true));
    let (stays, leaves) = (named("a", &well), named("b", &well));
    let checks = Checked::start(checked(&[stays.addr, leaves.addr], http("/health")));
    eventually(DEADLINE, || (leaves.connections() > 2).then_some(())).expect("it is asked");

    checks.desired.send_replace(Arc::new(checked(&[stays.addr], http("/health"))));
    let watched = || checks.sum("penstock_health_endpoint_well", |_| true);
    eventually(DEADLINE, || (watched() == 1.0).then_some(())).expect("it is gone");
    let (asked, others) = (leaves.connections(), stays.connections());
    eventually(DEADLINE, || (stays.connections() > others + 5).then_some(())).expect("the other is asked");

    // One probe may have been under way.
    assert!(leaves.connections() <= asked + 1, "{asked} before, {} now", leaves.connections());
}

#[test]
fn an_upstream_without_a_check_is_asked_nothing() {
    let well = Arc::new(AtomicBool::new(true));
    let (unchecked, other) = (named("a", &well), named("b", &well));
    let mut l7 = to(&[unchecked.addr]);
    let more = checked(&[other.addr], http("/health")).upstreams;
    let (name, upstream) = more.first_key_value().expect("an upstream");
    l7.upstreams.insert(penstock::model::upstream::UpstreamName(format!("{}-2", name.0)), upstream.clone());
    let checks = Checked::start(l7);

    eventually(DEADLINE, || (other.connections() > 5).then_some(())).expect("the other is asked");

    assert_eq!(unchecked.connections(), 0);
    drop(checks.runtime);
}

#[test]
fn no_more_probes_run_at_once_than_may() {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("bind");
    let port = listener.local_addr().expect("bound").port();
    let (now, most, all) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    let counts = Arc::new((now, most, all));
    let counted = Arc::clone(&counts);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let counted = Arc::clone(&counted);
            thread::spawn(move || {
                let (now, most, all) = &*counted;
                most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                all.fetch_add(1, Ordering::SeqCst);
                // Silent until the probe gives up.
                Client::over(stream).rest();
                now.fetch_sub(1, Ordering::SeqCst);
            });
        }
    });
    let endpoints: Vec<_> = (1..=200).map(|n| SocketAddr::from(([127, 0, 0, n], port))).collect();
    let check = Check::new(http("/"), Duration::from_secs(60));

    let checks = Checked::start(with_check(&endpoints, Check { timeout: Duration::from_secs(1), ..check }));
    let (_, most, all) = &*counts;
    eventually(DEADLINE, || (all.load(Ordering::SeqCst) == 200).then_some(())).expect("all are asked");

    // One that has ended here may not have been noticed there.
    let most = most.load(Ordering::SeqCst);
    assert!((2..=80).contains(&most), "{most} at once");
    drop(checks);
}

#[test]
fn an_upstream_may_keep_a_number_of_idle_connections_of_its_own() {
    let few = Keepalive { connections: 1, ..Keepalive::default() };
    let cases = [
        ("one of two", Some(1), Keepalive::default(), 4),
        ("both", Some(2), Keepalive::default(), 2),
        ("none", Some(0), Keepalive::default(), 4),
        ("more than all others together", Some(2), few, 2),
        ("as all", None, few, 4),
    ];
    for (case, idle, keepalive, expected) in cases {
        let backends = [Backend::mirror(), Backend::mirror()];
        let mut l7 = to(&backends.each_ref().map(|backend| backend.addr));
        l7.keepalive = keepalive;
        l7.upstreams.edit(|_, upstream| {
            upstream.idle = idle;
        });
        let rig = Rig::start(l7);

        for _ in 0..4 {
            assert_eq!(rig.ask(GET).status, 200);
        }

        let opened: usize = backends.iter().map(Backend::connections).sum();
        assert_eq!(opened, expected, "{case}");
        let metrics = rig.running.metrics();
        let idle_now = metrics.iter().find(|m| m.name == "penstock_l7_upstream_idle_connections");
        let idle_now = idle_now.expect("the metric").samples[0].value;
        assert_eq!(idle_now, idle.unwrap_or(keepalive.connections).min(2) as f64, "{case}");
    }
}

#[test]
fn an_agent_follows_the_annotations_and_tells_what_it_found() {
    let is_well = Arc::new(AtomicBool::new(false));
    let backend = named("hello", &is_well);
    let agents = Agents::start(backend.addr, &[]);
    let about = || {
        let json = agents.admin("/status?format=json").text();
        let status: serde_json::Value = serde_json::from_str(&json).expect("JSON");
        status["upstreams"][0].clone()
    };
    assert_eq!((about()["check"].as_str(), about()["unwell"].as_array().map(Vec::len)), (Some(""), Some(0)));

    let annotations = "annotations:\n    nginx.ingress.kubernetes.io/upstream-health-check-path: /health\n    \
                       nginx.ingress.kubernetes.io/upstream-health-check-interval: 1s\n";
    let ingress = manifests::ingress("web", HOST, "web", None).replacen("annotations:\n", annotations, 1);
    agents.write("ingress.yaml", &ingress);
    let fault = || about()["unwell"][0]["fault"].as_str().map(str::to_owned);
    assert_eq!(eventually(DEADLINE, fault).as_deref(), Some("status 503"), "{}", agents.log());

    assert_eq!(about()["check"], "http GET /health every 1s");
    let explained = agents.admin(&format!("/explain?url=http://{HOST}/x")).text();
    assert!(explained.contains(&format!("{} (status 503)", backend.addr)), "{explained}");
    let text = agents.admin("/status").text();
    assert!(text.contains("unwell endpoints") && text.contains("status 503"), "{text}");
    let metrics = agents.admin("/metrics").text();
    let well = format!(
        "penstock_health_endpoint_well{{upstream=\"default-web-80\",endpoint=\"{}\"}} 0",
        backend.addr
    );
    assert!(metrics.contains(&well), "{metrics}");
    // The only endpoint is asked nevertheless.
    let mut client = Client::connect(agents.http);
    client.send(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n"));
    assert_eq!(client.reply().text(), "hello");

    is_well.store(true, Ordering::SeqCst);
    let recovered = || fault().is_none().then_some(());
    assert!(eventually(DEADLINE, recovered).is_some(), "{}", agents.log());
    agents.wait_for("endpoint is well again");
}

#[test]
fn an_agent_tells_which_endpoints_fail_requests_and_why_until_they_answer() {
    let dead = nobody();
    let agents = Agents::start(dead, &[]);
    let ask = || {
        let mut client = Client::connect(agents.http);
        client.send(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n"));
        client.reply().status
    };
    let failing = || {
        let json = agents.admin("/status?format=json").text();
        let status: serde_json::Value = serde_json::from_str(&json).expect("JSON");
        status["upstreams"][0]["failing"].clone()
    };
    assert_eq!(failing(), serde_json::json!([]));

    // Three attempts each. Five in a row eject it; there are two workers.
    for _ in 0..10 {
        assert_eq!(ask(), 502);
    }

    let cause = "connect (Connection refused (os error 111))";
    let found = &failing()[0];
    assert_eq!(
        (found["endpoint"].as_str(), found["cause"].as_str()),
        (Some(&*dead.to_string()), Some(cause))
    );
    assert_eq!(found["failed_attempts"], 30);
    assert!(found["ejected"]["left_seconds"].is_u64(), "{found}");
    let text = agents.admin("/status").text();
    assert!(text.contains("failing endpoints") && text.contains(cause), "{text}");
    let explained = agents.admin(&format!("/explain?url=http://{HOST}/x")).text();
    assert!(explained.contains(&format!("{dead} ({cause}, 30 failed, the last")), "{explained}");
    assert!(explained.contains("all are asked nevertheless"), "{explained}");
    let metrics = agents.admin("/metrics").text();
    for line in [
        "penstock_l7_failed_attempts_total{upstream=\"default-web-80\",cause=\"connect\"} 30",
        "penstock_l7_ejected_endpoints{upstream=\"default-web-80\"} 1",
    ] {
        assert!(metrics.contains(line), "{line}: {metrics}");
    }
    let log = agents.log();
    let lines: Vec<_> = log.lines().filter(|line| line.contains("an endpoint fails requests")).collect();
    assert_eq!(lines.len(), 1, "{log}");
    let words = [&format!("endpoint={dead}"), "upstream=default-web-80", "attempts=1", "cause=connect (Conn"];
    assert!(words.iter().all(|word| lines[0].contains(*word)), "{log}");

    let listener = TcpListener::bind(dead).expect("still free");
    thread::spawn(move || {
        // One request each: each worker has connections of its own, and none is to wait for another's end.
        for stream in listener.incoming().flatten() {
            let mut peer = Client::over(stream);
            if peer.head().is_some() {
                peer.try_send(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
            }
        }
    });
    let answers = || (ask() == 200 && failing() == serde_json::json!([])).then_some(());
    assert!(eventually(DEADLINE, answers).is_some(), "{}", failing());
    agents.wait_for("an endpoint that failed requests answers again");
}

#[test]
fn an_agent_tells_which_endpoint_breaks_off_its_answers() {
    let backend = Backend::start(|mut peer| {
        peer.head();
        peer.try_send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello");
    });
    let agents = Agents::start(backend.addr, &[]);

    for _ in 0..3 {
        let mut client = Client::connect(agents.http);
        client.send(format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n"));
        assert!(client.rest().ends_with(b"hello"));
    }

    agents.wait_for("an endpoint breaks off its answers");
    let log = agents.log();
    let lines: Vec<_> = log.lines().filter(|line| line.contains("breaks off its answers")).collect();
    let words = [&format!("endpoint={}", backend.addr), "upstream=default-web-80", "cause=cut-off"];
    assert!(lines.len() == 1 && words.iter().all(|word| lines[0].contains(*word)), "{log}");
    let counted = "penstock_l7_upstream_failures_total{cause=\"cut-off\"} 3";
    let metrics = agents.admin("/metrics").text();
    assert!(metrics.contains(counted), "{metrics}");
}

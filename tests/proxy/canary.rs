//! An upstream with a canary: who answers, and under which name it is counted.

use std::net::SocketAddr;

use penstock::model::canary::{Canary, HeaderRule, HeaderValue, Rules, Weight};
use penstock::model::l7::L7;
use penstock::model::upstream::{Upstream, UpstreamName};

use crate::rig::{Backend, Rig, nobody, to};

const GET: &str = "GET / HTTP/1.1\r\nHost: h\r\n\r\n";
const ALWAYS: &str = "GET / HTTP/1.1\r\nHost: h\r\nX-Canary: always\r\n\r\n";

fn named(name: &'static str) -> Backend {
    Backend::start(move |mut peer| {
        while peer.head().is_some() {
            if !peer.try_send(format!("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n{name}").as_bytes()) {
                return;
            }
        }
    })
}

/// The location of [`to`], and a canary that takes who sends `X-Canary: always`, or its weight.
fn with_canary(primary: &[SocketAddr], canary: &[SocketAddr], part: u32) -> L7 {
    let mut l7 = to(primary);
    let name = UpstreamName("default-next-80".to_owned());
    let header = HeaderRule { name: "X-Canary".to_owned(), value: HeaderValue::AlwaysOrNever };
    let rules = Rules { header: Some(header), cookie: None, weight: Weight { part, of: 100 } };
    l7.upstreams.edit(|_, upstream| {
        upstream.canary =
            Some(Canary { upstream: name.clone(), rules: rules.clone(), sessions: Default::default() });
    });
    let upstream = Upstream { endpoints: canary.iter().copied().collect(), ..Upstream::default() };
    l7.upstreams.insert(name, upstream);
    l7
}

#[test]
fn the_header_leads_to_the_canary_and_it_is_counted_by_its_name() {
    let (old, new) = (named("oooold"), named("neeeew"));
    let rig = Rig::start(with_canary(&[old.addr], &[new.addr], 0));

    assert_eq!(rig.ask(GET).text(), "oooold");
    assert_eq!(rig.ask(ALWAYS).text(), "neeeew");

    let metrics = rig.running.metrics();
    let requests = metrics.iter().find(|m| m.name == "nginx_ingress_controller_requests").expect("metric");
    let canaries: Vec<_> = requests
        .samples
        .iter()
        .map(|sample| {
            let label =
                |name| sample.labels.iter().find(|(known, _)| *known == name).expect("label").1.as_str();
            (label("service"), label("canary"), sample.value)
        })
        .collect();
    assert_eq!(canaries, [("echo", "", 1.0), ("echo", "default-next-80", 1.0)]);
}

#[test]
fn a_weight_of_all_takes_everybody_and_one_of_half_some() {
    let (old, new) = (named("oooold"), named("neeeew"));
    for (part, range) in [(0, 0..=0), (50, 60..=140), (100, 200..=200)] {
        let rig = Rig::start(with_canary(&[old.addr], &[new.addr], part));
        let mut client = rig.client();

        let to_new = (0..200)
            .filter(|_| {
                client.send(GET);
                client.reply().text() == "neeeew"
            })
            .count();

        assert!(range.contains(&to_new), "{to_new} of 200 at {part} of 100");
    }
}

#[test]
fn without_endpoints_a_canary_is_passed_over_and_a_primary_answers_503_for_both() {
    let backend = named("oooold");

    let without_canary = Rig::start(with_canary(&[backend.addr], &[], 100)).ask(ALWAYS);
    assert_eq!((without_canary.status, without_canary.text().as_str()), (200, "oooold"));

    let without_primary = Rig::start(with_canary(&[], &[backend.addr], 100)).ask(ALWAYS);
    assert_eq!(without_primary.status, 503);
}

#[test]
fn attempts_of_a_request_stay_on_its_side() {
    let old = named("oooold");
    let rig = Rig::start(with_canary(&[old.addr], &[nobody()], 0));

    assert_eq!(rig.ask(ALWAYS).status, 502);

    assert_eq!(old.connections(), 0);
    assert_eq!(rig.ask(GET).status, 200);
}

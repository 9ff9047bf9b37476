//! What is held of a message, and how much of it.

use penstock::model::l7::{Buffers, Filters};

use crate::rig::{Backend, Rig, to_with};

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

/// A response with a head of just so many bytes, in lines of `line` bytes.
fn long_head(bytes: usize, line: usize) -> String {
    let mut head = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n".to_owned();
    while bytes - head.len() > line + 32 {
        head += &format!("X-Pad: {}\r\n", "x".repeat(line - 9));
    }
    head += &format!("X-Last: {}\r\n\r\nok", "x".repeat(bytes - head.len() - 12));
    head
}

#[test]
fn a_response_head_may_be_as_long_as_its_location_says() {
    let cases = [
        (None, 4096, 1000, 200),
        (None, 4097, 1000, 502),
        (Some(1024), 1024, 100, 200),
        (Some(1024), 1025, 100, 502),
        (Some(16 * 1024), 15_000, 12_000, 200),
        (Some(100_000), 100_000, 8_000, 200),
        (Some(100_000), 100_001, 8_000, 502),
        (Some(Buffers::HEAD_MAX), 1_000_000, 200_000, 200),
    ];
    for (limit, bytes, line, status) in cases {
        let backend = Backend::start(move |mut peer| {
            while peer.head().is_some() {
                if !peer.try_send(long_head(bytes, line).as_bytes()) {
                    return;
                }
            }
        });
        let mut filters = Filters::default();
        if let Some(head_bytes) = limit {
            filters.buffers.head_bytes = head_bytes;
        }
        let rig = Rig::start(to_with(&[backend.addr], filters));
        let mut client = rig.client();

        for _ in 0..2 {
            client.send(GET);
            let reply = client.reply();

            assert_eq!(reply.status, status, "{bytes} bytes with {limit:?}");
            if status == 200 {
                assert_eq!(reply.text(), "ok");
                let padding = reply.head.matches('x').count();
                assert!(padding > bytes * 3 / 4, "{padding} of {bytes}");
            }
        }
    }
}

#[test]
fn a_head_that_is_too_long_leads_to_another_endpoint_as_an_invalid_one_does() {
    let long = Backend::start(|mut peer| {
        if peer.head().is_some() {
            peer.try_send(long_head(5000, 1000).as_bytes());
        }
    });
    let good = Backend::saying("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    let on = penstock::model::upstream::Conditions::parse("invalid_header").expect("a condition");
    let mut filters = Filters::default();
    filters.retry.on = on;
    let rig = Rig::start(to_with(&[long.addr, good.addr], filters));

    for _ in 0..4 {
        assert_eq!(rig.ask(GET).status, 200);
    }

    let failures = rig.running.metrics().into_iter();
    let failures: Vec<_> = failures.filter(|m| m.name == "penstock_l7_upstream_failures_total").collect();
    let labels: Vec<_> = failures[0].samples.iter().map(|sample| sample.labels[0].1.as_str()).collect();
    assert_eq!(labels, ["head-too-large"]);
}

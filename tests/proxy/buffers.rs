//! What is held of a message, and how much of it.

use std::num::NonZeroU64;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use penstock::l7::Temp;
use penstock::model::l7::{Buffers, Filters, Rate, ReadAhead, Retry};
use penstock::model::upstream::Conditions;

use crate::access_log::Log;
use crate::rig::{Backend, Client, DEADLINE, Reply, Rig, length_of, nobody, to_with};

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

/// A response with a head of just so many bytes, in lines of `line` bytes.
fn long_head(bytes: usize, line: usize) -> String {
    let mut head = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n".to_owned();
    while bytes - head.len() > line + 32 {
        head += &format!("X-Few: {}\r\n", "x".repeat(line - 9));
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

/// Bodies are read whole, 8 KiB of them in memory.
fn holding() -> Filters {
    let buffers = Buffers { request: Some(8 * 1024), ..Buffers::default() };
    Filters { max_body_bytes: None, buffers, ..Filters::default() }
}

/// Responses are read ahead, 16 KiB in memory and so much on disk.
fn reading_ahead(file_bytes: u64) -> Filters {
    let ahead = ReadAhead { memory_bytes: 16 * 1024, file_bytes, rate: None };
    let buffers = Buffers { response: Some(ahead), ..Buffers::default() };
    Filters { max_body_bytes: None, buffers, ..Filters::default() }
}

/// Bytes that do not repeat where buffers end.
fn pattern(len: usize) -> Vec<u8> {
    let block: Vec<u8> = (0..99_991).map(|at| (at % 251) as u8 ^ (at / 4096) as u8).collect();
    let mut bytes = block.repeat(len / block.len() + 1);
    bytes.truncate(len);
    bytes
}

/// Answers each request with the length and a sum of its body, which has to be announced.
fn summing() -> Backend {
    Backend::start(|mut peer| {
        while let Some(head) = peer.head() {
            assert!(!head.to_ascii_lowercase().contains("transfer-encoding"), "{head}");
            let body = peer.exactly(length_of(&head));
            let answer = summary(&body);
            peer.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{answer}", answer.len()));
        }
    })
}

fn summary(body: &[u8]) -> String {
    let sum = body.iter().fold(7u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)));
    format!("{} {sum}", body.len())
}

fn upload(client: &mut Client, method: &str, body: &[u8], chunked: bool) -> Reply {
    let framing = match chunked {
        true => "Transfer-Encoding: chunked".to_owned(),
        false => format!("Content-Length: {}", body.len()),
    };
    client.send(format!("{method} / HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n"));
    if !chunked {
        client.send(body);
        return client.reply();
    }
    for chunk in body.chunks(50_000) {
        client.send(format!("{:x}\r\n", chunk.len()));
        client.send(chunk);
        client.send("\r\n");
    }
    client.send("0\r\nX-Trailer: 1\r\n\r\n");
    client.reply()
}

#[test]
fn a_held_body_is_sent_again_whole_whatever_its_length_and_framing() {
    for len in [1, 5_000, 8 * 1024, 20_000, 300_000, 10 << 20] {
        for chunked in [false, true] {
            let bad = Backend::start(|mut peer| {
                if let Some(head) = peer.head() {
                    peer.exactly(length_of(&head));
                }
            });
            let good = summing();
            let rig = Rig::start(to_with(&[bad.addr, good.addr], holding()));
            let body = pattern(len);
            let mut client = rig.client();

            for _ in 0..2 {
                let reply = upload(&mut client, "PUT", &body, chunked);
                assert_eq!((reply.status, reply.text()), (200, summary(&body)), "{len} bytes, {chunked}");
            }

            assert!(bad.connections() > 0);
            assert_eq!(rig.metric("penstock_l7_temp_file_bytes"), 0.0);
        }
    }
}

#[test]
fn a_body_that_another_attempt_would_need_is_kept_unless_bodies_are_to_go_past() {
    let kept = Buffers::default().again;
    let (failures, answers) = ("error timeout", "error http_503");
    let cases = [
        ("a short one", kept, failures, "PUT", 5_000, false, [200, 200]),
        ("a long one, after failures alone", kept, failures, "PUT", 300_000, false, [200, 502]),
        ("a long one", kept, answers, "PUT", 300_000, false, [200, 200]),
        ("one in chunks", kept, answers, "PUT", 20_000, true, [200, 200]),
        ("no request to be repeated", kept, answers, "POST", 5_000, false, [200, 503]),
        ("every request is", kept, "error http_503 non_idempotent", "POST", 5_000, false, [200, 200]),
        ("never kept", None, answers, "PUT", 20_000, false, [200, 503]),
    ];
    for (case, again, on, method, len, chunked, expected) in cases {
        let answer = if on == failures { "" } else { "HTTP/1.1 503 Down\r\nContent-Length: 0\r\n\r\n" };
        let bad = Backend::start(move |mut peer| {
            if let Some(head) = peer.head() {
                peer.exactly(length_of(&head));
                peer.try_send(answer.as_bytes());
            }
        });
        let good = summing();
        let buffers = Buffers { again, ..Buffers::default() };
        let mut filters = Filters { max_body_bytes: None, buffers, ..Filters::default() };
        filters.retry.on = Conditions::parse(on).expect("conditions");
        let rig = Rig::start(to_with(&[bad.addr, good.addr], filters));

        let mut statuses = [(); 2].map(|()| upload(&mut rig.client(), method, &pattern(len), chunked).status);
        statuses.sort_unstable();

        assert_eq!(statuses, expected, "{case}: {method} of {len} bytes on {on}");
    }
}

#[test]
fn no_endpoint_is_held_up_by_a_body_on_its_way() {
    let backend = summing();
    let rig = Rig::start(to_with(&[backend.addr], holding()));
    let body = pattern(200_000);
    let mut slow = rig.client();
    slow.send(format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", body.len()));
    slow.send(&body[..150_000]);
    assert_eq!(upload(&mut rig.client(), "POST", b"hello", false).text(), summary(b"hello"));

    slow.send(&body[150_000..]);

    assert_eq!(slow.reply().text(), summary(&body));
    assert_eq!(backend.connections(), 1);
}

#[test]
fn an_answer_before_the_end_of_a_held_body_leaves_the_client_its_connection() {
    let refusing = Backend::start(|mut peer| {
        while let Some(head) = peer.head() {
            peer.send("HTTP/1.1 403 No\r\nContent-Length: 2\r\n\r\nno");
            // It reads on, as far as anything comes.
            let mut left = length_of(&head).saturating_sub(peer.buffered().len());
            while left > 0 {
                let Ok(n @ 1..) = std::io::Read::read(&mut &peer.stream, &mut [0; 65_536]) else { return };
                left = left.saturating_sub(n);
            }
        }
    });
    let rig = Rig::start(to_with(&[refusing.addr], holding()));
    let mut client = rig.client();

    for _ in 0..2 {
        let reply = upload(&mut client, "POST", &pattern(10 << 20), false);
        assert_eq!((reply.status, reply.header("connection")), (403, None));
    }
}

#[test]
fn a_response_that_asks_for_it_is_not_read_ahead() {
    const LEN: usize = 16 << 20;
    let backend = Backend::start(|mut peer| {
        while peer.head().is_some() {
            peer.send(format!("HTTP/1.1 200 OK\r\nX-Accel-Buffering: no\r\nContent-Length: {LEN}\r\n\r\n"));
            peer.send(pattern(LEN));
        }
    });
    let nowhere = Temp { dir: "/nonexistent/penstock".into(), ..Temp::default() };
    let rig = Rig::with_temp(to_with(&[backend.addr], reading_ahead(1 << 30)), nowhere);
    let mut client = rig.client();

    client.send(GET);
    let reply = client.reply();

    assert!(reply.body == pattern(LEN) && reply.header("x-accel-buffering").is_none());
    assert_eq!(rig.metric("penstock_l7_temp_file_failures_total"), 0.0);
}

#[test]
fn the_time_that_a_client_takes_for_its_body_is_none_of_its_attempts() {
    let good = Backend::mirror();
    let retry = Retry { within: Duration::from_millis(500), ..Retry::default() };
    let rig = Rig::start(to_with(&[nobody(), good.addr], Filters { retry, ..holding() }));
    for _ in 0..2 {
        let mut client = rig.client();
        client.send("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 20000\r\n\r\nhalf");

        // Longer than attempts may take.
        std::thread::sleep(Duration::from_millis(700));
        client.send(pattern(20_000 - 4));

        assert_eq!(client.reply().status, 200);
    }
    assert_eq!(good.connections(), 1);
}

#[test]
fn a_held_body_has_the_limits_of_any_other() {
    let backend = summing();
    let rig = Rig::start(to_with(&[backend.addr], Filters { max_body_bytes: Some(100_000), ..holding() }));
    let chunked = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";

    assert_eq!(rig.ask(&format!("{chunked}186a1\r\n")).status, 413);
    assert_eq!(rig.ask(&format!("{chunked}5\r\nhelloX")).status, 400);

    assert_eq!(backend.connections(), 0);
}

#[test]
fn bodies_that_take_the_memory_they_may_together_go_to_files() {
    const LEN: usize = 1 << 20;
    let backend = summing();
    let buffers = Buffers { request: Some(Buffers::MEMORY_MAX), ..Buffers::default() };
    let temp = Temp { memory_bytes: LEN as u64, ..Temp::default() };
    let rig = Rig::with_temp(
        to_with(&[backend.addr], Filters { max_body_bytes: None, buffers, ..holding() }),
        temp,
    );
    let body = pattern(LEN);
    let (most, last) = body.split_at(LEN - 1);
    let mut clients = [(); 4].map(|()| rig.client());

    for client in &mut clients {
        client.send(format!("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: {LEN}\r\n\r\n"));
        client.send(most);
    }

    let started = Instant::now();
    while rig.metric("penstock_l7_temp_file_bytes") < 2.0 * LEN as f64 {
        assert!(started.elapsed() < DEADLINE, "all are in memory");
        std::thread::yield_now();
    }
    let taken = rig.metric("penstock_l7_body_memory_bytes");
    assert!(taken > LEN as f64 / 4.0 && taken < LEN as f64, "{taken} of {LEN}");
    for client in &mut clients {
        client.send(last);
        assert_eq!(client.reply().text(), summary(&body));
    }
    assert_eq!(rig.metric("penstock_l7_body_memory_bytes"), 0.0);
}

#[test]
fn where_bodies_cannot_be_put_the_answer_is_500_and_small_ones_pass() {
    let full = tempfile::tempdir().expect("a directory");
    let mut mounted = None;
    let can_mount = lb_tests::tier::require("wire", || {
        mounted = Tmpfs::mount(full.path());
        mounted.is_some().then_some(()).ok_or_else(|| "no file system can be mounted".to_owned())
    });
    let mut cases = vec![
        ("limit", Temp { bytes: 200_000, ..Temp::default() }),
        ("no directory", Temp { dir: "/nonexistent/penstock".into(), ..Temp::default() }),
    ];
    if can_mount {
        cases.push(("full disk", Temp { dir: full.path().to_owned(), ..Temp::default() }));
    }
    for (case, temp) in cases {
        let backend = summing();
        let rig = Rig::with_temp(to_with(&[backend.addr], holding()), temp);
        let mut client = rig.client();
        client.send("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 8000000\r\n\r\n");
        client.try_send(&pattern(8_000_000));

        assert_eq!(client.reply().status, 500, "{case}");
        assert_eq!(rig.metric("penstock_l7_temp_file_failures_total"), 1.0, "{case}");
        assert_eq!(rig.metric("penstock_l7_temp_file_bytes"), 0.0, "{case}");
        let small = pattern(9_000);
        assert_eq!(upload(&mut rig.client(), "PUT", &small, false).text(), summary(&small), "{case}");
    }
}

/// A file system of one megabyte, until dropped.
struct Tmpfs(std::path::PathBuf);

impl Tmpfs {
    fn mount(at: &Path) -> Option<Self> {
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"]).arg(at).status();
        mounted.is_ok_and(|status| status.success()).then(|| Self(at.to_owned()))
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Sends a body of so many bytes to each request and passes the barrier when all of it is on its way.
fn sending(len: usize, chunked: bool) -> (Backend, Arc<Barrier>) {
    let sent = Arc::new(Barrier::new(2));
    let at = Arc::clone(&sent);
    let backend = Backend::start(move |mut peer| {
        while peer.head().is_some() {
            let body = pattern(len);
            if chunked {
                peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
                for chunk in body.chunks(60_000) {
                    peer.send(format!("{:x}\r\n", chunk.len()));
                    peer.send(chunk);
                    peer.send("\r\n");
                }
                peer.send("0\r\n\r\n");
            } else {
                peer.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {len}\r\n\r\n"));
                peer.send(&body);
            }
            at.wait();
        }
    });
    (backend, sent)
}

#[test]
fn an_endpoint_that_is_read_ahead_is_free_before_its_client_has_everything() {
    const LEN: usize = 16 << 20;
    for chunked in [false, true] {
        let (backend, sent) = sending(LEN, chunked);
        let rig = Rig::start(to_with(&[backend.addr], reading_ahead(1 << 30)));
        let (mut first, mut second) = (rig.client(), rig.client());

        first.send(GET);
        sent.wait();
        // What is on its way has to arrive before the connection is free again.
        while rig.metric("penstock_l7_upstream_idle_connections") == 0.0 {
            std::thread::yield_now();
        }
        second.send(GET);
        sent.wait();

        // Both were served by one connection, and nobody has read a byte yet.
        assert!(rig.metric("penstock_l7_temp_file_bytes") > 0.0);
        assert_eq!(backend.connections(), 1);
        for client in [&mut first, &mut second] {
            assert!(client.reply().body == pattern(LEN), "chunked {chunked}");
        }
    }
}

#[test]
fn a_client_gets_everything_where_nothing_more_can_be_read_ahead() {
    const LEN: usize = 12 << 20;
    let nowhere = Temp { dir: "/nonexistent/penstock".into(), ..Temp::default() };
    let small = Temp { bytes: 300_000, ..Temp::default() };
    let cases = [
        ("memory alone", 0, Temp::default()),
        ("little memory", 0, Temp { memory_bytes: 0, ..Temp::default() }),
        ("a file instead of memory", 1 << 30, Temp { memory_bytes: 0, ..Temp::default() }),
        ("small file", 1_000_000, Temp::default()),
        ("no directory", 1 << 30, nowhere),
        ("limit", 1 << 30, small),
    ];
    for (case, file_bytes, temp) in cases {
        let (backend, sent) = sending(LEN, false);
        let rig = Rig::with_temp(to_with(&[backend.addr], reading_ahead(file_bytes)), temp);
        let mut client = rig.client();

        for _ in 0..2 {
            client.send(GET);
            assert!(client.reply().body == pattern(LEN), "{case}");
            sent.wait();
        }

        assert_eq!(backend.connections(), 1, "{case}");
    }
}

#[test]
fn a_response_cut_short_is_cut_short_when_read_ahead() {
    let backend = Backend::start(|mut peer| {
        peer.head();
        peer.send("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this");
    });
    let rig = Rig::start(to_with(&[backend.addr], reading_ahead(1 << 20)));
    let mut client = rig.client();

    client.send(GET);
    client.head().expect("a head");

    assert_eq!(client.rest(), b"only this");
}

#[test]
fn a_response_with_a_pace_and_no_room_is_cut_off_like_others() {
    let backend = Backend::start(|mut peer| {
        let _ = peer.head();
        peer.send("HTTP/1.1 200 OK\r\nContent-Length: 10000000\r\n\r\n");
        peer.try_send(&pattern(10_000_000));
    });
    let mut filters = reading_ahead(0);
    if let Some(ahead) = &mut filters.buffers.response {
        ahead.rate = Some(Rate { bytes: NonZeroU64::MIN, after: 2 });
    }
    let log = Log::new();
    let rig = Rig::start(log.of(to_with(&[backend.addr], filters), "$status"));
    let mut client = rig.client();
    client.send(GET);
    assert!(client.head().is_some());
    client.exactly(2);

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(rig.running.drain(Duration::from_millis(20)));

    assert_eq!(log.lines(1), ["499"]);
}

#[test]
fn a_response_has_the_pace_of_its_location() {
    let (backend, sent) = sending(300_000, false);
    let mut filters = reading_ahead(1 << 20);
    let rate = Rate { bytes: NonZeroU64::new(100_000).expect("not zero"), after: 100_000 };
    if let Some(ahead) = &mut filters.buffers.response {
        ahead.rate = Some(rate);
    }
    let rig = Rig::start(to_with(&[backend.addr], filters));
    let mut client = rig.client();
    let began = Instant::now();

    client.send(GET);
    sent.wait();
    assert!(client.reply().body == pattern(300_000));

    // 200,000 at once, the rest within a second.
    let took = began.elapsed();
    assert!(took > Duration::from_millis(700), "{took:?}");
}

#[test]
fn long_bodies_leave_their_connections_for_what_follows() {
    const LEN: usize = 3 << 20;
    let backend = Backend::start(|mut peer| {
        while let Some(head) = peer.head() {
            let body = peer.exactly(length_of(&head));
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
            peer.send([head.as_bytes(), &body].concat());
        }
    });
    let filters = Filters { max_body_bytes: None, ..Filters::default() };
    let rig = Rig::start(to_with(&[backend.addr], filters));
    let mut client = rig.client();

    for round in 0..5 {
        let body = pattern(LEN + round);

        assert!(upload(&mut client, "PUT", &body, false).body == body, "round {round}");
        assert_eq!(upload(&mut client, "POST", b"small", false).text(), "small");
    }

    assert_eq!(backend.connections(), 1);
}

//! Bodies stream both ways, whatever their length and framing.

use std::io::{Read, Write};
use std::sync::{Mutex, mpsc};
use std::thread;
use std::time::Duration;

use penstock::model::l7::{Buffers, Filters, L7, ReadAhead, Responses};

use crate::h2_client;
use crate::rig::{Backend, Rig, length_of, to, to_with};

const BIG: usize = 64 << 20;

#[test]
fn an_upload_is_answered_while_it_is_still_sent() {
    let backend = Backend::start(|mut peer| {
        let head = peer.head().expect("a request");
        let length = length_of(&head);
        peer.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n"));
        for _ in 0..length {
            let byte = peer.exactly(1);
            peer.send(&byte);
        }
    });
    let rig = Rig::start(to(&[backend.addr]));
    let mut client = rig.client();

    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n");
    let head = client.head().expect("a response before the body");
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");

    for byte in [b"a", b"b", b"c"] {
        client.send(byte);
        assert_eq!(client.exactly(1), byte);
    }
}

#[test]
fn large_bodies_pass_in_both_directions() {
    let backend = Backend::start(|mut peer| {
        let head = peer.head().expect("a request");
        let mut left = length_of(&head);
        let mut sum = 0u64;
        while left > 0 {
            let part = peer.exactly(left.min(64 * 1024));
            sum += part.iter().map(|b| u64::from(*b)).sum::<u64>();
            left -= part.len();
        }
        peer.send(format!("HTTP/1.1 200 OK\r\nX-Sum: {sum}\r\nContent-Length: {BIG}\r\n\r\n"));
        for _ in 0..BIG / 65_536 {
            if !peer.try_send(&[7; 65_536]) {
                return;
            }
        }
    });
    let rig = Rig::start(to(&[backend.addr]));
    let mut client = rig.client();

    client.send(format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {BIG}\r\n\r\n"));
    for _ in 0..BIG / 65_536 {
        client.send([3; 65_536]);
    }
    let head = client.head().expect("a response");
    assert!(head.contains(&format!("X-Sum: {}\r\n", BIG * 3)), "{head}");

    let mut left = BIG - client.buffered().len();
    let mut part = vec![0; 65_536];
    while left > 0 {
        let n = client.stream.read(&mut part).expect("body");
        assert!(n > 0 && part[..n].iter().all(|b| *b == 7));
        left -= n;
    }
}

#[test]
fn chunks_and_trailers_pass_without_extensions() {
    let backend = Backend::saying(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n\
         5;note=1\r\nhello\r\n6\r\n world\r\n0\r\nX-Sum: 11\r\n\r\n",
    );
    let rig = Rig::start(to(&[backend.addr]));
    let mut client = rig.client();

    for _ in 0..2 {
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        let head = client.head().expect("a head");
        assert!(head.contains("Transfer-Encoding: chunked\r\n"), "{head}");
        let expected = "5\r\nhello\r\n6\r\n world\r\n0\r\nX-Sum: 11\r\n\r\n";
        assert_eq!(client.exactly(expected.len()), expected.as_bytes());
    }
    assert_eq!(backend.connections(), 1);
}

#[test]
fn trailers_that_no_client_is_to_see_are_left_out_of_a_response_that_is_whole() {
    let backend = Backend::saying(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\
         Connection: close\r\nX-Secret: 1\r\nServer: up\r\nX-Accel-Redirect: /a\r\nno colon\r\nX-Sum: 2\r\n\r\n",
    );
    let responses = Responses { hidden: vec!["x-secret".to_owned()], ..Responses::default() };
    let rig = Rig::start(L7 { responses, ..to(&[backend.addr]) });
    let mut client = rig.client();

    for _ in 0..2 {
        client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
        assert_eq!(client.reply().text(), "helloX-Sum: 2");
    }
    let reply = h2_client::Client::connect(rig.http).get("/");

    assert_eq!((reply.text().as_str(), reply.trailers.map(|trailers| trailers.len())), ("hello", Some(1)));
}

#[test]
fn trailers_and_extensions_of_a_request_go_no_further() {
    let backend = Backend::showing_chunks();
    let rig = Rig::start(to(&[backend.addr]));
    let mut client = rig.client();
    let (head, chunks) =
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", "2\r\nhi\r\n0\r\n");

    for trailers in [
        "",
        "X-User: evil\r\n",
        "ssl-client-verify: SUCCESS\r\nX-Real-IP: 1.1.1.1\r\nProxy: a\r\n",
        "a_b: 1\r\nX_User: evil\r\ncontent_length: 5\r\n",
    ] {
        client.send(format!("{head}{chunks}{trailers}\r\n"));
        assert_eq!(client.reply().text(), format!("{chunks}\r\n"), "{trailers}");
    }
    client.send(format!("{head}2;a=\"b\r\nhi\r\n0;c\r\n\r\n"));
    assert_eq!(client.reply().text(), format!("{chunks}\r\n"), "extensions");
    // However it is cut.
    client.send(head);
    for byte in format!("{chunks}X-User: evil\r\nA: b\r\n\r\n").bytes() {
        client.send([byte]);
    }
    assert_eq!(client.reply().text(), format!("{chunks}\r\n"));
}

#[test]
fn a_client_that_waits_for_100_is_told_to_go_on() {
    let backend = Backend::mirror();
    let rig = Rig::start(to(&[backend.addr]));
    let mut client = rig.client();

    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n");
    assert_eq!(client.head().as_deref(), Some("HTTP/1.1 100 Continue\r\n\r\n"));
    client.send("hi");

    assert!(client.reply().text().ends_with("\r\n\r\nhi"));
}

#[test]
fn a_body_without_length_comes_in_chunks_where_those_are_understood() {
    let backend = Backend::start(|mut peer| {
        peer.head();
        peer.send("HTTP/1.1 200 OK\r\n\r\nuntil the end");
    });
    let rig = Rig::start(to(&[backend.addr]));
    let mut client = rig.client();

    // The connection is kept, and a response without a body has no chunks.
    for _ in 0..2 {
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        let reply = client.reply();
        assert_eq!((reply.header("connection"), reply.text().as_str()), (None, "until the end"));
        assert_eq!(reply.header("transfer-encoding"), Some("chunked"));
    }
    client.send("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert!(!client.head().expect("a head").contains("chunked"));
    let old = rig.ask("GET / HTTP/1.0\r\nHost: a\r\n\r\n");
    assert_eq!((old.header("connection"), old.text().as_str()), (Some("close"), "until the end"));
}

#[test]
fn a_body_without_length_that_is_cut_off_is_seen_as_cut_off() {
    for response in [None, Some(ReadAhead { memory_bytes: 64 * 1024, file_bytes: 0, rate: None })] {
        let (cut, is_read) = mpsc::channel::<()>();
        let is_read = Mutex::new(is_read);
        let backend = Backend::start(move |mut peer| {
            peer.head();
            peer.send("HTTP/1.1 200 OK\r\n\r\npart");
            // The client has it by then: a reset takes nothing back.
            let _ = is_read.lock().expect("one at a time").recv();
            rustix::net::sockopt::set_socket_linger(&peer.stream, Some(Duration::ZERO)).expect("linger");
        });
        let buffers = Buffers { response, ..Buffers::default() };
        let rig = Rig::start(to_with(&[backend.addr], Filters { buffers, ..Filters::default() }));
        let mut client = rig.client();

        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        client.head().expect("a head");
        assert_eq!(client.chunk(), b"part");
        cut.send(()).expect("told");

        assert_eq!(client.rest(), b"", "no last chunk");
    }
}

#[test]
fn a_response_whose_first_chunk_is_none_is_no_response() {
    let backend = Backend::start(|mut peer| {
        peer.head();
        peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5 \r\nhello\r\n0\r\n\r\n");
        peer.rest();
    });
    let rig = Rig::start(to(&[backend.addr]));

    assert_eq!(rig.ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n").status, 502);
}

#[test]
fn a_response_cut_short_is_seen_as_cut_short() {
    let backend = Backend::start(|mut peer| {
        peer.head();
        peer.send("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this");
    });
    let rig = Rig::start(to(&[backend.addr]));
    let mut client = rig.client();

    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    client.head().expect("a head");

    assert_eq!(client.rest(), b"only this");
}

#[test]
fn a_slow_reader_gets_everything_and_holds_nobody_up() {
    let backend = Backend::start(|mut peer| {
        while peer.head().is_some() {
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {BIG}\r\n\r\n");
            if !peer.try_send(head.as_bytes()) || peer.stream.write_all(&vec![1; BIG]).is_err() {
                return;
            }
        }
    });
    let quick = Backend::mirror();
    let rig = Rig::start(to(&[backend.addr]));
    let mut slow = rig.client();
    slow.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    slow.head().expect("a head");

    // Its worker is the only one; it must not be stuck with the slow client.
    rig.publish(to(&[quick.addr]));
    rig.ask_until("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", 200);

    let reader = thread::spawn(move || slow.exactly(BIG).len());
    assert_eq!(reader.join().expect("read"), BIG);
}

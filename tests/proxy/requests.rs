//! What an upstream is told, and how connections are used on both sides.

use std::time::{Duration, Instant};

use penstock::model::l7::Filters;

use crate::rig::{Backend, Client, Rig, to, to_with};

#[test]
fn the_upstream_sees_the_request_and_who_sent_it() {
    let backend = Backend::mirror();
    let rig = Rig::start(to(&[backend.addr]));

    let reply = rig.ask(
        "GET /a/%2e%2e/b?x=1 HTTP/1.1\r\nHost: shop.example:8080\r\nAccept: */*\r\nX-Forwarded-For: 6.6.6.6\r\n\
         X-Forwarded-For: 7.7.7.7\r\nX-Forwarded-Host: evil\r\nX-Real-IP: 6.6.6.6\r\nX-Forwarded-Proto: https\r\nProxy: http://evil\r\n\
         X_Under: 1\r\nssl-client-verify: SUCCESS\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\n\
         Keep-Alive: 5\r\nTE: trailers\r\nX-Request-ID: 0123456789abcdef0123456789abcdef\r\n\r\n",
    );

    let port = rig.http.port();
    assert_eq!(
        reply.text(),
        format!(
            "GET /a/%2e%2e/b?x=1 HTTP/1.1\r\nHost: shop.example:8080\r\nAccept: */*\r\n\
             X-Request-ID: 0123456789abcdef0123456789abcdef\r\nX-Real-IP: 127.0.0.1\r\n\
             X-Forwarded-For: 127.0.0.1\r\nX-Forwarded-Host: shop.example:8080\r\n\
             X-Forwarded-Port: {port}\r\nX-Forwarded-Proto: http\r\nX-Forwarded-Scheme: http\r\n\
             X-Scheme: http\r\nX-Original-Forwarded-For: 6.6.6.6\r\n\
             X-Original-Forwarded-For: 7.7.7.7\r\nX-Original-Forwarded-Host: evil\r\n\r\n"
        )
    );
}

#[test]
fn a_request_without_id_gets_one_of_32_hex_digits_and_never_the_same() {
    let backend = Backend::mirror();
    let rig = Rig::start(to(&[backend.addr]));
    let id = || {
        let text = rig.ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n").text();
        let line = text.lines().find(|line| line.starts_with("X-Request-ID: ")).expect("an id").to_owned();
        line["X-Request-ID: ".len()..].to_owned()
    };

    let (one, other) = (id(), id());

    assert!(one.len() == 32 && one.bytes().all(|b| b.is_ascii_hexdigit()), "{one}");
    assert_ne!(one, other);
}

#[test]
fn connections_are_kept_on_both_sides() {
    let backend = Backend::mirror();
    let rig = Rig::start(to(&[backend.addr]));
    let mut client = rig.client();

    for _ in 0..20 {
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(client.reply().status, 200);
    }

    assert_eq!(backend.connections(), 1);
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let backend = Backend::mirror();
    let rig = Rig::start(to(&[backend.addr]));
    let mut client = rig.client();

    client.send("GET /1 HTTP/1.1\r\nHost: a\r\n\r\nPOST /2 HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhiGET /3 HTTP/1.1\r\nHost: a\r\n\r\n");

    for path in ["GET /1 ", "POST /2 ", "GET /3 "] {
        let text = client.reply().text();
        assert!(text.starts_with(path), "{text}");
    }
}

#[test]
fn an_empty_line_before_a_request_belongs_to_nothing() {
    let backend = Backend::mirror();
    let rig = Rig::start(to(&[backend.addr]));
    let mut client = rig.client();

    // Some clients end a body by one line more than they count.
    client.send("\r\nPOST /1 HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi\r\n");
    assert!(client.reply().text().starts_with("POST /1 "));
    client.send("\r\n\r");
    client.send("\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n");

    assert!(client.reply().text().starts_with("GET /2 "));
}

#[test]
fn a_target_that_is_no_text_goes_upstream_as_it_is() {
    let backend = Backend::start(|mut peer| {
        let line = peer.exactly(b"GET /caf\xe9?\xff HTTP/1.1\r\n".len());
        peer.head();
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", line.len());
        peer.send([head.as_bytes(), &line].concat());
    });
    let rig = Rig::start(to(&[backend.addr]));
    let mut client = rig.client();

    client.send(b"GET /caf\xe9?\xff HTTP/1.1\r\nHost: a\r\n\r\n");

    assert_eq!(client.reply().body, b"GET /caf\xe9?\xff HTTP/1.1\r\n");
}

#[test]
fn a_head_request_gets_the_head_alone() {
    let backend = Backend::saying("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n");
    let rig = Rig::start(to(&[backend.addr]));
    let mut client = rig.client();

    for _ in 0..2 {
        client.send("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n");
        let head = client.head().expect("a head");
        assert!(head.contains("Content-Length: 5\r\n"), "{head}");
    }
}

#[test]
fn http_1_0_is_served_and_closed_unless_it_asks_otherwise() {
    let backend =
        Backend::saying("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n");
    let rig = Rig::start(to(&[backend.addr]));

    let mut closing = rig.client();
    closing.send("GET / HTTP/1.0\r\n\r\n");
    let text = String::from_utf8(closing.rest()).expect("text");

    // Chunks mean nothing to HTTP/1.0: the content comes bare and ends with the connection.
    assert!(text.ends_with("\r\n\r\nabc"), "{text}");
    assert!(!text.to_ascii_lowercase().contains("transfer-encoding"), "{text}");
}

#[test]
fn a_kept_http_1_0_connection_is_told_so() {
    let backend = Backend::saying("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    let rig = Rig::start(to(&[backend.addr]));
    let mut client = rig.client();

    for _ in 0..2 {
        client.send("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
        assert_eq!(client.reply().header("connection"), Some("keep-alive"));
    }
}

#[test]
fn an_absolute_target_without_a_path_asks_for_the_root_and_moves_nothing_else() {
    let backend = Backend::mirror();
    let rig = Rig::start(to(&[backend.addr]));
    let mut client = rig.client();

    client.send(
        "POST http://b?x=1 HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbodyGET /next HTTP/1.1\r\nHost: a\r\n\r\n",
    );

    let first = client.reply().text();
    assert!(
        first.starts_with("POST /?x=1 HTTP/1.1\r\nHost: b\r\n") && first.ends_with("\r\n\r\nbody"),
        "{first}"
    );
    let next = client.reply().text();
    assert!(next.starts_with("GET /next HTTP/1.1\r\nHost: a\r\n"), "{next}");
}

#[test]
fn a_minor_version_to_come_is_served_as_1_1() {
    let (mirror, chunks) = (Backend::mirror(), Backend::showing_chunks());
    let rig = Rig::start(to(&[mirror.addr]));

    let text = rig.ask("GET / HTTP/1.2\r\nHost: a\r\n\r\n").text();
    assert!(text.starts_with("GET / HTTP/1.1\r\nHost: a\r\n"), "{text}");

    let rig = Rig::start(to(&[chunks.addr]));
    let mut client = rig.client();
    for _ in 0..2 {
        let body = "2\r\nhi\r\n0\r\n\r\n";
        client.send(format!("POST / HTTP/1.2\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{body}"));
        assert_eq!(client.reply().text(), body);
    }
}

#[test]
fn an_absolute_target_is_served_by_its_authority() {
    let backend = Backend::mirror();
    let rig = Rig::start(to(&[backend.addr]));

    let text = rig.ask("GET http://b.example/x HTTP/1.1\r\nHost: a\r\n\r\n").text();

    assert!(text.starts_with("GET /x HTTP/1.1\r\nHost: b.example\r\n"), "{text}");
}

#[test]
fn a_websocket_is_switched_and_carries_bytes_both_ways_until_both_close() {
    let backend = Backend::start(|mut peer| {
        let head = peer.head().expect("a request");
        assert!(head.contains("Upgrade: websocket\r\nConnection: upgrade\r\n"), "{head}");
        peer.send(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nhello",
        );
        let said = peer.exactly(4);
        peer.send(&said);
        assert_eq!(peer.rest(), b"bye");
        // Half closed by the client; the other direction still works.
        peer.send("last words");
    });
    let rig = Rig::start(to(&[backend.addr]));
    let mut client = rig.client();

    client.send("GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n");
    assert_eq!(client.reply().status, 101);
    assert_eq!(client.exactly(5), b"hello");
    client.send("ping");
    assert_eq!(client.exactly(4), b"ping");
    client.send("bye");
    client.stream.shutdown(std::net::Shutdown::Write).expect("half close");

    assert_eq!(client.rest(), b"last words");
}

#[test]
fn a_request_split_at_every_byte_is_the_same_request() {
    let backend = Backend::mirror();
    let rig = Rig::start(to(&[backend.addr]));
    let request = b"GET /x?y HTTP/1.1\r\nHost: a\r\nX-Request-ID: same\r\nX-A: b\r\n\r\n";
    let mut client = rig.client();
    client.send(request);
    let whole = client.reply().text();

    for at in 1..request.len() {
        let (first, second) = request.split_at(at);
        client.send(first);
        // The halves leave in two segments (TCP_NODELAY on this side), though they may still be
        // read together: every reading of them has to be the same.
        client.send(second);

        assert_eq!(client.reply().text(), whole, "split at {at}");
    }
}

#[test]
fn endpoints_take_turns() {
    let backends = [
        Backend::saying("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na"),
        Backend::saying("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nb"),
        Backend::saying("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nc"),
    ];
    let rig = Rig::start(to(&backends.each_ref().map(|backend| backend.addr)));
    let mut client = Client::connect(rig.http);
    let mut counts = [0; 3];

    for _ in 0..300 {
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        let body = client.reply().body;
        counts[usize::from(body[0] - b'a')] += 1;
    }

    assert_eq!(counts, [100; 3]);
}

#[test]
fn an_upgraded_connection_outlives_its_idle_timeout_while_somebody_speaks() {
    let backend = Backend::start(|mut peer| {
        peer.head();
        peer.send("HTTP/1.1 101 Switching Protocols\r\nUpgrade: echo\r\nConnection: Upgrade\r\n\r\n");
        loop {
            let said = peer.exactly(1);
            peer.send(&said);
        }
    });
    let filters = Filters { read_timeout: Duration::from_millis(500), ..Filters::default() };
    let rig = Rig::start(to_with(&[backend.addr], filters));
    let mut client = rig.client();
    client.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n");
    assert_eq!(client.reply().status, 101);

    // Time itself is the subject: twice the timeout passes, in parts much shorter than it.
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(1200) {
        client.send("x");
        assert_eq!(client.exactly(1), b"x");
        std::thread::park_timeout(Duration::from_millis(50));
    }

    assert_eq!(client.rest(), b"", "and silence ends it");
}

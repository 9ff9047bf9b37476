//! HTTP/2 from clients: many streams, bodies both ways, what the upstream is told, how it ends.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request};
use lb_tests::h2_frames::{Frames, Outcome};
use penstock::model::l7::Filters;

use crate::h2_client::{Client, exchange, get, limited};
use crate::rig::{Backend, DEADLINE, Rig, to, to_with};

#[test]
fn the_upstream_sees_an_http_1_1_request() {
    let backend = Backend::mirror();
    let rig = Rig::start(to(&[backend.addr]));
    let request = Request::get("http://shop.example:8080/a?x=1")
        .header("accept", "*/*")
        .header("cookie", "a=1")
        .header("cookie", "b=2")
        .header("te", "trailers")
        .header("x_under", "1")
        .header("ssl-client-verify", "SUCCESS")
        .header("x-forwarded-for", "6.6.6.6")
        .header("x-request-id", "0123456789abcdef0123456789abcdef")
        .body(())
        .expect("request");

    let reply = Client::connect(rig.http).ask(request, &[]).expect("a response");

    let port = rig.http.port();
    assert_eq!(
        reply.text(),
        format!(
            "GET /a?x=1 HTTP/1.1\r\nHost: shop.example:8080\r\naccept: */*\r\ncookie: a=1; b=2\r\n\
             X-Request-ID: 0123456789abcdef0123456789abcdef\r\nX-Real-IP: 127.0.0.1\r\n\
             X-Forwarded-For: 127.0.0.1\r\nX-Forwarded-Host: shop.example:8080\r\n\
             X-Forwarded-Port: {port}\r\nX-Forwarded-Proto: http\r\nX-Forwarded-Scheme: http\r\n\
             X-Scheme: http\r\nX-Original-Forwarded-For: 6.6.6.6\r\n\r\n"
        )
    );
}

#[test]
fn many_streams_run_at_once_and_share_upstream_connections() {
    let backend = Backend::mirror();
    let rig = Rig::start(to(&[backend.addr]));
    let client = Client::connect(rig.http);

    let replies = client.runtime.block_on(async {
        let asked: Vec<_> = (0..100)
            .map(|i| tokio::spawn(exchange(client.requests.clone(), get(&format!("/{i}")), vec![], None)))
            .collect();
        let mut replies = Vec::new();
        for asked in asked {
            replies.push(limited(asked).await.expect("task").expect("a response"));
        }
        replies
    });

    for (i, reply) in replies.iter().enumerate() {
        assert!(reply.text().starts_with(&format!("GET /{i} HTTP/1.1\r\n")), "{}", reply.text());
    }
    let opened = backend.connections();
    client.get("/again");
    assert_eq!(backend.connections(), opened);
}

#[test]
fn a_body_of_known_length_keeps_its_length() {
    let backend = Backend::mirror();
    let rig = Rig::start(to(&[backend.addr]));
    let request =
        Request::post("http://a.example/").header("content-length", "10").body(()).expect("request");

    let reply = Client::connect(rig.http).ask(request, &[b"01234", b"56789"]).expect("a response");

    let text = reply.text();
    assert!(text.contains("content-length: 10\r\n") && text.ends_with("\r\n\r\n0123456789"), "{text}");
}

#[test]
fn a_body_of_unknown_length_becomes_chunks_and_its_trailers_go_no_further() {
    let backend = Backend::showing_chunks();
    let rig = Rig::start(to(&[backend.addr]));
    let client = Client::connect(rig.http);
    let mut trailers = HeaderMap::new();
    trailers.insert("x-sum", "abc".parse().expect("value"));
    trailers.insert("host", "evil".parse().expect("value"));

    let request = Request::post("http://a.example/").body(()).expect("request");
    let asked = exchange(client.requests.clone(), request, vec![b"hello"], Some(trailers));
    let reply = client.runtime.block_on(limited(asked)).expect("a response");

    assert_eq!(reply.text(), "0005\r\nhello\r\n0\r\n\r\n");
}

#[test]
fn chunks_and_trailers_of_the_upstream_become_data_and_trailers() {
    let backend = Backend::saying(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: x-hop\r\nX-Hop: 1\r\nServer: s\r\n\r\n\
         3\r\nabc\r\n2;ext=1\r\nde\r\n0\r\nX-Sum: 5\r\n\r\n",
    );
    let rig = Rig::start(to(&[backend.addr]));

    let reply = Client::connect(rig.http).get("/");

    assert_eq!(reply.text(), "abcde");
    assert_eq!(reply.trailers.expect("trailers")["x-sum"], "5");
    let mut names: Vec<_> = reply.head.headers().keys().map(|name| name.as_str()).collect();
    names.sort();
    assert_eq!(names, ["date"]);
}

#[test]
fn a_response_delimited_by_its_end_is_whole() {
    let backend = Backend::start(|mut peer| {
        peer.head();
        peer.send("HTTP/1.1 200 OK\r\n\r\nuntil the end");
    });
    let rig = Rig::start(to(&[backend.addr]));

    assert_eq!(Client::connect(rig.http).get("/").text(), "until the end");
}

#[test]
fn heads_alone_end_their_stream() {
    let backend = Backend::start(|mut peer| {
        while let Some(head) = peer.head() {
            let answer = match head.split(' ').nth(1) {
                Some("/204") => "HTTP/1.1 204 No Content\r\n\r\n",
                Some("/304") => "HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n",
                _ => "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
            };
            if !peer.try_send(answer.as_bytes()) {
                return;
            }
        }
    });
    let rig = Rig::start(to(&[backend.addr]));
    let client = Client::connect(rig.http);

    let head = Request::head("http://a.example/").body(()).expect("request");
    let reply = client.ask(head, &[]).expect("a response");
    assert_eq!((reply.head.headers()["content-length"].as_bytes(), reply.body.len()), (&b"5"[..], 0));
    assert_eq!(client.get("/204").head.status(), 204);
    assert_eq!(client.get("/304").head.status(), 304);
}

#[test]
fn a_large_body_goes_through_in_both_directions_at_once() {
    // Echoes while it reads: neither direction may wait for the other.
    let backend = Backend::start(|mut peer| {
        peer.head();
        peer.send("HTTP/1.1 200 OK\r\nContent-Length: 8000000\r\n\r\n");
        for _ in 0..8 {
            let part = peer.exactly(1_000_000);
            peer.send(part);
        }
    });
    let rig = Rig::start(to(&[backend.addr]));
    static PART: [u8; 1_000_000] = [7; 1_000_000];
    let request =
        Request::post("http://a.example/").header("content-length", "8000000").body(()).expect("request");

    let reply = Client::connect(rig.http).ask(request, &[&PART[..]; 8]).expect("a response");

    assert_eq!(reply.body.len(), 8_000_000);
    assert!(reply.body.iter().all(|&b| b == 7));
}

#[test]
fn events_arrive_as_they_are_sent() {
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let backend = Backend::start(move |mut peer| {
        peer.head();
        peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Type: text/event-stream\r\n\r\n");
        let asked = || wait.lock().expect("one connection").recv().expect("asked for");
        for _ in 0..3 {
            asked();
            peer.send("8\r\ndata: x\n\r\n");
        }
        asked();
        peer.send("0\r\n\r\n");
    });
    let rig = Rig::start(to(&[backend.addr]));
    let client = Client::connect(rig.http);

    client.runtime.block_on(limited(async {
        let mut requests = client.requests.clone().ready().await.expect("ready");
        let (response, _) = requests.send_request(get("/"), true).expect("sent");
        // The head comes before any event.
        let mut body = response.await.expect("a head").into_body();
        for _ in 0..3 {
            go.send(()).expect("backend lives");
            assert_eq!(body.data().await.expect("an event").expect("data"), "data: x\n");
        }
        go.send(()).expect("backend lives");
        // No event could wait for the end, so that has a frame of its own, without content.
        assert_eq!(body.data().await.expect("the last frame").expect("data"), "");
        assert!(body.data().await.is_none());
    }));
}

#[test]
fn an_expected_continue_is_told() {
    let backend = Backend::mirror();
    let rig = Rig::start(to(&[backend.addr]));
    let client = Client::connect(rig.http);
    let request = Request::post("http://a.example/")
        .header("content-length", "2")
        .header("expect", "100-continue")
        .body(())
        .expect("request");

    let status = client.runtime.block_on(limited(async {
        let mut requests = client.requests.clone().ready().await.expect("ready");
        let (mut response, mut body) = requests.send_request(request, false).expect("sent");
        let interim = std::future::poll_fn(|cx| response.poll_informational(cx)).await;
        let interim = interim.expect("interim").expect("no error").status();
        body.send_data(Bytes::from_static(b"ok"), true).expect("sent");
        assert_eq!(response.await.expect("a response").status(), 200);
        interim
    }));

    assert_eq!(status, 100);
}

#[test]
fn what_an_upstream_hints_at_is_told() {
    let backend = Backend::saying(
        "HTTP/1.1 103 Early Hints\r\nConnection: close\r\nLink: </a>\r\nContent-Length: 9\r\n\r\n\
         HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfinal",
    );
    let rig = Rig::start(to(&[backend.addr]));
    let client = Client::connect(rig.http);

    let (hint, answer) = client.runtime.block_on(limited(async {
        let mut requests = client.requests.clone().ready().await.expect("ready");
        let (mut response, _) = requests.send_request(get("/"), true).expect("sent");
        let hint = std::future::poll_fn(|cx| response.poll_informational(cx)).await;
        (hint.expect("a hint").expect("no error"), response.await.expect("a response"))
    }));

    assert_eq!((hint.status().as_u16(), hint.headers().len()), (103, 1));
    assert_eq!(hint.headers()["link"], "</a>");
    assert_eq!(answer.status(), 200);
}

#[test]
fn a_response_cut_off_resets_the_stream_and_not_the_connection() {
    let backend = Backend::start(|mut peer| {
        let head = peer.head().unwrap_or_default();
        peer.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n123");
        if head.starts_with("GET /whole") {
            peer.send("4567890");
        }
    });
    let rig = Rig::start(to(&[backend.addr]));
    let client = Client::connect(rig.http);

    let error = client.ask(get("/cut"), &[]).expect_err("cut off");

    assert_eq!(error.reason(), Some(h2::Reason::INTERNAL_ERROR));
    assert_eq!(client.get("/whole").text(), "1234567890");
}

#[test]
fn a_client_that_gives_up_frees_the_upstream() {
    let (gone, told) = std::sync::mpsc::channel();
    let backend = Backend::start(move |mut peer| {
        peer.head();
        peer.rest();
        let _ = gone.send(());
    });
    let rig = Rig::start(to(&[backend.addr]));
    let client = Client::connect(rig.http);

    client.runtime.block_on(limited(async {
        let mut requests = client.requests.clone().ready().await.expect("ready");
        let (_, mut stream) = requests.send_request(get("/"), true).expect("sent");
        stream.send_reset(h2::Reason::CANCEL);
    }));

    told.recv_timeout(DEADLINE).expect("the upstream connection was closed");
}

#[test]
fn own_answers_and_limits_are_those_of_http_1_1() {
    // Whoever answered before it has the whole body would race the limit.
    let backend = Backend::start(|mut peer| {
        while let Some(head) = peer.head() {
            if head.contains("chunked") {
                peer.rest();
                return;
            }
            peer.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
        }
    });
    let filters = Filters { max_body_bytes: Some(3), ..Filters::default() };
    let rig = Rig::start(to_with(&[backend.addr], filters));
    let client = Client::connect(rig.http);

    let post = Request::post("http://a.example/").header("content-length", "4").body(()).expect("request");
    assert_eq!(client.ask(post, &[b"1234"]).expect("a response").head.status(), 413);
    let post = Request::post("http://a.example/").body(()).expect("request");
    assert_eq!(client.ask(post, &[b"12", b"34"]).expect("a response").head.status(), 413);
    assert_eq!(client.get("/%zz").head.status(), 400);
    assert_eq!(client.get("/fine").head.status(), 200);
}

#[test]
fn a_drain_lets_running_streams_finish_and_tells_the_client() {
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let (came, coming) = std::sync::mpsc::channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let backend = Backend::start(move |mut peer| {
        peer.head();
        let _ = came.send(());
        let _ = wait.lock().expect("one connection").recv();
        peer.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    });
    let rig = Rig::start(to(&[backend.addr]));
    let client = Client::connect(rig.http);

    client.runtime.block_on(limited(async {
        let asked = tokio::spawn(exchange(client.requests.clone(), get("/"), vec![], None));
        tokio::task::spawn_blocking(move || coming.recv()).await.expect("task").expect("came");
        let drained = rig.running.drain(DEADLINE);
        let finish = async {
            go.send(()).expect("backend lives");
            asked.await.expect("task").expect("a whole response")
        };
        let (all_ended, reply) = tokio::join!(drained, finish);
        assert_eq!((all_ended, reply.text()), (true, "ok".to_owned()));
    }));

    let Client { runtime, requests, connection } = client;
    drop(requests);
    let ended = runtime.block_on(limited(connection)).expect("task");
    assert!(ended.is_ok(), "{ended:?}");
}

#[test]
fn an_idle_connection_does_not_hold_up_a_drain() {
    let backend = Backend::mirror();
    let rig = Rig::start(to(&[backend.addr]));
    let client = Client::connect(rig.http);
    client.get("/");
    let started = std::time::Instant::now();

    client.runtime.block_on(rig.running.drain(DEADLINE));

    assert!(started.elapsed() < Duration::from_secs(5));
}

#[test]
fn a_connection_that_had_its_share_of_requests_or_idles_is_told_to_go() {
    let backend = Backend::mirror();
    let mut few = to(&[backend.addr]);
    few.edge.limits.keep_alive_requests = 2;
    let mut short = to(&[backend.addr]);
    short.edge.limits.keep_alive = Duration::from_millis(100);
    let mut once = to(&[backend.addr]);
    once.edge.limits.keep_alive = Duration::ZERO;
    for (case, l7, requests) in [("few", few, 2), ("short", short, 1), ("once", once, 1)] {
        let rig = Rig::start(l7);
        let client = Client::connect(rig.http);

        for _ in 0..requests {
            assert_eq!(client.get("/").head.status(), 200, "{case}");
        }

        // It ends although the client would go on.
        let Client { runtime, requests, connection } = client;
        let ended = runtime.block_on(limited(connection)).expect("task");
        assert!(ended.is_ok(), "{case}: {ended:?}");
        drop(requests);
    }
}

#[test]
fn who_does_not_acknowledge_that_it_should_go_is_refused_and_then_left() {
    // Without a body, for which the client would have to open its window.
    let backend = Backend::start(|mut peer| {
        while peer.head().is_some() {
            peer.send("HTTP/1.1 204 No Content\r\n\r\n");
        }
    });
    let mut few = to(&[backend.addr]);
    few.edge.limits.keep_alive_requests = 2;
    let rig = Rig::start(few);
    let mut client = Frames::connect(rig.http, DEADLINE);
    let mut ask = |stream: u32| {
        client.get(stream, "/");
        client.outcome(stream)
    };
    let streams = (1..).step_by(2);

    // The pings that ask whether it has heard go unanswered. 7 is REFUSED_STREAM.
    let refused = streams.map(&mut ask).find(|outcome| *outcome != Outcome::Status(204));

    assert_eq!(refused, Some(Outcome::Reset(7)));
    while client.receive().is_some() {}
}

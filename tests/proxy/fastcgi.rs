//! FastCGI applications as upstreams: what they are told, and what becomes of what they say.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use penstock::model::l7::{FastCgi, Filters, L7, Protocol, Retry};
use penstock::model::upstream::Conditions;

use crate::rig::{Backend, Client, Rig, nobody, to_with};

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

/// A request as an application reads it.
struct Asked {
    params: BTreeMap<String, String>,
    stdin: Vec<u8>,
}

impl Asked {
    fn param(&self, name: &str) -> Option<&str> {
        self.params.get(name).map(String::as_str)
    }
}

/// One request at an application.
struct Request {
    peer: Client,
}

impl Request {
    /// Kind and content of the next record.
    fn record(&mut self) -> (u8, Vec<u8>) {
        let header = self.peer.exactly(8);
        assert_eq!((header[0], &header[2..4]), (1, &[0, 1][..]), "version and request");
        let content = self.peer.exactly(usize::from(u16::from_be_bytes([header[4], header[5]])));
        self.peer.exactly(usize::from(header[6]));
        (header[1], content)
    }

    /// Its parameters.
    fn params(&mut self) -> BTreeMap<String, String> {
        let (kind, begin) = self.record();
        assert_eq!((kind, begin), (1, vec![0, 1, 0, 0, 0, 0, 0, 0]), "a responder, and no kept connection");
        let mut pairs = Vec::new();
        loop {
            let (kind, content) = self.record();
            assert_eq!(kind, 4);
            if content.is_empty() {
                return read_pairs(&pairs);
            }
            pairs.extend(content);
        }
    }

    /// All of it.
    fn read(&mut self) -> Asked {
        let params = self.params();
        let mut stdin = Vec::new();
        loop {
            let (kind, content) = self.record();
            assert_eq!(kind, 5);
            if content.is_empty() {
                return Asked { params, stdin };
            }
            stdin.extend(content);
        }
    }

    /// False if the proxy has gone.
    fn say(&mut self, kind: u8, bytes: &[u8]) -> bool {
        bytes.chunks(60_000).all(|content| self.peer.try_send(&record(kind, content)))
    }

    fn output(&mut self, bytes: impl AsRef<[u8]>) {
        self.say(6, bytes.as_ref());
    }

    fn end(&mut self) {
        self.end_with(0);
    }

    fn end_with(&mut self, protocol_status: u8) {
        self.peer.try_send(&record(6, b""));
        self.peer.try_send(&record(3, &[0, 0, 0, 0, protocol_status, 0, 0, 0]));
    }
}

/// With some padding, which we never send ourselves.
fn record(kind: u8, content: &[u8]) -> Vec<u8> {
    let [high, low] = u16::try_from(content.len()).expect("a record").to_be_bytes();
    [&[1, kind, 0, 1, high, low, 3, 0], content, b"pad"].concat()
}

fn read_pairs(mut bytes: &[u8]) -> BTreeMap<String, String> {
    fn length(bytes: &mut &[u8]) -> usize {
        let long = bytes[0] & 0x80 != 0;
        let (length, rest) = bytes.split_at(if long { 4 } else { 1 });
        *bytes = rest;
        length.iter().fold(0, |n, byte| n << 8 | usize::from(*byte)) & 0x7fff_ffff
    }
    let mut pairs = BTreeMap::new();
    while !bytes.is_empty() {
        let (name, value) = (length(&mut bytes), length(&mut bytes));
        let (pair, rest) = bytes.split_at(name + value);
        let (name, value) = pair.split_at(name);
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("text");
        assert_eq!(pairs.insert(text(name), text(value)), None, "{} twice", text(name));
        bytes = rest;
    }
    pairs
}

/// An application that runs `serve` for each request.
fn application(serve: impl Fn(Request) + Send + Sync + 'static) -> Backend {
    Backend::start(move |peer| serve(Request { peer }))
}

/// Answers with its parameters, a line each, then an empty line and the body.
pub fn mirror() -> Backend {
    application(|mut request| {
        let asked = request.read();
        request.output("Content-Type: text/plain\r\n\r\n");
        let lines: String = asked.params.iter().map(|(name, value)| format!("{name}={value}\n")).collect();
        request.output(lines + "\n");
        request.output(&asked.stdin);
        request.end();
    })
}

/// The mirrored request.
fn mirrored(reply: &crate::rig::Reply) -> Asked {
    let text = reply.text();
    let (lines, stdin) = text.split_once("\n\n").expect("parameters and a body");
    let params = lines.lines().filter_map(|line| line.split_once('='));
    let params = params.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    Asked { params, stdin: stdin.as_bytes().to_vec() }
}

/// A location with these parameters of its own.
fn filters(index: &str, own: &[(&str, &str)]) -> Filters {
    let own = own.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let (fastcgi, lacking) = FastCgi::new(index.to_owned(), &own);
    assert_eq!(lacking, Vec::<String>::new());
    Filters {
        protocol: Protocol::FastCgi,
        fastcgi: Some(Arc::new(fastcgi)),
        max_body_bytes: None,
        ..Filters::default()
    }
}

fn to(endpoints: &[std::net::SocketAddr]) -> L7 {
    to_with(endpoints, filters("", &[]))
}

#[test]
fn an_application_is_told_what_nginx_tells() {
    let backend = mirror();
    let own = [("DOCUMENT_ROOT", "/srv/www"), ("APP_HOST", "is $host"), ("HTTP_X_HIDDEN", "")];
    let rig = Rig::start(to_with(&[backend.addr], filters("index.php", &own)));

    let reply = rig.ask(
        "GET /a%20dir/?q=1&r=%20 HTTP/1.1\r\nHost: App.example:81\r\nX-Two: one\r\nx-two: two\r\nProxy: http://evil\r\n\
         X-Hidden: secret\r\nX-Forwarded-For: 192.0.2.1\r\nContent-Type: text/x\r\nConnection: keep-alive\r\n\r\n",
    );

    assert_eq!((reply.status, reply.header("content-type")), (200, Some("text/plain")));
    let asked = mirrored(&reply);
    for (name, expected) in [
        ("SCRIPT_FILENAME", Some("/srv/www/a dir/index.php")),
        ("SCRIPT_NAME", Some("/a dir/index.php")),
        ("DOCUMENT_URI", Some("/a dir/")),
        ("DOCUMENT_ROOT", Some("/srv/www")),
        ("REQUEST_URI", Some("/a%20dir/?q=1&r=%20")),
        ("QUERY_STRING", Some("q=1&r=%20")),
        ("REQUEST_METHOD", Some("GET")),
        ("CONTENT_TYPE", Some("text/x")),
        ("CONTENT_LENGTH", Some("")),
        ("SERVER_PROTOCOL", Some("HTTP/1.1")),
        ("REQUEST_SCHEME", Some("http")),
        ("HTTPS", None),
        ("GATEWAY_INTERFACE", Some("CGI/1.1")),
        ("SERVER_SOFTWARE", Some("nginx")),
        ("SERVER_NAME", Some("_")),
        ("SERVER_ADDR", Some("127.0.0.1")),
        ("SERVER_PORT", Some(rig.http.port().to_string().as_str())),
        ("REMOTE_ADDR", Some("127.0.0.1")),
        ("REMOTE_USER", Some("")),
        ("REDIRECT_STATUS", Some("200")),
        ("APP_HOST", Some("is app.example")),
        ("HTTP_HOST", Some("App.example:81")),
        ("HTTP_X_TWO", Some("one, two")),
        ("HTTP_X_FORWARDED_FOR", Some("127.0.0.1")),
        ("HTTP_X_HIDDEN", Some("")),
        ("HTTP_PROXY", None),
        ("HTTP_CONNECTION", None),
    ] {
        assert_eq!(asked.param(name), expected, "{name}");
    }
    assert!(asked.param("REMOTE_PORT").is_some_and(|port| port.parse::<u16>().is_ok_and(|port| port > 0)));
}

#[test]
fn an_application_is_told_as_many_headers_as_a_client_may_send() {
    let backend = mirror();
    let rig = Rig::start(to(&[backend.addr]));
    let lines: String = (0..120).map(|number| format!("X-A-{number}: {number}\r\n")).collect();

    let reply = rig.ask(&format!("GET / HTTP/1.1\r\nHost: a\r\n{lines}\r\n"));

    assert_eq!((reply.status, mirrored(&reply).param("HTTP_X_A_119")), (200, Some("119")));
}

#[test]
fn a_body_arrives_whatever_its_framing() {
    let backend = mirror();
    let rig = Rig::start(to(&[backend.addr]));
    let long = "0123456789abcdef".repeat(20_000);

    for (case, body, head, length) in [
        ("small", "a=b", "Content-Length: 3\r\n", Some("3")),
        ("large", long.as_str(), "Content-Length: 320000\r\n", Some("320000")),
        ("none", "", "Content-Length: 0\r\n", Some("0")),
    ] {
        let reply = rig.ask(&format!("POST /x HTTP/1.1\r\nHost: a\r\n{head}\r\n{body}"));

        let asked = mirrored(&reply);
        assert_eq!(asked.param("CONTENT_LENGTH"), length, "{case}");
        assert!(asked.stdin == body.as_bytes(), "{case}");
    }
    let reply = rig.ask(&format!(
        "PUT /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{long}\r\n3\r\nend\r\n0\r\nX-T: 1\r\n\r\n",
        long.len()
    ));

    let asked = mirrored(&reply);
    assert!(asked.stdin == [long.as_bytes(), b"end"].concat());
}

#[test]
fn an_answer_of_any_length_comes_whole_and_bounded() {
    const LENGTH: usize = 12 << 20;
    let backend = application(|mut request| {
        request.read();
        request.output("X-A: b\r\n\r\n");
        let content: Vec<u8> = (0..LENGTH).map(|at| (at % 253) as u8).collect();
        request.output(content);
        request.end();
    });
    let rig = Rig::start(to(&[backend.addr]));

    let reply = rig.ask(GET);

    assert_eq!(reply.header("transfer-encoding"), Some("chunked"));
    assert!(
        reply.body.len() == LENGTH
            && reply.body.iter().enumerate().all(|(at, byte)| (at % 253) as u8 == *byte)
    );
    let old = rig.ask("GET / HTTP/1.0\r\n\r\n");
    assert_eq!((old.body.len(), old.header("transfer-encoding")), (LENGTH, None));
}

#[test]
fn status_and_location_are_those_of_cgi() {
    for (head, status, reason) in [
        ("Status: 404 Gone fishing\r\n\r\n", 404, "Gone fishing"),
        ("Location: /there\n\n", 302, "Found"),
        ("Status: 201\r\nLocation: /there\r\n\r\n", 201, ""),
        ("X-A: b\r\n\r\n", 200, "OK"),
    ] {
        let backend = application(move |mut request| {
            request.read();
            // A head may come in parts.
            let (left, right) = head.split_at(7);
            request.output(left);
            request.output(right);
            request.output("said");
            request.end();
        });
        let rig = Rig::start(to(&[backend.addr]));

        let reply = rig.ask(GET);

        assert_eq!((reply.status, reply.text().as_str()), (status, "said"), "{head:?}");
        assert!(reply.head.starts_with(&format!("HTTP/1.1 {status} {reason}\r\n")), "{}", reply.head);
        assert_eq!(reply.header("location").is_some(), head.contains("Location"), "{head:?}");
        assert_eq!(reply.header("status"), None);
    }
}

#[test]
fn complaints_stay_out_of_the_answer() {
    let backend = application(|mut request| {
        request.read();
        request.say(7, b"PHP Warning:  one");
        request.output("X-A: b\r\n\r\nhe");
        request.say(7, &[b'!'; 100_000]);
        request.output("re");
        request.say(7, b"");
        request.end();
    });
    let rig = Rig::start(to(&[backend.addr]));

    let reply = rig.ask(GET);

    assert_eq!((reply.status, reply.text().as_str()), (200, "here"));
}

#[test]
fn an_application_that_gives_no_answer_is_a_bad_gateway() {
    type Serve = fn(Request);
    let cases: [(&str, Serve); 7] = [
        ("ended without output", |mut request| {
            request.read();
            request.say(7, b"PHP Fatal error");
            request.peer.try_send(&record(3, &[0, 0, 0, 255, 0, 0, 0, 0]));
        }),
        ("output that is no head", |mut request| {
            request.read();
            request.output("<html>\r\n\r\n");
            request.end();
        }),
        ("closed at once", |mut request| drop(request.read())),
        ("closed within the head", |mut request| {
            request.read();
            request.output("X-A: b\r\n");
        }),
        ("another protocol", |mut request| {
            request.read();
            request.peer.try_send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
        }),
        ("another request's record", |mut request| {
            request.read();
            request.peer.try_send(&[1, 6, 0, 2, 0, 1, 0, 0, b'x']);
        }),
        ("overloaded", |mut request| {
            request.read();
            request.peer.try_send(&record(3, &[0, 0, 0, 0, 2, 0, 0, 0]));
        }),
    ];
    for (case, serve) in cases {
        let rig = Rig::start(to(&[application(serve).addr]));

        assert_eq!(rig.ask(GET).status, 502, "{case}");
    }
}

#[test]
fn an_answer_cut_short_is_seen_as_cut_short() {
    for (case, head, whole) in [
        ("of unknown length", "X-A: b\r\n\r\n", false),
        ("shorter than promised", "Content-Length: 100\r\n\r\n", false),
        ("as long as promised", "Content-Length: 4\r\n\r\n", true),
    ] {
        let backend = application(move |mut request| {
            request.read();
            request.output(head);
            request.output("half");
        });
        let rig = Rig::start(to(&[backend.addr]));
        let mut client = rig.client();

        client.send(GET);
        let head = client.head().expect("a head");
        let body = if whole { client.exactly(4) } else { client.rest() };

        assert!(head.starts_with("HTTP/1.1 200"), "{case}");
        let body = String::from_utf8_lossy(&body).into_owned();
        assert!(body.contains("half") && !body.ends_with("0\r\n\r\n"), "{case}: {body:?}");
    }
}

#[test]
fn what_an_application_turns_down_goes_to_another_one_even_a_post() {
    let overloaded = application(|mut request| {
        request.read();
        request.peer.try_send(&record(3, &[0, 0, 0, 0, 2, 0, 0, 0]));
    });
    let good = mirror();
    let rig = Rig::start(to(&[overloaded.addr, good.addr]));

    for _ in 0..4 {
        let reply = rig.ask("GET /x HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(reply.status, 200);
        let reply = rig.ask("POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n");
        assert_eq!(reply.status, 200);
    }
    assert!(overloaded.connections() > 0);
}

#[test]
fn failures_are_repeated_as_those_of_http() {
    let closing = || application(|mut request| drop(request.params()));
    let garbage = || {
        Backend::start(|mut peer| {
            peer.try_send(b"SSH-2.0-x\r\n\r\n");
            peer.rest();
        })
    };
    for (case, bad, on, expected) in [
        ("refused", nobody(), "error", [200, 200]),
        ("closed", closing().addr, "error", [200, 200]),
        ("closed", closing().addr, "timeout", [200, 502]),
        ("garbage", garbage().addr, "invalid_header", [200, 200]),
        ("garbage", garbage().addr, "timeout", [200, 502]),
    ] {
        let good = mirror();
        let on = Conditions::parse(on).expect("conditions");
        let retry = Retry { on, ..Retry::default() };
        let rig = Rig::start(to_with(&[bad, good.addr], Filters { retry, ..filters("", &[]) }));

        let mut statuses = [rig.ask(GET).status, rig.ask(GET).status];
        statuses.sort_unstable();

        assert_eq!(statuses, expected, "{case} with {on}");
    }
}

#[test]
fn a_silent_application_is_a_gateway_timeout() {
    let silent = application(|mut request| drop((request.read(), request.peer.rest())));
    let read_timeout = Duration::from_millis(200);
    let retry = Retry { tries: 1, ..Retry::default() };
    let rig = Rig::start(to_with(&[silent.addr], Filters { read_timeout, retry, ..filters("", &[]) }));

    assert_eq!(rig.ask(GET).status, 504);
}

#[test]
fn a_head_request_gets_a_head() {
    let backend = application(|mut request| {
        let asked = request.read();
        assert_eq!(asked.param("REQUEST_METHOD"), Some("HEAD"));
        request.output("Content-Length: 5\r\nX-A: b\r\n\r\nhello");
        request.end();
    });
    let rig = Rig::start(to(&[backend.addr]));
    let mut client = rig.client();

    for _ in 0..2 {
        client.send("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n");
        let head = client.head().expect("a head");
        assert!(head.contains("Content-Length: 5\r\n") && !head.contains("chunked"), "{head}");
    }
    assert_eq!(client.buffered(), b"");
}

#[test]
fn an_answer_may_come_before_the_body_is_read() {
    let backend = application(|mut request| {
        request.params();
        request.output("Status: 413 Too much\r\nContent-Length: 2\r\n\r\nno");
        request.end();
        request.peer.rest();
    });
    let rig = Rig::start(to(&[backend.addr]));
    let mut client = rig.client();

    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\nsome of it");

    let reply = client.reply();
    assert_eq!((reply.status, reply.text().as_str(), reply.header("connection")), (413, "no", Some("close")));
}

#[test]
fn kept_client_connections_ask_at_once_and_each_request_has_its_own_connection() {
    const CLIENTS: usize = 16;
    const REQUESTS: usize = 10;
    let backend = mirror();
    let rig = Rig::with_workers(to(&[backend.addr]), 2);

    std::thread::scope(|scope| {
        for number in 0..CLIENTS {
            let mut client = rig.client();
            scope.spawn(move || {
                for request in 0..REQUESTS {
                    let body = format!("{number}/{request}");
                    client.send(format!(
                        "POST /{body} HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}",
                        body.len()
                    ));
                    let reply = client.reply();
                    let asked = mirrored(&reply);
                    assert_eq!(asked.param("SCRIPT_NAME"), Some(format!("/{body}").as_str()));
                    assert_eq!(asked.stdin, body.as_bytes());
                }
            });
        }
    });
    assert_eq!(backend.connections(), CLIENTS * REQUESTS);
}

#[test]
fn a_rewritten_target_is_what_the_script_is_found_by() {
    use penstock::model::l7::{Pattern, Piece, Rewrite, Template};
    let backend = mirror();
    let rewrite = Rewrite {
        pattern: Pattern::unanchored("/old/(.*)").expect("a pattern"),
        target: Template(vec![Piece::Literal("/new/".to_owned()), Piece::Capture(1)]),
    };
    let rig =
        Rig::start(to_with(&[backend.addr], Filters { rewrite: Some(rewrite), ..filters("i.php", &[]) }));

    let asked = mirrored(&rig.ask("GET /old/x/?a=1 HTTP/1.1\r\nHost: a\r\n\r\n"));

    assert_eq!(asked.param("SCRIPT_NAME"), Some("/new/x/i.php"));
    assert_eq!(asked.param("REQUEST_URI"), Some("/old/x/?a=1"));
    assert_eq!(asked.param("QUERY_STRING"), Some("a=1"));
}

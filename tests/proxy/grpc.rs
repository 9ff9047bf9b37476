//! Upstreams that speak HTTP/2: gRPC calls of every shape, shared connections, refusals.

mod kept;
mod opening;
mod pressure;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::{HeaderMap, Request, Response};
use penstock::model::expression::Expression;
use penstock::model::l7::log::{Escape, Format};
use penstock::model::l7::policy::{Copied, ErrorPages, Mirror};
use penstock::model::l7::{Choice, Filters, Policies, Protocol, Sampler, Traced};
use rustls::pki_types::PrivateKeyDer;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;

use crate::h2_client::{Client, exchange, limited, say};
use crate::h2_server;
use crate::rig::{Backend, DEADLINE, Rig, length_of, nobody, to_with};

/// An upstream that runs `serve` for each stream.
struct Upstream {
    addr: SocketAddr,
    accepted: Arc<AtomicUsize>,
}

impl Upstream {
    fn start<F>(serve: impl Fn(Request<RecvStream>, SendResponse<Bytes>) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Self::with(h2::server::Builder::new(), None, serve)
    }

    fn with<F>(
        builder: h2::server::Builder,
        tls: Option<TlsAcceptor>,
        serve: impl Fn(Request<RecvStream>, SendResponse<Bytes>) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let accepted = Arc::new(AtomicUsize::new(0));
        let (count, serve) = (Arc::clone(&accepted), Arc::new(serve));
        let addr = h2_server::accept(([127, 0, 0, 1], 0).into(), move |stream| {
            count.fetch_add(1, Ordering::SeqCst);
            let (builder, tls, serve) = (builder.clone(), tls.clone(), Arc::clone(&serve));
            async move {
                match tls {
                    None => streams(builder, stream, serve).await,
                    Some(tls) => {
                        if let Ok(stream) = tls.accept(stream).await {
                            streams(builder, stream, serve).await;
                        }
                    }
                }
            }
        });
        Self { addr, accepted }
    }

    fn connections(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }
}

async fn streams<F>(
    builder: h2::server::Builder,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    serve: Arc<impl Fn(Request<RecvStream>, SendResponse<Bytes>) -> F>,
) where
    F: Future<Output = ()> + Send + 'static,
{
    let Ok(mut connection) = builder.handshake(stream).await else { return };
    while let Some(Ok((request, respond))) = connection.accept().await {
        tokio::spawn(serve(request, respond));
    }
}

/// TLS with a certificate of its own that takes clients that ask for HTTP/2.
pub fn tls() -> TlsAcceptor {
    let key = rcgen::KeyPair::generate().expect("key");
    let params = rcgen::CertificateParams::new(["grpc.example".to_owned()]).expect("params");
    let certificate = params.self_signed(&key).expect("self-signed");
    let key = PrivateKeyDer::try_from(key.serialize_der()).expect("key");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .expect("certificate");
    config.alpn_protocols = vec![b"h2".to_vec()];
    TlsAcceptor::from(Arc::new(config))
}

/// One whose answers say `calls` of who it is.
pub fn naming(tls: Option<TlsAcceptor>) -> SocketAddr {
    let upstream = Upstream::with(h2::server::Builder::new(), tls, |_, mut respond| async move {
        let mut head = grpc_head();
        head.headers_mut().insert("x-backend", "calls".parse().expect("value"));
        let mut stream = respond.send_response(head, false).expect("sent");
        let _ = stream.send_trailers(status("0"));
    });
    upstream.addr
}

fn filters() -> Filters {
    Filters { protocol: Protocol::Grpc, max_body_bytes: None, ..Filters::default() }
}

fn call(path: &str) -> Request<()> {
    Request::post(format!("http://grpc.example{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("grpc-timeout", "5S")
        .body(())
        .expect("request")
}

fn status(code: &'static str) -> HeaderMap {
    HeaderMap::from_iter([("grpc-status".parse().expect("name"), code.parse().expect("value"))])
}

fn grpc_head() -> Response<()> {
    Response::builder().header("content-type", "application/grpc").body(()).expect("response")
}

/// Reads the message and answers with it and a status.
async fn echo(request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
    let mut body = request.into_body();
    let mut stream = respond.send_response(grpc_head(), false).expect("sent");
    while let Some(Ok(data)) = body.data().await {
        let _ = body.flow_control().release_capacity(data.len());
        let _ = stream.send_data(data, false);
    }
    let _ = stream.send_trailers(status("0"));
}

#[test]
fn a_unary_call_passes_with_its_trailers() {
    let upstream = Upstream::start(|request, respond| async move {
        let head = request.headers();
        assert_eq!(request.uri().path(), "/pkg.Service/Method");
        assert_eq!(request.uri().authority().expect("an authority"), "grpc.example");
        assert_eq!(request.uri().scheme_str(), Some("http"));
        assert_eq!(
            (&head["te"], &head["grpc-timeout"]),
            (&"trailers".parse().unwrap(), &"5S".parse().unwrap())
        );
        assert_eq!(head["x-real-ip"], "127.0.0.1");
        assert!(!head.contains_key("transfer-encoding") && !head.contains_key("connection"));
        echo(request, respond).await;
    });
    let rig = Rig::start(to_with(&[upstream.addr], filters()));

    let reply =
        Client::connect(rig.http).ask(call("/pkg.Service/Method"), &[b"message"]).expect("a response");

    assert_eq!(reply.head.status(), 200);
    assert_eq!(reply.head.headers()["content-type"], "application/grpc");
    assert_eq!(reply.text(), "message");
    assert_eq!(reply.trailers, Some(status("0")));
}

#[test]
fn a_traced_call_is_a_span_to_its_upstream() {
    let upstream = Upstream::start(|request, respond| async move {
        let line = request.headers()["traceparent"].to_str().expect("text").to_owned();
        assert!(line.starts_with("00-4bf92f3577b34da6a3ce929d0e0e4736-") && line.ends_with("-01"), "{line}");
        assert!(!line.contains("00f067aa0ba902b7"), "{line}");
        echo(request, respond).await;
    });
    let traced = Traced {
        operation: Format::compile("", Escape::None).0,
        trusts: true,
        sampler: Sampler { choice: Choice::All, follows: true },
        exports: false,
    };
    let policies = Policies { traced: Some(Arc::new(traced)), ..Policies::default() };
    let filters = Filters { policies: Some(Arc::new(policies)), ..filters() };
    let rig = Rig::start(to_with(&[upstream.addr], filters));
    let mut call = call("/pkg.Service/Method");
    let line = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    call.headers_mut().insert("traceparent", line.parse().expect("value"));

    let reply = Client::connect(rig.http).ask(call, &[b"message"]).expect("a response");

    assert_eq!(reply.trailers, Some(status("0")));
}

#[test]
fn grpcs_is_the_same_over_tls() {
    let upstream = Upstream::with(h2::server::Builder::new(), Some(tls()), |request, respond| async move {
        assert_eq!(request.uri().scheme_str(), Some("https"));
        echo(request, respond).await;
    });
    let filters = Filters { protocol: Protocol::Grpcs, ..filters() };
    let rig = Rig::start(to_with(&[upstream.addr], filters));
    let client = Client::connect(rig.http);
    static PART: [u8; 1_000_000] = [7; 1_000_000];

    for _ in 0..10 {
        let reply = client.ask(call("/"), &[b"message"]).expect("a response");
        assert_eq!((reply.text().as_str(), reply.trailers), ("message", Some(status("0"))));
    }
    let reply = client.ask(call("/"), &[&PART[..]; 4]).expect("a response");

    assert_eq!(reply.body.len(), 4_000_000);
    assert_eq!(upstream.connections(), 1);
}

#[test]
fn trailers_keep_names_that_requests_could_not_have() {
    let upstream = Upstream::start(|_, mut respond| async move {
        let mut stream = respond.send_response(grpc_head(), false).expect("sent");
        let trailers = [("grpc-status", "0"), ("x_cost.ms", "5"), ("host", "evil")];
        let trailers =
            trailers.map(|(name, value)| (name.parse().expect("name"), value.parse().expect("value")));
        let _ = stream.send_trailers(HeaderMap::from_iter(trailers));
    });
    let rig = Rig::start(to_with(&[upstream.addr], filters()));

    let trailers =
        Client::connect(rig.http).ask(call("/"), &[]).expect("a response").trailers.expect("trailers");

    assert_eq!((trailers.len(), &trailers["x_cost.ms"]), (2, &"5".parse().expect("value")));
}

#[test]
fn trailers_may_be_as_long_as_heads() {
    let upstream = Upstream::start(|_, mut respond| async move {
        let mut stream = respond.send_response(grpc_head(), false).expect("sent");
        let _ = stream.send_data(Bytes::from_static(b"message"), false);
        let mut trailers = status("9");
        trailers.insert("grpc-status-details-bin", "A".repeat(24_000).parse().expect("value"));
        let _ = stream.send_trailers(trailers);
    });
    let rig = Rig::start(to_with(&[upstream.addr], filters()));

    let reply = Client::connect(rig.http).ask(call("/"), &[]).expect("a response");

    let trailers = reply.trailers.as_ref().expect("trailers");
    assert_eq!((reply.text().as_str(), trailers["grpc-status-details-bin"].len()), ("message", 24_000));
}

#[test]
fn a_response_of_trailers_alone_stays_one() {
    let upstream = Upstream::start(|_, mut respond| async move {
        let head = Response::builder()
            .header("content-type", "application/grpc")
            .header("grpc-status", "12")
            .body(())
            .expect("response");
        let _ = respond.send_response(head, true);
    });
    let rig = Rig::start(to_with(&[upstream.addr], filters()));
    let client = Client::connect(rig.http);

    let ended = client.runtime.block_on(limited(async {
        let mut requests = client.requests.clone().ready().await.expect("ready");
        let (response, mut stream) = requests.send_request(call("/"), false).expect("sent");
        stream.send_data(Bytes::from_static(b"x"), true).expect("sent");
        let response = response.await.expect("a response");
        assert_eq!(response.headers()["grpc-status"], "12");
        assert!(!response.headers().contains_key("content-length"));
        response.body().is_end_stream()
    }));

    assert!(ended);
}

/// Errors of this status are worded by nobody, which is a 404.
fn worded(endpoints: &[SocketAddr], status: u16) -> Rig {
    let errors = ErrorPages { statuses: [status].into(), ..ErrorPages::default() };
    let policies = Some(Arc::new(Policies { errors: Some(errors), ..Policies::default() }));
    Rig::start(to_with(endpoints, Filters { policies, ..filters() }))
}

#[test]
fn of_errors_only_our_own_are_worded_by_somebody_else() {
    let upstream = Upstream::start(|_, mut respond| async move {
        let mut head = grpc_head();
        *head.status_mut() = http::StatusCode::BAD_GATEWAY;
        let mut stream = respond.send_response(head, false).expect("sent");
        let _ = stream.send_trailers(status("14"));
    });
    let ask = |rig: &Rig| Client::connect(rig.http).ask(call("/"), &[b"message"]).expect("a response");

    let theirs = ask(&worded(&[upstream.addr], 502));
    let ours = ask(&worded(&[nobody()], 502));

    assert_eq!((theirs.head.status().as_u16(), theirs.trailers), (502, Some(status("14"))));
    assert_eq!(ours.head.status(), 404);
}

#[test]
fn a_call_is_copied_like_any_other_request() {
    let upstream = Upstream::start(echo);
    let (tell, copies) = std::sync::mpsc::channel();
    let tell = std::sync::Mutex::new(tell);
    let target = Backend::start(move |mut peer| {
        let Some(head) = peer.head() else { return };
        let body = peer.exactly(length_of(&head));
        let _ = tell.lock().expect("tell").send((head, body));
    });
    let mirror = Mirror {
        tls: false,
        host: Expression::parse(&target.addr.to_string()).expect("no variable"),
        target: Some(Expression::parse("$request_uri").expect("a variable")),
        upstream: None,
        named: None,
        body: Copied::Whole,
    };
    let policies = Some(Arc::new(Policies { mirror: Some(mirror), ..Policies::default() }));
    let rig = Rig::start(to_with(&[upstream.addr], Filters { policies, ..filters() }));

    let reply =
        Client::connect(rig.http).ask(call("/pkg.Service/Method"), &[b"message"]).expect("a response");

    assert_eq!((reply.text().as_str(), reply.trailers), ("message", Some(status("0"))));
    let (head, body) = copies.recv_timeout(DEADLINE).expect("a copy");
    assert!(head.starts_with("POST /pkg.Service/Method HTTP/1.1\r\n"), "{head}");
    assert!(head.contains("content-type: application/grpc\r\n"), "{head}");
    assert_eq!(body, b"message");
}

#[test]
fn a_bidirectional_stream_carries_messages_as_they_come() {
    let upstream = Upstream::start(echo);
    let rig = Rig::start(to_with(&[upstream.addr], filters()));
    let client = Client::connect(rig.http);

    client.runtime.block_on(limited(async {
        let mut requests = client.requests.clone().ready().await.expect("ready");
        let (response, mut stream) = requests.send_request(call("/"), false).expect("sent");
        // The head comes before any message.
        let mut body = response.await.expect("a response").into_body();
        for i in 0..100 {
            let message = Bytes::from(format!("message {i}"));
            stream.send_data(message.clone(), false).expect("sent");
            let data = body.data().await.expect("a message").expect("data");
            assert_eq!(data, message);
            body.flow_control().release_capacity(data.len()).expect("released");
        }
        stream.send_data(Bytes::new(), true).expect("sent");
        assert!(body.data().await.is_none());
        assert_eq!(body.trailers().await.expect("trailers"), Some(status("0")));
    }));
}

#[test]
fn a_large_stream_is_flow_controlled_in_both_directions() {
    let upstream = Upstream::start(echo);
    let rig = Rig::start(to_with(&[upstream.addr], filters()));
    static PART: [u8; 1_000_000] = [7; 1_000_000];

    let reply = Client::connect(rig.http).ask(call("/"), &[&PART[..]; 8]).expect("a response");

    assert_eq!(reply.body.len(), 8_000_000);
    assert_eq!(reply.trailers, Some(status("0")));
}

#[test]
fn calls_at_once_share_a_connection_and_never_exceed_what_the_upstream_allows() {
    let (live, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let seen = Arc::clone(&most);
    let mut builder = h2::server::Builder::new();
    builder.max_concurrent_streams(20);
    let upstream = Upstream::with(builder, None, move |request, respond| {
        let (live, most) = (Arc::clone(&live), Arc::clone(&most));
        async move {
            most.fetch_max(live.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            echo(request, respond).await;
            live.fetch_sub(1, Ordering::SeqCst);
        }
    });
    let rig = Rig::start(to_with(&[upstream.addr], filters()));
    let client = Client::connect(rig.http);
    // The upstream's settings are known from now on.
    client.ask(call("/"), &[b"first"]).expect("a response");

    client.runtime.block_on(async {
        let calls: Vec<_> = (0..100)
            .map(|_| tokio::spawn(exchange(client.requests.clone(), call("/"), vec![b"x"], None)))
            .collect();
        for call in calls {
            let reply = limited(call).await.expect("task").expect("a response");
            assert_eq!(reply.trailers, Some(status("0")));
        }
    });

    assert!(seen.load(Ordering::SeqCst) >= 2, "no two calls ran at once");
    assert!(upstream.connections() <= 5, "{} connections for 100 calls of 20", upstream.connections());
}

#[test]
fn a_call_without_body_that_was_refused_is_asked_again() {
    let refusals = AtomicUsize::new(0);
    let upstream = Upstream::start(move |_, mut respond| {
        let refuse = refusals.fetch_add(1, Ordering::SeqCst) == 0;
        async move {
            match refuse {
                true => respond.send_reset(Reason::REFUSED_STREAM),
                false => drop(respond.send_response(grpc_head(), true)),
            }
        }
    });
    let rig = Rig::start(to_with(&[upstream.addr], filters()));

    let reply = Client::connect(rig.http).ask(call("/"), &[]).expect("a response");

    assert_eq!(reply.head.status(), 200);
}

#[test]
fn a_call_that_was_refused_is_asked_again_with_all_that_was_read_of_it() {
    let calls = Arc::new(AtomicUsize::new(0));
    let (count, (refused, told)) = (Arc::clone(&calls), mpsc::channel());
    let upstream = Upstream::start(move |request, mut respond| {
        let (refuse, refused) = (count.fetch_add(1, Ordering::SeqCst) < 2, refused.clone());
        async move {
            if !refuse {
                return echo(request, respond).await;
            }
            let mut body = request.into_body();
            while let Some(Ok(data)) = body.data().await {
                if data.ends_with(b"first") {
                    break;
                }
            }
            respond.send_reset(Reason::REFUSED_STREAM);
            let _ = refused.send(());
        }
    });
    let rig = Rig::start(to_with(&[upstream.addr], filters()));
    let client = Client::connect(rig.http);
    let requests = client.requests.clone();

    // The rest of it comes while it is asked again.
    let body = client.runtime.block_on(limited(async move {
        let mut requests = requests.ready().await.expect("ready");
        let (response, mut stream) = requests.send_request(call("/"), false).expect("sent");
        stream.send_data(Bytes::from_static(b"\0\0\0\0\x05first"), false).expect("sent");
        tokio::task::spawn_blocking(move || told.recv_timeout(DEADLINE))
            .await
            .expect("joined")
            .expect("refused");
        stream.send_data(Bytes::from_static(b"\0\0\0\0\x06second"), true).expect("sent");
        let response = response.await.expect("a response");
        assert_eq!(response.status(), 200);
        let (mut body, mut read) = (response.into_body(), Vec::new());
        while let Some(data) = body.data().await {
            read.extend_from_slice(&data.expect("data"));
        }
        read
    }));

    assert_eq!(body, b"\0\0\0\0\x05first\0\0\0\0\x06second");
    assert_eq!(calls.load(Ordering::SeqCst), 3);
}

#[test]
fn a_call_that_a_parting_connection_did_not_take_goes_by_another() {
    // The first connection is of one that leaves: it reads the call, and says that it was no part of it.
    const PREFACE: usize = 24;
    let connections = AtomicUsize::new(0);
    let parting = crate::rig::Backend::start(move |mut peer| {
        peer.exactly(PREFACE);
        let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
        peer.send(settings);
        let is_first = connections.fetch_add(1, Ordering::SeqCst) == 0;
        loop {
            let frame = peer.exactly(9);
            let length = u32::from_be_bytes([0, frame[0], frame[1], frame[2]]) as usize;
            peer.exactly(length);
            let stream = &frame[5..9];
            match (frame[3], frame[4] & 1) {
                // The end of the body.
                (0, 1) if is_first => peer.send([&[0, 0, 8, 7, 0, 0, 0, 0, 0][..], &[0; 8]].concat()),
                // `:status: 200` alone.
                (0, 1) => peer.send([&[0, 0, 1, 1, 5][..], stream, &[0x88]].concat()),
                (4, 0) => peer.send([0, 0, 0, 4, 1, 0, 0, 0, 0]),
                _ => {}
            }
        }
    });
    let rig = Rig::start(to_with(&[parting.addr], filters()));

    let reply = Client::connect(rig.http).ask(call("/"), &[b"\0\0\0\0\0"]).expect("a response");

    assert_eq!((reply.head.status().as_u16(), parting.connections()), (200, 2));
}

#[test]
fn failures_end_in_the_statuses_of_http() {
    let reset = Upstream::start(|_, mut respond| async move { respond.send_reset(Reason::INTERNAL_ERROR) });
    let silent = Upstream::start(|request, respond| async move {
        std::future::pending::<()>().await;
        drop((request, respond));
    });
    let no_h2 = crate::rig::Backend::saying("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    let cases = [
        ("nobody listens", nobody(), 502),
        ("reset", reset.addr, 502),
        ("not http/2", no_h2.addr, 502),
        ("silent", silent.addr, 504),
    ];
    for (case, addr, expected) in cases {
        let filters = Filters { read_timeout: Duration::from_millis(200), ..filters() };
        let rig = Rig::start(to_with(&[addr], filters));
        let reply = Client::connect(rig.http).ask(call("/"), &[b"x"]).expect("a response");
        assert_eq!(reply.head.status(), expected, "{case}");
    }
}

#[test]
fn a_head_that_cannot_be_said_in_http_2_is_no_fault_of_an_endpoint() {
    let upstream = Upstream::start(echo);
    let rig = Rig::start(to_with(&[upstream.addr], filters()));
    let many = "X-A: b\r\n".repeat(120);
    let cases = [("many lines", "a", many.as_str(), 200), ("no authority", "a[b", "", 400)];
    for (case, host, lines, expected) in cases {
        let reply = rig.ask(&format!("GET / HTTP/1.1\r\nHost: {host}\r\n{lines}\r\n"));
        assert_eq!(reply.status, expected, "{case}");
    }

    assert!(rig.running.metrics().iter().all(|metric| {
        metric.name != "penstock_l7_upstream_failures_total"
            || metric.samples.iter().all(|sample| sample.value == 0.0)
    }));
}

#[test]
fn a_client_that_cancels_cancels_upstream() {
    let (came, coming) = std::sync::mpsc::channel();
    let (gone, told) = std::sync::mpsc::channel();
    let upstream = Upstream::start(move |_, mut respond| {
        let (came, gone) = (came.clone(), gone.clone());
        async move {
            let _ = came.send(());
            let reason = std::future::poll_fn(|cx| respond.poll_reset(cx)).await;
            let _ = gone.send(reason.ok());
        }
    });
    let rig = Rig::start(to_with(&[upstream.addr], filters()));
    let client = Client::connect(rig.http);

    client.runtime.block_on(limited(async {
        let mut requests = client.requests.clone().ready().await.expect("ready");
        let (_, mut stream) = requests.send_request(call("/"), true).expect("sent");
        tokio::task::spawn_blocking(move || coming.recv()).await.expect("task").expect("came");
        stream.send_reset(Reason::CANCEL);
    }));

    assert_eq!(told.recv_timeout(DEADLINE).expect("told"), Some(Reason::CANCEL));
}

#[test]
fn an_http_1_1_client_reaches_an_http_2_upstream() {
    let upstream = Upstream::start(|request, respond| async move {
        assert_eq!(request.uri().path_and_query().expect("target").as_str(), "/a%7Cb?c");
        echo(request, respond).await;
    });
    let rig = Rig::start(to_with(&[upstream.addr], filters()));

    let reply = rig.ask("POST /a|b?c HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello");

    // The rig appends trailers to the content.
    assert_eq!((reply.status, reply.text().as_str()), (200, "hellogrpc-status: 0"));
}

//! Traces: the built agent between clients, a backend and a collector of our own that speaks OTLP over gRPC.

use std::collections::VecDeque;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::{HeaderMap, Request, Response};
use lb_tests::agent::eventually;
use penstock::export::otlp::{ExportRequest, ExportResponse, PartialSuccess, Span, Value};
use prost::Message as _;
use serde_json::{Map, json};

use crate::h2_server;
use crate::rig::{Backend, Client, DEADLINE, Reply, nobody};
use crate::takeover::{Agents, HOST};

/// A collector. It keeps what it takes.
struct Collector {
    addr: SocketAddr,
    taken: Arc<Mutex<Vec<(String, Span)>>>,
    /// What is answered first; then everything is taken.
    answers: Arc<Mutex<VecDeque<Answer>>>,
}

#[derive(Clone, Copy)]
enum Answer {
    Status(&'static str),
    /// So many spans are refused.
    Partial(i64),
}

impl Collector {
    fn start() -> Self {
        Self::at(SocketAddr::from(([127, 0, 0, 1], 0)))
    }

    fn at(addr: SocketAddr) -> Self {
        let (taken, answers) = (Arc::default(), Arc::<Mutex<VecDeque<Answer>>>::default());
        let parts = (Arc::clone(&taken), Arc::clone(&answers));
        let addr = h2_server::accept(addr, move |stream| {
            let (taken, answers) = parts.clone();
            async move {
                let Ok(mut connection) = h2::server::handshake(stream).await else { return };
                while let Some(Ok((request, respond))) = connection.accept().await {
                    let answer = answers.lock().expect("lock").pop_front();
                    tokio::spawn(take(request, respond, answer, Arc::clone(&taken)));
                }
            }
        });
        Self { addr, taken, answers }
    }

    fn answer(&self, answers: &[Answer]) {
        self.answers.lock().expect("lock").extend(answers);
    }

    /// Waits for so many spans; who sent them comes with each.
    fn spans(&self, count: usize) -> Vec<(String, Span)> {
        let there = || Some(self.taken.lock().expect("lock").clone()).filter(|all| all.len() >= count);
        eventually(DEADLINE, there)
            .unwrap_or_else(|| panic!("{count} spans: {:?}", self.taken.lock().expect("lock")))
    }
}

async fn take(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    answer: Option<Answer>,
    taken: Arc<Mutex<Vec<(String, Span)>>>,
) {
    assert_eq!(request.uri().path(), "/opentelemetry.proto.collector.trace.v1.TraceService/Export");
    assert_eq!(request.headers()["content-type"], "application/grpc");
    assert_eq!(request.headers()["te"], "trailers");
    let (mut body, mut bytes) = (request.into_body(), Vec::new());
    while let Some(Ok(data)) = body.data().await {
        let _ = body.flow_control().release_capacity(data.len());
        bytes.extend_from_slice(&data);
    }
    let status = |code: &'static str| {
        HeaderMap::from_iter([("grpc-status".parse().expect("name"), code.parse().expect("value"))])
    };
    let mut head = Response::builder().header("content-type", "application/grpc").body(()).expect("head");
    let partial = match answer {
        Some(Answer::Status(code)) => {
            head.headers_mut().extend(status(code));
            let _ = respond.send_response(head, true);
            return;
        }
        Some(Answer::Partial(rejected_spans)) => {
            Some(PartialSuccess { rejected_spans, error_message: "not those".to_owned() })
        }
        None => None,
    };
    let message = ExportRequest::decode(&bytes[5..]).expect("a message");
    for of in message.resource_spans {
        let who = text(&of.resource.expect("a sender").attributes, "service.name");
        let spans = of.scope_spans.into_iter().flat_map(|scope| scope.spans);
        taken.lock().expect("lock").extend(spans.map(|span| (who.clone(), span)));
    }
    let answer = ExportResponse { partial_success: partial }.encode_to_vec();
    let answer = [&[0, 0, 0, 0, u8::try_from(answer.len()).expect("short")][..], &answer].concat();
    let Ok(mut stream) = respond.send_response(head, false) else { return };
    let _ = stream.send_data(answer.into(), false);
    let _ = stream.send_trailers(status("0"));
}

fn value(attributes: &[penstock::export::otlp::KeyValue], key: &str) -> Option<Value> {
    attributes.iter().find(|pair| pair.key == key)?.value.clone()?.value
}

fn text(attributes: &[penstock::export::otlp::KeyValue], key: &str) -> String {
    match value(attributes, key) {
        Some(Value::Text(text)) => text,
        other => panic!("{key}: {other:?}"),
    }
}

/// An agent with these keys beside those that have its spans sent to the collector at once.
fn agent(backend: &Backend, collector: SocketAddr, keys: &[(&str, &str)]) -> Agents {
    let agents = Agents::start(backend.addr, &["--workers", "1"]);
    agents.write("config.yaml", &config(collector, keys));
    let is_traced = || {
        let answer = ask(&agents, "/before", "traceparent: 00-1-2-01\r\n");
        upstream(&answer, "traceparent").filter(|line| line.len() == 55)
    };
    eventually(DEADLINE, is_traced).expect("traced");
    agents
}

fn config(collector: SocketAddr, keys: &[(&str, &str)]) -> String {
    let port = collector.port().to_string();
    let usual = [
        ("enable-opentelemetry", "true"),
        ("otlp-collector-host", "127.0.0.1"),
        ("otlp-collector-port", &port),
        ("otel-schedule-delay-millis", "20"),
    ];
    let data: Map<_, _> =
        usual.iter().chain(keys).map(|(key, value)| ((*key).to_owned(), json!(value))).collect();
    let metadata = json!({"name": "ingress-nginx-controller", "namespace": "ingress-nginx"});
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}).to_string()
}

fn ask(agents: &Agents, target: &str, headers: &str) -> Reply {
    let mut client = Client::connect(agents.http);
    client.send(format!("GET {target} HTTP/1.1\r\nHost: {HOST}\r\nUser-Agent: test/1\r\n{headers}\r\n"));
    client.reply()
}

/// A line that the backend saw, which answers with what it was asked.
fn upstream(answer: &Reply, name: &str) -> Option<String> {
    let seen = answer.text();
    let mut lines = seen.lines().filter_map(|line| line.split_once(": "));
    lines.find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_owned())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn metric(agents: &Agents, line: &str) -> u64 {
    let page = agents.admin("/metrics").text();
    let found = page.lines().find_map(|known| known.strip_prefix(line)?.strip_prefix(' '));
    found.unwrap_or_else(|| panic!("{line}: {page}")).parse().expect("a number")
}

/// All spans but those of requests that only waited for the keys.
fn of_target(spans: &[(String, Span)], target: &str) -> Vec<Span> {
    let is = |span: &Span| text(&span.attributes, "http.target") == target;
    spans.iter().filter(|(_, span)| is(span)).map(|(_, span)| span.clone()).collect()
}

fn wait_for(collector: &Collector, target: &str, count: usize) -> Vec<Span> {
    let there = || Some(of_target(&collector.spans(0), target)).filter(|all| all.len() >= count);
    eventually(DEADLINE, there).unwrap_or_else(|| panic!("{target}: {:?}", collector.spans(0)))
}

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const RECORDED: &str = "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n";
const SKIPPED: &str = "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00\r\n";

#[test]
fn a_span_has_its_parent_name_and_attributes_and_the_upstream_hears_of_it() {
    let (collector, backend) = (Collector::start(), Backend::mirror());
    let keys = [
        ("otel-service-name", "edge"),
        ("opentelemetry-operation-name", "HTTP $request_method $service_name $status"),
        ("log-format-upstream", "$opentelemetry_trace_id $opentelemetry_span_id $request_uri"),
    ];
    let agents = agent(&backend, collector.addr, &keys);

    let answer = ask(&agents, "/a?b=c", &format!("{RECORDED}tracestate: a=b\r\n"));

    let [span] = wait_for(&collector, "/a?b=c", 1).try_into().expect("one span");
    let id = hex(&span.span_id);
    assert_eq!(upstream(&answer, "traceparent"), Some(format!("00-{TRACE}-{id}-01")));
    assert_eq!(upstream(&answer, "tracestate").as_deref(), Some("a=b"));
    assert_eq!((hex(&span.trace_id), hex(&span.parent_span_id)), (TRACE.into(), "00f067aa0ba902b7".into()));
    assert_eq!((span.name.as_str(), span.trace_state.as_str()), ("HTTP GET web 200", "a=b"));
    assert_eq!((span.kind, span.status, span.flags), (2, None, 0x301));
    assert!(span.start_time_unix_nano < span.end_time_unix_nano);
    let texts = [
        ("http.method", "GET"),
        ("http.flavor", "1.1"),
        ("http.server_name", HOST),
        ("http.host", HOST),
        ("http.user_agent", "test/1"),
        ("http.scheme", "http"),
        ("net.peer.ip", "127.0.0.1"),
    ];
    for (key, expected) in texts {
        assert_eq!(text(&span.attributes, key), expected, "{key}");
    }
    let port = Value::Number(agents.http.port().into());
    assert_eq!(value(&span.attributes, "net.host.port"), Some(port));
    assert_eq!(value(&span.attributes, "http.status_code"), Some(Value::Number(200)));
    assert!(matches!(value(&span.attributes, "net.peer.port"), Some(Value::Number(1..))));
    let (who, _) = &collector.spans(1)[0];
    assert_eq!(who, "edge");
    let named = "nginx.ingress.kubernetes.io/opentelemetry-operation-name: checkout\n    nginx";
    let ingress = agents.read("manifests/ingress.yaml").replacen("nginx", named, 1);
    agents.write("ingress.yaml", &ingress);
    let is_named = || {
        ask(&agents, "/named", RECORDED);
        collector.spans(1).into_iter().find(|(_, span)| span.name == "checkout")
    };
    assert!(eventually(DEADLINE, is_named).is_some(), "the annotation counts more");
    let logged = || agents.read("out").contains(&format!("{TRACE} {id} /a?b=c\n")).then_some(());
    assert!(eventually(DEADLINE, logged).is_some(), "{}", agents.read("out"));
}

#[test]
fn what_fails_is_told_as_failed_and_a_trace_begins_where_none_came() {
    let (collector, backend) = (Collector::start(), Backend::saying("no response\r\n\r\n"));
    let agents = Agents::start(backend.addr, &["--workers", "1"]);
    agents.write("config.yaml", &config(collector.addr, &[]));
    let asked = || {
        assert_eq!(ask(&agents, "/", "").status, 502);
        Some(of_target(&collector.spans(0), "/")).filter(|all| !all.is_empty())
    };

    let spans = eventually(DEADLINE, asked).expect("a span");

    let span = &spans[0];
    assert_eq!(span.status.as_ref().map(|status| status.code), Some(2));
    assert_eq!((span.name.as_str(), span.parent_span_id.as_slice(), span.flags), ("/", &[][..], 1));
    assert!(span.trace_id.iter().any(|byte| *byte != 0) && span.span_id.iter().any(|byte| *byte != 0));
}

#[test]
fn a_sampler_decides_what_is_recorded_and_the_upstream_hears_of_all() {
    let (collector, backend) = (Collector::start(), Backend::mirror());
    let half = [("otel-sampler", "TraceIdRatioBased"), ("otel-sampler-ratio", "0.5")];
    let alone = [half[0], half[1], ("otel-sampler-parent-based", "false")];
    let low = "traceparent: 00-00000000000000010000000000000001-00f067aa0ba902b7-00\r\n";
    let high = "traceparent: 00-00000000000000017fffffffffffffff-00f067aa0ba902b7-01\r\n";
    let off = [("otel-sampler", "AlwaysOff")];
    let untrusted = [("opentelemetry-trust-incoming-span", "false")];
    for (place, (keys, headers, expected)) in [
        (&[][..], RECORDED, "01"),
        (&[], SKIPPED, "00"),
        (&off, RECORDED, "01"),
        (&off, "", "00"),
        (&half, low, "00"),
        (&half, high, "01"),
        (&alone, low, "01"),
        (&alone, high, "00"),
        (&untrusted, SKIPPED, "01"),
    ]
    .into_iter()
    .enumerate()
    {
        let agents = agent(&backend, collector.addr, keys);
        let target = format!("/{place}");

        let line = upstream(&ask(&agents, &target, &format!("{headers}tracestate: a=b\r\n")), "traceparent");
        // What comes behind it is recorded by all of them, and told later.
        let end = format!("/end-{place}");
        ask(&agents, &end, RECORDED);
        wait_for(&collector, &end, 1);

        let line = line.expect("a line");
        assert_eq!(line.split('-').next_back(), Some(expected), "{target} {line}");
        let told = of_target(&collector.spans(0), &target);
        if expected == "00" {
            assert!(told.is_empty(), "{target} {told:?}");
        } else {
            let [span] = told.try_into().expect("one span");
            assert_eq!(span.parent_span_id.is_empty(), keys == untrusted, "{target}");
            assert_eq!(span.trace_state.is_empty(), keys == untrusted, "{target}");
            assert!(line.contains(&hex(&span.trace_id)) && line.contains(&hex(&span.span_id)), "{line}");
        }
    }
}

#[test]
fn a_collector_that_is_gone_costs_no_request_and_gets_what_waits_when_it_is_back() {
    let (addr, backend) = (nobody(), Backend::mirror());
    let keys = [("otel-max-queuesize", "5"), ("otel-max-exportbatchsize", "5")];
    let agents = agent(&backend, addr, &keys);

    for number in 0..20 {
        assert_eq!(ask(&agents, &format!("/{number}"), RECORDED).status, 200);
    }

    agents.wait_for("the collector takes no spans");
    let status = || agents.admin("/status").text();
    assert!(status().contains(&format!("collector {addr}: takes no spans: connect: ")), "{}", status());
    let dropped = "penstock_export_dropped_spans_total{reason=\"queue-full\"}";
    // Five are on their way, and five wait.
    let are_lost = || (metric(&agents, dropped) >= 10).then_some(());
    assert!(eventually(DEADLINE, are_lost).is_some(), "{}", metric(&agents, dropped));
    assert!(metric(&agents, "penstock_export_waiting_spans") <= 5);
    assert_eq!(metric(&agents, "penstock_export_spans_total"), 0);

    let collector = Collector::at(addr);

    agents.wait_for("the collector takes spans again");
    let waited = collector.spans(1).len();
    assert!((1..=10).contains(&waited), "{waited}");
    let is_well = || (!status().contains("takes no spans")).then_some(());
    assert!(eventually(DEADLINE, is_well).is_some(), "{}", status());
    let told = agents.log().matches("the collector takes no spans").count();
    assert_eq!(told, 1, "{}", agents.log());
    ask(&agents, "/after", RECORDED);
    wait_for(&collector, "/after", 1);
}

#[test]
fn what_may_pass_is_sent_again_and_what_is_refused_is_not() {
    let (collector, backend) = (Collector::start(), Backend::mirror());
    // Unavailable.
    collector.answer(&[Answer::Status("14")]);
    let agents = agent(&backend, collector.addr, &[]);
    collector.spans(1);

    // An argument that is none.
    collector.answer(&[Answer::Status("3")]);
    ask(&agents, "/refused", RECORDED);
    let refused = "penstock_export_dropped_spans_total{reason=\"refused\"}";
    let is = |count| move |agents: &Agents| (metric(agents, refused) == count).then_some(());
    let one = || (metric(&agents, refused) >= 1).then_some(());
    assert!(eventually(DEADLINE, one).is_some(), "{}", agents.log());
    let before = metric(&agents, refused);
    collector.answer(&[Answer::Partial(1)]);
    ask(&agents, "/in-part", RECORDED);

    let is_told = || is(before + 1)(&agents);
    assert!(eventually(DEADLINE, is_told).is_some(), "{}", metric(&agents, refused));
    assert_eq!(of_target(&collector.spans(1), "/refused"), []);
    assert_eq!(metric(&agents, "penstock_export_dropped_spans_total{reason=\"failed\"}"), 0);
}

#[test]
fn the_last_spans_are_sent_when_the_agent_ends_and_when_another_takes_over() {
    for signal in ["-TERM", "-HUP"] {
        let (collector, backend) = (Collector::start(), Backend::mirror());
        let agents = agent(&backend, collector.addr, &[("otel-schedule-delay-millis", "3600000")]);
        assert_eq!(ask(&agents, "/last", RECORDED).status, 200);
        assert_eq!(of_target(&collector.spans(0), "/last"), []);

        agents.signal(agents.pid(), signal);

        wait_for(&collector, "/last", 1);
    }
}

#[test]
fn a_second_signal_waits_for_no_spans() {
    // It listens, and says nothing.
    let (silent, backend) = (TcpListener::bind(("127.0.0.1", 0)).expect("bind"), Backend::mirror());
    let agents = agent(&backend, silent.local_addr().expect("bound"), &[]);
    let pid = agents.pid();
    assert_eq!(ask(&agents, "/last", RECORDED).status, 200);

    agents.signal(pid, "-TERM");
    agents.wait_for("drained");
    agents.signal(pid, "-TERM");

    let told = Instant::now();
    let has_ended = || {
        let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok();
        state.is_none_or(|state| state.contains(") Z ")).then_some(())
    };
    assert!(eventually(DEADLINE, has_ended).is_some(), "{}", agents.log());
    // Told once, it would give them five seconds.
    assert!(told.elapsed() < Duration::from_secs(4), "{:?}\n{}", told.elapsed(), agents.log());
}

#[test]
fn another_collector_is_in_force_with_the_keys() {
    let (first, second, backend) = (Collector::start(), Collector::start(), Backend::mirror());
    let agents = agent(&backend, first.addr, &[]);
    ask(&agents, "/first", RECORDED);
    wait_for(&first, "/first", 1);

    agents.write("config.yaml", &config(second.addr, &[("otel-service-name", "second")]));

    let arrives = || {
        ask(&agents, "/second", RECORDED);
        second.spans(0).pop()
    };
    let (who, _) = eventually(DEADLINE, arrives).expect("a span");
    assert_eq!(who, "second");
    agents.write("config.yaml", &config(second.addr, &[("enable-opentelemetry", "false")]));
    let is_off =
        || upstream(&ask(&agents, "/off", RECORDED), "traceparent").filter(|line| RECORDED.contains(line));
    assert!(eventually(DEADLINE, is_off).is_some(), "the client's line passes untouched");
}

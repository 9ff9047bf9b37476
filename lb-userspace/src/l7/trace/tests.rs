use super::super::h1::Request;
use super::super::h1::head::{Lines, Sizes};
use super::*;
use crate::model::l7::Sampler;
use crate::model::l7::log::{Escape, Format};

const TRACE: u128 = 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736;
const PARENT: u64 = 0x00f0_67aa_0ba9_02b7;
const RECORDED: &str = "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n";
const SKIPPED: &str = "TraceParent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00\r\n";

fn traced(trusts: bool, choice: Choice, follows: bool) -> Traced {
    let (operation, _) = Format::compile("", Escape::None);
    Traced { operation, trusts, sampler: Sampler { choice, follows }, exports: true }
}

/// Of a request with these lines: trace and parent where it has one, its state, and whether it is recorded.
fn context(traced: &Traced, headers: &str) -> (Option<(u128, u64)>, String, bool) {
    let head = format!("GET / HTTP/1.1\r\nHost: a\r\n{headers}\r\n");
    let mut lines = Lines::new();
    let request =
        Request::parse(head.as_bytes(), &mut lines, Sizes::default()).expect("legal").expect("whole");
    let context = Context::new(traced, &request.block, &Random::new(1));
    assert!(context.trace != 0 && context.span != 0 && context.span != PARENT);
    let state = String::from_utf8_lossy(context.state()).into_owned();
    let sampled = if context.sampled { "01" } else { "00" };
    let written = format!("00-{:032x}-{:016x}-{sampled}", context.trace, context.span);
    assert_eq!(String::from_utf8_lossy(&context.traceparent()), written);
    let parent = context.parent.map(|parent| (context.trace, parent));
    assert!(parent.is_some() || context.trace != TRACE);
    (parent, state, context.sampled)
}

#[test]
fn a_request_continues_a_trace_that_is_trusted() {
    let all = traced(true, Choice::All, true);
    let none = traced(true, Choice::None, true);
    let parent = Some((TRACE, PARENT));
    let alone =
        |traced: &Traced| Traced { sampler: Sampler { follows: false, ..traced.sampler }, ..traced.clone() };
    let unheard = Traced { exports: false, ..alone(&none) };
    let untrusted = Traced { trusts: false, ..all.clone() };
    let with_state = format!("{RECORDED}tracestate: a=b\r\ntracestate: c=d\r\n");
    for (case, traced, headers, expected) in [
        ("none came", &all, "", (None, "", true)),
        ("none came, and none begins", &none, "", (None, "", false)),
        ("a recorded one", &none, RECORDED, (parent, "", true)),
        ("one that is not", &all, SKIPPED, (parent, "", false)),
        ("decided here", &alone(&none), RECORDED, (parent, "", false)),
        ("decided here to record", &alone(&all), SKIPPED, (parent, "", true)),
        ("nothing is recorded here, so nothing is decided", &unheard, RECORDED, (parent, "", true)),
        ("with a state in two lines", &all, &with_state, (parent, "a=b,c=d", true)),
        ("a state that is none", &all, &format!("{RECORDED}tracestate: a\r\n"), (parent, "", true)),
        ("a state without a trace", &all, "tracestate: a=b\r\n", (None, "", true)),
        ("two of them", &all, &format!("{RECORDED}{SKIPPED}"), (None, "", true)),
        ("what is none", &none, "traceparent: 00-1-2-01\r\n", (None, "", false)),
        ("not trusted", &untrusted, &with_state, (None, "", true)),
    ] {
        let (parent, state, sampled) = expected;
        assert_eq!(context(traced, headers), (parent, state.to_owned(), sampled), "{case}");
    }
}

#[test]
fn an_explanation_says_whose_trace_it_is_and_who_records_it() {
    let mut half = traced(true, Choice::share(0.5), true);
    assert_eq!(
        explain(&half),
        "it is a span of the trace of the client, or one of its own: 50.0 % are recorded, unless the client's says otherwise"
    );
    (half.trusts, half.exports) = (false, false);

    assert_eq!(
        explain(&half),
        "it is a span of a trace of its own: 50.0 % are recorded; no collector takes spans"
    );
}

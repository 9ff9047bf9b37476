//! The messages of OTLP (opentelemetry-proto 1.x, `trace/v1` and `collector/trace/v1`), as far as they are written or
//! read here. Names and tags are the protocol's.

use std::time::Duration;

use prost::Message as _;

use crate::model::span::{Attribute, Span as Told};

/// `ExportTraceServiceRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ExportRequest {
    /// Spans by who sent them.
    #[prost(message, repeated, tag = "1")]
    pub resource_spans: Vec<ResourceSpans>,
}

/// Spans of one sender.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ResourceSpans {
    /// Who that is.
    #[prost(message, optional, tag = "1")]
    pub resource: Option<Resource>,
    /// By what made them.
    #[prost(message, repeated, tag = "2")]
    pub scope_spans: Vec<ScopeSpans>,
}

/// A sender.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Resource {
    /// What is known of it.
    #[prost(message, repeated, tag = "1")]
    pub attributes: Vec<KeyValue>,
}

/// Spans of one part of a sender.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ScopeSpans {
    /// What made them.
    #[prost(message, optional, tag = "1")]
    pub scope: Option<Scope>,
    /// In the order in which they ended.
    #[prost(message, repeated, tag = "2")]
    pub spans: Vec<Span>,
}

/// `InstrumentationScope`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Scope {
    /// Name of the program.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Its version.
    #[prost(string, tag = "2")]
    pub version: String,
}

/// A span.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Span {
    /// 16 bytes.
    #[prost(bytes = "vec", tag = "1")]
    pub trace_id: Vec<u8>,
    /// 8 bytes.
    #[prost(bytes = "vec", tag = "2")]
    pub span_id: Vec<u8>,
    /// As in the header.
    #[prost(string, tag = "3")]
    pub trace_state: String,
    /// 8 bytes, or none.
    #[prost(bytes = "vec", tag = "4")]
    pub parent_span_id: Vec<u8>,
    /// Its operation.
    #[prost(string, tag = "5")]
    pub name: String,
    /// 2: of a server.
    #[prost(enumeration = "Kind", tag = "6")]
    pub kind: i32,
    /// Nanoseconds since the epoch.
    #[prost(fixed64, tag = "7")]
    pub start_time_unix_nano: u64,
    /// Nanoseconds since the epoch.
    #[prost(fixed64, tag = "8")]
    pub end_time_unix_nano: u64,
    /// Whatever else is known.
    #[prost(message, repeated, tag = "9")]
    pub attributes: Vec<KeyValue>,
    /// Whether it failed.
    #[prost(message, optional, tag = "15")]
    pub status: Option<Status>,
    /// Those of `traceparent`, and from the ninth bit on whether the parent is remote.
    #[prost(fixed32, tag = "16")]
    pub flags: u32,
}

/// `SpanKind`, as far as it occurs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum Kind {
    /// Not told.
    Unspecified = 0,
    /// It serves a request.
    Server = 2,
}

/// `Status`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Status {
    /// 0: not told.
    #[prost(enumeration = "Code", tag = "3")]
    pub code: i32,
}

/// `StatusCode`, as far as it occurs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum Code {
    /// Not told.
    Unset = 0,
    /// It failed.
    Error = 2,
}

/// An attribute.
#[derive(Clone, PartialEq, prost::Message)]
pub struct KeyValue {
    /// Its name.
    #[prost(string, tag = "1")]
    pub key: String,
    /// Its value.
    #[prost(message, optional, tag = "2")]
    pub value: Option<AnyValue>,
}

/// Value of an attribute.
#[derive(Clone, PartialEq, prost::Message)]
pub struct AnyValue {
    /// Of one kind.
    #[prost(oneof = "Value", tags = "1, 3")]
    pub value: Option<Value>,
}

/// The kinds that occur.
#[derive(Clone, PartialEq, Eq, prost::Oneof)]
pub enum Value {
    /// Words.
    #[prost(string, tag = "1")]
    Text(String),
    /// A number.
    #[prost(int64, tag = "3")]
    Number(i64),
}

/// `ExportTraceServiceResponse`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ExportResponse {
    /// Not all was taken, or there is something to be said.
    #[prost(message, optional, tag = "1")]
    pub partial_success: Option<PartialSuccess>,
}

/// What was not taken.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct PartialSuccess {
    /// So many.
    #[prost(int64, tag = "1")]
    pub rejected_spans: i64,
    /// Why, or a hint where all was taken.
    #[prost(string, tag = "2")]
    pub error_message: String,
}

/// `is_remote` is known, and so.
const REMOTE: u32 = 0x300;
const SAMPLED: u32 = 1;

/// A gRPC message with these spans of a service.
pub(super) fn message(service: &str, spans: &[Told]) -> Vec<u8> {
    let scope = Scope { name: "penstock".to_owned(), version: env!("CARGO_PKG_VERSION").to_owned() };
    let resource = Resource { attributes: vec![pair("service.name", Value::Text(service.to_owned()))] };
    let spans = spans.iter().map(Span::from).collect();
    let request = ExportRequest {
        resource_spans: vec![ResourceSpans {
            resource: Some(resource),
            scope_spans: vec![ScopeSpans { scope: Some(scope), spans }],
        }],
    };
    let length = request.encoded_len();
    let mut message = Vec::with_capacity(5 + length);
    message.push(0);
    message.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
    // A Vec takes everything.
    let _ = request.encode(&mut message);
    message
}

/// How many spans an answer says were not taken. What cannot be read says nothing: the status told that it was.
pub(super) fn refused(answer: &[u8]) -> u64 {
    let message = answer.get(5..).filter(|_| answer.first() == Some(&0));
    let response = message.and_then(|message| ExportResponse::decode(message).ok());
    let partial = response.and_then(|response| response.partial_success);
    partial.map_or(0, |partial| u64::try_from(partial.rejected_spans).unwrap_or(0))
}

impl From<&Told> for Span {
    fn from(told: &Told) -> Self {
        let Told { trace, id, parent, state, name, began, took, status, attributes } = told;
        let attributes = attributes.iter().map(|(key, value)| {
            pair(
                key,
                match value {
                    Attribute::Word(word) => Value::Text((*word).to_owned()),
                    Attribute::Text(text) => Value::Text(text.clone()),
                    Attribute::Number(number) => Value::Number((*number).into()),
                },
            )
        });
        let status_code = pair("http.status_code", Value::Number((*status).into()));
        let failed = *status >= 500;
        Self {
            trace_id: trace.to_be_bytes().to_vec(),
            span_id: id.to_be_bytes().to_vec(),
            trace_state: state.clone(),
            parent_span_id: parent.map(|parent| parent.to_be_bytes().to_vec()).unwrap_or_default(),
            name: name.clone(),
            kind: Kind::Server.into(),
            start_time_unix_nano: nanoseconds(*began),
            end_time_unix_nano: nanoseconds(began.saturating_add(*took)),
            attributes: attributes.chain([status_code]).collect(),
            status: failed.then(|| Status { code: Code::Error.into() }),
            flags: SAMPLED | if parent.is_some() { REMOTE } else { 0 },
        }
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn pair(key: &str, value: Value) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(rejected_spans: i64) -> Vec<u8> {
        let partial_success = Some(PartialSuccess { rejected_spans, error_message: "no".to_owned() });
        let message = ExportResponse { partial_success }.encode_to_vec();
        [&[0, 0, 0, 0, message.len() as u8][..], &message].concat()
    }

    #[test]
    fn what_was_not_taken_is_read_of_an_answer() {
        for (case, bytes, expected) in [
            ("some", answer(3), 3),
            ("a hint alone", answer(0), 0),
            ("less than nothing", answer(-1), 0),
            ("all was taken", vec![0, 0, 0, 0, 0], 0),
            ("no message", Vec::new(), 0),
            ("a compressed one, which nobody asked for", vec![1, 0, 0, 0, 1, 9], 0),
            ("no message of this kind", vec![0, 0, 0, 0, 1, 0xff], 0),
        ] {
            assert_eq!(refused(&bytes), expected, "{case}");
        }
    }

    #[test]
    fn a_span_is_told_as_the_protocol_has_it() {
        let told = Told {
            trace: 0x0102,
            id: 3,
            parent: Some(4),
            state: "a=b".to_owned(),
            name: "/shop".to_owned(),
            began: Duration::from_secs(2),
            took: Duration::from_millis(5),
            status: 502,
            attributes: vec![("http.method", Attribute::Text("GET".to_owned()))],
        };

        let message = message("nginx", std::slice::from_ref(&told));
        let request = ExportRequest::decode(&message[5..]).expect("a message");

        assert_eq!(message[..5], [0, 0, 0, 0, message.len() as u8 - 5]);
        let [of] = request.resource_spans.as_slice() else { panic!("one sender: {request:?}") };
        let name = pair("service.name", Value::Text("nginx".to_owned()));
        assert_eq!(of.resource.as_ref().expect("a sender").attributes, [name]);
        let [span] = of.scope_spans[0].spans.as_slice() else { panic!("one span: {request:?}") };
        let expected = Span {
            trace_id: [[0; 14].as_slice(), &[1, 2]].concat(),
            span_id: vec![0, 0, 0, 0, 0, 0, 0, 3],
            trace_state: "a=b".to_owned(),
            parent_span_id: vec![0, 0, 0, 0, 0, 0, 0, 4],
            name: "/shop".to_owned(),
            kind: 2,
            start_time_unix_nano: 2_000_000_000,
            end_time_unix_nano: 2_005_000_000,
            attributes: vec![
                pair("http.method", Value::Text("GET".to_owned())),
                pair("http.status_code", Value::Number(502)),
            ],
            status: Some(Status { code: 2 }),
            flags: 0x301,
        };
        assert_eq!(*span, expected);
    }
}

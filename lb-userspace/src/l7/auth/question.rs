//! What another service is asked about a request, written while the request's bytes are there.

use aws_lc_rs::digest::{Context, SHA256};

use super::super::h1::head::LineSet;
use super::super::heads::{self, Certificate};
use super::super::outside::{is_host, split_port};
use super::super::path;
use super::super::route::{Labels, Route};
use super::super::trace;
use super::super::variable::{self, Known};
use super::cache::{self, CacheKey, CacheKeys};
use crate::model::expression::Expression;
use crate::model::l7::policy::External;

/// A request as a question is made of it.
#[derive(Clone, Copy)]
pub(in crate::l7) struct Subject<'a, 'h, 'b> {
    pub(in crate::l7) known: Known<'a, 'h, 'b>,
    pub(in crate::l7) route: &'a Route,
    /// What the service is told of the client's certificate.
    pub(in crate::l7) certificate: Option<Certificate<'a>>,
}

/// Within what an answer is remembered: a hash of all that is the same in every question of a location.
#[derive(Debug)]
pub(in crate::l7) struct Scope([u8; 32]);

impl Scope {
    /// That of a location; `None`: answers are not remembered there.
    pub(in crate::l7) fn of(route: &Route) -> Option<Box<Self>> {
        let auth = route.filters.policies.as_ref()?.auth.as_ref()?;
        let external = auth.external.as_ref().filter(|external| external.remember.is_some())?;
        // Asked or read in another way, it is another question.
        let External { url, method, set_headers, response_headers, .. } = external;
        let way = format!("{method:?} {set_headers:?} {response_headers:?}");
        let Labels { host, namespace, ingress, .. } = &*route.labels;
        let place = format!("{:?}", route.path);
        let parts = [namespace, ingress, host, &place, url, &way].map(|part| part.as_bytes());
        let mut context = Context::new(&SHA256);
        cache::each_apart(&parts, |bytes| context.update(bytes));
        let mut scope = [0; 32];
        scope.iter_mut().zip(context.finish().as_ref()).for_each(|(to, from)| *to = *from);
        Some(Box::new(Self(scope)))
    }
}

/// A question, free of the bytes it was made of.
pub(super) struct Question {
    /// A request without a body.
    pub(super) head: Vec<u8>,
    /// The service's host, with the port if it is written; `None`: the request makes it no host.
    pub(super) host: Option<String>,
    /// Where a client is sent that is not known.
    pub(super) sign_in: Option<Vec<u8>>,
    /// What the answer is remembered under.
    pub(super) key: Option<CacheKey>,
}

impl Question {
    pub(super) fn new(external: &External, subject: Subject<'_, '_, '_>, keys: &CacheKeys) -> Self {
        let Subject { known, route, .. } = subject;
        let fill_in = |text: &Expression| {
            let mut filled = Vec::new();
            variable::fill_in(text, known, &mut filled);
            filled
        };
        let host = String::from_utf8(fill_in(&external.host)).ok().filter(|host| is_host(host));
        let mut target = Vec::new();
        // What a client puts into a variable must not end the line it stands in.
        path::escape_literal(&fill_in(&external.target), &mut target);
        let remembered = external.remember.as_ref().zip(route.scope.as_deref());
        let key = remembered.map(|(remember, Scope(scope))| keys.of(&[scope, &fill_in(&remember.key)]));
        Self {
            head: head(external, subject, host.as_deref().unwrap_or_default(), &target, fill_in),
            host,
            sign_in: external.sign_in.as_ref().map(fill_in),
            key,
        }
    }
}

fn head(
    external: &External,
    subject: Subject<'_, '_, '_>,
    host: &str,
    target: &[u8],
    fill_in: impl Fn(&Expression) -> Vec<u8>,
) -> Vec<u8> {
    let Subject { known: Known { request, effective, id, trace, .. }, certificate, .. } = subject;
    let method = external.method.as_deref();
    let scheme = effective.scheme.as_str().as_bytes();
    let addr = effective.addr.to_string();
    let origin = [scheme, b"://", effective.host, request.target].concat();
    let redirect = external.request_redirect.as_ref().map_or_else(|| request.target.to_vec(), &fill_in);
    let mut ours: Vec<(&str, &[u8])> = vec![
        // Its name alone, as ingress-nginx has it.
        ("Host", split_port(host).map_or(host, |(name, _)| name).as_bytes()),
        ("X-Request-ID", id),
        ("X-Original-URL", &origin),
        ("X-Original-Method", request.method.as_bytes()),
        ("X-Sent-From", b"nginx-ingress-controller"),
        ("X-Real-IP", addr.as_bytes()),
        ("X-Forwarded-For", addr.as_bytes()),
        ("X-Auth-Request-Redirect", &redirect),
    ];
    if method.is_some() {
        ours.extend([("X-Original-URI", request.target), ("X-Scheme", effective.scheme_word())]);
    }
    let traceparent = trace.map(trace::Context::traceparent);
    if let (Some(trace), Some(traceparent)) = (trace, &traceparent) {
        ours.extend([("traceparent", &traceparent[..]), ("tracestate", trace.state())]);
    }
    if external.keepalive.connections == 0 {
        ours.push(("Connection", b"close"));
    }
    let added: Vec<_> =
        external.set_headers.iter().map(|header| (header.name.as_str(), fill_in(&header.value))).collect();
    let is_added = |name: &str| added.iter().any(|(known, _)| known.eq_ignore_ascii_case(name));

    let mut out = Vec::with_capacity(1024);
    for part in [method.unwrap_or("GET").as_bytes(), b" ", target, b" HTTP/1.1\r\n"] {
        out.extend_from_slice(part);
    }
    for (name, value) in ours.iter().filter(|(name, _)| !is_added(name)) {
        line(name, value, &mut out);
    }
    request.block.copy_except(dropped(subject, |name| is_added(name) || has(&ours, name)), &mut out);
    if let Some(certificate) = certificate {
        heads::client_certificate(certificate, is_added, &mut out);
    }
    for (name, value) in &added {
        line(name, value, &mut out);
    }
    out.extend_from_slice(b"\r\n");
    out
}

fn has(lines: &[(&str, &[u8])], name: &str) -> bool {
    lines.iter().any(|(known, _)| known.eq_ignore_ascii_case(name))
}

/// Lines of the client's that are not asked about: those that never go anywhere, its body's, and ours.
fn dropped(subject: Subject<'_, '_, '_>, is_ours: impl Fn(&str) -> bool) -> LineSet {
    const BODY: [&str; 2] = ["content-length", "transfer-encoding"];
    // Without a method of its own the service hears them from nobody.
    const TOLD: [&str; 2] = ["x-original-uri", "x-scheme"];
    let request = subject.known.request;
    request.drop.with(request.block.named(|name| {
        BODY.iter().chain(&TOLD).any(|known| known.eq_ignore_ascii_case(name)) || is_ours(name)
    }))
}

/// Without a value there is no line, as nginx has it.
fn line(name: &str, value: &[u8], out: &mut Vec<u8>) {
    if value.is_empty() {
        return;
    }
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend(value.iter().filter(|byte| !matches!(byte, b'\r' | b'\n' | 0)));
    out.extend_from_slice(b"\r\n");
}

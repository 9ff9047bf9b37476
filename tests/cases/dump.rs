//! A snapshot and its problems as text that a person can review.

use std::collections::BTreeSet;
use std::fmt::Write;

use penstock::model::Problem;
use penstock::model::canary::{Canary, HeaderRule, HeaderValue, Rules, Sessions, Weight};
use penstock::model::expression::{Expression, Part as Expressed};
use penstock::model::health::{Check, HttpProbe, Probe};
use penstock::model::l4::{
    Access, At, Backend, BackendState, FlowMemory, HealthPort, IpMode, L4, OnEmpty, Pool, PoolId, Prefix,
    Protocol, Punt, VipAddr,
};
use penstock::model::l7::log::{Format, Part};
use penstock::model::l7::{
    AccessLog, Action, Aliases, Blocked, Buffers, ClientAuth, Edge, FastCgi, Filters, L7, Location, Mode,
    Moved, PathMatch, Piece, Preamble, Rate, ReadAhead, RedirectQuery, Responses, Server, ServicePort,
    SslRedirect, Stream, StreamTerms, Template, UpstreamTls, VerifyClient,
};
use penstock::model::pool::GivenTo;
use penstock::model::session::Affinity;
use penstock::model::upstream::{Balance, Care, Ejection, External, Keepalive, Upstream};
use penstock::translate::Translated;

use crate::policies;

/// Punts of the node's own 80 and 443 are left out: they are always there.
pub fn dump(translated: &Translated, load_problems: &[Problem]) -> String {
    let mut out = String::new();
    l4(&translated.snapshot.l4, &mut out);
    for (service, GivenTo { addresses, mode }) in translated.given.iter() {
        let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
        let mode = if *mode == IpMode::Proxy { " (ipMode: Proxy)" } else { "" };
        line(&mut out, 0, &format!("given {service}: {}{mode}", addresses.join(" ")));
    }
    l7(&translated.snapshot.l7, &mut out);
    for problem in load_problems.iter().chain(translated.problems.iter().map(|problem| &**problem)) {
        line(&mut out, 0, &format!("{problem} [{}]", problem.reason));
    }
    out
}

fn line(out: &mut String, indent: usize, text: &str) {
    writeln!(out, "{:indent$}{text}", "", indent = indent * 2).expect("a String takes everything");
}

fn l4(l4: &L4, out: &mut String) {
    for (vip, Punt { listener, sources, ip_mode }) in &l4.punts {
        let is_usual = matches!(vip.addr, VipAddr::Node(_))
            && [80, 443].contains(&vip.port)
            && vip.protocol == Protocol::Tcp;
        if !is_usual {
            let from = sources.as_ref().map(ranges).unwrap_or_default();
            let before = if *ip_mode == IpMode::Vip { " behind others" } else { "" };
            line(out, 0, &format!("punt {vip} to {listener:?}{from}{before}"));
        }
    }
    for (id, pool) in &l4.pools {
        pool_lines(id, pool, out);
    }
    for (port, HealthPort { service, local }) in &l4.health_ports {
        line(out, 0, &format!("health port {port} of {service}: {local} here"));
    }
    for addr in &l4.tunnel {
        line(out, 0, &format!("tunnel address {addr}"));
    }
    for peer in &l4.peers {
        let silent = if l4.silent.contains(peer) { ", whose agent is silent" } else { "" };
        line(out, 0, &format!("peer {peer}{silent}"));
    }
}

/// Only what differs from the defaults.
fn pool_lines(id: &PoolId, pool: &Pool, out: &mut String) {
    let Pool { vips, backends, empty, affinity, source_ranges, memory } = pool;
    let mut text = format!("pool {id}");
    if *empty == OnEmpty::Drop {
        text += ", drops when empty";
    }
    if let Some(affinity) = affinity {
        text += &format!(", affinity {:?}", affinity.timeout);
    }
    if *memory != FlowMemory::default() {
        text += &format!(", memory {memory}");
    }
    line(out, 0, &text);
    for (vip, access) in vips {
        let access = match access {
            Access::Open => String::new(),
            Access::Restricted => ranges(source_ranges),
        };
        line(out, 1, &format!("vip {vip}{access}"));
    }
    for (addr, Backend { weight, state, mode, at }) in backends {
        let draining = match state {
            BackendState::Active => "",
            BackendState::Draining => " draining",
            BackendState::Leaving => " leaving",
        };
        let at = match at {
            At::Here => " here".to_owned(),
            At::Node { tunnel } => format!(" at {tunnel}"),
            At::Elsewhere => String::new(),
        };
        line(out, 1, &format!("backend {addr} {mode}{at} weight {}{draining}", weight.0));
    }
}

fn ranges(sources: &BTreeSet<Prefix>) -> String {
    let sources: Vec<_> = sources.iter().map(ToString::to_string).collect();
    format!(" from [{}]", sources.join(" "))
}

fn l7(l7: &L7, out: &mut String) {
    for (host, server) in &l7.servers {
        let Server { locations, tls, app_root, client_auth, ciphers, moved } = server;
        let tls = if *tls { " tls" } else { "" };
        let root = app_root.as_ref().map(|root| format!(" app-root {}", template(root))).unwrap_or_default();
        let moved = moved.as_ref().map(|Moved { to, status }| format!(" moved to {to} ({status})"));
        line(out, 0, &format!("server {host}{tls}{root}{}", moved.unwrap_or_default()));
        if let Some(auth) = client_auth {
            client_auth_line(auth, out);
        }
        if let Some(ciphers) = ciphers {
            line(out, 1, &format!("ciphers {:?}, order {:?}", ciphers.suites, ciphers.order));
        }
        for entry in locations {
            location(entry, out);
        }
    }
    let Aliases { exact, below, patterns } = &l7.aliases;
    let exact = exact.iter().map(|(name, host)| (name.clone(), host));
    let below = below.iter().map(|(suffix, host)| (format!("*.{suffix}"), host));
    let patterns = patterns.iter().map(|(pattern, host)| (format!("~{}", pattern.regex()), host));
    for (alias, host) in exact.chain(below).chain(patterns) {
        line(out, 0, &format!("alias {alias} of {host}"));
    }
    for (name, upstream) in &l7.upstreams {
        let endpoints: Vec<_> = upstream.endpoints.iter().map(ToString::to_string).collect();
        line(out, 0, &format!("upstream {}: {}{}", name.0, endpoints.join(" "), upstream_text(upstream)));
    }
    for (host, certificate) in &l7.certificates {
        line(out, 0, &format!("certificate {host} from {}", certificate.secret));
    }
    for (host, upstream) in &l7.passthrough {
        line(out, 0, &format!("passthrough {host} to {}", upstream.0));
    }
    for ((protocol, port), stream) in &*l7.streams {
        let Stream { upstream, received, sent } = stream;
        let header =
            |preamble: &Preamble, text: &'static str| if *preamble == Preamble::Proxy { text } else { "" };
        let (read, written) = (header(received, ", header read"), header(sent, ", header written"));
        line(out, 0, &format!("stream {protocol} {port} to {}{read}{written}", upstream.0));
    }
    edge(&l7.edge, out);
    access_log(l7.log.as_deref(), out);
    if l7.keepalive != Keepalive::default() {
        let Keepalive { connections, requests, idle, age } = l7.keepalive;
        line(
            out,
            0,
            &format!("keeps {connections} connections for {requests} requests, {idle:?} idle, {age:?} old"),
        );
    }
    if l7.responses != Responses::default() {
        line(out, 0, &format!("{:?}", l7.responses));
    }
    if let Some(Blocked { clients, agents, referers }) = l7.blocked.as_deref() {
        line(out, 0, &format!("blocks [{clients}], agents {agents:?}, referers {referers:?}"));
    }
    if let Some(compression) = l7.compression.as_deref() {
        line(out, 0, &format!("{compression:?}"));
    }
    if let Some(collector) = l7.collector.as_deref() {
        line(out, 0, &format!("{collector:?}"));
    }
    if let Some(upstream) = &l7.default_backend {
        line(out, 0, &format!("default backend {}", upstream.0));
    }
    if let Some(certificate) = &l7.default_certificate {
        line(out, 0, &format!("default certificate from {}", certificate.secret));
    }
}

fn client_auth_line(auth: &ClientAuth, out: &mut String) {
    let text = match auth {
        ClientAuth::Unusable => "client certificates: unusable, 403".to_owned(),
        ClientAuth::Verify(verify) => {
            let VerifyClient { trust, error_page, pass_certificate, subject } = &**verify;
            let subject = subject.as_ref().map(|pattern| pattern.regex().as_str());
            format!(
                "client certificates: {trust:?}, error page {error_page:?}, passed {pass_certificate}, subject {subject:?}"
            )
        }
    };
    line(out, 1, &text);
}

/// Only what differs from the defaults.
fn access_log(log: Option<&AccessLog>, out: &mut String) {
    let Some(AccessLog { sink, format, skip, unclaimed, questions }) = log else {
        return line(out, 0, "access log off");
    };
    let default = AccessLog::default();
    if *sink != default.sink {
        line(out, 0, &format!("access log to {sink:?}"));
    }
    if *format != default.format {
        let Format { escape, parts, keeps_heads: _ } = format;
        line(out, 0, &format!("access log escaped {escape:?}: {}", parts_text(parts)));
    }
    if *questions {
        line(out, 0, "access log with questions to auth services");
    }
    if *skip != default.skip || *unclaimed != default.unclaimed {
        line(out, 0, &format!("access log without {skip:?}, unclaimed {unclaimed}"));
    }
}

fn parts_text(parts: &[Part]) -> String {
    let text = parts.iter().map(|part| match part {
        Part::Text(text) => text.clone(),
        Part::Early(early) => format!("${{{early:?}}}"),
        Part::Late(late) => format!("${{{late:?}}}"),
    });
    text.collect()
}

/// Only what differs from the defaults.
fn edge(edge: &Edge, out: &mut String) {
    let Edge { proxy_protocol, forwarding, limits, connections, shutdown, tls, streams } = edge;
    let default = Edge::default();
    if *proxy_protocol != default.proxy_protocol {
        line(out, 0, &format!("edge {proxy_protocol:?}"));
    }
    if *forwarding != default.forwarding {
        line(out, 0, &format!("edge {forwarding:?}"));
    }
    if *limits != default.limits {
        line(out, 0, &format!("edge {limits:?}"));
    }
    if *connections != default.connections {
        line(out, 0, &format!("edge connections {connections}"));
    }
    if *shutdown != default.shutdown {
        line(out, 0, &format!("edge shutdown {shutdown:?}"));
    }
    if *tls != default.tls {
        line(out, 0, &format!("edge {tls:?}"));
    }
    let StreamTerms { idle, retry, responses, header, log } = streams;
    if *streams != (StreamTerms { log: log.clone(), ..default.streams.clone() }) {
        line(out, 0, &format!("edge streams {idle:?} {retry:?} responses {responses} {header:?}"));
    }
    if *log != default.streams.log {
        line(out, 0, &format!("edge streams logged {log:?}"));
    }
}

/// Only what differs from the defaults.
fn upstream_text(upstream: &Upstream) -> String {
    let Upstream {
        endpoints: _,
        external,
        weights,
        balance,
        care: Care { slow_start, ejection },
        idle,
        check,
        affinity,
        canary,
    } = upstream;
    let external = external
        .as_ref()
        .map(|External { service: _, name, port, flaw: _ }| format!("by name {name}:{port}"));
    let mut text = external.unwrap_or_default();
    for (endpoint, weight) in weights {
        text += &format!(", {endpoint} of weight {weight}");
    }
    if *balance != Balance::default() {
        text += &format!(", balanced by {balance:?}");
    }
    if !slow_start.is_zero() {
        text += &format!(", slow start {slow_start:?}");
    }
    if *ejection != Ejection::default() {
        text += &format!(", ejected after {}", ejection.after);
    }
    if let Some(idle) = idle {
        text += &format!(", {idle} idle connections");
    }
    if let Some(check) = check {
        let Check { probe, interval: _, timeout, fall, rise } = &**check;
        text += &format!(", checked by {check} within {timeout:?}, {fall} down, {rise} up");
        if let Probe::Http(HttpProbe { tls: Some(tls), .. }) = probe {
            text += &format!(", {}", tls_text(tls));
        }
    }
    if let Some(Affinity { mode, cookie, on_failure, places }) = affinity {
        let places: Vec<_> = places.iter().map(|(host, path)| format!("{host}{path}")).collect();
        text +=
            &format!(", sessions {mode:?} at [{}], {cookie:?}, on failure {on_failure:?}", places.join(" "));
    }
    if let Some(canary) = canary {
        text += &canary_text(canary);
    }
    text
}

fn canary_text(canary: &Canary) -> String {
    let Canary { upstream, rules: Rules { header, cookie, weight: Weight { part, of } }, sessions } = canary;
    let mut text = format!(", canary {}", upstream.0);
    if let Some(HeaderRule { name, value }) = header {
        text += &match value {
            HeaderValue::AlwaysOrNever => format!(" by header {name}"),
            HeaderValue::Equal(value) => format!(" by header {name} {value:?}"),
            HeaderValue::Found(pattern) => format!(" by header {name} with {}", pattern.regex()),
            HeaderValue::Unusable => format!(" by header {name} unusable"),
        };
    }
    if let Some(cookie) = cookie {
        text += &format!(" by cookie {cookie}");
    }
    if *part > 0 {
        text += &format!(" by weight {part} of {of}");
    }
    if *sessions != Sessions::default() {
        text += ", sessions decided anew";
    }
    text
}

fn location(location: &Location, out: &mut String) {
    let Location { path, path_label, ingress, backend, action, filters } = location;
    let path = match path {
        PathMatch::Exact(path) => format!("exact {path}"),
        PathMatch::Prefix(path) => format!("prefix {path}"),
        PathMatch::Regex(pattern) => format!("regex {} (path {path_label})", pattern.regex()),
    };
    let backend = backend.as_deref().map(|backend| service_port(backend, action)).unwrap_or_default();
    let owner =
        ingress.as_ref().map_or("implicit".to_owned(), |ingress| format!("{ingress}, service {backend}"));
    let action = match action {
        Action::Proxy(upstream) => format!("proxy {}", upstream.0),
        Action::DefaultBackend => "default backend".to_owned(),
        Action::Deny => "deny".to_owned(),
        Action::Redirect(redirect) => {
            let query = if redirect.query == RedirectQuery::Append { " + query" } else { "" };
            format!("redirect {} {}{query}", redirect.status, template(&redirect.location))
        }
    };
    line(out, 1, &format!("{path} [{owner}] {action}{}", filters_text(filters)));
    for text in filters.policies.iter().flat_map(|policies| policies::lines(policies)) {
        line(out, 2, &text);
    }
}

/// The port only where it is not 80, and the upstream where requests go elsewhere.
fn service_port(backend: &ServicePort, action: &Action) -> String {
    let ServicePort { service, port, upstream } = backend;
    let port = if port == "80" { String::new() } else { format!(" port {port}") };
    let upstream = match action {
        Action::Proxy(to) if to == upstream => String::new(),
        _ => format!(" as {}", upstream.0),
    };
    format!("{service}{port}{upstream}")
}

/// Only what differs from the defaults.
fn filters_text(filters: &Filters) -> String {
    let default = Filters::default();
    let Filters {
        ssl_redirect,
        redirects,
        rewrite,
        connect_timeout,
        send_timeout,
        read_timeout,
        max_body_bytes,
        protocol,
        upstream_tls,
        fastcgi,
        retry,
        buffers,
        logged,
        logs_rewrites,
        mode,
        policies: _,
    } = filters;
    let mut text = if *logged { String::new() } else { ", not logged".to_owned() };
    if *logs_rewrites {
        text += ", rewrites logged";
    }
    if *mode == Mode::Strict {
        text += ", strict";
    }
    if *ssl_redirect == SslRedirect::Always {
        text += ", https redirect";
    }
    if *redirects != default.redirects {
        text += &format!(", {redirects:?}");
    }
    if let Some(rewrite) = rewrite {
        text += &format!(", rewrite {} to {}", rewrite.pattern.regex(), template(&rewrite.target));
    }
    for (name, value, usual) in [
        ("connect", connect_timeout, default.connect_timeout),
        ("send", send_timeout, default.send_timeout),
        ("read", read_timeout, default.read_timeout),
    ] {
        if *value != usual {
            text += &format!(", {name} timeout {value:?}");
        }
    }
    if *max_body_bytes != default.max_body_bytes {
        text += &match max_body_bytes {
            Some(bytes) => format!(", body up to {bytes}"),
            None => ", body unlimited".to_owned(),
        };
    }
    let Buffers { head_bytes, request, again, response } = buffers;
    if *head_bytes != default.buffers.head_bytes {
        text += &format!(", response head up to {head_bytes}");
    }
    if let Some(bytes) = request {
        text += &format!(", requests held with {bytes} in memory");
    }
    if again.is_none() {
        text += ", requests never held";
    }
    if let Some(ReadAhead { memory_bytes, file_bytes, rate }) = response {
        text += &format!(", responses read ahead by {memory_bytes} and {file_bytes} on disk");
        if let Some(Rate { bytes, after }) = rate {
            text += &format!(", {bytes} a second after {after}");
        }
    }
    if *protocol != default.protocol {
        text += &format!(", speaks {protocol:?}");
    }
    if *upstream_tls != default.upstream_tls {
        text += &format!(", {}", tls_text(upstream_tls));
    }
    if let Some(fastcgi) = fastcgi {
        text += &fastcgi_text(fastcgi);
    }
    if *retry != default.retry {
        text += &format!(", retries on {}, {} tries within {:?}", retry.on, retry.tries, retry.within);
    }
    text
}

/// Only what differs from the defaults.
fn fastcgi_text(fastcgi: &FastCgi) -> String {
    let FastCgi { index, params } = fastcgi;
    let default = FastCgi::default();
    let own = params.iter().filter(|(name, parts)| default.params.get(*name) != Some(*parts));
    let own = own.map(|(name, parts)| format!(", param {name} {}", parts_text(parts)));
    let index = if index.is_empty() { String::new() } else { format!(", index {index}") };
    index + &own.collect::<String>()
}

fn tls_text(tls: &UpstreamTls) -> String {
    let UpstreamTls { identity, verify, server_name, versions } = tls;
    let identity = identity.as_ref().map(|identity| format!(" as {}", identity.secret)).unwrap_or_default();
    let verify = verify
        .as_ref()
        .map(|verify| format!(" verified as {} up to depth {}", verify.name, verify.depth))
        .unwrap_or_default();
    let name = server_name.as_ref().map(|name| format!(" sni {name}")).unwrap_or_default();
    format!("upstream tls {versions:?}{identity}{verify}{name}")
}

pub fn template(template: &Template) -> String {
    let pieces = template.0.iter().map(|piece| match piece {
        Piece::Literal(text) => text.clone(),
        Piece::Capture(group) => format!("${{{group}}}"),
        Piece::Variable(variable) => Expression(vec![Expressed::Variable(variable.clone())]).to_string(),
    });
    pieces.collect()
}

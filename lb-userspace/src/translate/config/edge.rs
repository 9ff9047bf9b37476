//! Keys that say how clients are received.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::super::annotations::table::Value;
use super::super::annotations::value;
use super::super::ciphers;
use super::forwarding;
use super::keys::{Keys, field};
use crate::model::l4::Prefix;
use crate::model::l7::{
    Ciphers, ClientLimits, Edge, Group, ProxyProtocol, Resumption, Retry, SharedTicketKey, StreamTerms,
    TlsPolicy, TlsVersions, UnknownName,
};

/// Sessions that fit a megabyte of nginx's cache, by its documentation.
const SESSIONS_PER_MEGABYTE: u64 = 4000;
/// Sessions kept at most, whatever is asked for: each takes about a kilobyte.
const SESSIONS_MAX: u64 = 200_000;

pub(super) fn read(keys: &mut Keys<'_>) -> Edge {
    let default = Edge::default();
    let trusted = forwarding::trusted(keys);
    let streams = streams(keys, trusted.clone());
    // Believed by the same word, and as patiently.
    let is_on = keys.boolean("use-proxy-protocol").unwrap_or(false);
    let proxy_protocol = is_on.then(|| streams.header.clone());
    Edge {
        forwarding: forwarding::read(keys, proxy_protocol.is_some(), trusted),
        proxy_protocol,
        streams,
        limits: limits(keys),
        connections: connections(keys).unwrap_or(default.connections),
        shutdown: keys.time("worker-shutdown-timeout").unwrap_or(default.shutdown),
        tls: tls(keys),
    }
}

fn limits(keys: &mut Keys<'_>) -> ClientLimits {
    let default = ClientLimits::default();
    let (line_bytes, head_bytes) = header_buffers(keys).unwrap_or((default.line_bytes, default.head_bytes));
    // 0 requests would be none at all; nginx closes after the first one.
    let requests = keys.number("keep-alive-requests").map(|requests| requests.max(1));
    ClientLimits {
        keep_alive: keys.time("keep-alive").unwrap_or(default.keep_alive),
        keep_alive_requests: requests.unwrap_or(default.keep_alive_requests),
        http2_streams: http2_streams(keys).unwrap_or(default.http2_streams),
        header_timeout: keys.time("client-header-timeout").unwrap_or(default.header_timeout),
        body_timeout: keys.time("client-body-timeout").unwrap_or(default.body_timeout),
        line_bytes,
        head_bytes,
        names: forwarding::names(keys),
    }
}

/// Each may hold a few buffers, so what one connection may have is bounded whatever is asked for.
fn http2_streams(keys: &mut Keys<'_>) -> Option<u32> {
    let max = ClientLimits::HTTP2_STREAMS_MAX;
    let wanted = "a whole number from 1";
    let streams = keys
        .parsed("http2-max-concurrent-streams", wanted, |text| text.parse().ok().filter(|n: &u32| *n > 0))?;
    if streams > max {
        let message = format!("{streams} streams of one connection are more than there can be; {max} it is");
        keys.about.info("limited", field("http2-max-concurrent-streams"), message, "");
    }
    Some(streams.min(max))
}

/// `NUMBER SIZE`: a line may be SIZE long, a head NUMBER times that.
fn header_buffers(keys: &mut Keys<'_>) -> Option<(usize, usize)> {
    let parse = |text: &str| {
        let (number, size) = text.split_once(char::is_whitespace)?;
        let number: u64 = number.parse().ok().filter(|number| (1..=1024).contains(number))?;
        let size = value::size(size.trim()).filter(|size| *size >= 512)?;
        Some((size, number.checked_mul(size)?))
    };
    let (line, head) = keys.parsed("large-client-header-buffers", "a number and a size, like 4 8k", parse)?;
    let max = ClientLimits::HEAD_BYTES_MAX as u64;
    if head > max {
        let message = format!("{head} bytes for a head are more than a read buffer holds; {max} it is");
        keys.about.info("limited", field("large-client-header-buffers"), message, "");
    }
    let cut = |bytes: u64| usize::try_from(bytes.min(max)).unwrap_or(ClientLimits::HEAD_BYTES_MAX);
    Some((cut(line), cut(head)))
}

fn connections(keys: &mut Keys<'_>) -> Option<usize> {
    let parse = |text: &str| text.parse::<usize>().ok().filter(|&connections| connections > 0);
    keys.parsed("max-worker-connections", "a whole number from 1", parse)
}

fn streams(keys: &mut Keys<'_>, trusted: Vec<Prefix>) -> StreamTerms {
    let default = StreamTerms::default();
    let timeout = keys.time("proxy-protocol-header-timeout").unwrap_or(default.header.timeout);
    let tries = keys.number("proxy-stream-next-upstream-tries").unwrap_or(default.retry.tries);
    let retries = keys.boolean("proxy-stream-next-upstream").unwrap_or(true);
    StreamTerms {
        idle: keys.time("proxy-stream-timeout").unwrap_or(default.idle),
        retry: Retry {
            tries: if retries { tries } else { 1 },
            within: keys.time("proxy-stream-next-upstream-timeout").unwrap_or(default.retry.within),
            ..default.retry
        },
        responses: keys.number("proxy-stream-responses").unwrap_or(default.responses),
        header: ProxyProtocol { timeout, trusted },
        ..default
    }
}

fn tls(keys: &mut Keys<'_>) -> TlsPolicy {
    let default = TlsPolicy::default();
    TlsPolicy {
        http2: keys.boolean("use-http2").unwrap_or(default.http2),
        versions: versions(keys).unwrap_or(default.versions),
        ciphers: cipher_suites(keys).unwrap_or(default.ciphers),
        groups: groups(keys).unwrap_or(default.groups),
        resumption: resumption(keys),
        session_timeout: keys.time("ssl-session-timeout").unwrap_or(default.session_timeout),
        ticket_key: ticket_key(keys),
        unknown_name: match keys.boolean("ssl-reject-handshake") {
            Some(true) => UnknownName::Reject,
            _ => UnknownName::Default,
        },
    }
}

fn versions(keys: &mut Keys<'_>) -> Option<TlsVersions> {
    let text = keys.text("ssl-protocols")?;
    let has = |version: &str| text.split_whitespace().any(|word| word.eq_ignore_ascii_case(version));
    let is_spoken =
        |word: &&str| ["TLSv1.2", "TLSv1.3"].iter().any(|spoken| spoken.eq_ignore_ascii_case(word));
    let others: Vec<_> = text.split_whitespace().filter(|word| !is_spoken(word)).collect();
    if !others.is_empty() {
        let message = format!("only TLSv1.2 and TLSv1.3 are spoken; ignored: {}", others.join(", "));
        keys.about.warn("old-protocol", field("ssl-protocols"), message, "");
    }
    match (has("TLSv1.2"), has("TLSv1.3")) {
        (true, true) => Some(TlsVersions::Both),
        (true, false) => Some(TlsVersions::Tls12),
        (false, true) => Some(TlsVersions::Tls13),
        (false, false) => {
            keys.bad(
                "ssl-protocols",
                format!("{text:?} names no version that is spoken"),
                "write TLSv1.2 TLSv1.3",
            );
            None
        }
    }
}

fn cipher_suites(keys: &mut Keys<'_>) -> Option<Ciphers> {
    let text = keys.text("ssl-ciphers")?;
    let list = ciphers::read(text);
    ciphers::tell(&list, &field("ssl-ciphers"), &mut keys.about);
    Some(Ciphers { suites: list.suites, ..Ciphers::default() })
}

fn groups(keys: &mut Keys<'_>) -> Option<Vec<Group>> {
    const KEY: &str = "ssl-ecdh-curve";
    let text = keys.text(KEY).filter(|text| *text != "auto")?;
    let mut groups = Vec::new();
    for name in text.split(':') {
        let group = match name.to_ascii_lowercase().as_str() {
            "x25519mlkem768" => Group::X25519MlKem768,
            "x25519" => Group::X25519,
            "prime256v1" | "secp256r1" | "p-256" => Group::P256,
            "secp384r1" | "p-384" => Group::P384,
            _ => {
                keys.about.info(
                    "unknown-curve",
                    field(KEY),
                    format!("{name:?} is not available; it is left out"),
                    "",
                );
                continue;
            }
        };
        if !groups.contains(&group) {
            groups.push(group);
        }
    }
    if groups.is_empty() {
        let fix = "write some of X25519MLKEM768, X25519, prime256v1, secp384r1, with colons";
        keys.bad(KEY, format!("{text:?} names no curve that is available"), fix);
        return None;
    }
    Some(groups)
}

/// Our ticket keys change, which is what nginx's do not: so tickets are on unless they are switched off.
fn resumption(keys: &mut Keys<'_>) -> Resumption {
    let tickets = keys.text("ssl-session-tickets").is_none_or(|text| {
        value::boolean(text).unwrap_or_else(|| {
            let message = format!("{text:?} is not true or false; tickets are given, as by default here");
            let fix = value::advice(Value::Bool, text);
            keys.about.warn("bad-value", field("ssl-session-tickets"), message, fix);
            true
        })
    });
    let cache = keys.boolean("ssl-session-cache").unwrap_or(true);
    let size = keys.size("ssl-session-cache-size").unwrap_or(10 << 20);
    if tickets {
        return Resumption::Tickets;
    }
    let sessions = ((size >> 20).max(1) * SESSIONS_PER_MEGABYTE).min(SESSIONS_MAX);
    match cache {
        true => Resumption::Cache(usize::try_from(sessions).unwrap_or(1)),
        false => Resumption::Off,
    }
}

/// Base64 of 48 or 80 random bytes, as `openssl rand 80 | openssl enc -base64 -A` makes them.
fn ticket_key(keys: &mut Keys<'_>) -> Option<SharedTicketKey> {
    const KEY: &str = "ssl-session-ticket-key";
    // `openssl` breaks its lines unless it is told not to.
    let text: String = keys.text(KEY)?.split_ascii_whitespace().collect();
    let key = STANDARD.decode(&text).ok().filter(|key| [48, 80].contains(&key.len()));
    if key.is_none() {
        // Not as written: nearly the key is nearly the secret.
        let message = format!("its {} characters are not base64 of 48 or 80 bytes", text.len());
        keys.bad(KEY, message, "write what `openssl rand 80 | openssl enc -base64 -A` prints");
    }
    key.map(SharedTicketKey)
}

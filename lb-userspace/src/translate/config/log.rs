//! Keys of the access log.

use std::path::PathBuf;
use std::sync::Arc;

use super::keys::{Keys, bare_host, field};
use crate::model::l7::log::{DEFAULT_FORMAT, Escape, Format, Sink, StreamFormat, StreamLog};
use crate::model::l7::{AccessLog, BadPattern, Listed};

/// In ingress-nginx's image a link to standard output.
const STDOUT: [&str; 2] = ["/var/log/nginx/access.log", "/dev/stdout"];

/// Of requests, and of connections to TCP and UDP Services; `None`: it is switched off.
pub(super) fn read(keys: &mut Keys<'_>) -> (Option<AccessLog>, Option<StreamLog>) {
    let mut is_on = |key| keys.boolean(key).unwrap_or(false);
    let off = is_on("disable-access-log");
    let (http_off, streams_off) = (is_on("disable-http-access-log"), is_on("disable-stream-access-log"));
    let unclaimed = is_on("enable-access-log-for-default-backend");
    let questions = is_on("enable-auth-access-log");
    // All are asked for, so that none is told as unknown; the narrower one counts.
    let all = path(keys, "access-log-path");
    let http = path(keys, "http-access-log-path").or_else(|| all.clone()).unwrap_or(Sink::Stdout);
    let streams = path(keys, "stream-access-log-path").or(all).unwrap_or(Sink::Stdout);
    let http = Arc::new(syslog(keys).unwrap_or(http));
    let http = AccessLog { sink: http, format: format(keys), skip: skip(keys), unclaimed, questions };
    let streams = StreamLog { sink: Arc::new(streams), format: stream_format(keys) };
    ((!off && !http_off).then_some(http), (!off && !streams_off).then_some(streams))
}

fn path(keys: &mut Keys<'_>, key: &'static str) -> Option<Sink> {
    let path = keys.text(key)?;
    if STDOUT.contains(&path) {
        return Some(Sink::Stdout);
    }
    if !path.starts_with('/') {
        let message = format!("{path:?} is not an absolute path; standard output it is");
        keys.about.warn("bad-value", field(key), message, "");
        return Some(Sink::Stdout);
    }
    Some(Sink::File(PathBuf::from(path)))
}

/// The collector of lines, if there is one. Requests alone are logged there, as by ingress-nginx.
fn syslog(keys: &mut Keys<'_>) -> Option<Sink> {
    let is_on = keys.boolean("enable-syslog").unwrap_or(false);
    let wanted = "an address or a name";
    let host = keys.parsed("syslog-host", wanted, |text| bare_host(text).map(str::to_owned));
    let port = keys.parsed("syslog-port", "a port", |text| text.parse().ok().filter(|port: &u16| *port > 0));
    if is_on && host.is_none() {
        let message = "nobody is named to send lines to; they go where they went without it";
        keys.about.warn("bad-value", field("enable-syslog"), message, "name one by syslog-host");
    }
    Some(Sink::Syslog { host: host.filter(|_| is_on)?, port: port.unwrap_or(514) })
}

fn stream_format(keys: &mut Keys<'_>) -> StreamFormat {
    let Some(text) = keys.text("log-format-stream") else { return StreamFormat::default() };
    let (format, unknown) = StreamFormat::compile(text);
    for name in unknown {
        let message = format!("a connection has no ${name} here; `-` is logged in its place");
        keys.about.warn("unknown-variable", field("log-format-stream"), message, "");
    }
    format
}

fn format(keys: &mut Keys<'_>) -> Format {
    let json = keys.boolean("log-format-escape-json").unwrap_or(false);
    let none = keys.boolean("log-format-escape-none").unwrap_or(false);
    let escape = match (json, none) {
        (true, _) => Escape::Json,
        (false, true) => Escape::None,
        (false, false) => Escape::Default,
    };
    if escape == Escape::None {
        let message = "values are logged as they are sent: whoever sends a request can forge lines";
        let fix = "use log-format-escape-json";
        keys.about.warn("forgeable-log", field("log-format-escape-none"), message, fix);
    }
    let text = keys.text("log-format-upstream").unwrap_or(DEFAULT_FORMAT);
    let (format, unknown) = Format::compile(text, escape);
    for name in unknown {
        let message = format!("${name} does not exist here; `-` is logged in its place");
        let fix = match name.starts_with("geoip") {
            true => "no database of places is read here: look addresses up where the log is read",
            false => "",
        };
        keys.about.warn("unknown-variable", field("log-format-upstream"), message, fix);
    }
    format
}

/// Request targets as nginx's `map` compares them.
fn skip(keys: &mut Keys<'_>) -> Vec<Listed> {
    let text = keys.text("skip-access-log-urls").unwrap_or_default();
    let mut skip = Vec::new();
    for url in text.split(',').map(str::trim).filter(|url| !url.is_empty()) {
        match Listed::parse(url) {
            Ok(listed) => skip.push(listed),
            Err(error) => {
                let message = format!("{url:?} is no pattern that can be used, and is left out: {error}");
                keys.about.warn("bad-value", field("skip-access-log-urls"), message, BadPattern::FIX);
            }
        }
    }
    skip
}

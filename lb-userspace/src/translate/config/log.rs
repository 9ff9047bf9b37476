//! Keys of the access log.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use super::keys::{Keys, field};
use crate::model::l7::AccessLog;
use crate::model::l7::log::{DEFAULT_FORMAT, Escape, Format, Sink};

/// In ingress-nginx's image a link to standard output.
const STDOUT: [&str; 2] = ["/var/log/nginx/access.log", "/dev/stdout"];

/// `None`: it is switched off.
pub(super) fn read(keys: &mut Keys<'_>) -> Option<AccessLog> {
    let mut is_on = |key| keys.boolean(key).unwrap_or(false);
    let off = is_on("disable-access-log") | is_on("disable-http-access-log");
    let unclaimed = is_on("enable-access-log-for-default-backend");
    let log = AccessLog { sink: Arc::new(sink(keys)), format: format(keys), skip: skip(keys), unclaimed };
    (!off).then_some(log)
}

fn sink(keys: &mut Keys<'_>) -> Sink {
    // Both are asked for, so that neither is told as unknown; the narrower one counts.
    let all = keys.text("access-log-path").map(|path| ("access-log-path", path));
    let http = keys.text("http-access-log-path").map(|path| ("http-access-log-path", path));
    let Some((key, path)) = http.or(all).filter(|(_, path)| !STDOUT.contains(path)) else {
        return Sink::Stdout;
    };
    if !path.starts_with('/') {
        let message = format!("{path:?} is not an absolute path; standard output it is");
        keys.about.warn("bad-value", field(key), message, "");
        return Sink::Stdout;
    }
    Sink::File(PathBuf::from(path))
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

/// Request targets as nginx's `map` compares them: whole, both cases alike.
fn skip(keys: &mut Keys<'_>) -> BTreeSet<String> {
    let text = keys.text("skip-access-log-urls").unwrap_or_default();
    let urls = text.split(',').map(str::trim).filter(|url| !url.is_empty());
    let (patterns, exact): (Vec<_>, Vec<_>) = urls.partition(|url| url.starts_with('~'));
    for pattern in patterns {
        let message =
            format!("{pattern:?} is a pattern, and only whole targets are honoured; it is left out");
        keys.about.warn("not-yet", field("skip-access-log-urls"), message, "");
    }
    exact.into_iter().map(str::to_ascii_lowercase).collect()
}

//! `upstream-vhost`, `x-forwarded-prefix`, `connection-proxy-header`, `proxy-http-version`, and the ConfigMap's
//! `proxy-set-headers`: what the upstream is told otherwise than by the client.

use super::super::findings::About;
use super::super::template::template;
use super::field;
use super::policies::Source;
use crate::model::expression::Expression;
use crate::model::l7::policy::{Persistence, RequestHeaders};

pub(super) fn read(source: &Source<'_>, about: &mut About<'_>) -> Option<RequestHeaders> {
    let mut legal = |name: &str, is_legal: &dyn Fn(&str) -> bool, wanted: &str| {
        let text = source.text(name)?;
        if is_legal(text) {
            return Some(text);
        }
        about.warn("bad-annotation", field(name), format!("{text:?} is not {wanted}"), "it is ignored");
        None
    };
    let host = legal("upstream-vhost", &is_host, "a host, with variables or without");
    let prefix = legal(
        "x-forwarded-prefix",
        &|text| template(text).is_ok(),
        "a path with $1 to $9 and variables that are known early",
    );
    let protocol = source.text("backend-protocol").unwrap_or("HTTP").to_ascii_uppercase();
    // Others have no such versions and connections.
    let http = |name: &str| source.text(name).filter(|_| protocol.contains("HTTP"));
    let headers = RequestHeaders {
        host: host.and_then(|text| Expression::parse(text).ok()),
        prefix: prefix.and_then(|text| template(text).ok()),
        set: source.settings.proxy_headers().to_vec(),
        connection: http("connection-proxy-header")
            .map(|text| if text == "close" { Persistence::Close } else { Persistence::KeepAlive }),
        speaks_http10: http("proxy-http-version") == Some("1.0"),
    };
    (headers != RequestHeaders::default()).then_some(headers)
}

fn is_host(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._:[]${}".contains(&byte))
        && Expression::parse(text).is_ok()
}

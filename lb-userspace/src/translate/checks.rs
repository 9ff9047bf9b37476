//! `upstream-health-check-*`: how an upstream's endpoints are asked whether they are well.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use super::annotations::value;
use super::annotations::{Policy, field};
use super::findings::About;
use crate::model::health::{Check, HttpProbe, Probe};
use crate::model::upstream::{Protocol, UpstreamTls};

pub(super) const PATH: &str = "upstream-health-check-path";
pub(super) const INTERVAL: &str = "upstream-health-check-interval";

/// The annotations as they stand, all of them valid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Written {
    /// `None`: only whether a connection is taken.
    path: Option<String>,
    interval: Option<Duration>,
    /// `upstream-vhost`, where it is the same for every request.
    host: Option<String>,
}

impl Written {
    /// `None` where no check is asked for.
    pub(super) fn read(valid: &BTreeMap<&str, &str>) -> Option<Self> {
        let text = |name: &str| valid.get(name).copied();
        let (path, interval) = (text(PATH), text(INTERVAL).and_then(value::time));
        if path.is_none() && interval.is_none() {
            return None;
        }
        let is_host = |host: &&str| host.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'$');
        let host = text("upstream-vhost").filter(is_host);
        Some(Self { path: path.map(escaped), interval, host: host.map(str::to_owned) })
    }
}

/// Without what could not stand in a request line; escapes stay as they are.
fn escaped(path: &str) -> String {
    let mut escaped = String::with_capacity(path.len());
    for byte in path.bytes() {
        match byte {
            b'!'..=b'~' => escaped.push(char::from(byte)),
            _ => drop(write!(escaped, "%{byte:02X}")),
        }
    }
    escaped
}

/// That of an Ingress whose requests go to the upstream by `tls`, where its protocol asks for it.
pub(super) fn check(policy: &Policy, tls: impl FnOnce() -> UpstreamTls) -> Option<Arc<Check>> {
    let Written { path, interval, host } = policy.check.as_ref().filter(|_| !policy.denied)?;
    let http =
        |target: &String, tls| Probe::Http(HttpProbe { target: target.clone(), host: host.clone(), tls });
    let probe = match (path, policy.protocol) {
        (Some(path), Protocol::Http | Protocol::AutoHttp) => http(path, None),
        (Some(path), Protocol::Https) => http(path, Some(Arc::new(tls()))),
        (Some(_), Protocol::Grpc | Protocol::Grpcs | Protocol::FastCgi) | (None, _) => Probe::Tcp,
    };
    Some(Arc::new(Check::new(probe, interval.unwrap_or(Check::INTERVAL))))
}

/// What an author may not expect.
pub(super) fn tell(policy: &Policy, about: &mut About<'_>) {
    let Some(Written { path, .. }) = &policy.check else { return };
    let by_connection = matches!(policy.protocol, Protocol::Grpc | Protocol::Grpcs | Protocol::FastCgi);
    if path.is_some() && by_connection {
        let message = "endpoints of this backend-protocol are asked for a connection only, not for the path";
        about.info("checked-by-connection", field(PATH), message, "");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_becomes_what_may_stand_in_a_request_line() {
        assert_eq!(escaped("/health?a=%20b#c"), "/health?a=%20b#c");
        assert_eq!(escaped("/gesund\u{e4}\u{1}\u{7f}"), "/gesund%C3%A4%01%7F");
    }
}

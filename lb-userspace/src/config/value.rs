//! Values of settings, judged: each either means something or is refused with what is allowed.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use super::{Error, HashKey, Pod};
use crate::model::ObjectName;

/// The tunnel's port unless another is given.
const TUNNEL_PORT: u16 = lb_common::tunnel::PORT;

pub(super) fn listen_addresses(
    setting: &'static str,
    texts: &[String],
    port: u16,
) -> Result<Vec<SocketAddr>, Error> {
    if texts.is_empty() {
        return Ok(vec![SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port)]);
    }
    texts.iter().map(|text| listen_address(setting, text)).collect()
}

/// `ADDR:PORT`, or `:PORT` for every address.
pub(crate) fn listen_address(setting: &'static str, text: &str) -> Result<SocketAddr, Error> {
    let full = if text.starts_with(':') { format!("[::]{text}") } else { text.to_owned() };
    full.parse().map_err(|_| Error::Value {
        setting,
        value: text.to_owned(),
        reason: "allowed: ADDR:PORT, e.g. 127.0.0.1:8080, [::]:80, or :80 for every address".to_owned(),
    })
}

pub(super) fn workers(given: Option<usize>) -> Result<usize, Error> {
    let allowed = 1..=256;
    match given {
        None => Ok(std::thread::available_parallelism().map_or(1, |n| n.get().min(*allowed.end()))),
        Some(n) if allowed.contains(&n) => Ok(n),
        Some(n) => Err(Error::Value {
            setting: "workers",
            value: n.to_string(),
            reason: "allowed: 1 to 256".to_owned(),
        }),
    }
}

pub(super) fn hash_key(text: &str) -> Result<HashKey, Error> {
    // The value is a secret: the error describes it and does not repeat it.
    text.parse().map_err(|reason| Error::Value { setting: "hash-key", value: "***".to_owned(), reason })
}

pub(super) fn flow_entries(count: u32) -> Result<u32, Error> {
    if (8..=1 << 20).contains(&count) {
        return Ok(count);
    }
    let reason = "allowed: 8 to 1048576, rounded up to a power of two".to_owned();
    Err(Error::Value { setting: "flow-entries", value: count.to_string(), reason })
}

pub(super) fn grace(seconds: u32) -> Result<Duration, Error> {
    // The program's clock wraps after 39 hours.
    if (1..=86_400).contains(&seconds) {
        return Ok(Duration::from_secs(seconds.into()));
    }
    let reason = "allowed: 1 to 86400".to_owned();
    Err(Error::Value { setting: "grace-seconds", value: seconds.to_string(), reason })
}

pub(super) fn nat_ports(text: &str) -> Result<(u16, u16), Error> {
    let range = text.split_once('-').and_then(|(low, high)| Some((low.parse().ok()?, high.parse().ok()?)));
    match range {
        Some((low, high)) if low >= 1024 && low < high => Ok((low, high)),
        _ => Err(Error::Value {
            setting: "nat-ports",
            value: text.to_owned(),
            reason: "allowed: LOW-HIGH with 1024 <= LOW < HIGH <= 65535".to_owned(),
        }),
    }
}

/// UDP port of the tunnel; 0: none. Packets to a port of `--nat-ports` are taken for answers to translated flows.
pub(super) fn tunnel_port(asked: Option<u16>, (low, high): (u16, u16)) -> Result<u16, Error> {
    let port = asked.unwrap_or(TUNNEL_PORT);
    if !(low..=high).contains(&port) {
        return Ok(port);
    }
    if asked.is_none() {
        // What wants a tunnel is told that there is none.
        return Ok(0);
    }
    let reason = format!("allowed: a port outside --nat-ports {low}-{high}, or 0 for none");
    Err(Error::Value { setting: "tunnel-port", value: port.to_string(), reason })
}

pub(super) fn object(setting: &'static str, text: Option<String>) -> Result<Option<ObjectName>, Error> {
    let Some(text) = text.filter(|text| !text.is_empty()) else { return Ok(None) };
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
            Ok(Some(ObjectName::new(namespace, name)))
        }
        _ => Err(Error::Value { setting, value: text, reason: "allowed: NAMESPACE/NAME".to_owned() }),
    }
}

/// Labels as kubectl takes them; an API server would refuse others for as long as we ask.
pub(super) fn selector(text: Option<String>) -> Result<Option<String>, Error> {
    let Some(text) = text else { return Ok(None) };
    if requirements(&text).all(is_requirement) {
        return Ok(Some(text));
    }
    let reason =
        "allowed: labels as kubectl takes them, e.g. team=shop,tier in (web, api),!legacy".to_owned();
    Err(Error::Value { setting: "watch-namespace-selector", value: text, reason })
}

/// At the commas that stand in no parentheses.
fn requirements(text: &str) -> impl Iterator<Item = &str> {
    let mut inside = false;
    text.split(move |letter| {
        inside = match letter {
            '(' => true,
            ')' => false,
            _ => inside,
        };
        letter == ',' && !inside
    })
}

fn is_requirement(text: &str) -> bool {
    let is_name = |name: &str| {
        let (domain, name) = name.split_once('/').unwrap_or(("a", name));
        let is_inner = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        [domain, name].iter().all(|part| {
            part.bytes().all(is_inner)
                && part.starts_with(|it: char| it.is_ascii_alphanumeric())
                && part.ends_with(|it: char| it.is_ascii_alphanumeric())
        })
    };
    let is_value = |value: &str| value.is_empty() || (is_name(value) && !value.contains('/'));
    let text = text.trim();
    if let Some(listed) = text.strip_suffix(')') {
        let Some((head, values)) = listed.split_once('(') else { return false };
        let words: Vec<&str> = head.split_whitespace().collect();
        let [key, "in" | "notin"] = words[..] else { return false };
        return is_name(key) && values.split(',').all(|value| is_value(value.trim()));
    }
    for operator in ["!=", "==", "=", ">", "<"] {
        if let Some((key, value)) = text.split_once(operator) {
            return is_name(key.trim()) && is_value(value.trim());
        }
    }
    is_name(text.strip_prefix('!').unwrap_or(text).trim())
}

/// As systemd names the one it made for us; of several, the first.
pub(super) fn runtime_directory() -> Option<PathBuf> {
    let named = std::env::var("RUNTIME_DIRECTORY").ok()?;
    named.split(':').next().filter(|path| !path.is_empty()).map(PathBuf::from)
}

/// As the downward API gives it to a pod by custom, else as the host is called: that is what a
/// kubelet calls its node unless told otherwise.
pub(super) fn node_name() -> Option<String> {
    let named = std::env::var("NODE_NAME").ok().filter(|name| !name.is_empty());
    named.or_else(host_name)
}

/// As the downward API names it by custom; a pod's host is called as the pod is.
/// In a pod of a cluster, which has told us where its API server is.
pub(super) fn in_pod() -> bool {
    std::env::var_os("KUBERNETES_SERVICE_HOST").is_some_and(|host| !host.is_empty())
}

pub(super) fn pod() -> Pod {
    let named = |variable: &str| std::env::var(variable).ok().filter(|name| !name.is_empty());
    Pod {
        namespace: named("POD_NAMESPACE").unwrap_or_default(),
        name: named("POD_NAME").or_else(host_name).unwrap_or_default(),
    }
}

fn host_name() -> Option<String> {
    let host = rustix::system::uname().nodename().to_str().ok()?.to_ascii_lowercase();
    (!host.is_empty()).then_some(host)
}

pub(super) fn class_name(text: Option<String>) -> Result<Option<String>, Error> {
    let Some(text) = text.filter(|text| !text.is_empty()) else { return Ok(None) };
    // As the API server takes it: a name, with or without a domain in front.
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'/');
    if text.bytes().all(legal) {
        return Ok(Some(text));
    }
    let reason = "allowed: a name such as example.com/internal".to_owned();
    Err(Error::Value { setting: "load-balancer-class", value: text, reason })
}

/// The admin address: as it is named, else by host and port alone, as ingress-nginx has it.
pub(super) fn admin(
    whole: Option<String>,
    host: Option<String>,
    port: Option<u16>,
) -> Result<SocketAddr, Error> {
    if let Some(text) = whole {
        return listen_address("admin", &text);
    }
    let host = host.filter(|host| !host.is_empty());
    let fallback =
        if port.is_some() { IpAddr::V6(Ipv6Addr::UNSPECIFIED) } else { IpAddr::from([127, 0, 0, 1]) };
    let host = match host {
        None => fallback,
        Some(text) => text.parse().map_err(|_| Error::Value {
            setting: "healthz-host",
            value: text,
            reason: "allowed: an IP address".to_owned(),
        })?,
    };
    Ok(SocketAddr::new(host, port.unwrap_or(10254)))
}

pub(super) fn health_path(text: Option<String>) -> Result<String, Error> {
    let text = text.filter(|text| !text.is_empty()).unwrap_or_else(|| "/healthz".to_owned());
    if text.starts_with('/') {
        return Ok(text);
    }
    let reason = "allowed: a path, as /healthz".to_owned();
    Err(Error::Value { setting: "health-check-path", value: text, reason })
}

/// `None`: the usual one.
pub(super) fn annotations_prefix(text: Option<String>) -> Result<Option<String>, Error> {
    const USUAL: &str = "nginx.ingress.kubernetes.io";
    const OURS: &str = "penstock.dev";
    let Some(value) = text.filter(|text| !text.is_empty() && text != USUAL) else { return Ok(None) };
    let is_label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
    };
    if value != OURS && value.split('.').all(is_label) {
        return Ok(Some(value));
    }
    let reason = format!("allowed: a DNS name without a slash, like {USUAL}, but not {OURS}");
    Err(Error::Value { setting: "annotations-prefix", value, reason })
}

/// As Go writes durations: `30s`, `1m30s`, `0.5h`.
pub(super) fn duration(
    setting: &'static str,
    text: Option<String>,
    default: Duration,
) -> Result<Duration, Error> {
    let Some(text) = text.filter(|text| !text.is_empty()) else { return Ok(default) };
    go_duration(&text).ok_or_else(|| Error::Value {
        setting,
        value: text,
        reason: "allowed: a duration, as 30s or 1m30s".to_owned(),
    })
}

fn go_duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let (mut rest, mut sum) = (text, Duration::ZERO);
    while !rest.is_empty() {
        let number = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (digits, tail) = rest.split_at(number);
        let unit = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit);
        let seconds = match unit {
            "ns" => 1e-9,
            "us" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        let part = Duration::try_from_secs_f64(digits.parse::<f64>().ok()? * seconds).ok()?;
        sum = sum.checked_add(part)?;
        rest = tail;
    }
    (!text.is_empty()).then_some(sum)
}

/// Device and inode of the stream to its journal that systemd gave us.
pub(crate) fn journal_stream() -> Option<String> {
    std::env::var("JOURNAL_STREAM").ok()
}

/// What `PENSTOCK_LOG` lets through, if it is given. The error says why it cannot be read.
pub(crate) fn log_directives() -> Result<Option<String>, String> {
    match std::env::var("PENSTOCK_LOG") {
        Ok(written) => Ok(Some(written)),
        // Not given is no mistake.
        Err(std::env::VarError::NotPresent) => Ok(None),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_are_read_as_kubectl_writes_them() {
        for text in [
            "team",
            "!team",
            "team=shop",
            "team==shop, tier!=web",
            "example.com/team = shop",
            "team in (shop, search),tier notin (web)",
            "env in (,a)",
            "age>3",
        ] {
            assert!(selector(Some(text.to_owned())).is_ok(), "{text}");
        }
        for text in [
            "team in (",
            "team in shop",
            "in (a)",
            "team=a b",
            "-team",
            "team=shop,",
            "te am",
            "a=b=c",
            "team)",
        ] {
            assert!(selector(Some(text.to_owned())).is_err(), "{text}");
        }
    }

    #[test]
    fn durations_are_read_as_go_writes_them() {
        for (text, millis) in
            [("30s", 30_000), ("1m30s", 90_000), ("0.5h", 1_800_000), ("250ms", 250), ("0", 0)]
        {
            assert_eq!(go_duration(text), Some(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "30", "s", "1x", "-1s", "1..2s", "1e9h"] {
            assert_eq!(go_duration(text), None, "{text}");
        }
    }

    #[test]
    fn the_admin_address_is_where_host_and_port_alone_put_it() {
        let admin = |whole: Option<&str>, host: Option<&str>, port| {
            let text = |text: &str| text.to_owned();
            super::admin(whole.map(text), host.map(text), port).map(|addr| addr.to_string()).ok()
        };

        assert_eq!(admin(None, None, None).as_deref(), Some("127.0.0.1:10254"));
        assert_eq!(admin(None, None, Some(10254)).as_deref(), Some("[::]:10254"));
        assert_eq!(admin(None, Some("10.0.0.1"), None).as_deref(), Some("10.0.0.1:10254"));
        assert_eq!(admin(Some("127.0.0.1:1"), Some("10.0.0.1"), Some(2)).as_deref(), Some("127.0.0.1:1"));
        assert_eq!(admin(None, Some("localhost"), None), None);
    }
}

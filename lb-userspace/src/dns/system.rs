//! What the host says about names: `/etc/resolv.conf` and `/etc/hosts`, read when they are needed.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

/// Servers, domains that are searched, and addresses of a name that are looked at.
const SERVERS: usize = 3;
const DOMAINS: usize = 32;
const ADDRESSES: usize = 64;

/// Where the host says it.
#[derive(Debug, Clone)]
pub struct Files {
    /// `resolv.conf`.
    pub resolv: PathBuf,
    /// `hosts`.
    pub hosts: PathBuf,
    /// Port of the servers; 53 but in tests.
    pub port: u16,
}

impl Default for Files {
    /// Those of the host.
    fn default() -> Self {
        Self { resolv: "/etc/resolv.conf".into(), hosts: "/etc/hosts".into(), port: 53 }
    }
}

/// Who is asked, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Settings {
    pub(super) servers: Vec<SocketAddr>,
    search: Vec<String>,
    ndots: usize,
    pub(super) timeout: Duration,
    /// How often each server is asked.
    pub(super) attempts: u32,
}

impl Files {
    /// Without the file the server is the host itself, as with resolv.conf(5).
    pub(super) async fn settings(&self) -> Settings {
        let text = tokio::fs::read_to_string(&self.resolv).await.unwrap_or_default();
        parse(&text, self.port)
    }

    /// Addresses of a name that the host itself has.
    pub(super) async fn addresses(&self, name: &str) -> BTreeSet<IpAddr> {
        let text = tokio::fs::read_to_string(&self.hosts).await.unwrap_or_default();
        let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default());
        let found = lines.filter_map(|line| {
            let mut words = line.split_ascii_whitespace();
            let addr = words.next()?.parse().ok()?;
            words.any(|known| known.trim_end_matches('.').eq_ignore_ascii_case(name)).then_some(addr)
        });
        found.take(ADDRESSES).collect()
    }
}

fn parse(text: &str, port: u16) -> Settings {
    let mut settings = Settings {
        servers: Vec::new(),
        search: Vec::new(),
        ndots: 1,
        timeout: Duration::from_secs(5),
        attempts: 2,
    };
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        match words.next() {
            Some("nameserver") => {
                let server = words.next().and_then(|server| server.parse::<IpAddr>().ok());
                settings.servers.extend(server.map(|server| SocketAddr::new(server, port)));
            }
            Some("search" | "domain") => {
                settings.search = words.map(|domain| domain.trim_matches('.').to_owned()).collect();
                settings.search.retain(|domain| !domain.is_empty());
            }
            Some("options") => words.for_each(|word| option(word, &mut settings)),
            _ => {}
        }
    }
    if settings.servers.is_empty() {
        settings.servers.push(SocketAddr::from(([127, 0, 0, 1], port)));
    }
    settings.servers.truncate(SERVERS);
    settings.search.truncate(DOMAINS);
    settings
}

/// Within the bounds of resolv.conf(5).
fn option(word: &str, settings: &mut Settings) {
    let Some((name, value)) = word.split_once(':') else { return };
    let Ok(value) = value.parse::<u32>() else { return };
    match name {
        "ndots" => settings.ndots = value.min(15) as usize,
        "timeout" => settings.timeout = Duration::from_secs(value.clamp(1, 30).into()),
        "attempts" => settings.attempts = value.clamp(1, 5),
        _ => {}
    }
}

impl Settings {
    /// What a name may be short for, in the order in which it is tried. One that ends with a dot is short for
    /// nothing.
    pub(super) fn candidates(&self, name: &str) -> Vec<String> {
        if name.ends_with('.') {
            return vec![name.to_owned()];
        }
        let longer = self.search.iter().map(|domain| format!("{name}.{domain}"));
        if name.matches('.').count() >= self.ndots {
            [name.to_owned()].into_iter().chain(longer).collect()
        } else {
            longer.chain([name.to_owned()]).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf_says_who_is_asked_and_what_a_name_is_short_for() {
        let text = "# of a cluster\nnameserver 10.96.0.10\nnameserver fd00::a\nnameserver nobody\n\
                    search default.svc.cluster.local svc.cluster.local. \noptions ndots:5 timeout:2 attempts:9 edns0\n";

        let settings = parse(text, 53);

        assert_eq!(settings.servers, ["10.96.0.10:53", "[fd00::a]:53"].map(|addr| addr.parse().unwrap()));
        assert_eq!((settings.timeout, settings.attempts), (Duration::from_secs(2), 5));
        assert_eq!(
            settings.candidates("a.example"),
            ["a.example.default.svc.cluster.local", "a.example.svc.cluster.local", "a.example"]
        );
        assert_eq!(settings.candidates("a.example."), ["a.example."]);
        let usual = parse("search x", 53);
        assert_eq!(usual.servers, ["127.0.0.1:53".parse().unwrap()]);
        assert_eq!(usual.candidates("a.example"), ["a.example", "a.example.x"]);
        assert_eq!(usual.candidates("a"), ["a.x", "a"]);
    }

    #[tokio::test]
    async fn the_hosts_own_names_are_found_in_any_case() {
        let dir = tempfile::tempdir().unwrap();
        let hosts = dir.path().join("hosts");
        std::fs::write(&hosts, "192.0.2.1 a.Example a # 192.0.2.9 b\n2001:db8::1\ta.example.\nnonsense b\n")
            .unwrap();
        let files = Files { hosts, ..Files::default() };

        let found = files.addresses("a.example").await;

        assert_eq!(found, ["192.0.2.1", "2001:db8::1"].map(|addr| addr.parse().unwrap()).into());
        assert!(files.addresses("b").await.is_empty());
    }
}

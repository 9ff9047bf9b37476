//! Problems that only show while the agent runs: what it finds out about names and files.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::model::announce::{Announced, Rival, mac_text};
use crate::model::l7::L7;
use crate::model::upstream::External;
use crate::model::{ObjectId, Problem, Severity};

/// Lines of the access log are lost.
pub(super) fn of_access_log(why: String) -> Problem {
    Problem {
        object: ObjectId { origin: "access log".to_owned(), ..ObjectId::default() },
        severity: Severity::Error,
        reason: "access-log-lost",
        field: String::new(),
        message: format!("cannot be written, lines are lost: {why}"),
        fix: "make room there, or correct access-log-path, stream-access-log-path or syslog-host of the ConfigMap".to_owned(),
    }
}

/// Other hosts on a link that say what only this one should, one for each.
pub(super) fn of_rivals(link: &Announced) -> Vec<Problem> {
    let mut answering: BTreeMap<[u8; 6], Vec<IpAddr>> = BTreeMap::new();
    let mut namesakes = Vec::new();
    for rival in &link.rivals {
        match rival {
            Rival::Answers { mac, vip } => answering.entry(*mac).or_default().push(*vip),
            Rival::Namesake { mac } => namesakes.push(*mac),
        }
    }
    let problem = |reason, message, fix: &str| Problem {
        object: ObjectId { origin: format!("announce on {}", link.interface), ..ObjectId::default() },
        severity: Severity::Error,
        reason,
        field: String::new(),
        message,
        fix: fix.to_owned(),
    };
    let answering = answering.into_iter().filter_map(|(mac, vips)| {
        let (first, more) = vips.split_first()?;
        let more = if more.is_empty() { String::new() } else { format!(" and {} more", more.len()) };
        let message = format!("{} answers for {first}{more}, too: packets go there or here", mac_text(mac));
        let fix = "take the address off that host, or have it keep quiet: arp_ignore=1 and arp_announce=2 where a backend has it on lo, \
                   strictARP of kube-proxy's IPVS, --announce and the same --hash-key where it is an agent";
        Some(problem("answered-by-others", message, fix))
    });
    let namesakes = namesakes.into_iter().map(|mac| {
        let message = format!(
            "{} announces by this agent's name {:?}, too, so neither knows the other and both answer for all VIPs",
            mac_text(mac),
            link.own
        );
        problem("name-of-two", message, "give each agent a --node-name of its own")
    });
    answering.chain(namesakes).collect()
}

/// Services that stand for a name without an address, whatever leads to them: a path, a default backend, an auth service, a copy, a port.
pub(super) fn of_names(l7: &L7) -> Vec<Problem> {
    let mut problems = BTreeMap::new();
    for external in l7.upstreams.values().filter_map(|upstream| upstream.external.as_ref()) {
        let External { service, name: outside, flaw: Some(flaw), port: _ } = external else { continue };
        let (namespace, name) = (service.namespace.clone(), service.name.clone());
        let object = ObjectId { kind: "Service".to_owned(), namespace, name, origin: String::new() };
        problems.entry(service).or_insert_with(|| Problem {
            object,
            severity: Severity::Error,
            reason: "no-address-by-dns",
            field: "spec.externalName".to_owned(),
            message: format!("{outside} has no address: {flaw}; nothing that leads there gets there"),
            fix: "correct the name, or have DNS know it".to_owned(),
        });
    }
    problems.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ObjectName;
    use crate::model::upstream::{Upstream, UpstreamName};

    #[test]
    fn a_rival_is_told_once_however_many_addresses_it_answers_for() {
        let mac = |last| [2, 0, 0, 0, 0, last];
        let answers = |last, vip| Rival::Answers { mac: mac(last), vip: IpAddr::from([203, 0, 113, vip]) };
        let link = Announced {
            interface: "eth0".to_owned(),
            own: "n1".to_owned(),
            rivals: [answers(9, 1), answers(9, 2), answers(10, 3), Rival::Namesake { mac: mac(11) }].into(),
            ..Announced::default()
        };

        let told: Vec<_> = of_rivals(&link).into_iter().map(|it| (it.reason, it.message)).collect();

        assert_eq!(
            told,
            [
                (
                    "answered-by-others",
                    "02:00:00:00:00:09 answers for 203.0.113.1 and 1 more, too: packets go there or here".to_owned()
                ),
                (
                    "answered-by-others",
                    "02:00:00:00:00:0a answers for 203.0.113.3, too: packets go there or here".to_owned()
                ),
                (
                    "name-of-two",
                    "02:00:00:00:00:0b announces by this agent's name \"n1\", too, so neither knows the other and both \
                     answer for all VIPs"
                        .to_owned()
                ),
            ]
        );
    }

    #[test]
    fn a_name_without_an_address_is_a_problem_of_its_service() {
        let upstream = |service: &str, port, flaw: Option<&str>| {
            let external = External {
                service: ObjectName::new("shop", service),
                name: format!("{service}.example"),
                port,
                flaw: flaw.map(str::to_owned),
            };
            let upstream = Upstream { external: Some(external), ..Upstream::default() };
            (UpstreamName(format!("shop-{service}-{port}")), upstream)
        };
        let none = Some("no such name");
        // No location leads to any of them.
        let upstreams = [upstream("out", 80, none), upstream("out", 443, none), upstream("in", 80, None)];
        let l7 = L7 { upstreams: upstreams.into(), ..L7::default() };

        let told: Vec<String> = of_names(&l7).iter().map(ToString::to_string).collect();

        assert_eq!(
            told,
            [
                "Service shop/out: error: spec.externalName: out.example has no address: no such name; nothing that leads \
              there gets there; correct the name, or have DNS know it"
            ]
        );
    }
}

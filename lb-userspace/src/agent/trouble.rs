//! Problems that only show while the agent runs: what it finds out about names and files.

use std::collections::BTreeMap;

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

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

/// Services that stand for a name without an address, with the routes that lead to them.
pub(super) fn of_names(l7: &L7) -> Vec<Problem> {
    let flawed: BTreeMap<_, _> = l7
        .upstreams
        .iter()
        .filter_map(|(name, upstream)| match upstream.external.as_ref()? {
            External { name: outside, flaw: Some(flaw), .. } => Some((name, (outside, flaw))),
            External { flaw: None, .. } => None,
        })
        .collect();
    if flawed.is_empty() {
        return Vec::new();
    }
    let mut problems = BTreeMap::new();
    for location in l7.servers.values().flat_map(|server| &server.locations) {
        let (Some(ingress), Some(backend)) = (&location.ingress, &location.backend) else { continue };
        let Some((outside, flaw)) = flawed.get(&backend.upstream) else { continue };
        let (namespace, name) = (ingress.namespace.clone(), backend.service.clone());
        let object = ObjectId { kind: "Service".to_owned(), namespace, name, origin: String::new() };
        problems.entry(object.clone()).or_insert_with(|| Problem {
            object,
            severity: Severity::Error,
            reason: "no-address-by-dns",
            field: "spec.externalName".to_owned(),
            message: format!("{outside} has no address: {flaw}; requests are answered 503"),
            fix: "correct the name, or have DNS know it".to_owned(),
        });
    }
    problems.into_values().collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::ObjectName;
    use crate::model::l7::{Action, HostMatch, Location, PathMatch, Server, ServicePort};
    use crate::model::upstream::{Upstream, UpstreamName};

    #[test]
    fn a_name_without_an_address_is_a_problem_of_its_service() {
        let (upstream, other) =
            (UpstreamName("shop-out-443".to_owned()), UpstreamName("shop-in-80".to_owned()));
        let location = |service: &str, port: &str, upstream: &UpstreamName| Location {
            path: PathMatch::Prefix("/".to_owned()),
            path_label: "/".to_owned(),
            ingress: Some(ObjectName::new("shop", "web")),
            backend: Some(Arc::new(ServicePort {
                service: service.to_owned(),
                port: port.to_owned(),
                upstream: upstream.clone(),
            })),
            action: Action::Proxy(upstream.clone()),
            filters: Default::default(),
        };
        let all = [("out", "443", &upstream), ("in", "80", &other), ("out", "443", &upstream)];
        let locations = all.map(|(service, port, upstream)| location(service, port, upstream)).to_vec();
        let external =
            External { name: "a.example".to_owned(), port: 443, flaw: Some("no such name".to_owned()) };
        let l7 = L7 {
            servers: [(HostMatch::Any, Server { locations, ..Server::default() })].into(),
            upstreams: [
                (upstream, Upstream { external: Some(external), ..Upstream::default() }),
                (other, Upstream::default()),
            ]
            .into(),
            ..L7::default()
        };

        let told: Vec<String> = of_names(&l7).iter().map(ToString::to_string).collect();

        assert_eq!(
            told,
            [
                "Service shop/out: error: spec.externalName: a.example has no address: no such name; requests are \
              answered 503; correct the name, or have DNS know it"
            ]
        );
    }
}

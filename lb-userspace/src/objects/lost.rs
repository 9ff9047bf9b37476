//! Services that had addresses of the pools and, by no wish of theirs, have them no more.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Service;

use super::{Kind, Objects};
use crate::model::pool::Given;
use crate::model::{ObjectId, ObjectName, Problem, Severity};

/// A problem of the moment for each: what a Service had is known from the state before alone, so no translation
/// says it.
pub fn lost(before: (&Objects, &Arc<Given>), now: (&Objects, &Arc<Given>)) -> Vec<Problem> {
    if Arc::ptr_eq(before.1, now.1) {
        return Vec::new();
    }
    let of = |name: &ObjectName| {
        let (had, has) = (&before.1.get(name)?.addresses, &now.1.get(name)?.addresses);
        let lost: BTreeSet<IpAddr> = had.difference(has).copied().collect();
        let (then, service) = (before.0.services.get(name)?, now.0.services.get(name)?);
        (!lost.is_empty() && wants_alike(&then.object, &service.object))
            .then(|| problem(name, &service.origin, &lost, has))
    };
    before.1.keys().filter_map(of).collect()
}

/// Its author has changed nothing that says which address it is to have.
fn wants_alike(before: &Service, now: &Service) -> bool {
    let (then, labels) = (&before.metadata, &now.metadata.labels);
    before.spec == now.spec && then.annotations == now.metadata.annotations && then.labels == *labels
}

fn problem(name: &ObjectName, origin: &str, lost: &BTreeSet<IpAddr>, has: &BTreeSet<IpAddr>) -> Problem {
    let list =
        |addrs: &BTreeSet<IpAddr>| addrs.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ");
    let now = if has.is_empty() { "none".to_owned() } else { list(has) };
    Problem {
        object: ObjectId {
            kind: Kind::Service.to_string(),
            namespace: name.namespace.clone(),
            name: name.name.clone(),
            origin: origin.to_owned(),
        },
        severity: Severity::Warning,
        reason: "address-lost",
        field: String::new(),
        message: format!(
            "it had {}, which the address pools do not give it any more, and has {now}: what clients had open is gone",
            list(lost)
        ),
        fix: "have names point to the new address, or put the old one back into a pool and ask for it by the annotation \
              penstock.dev/addresses"
            .to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::pool::GivenTo;
    use crate::objects::Sourced;

    fn objects(labels: &str, spec: &str) -> Objects {
        let text = format!("{{metadata: {{name: web, namespace: shop, labels: {labels}}}, spec: {spec}}}");
        let service: Service = serde_saphyr::from_str(&text).expect("a Service");
        let mut objects = Objects::default();
        let sourced = Sourced { object: Arc::new(service), origin: "".into() };
        objects.services.insert(ObjectName::new("shop", "web"), sourced);
        objects
    }

    fn given(addrs: &[&str]) -> Arc<Given> {
        let addresses = addrs.iter().map(|addr| addr.parse().expect("an address")).collect();
        let given = GivenTo { addresses, ..GivenTo::default() };
        Arc::new(Given::from([(ObjectName::new("shop", "web"), given)]))
    }

    #[test]
    fn who_loses_an_address_by_no_wish_of_his_is_told() {
        const HAD: &str = "it had 203.0.113.1, which the address pools do not give it any more, and has ";
        let cases = [
            ("another instead", given(&["203.0.113.2"]), "{}", Some("203.0.113.2")),
            ("none instead", given(&[]), "{}", Some("none")),
            ("one of the other family", given(&["2001:db8::2"]), "{}", Some("2001:db8::2")),
            ("one more", given(&["203.0.113.1", "2001:db8::1"]), "{}", None),
            ("it asks for another", given(&["203.0.113.2"]), "{loadBalancerIP: 203.0.113.2}", None),
            ("there are no pools any more", Arc::default(), "{}", None),
        ];
        for (case, now, spec, expected) in cases {
            let (before, had) = (objects("{}", "{}"), given(&["203.0.113.1"]));

            let lost = lost((&before, &had), (&objects("{}", spec), &now));

            let said: Vec<_> = lost.iter().filter_map(|lost| lost.message.strip_prefix(HAD)).collect();
            let expected = expected.map(|has| format!("{has}: what clients had open is gone"));
            assert_eq!(said, Vec::from_iter(expected.as_deref()), "{case}");
        }
        let (before, had) = (objects("{}", "{}"), given(&["203.0.113.1"]));
        let handed_on = objects("{service.kubernetes.io/service-proxy-name: other}", "{}");
        assert_eq!(lost((&before, &had), (&handed_on, &given(&[]))), [], "it is handed to another proxy");
    }
}

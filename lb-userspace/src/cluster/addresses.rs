//! The addresses that Ingresses are reached by, as other controllers look for them in their status.
//! Pure but for the list of pods.

use std::collections::BTreeSet;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::networking::v1::IngressLoadBalancerIngress;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt as _};

use super::failure::{Failure, Why};
use crate::model::ObjectName;
use crate::model::l4::IpMode;
use crate::model::pool::GivenTo;

/// One address or name.
pub(super) type Address = IngressLoadBalancerIngress;

/// What the API calls the mode of addresses that nodes leave alone.
const PROXY: &str = "Proxy";

/// Labels of a pod that tell it from its siblings.
const OF_ONE_POD: [&str; 5] = [
    "pod-template-hash",
    "pod-template-generation",
    "controller-revision-hash",
    "statefulset.kubernetes.io/pod-name",
    "apps.kubernetes.io/pod-index",
];

/// Addresses or host names as they are written.
pub(super) fn of_texts(texts: &[String]) -> Vec<Address> {
    sorted(texts.iter().map(|text| address(text)))
}

/// Where a Service is reached from outside.
pub(super) fn of_service(service: &Service) -> Vec<Address> {
    let Some(spec) = &service.spec else { return Vec::new() };
    let external = spec.external_ips.iter().flatten().map(|ip| address(ip));
    let own = spec.cluster_ip.iter().filter(|ip| !matches!(ip.as_str(), "" | "None")).map(|ip| address(ip));
    match spec.type_.as_deref() {
        Some("ExternalName") => sorted(spec.external_name.iter().map(|name| address(name))),
        Some("LoadBalancer") => {
            let balancer = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
            let given = balancer.iter().flat_map(|balancer| balancer.ingress.iter().flatten());
            let given = given.map(|given| Address {
                hostname: given.hostname.clone().filter(|name| !name.is_empty()),
                ip: given.ip.clone().filter(|ip| !ip.is_empty()),
                ports: None,
            });
            sorted(given.chain(external))
        }
        Some("NodePort") if spec.external_ips.as_ref().is_some_and(|ips| !ips.is_empty()) => sorted(external),
        _ => sorted(own),
    }
}

/// Addresses of a Service as its status says them. That nodes may have a say in them is what a server that knows of modes
/// fills in.
pub(super) fn balanced(given: &GivenTo) -> serde_json::Value {
    let GivenTo { addresses, mode } = given;
    let entry = |ip: &IpAddr| match mode {
        IpMode::Vip => serde_json::json!({"ip": ip}),
        IpMode::Proxy => serde_json::json!({"ip": ip, "ipMode": PROXY}),
    };
    addresses.iter().map(entry).collect()
}

/// The same for servers that know of no modes.
pub(super) fn without_mode(mut balanced: serde_json::Value) -> serde_json::Value {
    for entry in balanced.as_array_mut().into_iter().flatten().filter_map(serde_json::Value::as_object_mut) {
        entry.remove("ipMode");
    }
    balanced
}

/// Whether the status of a Service says just these. Servers before 1.30 do not keep the mode.
pub(super) fn says(service: &Service, given: &GivenTo) -> bool {
    let balancer = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let written: Option<Vec<IpAddr>> = balancer
        .into_iter()
        .flat_map(|balancer| balancer.ingress.iter().flatten())
        .map(|entry| {
            let is_right = match (entry.ip_mode.as_deref(), given.mode) {
                (None, _) | (Some("VIP"), IpMode::Vip) | (Some(PROXY), IpMode::Proxy) => {
                    entry.hostname.is_none()
                }
                _ => false,
            };
            entry.ip.as_ref().filter(|_| is_right)?.parse().ok()
        })
        .collect();
    written.is_some_and(|written| written.iter().eq(&given.addresses))
}

/// The node's address, the outer one first unless the `internal` one is asked for.
pub(super) fn of_node(node: &Node, internal: bool) -> Option<Address> {
    let addresses = node.status.as_ref()?.addresses.as_ref()?;
    let of = |kind: &str| {
        addresses.iter().find(|address| address.type_ == kind).map(|found| address(&found.address))
    };
    if internal { of("InternalIP") } else { of("ExternalIP").or_else(|| of("InternalIP")) }
}

/// Each once, in an order of their own.
pub(super) fn sorted(addresses: impl Iterator<Item = Address>) -> Vec<Address> {
    let by = |address: &Address| (address.ip.clone(), address.hostname.clone());
    let mut addresses: Vec<Address> = addresses.collect();
    addresses.sort_by_key(by);
    addresses.dedup();
    addresses
}

fn address(text: &str) -> Address {
    if text.parse::<std::net::IpAddr>().is_ok() {
        return Address { ip: Some(text.to_owned()), ..Address::default() };
    }
    Address { hostname: Some(text.to_owned()), ..Address::default() }
}

/// The pods that agents run in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Pods {
    /// Nodes of those that are ready.
    pub(super) nodes: BTreeSet<String>,
    /// There are others than ours that run.
    pub(super) others: bool,
}

/// Our own pod and those like it; `None`: we are in none.
pub(super) async fn pods(client: &Client, own: &ObjectName) -> Result<Option<Pods>, Failure> {
    let api: Api<Pod> = Api::namespaced(client.clone(), &own.namespace);
    let failed = |error: kube::Error| Failure::of(&error);
    let Some(pod) = api.get_opt(&own.name).await.map_err(failed)? else { return Ok(None) };
    let labels = pod.labels().iter().filter(|(name, _)| !OF_ONE_POD.contains(&name.as_str()));
    let labels: Vec<String> = labels.map(|(name, value)| format!("{name}={value}")).collect();
    let siblings = if labels.is_empty() {
        vec![pod]
    } else {
        api.list(&ListParams::default().labels(&labels.join(","))).await.map_err(failed)?.items
    };
    Ok(Some(among(&siblings, &own.name)))
}

fn among(pods: &[Pod], own: &str) -> Pods {
    let mut found = Pods::default();
    for pod in pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()) {
        let status = pod.status.as_ref();
        if status.and_then(|status| status.phase.as_deref()) != Some("Running") {
            continue;
        }
        found.others |= pod.metadata.name.as_deref() != Some(own);
        let conditions = status.and_then(|status| status.conditions.as_ref());
        let is_ready = conditions.into_iter().flatten().any(|it| it.type_ == "Ready" && it.status == "True");
        if is_ready {
            found.nodes.extend(pod.spec.as_ref().and_then(|spec| spec.node_name.clone()));
        }
    }
    found
}

/// What a failure to list pods means: those who may not are in none.
pub(super) fn forgivable(failure: &Failure) -> bool {
    matches!(failure.why, Why::Refused | Why::Missing)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(addresses: &[Address]) -> Vec<String> {
        let text = |address: &Address| address.ip.clone().or(address.hostname.clone()).unwrap_or_default();
        addresses.iter().map(text).collect()
    }

    #[test]
    fn a_service_is_reached_as_its_type_says() {
        for (case, spec, expected) in [
            (
                "ClusterIP",
                serde_json::json!({"type": "ClusterIP", "clusterIP": "10.0.0.9"}),
                vec!["10.0.0.9"],
            ),
            ("headless", serde_json::json!({"clusterIP": "None"}), vec![]),
            (
                "NodePort",
                serde_json::json!({"type": "NodePort", "clusterIP": "10.0.0.9", "externalIPs": ["192.0.2.2", "192.0.2.1"]}),
                vec!["192.0.2.1", "192.0.2.2"],
            ),
            (
                "LoadBalancer",
                serde_json::json!({"type": "LoadBalancer", "clusterIP": "10.0.0.9", "externalIPs": ["192.0.2.1"]}),
                vec!["lb.example.com", "192.0.2.1", "203.0.113.1"],
            ),
            (
                "ExternalName",
                serde_json::json!({"type": "ExternalName", "externalName": "a.example.com"}),
                vec!["a.example.com"],
            ),
        ] {
            let status = serde_json::json!({"loadBalancer": {"ingress": [{"ip": "203.0.113.1"}, {"hostname": "lb.example.com"}]}});
            let service = serde_json::json!({"metadata": {}, "spec": spec, "status": status});
            let service: Service = serde_json::from_value(service).expect("a Service");
            assert_eq!(texts(&of_service(&service)), expected, "{case}");
        }
    }

    #[test]
    fn a_status_is_right_when_it_says_just_the_addresses_given() {
        let addresses = ["203.0.113.1", "2001:db8::1"].map(|ip| ip.parse().expect("an address"));
        let [vip, proxy] =
            [IpMode::Vip, IpMode::Proxy].map(|mode| GivenTo { addresses: addresses.into(), mode });
        let of_modes = |modes: [&str; 2]| serde_json::json!([{"ip": "203.0.113.1", "ipMode": modes[0]}, {"ip": "2001:db8::1", "ipMode": modes[1]}]);
        for (case, as_vip, as_proxy, ingress) in [
            ("as it is written", true, true, balanced(&vip)),
            ("as it is written, too", false, true, balanced(&proxy)),
            ("as it is written where no modes are known", true, true, without_mode(balanced(&proxy))),
            ("with the mode", true, false, of_modes(["VIP", "VIP"])),
            ("with the other mode", false, true, of_modes(["Proxy", "Proxy"])),
            ("of both modes", false, false, of_modes(["Proxy", "VIP"])),
            ("one of two", false, false, serde_json::json!([{"ip": "203.0.113.1"}])),
            (
                "a name, too",
                false,
                false,
                serde_json::json!([{"ip": "203.0.113.1", "hostname": "a.example.com"}, {"ip": "2001:db8::1"}]),
            ),
            ("nothing", false, false, serde_json::json!([])),
        ] {
            let service =
                serde_json::json!({"metadata": {}, "status": {"loadBalancer": {"ingress": ingress}}});
            let service: Service = serde_json::from_value(service).expect("a Service");
            assert_eq!([says(&service, &vip), says(&service, &proxy)], [as_vip, as_proxy], "{case}");
        }
    }

    #[test]
    fn of_a_node_the_outer_address_counts_unless_the_inner_is_asked_for() {
        let addresses = serde_json::json!([{"type": "InternalIP", "address": "10.0.0.1"},
            {"type": "ExternalIP", "address": "192.0.2.1"}]);
        let node = serde_json::json!({"metadata": {}, "status": {"addresses": addresses}});
        let node: Node = serde_json::from_value(node).expect("a Node");

        assert_eq!(of_node(&node, false).and_then(|address| address.ip).as_deref(), Some("192.0.2.1"));
        assert_eq!(of_node(&node, true).and_then(|address| address.ip).as_deref(), Some("10.0.0.1"));
    }

    #[test]
    fn pods_that_end_or_are_not_ready_bring_no_address() {
        let pod = |name: &str, phase: &str, ready: &str, ending: bool| -> Pod {
            let mut metadata = serde_json::json!({"name": name});
            if ending {
                metadata["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
            }
            let status =
                serde_json::json!({"phase": phase, "conditions": [{"type": "Ready", "status": ready}]});
            let spec = serde_json::json!({"nodeName": format!("node-of-{name}"), "containers": []});
            let pod = serde_json::json!({"metadata": metadata, "spec": spec, "status": status});
            serde_json::from_value(pod).expect("a Pod")
        };
        let ours = pod("ours", "Running", "True", false);
        let rest = [
            pod("starts", "Pending", "False", false),
            pod("ends", "Running", "True", true),
            pod("ill", "Running", "False", false),
        ];

        let alone = among(&[std::slice::from_ref(&ours), &rest[..2]].concat(), "ours");
        let together = among(&[&[ours], &rest[..]].concat(), "ours");

        let nodes = BTreeSet::from(["node-of-ours".to_owned()]);
        assert_eq!(alone, Pods { nodes: nodes.clone(), others: false });
        assert_eq!(together, Pods { nodes, others: true });
    }
}

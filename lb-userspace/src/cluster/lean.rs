//! Objects without what nobody here reads: most of the bytes of a large cluster, and most of its
//! changes.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, Node, NodeSpec, NodeStatus, Secret, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::{Ingress, IngressClass};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::objects::{self, LEAVING_TAINTS, Object};

/// `kubectl apply` keeps a copy of the whole object there.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Without its status, which nothing depends on and we ourselves write.
pub(super) fn ingress(mut ingress: Ingress) -> Object {
    metadata(&mut ingress.metadata);
    ingress.status = None;
    Object::Ingress(without_spare_room(&ingress))
}

pub(super) fn ingress_class(mut class: IngressClass) -> Object {
    metadata(&mut class.metadata);
    Object::IngressClass(without_spare_room(&class))
}

pub(super) fn service(mut service: Service) -> Object {
    let writers = objects::writers(service.metadata.managed_fields.take());
    metadata(&mut service.metadata);
    service.metadata.managed_fields = writers;
    if let Some(status) = &mut service.status {
        status.conditions = None;
    }
    Object::Service(without_spare_room(&service))
}

/// Without the pods behind the endpoints.
pub(super) fn endpoint_slice(mut slice: EndpointSlice) -> Object {
    metadata(&mut slice.metadata);
    // Set anew with every change of its pods, whether or not anything came of it.
    if let Some(annotations) = &mut slice.metadata.annotations {
        annotations.remove("endpoints.kubernetes.io/last-change-trigger-time");
    }
    for endpoint in slice.endpoints.iter_mut().flatten() {
        endpoint.target_ref = None;
        endpoint.hostname = None;
        endpoint.deprecated_topology = None;
    }
    Object::EndpointSlice(without_spare_room(&slice))
}

pub(super) fn secret(mut secret: Secret) -> Object {
    metadata(&mut secret.metadata);
    Object::Secret(without_spare_room(&secret))
}

pub(super) fn config_map(mut map: ConfigMap) -> Object {
    metadata(&mut map.metadata);
    Object::ConfigMap(without_spare_room(&map))
}

/// Its addresses, what it is called and whether it leaves; the rest changes all the time.
pub(super) fn node(mut node: Node) -> Object {
    metadata(&mut node.metadata);
    let taints = node.spec.and_then(|spec| spec.taints).unwrap_or_default();
    let taints: Vec<_> =
        taints.into_iter().filter(|taint| LEAVING_TAINTS.contains(&taint.key.as_str())).collect();
    node.spec = (!taints.is_empty()).then(|| NodeSpec { taints: Some(taints), ..NodeSpec::default() });
    node.status =
        node.status.map(|status| NodeStatus { addresses: status.addresses, ..NodeStatus::default() });
    Object::Node(without_spare_room(&node))
}

/// A copy: what was read piece by piece has room for half as much again, and stands between what was read beside it and
/// is gone by now.
fn without_spare_room<T: Clone>(object: &T) -> Arc<T> {
    Arc::new(object.clone())
}

/// The version goes too: two versions that say the same are the same to us.
fn metadata(metadata: &mut ObjectMeta) {
    metadata.managed_fields = None;
    metadata.resource_version = None;
    metadata.generation = None;
    metadata.self_link = None;
    metadata.owner_references = None;
    metadata.finalizers = None;
    if let Some(annotations) = &mut metadata.annotations {
        annotations.remove(LAST_APPLIED);
    }
    if metadata.annotations.as_ref().is_some_and(std::collections::BTreeMap::is_empty) {
        metadata.annotations = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_has_no_more_room_than_it_takes() {
        let addresses = ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5"];
        let slice = serde_json::json!({
            "metadata": {"name": "s"},
            "addressType": "IPv4",
            "endpoints": addresses.map(|address| serde_json::json!({"addresses": [address]})),
        });

        // From text, as it comes: nobody says beforehand how many there are.
        let slice = serde_json::from_str(&slice.to_string()).expect("an EndpointSlice");
        let slice = endpoint_slice(slice);

        let Object::EndpointSlice(slice) = slice else { panic!("an EndpointSlice") };
        let endpoints = slice.endpoints.as_ref().expect("endpoints");
        assert_eq!((endpoints.len(), endpoints.capacity()), (5, 5));
        assert!(endpoints.iter().all(|endpoint| endpoint.addresses.capacity() == 1));
    }

    #[test]
    fn what_nobody_reads_makes_no_difference() {
        let node_of = |version: &str, free: &str| {
            let node = serde_json::json!({
                "metadata": {"name": "n", "resourceVersion": version, "managedFields": [{"manager": version}],
                    "annotations": {LAST_APPLIED: version}, "labels": {"topology.kubernetes.io/zone": "z"}},
                "spec": {"podCIDR": "10.0.0.0/24", "taints": [{"key": version, "effect": "NoSchedule"}]},
                "status": {"addresses": [{"type": "InternalIP", "address": "10.0.0.1"}],
                    "allocatable": {"memory": free}},
            });
            super::node(serde_json::from_value(node).expect("a Node"))
        };

        assert_eq!(node_of("1", "8Gi"), node_of("2", "7Gi"));
        let Object::Node(node) = node_of("1", "8Gi") else { panic!("a Node") };
        assert_eq!(node.metadata.annotations, None);
        assert_eq!(node.status.as_ref().and_then(|status| status.addresses.as_ref()).map(Vec::len), Some(1));
        assert!(node.metadata.labels.is_some());
    }
}

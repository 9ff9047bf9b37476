//! A cluster as the goals have it, in a real API server: to each Ingress two Services and twenty endpoints.
//!
//! Half of the Services are those of Ingresses, half have an address of a pool. One in twenty has 105 endpoints, which
//! takes two slices, the others have five. The endpoints are on twenty nodes, of which the first is ours.

use std::sync::Arc;

use anyhow::{Context, Result};
use kube::Client;
use serde_json::{Value, json};

use super::super::cluster::Cluster;

/// Where every endpoint serves.
pub const PORT: u16 = 8080;
/// The pool of the Services with addresses.
pub const POOL: &str = "198.18.0.0/16";
/// Endpoints are in here.
pub const PODS: &str = "10.200.0.0/16";
/// Namespace and name of the ConfigMap with the pool.
pub const POOLS: &str = "ns-0/pools";
/// Namespace and name of the ConfigMap with the settings.
pub const SETTINGS: &str = "ns-0/settings";
/// Nodes that endpoints are on.
pub const NODES: usize = 20;

const PER_NAMESPACE: usize = 50;
const PER_SLICE: usize = 100;
/// Services in a row that have 200 endpoints together: one large, the others small.
const ROW: usize = 20;
const LARGE: usize = 105;
const SMALL: usize = 5;
/// Created at a time.
const AT_ONCE: usize = 16;

/// How large it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct World {
    /// Ingresses.
    pub ingresses: usize,
}

/// One slice: its Service and its place among that one's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slice {
    service: usize,
    number: usize,
}

impl World {
    /// All Services.
    pub fn services(self) -> usize {
        2 * self.ingresses
    }

    /// All endpoints.
    pub fn endpoints(self) -> usize {
        (0..self.services()).map(endpoints).sum()
    }

    /// All slices.
    pub fn slices(self) -> Vec<Slice> {
        let of = |service| {
            (0..endpoints(service).div_ceil(PER_SLICE)).map(move |number| Slice { service, number })
        };
        (0..self.services()).flat_map(of).collect()
    }

    /// The only slice of the Service of this Ingress, which is none of those with 105 endpoints.
    pub fn only_slice(self, ingress: usize) -> Slice {
        assert!(!ingress.is_multiple_of(ROW), "a large Service has two slices");
        Slice { service: ingress, number: 0 }
    }

    /// Has the API server hold all of it.
    pub async fn fill(self, client: &Client) -> Result<()> {
        let namespaces = (0..self.ingresses.div_ceil(PER_NAMESPACE)).map(|number| {
            ("/api/v1/namespaces".to_owned(), json!({"metadata": {"name": format!("ns-{number}")}}))
        });
        create(client, namespaces.collect()).await?;
        let nodes = (0..NODES).map(|number| {
            let annotations = json!({"penstock.dev/tunnel-address": node_address(number)});
            let metadata = json!({"name": node(number), "annotations": annotations});
            ("/api/v1/nodes".to_owned(), json!({"metadata": metadata}))
        });
        create(client, nodes.collect()).await?;
        let class = json!({"metadata": {"name": "nginx"}, "spec": {"controller": "k8s.io/ingress-nginx"}});
        let (namespace, name) = POOLS.split_once('/').context("a namespace")?;
        let pool = json!({"metadata": {"name": name}, "data": {"bench": format!("addresses: [{POOL}]")}});
        let (_, settings) = SETTINGS.split_once('/').context("a namespace")?;
        // The load keeps its connections.
        let settings = json!({"metadata": {"name": settings}, "data": {"keep-alive-requests": "100000000"}});
        let few = [
            ("/apis/networking.k8s.io/v1/ingressclasses".to_owned(), class),
            (format!("/api/v1/namespaces/{namespace}/configmaps"), pool),
            (format!("/api/v1/namespaces/{namespace}/configmaps"), settings),
        ];
        create(client, few.into()).await?;
        create(client, (0..self.services()).map(|service| self.service(service)).collect()).await?;
        create(client, self.slices().into_iter().map(|slice| self.slice(slice)).collect()).await?;
        let ingresses: Result<Vec<_>> = (0..self.ingresses).map(|index| self.ingress(index)).collect();
        create(client, ingresses?).await
    }

    fn service(self, service: usize) -> (String, Value) {
        let ports = json!([{"name": "http", "port": 80, "targetPort": PORT}]);
        let mut spec = json!({"selector": {"app": self.name(service)}, "ports": ports});
        if service >= self.ingresses {
            spec["type"] = json!("LoadBalancer");
            spec["allocateLoadBalancerNodePorts"] = json!(false);
        }
        let path = format!("/api/v1/namespaces/{}/services", self.namespace(service));
        (path, json!({"metadata": {"name": self.name(service)}, "spec": spec}))
    }

    fn slice(self, slice: Slice) -> (String, Value) {
        let labels = json!({
            "kubernetes.io/service-name": self.name(slice.service),
            "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
        });
        let body = json!({
            "metadata": {"name": self.slice_name(slice), "labels": labels},
            "addressType": "IPv4",
            "ports": [{"name": "http", "port": PORT, "protocol": "TCP"}],
            "endpoints": self.endpoints_of(slice),
        });
        (
            format!("/apis/discovery.k8s.io/v1/namespaces/{}/endpointslices", self.namespace(slice.service)),
            body,
        )
    }

    /// Where a slice is changed.
    pub fn slice_path(self, slice: Slice) -> String {
        let (namespace, name) = (self.namespace(slice.service), self.slice_name(slice));
        format!("/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices/{name}")
    }

    /// The endpoints of a slice at the beginning.
    fn endpoints_of(self, slice: Slice) -> Vec<Value> {
        let before = slice.service / ROW * (LARGE + (ROW - 1) * SMALL);
        let in_row = slice.service % ROW;
        let in_row = if in_row == 0 { 0 } else { LARGE + (in_row - 1) * SMALL };
        let first = before + in_row + slice.number * PER_SLICE;
        let count = (endpoints(slice.service) - slice.number * PER_SLICE).min(PER_SLICE);
        (first..first + count).map(endpoint).collect()
    }

    /// A patch of a slice, as if one pod was replaced: `change` tells it from all other changes.
    pub fn replaced(self, slice: Slice, change: usize) -> Value {
        let mut all = self.endpoints_of(slice);
        if let Some(first) = all.first_mut() {
            *first = endpoint(self.fresh(change));
        }
        json!({"endpoints": all})
    }

    /// A patch of a slice to one endpoint alone, and the address of that.
    pub fn single(self, change: usize) -> (Value, String) {
        let number = self.fresh(change);
        (json!({"endpoints": [endpoint(number)]}), address(number))
    }

    /// An endpoint that is none of those of the beginning.
    fn fresh(self, change: usize) -> usize {
        let used = self.endpoints();
        used + change % (250 * 250 - used)
    }

    fn ingress(self, index: usize) -> Result<(String, Value)> {
        let text = Cluster { ingresses: self.ingresses }.ingress(index, "60");
        let body: Value =
            serde_saphyr::from_str(text.trim_start_matches("---\n")).context("read an Ingress")?;
        Ok((format!("/apis/networking.k8s.io/v1/namespaces/{}/ingresses", self.namespace(index)), body))
    }

    fn name(self, service: usize) -> String {
        match service.checked_sub(self.ingresses) {
            None => format!("app-{service}"),
            Some(number) => format!("lb-{number}"),
        }
    }

    fn slice_name(self, slice: Slice) -> String {
        format!("{}-{}", self.name(slice.service), slice.number)
    }

    fn namespace(self, service: usize) -> String {
        format!("ns-{}", service % self.ingresses / PER_NAMESPACE)
    }
}

/// Name of a node.
pub fn node(number: usize) -> String {
    format!("node-{number}")
}

/// Where a node takes tunnelled packets.
pub fn node_address(number: usize) -> String {
    format!("10.1.0.{}", 10 + number)
}

fn endpoints(service: usize) -> usize {
    if service.is_multiple_of(ROW) { LARGE } else { SMALL }
}

fn address(number: usize) -> String {
    format!("10.200.{}.{}", number / 250, 1 + number % 250)
}

/// As a controller writes it for a pod.
fn endpoint(number: usize) -> Value {
    json!({
        "addresses": [address(number)],
        "conditions": {"ready": true, "serving": true, "terminating": false},
        "nodeName": node(number % NODES),
        "targetRef": {"kind": "Pod", "name": format!("pod-{number}"), "namespace": "ns-0"},
    })
}

async fn create(client: &Client, objects: Vec<(String, Value)>) -> Result<()> {
    let objects = Arc::new(objects);
    let mut tasks = tokio::task::JoinSet::new();
    for first in 0..AT_ONCE {
        let (client, objects) = (client.clone(), Arc::clone(&objects));
        tasks.spawn(async move {
            for (path, body) in objects.iter().skip(first).step_by(AT_ONCE) {
                send(&client, http::Request::post(path), "application/json", body).await?;
            }
            Ok::<(), anyhow::Error>(())
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended.context("a task that creates")??;
    }
    Ok(())
}

/// Merges a patch into the object at `path`.
pub async fn patch(client: &Client, path: &str, body: &Value) -> Result<()> {
    send(client, http::Request::patch(path), "application/merge-patch+json", body).await
}

async fn send(client: &Client, request: http::request::Builder, kind: &str, body: &Value) -> Result<()> {
    let request = request.header("content-type", kind).body(serde_json::to_vec(body)?)?;
    let what = request.uri().to_string();
    client.request_text(request).await.map(drop).with_context(|| format!("write {what}"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_thousand_ingresses_have_what_the_goals_say() {
        let world = World { ingresses: 1000 };

        let slices = world.slices();
        let all: Vec<Value> = slices.iter().flat_map(|slice| world.endpoints_of(*slice)).collect();
        let addresses: BTreeSet<&str> = all.iter().filter_map(|it| it["addresses"][0].as_str()).collect();

        assert_eq!((world.services(), world.endpoints(), slices.len()), (2000, 20_000, 2100));
        assert_eq!((all.len(), addresses.len()), (20_000, 20_000));
        assert!(slices.iter().all(|slice| world.endpoints_of(*slice).len() <= 100));
        assert!(!addresses.contains(world.single(0).1.as_str()));
    }
}

//! The Kubernetes objects we read, typed, with the place each came from.
//!
//! `manifests` (and later `cluster`) produce them, `translate` reads them, `agent` carries them;
//! no other room sees a Kubernetes type.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ConfigMap, Secret, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::{Ingress, IngressClass};

use crate::model::ObjectName;

/// Everything known, by kind and name.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Objects {
    /// `networking.k8s.io/v1` Ingress.
    pub ingresses: BTreeMap<ObjectName, Sourced<Ingress>>,
    /// `networking.k8s.io/v1` IngressClass, by name.
    pub ingress_classes: BTreeMap<String, Sourced<IngressClass>>,
    /// `v1` Service.
    pub services: BTreeMap<ObjectName, Sourced<Service>>,
    /// `discovery.k8s.io/v1` EndpointSlice.
    pub endpoint_slices: BTreeMap<ObjectName, Sourced<EndpointSlice>>,
    /// `v1` Secret.
    pub secrets: BTreeMap<ObjectName, Sourced<Secret>>,
    /// `v1` ConfigMap.
    pub config_maps: BTreeMap<ObjectName, Sourced<ConfigMap>>,
}

/// An object and where it was read.
#[derive(Debug, Clone, PartialEq)]
pub struct Sourced<T> {
    /// The object.
    pub object: T,
    /// File and document, e.g. `shop/ingress.yaml#2`; empty for objects of a cluster.
    pub origin: String,
}

//! PURE: objects to snapshot. Total and deterministic: the same objects give the same snapshot and
//! the same problems; what is wrong costs the part of the object that holds it.
//!
//! Kubernetes types enter here and stop here. No client, clock, file, runtime or logging.

mod admit;
mod annotations;
mod certificates;
mod classes;
mod config;
mod endpoints;
mod findings;
mod ingress;
mod names;
mod routes;
mod services;
mod upstreams;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::model::{ObjectName, Problem, Snapshot};
use crate::objects::Objects;

pub use admit::admit;
pub use annotations::table::{Annotation, Status, TABLE};

/// What the process was started with, as far as it decides what objects mean.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Ports of the plain HTTP listeners on the node's own addresses; punted.
    pub http_ports: BTreeSet<u16>,
    /// Ports of the TLS listeners on the node's own addresses; punted.
    pub https_ports: BTreeSet<u16>,
    /// `--publish-service`; `None`: the ingress Service is recognised by name and labels.
    pub publish_service: Option<ObjectName>,
    /// `--default-backend-service`; its first port.
    pub default_backend_service: Option<ObjectName>,
    /// `--default-ssl-certificate`.
    pub default_ssl_certificate: Option<ObjectName>,
    /// `--ingress-class`: the class name that is ours without an IngressClass object.
    pub ingress_class: String,
    /// `--controller-class`: `spec.controller` of the IngressClasses that are ours.
    pub controller_class: String,
    /// `--watch-ingress-without-class`.
    pub watch_ingress_without_class: bool,
    /// `--disable-catch-all`: ignore every Ingress with a `spec.defaultBackend`.
    pub disable_catch_all: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            http_ports: BTreeSet::from([80]),
            https_ports: BTreeSet::from([443]),
            publish_service: None,
            default_backend_service: None,
            default_ssl_certificate: None,
            ingress_class: "nginx".to_owned(),
            controller_class: "k8s.io/ingress-nginx".to_owned(),
            watch_ingress_without_class: false,
            disable_catch_all: false,
        }
    }
}

/// What objects come to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Translated {
    /// Desired state.
    pub snapshot: Snapshot,
    /// What could not be honoured, or surprises; sorted by object.
    pub problems: Vec<Problem>,
}

/// The annotations of each Ingress that are honoured, for reports.
pub fn honoured_annotations(objects: &Objects) -> BTreeMap<ObjectName, Vec<&'static str>> {
    let ingresses = objects.ingresses.iter();
    ingresses.map(|(name, sourced)| (name.clone(), annotations::honoured(&sourced.object.metadata))).collect()
}

/// The desired state that these objects describe.
pub fn translate(objects: &Objects, options: &Options) -> Translated {
    let mut findings = findings::Findings::default();
    let slices = endpoints::Slices::new(objects, &mut findings);
    let l4 = services::translate(objects, &slices, options, &mut findings);
    let l7 = ingress::translate(objects, &slices, options, &mut findings);
    Translated { snapshot: Snapshot { l4: Arc::new(l4), l7: Arc::new(l7) }, problems: findings.into_sorted() }
}

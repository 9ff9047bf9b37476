//! PURE: objects to snapshot. Total and deterministic: the same objects give the same snapshot and
//! the same problems; what is wrong costs the part of the object that holds it.
//!
//! Kubernetes types enter here and stop here. No client, clock, file, runtime or logging.

mod admit;
mod annotations;
mod certificates;
mod checks;
mod choice;
mod ciphers;
mod classes;
mod client_auth;
mod config;
mod endpoints;
mod findings;
mod header_map;
#[cfg(test)]
mod histories;
mod ingress;
mod mode;
mod modes;
mod names;
mod nodes;
mod ours;
mod parts;
mod passwords;
mod pools;
mod references;
mod routes;
mod services;
mod streams;
mod template;
mod translator;
mod upstream_tls;
mod upstreams;
mod view;
mod vips;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Service;

use crate::model::pool::Given;
use crate::model::{Names, ObjectName, Problems, Snapshot};
use crate::objects::{Admission, Key, Kind, Objects, Renamed};

pub use annotations::table::{Annotation, Scope, Status, TABLE, Value};
pub use annotations::value::{boolean, check as check_value};
pub use annotations::{PREFIX, as_read, known};
pub use classes::Served;
pub use config::table::{ConfigKey, Fate, Form, KEYS, KeyStatus};
pub use config::{controller, key_statuses};
pub use findings::MISSING_SECRET;
pub use mode::{KEY as MODE_KEY, of_words as mode};
pub use passwords::{Form as PasswordForm, Read as Passwords, read as read_passwords};
pub use references::{references, services as named_services};
pub use template::is_location;
pub use translator::Translator;

/// What an object has to be to replace its last good version, where no flag names a ConfigMap.
pub const ADMISSION: Admission = Admission {
    alone: admit::admit,
    among: config::judge,
    config_map: None,
    address_pools: None,
    renamed: None,
};

/// The same, as the flags have it.
pub fn admission(options: &Options) -> Admission {
    Admission {
        config_map: options.config_map.clone(),
        address_pools: pools::named(options),
        renamed: renamed(options),
        ..ADMISSION
    }
}

/// How annotations are called in the objects, where that is not the usual way. [`admission`] has them read under
/// the usual prefix, and what [`translate`] says names them as they are written.
pub fn renamed(options: &Options) -> Option<Renamed> {
    options.annotations_prefix.as_ref().map(|written| Renamed::new(PREFIX, written))
}

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
    /// `--ingress-class-by-name`: IngressClasses of the name `ingress_class` are ours, whatever
    /// their controller.
    pub ingress_class_by_name: bool,
    /// `--configmap`; `None`: the first one by namespace that is called as ingress-nginx's chart does.
    pub config_map: Option<ObjectName>,
    /// `--tcp-services-configmap`: TCP ports beside http and https.
    pub tcp_services: Option<ObjectName>,
    /// `--udp-services-configmap`.
    pub udp_services: Option<ObjectName>,
    /// `--address-pools`: the ConfigMap that gives addresses to Services.
    pub address_pools: Option<ObjectName>,
    /// That which is meant without the flag; `None`: the one of its usual name beside the controller's.
    pub own_pools: Option<ObjectName>,
    /// The name under which agents like this one write the status of Services; `None`: nobody can tell who wrote it, as
    /// with files, and it counts as ours.
    pub writer: Option<String>,
    /// Who serves them.
    pub streams: StreamsBy,
    /// Which classes there are.
    pub classes: Classes,
    /// `--watch-ingress-without-class`.
    pub watch_ingress_without_class: bool,
    /// `--disable-catch-all`: ignore every Ingress with a `spec.defaultBackend`.
    pub disable_catch_all: bool,
    /// `--node-name`: the node we run on, as endpoints and Node objects name it; `None`: no
    /// endpoint is local.
    pub node: Option<String>,
    /// `--load-balancer-class`: serve the addresses of Services of this class alone; `None`: of
    /// those without a class and of our own.
    pub load_balancer_class: Option<String>,
    /// `--disable-svc-external-name`: ExternalName Services have no endpoints.
    pub disable_external_names: bool,
    /// `--enable-topology-aware-routing`: requests go to the endpoints whose hints name our zone.
    pub routes_by_zone: bool,
    /// `--external-ips`: serve `spec.externalIPs`, which any author of a Service may claim.
    pub external_ips: bool,
    /// Serve what the annotation `penstock.dev/vips` names, and without address pools what a Service asks for: whoever
    /// writes Services is trusted with addresses, as with files, or by [`Options::external_ips`].
    pub vips: bool,
    /// `--enable-ssl-passthrough`: honour the annotation `ssl-passthrough`.
    pub enable_ssl_passthrough: bool,
    /// `--snippet-policy`.
    pub snippets: SnippetPolicy,
    /// `--annotations-prefix`, where it is another than [`PREFIX`].
    pub annotations_prefix: Option<String>,
}

/// Which IngressClasses there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Classes {
    /// The usual ones, where none is written; and the default one is everybody's who names none.
    #[default]
    Implied,
    /// Those that are written. The API server has named the default one wherever it is to be.
    Written,
}

/// Who serves the ports that `--tcp-services-configmap` and `--udp-services-configmap` name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StreamsBy {
    /// The kernel part, on the addresses of the ingress Service.
    #[default]
    Kernel,
    /// The proxy, beside http and https: there is no kernel part.
    Proxy,
}

/// What becomes of an Ingress with nginx configuration in it, which is never run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SnippetPolicy {
    /// Its paths answer 503: the snippet may be what keeps somebody out.
    #[default]
    Refuse,
    /// It is served as if it had none.
    Ignore,
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
            ingress_class_by_name: false,
            config_map: None,
            tcp_services: None,
            udp_services: None,
            address_pools: None,
            own_pools: None,
            writer: None,
            streams: StreamsBy::Kernel,
            classes: Classes::Implied,
            watch_ingress_without_class: false,
            disable_catch_all: false,
            node: None,
            load_balancer_class: None,
            disable_external_names: false,
            routes_by_zone: false,
            external_ips: false,
            vips: true,
            enable_ssl_passthrough: false,
            snippets: SnippetPolicy::Refuse,
            annotations_prefix: None,
        }
    }
}

/// What objects come to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Translated {
    /// Desired state.
    pub snapshot: Snapshot,
    /// What could not be honoured, or surprises; sorted by object.
    pub problems: Problems,
    /// Addresses that pools give to Services; without pools, of none.
    pub given: Arc<Given>,
    /// Ingresses of ours.
    pub served: Names,
}

/// The annotations of each object that are honoured, for reports.
pub fn honoured_annotations(objects: &Objects) -> BTreeMap<Key, Vec<&'static str>> {
    let mut honoured = BTreeMap::new();
    for (name, sourced) in &objects.ingresses {
        let mut names = annotations::honoured(&sourced.object.metadata);
        names.extend(ours::honoured(&sourced.object.metadata, Kind::Ingress));
        honoured.insert(Key { kind: Kind::Ingress, name: name.clone() }, names);
    }
    let services = objects.services.iter().map(|(name, s)| (Kind::Service, name.clone(), &s.object.metadata));
    let slices = objects.endpoint_slices.iter();
    let slices = slices.map(|(name, s)| (Kind::EndpointSlice, name.clone(), &s.object.metadata));
    let nodes = objects.nodes.iter();
    let nodes = nodes.map(|(name, s)| (Kind::Node, ObjectName::new("", name), &s.object.metadata));
    for (kind, name, metadata) in services.chain(slices).chain(nodes) {
        honoured.insert(Key { kind, name }, ours::honoured(metadata, kind));
    }
    honoured
}

/// Ingresses of ours in the order in which they win conflicts; what is said about the others is not
/// repeated.
pub fn served<'a>(objects: &'a Objects, options: &Options) -> Vec<Served<'a>> {
    classes::served(objects, options, &mut findings::Findings::default())
}

/// Whether Ingress traffic arrives through this Service.
pub fn is_ingress_service(name: &ObjectName, service: &Service, options: &Options) -> bool {
    services::is_ingress(name, service, options)
}

/// The desired state that these objects describe.
pub fn translate(objects: &Objects, options: &Options) -> Translated {
    Translator::default().translate(objects, options)
}

//! The Kubernetes objects we read, typed, with the place each came from.
//!
//! `manifests` and `cluster` produce them, `translate` reads them, `agent` carries them;
//! no other room sees a Kubernetes type.

mod admission;
mod bystander;
mod lost;
mod renamed;
mod writers;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use k8s_openapi::api::core::v1::{ConfigMap, Node, Secret, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::{Ingress, IngressClass};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::model::{ObjectId, ObjectName, Problem};

pub use admission::{Admission, Judge, panicked};
pub use bystander::{Bystander, Container};
pub use lost::lost;
pub use renamed::Renamed;
pub use writers::{writer, writers, wrote};

/// Secrets and ConfigMaps that something names: of these kinds a cluster holds more than concerns us.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct References {
    /// Secrets.
    pub secrets: BTreeSet<ObjectName>,
    /// ConfigMaps.
    pub config_maps: BTreeSet<ObjectName>,
    /// Those of them that the controller's ConfigMap names beside itself: they are as much the operator's.
    pub of_settings: BTreeSet<ObjectName>,
    /// ConfigMaps of this name in whatever namespace.
    pub config_maps_called: BTreeSet<String>,
}

/// Finds what objects name.
pub type Refer = Arc<dyn Fn(&Objects) -> References + Send + Sync>;

/// What a source says, after falling back to last good versions.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Loaded {
    /// Objects in force.
    pub objects: Objects,
    /// What could not be read or was not admitted.
    pub problems: Vec<Problem>,
    /// Objects of which an earlier version is in force.
    pub kept: Vec<Kept>,
}

/// An object whose newest version cannot be used.
#[derive(Debug, Clone, PartialEq)]
pub struct Kept {
    /// The object, and where the version in force came from.
    pub object: ObjectId,
    /// Since when.
    pub since: SystemTime,
}

/// Objects of one kind. A copy shares everything with its original, so it costs nothing, and what
/// differs between the two is found without a look at what they share.
pub type Map<K, T> = imbl::OrdMap<K, Sourced<T>>;

/// Taints of a node that will be gone in a moment, whatever runs on it. Not those of a drain: such a node may come
/// back, and the agent stays on it meanwhile.
pub const LEAVING_TAINTS: [&str; 2] = ["ToBeDeletedByClusterAutoscaler", "node.kubernetes.io/out-of-service"];

/// Everything known, by kind and name.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Objects {
    /// `networking.k8s.io/v1` Ingress.
    pub ingresses: Map<ObjectName, Ingress>,
    /// `networking.k8s.io/v1` IngressClass, by name.
    pub ingress_classes: Map<String, IngressClass>,
    /// `v1` Service.
    pub services: Map<ObjectName, Service>,
    /// `discovery.k8s.io/v1` EndpointSlice.
    pub endpoint_slices: Map<ObjectName, EndpointSlice>,
    /// `v1` Secret.
    pub secrets: Map<ObjectName, Secret>,
    /// `v1` ConfigMap.
    pub config_maps: Map<ObjectName, ConfigMap>,
    /// `v1` Node, by name.
    pub nodes: Map<String, Node>,
    /// What is written and could not be read, now or earlier; `None`: nobody knows what it is.
    pub unread: BTreeSet<Option<Key>>,
}

impl Objects {
    /// Adds an object or replaces the one of the same kind and name.
    pub fn insert(&mut self, object: Object, origin: impl Into<Arc<str>>) {
        let Key { kind: _, name } = object.key();
        let origin = origin.into();
        match object {
            Object::Ingress(object) => {
                self.ingresses.insert(name, Sourced { object, origin });
            }
            Object::IngressClass(object) => {
                self.ingress_classes.insert(name.name, Sourced { object, origin });
            }
            Object::Service(object) => {
                self.services.insert(name, Sourced { object, origin });
            }
            Object::EndpointSlice(object) => {
                self.endpoint_slices.insert(name, Sourced { object, origin });
            }
            Object::Secret(object) => {
                self.secrets.insert(name, Sourced { object, origin });
            }
            Object::ConfigMap(object) => {
                self.config_maps.insert(name, Sourced { object, origin });
            }
            Object::Node(object) => {
                self.nodes.insert(name.name, Sourced { object, origin });
            }
        }
    }

    /// The object of this kind and name.
    pub fn get(&self, key: &Key) -> Option<Object> {
        let Key { kind, name } = key;
        match kind {
            Kind::Ingress => object(&self.ingresses, name, Object::Ingress),
            Kind::IngressClass => object(&self.ingress_classes, &name.name, Object::IngressClass),
            Kind::Service => object(&self.services, name, Object::Service),
            Kind::EndpointSlice => object(&self.endpoint_slices, name, Object::EndpointSlice),
            Kind::Secret => object(&self.secrets, name, Object::Secret),
            Kind::ConfigMap => object(&self.config_maps, name, Object::ConfigMap),
            Kind::Node => object(&self.nodes, &name.name, Object::Node),
        }
    }

    /// Identities of all objects of a kind.
    pub fn keys(&self, kind: Kind) -> Vec<Key> {
        let named = |name: &ObjectName| Key { kind, name: name.clone() };
        let global = |name: &String| Key { kind, name: ObjectName::new("", name) };
        match kind {
            Kind::Ingress => self.ingresses.keys().map(named).collect(),
            Kind::IngressClass => self.ingress_classes.keys().map(global).collect(),
            Kind::Service => self.services.keys().map(named).collect(),
            Kind::EndpointSlice => self.endpoint_slices.keys().map(named).collect(),
            Kind::Secret => self.secrets.keys().map(named).collect(),
            Kind::ConfigMap => self.config_maps.keys().map(named).collect(),
            Kind::Node => self.nodes.keys().map(global).collect(),
        }
    }

    /// Removes the object of this kind and name.
    pub fn remove(&mut self, key: &Key) {
        let Key { kind, name } = key;
        match kind {
            Kind::Ingress => drop(self.ingresses.remove(name)),
            Kind::IngressClass => drop(self.ingress_classes.remove(&name.name)),
            Kind::Service => drop(self.services.remove(name)),
            Kind::EndpointSlice => drop(self.endpoint_slices.remove(name)),
            Kind::Secret => drop(self.secrets.remove(name)),
            Kind::ConfigMap => drop(self.config_maps.remove(name)),
            Kind::Node => drop(self.nodes.remove(&name.name)),
        }
    }

    /// Every object and where it was read.
    pub fn all(&self) -> Vec<(Object, Arc<str>)> {
        fn wrap<K: Ord, T>(
            map: &Map<K, T>,
            wrap: fn(Arc<T>) -> Object,
        ) -> impl Iterator<Item = (Object, Arc<str>)> {
            map.values().map(move |one| (wrap(Arc::clone(&one.object)), Arc::clone(&one.origin)))
        }
        wrap(&self.ingress_classes, Object::IngressClass)
            .chain(wrap(&self.ingresses, Object::Ingress))
            .chain(wrap(&self.services, Object::Service))
            .chain(wrap(&self.endpoint_slices, Object::EndpointSlice))
            .chain(wrap(&self.secrets, Object::Secret))
            .chain(wrap(&self.config_maps, Object::ConfigMap))
            .chain(wrap(&self.nodes, Object::Node))
            .collect()
    }

    /// Every object as people name it, by kind, namespace and name.
    pub fn ids(&self) -> Vec<ObjectId> {
        let mut ids = Vec::new();
        let mut push = |kind: Kind, namespace: &str, name: &str, origin: &str| {
            ids.push(ObjectId {
                kind: kind.to_string(),
                namespace: namespace.to_owned(),
                name: name.to_owned(),
                origin: origin.to_owned(),
            });
        };
        for (name, sourced) in &self.ingress_classes {
            push(Kind::IngressClass, "", name, &sourced.origin);
        }
        for (name, sourced) in &self.ingresses {
            push(Kind::Ingress, &name.namespace, &name.name, &sourced.origin);
        }
        for (name, sourced) in &self.services {
            push(Kind::Service, &name.namespace, &name.name, &sourced.origin);
        }
        for (name, sourced) in &self.endpoint_slices {
            push(Kind::EndpointSlice, &name.namespace, &name.name, &sourced.origin);
        }
        for (name, sourced) in &self.secrets {
            push(Kind::Secret, &name.namespace, &name.name, &sourced.origin);
        }
        for (name, sourced) in &self.config_maps {
            push(Kind::ConfigMap, &name.namespace, &name.name, &sourced.origin);
        }
        for (name, sourced) in &self.nodes {
            push(Kind::Node, "", name, &sourced.origin);
        }
        ids
    }
}

/// An object that was in force in another process, and may stay so where what is written now cannot be read.
#[derive(Debug, Clone, PartialEq)]
pub struct Former {
    /// The object.
    pub object: Object,
    /// Where it was read.
    pub origin: Arc<str>,
    /// Since when that says something else, if it does.
    pub since: Option<SystemTime>,
}

/// The file of an origin.
pub fn file_of(origin: &str) -> &str {
    origin.rsplit_once('#').map_or(origin, |(file, _)| file)
}

fn object<K: Ord, T>(map: &Map<K, T>, name: &K, wrap: fn(Arc<T>) -> Object) -> Option<Object> {
    map.get(name).map(|sourced| wrap(Arc::clone(&sourced.object)))
}

/// An object and where it was read. Who has the same object again hands on the same `Arc`: that is
/// how an unchanged one is known without a look at its text.
#[derive(Debug)]
pub struct Sourced<T> {
    /// The object.
    pub object: Arc<T>,
    /// File and document, e.g. `shop/ingress.yaml#2`; empty for objects of a cluster.
    pub origin: Arc<str>,
}

impl<T> Clone for Sourced<T> {
    fn clone(&self) -> Self {
        Self { object: Arc::clone(&self.object), origin: Arc::clone(&self.origin) }
    }
}

impl<T: PartialEq> PartialEq for Sourced<T> {
    fn eq(&self, other: &Self) -> bool {
        let Self { object, origin } = self;
        let is_same = Arc::ptr_eq(object, &other.object) || object == &other.object;
        is_same && *origin == other.origin
    }
}

/// A kind we read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// `networking.k8s.io/v1` IngressClass; has no namespace.
    IngressClass,
    /// `networking.k8s.io/v1` Ingress.
    Ingress,
    /// `v1` Service.
    Service,
    /// `discovery.k8s.io/v1` EndpointSlice.
    EndpointSlice,
    /// `v1` Secret.
    Secret,
    /// `v1` ConfigMap.
    ConfigMap,
    /// `v1` Node; has no namespace.
    Node,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::IngressClass,
        Self::Ingress,
        Self::Service,
        Self::EndpointSlice,
        Self::Secret,
        Self::ConfigMap,
        Self::Node,
    ];

    /// The `apiVersion` we read it in.
    pub fn api_version(self) -> &'static str {
        match self {
            Self::IngressClass | Self::Ingress => "networking.k8s.io/v1",
            Self::EndpointSlice => "discovery.k8s.io/v1",
            Self::Service | Self::Secret | Self::ConfigMap | Self::Node => "v1",
        }
    }

    /// Lives in a namespace.
    pub fn is_namespaced(self) -> bool {
        !matches!(self, Self::IngressClass | Self::Node)
    }

    fn name(self) -> &'static str {
        match self {
            Self::IngressClass => "IngressClass",
            Self::Ingress => "Ingress",
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::Secret => "Secret",
            Self::ConfigMap => "ConfigMap",
            Self::Node => "Node",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Identity of an object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// What it is.
    pub kind: Kind,
    /// Namespace (empty where the kind has none) and name.
    pub name: ObjectName,
}

impl Key {
    /// The key as people name it.
    pub fn id(&self, origin: &str) -> ObjectId {
        ObjectId {
            kind: self.kind.to_string(),
            namespace: self.name.namespace.clone(),
            name: self.name.name.clone(),
            origin: origin.to_owned(),
        }
    }
}

/// One object of any kind we read; cheap to copy.
#[derive(Debug, Clone, PartialEq)]
pub enum Object {
    /// Ingress.
    Ingress(Arc<Ingress>),
    /// IngressClass.
    IngressClass(Arc<IngressClass>),
    /// Service.
    Service(Arc<Service>),
    /// EndpointSlice.
    EndpointSlice(Arc<EndpointSlice>),
    /// Secret.
    Secret(Arc<Secret>),
    /// ConfigMap.
    ConfigMap(Arc<ConfigMap>),
    /// Node.
    Node(Arc<Node>),
}

impl Object {
    /// What it is.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Ingress(_) => Kind::Ingress,
            Self::IngressClass(_) => Kind::IngressClass,
            Self::Service(_) => Kind::Service,
            Self::EndpointSlice(_) => Kind::EndpointSlice,
            Self::Secret(_) => Kind::Secret,
            Self::ConfigMap(_) => Kind::ConfigMap,
            Self::Node(_) => Kind::Node,
        }
    }

    /// As it would be written.
    pub fn to_value(&self) -> serde_json::Result<serde_json::Value> {
        match self {
            Self::Ingress(object) => serde_json::to_value(&**object),
            Self::IngressClass(object) => serde_json::to_value(&**object),
            Self::Service(object) => serde_json::to_value(&**object),
            Self::EndpointSlice(object) => serde_json::to_value(&**object),
            Self::Secret(object) => serde_json::to_value(&**object),
            Self::ConfigMap(object) => serde_json::to_value(&**object),
            Self::Node(object) => serde_json::to_value(&**object),
        }
    }

    /// Its metadata.
    pub fn metadata(&self) -> &ObjectMeta {
        match self {
            Self::Ingress(object) => &object.metadata,
            Self::IngressClass(object) => &object.metadata,
            Self::Service(object) => &object.metadata,
            Self::EndpointSlice(object) => &object.metadata,
            Self::Secret(object) => &object.metadata,
            Self::ConfigMap(object) => &object.metadata,
            Self::Node(object) => &object.metadata,
        }
    }

    /// Its identity; the namespace is `default` where the metadata name none.
    pub fn key(&self) -> Key {
        let metadata = self.metadata();
        let namespace = if self.kind().is_namespaced() {
            metadata.namespace.clone().unwrap_or_else(|| "default".to_owned())
        } else {
            String::new()
        };
        Key {
            kind: self.kind(),
            name: ObjectName { namespace, name: metadata.name.clone().unwrap_or_default() },
        }
    }
}

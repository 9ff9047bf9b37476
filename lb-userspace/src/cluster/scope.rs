//! Which objects of the cluster concern us.

use std::collections::BTreeSet;

use crate::model::ObjectName;
use crate::objects::{Kind, Object};

/// Names the Service of a slice.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// `--watch-namespace`, `--watch-namespace-selector`, and what flags name beside those.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scope {
    /// Objects of this namespace alone.
    pub(super) namespace: Option<String>,
    /// Objects of namespaces with these labels alone, as the API server reads selectors.
    pub(super) selector: Option<String>,
    pub(super) beside: Beside,
    /// ConfigMaps that settings name, beside the settings themselves.
    pub(super) settings: BTreeSet<ObjectName>,
    /// The namespaces that the selector selects; `None`: not known yet.
    pub(super) selected: Option<BTreeSet<String>>,
}

/// What flags name, wherever it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Beside {
    /// Services whose addresses count.
    pub services: BTreeSet<ObjectName>,
    /// Services whose endpoints count, too.
    pub backends: BTreeSet<ObjectName>,
    /// Secrets.
    pub secrets: BTreeSet<ObjectName>,
    /// ConfigMaps.
    pub config_maps: BTreeSet<ObjectName>,
}

impl Beside {
    /// Names that concern objects of this kind.
    fn of(&self, kind: Kind) -> impl Iterator<Item = &ObjectName> {
        let (one, other) = match kind {
            Kind::Service => (Some(&self.services), Some(&self.backends)),
            Kind::EndpointSlice => (None, Some(&self.backends)),
            Kind::Secret => (Some(&self.secrets), None),
            Kind::ConfigMap => (Some(&self.config_maps), None),
            Kind::Ingress | Kind::IngressClass | Kind::Node => (None, None),
        };
        one.into_iter().chain(other).flatten()
    }
}

impl Scope {
    /// Of one namespace, or of those that a selector selects, or of all; and what is named beside.
    pub fn new(namespace: Option<String>, selector: Option<String>, beside: Beside) -> Self {
        Self { namespace, selector, beside, settings: BTreeSet::new(), selected: None }
    }

    /// Everything that decides about objects is known.
    pub(super) fn is_known(&self) -> bool {
        self.selector.is_none() || self.selected.is_some()
    }

    pub(super) fn select(&mut self, namespaces: BTreeSet<String>) {
        self.selected = Some(namespaces);
    }

    /// True if that is new.
    pub(super) fn add(&mut self, namespace: String) -> bool {
        self.selected.get_or_insert_default().insert(namespace)
    }

    /// True if it was selected.
    pub(super) fn take(&mut self, namespace: &str) -> bool {
        self.selected.get_or_insert_default().remove(namespace)
    }

    /// Namespaces in which to follow a kind; `None`: all at once.
    pub(super) fn namespaces(&self, kind: Kind) -> Vec<Option<String>> {
        match &self.namespace {
            None => vec![None],
            Some(namespace) => {
                let beside = self.beside.of(kind).map(|name| &name.namespace);
                let all: BTreeSet<&String> = beside.chain([namespace]).collect();
                all.into_iter().map(|namespace| Some(namespace.clone())).collect()
            }
        }
    }

    /// Whether a namespace is followed (`None`: all are) for more than what a flag names in it.
    pub(super) fn watches(&self, namespace: &Option<String>) -> bool {
        namespace.is_none() || *namespace == self.namespace
    }

    /// Whether the Ingresses of a namespace may be ours.
    pub(super) fn serves(&self, namespace: &str) -> bool {
        let is_selected = || self.selected.as_ref().is_some_and(|selected| selected.contains(namespace));
        let watched = self.namespace.as_ref().is_none_or(|watched| watched == namespace);
        watched && (self.selector.is_none() || is_selected())
    }

    pub(super) fn has(&self, object: &Object) -> bool {
        let kind = object.kind();
        if !kind.is_namespaced() {
            return true;
        }
        let key = object.key();
        let namespace = &key.name.namespace;
        if self.serves(namespace) {
            return true;
        }
        match kind {
            Kind::EndpointSlice => {
                let labels = object.metadata().labels.as_ref();
                let service = labels.and_then(|labels| labels.get(SERVICE_NAME));
                let service = service.map(|service| ObjectName::new(namespace, service));
                service.is_some_and(|service| self.beside.of(kind).any(|name| *name == service))
            }
            _ => {
                let is_of_settings = kind == Kind::ConfigMap && self.settings.contains(&key.name);
                is_of_settings || self.beside.of(kind).any(|name| *name == key.name)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn object(kind: &str, namespace: &str, name: &str, service: &str) -> Object {
        let metadata =
            serde_json::json!({"namespace": namespace, "name": name, "labels": {SERVICE_NAME: service}});
        let value = serde_json::json!({"metadata": metadata, "addressType": "IPv4", "endpoints": []});
        match kind {
            "Ingress" => Object::Ingress(Arc::new(serde_json::from_value(value).expect("an Ingress"))),
            "ConfigMap" => Object::ConfigMap(Arc::new(serde_json::from_value(value).expect("a ConfigMap"))),
            "Service" => Object::Service(Arc::new(serde_json::from_value(value).expect("a Service"))),
            _ => Object::EndpointSlice(Arc::new(serde_json::from_value(value).expect("an EndpointSlice"))),
        }
    }

    #[test]
    fn objects_of_other_namespaces_count_only_where_a_flag_names_them() {
        let backends = BTreeSet::from([ObjectName::new("edge", "fallback")]);
        let config_maps = BTreeSet::from([ObjectName::new("own", "settings")]);
        let beside = Beside { backends, config_maps, ..Beside::default() };
        let one = Scope { namespace: Some("shop".to_owned()), beside, ..Scope::default() };
        let of_settings = BTreeSet::from([ObjectName::new("own", "headers")]);
        let one = Scope { settings: of_settings, ..one };
        let selected = Scope { namespace: None, selector: Some("a=b".to_owned()), ..one.clone() };
        let selected = Scope { selected: Some(BTreeSet::from(["shop".to_owned()])), ..selected };
        for (case, expected, kind, namespace, name, service) in [
            ("Ingress within", true, "Ingress", "shop", "a", ""),
            ("Ingress elsewhere", false, "Ingress", "edge", "fallback", ""),
            ("Service elsewhere", false, "Service", "edge", "other", ""),
            ("Service that is named", true, "Service", "edge", "fallback", ""),
            ("its slice", true, "EndpointSlice", "edge", "fallback-x7", "fallback"),
            ("slice of another", false, "EndpointSlice", "edge", "other-x7", "other"),
            ("settings that a flag names", true, "ConfigMap", "own", "settings", ""),
            ("headers that those name", true, "ConfigMap", "own", "headers", ""),
            ("another ConfigMap", false, "ConfigMap", "own", "other", ""),
        ] {
            let object = object(kind, namespace, name, service);
            assert_eq!((one.has(&object), selected.has(&object)), (expected, expected), "{case}");
        }
        let namespaces = |kind| one.namespaces(kind).into_iter().flatten().collect::<Vec<_>>();
        assert_eq!(namespaces(Kind::Ingress), ["shop"]);
        assert_eq!(namespaces(Kind::EndpointSlice), ["edge", "shop"]);
        assert_eq!(namespaces(Kind::ConfigMap), ["own", "shop"]);
        assert_eq!(namespaces(Kind::Secret), ["shop"]);
    }
}

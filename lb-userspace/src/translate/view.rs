//! Objects as one part of the translation sees them: what it asks for is noted, found or not, so that it is
//! known after which changes it has to be made anew. Nothing can be read past it.

use std::cell::RefCell;
use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{ConfigMap, Secret, Service};

use super::nodes::Nodes;
use crate::model::ObjectName;
use crate::objects::{Key, Kind, Map, Objects, Sourced};

/// What may be asked for by name.
pub(super) struct View<'a> {
    /// Services; who asks for one may see its slices, too.
    pub services: Asked<'a, Service>,
    pub secrets: Asked<'a, Secret>,
    pub config_maps: Asked<'a, ConfigMap>,
    /// Which node we are, and its zone, where that decides who answers; the same for all parts.
    pub nodes: &'a Nodes,
    unread: &'a BTreeSet<Option<Key>>,
}

/// Objects of one kind, and which of them were asked for.
pub(super) struct Asked<'a, T> {
    known: &'a Map<ObjectName, T>,
    names: RefCell<BTreeSet<ObjectName>>,
}

impl<'a> View<'a> {
    pub(super) fn new(objects: &'a Objects, nodes: &'a Nodes) -> Self {
        Self {
            nodes,
            services: Asked::new(&objects.services),
            secrets: Asked::new(&objects.secrets),
            config_maps: Asked::new(&objects.config_maps),
            unread: &objects.unread,
        }
    }

    /// Whether a Secret of this name, which was asked for, is written and cannot be used.
    pub(super) fn is_unread(&self, secret: &ObjectName) -> bool {
        self.unread.contains(&Some(Key { kind: Kind::Secret, name: secret.clone() }))
    }

    /// Everything that was asked for.
    pub(super) fn into_reads(self) -> BTreeSet<Key> {
        let Self { services, secrets, config_maps, nodes: _, unread: _ } = self;
        let of = |kind: Kind, names: RefCell<BTreeSet<ObjectName>>| {
            names.into_inner().into_iter().map(move |name| Key { kind, name })
        };
        of(Kind::Service, services.names)
            .chain(of(Kind::Secret, secrets.names))
            .chain(of(Kind::ConfigMap, config_maps.names))
            .collect()
    }
}

impl<'a, T> Asked<'a, T> {
    fn new(known: &'a Map<ObjectName, T>) -> Self {
        Self { known, names: RefCell::default() }
    }

    /// The object of this name, if there is one.
    pub(super) fn get(&self, name: &ObjectName) -> Option<&'a Sourced<T>> {
        let mut names = self.names.borrow_mut();
        if !names.contains(name) {
            names.insert(name.clone());
        }
        self.known.get(name)
    }
}

//! Which Ingresses are ours, in the order in which they win conflicts.

use std::cmp::Reverse;

use k8s_openapi::api::networking::v1::{Ingress, IngressClass};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::Options;
use super::findings::{About, Findings};
use crate::model::{ObjectId, ObjectName};
use crate::objects::{Key, Kind, Map, Objects, Sourced};

const LEGACY: &str = "kubernetes.io/ingress.class";
const IS_DEFAULT: &str = "ingressclass.kubernetes.io/is-default-class";
const OUR_CONTROLLER: &str = "penstock.dev/ingress-controller";
const OUR_CLASS: &str = "penstock";

/// An Ingress of ours.
pub struct Served<'a> {
    /// Namespace and name.
    pub name: &'a ObjectName,
    /// As people name it.
    pub id: ObjectId,
    /// The object.
    pub ingress: &'a Ingress,
}

impl<'a> Served<'a> {
    pub(super) fn new(name: &'a ObjectName, sourced: &'a Sourced<Ingress>) -> Self {
        let id = Key { kind: Kind::Ingress, name: name.clone() }.id(&sourced.origin);
        Self { name, id, ingress: &sourced.object }
    }
}

type Classes = Map<String, IngressClass>;

/// Ours, oldest first; of the same age in descending order of namespace/name.
pub(super) fn served<'a>(
    objects: &'a Objects,
    options: &Options,
    findings: &mut Findings,
) -> Vec<Served<'a>> {
    let ours = objects
        .ingresses
        .iter()
        .filter(|(name, sourced)| is_ours(name, sourced, &objects.ingress_classes, options, findings));
    in_order(ours.map(|(name, sourced)| Served::new(name, sourced)).collect())
}

/// The same of Ingresses that are known to be ours.
pub(super) fn in_order(mut served: Vec<Served<'_>>) -> Vec<Served<'_>> {
    served.sort_by_cached_key(Served::seniority);
    served
}

/// Place of an Ingress among those of its kind: the lesser one wins conflicts.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Seniority(Option<Time>, Reverse<String>);

impl Served<'_> {
    /// By age; of the same age the last by name. As one text, because that is what ingress-nginx compares:
    /// `a-b/x` and `a/x` differ from a comparison by parts.
    pub(super) fn seniority(&self) -> Seniority {
        let age = self.ingress.metadata.creation_timestamp.clone();
        Seniority(age, Reverse(self.name.to_string()))
    }
}

/// Whether an Ingress is ours; says why not.
pub(super) fn is_ours(
    name: &ObjectName,
    sourced: &Sourced<Ingress>,
    classes: &Classes,
    options: &Options,
    findings: &mut Findings,
) -> bool {
    let id = Served::new(name, sourced).id;
    is_of_us(&sourced.object, classes, options, &mut findings.about(&id))
}

fn is_of_us(ingress: &Ingress, classes: &Classes, options: &Options, about: &mut About<'_>) -> bool {
    let class = ingress.spec.as_ref().and_then(|spec| spec.ingress_class_name.as_deref());
    if let Some(class) = class.filter(|class| !class.is_empty()) {
        return by_class_name(class, classes, options, about);
    }
    let legacy = ingress.metadata.annotations.as_ref().and_then(|annotations| annotations.get(LEGACY));
    if let Some(class) = legacy.filter(|class| !class.is_empty()) {
        let ours = *class == options.ingress_class || class == OUR_CLASS;
        if !ours {
            let message = format!("class {class:?} is not ours; ignored");
            about.info("other-class", format!("metadata.annotations.{LEGACY}"), message, "");
        }
        return ours;
    }
    if options.watch_ingress_without_class {
        return true;
    }
    if options.classes == super::Classes::Written {
        about.info(
            "no-class",
            "spec.ingressClassName",
            "without a class; ignored, as the API server names the default class in new Ingresses alone",
            format!("write ingressClassName: {}", options.ingress_class),
        );
        return false;
    }
    if classes.is_empty() {
        about.info(
            "no-class",
            "spec.ingressClassName",
            "without a class; served here, but ignored in a cluster unless our class is the default there",
            format!("write ingressClassName: {}", options.ingress_class),
        );
        return true;
    }
    match default_class(classes) {
        Some((name, class)) if is_our_class(name, class, options) => true,
        Some((name, _)) => {
            about.info(
                "other-class",
                "spec.ingressClassName",
                format!("the default class {name:?} is not ours; ignored"),
                "",
            );
            false
        }
        None => {
            about.warn(
                "no-class",
                "spec.ingressClassName",
                "without a class, and no IngressClass is the default; ignored",
                format!("write ingressClassName: {}", options.ingress_class),
            );
            false
        }
    }
}

fn by_class_name(class: &str, classes: &Classes, options: &Options, about: &mut About<'_>) -> bool {
    const FIELD: &str = "spec.ingressClassName";
    if classes.is_empty() && options.classes == super::Classes::Implied {
        // A directory without IngressClass objects: the usual ones are implied.
        let ours = class == options.ingress_class || class == OUR_CLASS;
        if !ours {
            about.info("other-class", FIELD, format!("class {class:?} is not ours; ignored"), "");
        }
        return ours;
    }
    let Some(sourced) = classes.get(class) else {
        about.warn(
            "missing-class",
            FIELD,
            format!("there is no IngressClass {class:?}; ignored"),
            "add the IngressClass, or correct the name",
        );
        return false;
    };
    let ours = is_our_class(class, &sourced.object, options);
    if !ours {
        about.info(
            "other-class",
            FIELD,
            format!("class {class:?} belongs to another controller; ignored"),
            "",
        );
    }
    ours
}

fn is_our_class(name: &str, class: &IngressClass, options: &Options) -> bool {
    if options.ingress_class_by_name && name == options.ingress_class {
        return true;
    }
    let controller = class.spec.as_ref().and_then(|spec| spec.controller.as_deref());
    controller
        .is_some_and(|controller| controller == options.controller_class || controller == OUR_CONTROLLER)
}

/// As the API server chooses among several: the newest, then the first by name.
fn default_class(classes: &Classes) -> Option<(&String, &IngressClass)> {
    let defaults = classes.iter().filter(|(_, sourced)| {
        let annotations = sourced.object.metadata.annotations.as_ref();
        annotations.and_then(|annotations| annotations.get(IS_DEFAULT)).is_some_and(|value| value == "true")
    });
    let created = |class: &IngressClass| class.metadata.creation_timestamp.as_ref().map(|time| time.0);
    defaults
        .map(|(name, sourced)| (name, &*sourced.object))
        .reduce(|best, next| if created(next.1) > created(best.1) { next } else { best })
}

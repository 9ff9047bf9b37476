//! Who may enter: what the judges say of an object, in the words of who wrote it. What they judge by is the caller's.

use k8s_openapi::api::core::v1::ConfigMap;

use super::{Map, Object, Renamed};
use crate::model::{ObjectId, ObjectName, Problem, Severity};
use crate::panics;

/// Judges objects before they may replace their last good versions: any problem of severity error
/// refuses one.
#[derive(Clone)]
pub struct Admission {
    /// By itself, and with the ConfigMap of the address pools, where that is named.
    pub alone: fn(&Object, &ObjectId, Option<&ObjectName>) -> Vec<Problem>,
    /// By what the ConfigMaps in force demand, or the one of them that is named.
    pub among: fn(&Map<ObjectName, ConfigMap>, Option<&ObjectName>) -> Judge,
    /// The one that is named.
    pub config_map: Option<ObjectName>,
    /// That of the address pools, where it is named.
    pub address_pools: Option<ObjectName>,
    /// How annotations are called in the objects, where that is not the usual way.
    pub renamed: Option<Renamed>,
}

impl Admission {
    /// The object as it is read from here on.
    pub fn enter(&self, object: Object) -> Object {
        match &self.renamed {
            Some(renamed) => renamed.object(object),
            None => object,
        }
    }

    /// What is wrong with it by itself.
    pub fn alone(&self, object: &Object, id: &ObjectId) -> Vec<Problem> {
        let address_pools = self.address_pools.as_ref();
        told(judged(id, || (self.alone)(object, id, address_pools)), self.renamed.as_ref())
    }

    /// Who judges by what these demand.
    pub fn among(&self, config_maps: &Map<ObjectName, ConfigMap>) -> Judge {
        let judge = (self.among)(config_maps, self.config_map.as_ref());
        let renamed = self.renamed.clone();
        Box::new(move |object, id| told(judged(id, || judge(object, id)), renamed.as_ref()))
    }
}

/// A judge that panics has not let the object in.
fn judged(id: &ObjectId, judge: impl FnOnce() -> Vec<Problem>) -> Vec<Problem> {
    panics::catch(judge).unwrap_or_else(|panic| vec![panicked(id, &panic)])
}

/// Of an object over which the program itself went wrong.
pub fn panicked(object: &ObjectId, panic: &str) -> Problem {
    Problem {
        object: object.clone(),
        severity: Severity::Error,
        reason: "internal-error",
        field: String::new(),
        message: format!("penstock itself went wrong over this object: {panic}"),
        fix: "report it as an error of penstock, with the object".to_owned(),
    }
}

/// In the words of who wrote the objects.
fn told(problems: Vec<Problem>, renamed: Option<&Renamed>) -> Vec<Problem> {
    match renamed {
        Some(renamed) => problems.into_iter().map(|problem| renamed.problem(problem)).collect(),
        None => problems,
    }
}

/// Judges one object.
pub type Judge = Box<dyn Fn(&Object, &ObjectId) -> Vec<Problem>>;

//! Objects that are no part of the desired state, as far as a report looks at them.

use crate::model::ObjectId;

/// An object that nothing is made of, and that a report looks at all the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bystander {
    /// What it is, as people name it.
    pub id: ObjectId,
    /// What a workload starts.
    pub containers: Vec<Container>,
    /// Texts that ask for metrics, by their field.
    pub queries: Vec<(String, String)>,
    /// What it sends requests to or scales, by the field that says so.
    pub points_at: Vec<(String, String)>,
}

/// A container of a workload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// What runs.
    pub image: String,
    /// Command and arguments by their field, with the variables that are known.
    pub arguments: Vec<(String, String)>,
}

//! The desired state in our own words: plain values with `Eq` and `Debug`.
//!
//! Every room may import this one; it imports none. No Kubernetes type, no aya, no tokio, no
//! rustls: what stands here can be built by hand in a test and compared whole.

pub mod announce;
pub mod canary;
pub mod capture;
pub mod expression;
pub mod health;
pub mod l4;
pub mod l7;
pub mod metering;
pub mod pool;
pub mod problem;
pub mod report;
pub mod review;
pub mod session;
pub mod shared;
pub mod span;
pub mod upstream;

use std::fmt;
use std::sync::Arc;

pub use problem::{ObjectId, Problem, Problems, Severity};
pub use shared::Shared;

/// Complete desired state at one moment, as [`crate::translate::translate`] makes it.
///
/// The halves are shared by reference because they go different ways: `l4` to the kernel,
/// `l7` to every proxy worker.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Snapshot {
    /// What the kernel program balances or punts.
    pub l4: Arc<l4::L4>,
    /// What the proxy serves.
    pub l7: Arc<l7::L7>,
}

/// Namespace and name of a namespaced Kubernetes object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ObjectName {
    /// `metadata.namespace`, `default` where a manifest leaves it out.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
}

impl ObjectName {
    /// Name for `namespace/name`.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

/// Names in their order. A copy shares them with its original.
pub type Names = imbl::OrdSet<ObjectName>;

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

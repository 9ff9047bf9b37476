//! Why an object could not be honoured, in a form that a person, a log line and a metric share.

use std::fmt;
use std::sync::Arc;

/// Problems sorted by object, worst first, each once. A copy shares them with its original.
pub type Problems = imbl::OrdSet<Arc<Problem>>;

/// One finding about one object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Problem {
    /// The object that holds the cause.
    pub object: ObjectId,
    /// How bad it is.
    pub severity: Severity,
    /// Stable kebab-case word for metrics and filters, e.g. `missing-secret`.
    pub reason: &'static str,
    /// Path of the field, e.g. `spec.rules[0].http.paths[1].path`; empty for the whole object.
    pub field: String,
    /// What is wrong and with which value; lower case, no full stop.
    pub message: String,
    /// What to do about it; empty where nothing can be said.
    pub fix: String,
}

/// How bad a [`Problem`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// The object, or a part of it, does not work.
    Error,
    /// Works, but probably not as its author thinks.
    Warning,
    /// Worth knowing.
    Info,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Info => "info",
        })
    }
}

/// Names an object to a person: what it is and where it came from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ObjectId {
    /// Kubernetes kind; empty where a document could not be read far enough to tell.
    pub kind: String,
    /// Namespace; empty where unknown or cluster-scoped.
    pub namespace: String,
    /// Name; empty where unknown.
    pub name: String,
    /// File and document, e.g. `shop/ingress.yaml#2`; empty for objects of a cluster.
    pub origin: String,
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.kind.is_empty() {
            return f.write_str(&self.origin);
        }
        write!(f, "{} ", self.kind)?;
        if !self.namespace.is_empty() {
            write!(f, "{}/", self.namespace)?;
        }
        f.write_str(&self.name)?;
        if !self.origin.is_empty() {
            write!(f, " ({})", self.origin)?;
        }
        Ok(())
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: ", self.object, self.severity)?;
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.message)?;
        if !self.fix.is_empty() {
            write!(f, "; {}", self.fix)?;
        }
        Ok(())
    }
}

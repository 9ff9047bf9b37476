//! What rooms tell about themselves: explanations and metrics, as plain values that `admin`,
//! `cli` and tests render or compare.

use serde::{Deserialize, Serialize};

/// Why one URL or one flow goes where it goes, step by step, by the code that serves it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// What was asked, normalised.
    pub question: String,
    /// Decisions in the order they are taken.
    pub steps: Vec<Step>,
    /// The outcome in one line.
    pub verdict: String,
}

/// One decision of an [`Explanation`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Short name of the step, e.g. `vip`, `slot`, `host`, `path`.
    pub name: String,
    /// What was found and why.
    pub detail: String,
}

/// One Prometheus metric with all its samples.
#[derive(Debug, Clone, PartialEq)]
pub struct Metric {
    /// Full name.
    pub name: &'static str,
    /// Help text, one line.
    pub help: &'static str,
    /// Prometheus type.
    pub kind: MetricKind,
    /// Samples; a histogram brings its `_bucket`, `_sum` and `_count` by suffix.
    pub samples: Vec<Sample>,
}

/// Prometheus metric type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricKind {
    /// Only grows.
    Counter,
    /// Goes both ways.
    Gauge,
    /// Buckets, sum and count.
    Histogram,
}

/// One line of a [`Metric`].
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// Appended to the metric's name: empty, `_bucket`, `_sum` or `_count`.
    pub suffix: &'static str,
    /// Label names and (unescaped) values.
    pub labels: Vec<(&'static str, String)>,
    /// Value.
    pub value: f64,
}

//! Traces: which requests take part in one, and where their spans go.

use std::time::Duration;

use super::log::Format;

/// How requests of a location take part in traces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Traced {
    /// `opentelemetry-operation-name`, or the path: the name of a span.
    pub operation: Format,
    /// `opentelemetry-trust-incoming-span`: the trace of a client is continued.
    pub trusts: bool,
    /// Who of them leaves a span.
    pub sampler: Sampler,
    /// There is a [`Collector`] to send spans to.
    pub exports: bool,
}

/// Which requests leave a span.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sampler {
    /// Where nobody has decided before.
    pub choice: Choice,
    /// `otel-sampler-parent-based`: who began a trace has decided.
    pub follows: bool,
}

/// `otel-sampler`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// `AlwaysOn`.
    All,
    /// `AlwaysOff`.
    None,
    /// `TraceIdRatioBased`: those whose trace id has less than this in the lower 63 bits, which is how the SDKs for
    /// Go and Java read it, so that a service behind us with the same ratio chooses the same traces.
    Below(u64),
}

impl Choice {
    /// The share of all traces that is chosen, from 0 to 1.
    pub fn share(ratio: f64) -> Self {
        if ratio >= 1.0 {
            return Self::All;
        }
        // A cast of what is below 0, or no number, is 0.
        Self::Below((ratio * (1_u64 << 63) as f64) as u64)
    }

    /// Whether the trace of this id is chosen.
    pub fn takes(self, trace: u128) -> bool {
        match self {
            Self::All => true,
            Self::None => false,
            Self::Below(bound) => (trace as u64) & (u64::MAX >> 1) < bound,
        }
    }
}

/// Who takes spans: OTLP over gRPC, and HTTP/2 without TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Collector {
    /// `otlp-collector-host`: a name or an address.
    pub host: String,
    /// `otlp-collector-port`.
    pub port: u16,
    /// `otel-service-name`: whose spans they are.
    pub service: String,
    /// `otel-max-queuesize`: most spans that wait; more are dropped.
    pub queue: usize,
    /// `otel-max-exportbatchsize`: most spans that are sent at once.
    pub batch: usize,
    /// `otel-schedule-delay-millis`: longest time that spans wait for others.
    pub delay: Duration,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_chooses_by_the_lower_half_of_the_trace_id() {
        let half = 1_u128 << 62;
        for (case, ratio, trace, expected) in [
            ("all", 1.0, u128::MAX, true),
            ("none", 0.0, 0, false),
            ("below half", 0.5, half - 1, true),
            ("half itself", 0.5, half, false),
            ("the highest bit counts for nothing", 0.5, 1 << 63, true),
            ("nor does the upper half", 0.5, (u128::MAX << 64) | 1, true),
            ("a small one", 0.01, (half / 50) - (1 << 12), true),
            ("above a small one", 0.01, (half / 50) + (1 << 12), false),
        ] {
            assert_eq!(Choice::share(ratio).takes(trace), expected, "{case}");
        }
        assert!(!Choice::None.takes(0));
    }

    #[test]
    fn what_is_no_share_chooses_nothing() {
        for ratio in [-1.0, f64::NAN] {
            assert_eq!(Choice::share(ratio), Choice::Below(0));
        }
    }
}

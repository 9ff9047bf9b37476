//! What is counted, under the names of ingress-nginx.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::model::report::{Metric, MetricKind, Sample};

/// Ingresses that have series of their own; the rest share one.
const MOST_INGRESSES: usize = 1000;

/// Counters of the webhook.
#[derive(Debug, Default)]
pub struct Counts(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// Let in and refused, by namespace and name.
    checks: BTreeMap<(String, String), (u64, u64)>,
    last: Option<Last>,
}

#[derive(Debug, Clone, Copy)]
struct Last {
    review: Duration,
    whole: Duration,
    bytes: usize,
}

/// A question that was answered.
pub(super) struct Reviewed<'a> {
    pub(super) namespace: &'a str,
    pub(super) name: &'a str,
    pub(super) allowed: bool,
    pub(super) review: Duration,
    pub(super) whole: Duration,
    pub(super) bytes: usize,
}

impl Counts {
    pub(super) fn reviewed(&self, reviewed: &Reviewed<'_>) {
        let Reviewed { namespace, name, allowed, review, whole, bytes } = *reviewed;
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Inner { checks, last } = &mut *inner;
        let own = (namespace.to_owned(), name.to_owned());
        let overflows = checks.len() >= MOST_INGRESSES && !checks.contains_key(&own);
        let key = if overflows { ("overflow".to_owned(), "overflow".to_owned()) } else { own };
        let (successes, errors) = checks.entry(key).or_default();
        *(if allowed { successes } else { errors }) += 1;
        *last = Some(Last { review, whole, bytes });
    }

    /// All of them; those of the last review only once there was one.
    pub fn metrics(&self) -> Vec<Metric> {
        let inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Inner { checks, last } = &*inner;
        let check = |name, help, of: fn(&(u64, u64)) -> u64| {
            let samples = checks.iter().filter(|(_, counts)| of(counts) > 0);
            let samples = samples.map(|((namespace, ingress), counts)| Sample {
                suffix: "",
                labels: vec![("namespace", namespace.clone()), ("ingress", ingress.clone())],
                value: of(counts) as f64,
            });
            Metric { name, help, kind: MetricKind::Counter, samples: samples.collect() }
        };
        let mut metrics = vec![
            check("nginx_ingress_controller_check_success", "Ingresses that the webhook let in.", |counts| {
                counts.0
            }),
            check(
                "nginx_ingress_controller_check_errors",
                "Ingresses that the webhook refused, or would if it did not only warn.",
                |counts| counts.1,
            ),
        ];
        let Some(Last { review, whole, bytes }) = *last else { return metrics };
        let gauge = |name, help, value| Metric {
            name,
            help,
            kind: MetricKind::Gauge,
            samples: vec![Sample { suffix: "", labels: Vec::new(), value }],
        };
        metrics.extend([
            gauge(
                "nginx_ingress_controller_admission_tested_ingresses",
                "Ingresses in the last review.",
                1.0,
            ),
            gauge(
                "nginx_ingress_controller_admission_tested_duration",
                "Seconds that the last review took.",
                review.as_secs_f64(),
            ),
            gauge("nginx_ingress_controller_admission_render_ingresses", "Nothing is rendered.", 0.0),
            gauge("nginx_ingress_controller_admission_render_duration", "Nothing is rendered.", 0.0),
            gauge(
                "nginx_ingress_controller_admission_config_size",
                "Bytes of the last question.",
                bytes as f64,
            ),
            gauge(
                "nginx_ingress_controller_admission_roundtrip_duration",
                "Seconds from the last question's head to its answer.",
                whole.as_secs_f64(),
            ),
        ]);
        metrics
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_are_bounded() {
        let counts = Counts::default();
        for number in 0..MOST_INGRESSES + 10 {
            counts.reviewed(&Reviewed {
                namespace: "shop",
                name: &format!("web-{number}"),
                allowed: number % 2 == 0,
                review: Duration::ZERO,
                whole: Duration::ZERO,
                bytes: 1,
            });
        }

        let series: usize = counts.metrics().iter().take(2).map(|metric| metric.samples.len()).sum();

        // One more for the rest, in both.
        assert_eq!(series, MOST_INGRESSES + 2);
    }
}

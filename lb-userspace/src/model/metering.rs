//! What metrics of requests tell apart, and how their histograms are sorted.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

/// Before the names of ingress-nginx's metrics.
const PREFIX: &str = "nginx_ingress_controller_";

/// Settings of the metrics of requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metering {
    /// `--enable-metrics`: requests have metrics at all.
    pub of_requests: bool,
    /// `--metrics-per-host`: hosts are told apart.
    pub per_host: bool,
    /// `--metrics-per-undefined-host`: requests to hosts that no Ingress names are counted, too.
    pub undefined_hosts: bool,
    /// `--report-status-classes`: `2xx` instead of 200.
    pub status_classes: bool,
    /// `--exclude-socket-metrics`: names that are left out, with or without their prefix.
    pub excluded: BTreeSet<String>,
    /// `--time-buckets`, in seconds.
    pub time: Bounds,
    /// `--length-buckets`, bytes of requests and of responses.
    pub length: Bounds,
    /// `--size-buckets`, bytes of responses by magnitude.
    pub size: Bounds,
    /// `--metrics-series`: most combinations of labels that a worker keeps apart.
    pub series: usize,
}

impl Default for Metering {
    /// ingress-nginx's, and a limit.
    fn default() -> Self {
        Self {
            of_requests: true,
            per_host: true,
            undefined_hosts: false,
            status_classes: false,
            excluded: BTreeSet::new(),
            time: Bounds(vec![0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0]),
            length: Bounds((1..=10u32).map(|tens| f64::from(tens * 10)).collect()),
            size: Bounds((1..=7).map(|power| 10f64.powi(power)).collect()),
            series: 10_000,
        }
    }
}

impl Metering {
    /// Whether the metric of requests of this name is left out.
    pub fn excludes(&self, name: &str) -> bool {
        let short = name.strip_prefix(PREFIX).unwrap_or(name);
        !self.of_requests || self.excluded.contains(name) || self.excluded.contains(short)
    }
}

/// Upper bounds of the buckets of a histogram: rising, finite, at most [`Bounds::MAX`].
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Bounds(Vec<f64>);

/// None of them is NaN.
impl Eq for Bounds {}

impl Bounds {
    /// Most bounds of a histogram.
    pub const MAX: usize = 64;

    /// As a flag has them: `0.1,1,10`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wanted = || format!("allowed: rising numbers, {} at most, as 0.1,1,10", Self::MAX);
        let bounds: Vec<f64> = text
            .split(',')
            .map(|bound| bound.trim().parse().map_err(|_| wanted()))
            .collect::<Result<_, _>>()?;
        let rises = bounds.iter().zip(bounds.iter().skip(1)).all(|(low, high)| low < high);
        if !rises || !bounds.iter().all(|bound| bound.is_finite()) || bounds.len() > Self::MAX {
            return Err(wanted());
        }
        Ok(Self(bounds))
    }

    /// The bounds.
    pub fn as_slice(&self) -> &[f64] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_rise_and_are_numbers() {
        assert_eq!(Bounds::parse("0.1, 1,1e1").expect("bounds").as_slice(), [0.1, 1.0, 10.0]);
        for text in ["", "1,1", "2,1", "a", "inf", "NaN", "1,,2"] {
            assert!(Bounds::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_metric_is_left_out_by_either_of_its_names() {
        let excluded = BTreeSet::from(["request_size".to_owned(), format!("{PREFIX}requests")]);
        let metering = Metering { excluded, ..Metering::default() };

        assert!(metering.excludes("nginx_ingress_controller_request_size"));
        assert!(metering.excludes("nginx_ingress_controller_requests"));
        assert!(!metering.excludes("nginx_ingress_controller_response_size"));
    }
}

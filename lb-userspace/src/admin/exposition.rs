//! Metrics as Prometheus text (exposition format 0.0.4).

use std::fmt::Write as _;

use crate::model::report::{Metric, MetricKind, Sample};

/// Renders metrics in the order given, each with its HELP and TYPE line. Metrics of the same name
/// (from several rooms) are merged under one pair of lines.
pub fn render(metrics: &[Metric]) -> String {
    let mut out = String::with_capacity(metrics.iter().map(|m| 128 + m.samples.len() * 96).sum());
    let mut done: Vec<&str> = Vec::new();
    for metric in metrics {
        if done.contains(&metric.name) {
            continue;
        }
        done.push(metric.name);
        let kind = match metric.kind {
            MetricKind::Counter => "counter",
            MetricKind::Gauge => "gauge",
            MetricKind::Histogram => "histogram",
        };
        let name = metric.name;
        let _ = writeln!(out, "# HELP {name} {}", metric.help.replace('\\', "\\\\").replace('\n', "\\n"));
        let _ = writeln!(out, "# TYPE {name} {kind}");
        for same in metrics.iter().filter(|other| other.name == name) {
            same.samples.iter().for_each(|sample| line(&mut out, name, sample));
        }
    }
    out
}

fn line(out: &mut String, name: &str, sample: &Sample) {
    out.push_str(name);
    out.push_str(sample.suffix);
    for (i, (label, value)) in sample.labels.iter().enumerate() {
        let separator = if i == 0 { '{' } else { ',' };
        let _ = write!(out, "{separator}{label}=\"");
        for c in value.chars() {
            match c {
                '\\' => out.push_str("\\\\"),
                '"' => out.push_str("\\\""),
                '\n' => out.push_str("\\n"),
                other => out.push(other),
            }
        }
        out.push('"');
    }
    if !sample.labels.is_empty() {
        out.push('}');
    }
    let _ = writeln!(out, " {}", sample.value);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_escaped_and_equal_names_share_one_header() {
        let metric = |value: &str, n: f64| Metric {
            name: "penstock_x_total",
            help: "X.",
            kind: MetricKind::Counter,
            samples: vec![Sample { suffix: "", labels: vec![("path", value.to_owned())], value: n }],
        };

        let text = render(&[metric("/a\"\\\n", 1.0), metric("/b", 2.5)]);

        assert_eq!(
            text,
            "# HELP penstock_x_total X.\n# TYPE penstock_x_total counter\n\
             penstock_x_total{path=\"/a\\\"\\\\\\n\"} 1\npenstock_x_total{path=\"/b\"} 2.5\n"
        );
    }
}

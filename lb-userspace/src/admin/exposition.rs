//! Metrics as Prometheus text (exposition format 0.0.4).

use std::fmt::Write as _;

use crate::model::report::{Metric, MetricKind, Sample};

/// The page that a scraper gets, metric by metric in the order in which they are added. Each name is
/// added once.
#[derive(Default)]
pub struct Page(String);

impl Page {
    /// Adds a metric with its HELP and TYPE line; its samples have the `constants` beside their labels.
    pub fn add(&mut self, metric: &Metric, constants: &[(&'static str, String)]) {
        let Metric { name, help, kind, samples } = metric;
        let kind = match kind {
            MetricKind::Counter => "counter",
            MetricKind::Gauge => "gauge",
            MetricKind::Histogram => "histogram",
        };
        let out = &mut self.0;
        let _ = writeln!(out, "# HELP {name} {}", help.replace('\\', "\\\\").replace('\n', "\\n"));
        let _ = writeln!(out, "# TYPE {name} {kind}");
        samples.iter().for_each(|sample| line(out, name, constants, sample));
    }

    /// What was added.
    pub fn into_text(self) -> String {
        self.0
    }
}

fn line(out: &mut String, name: &str, constants: &[(&'static str, String)], sample: &Sample) {
    out.push_str(name);
    out.push_str(sample.suffix);
    let mut separator = '{';
    for (label, value) in constants.iter().chain(&sample.labels) {
        let _ = write!(out, "{separator}{label}=\"");
        separator = ',';
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
    if separator == ',' {
        out.push('}');
    }
    let _ = writeln!(out, " {}", sample.value);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_escaped_and_constants_stand_before_them() {
        let sample = |labels, value| Sample { suffix: "", labels, value };
        let metric = Metric {
            name: "penstock_x_total",
            help: "X.",
            kind: MetricKind::Counter,
            samples: vec![sample(vec![("path", "/a\"\\\n".to_owned())], 1.0), sample(Vec::new(), 2.5)],
        };
        let mut page = Page::default();

        page.add(&metric, &[]);
        page.add(&metric, &[("pod", "a".to_owned())]);

        assert_eq!(
            page.into_text(),
            "# HELP penstock_x_total X.\n# TYPE penstock_x_total counter\n\
             penstock_x_total{path=\"/a\\\"\\\\\\n\"} 1\npenstock_x_total 2.5\n\
             # HELP penstock_x_total X.\n# TYPE penstock_x_total counter\n\
             penstock_x_total{pod=\"a\",path=\"/a\\\"\\\\\\n\"} 1\npenstock_x_total{pod=\"a\"} 2.5\n"
        );
    }
}

//! Keys that say where spans go. Which requests leave one, each location says.

use std::time::Duration;

use super::keys::{Keys, bare_host, field};
use crate::model::l7::Collector;

/// Without it spans go nowhere.
pub(super) const COLLECTOR: &str = "otlp-collector-host";
const BATCH: &str = "otel-max-exportbatchsize";

/// `None`: nobody takes them.
pub(super) fn read(keys: &mut Keys<'_>) -> Option<Collector> {
    let host = keys.text(COLLECTOR).and_then(bare_host);
    let is_port = |text: &str| text.parse().ok().filter(|port| *port > 0);
    let port = keys.parsed("otlp-collector-port", "a port", is_port).unwrap_or(4317);
    let service = keys.text("otel-service-name").unwrap_or("nginx").to_owned();
    let mut count = |key, usual| {
        let is_count = |text: &str| text.parse().ok().filter(|count| (1..=SPANS_MAX).contains(count));
        keys.parsed(key, &format!("a whole number from 1 to {SPANS_MAX}"), is_count).unwrap_or(usual)
    };
    let (queue, batch) = (count("otel-max-queuesize", 2048), count(BATCH, 512));
    let is_delay = |text: &str| text.parse().ok().filter(|delay| (1..=DELAY_MAX).contains(delay));
    let wanted = format!("a number of milliseconds from 1 to {DELAY_MAX}");
    let delay = keys.parsed("otel-schedule-delay-millis", &wanted, is_delay).unwrap_or(5000);
    if batch > queue && keys.text(BATCH).is_some() {
        let message = format!("{batch} spans never wait at once: {queue}, the otel-max-queuesize, is used");
        keys.about.warn("bad-value", field(BATCH), message, "");
    }
    if host.is_none() && keys.boolean("enable-opentelemetry") == Some(true) {
        let message =
            "no otlp-collector-host takes spans: traces go on through here, and nothing is told of them";
        let fix = "set otlp-collector-host";
        keys.about.warn("no-collector", field("enable-opentelemetry"), message, fix);
    }
    Some(Collector {
        host: host?.to_owned(),
        port,
        service,
        queue,
        batch: batch.min(queue),
        delay: Duration::from_millis(delay),
    })
}

/// Most spans in memory; each may have some kilobytes.
const SPANS_MAX: usize = 65_536;
/// An hour.
const DELAY_MAX: u64 = 3_600_000;

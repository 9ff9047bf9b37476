//! `enable-opentelemetry` and what goes with it, of the Ingress and of the ConfigMap.

use std::sync::Arc;

use super::super::findings::About;
use super::field;
use super::policies::Source;
use crate::model::l7::log::{Escape, Format};
use crate::model::l7::{Choice, Sampler, Traced};

const ENABLE: &str = "enable-opentelemetry";
pub(in crate::translate) const OPERATION: &str = "opentelemetry-operation-name";
pub(in crate::translate) const RATIO: &str = "otel-sampler-ratio";

/// `None`: its requests take part in no trace of ours.
pub(super) fn read(source: &Source<'_>, about: &mut About<'_>) -> Option<Arc<Traced>> {
    source.boolean(ENABLE).filter(|is_on| *is_on)?;
    let exports = source.settings.text("otlp-collector-host").is_some();
    // Whoever enables it for all is told at the ConfigMap.
    if !exports && source.settings.boolean(ENABLE) != Some(true) {
        let message = "no otlp-collector-host in the ConfigMap takes spans: traces go on through here, and nothing is told of them";
        about.warn("no-collector", field(ENABLE), message, "set otlp-collector-host");
    }
    let operation = source.text(OPERATION).unwrap_or("$location_path");
    let choice = match source.settings.text("otel-sampler").map(str::to_ascii_lowercase).as_deref() {
        Some("alwaysoff") => Choice::None,
        Some("traceidratiobased") => {
            Choice::share(source.settings.text(RATIO).and_then(ratio).unwrap_or(0.01))
        }
        _ => Choice::All,
    };
    Some(Arc::new(Traced {
        operation: Format::compile(operation, Escape::None).0,
        trusts: source.boolean("opentelemetry-trust-incoming-span").unwrap_or(true),
        sampler: Sampler {
            choice,
            follows: source.settings.boolean("otel-sampler-parent-based").unwrap_or(true),
        },
        exports,
    }))
}

/// What is wrong with a value of the ConfigMap.
pub(in crate::translate) fn check(key: &str, text: &str) -> Result<(), String> {
    if key == RATIO {
        return ratio(text).map(drop).ok_or_else(|| format!("{text:?} is not a number from 0 to 1"));
    }
    match Format::compile(text, Escape::None).1.as_slice() {
        [] => Ok(()),
        [name, ..] => Err(format!("{text:?}: there is no variable ${name}")),
    }
}

fn ratio(text: &str) -> Option<f64> {
    text.parse().ok().filter(|ratio| (0.0..=1.0).contains(ratio))
}

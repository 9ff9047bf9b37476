//! What the admin endpoint says before anything is known: that the process lives, that it is not ready,
//! and what it waits for.

use std::sync::Arc;

use super::source::Awaited;
use crate::admin::{Live, Refused, Stream, exposition};
use crate::config::Config;
use crate::model::report::Explanation;

/// An agent that waits for its source.
pub(super) struct Waiting {
    awaited: Awaited,
    health_path: String,
}

impl Waiting {
    pub(super) fn new(config: &Config, awaited: Awaited) -> Arc<Self> {
        Arc::new(Self { awaited, health_path: config.health_path.clone() })
    }
}

impl Live for Waiting {
    fn health(&self) -> Result<(), String> {
        Err(self.awaited.reason())
    }

    fn health_path(&self) -> &str {
        &self.health_path
    }

    fn metrics(&self) -> String {
        let mut page = exposition::Page::default();
        self.awaited.metrics().iter().for_each(|metric| page.add(metric, &[]));
        page.into_text()
    }

    fn status_text(&self) -> String {
        format!("{}\n", self.awaited.reason())
    }

    fn status_json(&self) -> serde_json::Value {
        serde_json::json!({ "waiting": self.awaited.reason() })
    }

    fn explain_url(&self, _: &str, _: &[(String, String)]) -> Result<Explanation, String> {
        Err(self.awaited.reason())
    }

    fn explain_flow(&self, _: &str) -> Result<Explanation, String> {
        Err(self.awaited.reason())
    }

    fn capture(&self, _: &[(String, String)]) -> Result<Stream, Refused> {
        Err(Refused::Failed(self.awaited.reason()))
    }

    fn stop_capture(&self) {}
}

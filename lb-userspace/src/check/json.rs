//! The report for programs.

use super::Report;

/// The whole report as one JSON document.
pub fn render_json(report: &Report) -> String {
    let mut text = serde_json::to_string_pretty(report).unwrap_or_default();
    text.push('\n');
    text
}

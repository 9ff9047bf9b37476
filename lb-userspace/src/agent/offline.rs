//! Questions answered from a directory alone, by the code a live agent runs.

use std::path::Path;

use super::{StartError, meaning_options, question};
use crate::config::{HashKey, TranslateConfig};
use crate::datapath::simulate;
use crate::model::l4::FiveTuple;
use crate::model::report::Explanation;
use crate::translate::Translated;
use crate::{check, datapath, l7, manifests, translate};

/// What becomes of every object under `path` (`-`: one file on standard input).
pub fn check(path: &Path, meaning: &TranslateConfig) -> Result<check::Report, StartError> {
    let loaded = load(path)?;
    let translated = translate::translate(&loaded.objects, &meaning_options(meaning));
    Ok(check::report(&loaded.objects, &translated, &loaded.problems))
}

/// Where a request would go.
pub fn explain_url(
    path: &Path,
    meaning: &TranslateConfig,
    url: &str,
    headers: &[(String, String)],
) -> Result<Explanation, StartError> {
    let Translated { snapshot, .. } = translate::translate(&load(path)?.objects, &meaning_options(meaning));
    let question = question::parse(url, headers).map_err(StartError::Usage)?;
    Ok(l7::explain::explain(&snapshot.l7, None, &question))
}

/// Where a flow would go. Without the key of the balancers in question the backend is only an
/// example; the explanation says so.
pub fn explain_flow(
    path: &Path,
    meaning: &TranslateConfig,
    key: Option<HashKey>,
    flow: &str,
) -> Result<Explanation, StartError> {
    let flow: FiveTuple = flow.parse().map_err(StartError::Usage)?;
    let Translated { snapshot, .. } = translate::translate(&load(path)?.objects, &meaning_options(meaning));
    Ok(datapath::explain::explain_offline(&snapshot.l4, key.map(|key| key.0), flow))
}

/// What `penstock simulate flows` found, in three forms.
pub struct Simulated {
    /// For a terminal.
    pub text: String,
    /// For a program.
    pub json: String,
    /// As a drawing.
    pub svg: String,
}

/// Counts the flows that changes break.
pub fn simulate_flows(seed: u64, flows: u32) -> Simulated {
    let options = simulate::Options { seed, flows };
    let outcomes = simulate::run(options);
    Simulated {
        text: simulate::render(&outcomes, options),
        json: serde_json::to_string_pretty(&outcomes).unwrap_or_default() + "\n",
        svg: simulate::plot::svg(&outcomes),
    }
}

fn load(path: &Path) -> Result<manifests::Loaded, StartError> {
    if path != Path::new("-") {
        return Ok(manifests::load(path, translate::admit)?);
    }
    let mut text = Vec::new();
    std::io::Read::read_to_end(&mut std::io::stdin().lock(), &mut text).map_err(StartError::Runtime)?;
    Ok(manifests::load_text("-", &text, translate::admit))
}

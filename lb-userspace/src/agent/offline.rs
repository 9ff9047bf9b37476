//! Questions answered from a directory alone, by the code a live agent runs.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::{StartError, options, question, source};
use crate::config::{ClusterConfig, HashKey, TranslateConfig};
use crate::datapath::simulate;
use crate::model::l4::FiveTuple;
use crate::model::report::Explanation;
use crate::objects::Loaded;
use crate::translate::Translated;
use crate::{check, datapath, dns, l7, manifests, translate};

/// What becomes of every object under these paths (`-`: one file on standard input).
pub fn check(paths: &[PathBuf], meaning: &TranslateConfig) -> Result<check::Report, StartError> {
    let options = options::of_meaning(meaning);
    Ok(report(&load(paths, &options)?, &options))
}

/// What becomes of every object of a cluster that tells them within `patience`.
pub fn check_cluster(
    cluster: &ClusterConfig,
    meaning: &TranslateConfig,
    patience: Duration,
) -> Result<check::Report, StartError> {
    let options = translate::Options { classes: translate::Classes::Written, ..options::of_meaning(meaning) };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let loaded =
        runtime.map_err(StartError::Runtime)?.block_on(source::once(cluster, meaning, &options, patience))?;
    Ok(report(&loaded, &options))
}

fn report(loaded: &Loaded, options: &translate::Options) -> check::Report {
    let translated = translate::translate(&loaded.objects, options);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    check::report(&check::Input {
        objects: &loaded.objects,
        options,
        translated: &translated,
        load_problems: &loaded.problems,
        now: i64::try_from(now.as_secs()).unwrap_or(i64::MAX),
    })
}

/// Where a request would go.
pub fn explain_url(
    path: &Path,
    meaning: &TranslateConfig,
    url: &str,
    headers: &[(String, String)],
) -> Result<Explanation, StartError> {
    let options = options::of_meaning(meaning);
    let Translated { snapshot, .. } =
        translate::translate(&load(&[path.to_owned()], &options)?.objects, &options);
    let question = question::parse(url, headers).map_err(StartError::Usage)?;
    Ok(l7::explain::explain(&dns::unasked(&snapshot.l7), None, &question))
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
    let options = options::of_meaning(meaning);
    let Translated { snapshot, .. } =
        translate::translate(&load(&[path.to_owned()], &options)?.objects, &options);
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
    let options = simulate::Options { seed, flows, flow_bits: simulate::FLOW_BITS };
    let outcomes = simulate::run(options);
    Simulated {
        text: simulate::render(&outcomes, options),
        json: serde_json::to_string_pretty(&outcomes).unwrap_or_default() + "\n",
        svg: simulate::plot::svg(&outcomes),
    }
}

fn load(paths: &[PathBuf], options: &translate::Options) -> Result<Loaded, StartError> {
    let mut stdin = None;
    if paths.iter().any(|path| path == Path::new("-")) {
        let mut text = Vec::new();
        std::io::Read::read_to_end(&mut std::io::stdin().lock(), &mut text).map_err(StartError::Runtime)?;
        stdin = Some(text);
    }
    Ok(manifests::load_all(paths, stdin, translate::admission(options))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_served_by_dns_is_explained_though_nobody_is_asked() {
        const OBJECTS: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: api}
spec: {type: ExternalName, externalName: api.example.org, ports: [{port: 443, targetPort: 8443}]}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: api}
spec:
  ingressClassName: nginx
  rules:
  - host: a.example.com
    http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: api, port: {number: 443}}}}]}
"#;
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join("all.yaml"), OBJECTS).expect("a file");

        let explained = explain_url(dir.path(), &TranslateConfig::default(), "http://a.example.com/", &[]);

        let text = format!("{:?}", explained.expect("an explanation"));
        assert!(text.contains("proxied to default-api-443"), "{text}");
        assert!(text.contains("[api.example.org:8443 by DNS, which only the running agent asks]"), "{text}");
    }
}

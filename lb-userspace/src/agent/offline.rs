//! Questions answered from a directory alone, by the code a live agent runs.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::{StartError, certificates, options, question, source};
use crate::config::{ClusterConfig, DatapathMode, HashKey, TranslateConfig};
use crate::datapath::simulate::{self, Scenario, Scheme};
use crate::model::l4::FiveTuple;
use crate::model::report::Explanation;
use crate::objects::{Bystander, Loaded};
use crate::translate::Translated;
use crate::{check, datapath, dns, l7, manifests, translate};

/// Whether somebody said on which node objects are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OwnNode {
    /// That it has no Node object is worth telling.
    Named,
    /// The host on which it is asked has the name, and need be no node.
    Guessed,
}

/// Files to make a report of.
pub struct Files {
    files: manifests::Files,
    bystanders: Vec<Bystander>,
}

/// Reads what is under these paths (`-`: one file on standard input).
pub fn read(paths: &[PathBuf]) -> Result<Files, StartError> {
    let files = read_all(paths).map_err(|error| match error {
        StartError::Manifests(error) => StartError::Paths(error),
        other => other,
    })?;
    let bystanders = files.bystanders();
    Ok(Files { files, bystanders })
}

impl Files {
    /// How ingress-nginx was started, as far as they tell.
    pub fn controllers(&self) -> Vec<check::Controller> {
        check::controllers(&self.bystanders)
    }
}

/// What becomes of every object in these files, with or without a kernel part.
pub fn check(
    files: Files,
    meaning: &TranslateConfig,
    datapath: DatapathMode,
    own: OwnNode,
    started: &[check::Started],
) -> check::Report {
    let options = with_datapath(meaning, datapath);
    let Files { files, bystanders } = files;
    let loaded = files.load(translate::admission(&options));
    report(&loaded, &bystanders, started, options, own)
}

fn with_datapath(meaning: &TranslateConfig, datapath: DatapathMode) -> translate::Options {
    translate::Options { streams: options::streams(datapath), ..options::of_meaning(meaning) }
}

/// What becomes of every object of a cluster that tells them within `patience`.
pub fn check_cluster(
    cluster: &ClusterConfig,
    meaning: &TranslateConfig,
    datapath: DatapathMode,
    own: OwnNode,
    patience: Duration,
) -> Result<check::Report, StartError> {
    let options = options::of_cluster(with_datapath(meaning, datapath));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let loaded =
        runtime.map_err(StartError::Runtime)?.block_on(source::once(cluster, meaning, &options, patience))?;
    Ok(report(&loaded, &[], &[], options, own))
}

fn report(
    loaded: &Loaded,
    bystanders: &[Bystander],
    started: &[check::Started],
    mut options: translate::Options,
    own: OwnNode,
) -> check::Report {
    let is_node = |name: &String| loaded.objects.nodes.contains_key(name);
    options.node = options.node.filter(|name| own == OwnNode::Named || is_node(name));
    let options = &options;
    let translated = translate::translate(&loaded.objects, options);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    check::report(&check::Input {
        objects: &loaded.objects,
        options,
        translated: &translated,
        load_problems: &loaded.problems,
        bystanders,
        started,
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
    let Translated { snapshot, problems, .. } =
        translate::translate(&load(&[path.to_owned()], &options)?.objects, &options);
    let question = question::parse(url, headers).map_err(StartError::Usage)?;
    let mut explanation = l7::explain::explain(&dns::unasked(&snapshot.l7), None, &problems, &question);
    if question.scheme == l7::explain::Scheme::Https {
        let (l7, now) = (&snapshot.l7, certificates::now());
        certificates::explain(&mut explanation, l7, &problems, &question.host, now);
    }
    Ok(explanation)
}

/// Whether somebody could be asked that: what is wrong by itself is wrong without an agent, too.
pub fn judge(url: Option<&str>, headers: &[(String, String)], flow: Option<&str>) -> Result<(), StartError> {
    let judged = match (url, flow) {
        (Some(url), _) => question::parse(url, headers).map(drop),
        (None, Some(flow)) => flow.parse::<FiveTuple>().map(drop),
        (None, None) => Ok(()),
    };
    judged.map_err(StartError::Usage)
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

/// What `penstock simulate flows` is asked for.
pub struct Simulation {
    options: simulate::Options,
    scenarios: Vec<Scenario>,
}

impl Simulation {
    /// Of these scenarios by name, or of all where none is named.
    pub fn new(seed: u64, flows: u32, flow_entries: u32, scenarios: &[String]) -> Result<Self, StartError> {
        let known = |name: &String| {
            let found = Scenario::ALL.into_iter().find(|scenario| scenario.key() == name);
            found.ok_or_else(|| {
                let all = Scenario::ALL.map(Scenario::key).join(", ");
                StartError::Usage(format!("--scenario {name}: allowed: {all}"))
            })
        };
        let named: Vec<Scenario> = scenarios.iter().map(known).collect::<Result<_, _>>()?;
        let wanted = |scenario: &Scenario| named.is_empty() || named.contains(scenario);
        let flow_bits = flow_entries.next_power_of_two().trailing_zeros() as u8;
        Ok(Self {
            options: simulate::Options { seed, flows, flow_bits },
            scenarios: Scenario::ALL.into_iter().filter(wanted).collect(),
        })
    }

    /// How many runs it takes.
    pub fn runs(&self) -> usize {
        self.scenarios.len() * Scheme::ALL.len()
    }

    /// Counts the flows that changes break.
    pub fn run(&self) -> Simulated {
        let outcomes = simulate::run(self.options, &self.scenarios);
        Simulated {
            text: simulate::render(&outcomes, self.options),
            json: serde_json::to_string_pretty(&outcomes).unwrap_or_default() + "\n",
            svg: simulate::plot::svg(&outcomes),
        }
    }
}

fn load(paths: &[PathBuf], options: &translate::Options) -> Result<Loaded, StartError> {
    Ok(read_all(paths)?.load(translate::admission(options)))
}

fn read_all(paths: &[PathBuf]) -> Result<manifests::Files, StartError> {
    let mut given = None;
    if paths.iter().any(|path| path == Path::new("-")) {
        let mut text = Vec::new();
        let stdin = std::io::stdin().lock().take(manifests::MAX_BYTES + 1).read_to_end(&mut text);
        stdin.map_err(StartError::Runtime)?;
        given = Some(text);
    }
    Ok(manifests::read_all(paths, given)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_checked_on_a_host_that_is_none_of_them() {
        let dir = tempfile::tempdir().expect("a directory");
        let nodes = "apiVersion: v1\nkind: Node\nmetadata: {name: edge-1}\n";
        std::fs::write(dir.path().join("nodes.yaml"), nodes).expect("a file");
        let meaning =
            TranslateConfig { node_name: Some("a-laptop".to_owned()), ..TranslateConfig::default() };
        let needs_action = |own| {
            let files = read(&[dir.path().to_owned()]).expect("files");
            let report = super::check(files, &meaning, DatapathMode::Auto, own, &[]);
            report.reaches(check::Verdict::NeedsAction)
        };

        assert!(!needs_action(OwnNode::Guessed));
        assert!(needs_action(OwnNode::Named));
    }

    #[test]
    fn what_closes_a_location_is_explained() {
        let dir = tempfile::tempdir().expect("a directory");
        let ingress = "apiVersion: networking.k8s.io/v1\nkind: Ingress\nmetadata:\n  name: web\n  annotations:\n    \
            nginx.ingress.kubernetes.io/denylist-source-range: nobody\nspec:\n  ingressClassName: nginx\n  \
            rules: [{host: a.example.com, http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: web, port: {number: 80}}}}]}}]\n";
        std::fs::write(dir.path().join("ingress.yaml"), ingress).expect("written");

        let explained = explain_url(dir.path(), &TranslateConfig::default(), "http://a.example.com/", &[]);

        let text = format!("{:?}", explained.expect("an explanation"));
        let closed = "holds what cannot be honoured: metadata.annotations.nginx.ingress.kubernetes.io/denylist-source-range: ";
        assert!(text.contains(closed), "{text}");
    }

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

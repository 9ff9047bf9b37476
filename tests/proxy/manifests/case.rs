//! A case: an Ingress with annotations, the objects that it needs, and what its clients see. Read from YAML.
//!
//! Each is served once as it stands and once without each of its annotations, every time in a namespace and under a host of its own:
//! what it expects has to come with all of them, and must not come without one. So a case cannot pass because nothing of it matters.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, json};

use super::step::Step;

const PREFIX: &str = "nginx.ingress.kubernetes.io/";

/// The cases of one file, served by one agent.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Theme {
    /// Of the controller's ConfigMap, for all of them.
    #[serde(default)]
    pub config: BTreeMap<String, String>,
    #[serde(default)]
    pub flags: Vec<String>,
    pub cases: Vec<Case>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Case {
    pub case: String,
    #[serde(default)]
    pub ingress: Ingress,
    /// More Ingresses of the same namespace, which count after the first.
    #[serde(default)]
    pub also: Vec<Ingress>,
    /// Keys of the controller's ConfigMap, where the cases are about these.
    #[serde(default)]
    pub config: BTreeMap<String, String>,
    #[serde(default)]
    pub secrets: BTreeMap<String, BTreeMap<String, String>>,
    #[serde(default)]
    pub config_maps: BTreeMap<String, BTreeMap<String, String>>,
    /// Services that no Ingress of it names.
    #[serde(default)]
    pub services: Vec<String>,
    /// Annotations and keys that this case does not prove, each with why it has them.
    #[serde(default)]
    pub unproven: BTreeMap<String, String>,
    pub ask: Vec<Step>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Ingress {
    pub annotations: BTreeMap<String, String>,
    path: String,
    path_type: String,
    /// More paths, all of type Prefix.
    paths: Vec<String>,
    service: String,
    /// The port's name where it has not number 80.
    port: Option<String>,
    host: Option<String>,
    tls: bool,
    /// Its class; empty: it names none.
    class: String,
    /// Whether it has a default backend instead of rules.
    catch_all: bool,
}

impl Default for Ingress {
    fn default() -> Self {
        Self {
            annotations: BTreeMap::new(),
            path: "/".to_owned(),
            path_type: "Prefix".to_owned(),
            paths: Vec::new(),
            service: "echo".to_owned(),
            port: None,
            host: None,
            tls: false,
            class: "nginx".to_owned(),
            catch_all: false,
        }
    }
}

/// A case as it is served.
#[derive(Debug, Clone)]
pub struct Variant {
    pub case: Case,
    /// Its namespace, and the first label of its host.
    pub id: String,
    /// The annotation that it lacks.
    pub without: Option<String>,
}

impl Theme {
    pub fn read(name: &str) -> Self {
        let path = lb_tests::workspace().join(format!("tests/proxy/manifests/{name}.yaml"));
        let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{name}: {error}"));
        serde_saphyr::from_str(&text).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    pub fn variants(&self) -> Vec<Variant> {
        let cases = self.cases.iter().enumerate();
        let mut all: Vec<Variant> = cases.flat_map(|(number, case)| case.variants(number)).collect();
        all.sort_by_key(|variant| variant.without.is_some());
        all
    }
}

impl Case {
    /// The annotations without which this case fails.
    pub fn proves(&self) -> impl Iterator<Item = &str> {
        let all = std::iter::once(&self.ingress).chain(&self.also).flat_map(|it| it.annotations.keys());
        all.map(String::as_str).filter(|name| !self.unproven.contains_key(*name))
    }

    /// The keys that this case is about.
    pub fn sets(&self) -> impl Iterator<Item = &str> {
        self.config.keys().map(String::as_str).filter(|key| !self.unproven.contains_key(*key))
    }

    fn variants(&self, number: usize) -> Vec<Variant> {
        let whole = Variant { case: self.clone(), id: format!("c{number}"), without: None };
        let mut names: Vec<&str> = self.proves().collect();
        names.sort_unstable();
        names.dedup();
        let lacking = names.into_iter().enumerate().map(|(place, name)| {
            let mut case = self.clone();
            case.ingress.annotations.remove(name);
            case.also.iter_mut().for_each(|ingress| drop(ingress.annotations.remove(name)));
            Variant { case, id: format!("c{number}-{place}"), without: Some(name.to_owned()) }
        });
        std::iter::once(whole.clone()).chain(lacking).collect()
    }
}

impl Variant {
    pub fn host(&self) -> String {
        format!("{}.example.test", self.id)
    }

    /// The Ingresses and what they name, without Services.
    pub fn objects(&self) -> Vec<Value> {
        let Case { ingress, also, secrets, config_maps, .. } = &self.case;
        let mut objects = vec![self.ingress("main", ingress)];
        let younger = also.iter().enumerate();
        objects.extend(younger.map(|(n, ingress)| self.ingress(&format!("also-{n}"), ingress)));
        objects.extend(secrets.iter().map(|(name, data)| {
            json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": self.id}, "stringData": data})
        }));
        objects.extend(config_maps.iter().map(|(name, data)| {
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": self.id}, "data": data})
        }));
        objects
    }

    fn ingress(&self, name: &str, ingress: &Ingress) -> Value {
        let Ingress { annotations, path, path_type, paths, service, port, host, tls, class, catch_all } =
            ingress;
        let annotations: serde_json::Map<_, _> = annotations
            .iter()
            .map(|(name, value)| (format!("{PREFIX}{name}"), value.clone().into()))
            .collect();
        let port = port.as_ref().map_or(json!({"number": 80}), |name| json!({"name": name}));
        let backend = json!({"service": {"name": service, "port": port}});
        let host = host.clone().unwrap_or_else(|| self.host());
        let more = paths.iter().map(|path| json!({"path": path, "pathType": "Prefix", "backend": backend}));
        let first = json!({"path": path, "pathType": path_type, "backend": backend});
        let paths: Vec<_> = std::iter::once(first).chain(more).collect();
        let tls = if *tls { json!([{"hosts": [host], "secretName": "cert"}]) } else { json!([]) };
        let mut spec = json!({"tls": tls, "rules": [{"host": host, "http": {"paths": paths}}]});
        if *catch_all {
            spec = json!({"defaultBackend": backend});
        }
        if !class.is_empty() {
            spec["ingressClassName"] = class.as_str().into();
        }
        let metadata = json!({"name": name, "namespace": self.id, "annotations": annotations});
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": metadata, "spec": spec})
    }
}

//! One agent, the built binary, and everything that the cases of a theme need beside it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::thread;

use lb_tests::manifests::Authority;
use serde_json::{Value, json};

use super::backend::{Echo, Records, unanswering, unread};
use super::case::{Theme, Variant};
use super::client::{Client, LONG, SHORT};
use crate::rig::nobody;
use crate::takeover::Agents;
use crate::tls_client::{Ca, Identity};
use crate::upstream_tls::{Chain, server_config};

pub struct Stage {
    pub agents: Agents,
    pub props: Props,
}

/// Backends, and what the objects of the cases can name.
pub struct Props {
    pub records: Records,
    services: BTreeMap<&'static str, Vec<SocketAddr>>,
    /// Whom the cases' clients are certified by, and whom not.
    friends: Ca,
    strangers: Ca,
    /// Of the hosts.
    certificate: (String, String),
    /// What Secrets hold beside text of their own.
    pems: BTreeMap<&'static str, String>,
    _full: Vec<socket2::Socket>,
}

impl Theme {
    /// Serves all cases, and all of them without each of their annotations.
    pub fn prove(&self) {
        let variants = self.variants();
        let stage = Stage::start(&variants, &self.config, &self.flags);

        let failed: Vec<&Variant> = thread::scope(|scope| {
            let stage = &stage;
            let judge = |variant| scope.spawn(move || stage.judge(variant).is_err());
            let running: Vec<_> = variants.iter().map(|variant| (variant, judge(variant))).collect();
            let failed = running
                .into_iter()
                .filter_map(|(variant, it)| it.join().expect("no panic").then_some(variant));
            failed.collect()
        });
        // Beside dozens of others on a busy machine some come too late: these are asked once more, one by one.
        let failures: Vec<String> =
            failed.into_iter().filter_map(|variant| stage.judge(variant).err()).collect();

        assert!(failures.is_empty(), "{} failed:\n\n{}", failures.len(), failures.join("\n\n"));
    }
}

impl Theme {
    /// Serves all cases twice, with the flags and without: what each expects must come only with them.
    pub fn prove_flags(&self) {
        let variants: Vec<Variant> = self.variants().into_iter().filter(|it| it.without.is_none()).collect();
        for flags in [&self.flags[..], &[]] {
            let stage = Stage::start(&variants, &self.config, flags);
            for variant in &variants {
                let patience = if flags.is_empty() { SHORT } else { LONG };
                let outcome = Client::new(&stage, variant.host(), patience).take(&variant.case.ask);

                assert_eq!(
                    outcome.is_err(),
                    flags.is_empty(),
                    "{} {flags:?}: {outcome:?}",
                    variant.case.case
                );
            }
        }
    }
}

impl Stage {
    pub fn start(variants: &[Variant], config: &BTreeMap<String, String>, flags: &[String]) -> Self {
        let props = Props::new();
        let all: String = variants.iter().map(|variant| props.manifests(variant)).collect();
        let (config, node) = (configuration(config), node());
        let mut given = vec!["--workers", "1"];
        given.extend(flags.iter().map(String::as_str));
        let files = [("all.yaml", all.as_str()), ("config.yaml", &config), ("node.yaml", &node)];
        Self { agents: Agents::over(&files, &given), props }
    }

    /// Puts in what only this run knows: `@host@`, `@id@`, `@http@`, `@https@`, addresses of backends, certificates.
    pub fn fill_in(&self, text: &str, host: &str) -> String {
        let (http, https) = (self.agents.http.port().to_string(), self.agents.https.port().to_string());
        self.props
            .fill_in(text, host)
            .replace("@http@", &http)
            .replace("@https@", &https)
            .replace("@dir@", &self.agents.path("").to_string_lossy())
    }

    /// Whether a case comes out as it should, or fails where it lacks something.
    fn judge(&self, variant: &Variant) -> Result<(), String> {
        let patience = if variant.without.is_some() { SHORT } else { LONG };
        let outcome = Client::new(self, variant.host(), patience).take(&variant.case.ask);
        let case = &variant.case.case;
        match (&variant.without, outcome) {
            (None, Err(wrong)) => Err(format!("{case}\n{wrong}")),
            (Some(name), Ok(())) => Err(format!("{case}\npasses without {name}, too")),
            _ => Ok(()),
        }
    }
}

impl Props {
    fn new() -> Self {
        let records = Records::default();
        let (chain, us) = (Chain::new("inner.example", 0), Chain::new("us", 0));
        let echo =
            |name: &str, place, obeys| Echo { name: name.to_owned(), place, obeys, records: records.clone() };
        let several = |service: &str, count| -> Vec<SocketAddr> {
            (1..=count).map(|place| echo(&format!("{service}-{place}"), place, "Reply").start()).collect()
        };
        let secure = |name, clients| echo(name, 1, "Reply").start_tls(server_config(&chain, clients));
        let (full, kept) = unanswering();
        let services = BTreeMap::from([
            ("echo", several("echo", 1)),
            ("other", several("other", 1)),
            ("pair", several("pair", 2)),
            ("dozen", several("dozen", 12)),
            ("half", [several("half", 1), vec![nobody()]].concat()),
            ("empty", vec![]),
            // Of each namespace its own, so that nobody else has left connections there.
            ("fresh", vec![]),
            ("guard", vec![]),
            ("login", vec![echo("login", 1, "Login").start()]),
            ("secure", vec![secure("secure", None)]),
            ("wary", vec![secure("wary", Some(&us))]),
            ("full", vec![full]),
            ("unread", vec![unread()]),
            ("php", vec![crate::fastcgi::mirror().addr]),
            ("calls", vec![crate::grpc::naming(None)]),
            ("secret-calls", vec![crate::grpc::naming(Some(crate::grpc::tls()))]),
        ]);
        let friends = Ca::new("Friends");
        let pems = BTreeMap::from([
            ("friends", friends.pem.clone()),
            ("upstream-ca", chain.root_pem.clone()),
            ("our-chain", us.chain_pem.clone()),
            ("our-key", us.key_pem.clone()),
        ]);
        let certificate = Authority::new("Test").and_then(|it| it.pair("*.example.test")).expect("a pair");
        Self { records, services, friends, strangers: Ca::new("Strangers"), certificate, pems, _full: kept }
    }

    /// What a client shows of itself.
    pub fn identity(&self, who: &str) -> Identity {
        let ca = if who == "friend" { &self.friends } else { &self.strangers };
        ca.issue(who, 2200)
    }

    fn fill_in(&self, text: &str, host: &str) -> String {
        if !text.contains('@') {
            return text.to_owned();
        }
        let id = host.split('.').next().unwrap_or_default();
        // Longer than a kilobyte.
        let text = text.replace("@long@", &"x".repeat(1100));
        let text = text.replace("@host@", host).replace("@id@", id).replace("@ID@", &id.to_uppercase());
        let addrs = self.services.iter().filter_map(|(name, all)| Some((*name, all.first()?.to_string())));
        let pems = self.pems.iter().map(|(name, pem)| (*name, pem.clone()));
        addrs.chain(pems).fold(text, |text, (name, value)| text.replace(&format!("@{name}@"), &value))
    }

    /// Everything that a namespace needs.
    fn manifests(&self, variant: &Variant) -> String {
        let fill = |value: &Value| filled(value, &|text| self.fill_in(text, &variant.host()));
        let mut objects: Vec<Value> = variant.objects().iter().map(fill).collect();
        let text = objects.iter().map(Value::to_string).collect::<String>();
        let is_named =
            |service: &str| text.contains(service) || variant.case.services.iter().any(|it| it == service);
        let named = self.services.iter().filter(|(service, _)| is_named(service));
        for (service, endpoints) in named {
            let own = |obeys| {
                vec![
                    Echo { name: (*service).to_owned(), place: 1, obeys, records: self.records.clone() }
                        .start(),
                ]
            };
            let own = match *service {
                "fresh" => Some(own("Reply")),
                "guard" => Some(own("Login")),
                _ => None,
            };
            objects.extend(self.service(&variant.id, service, own.as_ref().unwrap_or(endpoints)));
        }
        if text.contains("\"cert\"") {
            objects.push(json!({
                "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
                "metadata": {"name": "cert", "namespace": variant.id},
                "stringData": {"tls.crt": self.certificate.0, "tls.key": self.certificate.1},
            }));
        }
        objects.iter().map(|object| format!("{object}\n---\n")).collect()
    }

    fn service(&self, namespace: &str, name: &str, endpoints: &[SocketAddr]) -> Vec<Value> {
        // The port that its address has as a Service, for whoever sends to that.
        let own = self.services["other"][0];
        let mut objects = vec![json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": namespace},
            "spec": {"clusterIP": own.ip(), "ports": [
                {"name": "http", "port": 80},
                {"name": "own", "port": own.port(), "targetPort": 80},
            ]},
        })];
        objects.extend(endpoints.iter().enumerate().map(|(n, endpoint)| {
            json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
                "metadata": {
                    "name": format!("{name}-{n}"), "namespace": namespace,
                    "labels": {"kubernetes.io/service-name": name},
                },
                "ports": [{"name": "http", "port": endpoint.port()}, {"name": "own", "port": endpoint.port()}],
                // Of each zone one, which matters where requests go by zones.
                "endpoints": [{"addresses": [endpoint.ip()], "hints": {"forZones": [{"name": format!("zone-{n}")}]}}],
            })
        }));
        objects
    }
}

/// A node of the second zone; ours, where a flag says so.
fn node() -> String {
    let metadata = json!({"name": "there", "labels": {"topology.kubernetes.io/zone": "zone-1"}});
    json!({"apiVersion": "v1", "kind": "Node", "metadata": metadata}).to_string()
}

/// The controller's ConfigMap.
pub fn configuration(data: &BTreeMap<String, String>) -> String {
    let metadata = json!({"name": "ingress-nginx-controller", "namespace": "ingress-nginx"});
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}).to_string()
}

fn filled(value: &Value, fill: &impl Fn(&str) -> String) -> Value {
    match value {
        Value::String(text) => fill(text).into(),
        Value::Array(all) => all.iter().map(|value| filled(value, fill)).collect(),
        Value::Object(all) => all.iter().map(|(name, value)| (name.clone(), filled(value, fill))).collect(),
        other => other.clone(),
    }
}

//! Flags about the API server that no story of the other files is about, each by what comes of it.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use base64::Engine as _;
use lb_tests::agent::{DEADLINE, eventually};
use lb_tests::manifests::Authority;
use serde_json::{Value, json};

use crate::agent::{Agent, Start, backend};
use crate::deploy::try_kubectl;
use crate::objects;
use crate::rig::Rig;
use crate::webhook::{configured, ingress};
use crate::write::{agent_in_pod, balancer, until_status};

const HOST: &str = "web.example.com";
const LEADS: &str = "nginx_ingress_controller_leader_election_status";

/// An Ingress of the test's class with a Service behind it.
fn apply_web(rig: &Rig) {
    let web = [objects::class(), objects::service("web", &[]), objects::ingress("web", HOST, "web", &[])];
    rig.apply(&web.join("---\n"));
}

/// What stands between two marks of the test's kubeconfig.
fn between<'a>(text: &'a str, before: &str, after: &str) -> &'a str {
    let (_, rest) = text.split_once(before).expect("where it begins");
    rest.split_once(after).expect("where it ends").0
}

#[test]
fn url_and_authority_of_the_api_server_count_more_than_those_of_the_kubeconfig() {
    let Some(rig) = Rig::new() else { return };
    let Some(one) = backend("one") else { return };
    rig.apply(&[objects::class(), objects::service("web", &[one])].join("---\n"));
    rig.apply(&objects::ingress("web", HOST, "web", &[]));
    let own = std::fs::read_to_string(&rig.kubeconfig).expect("a kubeconfig");
    let url = between(&own, "server: \"", "\"");
    let pem = between(&own, "certificate-authority-data: ", "}");
    let decoded = base64::engine::general_purpose::STANDARD.decode(pem).expect("base64");
    let stranger = Authority::new("Nobody").expect("an authority");
    let strange = base64::engine::general_purpose::STANDARD.encode(stranger.pem());
    let dir = tempfile::tempdir().expect("a directory");
    let (kubeconfig, authority) = (dir.path().join("kubeconfig"), dir.path().join("ca.crt"));
    std::fs::write(&kubeconfig, own.replace(url, "https://127.0.0.1:1").replace(pem, &strange))
        .expect("writable");
    std::fs::write(&authority, decoded).expect("writable");
    let namespace = format!("--watch-namespace={}", rig.namespace);
    let server = format!("--apiserver-host={url}");
    let trusted = format!("--certificate-authority={}", authority.display());
    let start = |flags: &[&str]| Agent::launch(&Start { kubeconfig: &kubeconfig, flags, env: &[] });

    let neither = start(&[&namespace]);
    neither.wait_for_log("not followed for the moment");
    let url_alone = start(&[&namespace, &server]);
    url_alone.wait_for_log("invalid peer certificate");
    let both = start(&[&namespace, &server, &trusted]).serving();

    both.until_backend(HOST, "one");
    assert!(both.ask("/status").contains(url), "{}", both.ask("/status"));
    assert!(!neither.log().contains("ready admin=") && !url_alone.log().contains("ready admin="));
}

/// `kubectl proxy`, which says for us who we are; ends with this.
struct Proxy {
    child: Child,
    url: String,
}

impl Proxy {
    fn before(rig: &Rig) -> Self {
        let mut command = Command::new("kubectl");
        command.arg("--kubeconfig").arg(&rig.kubeconfig).args(["proxy", "--port=0"]).stdout(Stdio::piped());
        let mut child = command.spawn().expect("kubectl is here");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("a pipe")).read_line(&mut line).expect("it says where");
        let addr = line.trim().rsplit(' ').next().expect("an address");
        Self { url: format!("http://{addr}"), child }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn an_api_server_behind_kubectl_proxy_needs_no_kubeconfig() {
    let Some(rig) = Rig::new() else { return };
    let Some(one) = backend("one") else { return };
    rig.apply(&[objects::class(), objects::service("web", &[one])].join("---\n"));
    rig.apply(&objects::ingress("web", HOST, "web", &[]));
    let proxy = Proxy::before(&rig);
    let namespace = format!("--watch-namespace={}", rig.namespace);

    let agent = Agent::launch_by(&[&namespace, &format!("--apiserver-host={}", proxy.url)]).serving();

    agent.until_backend(HOST, "one");
}

fn lease(rig: &Rig, name: &str) -> Option<Value> {
    rig.get("Lease", name).map(|lease| lease.data["spec"].clone())
}

#[test]
fn agents_of_one_election_id_have_one_leader_and_another_id_is_another_election() {
    let Some(rig) = Rig::new() else { return };
    rig.apply(&objects::class());
    let leads = |agent: &Agent, case: &str| {
        let leads = eventually(DEADLINE, || (agent.metric(LEADS) == 1.0).then_some(()));
        assert!(leads.is_some(), "{case}: {}", agent.log());
    };

    let first = agent_in_pod(&rig, "edge-1", "192.0.2.1", &["--election-id=blue"]);
    leads(&first, "alone");
    let second = agent_in_pod(&rig, "edge-2", "192.0.2.2", &["--election-id=blue"]);
    let third = agent_in_pod(&rig, "edge-3", "192.0.2.3", &["--election-id=green"]);
    leads(&third, "of another election");

    assert_eq!(second.metric(LEADS), 0.0);
    for (name, pod) in [("blue", "edge-1"), ("green", "edge-3")] {
        let spec = lease(&rig, name).unwrap_or_else(|| panic!("no Lease {name}"));
        assert_eq!(
            (&spec["holderIdentity"], &spec["leaseDurationSeconds"]),
            (&json!(pod), &json!(6)),
            "{name}"
        );
    }
    assert_eq!(lease(&rig, "ingress-controller-leader"), None, "nobody asked for the usual one");
}

#[test]
fn without_an_election_each_agent_writes_and_there_is_no_lease() {
    let Some(rig) = Rig::new() else { return };
    apply_web(&rig);

    let flags = ["--disable-leader-election", "--publish-status-address=192.0.2.9"];
    let agent = agent_in_pod(&rig, "edge-1", "192.0.2.1", &flags);

    until_status(&rig, "web", "written", &json!({"ingress": [{"ip": "192.0.2.9"}]}));
    assert_eq!(rig.list("Lease").len(), 0, "{}", agent.log());
}

#[test]
fn status_says_the_addresses_of_the_flag_and_keeps_them_after_the_last_agent_where_it_shall() {
    let Some(rig) = Rig::new() else { return };
    apply_web(&rig);
    rig.apply("apiVersion: v1\nkind: Service\nmetadata: {name: edge}\nspec: {type: LoadBalancer, ports: [{port: 80}]}\n");
    let given = json!({"status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.7"}]}}});
    rig.patch_status("Service", "edge", &given);
    let publish = format!("--publish-service={}/edge", rig.namespace);
    let flags = [
        &publish,
        "--publish-status-address=192.0.2.9,edge.example.com",
        "--update-status-on-shutdown=false",
    ];

    let agent = agent_in_pod(&rig, "edge-1", "192.0.2.1", &flags);

    let said = json!({"ingress": [{"hostname": "edge.example.com"}, {"ip": "192.0.2.9"}]});
    until_status(&rig, "web", "before those of a Service and of nodes", &said);
    agent.end();
    assert_eq!(rig.get("Ingress", "web").map(|object| balancer(&object)), Some(said), "it stays");
}

#[test]
fn status_says_the_outer_address_of_a_node_unless_the_inner_one_is_asked_for() {
    let Some(rig) = Rig::new() else { return };
    apply_web(&rig);
    let both = json!({"status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"},
        {"type": "ExternalIP", "address": "198.51.100.1"}]}});
    let node = format!("{}-edge-1", rig.namespace);

    for (flag, address) in [("false", "198.51.100.1"), ("true", "192.0.2.1")] {
        let flag = format!("--report-node-internal-ip-address={flag}");
        let agent = agent_in_pod(&rig, "edge-1", "192.0.2.1", &[&flag]);
        rig.patch_status("Node", &node, &both);

        until_status(&rig, "web", &flag, &json!({"ingress": [{"ip": address}]}));
        agent.end();
    }
}

/// Puts a fresh certificate of this authority where the webhook looks for it; the key first, as a volume of a
/// Secret changes both at once.
fn put_certificate(dir: &Path, authority: &Authority) {
    let (certificate, key) = authority.pair("127.0.0.1").expect("a pair");
    for (name, text) in [("tls.key", key), ("tls.crt", certificate)] {
        let new = dir.join("new");
        std::fs::write(&new, text).expect("writable");
        std::fs::rename(&new, dir.join(name)).expect("in place");
    }
}

#[test]
fn the_webhook_shows_the_certificate_of_its_files_and_the_next_one_when_they_change() {
    let Some(rig) = Rig::new() else { return };
    let (_configured, addr) = configured(&rig);
    rig.apply(&objects::class());
    let dir = tempfile::tempdir().expect("a directory");
    let authorities = ["One", "Two"].map(|name| Authority::new(name).expect("an authority"));
    put_certificate(dir.path(), &authorities[0]);
    let flags = [
        format!("--watch-namespace={}", rig.namespace),
        format!("--validating-webhook={addr}"),
        format!("--validating-webhook-certificate={}", dir.path().join("tls.crt").display()),
        format!("--validating-webhook-key={}", dir.path().join("tls.key").display()),
    ];
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let agent = Agent::start(&Start { kubeconfig: &rig.kubeconfig, flags: &flags, env: &[] });
    let believe = |authority: &Authority| {
        let bundle = base64::engine::general_purpose::STANDARD.encode(authority.pem());
        let patch = json!([{"op": "add", "path": "/webhooks/0/clientConfig/caBundle", "value": bundle}]);
        let configuration =
            ["patch", "validatingwebhookconfiguration", &rig.namespace, "--type=json", "--patch"];
        rig.kubectl(&[&configuration[..], &[&patch.to_string()]].concat());
    };
    let snippet = "nginx.ingress.kubernetes.io/configuration-snippet: deny all;";
    let snippet = ingress(&rig, "snippet", "b.example.com", snippet);
    // A configuration takes effect a moment after it is stored; nothing is let in meanwhile.
    let until_refused = |case: &str, words: &str| {
        let refused = || try_kubectl(&rig, &["apply", "--filename", "-"], &snippet).err();
        let refused = || refused().filter(|why| why.contains(words));
        assert!(eventually(DEADLINE, refused).is_some(), "{case}: {}", agent.log());
    };

    believe(&authorities[0]);
    until_refused("by the agent", "configuration-snippet: never honoured");
    believe(&authorities[1]);
    until_refused("by the server, which believes another", "x509");
    put_certificate(dir.path(), &authorities[1]);
    until_refused("by the agent again", "configuration-snippet: never honoured");
    assert!(rig.get("Ingress", "snippet").is_none());
}

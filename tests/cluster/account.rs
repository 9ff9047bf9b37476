//! What the chart lets its account do, beside what an agent asks for as that account: nothing is refused, and nothing
//! is allowed that is not asked for. A server of its own writes down who asks for what.

use std::collections::BTreeSet;
use std::path::PathBuf;

use lb_tests::agent::{DEADLINE, eventually};
use lb_tests::apiserver::{ASSETS, ApiServer};
use lb_tests::helm::{Helm, Release};
use lb_tests::manifests::Authority;
use lb_tests::tier;
use serde_json::{Value, json};

use crate::agent::{Agent, Start};
use crate::deploy::kubectl;
use crate::objects;
use crate::rig::Rig;

/// Where the base is installed, and the name of most that it makes.
const INSTALLED: &str = "ingress-nginx";
/// Kinds of the base that are no workload.
const APPLIED: [&str; 10] = [
    "Namespace",
    "ServiceAccount",
    "ConfigMap",
    "ClusterRole",
    "ClusterRoleBinding",
    "Role",
    "RoleBinding",
    "Service",
    "IngressClass",
    "ValidatingWebhookConfiguration",
];
/// Those of no namespace.
const CLUSTER_WIDE: [&str; 5] =
    ["Namespace", "ClusterRole", "ClusterRoleBinding", "IngressClass", "ValidatingWebhookConfiguration"];
/// What the test sets itself: there is no kernel part here, and ports are free ones.
const OWN_FLAGS: [&str; 5] =
    ["--http=", "--https=", "--datapath=", "--shutdown-grace-period=", "--validating-webhook="];

/// One thing that a rule allows.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Right {
    group: String,
    /// With its subresource.
    resource: String,
    verb: String,
    /// Empty: everywhere.
    namespace: String,
    /// Empty: of any name.
    names: Vec<String>,
}

/// All that the rules of a role allow, one by one.
fn rights(role: &Value) -> Vec<Right> {
    let list = |value: &Value| -> Vec<String> {
        let all = value.as_array().into_iter().flatten();
        all.filter_map(|one| one.as_str().map(str::to_owned)).collect()
    };
    let namespace = role["metadata"]["namespace"].as_str().unwrap_or_default();
    let mut rights = Vec::new();
    for rule in role["rules"].as_array().expect("rules") {
        for group in list(&rule["apiGroups"]) {
            for resource in list(&rule["resources"]) {
                for verb in list(&rule["verbs"]) {
                    rights.push(Right {
                        group: group.clone(),
                        resource: resource.clone(),
                        verb,
                        namespace: namespace.to_owned(),
                        names: list(&rule["resourceNames"]),
                    });
                }
            }
        }
    }
    rights
}

impl Right {
    /// Whether it is what a request needs.
    fn covers(&self, asked: &Value) -> bool {
        let text = |field: &str| asked["objectRef"][field].as_str().unwrap_or_default();
        let sub = text("subresource");
        let resource =
            if sub.is_empty() { text("resource").to_owned() } else { format!("{}/{sub}", text("resource")) };
        self.group == text("apiGroup")
            && self.resource == resource
            && asked["verb"] == self.verb
            && (self.namespace.is_empty() || self.namespace == text("namespace"))
            && (self.names.is_empty() || self.names.iter().any(|name| name == text("name")))
    }
}

/// What is installed, without its workload; and the arguments of that.
type Installation = (Vec<Value>, Vec<String>);

fn of_kustomize(rig: &Rig) -> Installation {
    let folder = lb_tests::workspace().join("deploy/kustomize/daemonset");
    let built = kubectl(rig, &["kustomize", &folder.to_string_lossy()], "");
    parted(built.split("\n---\n").map(|text| serde_saphyr::from_str(text).expect("an object")).collect())
}

fn of_chart(rig: &Rig, helm: &mut Helm, controller: Value) -> Installation {
    kubectl(rig, &["create", "namespace", INSTALLED], "");
    let mut values = json!({"controller": {"kind": "DaemonSet"}});
    for (name, value) in controller.as_object().expect("a map") {
        values["controller"][name] = value.clone();
    }
    let release = Release { name: INSTALLED, namespace: INSTALLED, values };
    let objects = helm.template(&release).unwrap_or_else(|error| panic!("{error}"));
    let (mut applied, args) = parted(objects.into_iter().map(|object| object.value).collect());
    // As `helm install` does with what says nothing of it.
    for object in applied.iter_mut().filter(|object| !CLUSTER_WIDE.iter().any(|kind| object["kind"] == *kind))
    {
        let metadata = object["metadata"].as_object_mut().expect("metadata");
        metadata.entry("namespace").or_insert(json!(INSTALLED));
    }
    (applied, args)
}

fn parted(all: Vec<Value>) -> Installation {
    let (applied, rest): (Vec<Value>, Vec<Value>) =
        all.into_iter().partition(|object: &Value| APPLIED.iter().any(|kind| object["kind"] == *kind));
    let workload = rest.iter().find(|object| object["kind"] == "DaemonSet").expect("a workload");
    let args = workload["spec"]["template"]["spec"]["containers"][0]["args"].as_array().expect("arguments");
    let args = args.iter().filter_map(Value::as_str).filter(|arg| arg.starts_with("--"));
    let args = args.filter(|arg| !OWN_FLAGS.iter().any(|own| arg.starts_with(own)));
    (applied, args.map(|arg| arg.replace("$(POD_NAMESPACE)", INSTALLED)).collect())
}

fn apply(rig: &Rig, objects: &[Value]) {
    let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
    kubectl(rig, &["apply", "--filename", "-"], &list.to_string());
}

/// The agent's pod, as a kubelet and a controller would have it.
fn apply_pod(rig: &Rig, name: &str) {
    rig.apply(&format!(
        "apiVersion: v1\nkind: Node\nmetadata: {{name: {name}-node}}\n---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, \
         namespace: {INSTALLED}, labels: {{app: edge}}}}\nspec: {{nodeName: {name}-node, containers: [{{name: a, image: \
         a}}]}}\n"
    ));
    rig.patch_status(
        "Node",
        &format!("{name}-node"),
        &json!({"status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]}}),
    );
    let ready = json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}});
    let patch =
        ["--namespace", INSTALLED, "patch", "pod", name, "--subresource=status", "--type=merge", "--patch"];
    kubectl(rig, &[&patch[..], &[&ready.to_string()]].concat(), "");
}

fn until(agent: &Agent, case: &str, mut ask: impl FnMut() -> bool) {
    assert!(eventually(DEADLINE, || ask().then_some(())).is_some(), "{case}\n{}", agent.log());
}

/// What an agent does with a cluster, told by what it asks of the API server for that.
fn play(rig: &Rig, args: &[String], kubeconfig: &std::path::Path) {
    let start = |name: &str, without: &str| {
        apply_pod(rig, name);
        let mut flags: Vec<&str> = args.iter().map(String::as_str).collect();
        flags.retain(|flag| without.is_empty() || !flag.starts_with(without));
        flags.extend(["--election-ttl=6s", "--status-update-interval=1"]);
        let env = [("POD_NAME", name), ("POD_NAMESPACE", INSTALLED)];
        Agent::start(&Start { kubeconfig, flags: &flags, env: &env })
    };
    let says = |kind: &str, name: &str| {
        let balancer = rig.get(kind, name).map(|object| object.data["status"]["loadBalancer"].clone());
        balancer.unwrap_or_default()["ingress"][0]["ip"].as_str().unwrap_or_default().to_owned()
    };
    let told = |reason: &str| {
        let of = |event: &Value| (event["reason"] == reason).then(|| event["count"].as_i64().unwrap_or(0));
        rig.list("Event").iter().filter_map(|event| of(&event.data)).max().unwrap_or(0)
    };

    let first = start("edge-1", "");
    until(&first, "the address of a pool", || says("Service", "db") == "203.0.113.9");
    until(&first, "the address of the agent's own Service", || says("Ingress", "web") == "203.0.113.8");
    until(&first, "passwords and a certificate", || first.get("web.example.com", "/").status == 401);
    until(&first, "why one is not served", || told("MissingService") == 1);
    assert_eq!(first.metric("penstock_cluster_watch_errors_total"), 0.0, "{}", first.ask("/metrics"));
    first.end();
    kubectl(rig, &["--namespace", INSTALLED, "delete", "pod", "edge-1", "--force", "--grace-period=0"], "");

    // By the addresses of nodes, and telling again what the one before has told.
    let second = start("edge-2", "--publish-service=");
    until(&second, "the address of its node", || says("Ingress", "web") == "192.0.2.1");
    until(&second, "told once more", || told("MissingService") > 1);
    assert_eq!(second.metric("penstock_cluster_watch_errors_total"), 0.0, "{}", second.ask("/metrics"));
    second.end();
    assert_eq!(says("Ingress", "web"), "", "cleared by the last one");
}

/// What users of the cluster have, for an agent to do all that it can do.
fn apply_used(rig: &Rig) {
    let authority = Authority::new("Test").expect("an authority");
    rig.apply(
        &[
            objects::service("web", &["192.0.2.50:8080".parse().expect("an address")]),
            authority.secret("cert", "web.example.com").expect("a Secret"),
        ]
        .join("---\n"),
    );
    rig.apply("apiVersion: v1\nkind: Secret\nmetadata: {name: users}\nstringData: {auth: \"ann:{SHA}C5wmJdwh7wX2rU3fR8XyA4N6oyw=\"}\n");
    rig.apply(
        "apiVersion: v1\nkind: Service\nmetadata: {name: db, annotations: {penstock.dev/addresses: 203.0.113.9}}\nspec: {type: \
         LoadBalancer, ports: [{port: 5432}]}\n",
    );
    let class = |ingress: String| ingress.replace("ingressClassName: NAMESPACE", "ingressClassName: nginx");
    rig.apply(&class(objects::ingress(
        "web",
        "web.example.com",
        "web",
        &["auth-type: basic", "auth-secret: users"],
    )));
    rig.apply(&class(objects::ingress_tls("odd", "odd.example.com", "nobody", "cert")));
    for name in ["headers", "others"] {
        rig.apply(&format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\n"));
    }
    rig.apply("apiVersion: v1\nkind: Secret\nmetadata: {name: others}\nstringData: {password: secret}\n");
    let lists = ["custom-headers: headers"];
    rig.apply(&class(objects::ingress("listed", "listed.example.com", "web", &lists)));
}

/// Fails where the account was refused anything, or let do what no rule says; which rights it made no use of.
fn unused(server: &ApiServer, applied: &[Value]) -> Vec<Right> {
    let user = format!("system:serviceaccount:{INSTALLED}:{INSTALLED}");
    let asked = server.audit().expect("it is written down");
    let asked: Vec<&Value> =
        asked.iter().filter(|asked| asked["user"]["username"] == user.as_str()).collect();
    assert!(!asked.is_empty());
    let refused: Vec<_> = asked
        .iter()
        .filter(|asked| asked["annotations"]["authorization.k8s.io/decision"] != "allow")
        .collect();
    assert!(refused.is_empty(), "{refused:#?}");
    // A right that is there twice counts once, by the wider one.
    let roles = ["ClusterRole", "Role"].into_iter();
    let roles = roles.flat_map(|kind| applied.iter().filter(move |object| object["kind"] == kind));
    let mut unused: Vec<Right> = roles.flat_map(rights).collect();
    let all = unused.clone();
    for asked in asked {
        let right = all.iter().find(|right| right.covers(asked));
        let right = right.unwrap_or_else(|| panic!("allowed by none of the rules: {asked:#}"));
        unused.retain(|one| one != right);
    }
    unused
}

/// A server of the test's own, because what an account may do holds for all of it.
fn own_server() -> Option<(ApiServer, Rig)> {
    let assets = std::env::var_os(ASSETS).map(PathBuf::from);
    let missing = || assets.as_ref().map(drop).ok_or_else(|| format!("{ASSETS} names no folder"));
    if !tier::require("cluster", missing) {
        return None;
    }
    let server = ApiServer::start(&assets?).expect("an API server of the test's own");
    let rig = Rig::of(server.kubeconfig());
    Some((server, rig))
}

#[test]
fn the_account_of_the_chart_may_do_what_an_agent_does_and_no_more() {
    let Some((server, rig)) = own_server() else { return };
    let (applied, args) = of_kustomize(&rig);
    apply(&rig, &applied);
    kubectl(
        &rig,
        &[
            "--namespace",
            INSTALLED,
            "create",
            "configmap",
            penstock::model::pool::CONFIG_MAP,
            "--from-literal=edge=addresses: [203.0.113.8-203.0.113.9]",
        ],
        "",
    );
    apply_used(&rig);
    let account = rig.credentials(INSTALLED, INSTALLED);

    play(&rig, &args, account.path());

    assert_eq!(unused(&server, &applied), [], "nobody asked for that");
    let read: BTreeSet<String> =
        server.audit().expect("it is written down").iter().filter_map(read_one).collect();
    for (case, name, expected) in [
        ("a Secret that an Ingress names", "secrets/users", true),
        ("one that nobody names", "secrets/others", false),
        ("a ConfigMap that an Ingress names", "configmaps/headers", true),
        ("one that nobody names", "configmaps/others", false),
    ] {
        assert_eq!(read.contains(name), expected, "{case}: {name} among {read:?}");
    }
}

/// The one object whose contents a request is for.
fn read_one(asked: &Value) -> Option<String> {
    let (of, verb) = (&asked["objectRef"], asked["verb"].as_str()?);
    (verb == "get").then(|| Some(format!("{}/{}", of["resource"].as_str()?, of["name"].as_str()?)))?
}

#[test]
fn so_may_that_of_an_installation_for_one_namespace() {
    let Some(mut helm) = Helm::start() else { return };
    let Some((server, rig)) = own_server() else { return };
    let controller = json!({
        "scope": {"enabled": true, "namespace": rig.namespace},
        "addressPools": {"edge": {"addresses": ["203.0.113.8-203.0.113.9"]}},
        "defaultBackendService": format!("{INSTALLED}/fallback"),
        "extraArgs": {"default-ssl-certificate": format!("{INSTALLED}/fallback")},
        // Something to tell about its own ConfigMap.
        "config": {"proxy-body-size": "much"},
    });
    let (applied, args) = of_chart(&rig, &mut helm, controller);
    apply(&rig, &applied);
    let authority = Authority::new("Test").expect("an authority");
    let own = [
        objects::service("fallback", &["192.0.2.51:8080".parse().expect("an address")]),
        authority.secret("fallback", "fallback.example.com").expect("a Secret"),
    ];
    kubectl(&rig, &["--namespace", INSTALLED, "apply", "--filename", "-"], &own.join("---\n"));
    apply_used(&rig);
    let account = rig.credentials(INSTALLED, INSTALLED);

    play(&rig, &args, account.path());

    let mut unused = unused(&server, &applied);
    // Events about what has no namespace, like a Node, stand there; nothing is wrong with any here.
    unused.retain(|right| (right.resource.as_str(), right.namespace.as_str()) != ("events", "default"));
    assert_eq!(unused, [], "nobody asked for that");
}

#[test]
fn so_may_that_of_an_installation_with_the_webhook() {
    let Some(mut helm) = Helm::start() else { return };
    let Some((server, rig)) = own_server() else { return };
    let (applied, mut args) = of_chart(&rig, &mut helm, json!({"admissionWebhooks": {"enabled": true}}));
    apply(&rig, &applied);
    args.push("--validating-webhook=127.0.0.1:0".to_owned());
    let account = rig.credentials(INSTALLED, INSTALLED);
    let start = |name: &str| {
        apply_pod(&rig, name);
        let flags: Vec<&str> = args.iter().map(String::as_str).collect();
        let env = [("POD_NAME", name), ("POD_NAMESPACE", INSTALLED)];
        Agent::start(&Start { kubeconfig: account.path(), flags: &flags, env: &env })
    };
    let believed = || {
        let path = "--output=jsonpath={.webhooks[0].clientConfig.caBundle}";
        let name = format!("{INSTALLED}-admission");
        kubectl(&rig, &["get", "validatingwebhookconfiguration", &name, path], "")
    };

    let first = start("edge-1");
    until(&first, "its authority is believed", || !believed().trim().is_empty());
    first.end();
    // One that nobody can use is made anew.
    let (before, secret) = (believed(), format!("secret/{INSTALLED}-admission"));
    let spoilt = r#"{"data": {"ca": "eA==", "cert": "eA==", "key": "eA=="}}"#;
    kubectl(&rig, &["--namespace", INSTALLED, "patch", &secret, "--type=merge", "--patch", spoilt], "");
    let second = start("edge-2");
    until(&second, "another authority is believed", || believed() != before);
    second.end();

    let of_webhook = |right: &Right| {
        right.names.iter().any(|name| name.ends_with("-admission"))
            || right.resource == "secrets" && right.verb == "create"
    };
    let unused: Vec<_> = unused(&server, &applied).into_iter().filter(of_webhook).collect();
    assert_eq!(unused, [], "nobody asked for that");
}

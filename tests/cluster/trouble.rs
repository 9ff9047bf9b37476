//! What agents write and what others make of it: a Lease that people edit, namespaces that are refused or come to
//! their end, and a server that has forgotten where we were.

use std::path::PathBuf;

use lb_tests::agent::{DEADLINE, eventually};
use lb_tests::apiserver::{ASSETS, ApiServer};
use lb_tests::tier;
use serde_json::json;

use crate::agent::{Agent, Start, backend};
use crate::objects;
use crate::relay::Relay;
use crate::rig::Rig;
use crate::write::{agent_in_pod, events, until_status};

const HOST: &str = "web.example.com";
const LEADS: &str = "nginx_ingress_controller_leader_election_status";
const LEASE: &str = "ingress-controller-leader";

fn leads(agent: &Agent) -> bool {
    agent.metric(LEADS) == 1.0
}

fn until(case: &str, agents: &[&Agent], mut is_so: impl FnMut() -> bool) {
    let logs = || agents.iter().map(|agent| agent.log()).collect::<Vec<_>>().join("\n---\n");
    assert!(eventually(DEADLINE, || is_so().then_some(())).is_some(), "{case}\n{}", logs());
}

#[test]
fn a_lease_that_is_deleted_or_given_away_by_hand_has_one_of_us_again() {
    let Some(rig) = Rig::new() else { return };
    rig.apply(&objects::class());
    let agents = ["edge-1", "edge-2"].map(|name| agent_in_pod(&rig, name, "192.0.2.1", &[]));
    let both = [&agents[0], &agents[1]];
    let holder = || {
        let lease = rig.get("Lease", LEASE)?;
        lease.data["spec"]["holderIdentity"].as_str().map(str::to_owned)
    };
    // As the Lease says, and nobody else.
    let one_leads = || {
        let says = holder();
        let leading: Vec<_> =
            ["edge-1", "edge-2"].into_iter().zip(both).filter(|(_, it)| leads(it)).collect();
        matches!(leading[..], [(name, _)] if says.as_deref().is_some_and(|says| says.contains(name)))
    };
    until("one of both", &both, one_leads);

    rig.delete("Lease", LEASE);
    until("made anew", &both, || holder().is_some());
    until("one of both, by the new one", &both, one_leads);

    let given = r#"{"spec": {"holderIdentity": "somebody", "leaseDurationSeconds": 8}}"#;
    rig.kubectl(&["patch", "lease", LEASE, "--type=merge", "--patch", given]);
    both[0].ask_until("/status", "somebody else", |page| page.contains("somebody"));
    until("none of us", &both, || !both.iter().any(|it| leads(it)));
    until("one of both, when it is over", &both, one_leads);
}

/// One more namespace, gone with the test's own server.
fn another(rig: &Rig) -> Rig {
    Rig::of(rig.kubeconfig.clone())
}

#[test]
fn a_namespace_that_ends_takes_no_events_and_keeps_nobody_elses() {
    let Some(rig) = Rig::new() else { return };
    let ends = another(&rig);
    for namespace in [&rig.namespace, &ends.namespace] {
        let label = format!("pair={}", rig.namespace);
        rig.kubectl(&["label", "namespace", namespace, &label]);
    }
    let class = |yaml: String| {
        yaml.replace("ingressClassName: NAMESPACE", &format!("ingressClassName: {}", rig.namespace))
    };
    rig.apply(&objects::class());
    ends.apply(&class(objects::ingress("doomed", "doomed.example.com", "web", &[])));
    let selector = format!("--watch-namespace-selector=pair={}", rig.namespace);
    let (env, flags) = (
        [("POD_NAME", "edge-1"), ("POD_NAMESPACE", rig.namespace.as_str())],
        [selector.as_str(), "--election-ttl=6s"],
    );
    let agent = Agent::start(&Start { kubeconfig: &rig.kubeconfig, flags: &flags, env: &env });
    let synced = ("Normal".to_owned(), "Sync".to_owned(), 1);
    until("told while it lives", &[&agent], || events(&ends, "doomed").contains(&synced));

    // Nobody here would take its objects away: it ends for ever.
    rig.kubectl(&["delete", "namespace", &ends.namespace, "--wait=false"]);
    ends.apply(&class(objects::ingress("doomed", "doomed.example.com", "web", &["limit-rps: \"ten\""])));
    until("refused", &[&agent], || agent.metric("penstock_cluster_events_dropped_total") > 0.0);
    rig.apply(&objects::ingress("bad", "bad.example.com", "web", &["limit-rps: \"ten\""]));

    let told = ("Warning".to_owned(), "AnnotationParsingFailed".to_owned(), 1);
    until("told elsewhere", &[&agent], || events(&rig, "bad").contains(&told));
    assert_eq!(events(&ends, "doomed"), [synced], "in a namespace that ends");
    let status = agent.ask("/status");
    assert!(!status.contains("events: cannot be written"), "there is nothing to grant: {status}");
}

#[test]
fn a_status_that_is_refused_in_one_namespace_holds_up_none_in_another() {
    let Some(rig) = Rig::new() else { return };
    let closed = another(&rig);
    let Some(one) = backend("one") else { return };
    let class = |yaml: String| {
        yaml.replace("ingressClassName: NAMESPACE", &format!("ingressClassName: {}", rig.namespace))
    };
    rig.apply(&[objects::class(), objects::service("web", &[one])].join("---\n"));
    closed.apply(&class(objects::ingress("closed", "closed.example.com", "web", &[])));
    // It reads everything, and writes in one namespace alone.
    rig.apply(
        "apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRole\nmetadata: {name: NAMESPACE}\nrules:\n- apiGroups: [\"\", \
         networking.k8s.io, discovery.k8s.io]\n  resources: [services, endpointslices, configmaps, secrets, ingresses, \
         ingressclasses, nodes]\n  verbs: [get, list, watch]\n---\napiVersion: rbac.authorization.k8s.io/v1\nkind: \
         ClusterRoleBinding\nmetadata: {name: NAMESPACE}\nroleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, \
         name: NAMESPACE}\nsubjects: [{kind: ServiceAccount, name: agent, namespace: NAMESPACE}]\n",
    );
    rig.apply(
        "apiVersion: rbac.authorization.k8s.io/v1\nkind: Role\nmetadata: {name: agent}\nrules:\n- {apiGroups: \
         [coordination.k8s.io], resources: [leases], verbs: [get, create, update]}\n- {apiGroups: [\"\", networking.k8s.io], \
         resources: [events, ingresses/status], verbs: [create, patch]}\n",
    );
    let kubeconfig = rig.account("agent");
    let flags =
        ["--ingress-class", &rig.namespace, "--publish-status-address=192.0.2.9", "--election-ttl=6s"];
    let env = [("POD_NAME", "edge-1"), ("POD_NAMESPACE", rig.namespace.as_str())];
    let agent = Agent::start(&Start { kubeconfig: kubeconfig.path(), flags: &flags, env: &env });
    agent.ask_until("/status", "refused there", |page| {
        page.contains("let our account patch ingresses/status")
    });

    for name in ["first", "second", "third"] {
        rig.apply(&objects::ingress(name, &format!("{name}.example.com"), "web", &[]));
        until_status(&rig, name, "written here", &json!({"ingress": [{"ip": "192.0.2.9"}]}));
    }

    let page = agent.ask("/status");
    assert!(page.contains("let our account patch ingresses/status"), "still refused there: {page}");
    let log = agent.log();
    assert_eq!(log.matches("a status was not written").count(), 1, "{log}");
}

#[test]
fn a_secret_elsewhere_that_does_not_exist_holds_up_no_agent_that_starts() {
    let Some(rig) = Rig::new() else { return };
    let Some(one) = backend("one") else { return };
    rig.apply(&[objects::class(), objects::service("web", &[one])].join("---\n"));
    rig.apply(&objects::ingress("web", HOST, "web", &[]));
    let asks = ["auth-type: basic", "auth-secret: elsewhere/none"];
    rig.apply(&objects::ingress("asks", "asks.example.com", "web", &asks));

    // It follows the names of one namespace, and may read in all.
    let agent = Agent::of(&rig);

    agent.until_backend(HOST, "one");
    assert_eq!(agent.get("asks.example.com", "/").status, 503);
}

#[test]
fn a_server_that_has_forgotten_where_we_were_is_asked_for_everything_anew() {
    let assets = std::env::var_os(ASSETS).map(PathBuf::from);
    let missing = || assets.as_ref().map(drop).ok_or_else(|| format!("{ASSETS} names no folder"));
    if !tier::require("cluster", missing) {
        return;
    }
    let (Some(assets), Some(one), Some(two)) = (assets.clone(), backend("one"), backend("two")) else {
        return;
    };
    // It has no memory of its own beside its store's.
    let server =
        ApiServer::start_with(&assets, &["--watch-cache=false"]).expect("an API server of the test's own");
    let rig = Rig::of(server.kubeconfig());
    rig.apply(&[objects::class(), objects::service("web", &[one])].join("---\n"));
    rig.apply(&objects::ingress("web", HOST, "web", &[]));
    rig.apply(&objects::ingress("goes", "goes.example.com", "web", &[]));
    let relay = Relay::before(&rig);
    let namespace = format!("--watch-namespace={}", rig.namespace);
    let agent = Agent::start(&Start { kubeconfig: relay.kubeconfig(), flags: &[&namespace], env: &[] });
    agent.until_backend(HOST, "one");
    agent.until_backend("goes.example.com", "one");

    relay.cut();
    agent.ask_until("/status", "it is told", |page| page.contains("cannot be followed"));
    rig.delete("Ingress", "goes");
    rig.apply(&objects::slice("web", &[two]));
    server.compact().expect("forgotten");
    assert_eq!(agent.get(HOST, "/").backend(), Some("one"));
    relay.mend();

    agent.until_backend(HOST, "two");
    agent.until("goes.example.com", "/", "deleted meanwhile", |reply| reply.status == 404);
    agent.ask_until("/status", "all is well", |page| !page.contains("cannot be followed"));
    let metrics = agent.ask("/metrics");
    let gone =
        |line: &str| line.starts_with("penstock_cluster_watch_errors_total") && line.contains("\"gone\"");
    assert!(metrics.lines().any(gone), "{metrics}");
}

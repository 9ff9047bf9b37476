//! What is written back: status and Events, by one of several agents.

use kube::core::DynamicObject;
use lb_tests::agent::{DEADLINE, eventually};
use serde_json::{Value, json};

use crate::agent::{Agent, Start, backend};
use crate::objects;
use crate::rig::Rig;

const HOST: &str = "web.example.com";

pub fn balancer(object: &DynamicObject) -> Value {
    object.data["status"]["loadBalancer"].clone()
}

/// Waits until the status of an Ingress says this.
pub fn until_status(rig: &Rig, name: &str, case: &str, expected: &Value) {
    let says = || rig.get("Ingress", name).map(|object| balancer(&object)).filter(|says| says == expected);
    assert!(
        eventually(DEADLINE, says).is_some(),
        "{case}: {:?}",
        rig.get("Ingress", name).map(|it| balancer(&it))
    );
}

/// An agent in a pod of this name, which is there, ready and on a node that has this address.
pub fn agent_in_pod(rig: &Rig, name: &str, address: &str, flags: &[&str]) -> Agent {
    let node = format!("{}-{name}", rig.namespace);
    rig.apply(&format!("apiVersion: v1\nkind: Node\nmetadata: {{name: {node}}}\n"));
    let addresses = json!({"status": {"addresses": [{"type": "InternalIP", "address": address}]}});
    rig.patch_status("Node", &node, &addresses);
    rig.apply(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: edge, pod-template-hash: \
         \"{name}\"}}}}\nspec: {{nodeName: {node}, containers: [{{name: a, image: a}}]}}\n"
    ));
    let ready = json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}});
    rig.patch_status("Pod", name, &ready);
    let namespace = format!("--watch-namespace={}", rig.namespace);
    let own = ["--election-ttl=6s", "--status-update-interval=1", &namespace];
    let flags: Vec<&str> = own.into_iter().chain(flags.iter().copied()).collect();
    let env = [("POD_NAME", name), ("POD_NAMESPACE", rig.namespace.as_str())];
    Agent::start(&Start { kubeconfig: &rig.kubeconfig, flags: &flags, env: &env })
}

#[test]
fn status_says_where_a_service_is_reached_and_follows_it() {
    let Some(rig) = Rig::new() else { return };
    let Some(one) = backend("one") else { return };
    rig.apply(&[objects::class(), objects::service("web", &[one])].join("---\n"));
    rig.apply(&objects::ingress("web", HOST, "web", &[]));
    rig.apply("apiVersion: v1\nkind: Service\nmetadata: {name: edge}\nspec: {type: LoadBalancer, ports: [{port: 80}]}\n");
    let given = |ip: &str| json!({"status": {"loadBalancer": {"ingress": [{"ip": ip}]}}});
    rig.patch_status("Service", "edge", &given("203.0.113.7"));
    let publish = format!("--publish-service={}/edge", rig.namespace);
    let agent = agent_in_pod(&rig, "edge-1", "192.0.2.1", &[&publish]);

    until_status(&rig, "web", "given to the Service", &json!({"ingress": [{"ip": "203.0.113.7"}]}));
    assert!(agent.metric("nginx_ingress_controller_leader_election_status") > 0.0);
    rig.patch_status("Service", "edge", &given("203.0.113.8"));
    until_status(&rig, "web", "given anew", &json!({"ingress": [{"ip": "203.0.113.8"}]}));
    rig.apply(&objects::ingress("late", "late.example.com", "web", &[]));
    until_status(&rig, "late", "a new Ingress", &json!({"ingress": [{"ip": "203.0.113.8"}]}));
    // What others write is put right when all is looked at; what is right is not written again.
    let version = || rig.get("Ingress", "late").and_then(|object| object.metadata.resource_version);
    let before = version();
    rig.patch_status("Ingress", "web", &given("198.51.100.66"));
    until_status(&rig, "web", "put right", &json!({"ingress": [{"ip": "203.0.113.8"}]}));
    assert_eq!(version(), before);
}

#[test]
fn of_several_agents_one_writes_and_the_last_one_clears() {
    let Some(rig) = Rig::new() else { return };
    let Some(one) = backend("one") else { return };
    rig.apply(&[objects::class(), objects::service("web", &[one])].join("---\n"));
    rig.apply(&objects::ingress("web", HOST, "web", &[]));
    let both = json!({"ingress": [{"ip": "192.0.2.1"}, {"ip": "192.0.2.2"}]});
    let first = agent_in_pod(&rig, "edge-1", "192.0.2.1", &[]);
    until_status(&rig, "web", "the node of one", &json!({"ingress": [{"ip": "192.0.2.1"}]}));
    let second = agent_in_pod(&rig, "edge-2", "192.0.2.2", &[]);
    until_status(&rig, "web", "the nodes of both", &both);
    let leads = "nginx_ingress_controller_leader_election_status";
    assert_eq!((first.metric(leads), second.metric(leads)), (1.0, 0.0));

    first.end();
    assert_eq!(rig.get("Ingress", "web").map(|object| balancer(&object)), Some(both), "others go on");
    rig.delete("Pod", "edge-1");
    let took_over = eventually(DEADLINE, || (second.metric(leads) == 1.0).then_some(()));
    assert!(took_over.is_some(), "{}", second.log());
    until_status(&rig, "web", "the node that is left", &json!({"ingress": [{"ip": "192.0.2.2"}]}));

    second.end();
    assert_eq!(rig.get("Ingress", "web").map(|object| balancer(&object)), Some(json!({})), "the last one");
}

#[test]
fn an_agent_that_is_killed_loses_the_lease_in_time() {
    let Some(rig) = Rig::new() else { return };
    rig.apply(&objects::class());
    let first = agent_in_pod(&rig, "edge-1", "192.0.2.1", &[]);
    let leads = "nginx_ingress_controller_leader_election_status";
    assert!(eventually(DEADLINE, || (first.metric(leads) == 1.0).then_some(())).is_some(), "{}", first.log());
    let second = agent_in_pod(&rig, "edge-2", "192.0.2.2", &[]);

    drop(first);

    let took_over = eventually(DEADLINE, || (second.metric(leads) == 1.0).then_some(()));
    assert!(took_over.is_some(), "{}", second.log());
}

#[test]
fn side_by_side_with_another_controller_status_is_left_alone() {
    let Some(rig) = Rig::new() else { return };
    let Some(one) = backend("one") else { return };
    rig.apply(&[objects::class(), objects::service("web", &[one])].join("---\n"));
    rig.apply(&objects::ingress("web", HOST, "web", &[]));
    let theirs = json!({"status": {"loadBalancer": {"ingress": [{"ip": "198.51.100.66"}]}}});
    rig.patch_status("Ingress", "web", &theirs);

    let agent = agent_in_pod(
        &rig,
        "edge-1",
        "192.0.2.1",
        &["--update-status=false", "--publish-status-address=192.0.2.9"],
    );
    agent.until_backend(HOST, "one");
    let leads = "nginx_ingress_controller_leader_election_status";
    assert!(eventually(DEADLINE, || (agent.metric(leads) == 1.0).then_some(())).is_some());
    agent.end();

    assert_eq!(
        rig.get("Ingress", "web").map(|object| balancer(&object)),
        Some(theirs["status"]["loadBalancer"].clone())
    );
}

/// Type, reason and count of the Events about something of this name.
pub fn events(rig: &Rig, name: &str) -> Vec<(String, String, i64)> {
    let about = rig.list("Event").into_iter().filter(|event| event.data["involvedObject"]["name"] == name);
    let mut events: Vec<_> = about
        .map(|event| {
            let text = |field: &str| event.data[field].as_str().unwrap_or_default().to_owned();
            (text("type"), text("reason"), event.data["count"].as_i64().unwrap_or(0))
        })
        .collect();
    events.sort();
    events
}

#[test]
fn settings_that_are_taken_up_are_told_as_ingress_nginx_does() {
    let Some(rig) = Rig::new() else { return };
    let settings = format!("--configmap={}/settings", rig.namespace);
    let agent = agent_in_pod(&rig, "edge-1", "192.0.2.1", &[&settings, "--disable-sync-events"]);
    let leads = "nginx_ingress_controller_leader_election_status";
    assert!(eventually(DEADLINE, || (agent.metric(leads) == 1.0).then_some(())).is_some(), "{}", agent.log());
    let apply = |name: &str, gzip: bool| {
        rig.apply(&format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\ndata: {{use-gzip: \"{gzip}\"}}\n"
        ));
    };
    let has = |reason: &str| {
        let told = ("Normal".to_owned(), reason.to_owned(), 1);
        let found = eventually(DEADLINE, || events(&rig, "settings").contains(&told).then_some(()));
        assert!(found.is_some(), "no {reason}: {:?}\n{}", events(&rig, "settings"), agent.log());
    };

    apply("other", true);
    apply("settings", true);
    has("CREATE");
    apply("settings", false);
    has("UPDATE");

    assert_eq!(events(&rig, "other"), [], "nobody names it");
}

#[test]
fn problems_are_told_as_events_once() {
    let Some(rig) = Rig::new() else { return };
    rig.apply(&objects::class());
    rig.apply(&objects::ingress("earlier", "earlier.example.com", "web", &[]));
    let agent = agent_in_pod(&rig, "edge-1", "192.0.2.1", &[]);
    let events = |name: &str| events(&rig, name);
    let leads = "nginx_ingress_controller_leader_election_status";
    assert!(eventually(DEADLINE, || (agent.metric(leads) == 1.0).then_some(())).is_some(), "{}", agent.log());
    let synced = ("Normal".to_owned(), "Sync".to_owned(), 1);
    let earlier = eventually(DEADLINE, || events("earlier").contains(&synced).then_some(()));
    assert!(earlier.is_some(), "there before the agent: {:?}\n{}", events("earlier"), agent.log());
    let told = |reason: &str| ("Warning".to_owned(), reason.to_owned(), 1);

    rig.apply(&objects::ingress("web", HOST, "web", &["auth-type: basic", "auth-secret: users"]));
    let has = |wanted| eventually(DEADLINE, || events("web").contains(&wanted).then_some(()));
    assert!(has(told("AnnotationParsingFailed")).is_some(), "{:?}\n{}", events("web"), agent.log());
    assert!(has(("Normal".to_owned(), "Sync".to_owned(), 1)).is_some(), "{:?}", events("web"));
    assert!(has(told("MissingService")).is_some(), "{:?}", events("web"));

    // One that was never let in has no place in the state, and yet its author wants to know.
    rig.apply(&objects::ingress("bad", "bad.example.com", "web", &["limit-rps: \"ten\""]));
    let refused =
        eventually(DEADLINE, || events("bad").contains(&told("AnnotationParsingFailed")).then_some(()));
    assert!(refused.is_some(), "{:?}", events("bad"));
    let described = rig.kubectl(&["describe", "ingress", "bad"]);
    assert!(described.contains("AnnotationParsingFailed") && described.contains("limit-rps"), "{described}");

    // Another change tells nothing again.
    let told = agent.metric("penstock_cluster_events_total");
    rig.apply(&objects::ingress("later", "later.example.com", "web", &[]));
    let later = eventually(DEADLINE, || {
        events("later").contains(&("Normal".to_owned(), "Sync".to_owned(), 1)).then_some(())
    });
    assert!(later.is_some(), "{:?}", events("later"));
    let more = agent.metric("penstock_cluster_events_total") - told;
    assert!(more <= 2.0, "{more} Events for one new Ingress");
    assert!(
        events("web").iter().all(|(_, reason, count)| reason == "Sync" || *count == 1),
        "{:?}",
        events("web")
    );
}

#[test]
fn what_may_not_be_written_is_told_with_what_to_grant() {
    let Some(rig) = Rig::new() else { return };
    let Some(one) = backend("one") else { return };
    rig.apply(&[objects::class(), objects::service("web", &[one])].join("---\n"));
    rig.apply(&objects::ingress("web", HOST, "web", &["auth-type: basic", "auth-secret: users"]));
    let role = |more: &str| {
        format!(
            "apiVersion: rbac.authorization.k8s.io/v1\nkind: Role\nmetadata: {{name: agent}}\nrules:\n- apiGroups: [\"\", \
             networking.k8s.io, discovery.k8s.io]\n  resources: [services, endpointslices, configmaps, secrets, ingresses]\n  \
             verbs: [get, list, watch]\n{more}"
        )
    };
    let leases =
        "- apiGroups: [coordination.k8s.io]\n  resources: [leases]\n  verbs: [get, create, update]\n";
    let rest = "- apiGroups: [\"\", networking.k8s.io]\n  resources: [events, ingresses/status]\n  verbs: [create, patch]\n";
    rig.apply(&role(""));
    // Without its class the Ingress would be none of ours.
    rig.apply(
        "apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRole\nmetadata: {name: NAMESPACE}\nrules:\n- apiGroups: \
         [networking.k8s.io]\n  resources: [ingressclasses]\n  verbs: [get, list, watch]\n---\napiVersion: \
         rbac.authorization.k8s.io/v1\nkind: ClusterRoleBinding\nmetadata: {name: NAMESPACE}\nroleRef: {apiGroup: \
         rbac.authorization.k8s.io, kind: ClusterRole, name: NAMESPACE}\nsubjects: [{kind: ServiceAccount, name: agent, \
         namespace: NAMESPACE}]\n",
    );
    let kubeconfig = rig.account("agent");
    let namespace = format!("--watch-namespace={}", rig.namespace);
    let flags = [
        namespace.as_str(),
        "--ingress-class",
        &rig.namespace,
        "--publish-status-address=192.0.2.9",
        "--election-ttl=6s",
        "--status-update-interval=1",
    ];
    let env = [("POD_NAME", "edge-1"), ("POD_NAMESPACE", rig.namespace.as_str())];
    let agent = Agent::start(&Start { kubeconfig: kubeconfig.path(), flags: &flags, env: &env });

    agent.ask_until("/status", "no Lease", |page| {
        page.contains("nobody is known to hold")
            && page.contains("let our account get, create and update leases")
    });
    rig.apply(&role(leases));
    agent.ask_until("/status", "neither status nor Events", |page| {
        page.contains("written by this agent")
            && page.contains("let our account patch ingresses/status")
            && page.contains("let our account create and patch events")
    });
    let log = agent.log();
    assert_eq!(log.matches("Events wait until they can be told").count(), 1, "{log}");
    rig.apply(&role(&format!("{leases}{rest}")));
    until_status(&rig, "web", "granted", &json!({"ingress": [{"ip": "192.0.2.9"}]}));
    agent.ask_until("/status", "all is written", |page| {
        !page.contains("patch ingresses/status") && !page.contains("create and patch events")
    });
    // What could not be told then is told now.
    let told = ("Warning".to_owned(), "AnnotationParsingFailed".to_owned(), 1);
    let found = eventually(DEADLINE, || events(&rig, "web").contains(&told).then_some(()));
    assert!(found.is_some(), "{:?}\n{}", events(&rig, "web"), agent.log());
}

//! Which objects of a cluster are ours: classes, namespaces, and what we may not read.

use crate::agent::{Agent, Start, backend, cli};
use crate::objects;
use crate::rig::Rig;

const HOST: &str = "web.example.com";

#[test]
fn an_ingress_is_ours_by_its_class_object_and_else_by_its_old_annotation() {
    let Some(rig) = Rig::new() else { return };
    let Some(one) = backend("one") else { return };
    rig.apply(&[objects::class(), objects::service("web", &[one])].join("---\n"));
    rig.apply(
        "apiVersion: networking.k8s.io/v1\nkind: IngressClass\nmetadata: {name: NAMESPACE-other}\nspec: {controller: \
         example.com/other}\n---\napiVersion: networking.k8s.io/v1\nkind: IngressClass\nmetadata: {name: \
         NAMESPACE-penstock}\nspec: {controller: penstock.dev/ingress-controller}\n",
    );
    let of_class = |name: &str, class: &str| {
        let ingress = objects::ingress(name, &format!("{name}.example.com"), "web", &[]);
        ingress.replace("ingressClassName: NAMESPACE", &format!("ingressClassName: {class}"))
    };
    let annotated = |name: &str, class: &str| {
        let ingress = objects::ingress(name, &format!("{name}.example.com"), "web", &[]);
        let metadata = format!("name: {name}\n  annotations: {{kubernetes.io/ingress.class: {class}}}");
        ingress
            .replace("  ingressClassName: NAMESPACE\n", "")
            .replace(&format!("name: {name}\nspec"), &format!("{metadata}\nspec"))
    };
    rig.apply(&of_class("ours", "NAMESPACE"));
    rig.apply(&of_class("penstock", "NAMESPACE-penstock"));
    rig.apply(&of_class("theirs", "NAMESPACE-other"));
    rig.apply(&of_class("nobodys", "no-such-class"));
    rig.apply(&annotated("old", "nginx"));
    rig.apply(&annotated("old-theirs", "traefik"));
    rig.apply(&annotated("none", "x").replace("  annotations: {kubernetes.io/ingress.class: x}\n", ""));

    let agent = Agent::of(&rig);

    agent.until_backend("ours.example.com", "one");
    for (name, status) in [
        ("penstock", 200),
        ("theirs", 404),
        ("nobodys", 404),
        ("old", 200),
        ("old-theirs", 404),
        ("none", 404),
    ] {
        assert_eq!(agent.get(&format!("{name}.example.com"), "/").status, status, "{name}");
    }
}

#[test]
fn namespaces_count_as_long_as_their_labels_say_so() {
    let Some(rig) = Rig::new() else { return };
    let Some(one) = backend("one") else { return };
    rig.apply(&[objects::class(), objects::service("web", &[one])].join("---\n"));
    rig.apply(&objects::ingress("web", HOST, "web", &[]));
    let selector = format!("--watch-namespace-selector=test={}", rig.namespace);
    let agent = Agent::start(&Start { kubeconfig: &rig.kubeconfig, flags: &[&selector], env: &[] });
    agent.until_backend(HOST, "one");

    rig.apply("apiVersion: v1\nkind: Namespace\nmetadata: {name: NAMESPACE, labels: {test: other}}\n");
    agent.until(HOST, "/", "not selected any more", |reply| reply.status == 404);
    rig.apply("apiVersion: v1\nkind: Namespace\nmetadata: {name: NAMESPACE, labels: {test: NAMESPACE}}\n");
    agent.until_backend(HOST, "one");
}

#[test]
fn what_we_may_not_read_is_told_by_name_and_taken_up_when_we_may() {
    let Some(rig) = Rig::new() else { return };
    let Some(one) = backend("one") else { return };
    rig.apply(&[objects::class(), objects::service("web", &[one])].join("---\n"));
    rig.apply(&objects::ingress("web", HOST, "web", &[]));
    let role = |resources: &str| {
        format!(
            "apiVersion: rbac.authorization.k8s.io/v1\nkind: Role\nmetadata: {{name: agent}}\nrules:\n- apiGroups: \
             [\"\", networking.k8s.io, discovery.k8s.io]\n  resources: [{resources}]\n  verbs: [get, list, watch]\n"
        )
    };
    let most = "services, endpointslices, configmaps";
    rig.apply(&role(most));
    let kubeconfig = rig.account("agent");
    let namespace = format!("--watch-namespace={}", rig.namespace);
    let flags = [namespace.as_str(), "--ingress-class", &rig.namespace, "--update-status=false"];

    let agent = Agent::launch(&Start { kubeconfig: kubeconfig.path(), flags: &flags, env: &[] });
    agent.wait_for_log("cannot list resource \"ingresses\"");
    rig.apply(&role(&format!("{most}, ingresses")));
    let agent = agent.serving();

    // Without IngressClasses the old annotation is all that counts.
    assert_eq!(agent.get(HOST, "/").status, 404);
    let old = objects::ingress("old", "old.example.com", "web", &[]);
    let old = old.replace("  ingressClassName: NAMESPACE\n", "");
    rig.apply(&old.replace(
        "name: old\nspec",
        "name: old\n  annotations: {kubernetes.io/ingress.class: NAMESPACE}\nspec",
    ));
    agent.until_backend("old.example.com", "one");
    for resource in ["secrets", "nodes", "ingressclasses"] {
        let page = agent.ask("/status");
        assert!(page.contains(resource) && page.contains("list and watch"), "{resource}: {page}");
    }
    rig.apply(&role(&format!("{most}, ingresses, secrets")));
    agent.ask_until("/status", "secrets are followed", |page| !page.contains("get, list and watch secrets"));
}

#[test]
fn check_reads_the_cluster_itself() {
    let Some(rig) = Rig::new() else { return };
    let Some(one) = backend("one") else { return };
    rig.apply(&[objects::class(), objects::service("web", &[one])].join("---\n"));
    rig.apply(&objects::ingress("web", HOST, "web", &["server-snippet: return 200;"]));
    let namespace = format!("--watch-namespace={}", rig.namespace);

    let (text, code) = cli(&["check", "--cluster", &namespace, "--output", "json"], &rig.kubeconfig);

    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("server-snippet") && text.contains(&rig.namespace), "{text}");
}

//! Services of type LoadBalancer: addresses from pools, in their status for everybody to see.

use lb_tests::agent::{DEADLINE, eventually};
use serde_json::{Value, json};

use crate::agent::{Agent, Start};
use crate::rig::Rig;

/// The class of the test's Services, so that those of other tests are none of its business.
fn agent(rig: &Rig, more: &[&str]) -> Agent {
    agent_of(rig, "penstock-address-pools", more)
}

/// One with the pools of this ConfigMap.
fn agent_of(rig: &Rig, config_map: &str, more: &[&str]) -> Agent {
    let namespace = format!("--watch-namespace={}", rig.namespace);
    let pools = format!("--address-pools={}/{config_map}", rig.namespace);
    let own = ["--election-ttl=6s", "--status-update-interval=1", &namespace, &pools];
    let flags: Vec<&str> = own.into_iter().chain(more.iter().copied()).collect();
    let env = [("POD_NAME", "edge-1"), ("POD_NAMESPACE", rig.namespace.as_str())];
    Agent::start(&Start { kubeconfig: &rig.kubeconfig, flags: &flags, env: &env })
}

fn pools(rig: &Rig, data: &str) {
    pools_of(rig, "penstock-address-pools", data);
}

fn pools_of(rig: &Rig, config_map: &str, data: &str) {
    rig.apply(&format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {config_map}}}\ndata:\n{data}\n"));
}

fn service(rig: &Rig, name: &str, annotations: &str, spec: &str) {
    rig.apply(&format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, annotations: {{{annotations}}}}}\nspec: {{type: LoadBalancer, \
         allocateLoadBalancerNodePorts: false, {spec}}}\n"
    ));
}

const CLUSTER_IP: &str = r#"{"spec": {"type": "ClusterIP", "allocateLoadBalancerNodePorts": null}}"#;
const HTTP: &str = "ports: [{name: http, port: 80, targetPort: 8080}]";

fn addresses(rig: &Rig, name: &str) -> Vec<String> {
    let Some(object) = rig.get("Service", name) else { return Vec::new() };
    let ingress = object.data["status"]["loadBalancer"]["ingress"].as_array().cloned().unwrap_or_default();
    ingress.iter().filter_map(|entry| entry["ip"].as_str().map(str::to_owned)).collect()
}

fn until_addresses(rig: &Rig, agent: &Agent, name: &str, case: &str, expected: &[&str]) {
    let says = || (addresses(rig, name) == expected).then_some(());
    assert!(
        eventually(DEADLINE, says).is_some(),
        "{case}: {name} has {:?}\n{}",
        addresses(rig, name),
        agent.log()
    );
}

/// Reasons of the warnings about a Service.
fn until_event(rig: &Rig, agent: &Agent, name: &str, reason: &str) {
    let told = || {
        let events = rig.list("Event");
        let about = |data: &Value| data["involvedObject"]["name"] == name && data["reason"] == reason;
        events.iter().any(|event| about(&event.data)).then_some(())
    };
    assert!(eventually(DEADLINE, told).is_some(), "no Event {reason} about {name}\n{}", agent.log());
}

#[test]
fn services_get_addresses_of_the_pools_and_their_status_says_so() {
    let Some(rig) = Rig::new() else { return };
    pools(
        &rig,
        "  edge: \"addresses: [203.0.113.1]\"\n  named: \"{addresses: [203.0.113.8/31], autoAssign: false}\"\n  \
         shared: \"{addresses: [203.0.113.20], autoAssign: false}\"\n",
    );
    let agent = agent(&rig, &[]);

    service(&rig, "web", "", HTTP);
    until_addresses(&rig, &agent, "web", "given from the pool", &["203.0.113.1"]);
    let ip = "jsonpath={.status.loadBalancer.ingress[0].ip}";
    assert_eq!(rig.kubectl(&["get", "service", "web", "-o", ip]), "203.0.113.1");
    assert!(rig.kubectl(&["get", "service", "web"]).contains("203.0.113.1"));

    service(&rig, "late", "", HTTP);
    until_event(&rig, &agent, "late", "PoolExhausted");
    assert_eq!(addresses(&rig, "late"), Vec::<String>::new());

    service(&rig, "asks", "penstock.dev/addresses: 203.0.113.9", HTTP);
    until_addresses(&rig, &agent, "asks", "asked for by address", &["203.0.113.9"]);
    service(&rig, "by-pool", "metallb.io/address-pool: named", HTTP);
    until_addresses(&rig, &agent, "by-pool", "asked for by pool", &["203.0.113.8"]);
    service(&rig, "greedy", "penstock.dev/addresses: 203.0.113.9", HTTP);
    until_event(&rig, &agent, "greedy", "AddressInUse");

    let sharing = "penstock.dev/share-address: dns, penstock.dev/addresses: 203.0.113.20";
    for (name, protocol) in [("dns-tcp", "TCP"), ("dns-udp", "UDP")] {
        service(&rig, name, sharing, &format!("ports: [{{port: 53, protocol: {protocol}}}]"));
        until_addresses(&rig, &agent, name, "shared by key", &["203.0.113.20"]);
    }

    // Who goes makes room; who stays keeps what he has.
    rig.delete("Service", "web");
    until_addresses(&rig, &agent, "late", "what another one had", &["203.0.113.1"]);
    pools(&rig, "  edge: \"addresses: [203.0.113.0/24]\"");
    service(&rig, "next", "", HTTP);
    assert!(eventually(DEADLINE, || (addresses(&rig, "next").len() == 1).then_some(())).is_some());
    assert_eq!(addresses(&rig, "late"), ["203.0.113.1"]);

    // Who is no balancer's any more says so no longer, and another one gets the address.
    rig.kubectl(&["patch", "service", "late", "--type=merge", "-p", CLUSTER_IP]);
    until_addresses(&rig, &agent, "late", "of type ClusterIP now", &[]);
    service(&rig, "heir", "penstock.dev/addresses: 203.0.113.1", HTTP);
    until_addresses(&rig, &agent, "heir", "what it left", &["203.0.113.1"]);
    rig.delete("Service", "heir");
    service(&rig, "late", "penstock.dev/addresses: 203.0.113.1", HTTP);
    until_addresses(&rig, &agent, "late", "of type LoadBalancer again", &["203.0.113.1"]);

    // A pool that shrinks does, and says so.
    pools(&rig, "  edge: \"addresses: [203.0.113.3]\"");
    until_addresses(&rig, &agent, "late", "asked for what is in no pool any more", &[]);
    until_event(&rig, &agent, "late", "AddressLost");
    pools(&rig, "  edge: \"addresses: [203.0.113.0/24]\"");
    until_addresses(&rig, &agent, "late", "in a pool again", &["203.0.113.1"]);

    // A pool with a typing error takes nothing away.
    pools(&rig, "  edge: \"addresses: [203.0.113.0/244]\"");
    until_event(&rig, &agent, "penstock-address-pools", "BadPool");
    assert_eq!(addresses(&rig, "late"), ["203.0.113.1"]);

    agent.end();
    assert_eq!(addresses(&rig, "late"), Vec::<String>::new(), "cleared by the last one");
}

/// Whoever may write Services must not take what is a node's or another Service's.
#[test]
fn without_pools_nobody_takes_an_address_by_asking_for_it() {
    let Some(rig) = Rig::new() else { return };
    let one = agent(&rig, &[]);
    let asks = format!("loadBalancerIP: 192.0.2.2, {HTTP}");
    service(&rig, "taken", "", &asks);
    until_event(&rig, &one, "taken", "ExternalIpsOff");
    assert!(one.ask("/status").contains("could claim any address"), "{}", one.ask("/status"));
    one.end();

    let trusting = agent(&rig, &["--external-ips"]);
    service(&rig, "late", "penstock.dev/addresses: 192.0.2.300", HTTP);
    until_event(&rig, &trusting, "late", "BadAddress");
    assert!(!trusting.ask("/status").contains("could claim any address"), "{}", trusting.ask("/status"));
}

#[test]
fn a_service_of_two_families_has_an_address_of_each_or_none() {
    let Some(rig) = Rig::new() else { return };
    pools(&rig, "  edge: \"addresses: ['203.0.113.1-203.0.113.9', '2001:db8::1']\"");
    let agent = agent(&rig, &[]);

    let dual = format!("ipFamilyPolicy: RequireDualStack, ipFamilies: [IPv4, IPv6], {HTTP}");
    service(&rig, "both", "penstock.dev/addresses: '203.0.113.5,2001:db8::1'", &dual);
    until_addresses(&rig, &agent, "both", "one of each", &["203.0.113.5", "2001:db8::1"]);
    service(&rig, "too-late", "", &dual);
    until_event(&rig, &agent, "too-late", "PoolExhausted");
    assert_eq!(addresses(&rig, "too-late"), Vec::<String>::new());

    let six = format!("ipFamilies: [IPv6], {HTTP}");
    ["too-late", "both"].into_iter().for_each(|name| rig.delete("Service", name));
    service(&rig, "six", "", &six);
    until_addresses(&rig, &agent, "six", "of the one family", &["2001:db8::1"]);
}

#[test]
fn a_pool_of_a_namespace_is_for_services_there_alone() {
    let Some(rig) = Rig::new() else { return };
    pools(
        &rig,
        "  ours: \"{addresses: [203.0.113.1], namespaces: [NAMESPACE]}\"\n  theirs: \"{addresses: [203.0.113.2], namespaces: \
         [NAMESPACE-other]}\"\n  all: \"addresses: [203.0.113.3]\"",
    );
    let agent = agent(&rig, &[]);

    service(&rig, "first", "", HTTP);
    until_addresses(&rig, &agent, "first", "the pool of its namespace", &["203.0.113.1"]);
    service(&rig, "second", "", HTTP);
    until_addresses(&rig, &agent, "second", "the pool of all", &["203.0.113.3"]);
    service(&rig, "third", "penstock.dev/address-pool: theirs", HTTP);
    until_event(&rig, &agent, "third", "PoolOfOthers");
    service(&rig, "fourth", "penstock.dev/addresses: 203.0.113.2", HTTP);
    until_event(&rig, &agent, "fourth", "AddressNotPooled");
    for name in ["third", "fourth"] {
        assert_eq!(addresses(&rig, name), Vec::<String>::new(), "{name}");
    }
}

#[test]
fn side_by_side_with_another_balancer_status_is_left_alone() {
    let Some(rig) = Rig::new() else { return };
    pools(&rig, "  edge: \"addresses: [203.0.113.1-203.0.113.4]\"");
    let agent = agent(&rig, &["--update-status=false"]);
    service(&rig, "web", "", HTTP);
    let theirs = json!({"status": {"loadBalancer": {"ingress": [{"ip": "198.51.100.1"}]}}});
    rig.patch_status("Service", "web", &theirs);

    // A later change that shows that this one was looked at.
    service(&rig, "odd", "penstock.dev/addresses: 192.0.2.1", HTTP);
    until_event(&rig, &agent, "odd", "AddressNotPooled");
    assert_eq!(addresses(&rig, "web"), ["198.51.100.1"]);
    assert_eq!(addresses(&rig, "odd"), Vec::<String>::new());
}

#[test]
fn what_another_release_gave_is_left_to_it() {
    let Some(rig) = Rig::new() else { return };
    let gives = |name: &str, ip: &str| {
        rig.patch_status("Service", name, &json!({"status": {"loadBalancer": {"ingress": [{"ip": ip}]}}}));
    };
    pools(&rig, "  edge: \"addresses: [203.0.113.1-203.0.113.9]\"");
    pools_of(&rig, "other-pools", "  other: \"addresses: [198.51.100.1-198.51.100.9]\"");
    for name in ["before", "foreign"] {
        service(&rig, name, "", HTTP);
    }
    gives("before", "203.0.113.5");
    gives("foreign", "192.0.2.77");
    let one = agent(&rig, &["--election-id=one"]);
    service(&rig, "web", "penstock.dev/addresses: 203.0.113.1", HTTP);
    until_addresses(&rig, &one, "web", "of the first release", &["203.0.113.1"]);

    let other = agent_of(&rig, "other-pools", &["--election-id=other"]);
    until_event(&rig, &other, "web", "AddressOfOthers");
    until_event(&rig, &other, "before", "AddressOfOthers");
    // A later one shows that it writes.
    service(&rig, "theirs", "penstock.dev/addresses: 198.51.100.3", HTTP);
    until_addresses(&rig, &other, "theirs", "of the other release", &["198.51.100.3"]);
    assert_eq!(addresses(&rig, "web"), ["203.0.113.1"]);
    assert_eq!(addresses(&rig, "before"), ["203.0.113.5"]);
    until_event(&rig, &one, "theirs", "AddressOfOthers");

    other.end();
    assert_eq!(addresses(&rig, "theirs"), Vec::<String>::new(), "it clears what it wrote");
    assert_eq!(addresses(&rig, "web"), ["203.0.113.1"], "and nothing else");

    // What it found in its pools is its own from then on, even if a pool goes later.
    let ours = format!("penstock:{}/one", rig.namespace);
    let adopted = || {
        let notes = rig.get("Service", "before")?.metadata.managed_fields?;
        notes.iter().any(|note| note.manager.as_ref() == Some(&ours)).then_some(())
    };
    assert!(eventually(DEADLINE, adopted).is_some(), "{}", one.log());
    pools(&rig, "  edge: \"addresses: [203.0.113.40]\"");
    until_addresses(&rig, &one, "before", "its pool is gone", &["203.0.113.40"]);
    until_event(&rig, &one, "before", "AddressLost");
    assert_eq!(addresses(&rig, "foreign"), ["192.0.2.77"], "nobody's here");
    one.end();
    assert_eq!(addresses(&rig, "before"), Vec::<String>::new());
    assert_eq!(addresses(&rig, "foreign"), ["192.0.2.77"], "nor at the end");
}

#[test]
fn a_service_whose_status_is_emptied_is_given_an_address() {
    let Some(rig) = Rig::new() else { return };
    pools(&rig, "  edge: \"addresses: [203.0.113.1]\"");
    service(&rig, "web", "", HTTP);
    let theirs = json!({"status": {"loadBalancer": {"ingress": [{"hostname": "lb.example.com"}]}}});
    rig.patch_status("Service", "web", &theirs);
    let agent = agent(&rig, &[]);
    until_event(&rig, &agent, "web", "AddressOfOthers");

    rig.patch_status("Service", "web", &json!({"status": {"loadBalancer": null}}));

    until_addresses(&rig, &agent, "web", "left by whoever had given it a name", &["203.0.113.1"]);
}

//! What is applied is served, and every change of it, whatever becomes of the API server.

use std::time::{Duration, Instant};

use lb_tests::agent::{DEADLINE, eventually};
use lb_tests::manifests::Authority;

use crate::agent::{Agent, Start, backend, cli};
use crate::objects;
use crate::relay::Relay;
use crate::rig::Rig;

const HOST: &str = "web.example.com";

#[test]
fn what_is_applied_is_served_and_every_change_of_it() {
    let Some(rig) = Rig::new() else { return };
    let (Some(one), Some(two)) = (backend("one"), backend("two")) else { return };
    rig.apply(&objects::class());
    let agent = Agent::of(&rig);
    assert_eq!(agent.get(HOST, "/").status, 404);

    rig.apply(&[objects::service("web", &[one]), objects::ingress("web", HOST, "web", &[])].join("---\n"));
    agent.until_backend(HOST, "one");
    rig.apply(&objects::slice("web", &[two]));
    agent.until_backend(HOST, "two");
    rig.apply(&objects::slice("web", &[]));
    agent.until(HOST, "/", "nobody is left", |reply| reply.status == 503);
    rig.delete("Ingress", "web");
    agent.until(HOST, "/", "deleted", |reply| reply.status == 404);
}

#[test]
fn a_bad_version_of_an_ingress_does_not_replace_the_good_one() {
    let Some(rig) = Rig::new() else { return };
    let Some(one) = backend("one") else { return };
    rig.apply(&[objects::class(), objects::service("web", &[one])].join("---\n"));
    rig.apply(&objects::ingress("web", HOST, "web", &["limit-rps: \"1000\""]));
    let agent = Agent::of(&rig);
    agent.until_backend(HOST, "one");

    rig.apply(&objects::ingress("web", "moved.example.com", "web", &["limit-rps: \"ten\""]));
    agent.ask_until("/status", "the last good version is told", |page| {
        page.contains("last good versions in force")
    });
    assert_eq!(agent.get(HOST, "/").backend(), Some("one"));
    rig.apply(&objects::ingress("web", "moved.example.com", "web", &[]));
    agent.until_backend("moved.example.com", "one");
    assert_eq!(agent.get(HOST, "/").status, 404);
}

#[test]
fn a_successor_keeps_the_good_version_with_what_it_names() {
    let Some(rig) = Rig::new() else { return };
    let Some(one) = backend("one") else { return };
    let users = "apiVersion: v1\nkind: Secret\nmetadata: {name: users}\nstringData: {auth: \
                 \"ann:{SHA}C5wmJdwh7wX2rU3fR8XyA4N6oyw=\"}\n";
    rig.apply(&[objects::class(), objects::service("web", &[one]), users.to_owned()].join("---\n"));
    rig.apply(&objects::ingress("web", HOST, "web", &["auth-type: basic", "auth-secret: users"]));
    let mut agent = Agent::of(&rig);
    agent.until(HOST, "/", "it is served", |reply| reply.status == 401);
    rig.apply(&objects::ingress("web", "moved.example.com", "web", &["limit-rps: \"ten\""]));
    let told = |page: &str| page.contains("last good versions in force");
    agent.ask_until("/status", "the last good version is told", told);

    agent.replace();

    assert_eq!(agent.get(HOST, "/").status, 401, "{}", agent.log());
    assert!(told(&agent.ask("/status")), "{}", agent.ask("/status"));
    rig.apply(&objects::ingress("web", "moved.example.com", "web", &[]));
    agent.until_backend("moved.example.com", "one");
}

#[test]
fn only_secrets_that_are_named_are_read_and_each_as_soon_as_it_is() {
    let Some(rig) = Rig::new() else { return };
    let Some(one) = backend("one") else { return };
    let authority = Authority::new("Test").expect("an authority");
    let users = |name: &str| {
        format!(
            "apiVersion: v1\nkind: Secret\nmetadata: {{name: {name}}}\nstringData: {{auth: \
             \"ann:{{SHA}}C5wmJdwh7wX2rU3fR8XyA4N6oyw=\"}}\n"
        )
    };
    rig.apply(&[objects::class(), objects::service("web", &[one]), users("others")].join("---\n"));
    rig.apply(&objects::ingress("web", HOST, "web", &["auth-type: basic", "auth-secret: users"]));
    let agent = Agent::of(&rig);
    agent.until(HOST, "/", "closed without its Secret", |reply| reply.status == 503);

    rig.apply(&users("users"));
    agent.until(HOST, "/", "the Secret is there", |reply| reply.status == 401);
    rig.apply(&authority.secret("cert", HOST).expect("a Secret"));
    rig.apply(&objects::ingress_tls("web", HOST, "web", "cert"));
    agent.ask_until("/status", "the certificate is there", |page| {
        page.contains(&format!("{}/cert", rig.namespace))
    });
    rig.delete("Secret", "cert");
    agent.ask_until("/status", "the certificate is gone", |page| page.contains("cert does not exist"));
}

#[test]
fn an_api_server_that_is_gone_costs_freshness_alone() {
    let Some(rig) = Rig::new() else { return };
    let (Some(one), Some(two)) = (backend("one"), backend("two")) else { return };
    rig.apply(&[objects::class(), objects::service("web", &[one])].join("---\n"));
    rig.apply(&objects::ingress("web", HOST, "web", &[]));
    let relay = Relay::before(&rig);
    let namespace = format!("--watch-namespace={}", rig.namespace);
    let agent = Agent::start(&Start { kubeconfig: relay.kubeconfig(), flags: &[&namespace], env: &[] });
    agent.until_backend(HOST, "one");

    relay.cut();
    rig.apply(&objects::slice("web", &[two]));
    let page = agent.ask_until("/status", "it is told", |page| page.contains("cannot be followed"));
    assert!(page.contains("what was last heard of them stays in force"), "{page}");
    assert_eq!(agent.get(HOST, "/").backend(), Some("one"));
    assert!(agent.metric("penstock_cluster_watch_errors_total") > 0.0);
    let aged = eventually(DEADLINE, || (agent.metric("penstock_cluster_age_seconds") > 5.0).then_some(()));
    assert!(aged.is_some(), "its age is not told");

    relay.mend();
    let mended = Instant::now();
    agent.until_backend(HOST, "two");
    agent.ask_until("/status", "all is well", |page| !page.contains("cannot be followed"));
    // Each kind was confirmed since; an idle one is not confirmed again before long.
    let age = || agent.metric("penstock_cluster_age_seconds");
    let fresh = eventually(DEADLINE, || (age() <= mended.elapsed().as_secs_f64()).then_some(()));
    assert!(fresh.is_some(), "still as old as it was");
}

#[test]
fn an_agent_waits_for_the_api_server_and_ends_when_told_to() {
    let Some(rig) = Rig::new() else { return };
    rig.apply(&objects::class());
    let relay = Relay::before(&rig);
    relay.cut();
    let namespace = format!("--watch-namespace={}", rig.namespace);
    let start = Start { kubeconfig: relay.kubeconfig(), flags: &[&namespace], env: &[] };

    let agent = Agent::launch(&start);
    agent.wait_for_log("not followed for the moment");
    let log = agent.end();
    assert!(!log.contains("ready admin="), "{log}");

    let agent = Agent::launch(&start).answering();
    agent.wait_for_log("not followed for the moment");
    assert_eq!(agent.admin("/build").status, 200, "it lives");
    let ready = agent.admin("/healthz");
    let why = format!("waiting for https://{}", relay.addr());
    assert!(
        ready.status == 500 && ready.body.contains(&why) && ready.body.contains("cannot be listed"),
        "{ready:?}"
    );
    assert!(agent.metric("penstock_cluster_watch_errors_total") > 0.0);
    assert!(agent.ask("/status").contains(&why));

    relay.mend();
    let agent = agent.serving();
    assert_eq!(agent.get(HOST, "/").status, 404);
    assert_eq!(agent.admin("/healthz").status, 200);
}

#[test]
fn check_waits_for_the_api_server_no_longer_than_it_was_told() {
    let Some(rig) = Rig::new() else { return };
    let relay = Relay::before(&rig);
    relay.cut();

    let (text, code) = cli(&["check", "--cluster", "--timeout", "2"], &relay.kubeconfig().to_owned());

    assert_eq!(code, Some(65), "{text}");
    let said = format!("https://{}/ did not answer within 2 s", relay.addr());
    assert!(text.contains(&said) && text.contains("cannot be listed"), "{text}");
}

#[test]
fn a_connection_that_says_nothing_is_noticed_before_it_matters() {
    let Some(rig) = Rig::new() else { return };
    let relay = Relay::before(&rig);
    relay.stall();

    let agent = Agent::launch(&Start { kubeconfig: relay.kubeconfig(), flags: &[], env: &[] });
    let told = eventually(Duration::from_secs(60), || {
        agent.log().contains("not followed for the moment").then_some(())
    });

    assert!(told.is_some(), "{}", agent.log());
    relay.mend();
    agent.serving();
}

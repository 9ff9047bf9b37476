//! The room against a scripted API server: what a real one does too seldom to wait for.

mod server;

use std::sync::Arc;

use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Duration, Instant, timeout};

use super::*;
use crate::model::{ObjectId, ObjectName, Problem, Severity};
use crate::objects::{Former, Key, Loaded, References};

use server::Server;

/// No wait of a test is longer.
const DEADLINE: Duration = Duration::from_secs(20);

fn ingress(name: &str, version: &str, annotation: &str) -> Value {
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "Ingress",
        "metadata": {"namespace": "shop", "name": name, "resourceVersion": version,
            "annotations": {"secret": annotation}},
        "spec": {"rules": [{"host": format!("{name}.example.com")}]}})
}

fn secret(name: &str, version: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"namespace": "shop", "name": name, "resourceVersion": version},
        "data": {"version": "AAAA"}})
}

/// Everything may enter; an Ingress names a Secret by its one annotation.
fn options() -> Options {
    let refer: Refer = Arc::new(|objects| {
        let named = objects.ingresses.values().filter_map(|sourced| {
            let annotations = sourced.object.metadata.annotations.as_ref()?;
            annotations.get("secret").filter(|name| !name.is_empty())
        });
        References {
            secrets: named.map(|name| ObjectName::new("shop", name)).collect(),
            ..References::default()
        }
    });
    let admission = Admission {
        alone: |_, _, _| Vec::new(),
        among: |_, _| Box::new(|_, _| Vec::new()),
        config_map: None,
        address_pools: None,
        renamed: None,
    };
    Options { scope: Scope::default(), admission, refer }
}

async fn until(
    loaded: &mut watch::Receiver<Arc<Loaded>>,
    case: &str,
    good: impl Fn(&Loaded) -> bool,
) -> Arc<Loaded> {
    let waiting = timeout(DEADLINE, loaded.wait_for(|loaded| good(loaded))).await;
    let found = waiting.unwrap_or_else(|_| panic!("{case}")).expect("followed");
    Arc::clone(&found)
}

fn names(loaded: &Loaded) -> Vec<&str> {
    loaded.objects.ingresses.keys().map(|name| name.name.as_str()).collect()
}

#[tokio::test]
async fn the_first_list_of_a_kind_wakes_who_waits_for_it() {
    let health = health::Health::new();
    let feed = health::Feed { resource: "secrets", namespace: None, need: health::Need::Must };
    let of_feed = health.of(feed);

    of_feed.listed();

    timeout(DEADLINE, health.changed.notified()).await.expect("told");
    assert!(health.is_complete());
}

#[tokio::test]
async fn a_watch_that_is_too_old_is_answered_by_a_new_list() {
    let server = Server::default();
    server.put("ingresses", ingress("old", "1", ""));
    let cluster = server.start().await;
    let mut followed = watch(&cluster, options());
    timeout(DEADLINE, followed.first()).await.expect("known");
    assert_eq!(names(&followed.loaded.borrow()), ["old"]);
    server.shared.lock().expect("whole").objects.insert("ingresses".into(), vec![ingress("new", "9", "")]);

    let gone = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 410, "reason": "Expired",
        "message": "too old resource version", "metadata": {}});
    server.say("ingresses", json!({"type": "ERROR", "object": gone})).await;

    until(&mut followed.loaded, "listed anew", |loaded| names(loaded) == ["new"]).await;
    assert_eq!(followed.loaded.borrow().problems, [], "it is in the order of things");
}

#[tokio::test]
async fn a_watch_that_ends_is_resumed_where_it_ended() {
    let server = Server::default();
    let cluster = server.start().await;
    let mut followed = watch(&cluster, options());
    timeout(DEADLINE, followed.first()).await.expect("known");
    server.say("ingresses", json!({"type": "ADDED", "object": ingress("one", "41", "")})).await;
    until(&mut followed.loaded, "added", |loaded| names(loaded) == ["one"]).await;
    let bookmark = json!({"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": {"resourceVersion": "55"}});
    server.say("ingresses", json!({"type": "BOOKMARK", "object": bookmark})).await;

    // The connection breaks: its end of the channel is dropped with the watch.
    server.shared.lock().expect("whole").watches.remove("ingresses");

    server.say("ingresses", json!({"type": "DELETED", "object": ingress("one", "56", "")})).await;
    until(&mut followed.loaded, "deleted", |loaded| names(loaded).is_empty()).await;
    assert_eq!(server.count(&["/ingresses?", "limit="]), 1, "listed once");
    assert_eq!(server.count(&["/ingresses?", "resourceVersion=55"]), 1, "resumed at the bookmark");
}

#[tokio::test]
async fn a_trouble_lasts_until_what_the_server_has_forgotten_is_listed_anew() {
    let server = Server::default();
    let cluster = server.start().await;
    let mut followed = watch(&cluster, options());
    timeout(DEADLINE, followed.first()).await.expect("known");
    let lists = || server.count(&["/ingresses?", "limit="]);
    {
        let mut shared = server.shared.lock().expect("whole");
        shared.refused.push("ingresses".to_owned());
        shared.watches.remove("ingresses");
    }
    until(&mut followed.loaded, "it is told", |loaded| !loaded.problems.is_empty()).await;
    assert_eq!(lists(), 1);

    // It is there again, knows nothing of where we were, and takes its time for the list.
    let (open, opened) = watch::channel(false);
    {
        let mut shared = server.shared.lock().expect("whole");
        shared.refused.clear();
        shared.gone.insert("ingresses".to_owned(), 1);
        shared.held = Some(("ingresses".to_owned(), opened));
    }
    let asked = async {
        while lists() < 2 {
            tokio::task::yield_now().await;
        }
    };
    timeout(DEADLINE, asked).await.expect("asked for");
    // A state that leaves it out would leave within this.
    let recovered = followed.loaded.wait_for(|loaded| loaded.problems.is_empty());
    assert!(timeout(Duration::from_millis(200), recovered).await.is_err(), "told to be over");

    open.send_replace(true);

    until(&mut followed.loaded, "it is over", |loaded| loaded.problems.is_empty()).await;
}

#[tokio::test]
async fn a_server_that_forgets_at_once_is_asked_for_lists_less_often_each_time() {
    let server = Server::default();
    server.shared.lock().expect("whole").gone.insert("ingresses".to_owned(), usize::MAX);
    let begun = Instant::now();
    let cluster = server.start().await;
    let _followed = watch(&cluster, options());

    asked(&server, &["/ingresses?", "limit="], 6).await;

    // Half of each pause at least.
    let least = Duration::from_millis((200 + 400 + 800 + 1600) / 2);
    assert!(begun.elapsed() > least, "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_state_waits_for_the_secret_it_names_and_reads_no_other() {
    let server = Server::default();
    server.put("secrets", secret("cert", "3"));
    server.put("secrets", secret("others", "4"));
    server.put("ingresses", ingress("web", "1", "cert"));
    let cluster = server.start().await;

    let mut followed = watch(&cluster, options());
    timeout(DEADLINE, followed.first()).await.expect("known");

    let known =
        |loaded: &Loaded| loaded.objects.secrets.keys().map(|name| name.name.clone()).collect::<Vec<_>>();
    assert_eq!(known(&followed.loaded.borrow()), ["cert"]);
    assert_eq!(server.count(&["/secrets/others"]), 0);

    // The next one is there before the Ingress that names it: no state has one without the other.
    server.put("secrets", secret("next", "8"));
    server.say("secrets", json!({"type": "ADDED", "object": secret("next", "8")})).await;
    server.say("ingresses", json!({"type": "MODIFIED", "object": ingress("web", "9", "next")})).await;
    let moved = |loaded: &Loaded| {
        let web = loaded.objects.ingresses.values().next();
        let named = web.and_then(|web| web.object.metadata.annotations.as_ref()?.get("secret").cloned());
        named.as_deref() == Some("next")
    };
    let state = until(&mut followed.loaded, "moved", moved).await;
    assert_eq!(known(&state), ["next"]);
}

#[tokio::test]
async fn the_first_state_has_the_settings_although_nobody_knew_their_namespace() {
    let server = Server::default();
    let (object, refer) = settings();
    server.put("configmaps", object);
    server.put("ingresses", ingress("web", "1", ""));
    let (open, opened) = watch::channel(false);
    server.shared.lock().expect("whole").held = Some(("settings".to_owned(), opened));
    let cluster = server.start().await;
    let mut followed = watch(&cluster, Options { refer, ..options() });
    asked(&server, &["/configmaps/settings"], 1).await;
    let early = timeout(Duration::from_millis(100), followed.first()).await;
    open.send_replace(true);
    timeout(DEADLINE, followed.first()).await.expect("known");

    assert!(early.is_err(), "a state without the settings");
    assert_eq!(followed.loaded.borrow().objects.config_maps.len(), 1);
}

fn settings() -> (Value, Refer) {
    let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"key": "value"},
        "metadata": {"namespace": "edge", "name": "settings", "resourceVersion": "3"}});
    let refer: Refer = Arc::new(|_| References {
        config_maps_called: ["settings".to_owned()].into(),
        ..References::default()
    });
    (object, refer)
}

/// Returns when the server was asked for that so often.
async fn asked(server: &Server, words: &[&str], times: usize) {
    let asked = async {
        while server.count(words) < times {
            tokio::task::yield_now().await;
        }
    };
    timeout(DEADLINE, asked).await.expect("asked for");
}

#[tokio::test]
async fn the_first_state_waits_for_settings_that_exist_and_cannot_be_read() {
    let server = Server::default();
    let (object, refer) = settings();
    server.put("configmaps", object);
    let sick = ("settings".to_owned(), (503, "ServiceUnavailable"));
    server.shared.lock().expect("whole").unread.extend([sick]);
    let cluster = server.start().await;

    let mut followed = watch(&cluster, Options { refer, ..options() });
    asked(&server, &["/configmaps/settings"], 2).await;
    let early = timeout(Duration::from_millis(100), followed.first()).await;
    let wants = followed.health.wants();
    server.shared.lock().expect("whole").unread.clear();
    timeout(DEADLINE, followed.first()).await.expect("known");

    assert!(early.is_err(), "a state without the settings");
    let wants = wants.expect("something is wanted");
    assert!(wants.starts_with("configmaps: edge/settings cannot be read: ServiceUnavailable"), "{wants}");
    assert_eq!(followed.loaded.borrow().objects.config_maps.len(), 1);
    assert_eq!(followed.health.wants(), None);
}

#[tokio::test]
async fn the_first_state_waits_for_what_a_flag_names_and_not_for_what_an_ingress_does() {
    let flag: Refer = Arc::new(|_| References {
        config_maps: [ObjectName::new("edge", "settings")].into(),
        ..References::default()
    });
    let ingresses: Refer = Arc::new(|objects| References {
        config_maps: objects.ingresses.keys().map(|_| ObjectName::new("edge", "settings")).collect(),
        ..References::default()
    });
    for (case, refer, is_needed, verdict) in [
        ("a flag", flag, true, "an agent that starts waits for them"),
        ("an Ingress", ingresses, false, "what names them is served without"),
    ] {
        let server = Server::default();
        server.put("configmaps", settings().0);
        server.put("ingresses", ingress("web", "1", ""));
        let refused = ("settings".to_owned(), (403, "Forbidden"));
        server.shared.lock().expect("whole").unread.extend([refused]);
        let cluster = server.start().await;

        let mut followed = watch(&cluster, Options { refer, ..options() });
        let told = async {
            while !followed.health.problems().iter().any(|it| it.message.ends_with(verdict)) {
                tokio::task::yield_now().await;
            }
        };
        timeout(DEADLINE, told).await.expect(case);
        let wait = if is_needed { Duration::from_millis(100) } else { DEADLINE };
        let is_known = timeout(wait, followed.first()).await.is_ok();

        assert_eq!((is_known, followed.health.wants().is_some()), (!is_needed, is_needed), "{case}");
    }
}

#[tokio::test]
async fn a_secret_that_may_not_be_read_is_unread_and_told_once() {
    let server = Server::default();
    let names = ["one", "two"];
    for name in names {
        server.put("secrets", secret(name, "3"));
        server.put("ingresses", ingress(name, "1", name));
        server.shared.lock().expect("whole").unread.insert(name.to_owned(), (403, "Forbidden"));
    }
    let cluster = server.start().await;

    let mut followed = watch(&cluster, options());
    timeout(DEADLINE, followed.first()).await.expect("known");

    let key = |name: &&str| Some(Key { kind: Kind::Secret, name: ObjectName::new("shop", *name) });
    let told = |loaded: &Loaded| !loaded.problems.is_empty();
    let state = until(&mut followed.loaded, "told", told).await;
    assert_eq!(state.objects.unread, names.iter().map(key).collect());
    let told = state.problems.iter().map(|it| format!("{}: {}; {}", it.field, it.message, it.fix));
    let expected = "secrets: cannot be read (shop/one and 1 more): Forbidden: one (403); what names them is served \
                    without; let our account get secrets";
    assert_eq!(told.collect::<Vec<_>>(), [expected]);

    server.shared.lock().expect("whole").unread.clear();
    let whole = |loaded: &Loaded| loaded.problems.is_empty() && loaded.objects.secrets.len() == 2;
    let state = until(&mut followed.loaded, "read", whole).await;
    assert_eq!(state.objects.unread, [].into());
}

#[test]
fn a_version_that_settings_forbid_does_not_enter_behind_a_later_one_that_is_refused() {
    fn problem(id: &ObjectId) -> Vec<Problem> {
        let (reason, message) = ("odd", "not allowed".to_owned());
        let (field, fix) = (String::new(), String::new());
        vec![Problem { object: id.clone(), severity: Severity::Error, reason, field, message, fix }]
    }
    let admission = Admission {
        alone: |object, id, _| if says(object, "odd") { problem(id) } else { Vec::new() },
        config_map: None,
        address_pools: None,
        renamed: None,
        among: |_, _| Box::new(|object, id| if says(object, "forbidden") { problem(id) } else { Vec::new() }),
    };
    let version = |word: &str| {
        Object::Ingress(Arc::new(serde_json::from_value(ingress("web", "1", word)).expect("one")))
    };
    let mut store = Store::new(admission);
    store.apply(version("good"));
    store.take();

    store.apply(version("forbidden"));
    store.apply(version("odd"));
    let state = store.take();

    let in_force = state.objects.ingresses.values().next().expect("kept");
    assert_eq!(in_force.object.metadata.annotations.as_ref().expect("one")["secret"], "good");
    assert_eq!((state.kept.len(), state.problems.len()), (1, 1));
}

#[tokio::test]
async fn what_another_agent_had_in_force_stays_where_the_newest_version_is_refused() {
    fn odd(object: &Object, id: &ObjectId, _: Option<&ObjectName>) -> Vec<Problem> {
        let (reason, message) = ("odd", "not allowed".to_owned());
        let (field, fix) = (String::new(), String::new());
        let problem = Problem { object: id.clone(), severity: Severity::Error, reason, field, message, fix };
        if says(object, "odd") { vec![problem] } else { Vec::new() }
    }
    let server = Server::default();
    server.put("ingresses", ingress("web", "9", "odd"));
    server.put("ingresses", ingress("fine", "8", "new"));
    server.put("secrets", secret("cert", "3"));
    let cluster = server.start().await;
    let options = options();
    let admission = Admission { alone: odd, ..options.admission };
    let mut followed = watch(&cluster, Options { admission, ..options });
    timeout(DEADLINE, followed.first()).await.expect("known");
    assert_eq!(names(&followed.loaded.borrow()), ["fine"]);
    let former = |name: &str, word: &str| {
        let ingress = serde_json::from_value(ingress(name, "1", word)).expect("one");
        Former { object: Object::Ingress(Arc::new(ingress)), origin: "".into(), since: None }
    };

    // That of `fine` is out of date, and nobody knows `gone` any more.
    let all = vec![former("web", "cert"), former("fine", "old"), former("gone", "old")];
    timeout(DEADLINE, followed.adopt(all)).await.expect("adopted");

    let state = Arc::clone(&followed.loaded.borrow());
    assert_eq!(names(&state), ["fine", "web"]);
    let words = state
        .objects
        .ingresses
        .values()
        .map(|ingress| ingress.object.metadata.annotations.as_ref().expect("one")["secret"].clone());
    assert_eq!(words.collect::<Vec<_>>(), ["new", "cert"]);
    assert_eq!(state.objects.secrets.len(), 1, "with what it names");
    assert_eq!((state.kept.len(), state.problems.len()), (1, 1));
    timeout(DEADLINE, followed.adopt(vec![former("gone", "old")])).await.expect("nothing to wait for");

    server.say("ingresses", json!({"type": "MODIFIED", "object": ingress("web", "10", "good")})).await;
    until(&mut followed.loaded, "a good one", |loaded| loaded.kept.is_empty()).await;
}

fn says(object: &Object, word: &str) -> bool {
    let Object::Ingress(ingress) = object else { return false };
    ingress.metadata.annotations.as_ref().is_some_and(|all| all["secret"] == word)
}

#[tokio::test]
async fn what_may_not_be_read_is_told_and_the_rest_is_served() {
    let server = Server::default();
    server.shared.lock().expect("whole").refused = vec!["secrets".to_owned(), "nodes".to_owned()];
    server.put("ingresses", ingress("web", "1", "cert"));
    let cluster = server.start().await;

    let mut followed = watch(&cluster, options());
    timeout(DEADLINE, followed.first()).await.expect("known");

    assert_eq!(names(&followed.loaded.borrow()), ["web"]);
    let told = |loaded: &Loaded| {
        let refused = loaded.problems.iter().filter(|problem| problem.reason == "watch-refused");
        refused.map(|problem| problem.field.clone()).collect::<Vec<_>>() == ["nodes", "secrets"]
    };
    until(&mut followed.loaded, "told", told).await;
}

#[tokio::test]
async fn whose_ingresses_may_be_ours_is_known_by_namespace() {
    let server = Server::default();
    server.put("namespaces", json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "resourceVersion": "1"}}));
    let cluster = server.start().await;
    let one = Scope::new(Some("shop".to_owned()), None, Beside::default());
    let selected = Scope::new(None, Some("team=a".to_owned()), Beside::default());
    for (case, scope, expected) in [
        ("all", Scope::default(), [true, true]),
        ("one", one, [true, false]),
        ("some", selected, [true, false]),
    ] {
        let mut followed = watch(&cluster, Options { scope, ..options() });
        timeout(DEADLINE, followed.first()).await.expect("known");

        let served = followed.served();

        assert_eq!(["shop", "edge"].map(|namespace| served.has(namespace)), expected, "{case}");
    }
}

#[tokio::test]
async fn a_version_that_says_nothing_new_makes_no_state() {
    let server = Server::default();
    server.put("ingresses", ingress("web", "1", ""));
    let cluster = server.start().await;
    let mut followed = watch(&cluster, options());
    timeout(DEADLINE, followed.first()).await.expect("known");
    followed.loaded.mark_unchanged();

    let mut written = ingress("web", "2", "");
    written["status"] = json!({"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}});
    server.say("ingresses", json!({"type": "MODIFIED", "object": written})).await;
    let ours = ObjectName::new("shop", "web");
    let seen = timeout(DEADLINE, followed.aside.wait_for(|aside| aside.addresses.contains_key(&ours))).await;

    assert!(seen.expect("in time").is_ok());
    assert!(!followed.loaded.has_changed().expect("followed"));
}

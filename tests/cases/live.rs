//! The directory, its watcher and the translation together: what is in force after each change.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use penstock::manifests::{self, Loaded};
use penstock::translate;
use tokio::sync::watch::Receiver;

fn ingress(path: &str, annotation: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: Ingress\nmetadata:\n  name: web\n  annotations:\n    \
         nginx.ingress.kubernetes.io/{annotation}\nspec:\n  ingressClassName: nginx\n  rules:\n  - host: \
         a.example.com\n    http:\n      paths:\n      - path: {path}\n        pathType: Prefix\n        backend: \
         {{service: {{name: web, port: {{number: 80}}}}}}\n"
    )
}

/// Paths served on the one host, and the reasons of what could not be admitted.
fn served(loaded: &Loaded) -> (Vec<String>, Vec<&'static str>) {
    let translated = translate::translate(&loaded.objects, &translate::Options::default());
    let locations = translated.snapshot.l7.servers.values().flat_map(|server| &server.locations);
    let paths =
        locations.filter(|location| location.ingress.is_some()).map(|location| location.path_label.clone());
    (paths.collect(), loaded.problems.iter().map(|problem| problem.reason).collect())
}

async fn until(updates: &mut Receiver<Arc<Loaded>>, case: &str, paths: &[&str], reasons: &[&str]) {
    let expected = (paths.iter().map(ToString::to_string).collect::<Vec<_>>(), reasons.to_vec());
    let waiting = updates.wait_for(|loaded| served(loaded) == expected);
    let reached = matches!(tokio::time::timeout(Duration::from_secs(10), waiting).await, Ok(Ok(_)));
    assert!(reached, "{case}: still {:?}", served(&updates.borrow()));
}

#[tokio::test]
async fn a_version_that_is_not_admitted_never_replaces_one_that_was() {
    let temp = tempfile::tempdir().expect("a temporary directory");
    let file = temp.path().join("web.yaml");
    let write = |text: String| fs::write(&file, text).expect("the directory is writable");
    write(ingress("/one", "limit-rps: \"10\""));
    let (mut updates, watcher) = manifests::watch(temp.path(), translate::ADMISSION).expect("watch");
    tokio::spawn(watcher.run());
    until(&mut updates, "first", &["/one"], &[]).await;

    write(ingress("/two", "limit-rps: \"ten\""));
    until(&mut updates, "value of class A", &["/one"], &["bad-annotation"]).await;

    write(ingress("no-slash", "limit-rps: \"10\""));
    until(&mut updates, "bad path", &["/one"], &["bad-path"]).await;

    write(ingress("/two: [", "limit-rps: \"10\""));
    until(&mut updates, "bad syntax", &["/one"], &["syntax"]).await;

    write(ingress("/three", "limit-rps: \"10\""));
    until(&mut updates, "corrected", &["/three"], &[]).await;

    fs::remove_file(&file).expect("remove");
    until(&mut updates, "removed", &[], &[]).await;
}

#[tokio::test]
async fn a_certificate_is_replaced_only_by_one_whose_key_belongs_to_it() {
    let pair = || rcgen::generate_simple_self_signed(["a.example.com".to_owned()]).expect("a certificate");
    let secret = |crt: &str, key: &str| {
        serde_json::json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "cert"},
            "type": "kubernetes.io/tls", "stringData": {"tls.crt": crt, "tls.key": key}})
        .to_string()
    };
    let (old, new) = (pair(), pair());
    let temp = tempfile::tempdir().expect("a temporary directory");
    let file = temp.path().join("cert.json");
    let write = |text: String| fs::write(&file, text).expect("the directory is writable");
    let in_force = |loaded: &Loaded| {
        let secret = loaded.objects.secrets.values().next().and_then(|sourced| sourced.object.data.clone());
        secret.and_then(|data| data.get("tls.crt").map(|crt| String::from_utf8_lossy(&crt.0).into_owned()))
    };
    write(secret(&old.cert.pem(), &old.signing_key.serialize_pem()));
    let (mut updates, watcher) = manifests::watch(temp.path(), translate::ADMISSION).expect("watch");
    tokio::spawn(watcher.run());

    write(secret(&new.cert.pem(), &old.signing_key.serialize_pem()));
    let refused = |loaded: &Loaded| loaded.problems.iter().any(|problem| problem.reason == "bad-certificate");
    let waiting = tokio::time::timeout(Duration::from_secs(10), updates.wait_for(|loaded| refused(loaded)));
    assert_eq!(in_force(&waiting.await.expect("in time").expect("a version")), Some(old.cert.pem()));

    write(secret(&new.cert.pem(), &new.signing_key.serialize_pem()));
    let waiting = tokio::time::timeout(Duration::from_secs(10), updates.wait_for(|loaded| !refused(loaded)));
    assert_eq!(in_force(&waiting.await.expect("in time").expect("a version")), Some(new.cert.pem()));
}

//! Files in, objects and problems out.

mod following;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::scan::{Content, Scan};
use super::store::Store;
use super::*;
use crate::model::{ObjectId, Problem};
use crate::model::{ObjectName, Severity};
use crate::objects::{Former, Key, Kind, Object};

const ADMIT_ALL: Admission = Admission {
    alone: |_, _, _| Vec::new(),
    among: |_, _| Box::new(|_, _| Vec::new()),
    config_map: None,
    address_pools: None,
    renamed: None,
};

/// Refuses every object that carries the label `refuse`.
const ADMIT_UNLABELLED: Admission = Admission {
    alone: refuse_labelled,
    among: ADMIT_ALL.among,
    config_map: None,
    address_pools: None,
    renamed: None,
};

/// Refuses Services whose name a ConfigMap has as a key.
const ADMIT_UNNAMED: Admission = Admission {
    among: |config_maps, _| {
        let data = config_maps.values().flat_map(|sourced| sourced.object.data.iter().flatten());
        let names: Vec<_> = data.map(|(name, _)| name.clone()).collect();
        Box::new(move |object, id| refusal(names.contains(&object.key().name.name), id))
    },
    alone: ADMIT_ALL.alone,
    config_map: None,
    address_pools: None,
    renamed: None,
};

fn refuse_labelled(object: &Object, id: &ObjectId, _: Option<&ObjectName>) -> Vec<Problem> {
    let labels = object.metadata().labels.as_ref();
    refusal(labels.is_some_and(|labels| labels.contains_key("refuse")), id)
}

fn refusal(refused: bool, id: &ObjectId) -> Vec<Problem> {
    let problem = Problem {
        object: id.clone(),
        severity: Severity::Error,
        reason: "refused",
        field: "metadata.labels.refuse".to_owned(),
        message: "refused".to_owned(),
        fix: String::new(),
    };
    refused.then_some(problem).into_iter().collect()
}

fn service(name: &str, port: u16) -> String {
    format!("apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\nspec:\n  ports:\n  - port: {port}\n")
}

fn scan_of(files: &[(&str, &str)]) -> Scan {
    let files =
        files.iter().map(|(path, text)| ((*path).to_owned(), Content::Bytes(text.as_bytes().to_vec())));
    Scan { files: files.collect(), ..Scan::default() }
}

/// `namespace/name:port` of every Service in force.
fn services(loaded: &Loaded) -> Vec<String> {
    let port = |service: &k8s_openapi::api::core::v1::Service| {
        service.spec.as_ref()?.ports.as_ref()?.first().map(|port| port.port)
    };
    let services = loaded.objects.services.iter();
    services.map(|(name, sourced)| format!("{name}:{}", port(&sourced.object).unwrap_or_default())).collect()
}

fn reasons(loaded: &Loaded) -> Vec<String> {
    let line = |problem: &Problem| format!("{} {} {}", problem.object, problem.reason, problem.field);
    loaded.problems.iter().map(|problem| line(problem).trim_end().to_owned()).collect()
}

#[test]
fn reads_every_way_an_object_can_be_written() {
    let json =
        r#"{"apiVersion":"v1","kind":"Service","metadata":{"name":"a"},"spec":{"ports":[{"port":1}]}}"#;
    let cases = [
        ("yaml", "x.yaml", service("a", 1), vec!["default/a:1"]),
        ("two documents", "x.yml", format!("{}---\n{}", service("a", 1), service("b", 2)), vec![
            "default/a:1",
            "default/b:2",
        ]),
        ("json", "x.json", json.to_owned(), vec!["default/a:1"]),
        ("json array", "x.json", format!("[{json}]"), vec!["default/a:1"]),
        ("json list", "x.json", format!(r#"{{"apiVersion":"v1","kind":"List","items":[{json}]}}"#), vec!["default/a:1"]),
        ("json inside yaml", "x.yaml", json.to_owned(), vec!["default/a:1"]),
        (
            "typed list whose items leave their kind out",
            "x.yaml",
            "apiVersion: v1\nkind: ServiceList\nitems:\n- metadata: {name: a, namespace: n}\n  spec: {ports: [{port: 7}]}\n"
                .to_owned(),
            vec!["n/a:7"],
        ),
        ("empty", "x.yaml", String::new(), vec![]),
        ("empty json", "x.json", String::new(), vec![]),
    ];
    for (case, name, text, expected) in cases {
        let loaded = load_text(name, text.as_bytes(), ADMIT_ALL);

        assert_eq!(services(&loaded), expected, "{case}: {:?}", loaded.problems);
        assert_eq!(reasons(&loaded), Vec::<String>::new(), "{case}");
    }
}

#[test]
fn what_helm_and_kustomize_make_objects_of_is_no_broken_object() {
    let text = b"controller: {replicaCount: 2}\n";
    for (file, expected) in [
        ("kustomization.yaml", "kustomization.yaml#1 kind-not-read"),
        ("edge/kustomization.yml", "edge/kustomization.yml#1 kind-not-read"),
        ("values.yaml", "values.yaml#1 kind-not-read"),
        ("edge/values-prod.yaml", "edge/values-prod.yaml#1 kind-not-read"),
        ("edge.values.yml", "edge.values.yml#1 kind-not-read"),
        ("edge.yaml", "edge.yaml#1 not-an-object kind"),
    ] {
        let found = reasons(&load_text(file, text, ADMIT_ALL));

        assert_eq!(found.first().map(|reason| reason.trim()), Some(expected), "{file}");
    }
    let named = b"apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources: [a.yaml]\n";
    let loaded = load_text("a.yaml", named, ADMIT_ALL);
    assert!(
        loaded.problems[0].fix.contains("kustomize build DIR | penstock check -"),
        "{:?}",
        loaded.problems
    );
}

#[test]
fn names_file_document_field_and_reason() {
    let cases = [
        (
            "unread kind",
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}",
            "Deployment d (x.yaml#1) kind-not-read kind",
        ),
        (
            "foreign Service",
            "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {name: d}",
            "Service d (x.yaml#1) kind-not-read kind",
        ),
        (
            "old Ingress",
            "apiVersion: extensions/v1beta1\nkind: Ingress\nmetadata: {name: i}",
            "Ingress default/i (x.yaml#1) wrong-api-version apiVersion",
        ),
        ("no kind", "a: 1", "x.yaml#1 not-an-object kind"),
        ("a scalar", "hello", "x.yaml#1 not-an-object kind"),
        ("no name", "apiVersion: v1\nkind: Secret", "Secret default/ (x.yaml#1) missing-name metadata.name"),
        (
            "wrong type",
            "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec:\n  ports:\n  - port: http",
            "Service default/s (x.yaml#1) schema spec.ports[0].port",
        ),
        (
            "unquoted annotation",
            "apiVersion: networking.k8s.io/v1\nkind: Ingress\nmetadata:\n  name: i\n  annotations: {a: true}",
            "Ingress default/i (x.yaml#1) schema metadata.annotations.a",
        ),
        (
            "misspelt field",
            "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec: {port: []}",
            "Service default/s (x.yaml#1) unknown-field spec.port",
        ),
        ("syntax", "kind: Service\nmetadata:\n  name: s\nspec: [", "Service default/s (x.yaml#1) syntax"),
        ("syntax in the second", "a: 1\n---\nb: [", "x.yaml#1 not-an-object kind"),
        ("duplicate key", "a: 1\na: 2", "x.yaml#1 syntax"),
    ];
    for (case, text, expected) in cases {
        let loaded = load_text("x.yaml", text.as_bytes(), ADMIT_ALL);

        assert_eq!(
            reasons(&loaded).first().map(String::as_str),
            Some(expected),
            "{case}: {:?}",
            loaded.problems
        );
    }
}

#[test]
fn tells_the_line_of_the_file_not_of_the_document() {
    let text = format!("{}---\nkind: [\n", service("a", 1));

    let loaded = load_text("x.yaml", text.as_bytes(), ADMIT_ALL);

    let message = &loaded.problems[0].message;
    assert!(message.starts_with("line 9, column") || message.starts_with("line 10, column"), "{message}");
}

#[test]
fn a_secret_reads_as_kubernetes_reads_it() {
    let text = "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\ndata:\n  wrapped: |\n    aGVs\n    bG8=\n  both: aGVsbG8=\nstringData:\n  both: text\n";

    let loaded = load_text("x.yaml", text.as_bytes(), ADMIT_ALL);

    let secret = &loaded.objects.secrets.values().next().expect("one secret").object;
    let data: Vec<_> =
        secret.data.iter().flatten().map(|(name, value)| (name.as_str(), value.0.as_slice())).collect();
    assert_eq!(data, [("both", &b"text"[..]), ("wrapped", &b"hello"[..])]);
}

#[test]
fn the_first_of_two_definitions_wins() {
    let mut store = Store::new(ADMIT_ALL);

    let loaded = store.apply(scan_of(&[("b.yaml", &service("a", 2)), ("a.yaml", &service("a", 1))]));

    assert_eq!(services(&loaded), ["default/a:1"]);
    assert_eq!(reasons(&loaded), ["Service default/a (b.yaml#1) duplicate-object metadata.name"]);
}

#[test]
fn the_last_good_version_stays_in_force() {
    let good = format!("{}---\n{}", service("a", 1), service("b", 2));
    let refused = service("a", 9).replace("name: a", "name: a\n  labels: {refuse: x}");
    let cases = [
        ("nothing changed", good.clone(), vec!["default/a:1", "default/b:2"]),
        (
            "a changed",
            format!("{}---\n{}", service("a", 9), service("b", 2)),
            vec!["default/a:9", "default/b:2"],
        ),
        ("a gone", service("b", 2), vec!["default/b:2"]),
        ("a of a wrong type", good.replace("port: 1", "port: x"), vec!["default/a:1", "default/b:2"]),
        ("a refused", format!("{refused}---\n{}", service("b", 3)), vec!["default/a:1", "default/b:3"]),
        ("a with broken syntax", good.replace("port: 1", "port: ["), vec!["default/a:1", "default/b:2"]),
        ("a illegible", format!("{{[\n---\n{}", service("b", 3)), vec!["default/a:1", "default/b:3"]),
        (
            "a illegible in another place",
            format!("{}---\n{{[\n", service("b", 3)),
            vec!["default/a:1", "default/b:3"],
        ),
        (
            "a gone while b has broken syntax",
            service("b", 2).replace("port: 2", "port: ["),
            vec!["default/b:2"],
        ),
        ("emptied", String::new(), vec![]),
    ];
    for (case, text, expected) in cases {
        let mut store = Store::new(ADMIT_UNLABELLED);
        store.apply(scan_of(&[("x.yaml", &good)]));

        let loaded = store.apply(scan_of(&[("x.yaml", &text)]));
        let again = store.apply(scan_of(&[("x.yaml", &text)]));

        assert_eq!(services(&loaded), expected, "{case}");
        assert_eq!(loaded, again, "{case}: reading again changes nothing");
    }
}

#[test]
fn what_a_config_map_demands_holds_for_new_versions_and_leaves_the_last_one_in_force() {
    let demand = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndata: {a: x}\n";
    let both = format!("{demand}---\n{}---\n{}", service("a", 2), service("b", 2));

    let mut store = Store::new(ADMIT_UNNAMED);
    let fresh = store.apply(scan_of(&[("x.yaml", &both)]));
    assert_eq!(services(&fresh), ["default/b:2"]);
    assert_eq!(fresh.objects.unread.len(), 1);

    let mut store = Store::new(ADMIT_UNNAMED);
    store.apply(scan_of(&[("x.yaml", &service("a", 1))]));
    let loaded = store.apply(scan_of(&[("x.yaml", &both)]));
    let again = store.apply(scan_of(&[("x.yaml", &both)]));

    assert_eq!(services(&loaded), ["default/a:1", "default/b:2"]);
    assert_eq!(loaded.kept.len(), 1);
    assert_eq!(loaded, again, "reading again changes nothing");
    let without = both.replace("{a: x}", "{}");
    assert_eq!(services(&store.apply(scan_of(&[("x.yaml", &without)]))), ["default/a:2", "default/b:2"]);
}

#[test]
fn a_file_that_cannot_be_read_keeps_its_objects() {
    let unreadable = |content| Scan { files: [("x.yaml".to_owned(), content)].into(), ..Scan::default() };
    let cases = [
        ("permission", unreadable(Content::Unreadable("permission denied".to_owned())), 1),
        ("not text", unreadable(Content::Bytes(vec![0xff, 0xfe, 0])), 1),
        ("being written", unreadable(Content::Busy), 0),
        (
            "in a directory that cannot be listed",
            Scan { unlistable: [(String::new(), "permission denied".to_owned())].into(), ..Scan::default() },
            1,
        ),
    ];
    for (case, scan, problems) in cases {
        let mut store = Store::new(ADMIT_ALL);
        store.apply(scan_of(&[("x.yaml", &service("a", 1))]));

        let loaded = store.apply(scan);
        let later = store.apply(scan_of(&[]));

        assert_eq!(services(&loaded), ["default/a:1"], "{case}");
        assert_eq!(loaded.problems.len(), problems, "{case}");
        assert_eq!(services(&later), Vec::<String>::new(), "{case}: gone once the file is");
    }
}

#[test]
fn what_another_process_had_in_force_stays_where_its_file_cannot_be_read() {
    let of = |dir: &str| Scan {
        unlistable: [(dir.to_owned(), "permission denied".to_owned())].into(),
        ..Scan::default()
    };
    let unreadable = Content::Unreadable("no such file".to_owned());
    let cases = [
        ("dangling", Scan { files: [("x/y.yaml".to_owned(), unreadable)].into(), ..Scan::default() }, true),
        ("half-written", scan_of(&[("x/y.yaml", &service("a", 1)[..60])]), true),
        ("illegible", scan_of(&[("x/y.yaml", "{[")]), true),
        ("in a directory that cannot be listed", of("x"), true),
        ("in another directory", of("y"), false),
        ("rewritten", scan_of(&[("x/y.yaml", &service("b", 1))]), false),
        ("gone", scan_of(&[]), false),
    ];
    let mut before = Store::new(ADMIT_ALL);
    let all = before.apply(scan_of(&[("x/y.yaml", &service("a", 1))])).objects.all();
    let former = |(object, origin): (Object, _)| {
        let object = object_of(object.to_value().expect("JSON")).expect("an object");
        Former { object, origin, since: None }
    };
    let former: Vec<_> = all.into_iter().map(former).collect();
    for (case, scan, stays) in cases {
        let mut store = Store::new(ADMIT_ALL);
        assert!(!services(&store.apply(scan.clone())).contains(&"default/a:1".to_owned()), "{case}");
        let troubled = store.troubled();

        store.adopt(former.clone());
        let loaded = store.apply(scan);

        assert_eq!(services(&loaded).contains(&"default/a:1".to_owned()), stays, "{case}");
        assert_eq!(loaded.kept.len(), usize::from(stays), "{case}");
        assert!(!stays || ["x/y.yaml", "x/"].contains(&&*troubled[0]), "{case}: {troubled:?}");
        assert_eq!(
            services(&store.apply(scan_of(&[]))),
            Vec::<String>::new(),
            "{case}: gone once the file is"
        );
    }
}

#[test]
fn an_object_that_moves_to_another_file_never_goes_away() {
    let mut store = Store::new(ADMIT_ALL);
    store.apply(scan_of(&[("x.yaml", &service("a", 1))]));

    let loaded = store.apply(scan_of(&[("x.yaml", "{["), ("y.yaml", &service("a", 2))]));

    assert_eq!(services(&loaded), ["default/a:2"]);
}

#[test]
fn alias_bombs_and_deep_nesting_are_problems() {
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..9 {
        let alias = format!("*a{}", level - 1);
        bomb += &format!("a{level}: &a{level} [{}]\n", vec![alias; 10].join(", "));
    }
    let cases =
        [("aliases", bomb), ("nesting", "[".repeat(100_000)), ("nested maps", "{a: ".repeat(100_000))];
    for (case, text) in cases {
        let loaded = load_text("x.yaml", text.as_bytes(), ADMIT_ALL);

        assert_eq!(reasons(&loaded), ["x.yaml#1 syntax"], "{case}");
    }
    let loaded = load_text("x.json", "[".repeat(100_000).as_bytes(), ADMIT_ALL);
    assert_eq!(reasons(&loaded), ["x.json#1 syntax"], "json nesting");
    let loaded =
        load_text("x.json", format!("{{\"a\":[{}0]}}", "0,".repeat(4_000_000)).as_bytes(), ADMIT_ALL);
    assert_eq!(reasons(&loaded), ["x.json#1 syntax"], "json values");
    let kept = format!(
        r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"a"}},"data":{{"a":"\"{}"}}}}"#,
        "[,".repeat(2_000_001)
    );
    assert!(load_text("x.json", kept.as_bytes(), ADMIT_ALL).problems.is_empty(), "text is one value");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn no_bytes_are_objects_by_chance(bytes in proptest::collection::vec(any::<u8>(), 0..400), json in any::<bool>()) {
        let loaded = load_text(if json { "x.json" } else { "x.yaml" }, &bytes, ADMIT_ALL);
        prop_assert!(loaded.objects.services.is_empty() && loaded.objects.ingresses.is_empty());
    }

    #[test]
    fn nor_is_any_text_of_yaml_characters(text in "[-a:\\[\\]{}&*!|>'\"%@#, \n\t]{0,120}") {
        let loaded = load_text("x.yaml", text.as_bytes(), ADMIT_ALL);
        prop_assert!(loaded.objects.services.is_empty() && loaded.objects.ingresses.is_empty());
    }

    #[test]
    fn a_bad_document_costs_only_itself(kinds in proptest::collection::vec(0..4usize, 1..12)) {
        let document = |(index, kind): (usize, &usize)| match kind {
            0 => service(&format!("s{index:02}"), 1),
            1 => "{[\n".to_owned(),
            2 => "kind: [\n  - : :\n".to_owned(),
            _ => "apiVersion: v1\nkind: Service\nmetadata: {name: x}\nspec: {ports: 3}\n".to_owned(),
        };
        let text = kinds.iter().enumerate().map(document).collect::<Vec<_>>().join("---\n");
        let good = kinds.iter().enumerate().filter(|(_, kind)| **kind == 0);
        let expected: Vec<_> = good.map(|(index, _)| format!("default/s{index:02}:1")).collect();

        let loaded = load_text("x.yaml", text.as_bytes(), ADMIT_ALL);

        prop_assert_eq!(services(&loaded), expected);
    }
}

fn write(path: impl AsRef<Path>, text: impl AsRef<[u8]>) {
    fs::write(path, text).expect("the test's directory is writable");
}

#[test]
fn an_absent_directory_is_an_error_and_one_file_is_enough() {
    let temp = tempfile::tempdir().expect("a temporary directory");
    assert!(matches!(load(&temp.path().join("absent"), ADMIT_ALL), Err(Error::Root { .. })));

    let file = temp.path().join("one.txt");
    write(&file, service("a", 1));
    assert_eq!(services(&load(&file, ADMIT_ALL).expect("one file")), ["default/a:1"]);
}

#[test]
fn skips_what_editors_leave_and_refuses_what_is_too_large() {
    let temp = tempfile::tempdir().expect("a temporary directory");
    for name in [".hidden.yaml", "a.yaml~", "#a.yaml#", "a.yaml.bak", "notes.txt"] {
        write(temp.path().join(name), service("a", 1));
    }
    fs::create_dir(temp.path().join(".git")).expect("create");
    write(temp.path().join(".git/x.yaml"), service("b", 1));
    let large = fs::File::create(temp.path().join("large.yaml")).expect("create");
    large.set_len(MAX_BYTES + 1).expect("a hole");
    std::os::unix::fs::symlink(temp.path(), temp.path().join("loop")).expect("link");
    std::os::unix::fs::symlink("nowhere", temp.path().join("dangling.yaml")).expect("link");

    let loaded = load(temp.path(), ADMIT_ALL).expect("load");

    assert_eq!(services(&loaded), Vec::<String>::new());
    assert_eq!(reasons(&loaded), ["dangling.yaml unreadable-file", "large.yaml unreadable-file"]);
}

#[test]
fn files_and_standard_input_have_one_limit_together() {
    let temp = tempfile::tempdir().expect("a temporary directory");
    let large = temp.path().join("large.yaml");
    let mut text = service("a", 1).into_bytes();
    text.resize(9 << 20, b'\n');
    write(&large, text);
    let hole = temp.path().join("hole.yaml");
    fs::File::create(&hole).expect("create").set_len(MAX_BYTES - (9 << 20) + 1).expect("a hole");
    let stdin = service("b", 2).into_bytes();

    let read = |paths: &[PathBuf]| read_all(paths, Some(stdin.clone())).expect("there").load(ADMIT_ALL);
    let whole = read(&[large.clone(), "-".into()]);
    let beyond = read(&[large, hole, "-".into()]);

    assert_eq!(services(&whole), ["default/a:1", "default/b:2"]);
    assert_eq!(reasons(&whole), Vec::<String>::new());
    assert_eq!(services(&beyond), ["default/a:1", "default/b:2"]);
    let message = &beyond.problems.first().expect("refused").message;
    assert_eq!(message, "with it all manifests together exceed 512 MiB, the most that is read");
}

#[test]
fn what_was_never_read_is_unread_and_what_is_kept_says_since_when() {
    let at = |seconds| std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
    let key = |name: &str| Key { kind: Kind::Service, name: ObjectName::new("default", name) };
    let slip = service("a", 2).replace("port: 2", "port: [");
    let mut store = Store::new(ADMIT_ALL);

    let first = store.apply_at(scan_of(&[("x.yaml", &slip), ("y.yaml", "{[")]), at(1));
    assert_eq!(first.objects.unread, [None, Some(key("a"))].into());
    assert_eq!(first.kept, []);

    let whole = store.apply_at(scan_of(&[("x.yaml", &service("a", 1)), ("y.yaml", "")]), at(2));
    assert_eq!((whole.objects.unread.len(), whole.kept.len()), (0, 0));

    // From here on an earlier version serves.
    let scan = || scan_of(&[("x.yaml", &slip), ("y.yaml", "")]);
    let (then, later) = (store.apply_at(scan(), at(3)), store.apply_at(scan(), at(4)));
    assert_eq!(then, later);
    assert_eq!(then.objects.unread.len(), 0);
    let kept: Vec<_> = then.kept.iter().map(|kept| (kept.object.name.as_str(), kept.since)).collect();
    assert_eq!(kept, [("a", at(3))]);

    let busy = Scan { files: [("z.yaml".to_owned(), Content::Busy)].into(), ..Scan::default() };
    assert_eq!(store.apply_at(busy, at(5)).objects.unread, [None].into());
}

/// A file of a history: which Services it holds, or what is wrong with it.
fn file_texts() -> impl Strategy<Value = Option<String>> {
    prop_oneof![
        1 => Just(None),
        6 => prop::collection::vec((0..4u8, 1..4u16), 0..3).prop_map(|services| {
            let texts = services.iter().map(|(name, port)| service(&format!("s{name}"), *port));
            Some(texts.collect::<Vec<_>>().join("---\n"))
        }),
        1 => Just(Some("kind: Service\napiVersion: v1\nmetadata: {name: s0}\nspec: [".to_owned())),
        1 => Just(Some("kind: Service\napiVersion: v1\nmetadata: {name: s1}\nspec: {ports: [], typo: 1}\n".to_owned())),
        1 => Just(Some("kind: ConfigMap\napiVersion: v1\nmetadata: {name: c}\ndata: {s2: x}\n".to_owned())),
        1 => Just(Some("kind: Service\napiVersion: v1\nmetadata: {name: s3, labels: {refuse: x}}\n".to_owned())),
    ]
}

proptest! {
    /// Who reads only what has changed comes to the same as who reads everything.
    #[test]
    fn a_change_of_a_few_files_needs_no_look_at_the_others(
        steps in prop::collection::vec(prop::collection::btree_map(0..4u8, file_texts(), 1..3), 1..12)
    ) {
        let admission = Admission { alone: refuse_labelled, ..ADMIT_UNNAMED };
        let (mut by_files, mut by_scans) = (Store::new(admission.clone()), Store::new(admission));
        let mut files: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        let at = std::time::UNIX_EPOCH;
        for step in steps {
            let changed: BTreeMap<_, _> = step
                .into_iter()
                .map(|(name, text)| (format!("{name}.yaml"), text.map(String::into_bytes)))
                .collect();
            for (name, bytes) in &changed {
                match bytes {
                    Some(bytes) => drop(files.insert(name.clone(), bytes.clone())),
                    None => drop(files.remove(name)),
                }
            }
            let scan = || Scan {
                files: files.iter().map(|(name, bytes)| (name.clone(), Content::Bytes(bytes.clone()))).collect(),
                ..Scan::default()
            };

            let some = by_files.apply_changed(&changed).unwrap_or_else(|| by_files.apply_at(scan(), at));

            prop_assert_eq!(some, by_scans.apply_at(scan(), at));
        }
    }
}

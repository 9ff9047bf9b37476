//! The watcher with real inotify, in a directory of its own.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch::Receiver;

use super::super::*;
use super::{ADMIT_ALL, service, services, write};

/// Waits for a version that satisfies the condition.
async fn until(receiver: &mut Receiver<Arc<Loaded>>, case: &str, condition: impl Fn(&Loaded) -> bool) {
    let waiting = receiver.wait_for(|loaded| condition(loaded));
    let reached = matches!(tokio::time::timeout(Duration::from_secs(10), waiting).await, Ok(Ok(_)));
    assert!(reached, "{case}: still {:?}", receiver.borrow());
}

async fn until_services(receiver: &mut Receiver<Arc<Loaded>>, case: &str, expected: &[&str]) {
    until(receiver, case, |loaded| services(loaded) == expected).await;
}

#[tokio::test]
async fn follows_files_directories_and_renames() {
    let temp = tempfile::tempdir().expect("a temporary directory");
    let root = temp.path().join("manifests");
    fs::create_dir(&root).expect("create");
    write(root.join("a.yaml"), service("a", 1));
    let (mut updates, watcher) = watch(&root, ADMIT_ALL).expect("watch");
    let task = tokio::spawn(watcher.run());
    assert_eq!(services(&updates.borrow()), ["default/a:1"]);

    write(root.join("a.yaml"), service("a", 2));
    until_services(&mut updates, "rewritten in place", &["default/a:2"]).await;

    write(root.join(".a.yaml.tmp"), service("a", 3));
    fs::rename(root.join(".a.yaml.tmp"), root.join("a.yaml")).expect("rename");
    until_services(&mut updates, "replaced by rename", &["default/a:3"]).await;

    fs::create_dir_all(root.join("sub/deep")).expect("create");
    write(root.join("sub/deep/b.yaml"), service("b", 1));
    until_services(&mut updates, "new sub-directories", &["default/a:3", "default/b:1"]).await;

    write(root.join("sub/deep/b.yaml"), service("b", 2));
    until_services(&mut updates, "changed in a new sub-directory", &["default/a:3", "default/b:2"]).await;

    fs::rename(root.join("sub"), root.join("renamed")).expect("rename");
    write(root.join("renamed/deep/b.yaml"), service("b", 4));
    until_services(&mut updates, "changed in a renamed sub-directory", &["default/a:3", "default/b:4"]).await;

    fs::rename(root.join("renamed"), temp.path().join("outside")).expect("rename");
    until_services(&mut updates, "moved out", &["default/a:3"]).await;

    fs::remove_file(root.join("a.yaml")).expect("remove");
    until_services(&mut updates, "removed", &[]).await;

    drop(updates);
    task.await.expect("the watcher ends with its last receiver");
}

#[tokio::test]
async fn follows_the_symlink_swap_of_a_config_map_mount() {
    let temp = tempfile::tempdir().expect("a temporary directory");
    let root = temp.path();
    let version = |name: &str, port: u16| {
        fs::create_dir(root.join(name)).expect("create");
        write(root.join(name).join("s.yaml"), service("a", port));
    };
    let link = |to: &str, at: &str| std::os::unix::fs::symlink(to, root.join(at)).expect("link");
    version("..v1", 1);
    link("..v1", "..data");
    link("..data/s.yaml", "s.yaml");
    let (mut updates, watcher) = watch(root, ADMIT_ALL).expect("watch");
    tokio::spawn(watcher.run());
    assert_eq!(services(&updates.borrow()), ["default/a:1"]);

    version("..v2", 2);
    link("..v2", "..data_tmp");
    fs::rename(root.join("..data_tmp"), root.join("..data")).expect("rename");
    fs::remove_dir_all(root.join("..v1")).expect("remove");

    until_services(&mut updates, "swapped", &["default/a:2"]).await;
}

#[tokio::test]
async fn keeps_everything_while_the_root_is_away_and_finds_it_again() {
    let temp = tempfile::tempdir().expect("a temporary directory");
    let root = temp.path().join("manifests");
    fs::create_dir(&root).expect("create");
    write(root.join("a.yaml"), service("a", 1));
    let (mut updates, watcher) = watch(&root, ADMIT_ALL).expect("watch");
    tokio::spawn(watcher.run());

    fs::rename(&root, temp.path().join("away")).expect("rename");
    until(&mut updates, "root away", |loaded| {
        loaded.problems.iter().any(|problem| problem.reason == "unreadable-root")
    })
    .await;
    assert_eq!(services(&updates.borrow()), ["default/a:1"]);

    write(temp.path().join("away/a.yaml"), service("a", 2));
    fs::rename(temp.path().join("away"), &root).expect("rename");
    until_services(&mut updates, "root back", &["default/a:2"]).await;
    assert_eq!(updates.borrow().problems, []);
}

#[tokio::test]
async fn follows_a_single_file() {
    let temp = tempfile::tempdir().expect("a temporary directory");
    let file = temp.path().join("a.yaml");
    write(&file, service("a", 1));
    let (mut updates, watcher) = watch(&file, ADMIT_ALL).expect("watch");
    tokio::spawn(watcher.run());
    assert_eq!(services(&updates.borrow()), ["default/a:1"]);

    write(&file, service("a", 2));
    until_services(&mut updates, "rewritten in place", &["default/a:2"]).await;

    write(temp.path().join("other"), service("a", 3));
    fs::rename(temp.path().join("other"), &file).expect("rename");
    until_services(&mut updates, "replaced by rename", &["default/a:3"]).await;
}

#[tokio::test]
async fn a_half_written_file_is_not_read() {
    use std::io::Write;
    let temp = tempfile::tempdir().expect("a temporary directory");
    let path = temp.path().join("a.yaml");
    write(&path, service("a", 1));
    let (mut updates, watcher) = watch(temp.path(), ADMIT_ALL).expect("watch");
    tokio::spawn(watcher.run());

    // Truncated and half written; the change of another file makes the directory be read.
    let mut open = fs::File::create(&path).expect("open");
    open.write_all(b"apiVersion: v1\nkind: Service\n").expect("write");
    write(temp.path().join("b.yaml"), service("b", 1));
    until_services(&mut updates, "half written", &["default/a:1", "default/b:1"]).await;
    assert_eq!(updates.borrow().problems, []);

    open.write_all(b"metadata: {name: a}\nspec: {ports: [{port: 5}]}\n").expect("write");
    drop(open);
    until_services(&mut updates, "complete", &["default/a:5", "default/b:1"]).await;
}

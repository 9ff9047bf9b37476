//! The image's root file system, made as the Dockerfile makes it.

use std::process::Command;

use lb_tests::helm;

/// The image runs without a shell, a package manager or a library that it does not hold.
#[test]
fn the_agent_starts_in_the_images_root_and_finds_nothing_else_there() {
    let there = || {
        let strip =
            Command::new("strip").arg("--version").output().map_err(|error| format!("strip: {error}"))?;
        let root = Command::new("id").arg("-u").output().map_err(|error| format!("id: {error}"))?;
        if root.stdout != b"0\n" {
            return Err("chroot needs root".to_owned());
        }
        if strip.status.success() { Ok(()) } else { Err("strip does not run".to_owned()) }
    };
    if !lb_tests::tier::require("deploy", there) {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let root = dir.path().join("root");
    let agent = lb_tests::agent::binary().expect("the agent is built");

    let made = Command::new(helm::top().join("deploy/rootfs.sh")).arg(agent).arg(&root).output().expect("sh");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));

    let version = Command::new("chroot").arg(&root).args(["/usr/local/bin/penstock", "--version"]).output();
    let version = version.expect("chroot");
    assert!(version.status.success(), "{}", String::from_utf8_lossy(&version.stderr));
    assert!(String::from_utf8_lossy(&version.stdout).starts_with("penstock "));
    let programs = std::fs::read_dir(root.join("usr/local/bin")).expect("a directory");
    let mut names: Vec<_> = programs.map(|entry| entry.expect("an entry").file_name()).collect();
    names.sort();
    assert_eq!(names, ["nginx", "penstock"]);
    let as_nginx =
        Command::new("chroot").arg(&root).args(["/usr/local/bin/nginx", "-v"]).output().expect("chroot");
    assert!(as_nginx.status.success());
    assert!(String::from_utf8_lossy(&as_nginx.stderr).contains("penstock/"));
    assert!(!root.join("bin").exists());
}

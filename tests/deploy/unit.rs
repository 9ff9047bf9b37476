//! The systemd unit, as far as that goes without systemd.

use std::process::Command;

use lb_tests::helm;

/// A host like the one that systemd sees: mounts that are shared, its first process, a user for the agent. Each
/// command of a unit then has a mount namespace of its own, into which mounts come and out of which none go.
const HOST: &str = r#"
mount --make-rshared /
mount -t tmpfs -o mode=755 tmpfs /run
echo 'penstock:x:990:990::/:/usr/sbin/nologin' > /run/passwd
echo 'penstock:x:990:' > /run/group
mount --bind /run/passwd /etc/passwd
mount --bind /run/group /etc/group
for start in first second; do
    unshare --mount --propagation slave sh -ec "$1"
done
grep -c ' /run/penstock-bpf ' /proc/self/mounts || true
stat --file-system --format %T /run/penstock-bpf
stat --format '%U %A' /run/penstock-bpf
"#;

/// What is pinned there is what the kernel goes on with, and what `penstock detach` looks for.
#[test]
fn the_file_system_that_the_unit_mounts_outlives_its_commands_and_is_the_agents_alone() {
    let root = || {
        let id = Command::new("id").arg("-u").output().map_err(|error| format!("id: {error}"))?;
        if id.stdout == b"0\n" { Ok(()) } else { Err("mounting needs root".to_owned()) }
    };
    if !lb_tests::tier::require("deploy", root) {
        return;
    }
    let unit = helm::top().join("deploy/systemd/penstock.service");
    let unit = std::fs::read_to_string(unit).expect("the unit");
    // Quoted as a shell would have it.
    let line = unit.lines().find_map(|line| line.strip_prefix("ExecStartPre=+")).expect("a line that mounts");

    let host = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "--pid", "--fork", "--mount-proc"])
        .args(["sh", "-ec", HOST, "host", line])
        .output()
        .expect("unshare");

    assert!(host.status.success(), "{}", String::from_utf8_lossy(&host.stderr));
    assert_eq!(String::from_utf8_lossy(&host.stdout), "1\nbpf_fs\npenstock drwx-----T\n");
}

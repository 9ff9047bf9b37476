//! What is deployed is taken by a real API server.

use std::io::Write;
use std::process::{Command, Output, Stdio};

use crate::rig::Rig;

/// Kinds that not every API server has; of those that it lacks nothing is sent.
const OPTIONAL: [(&str, &str); 1] = [("PodDisruptionBudget", "policy/v1")];

#[test]
fn the_api_server_takes_both_shapes_of_the_kustomize_base() {
    let Some(rig) = Rig::new() else { return };
    rig.apply("apiVersion: v1\nkind: Namespace\nmetadata: {name: ingress-nginx}\n");
    let groups = kubectl(&rig, &["api-versions"], "");
    for shape in ["deployment", "daemonset"] {
        let folder = lb_tests::workspace().join("deploy/kustomize").join(shape);
        let built = kubectl(&rig, &["kustomize", &folder.to_string_lossy()], "");
        let lacks = |document: &&str| {
            OPTIONAL.iter().any(|(kind, version)| {
                document.contains(&format!("\nkind: {kind}\n"))
                    && !groups.lines().any(|line| line == *version)
            })
        };
        let (left_out, sent): (Vec<_>, Vec<_>) = built.split("\n---\n").partition(lacks);
        eprintln!("{shape}: {} objects, {} of kinds that this server lacks", sent.len(), left_out.len());

        let taken = kubectl(&rig, &["apply", "--dry-run=server", "--filename", "-"], &sent.join("\n---\n"));

        assert_eq!(taken.lines().count(), sent.len(), "{taken}");
    }
}

/// What kubectl prints, fed with the input.
pub fn kubectl(rig: &Rig, args: &[&str], input: &str) -> String {
    try_kubectl(rig, args, input).unwrap_or_else(|error| panic!("{error}"))
}

/// The same; `Err` is what it complains of.
pub fn try_kubectl(rig: &Rig, args: &[&str], input: &str) -> Result<String, String> {
    let output = run(rig, args, input);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

/// What it says beside its output, where it succeeds.
pub fn said_by_kubectl(rig: &Rig, args: &[&str], input: &str) -> String {
    let output = run(rig, args, input);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    said
}

fn run(rig: &Rig, args: &[&str], input: &str) -> Output {
    let mut command = Command::new("kubectl");
    command.arg("--kubeconfig").arg(&rig.kubeconfig).args(args);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("kubectl is here");
    child.stdin.take().expect("a pipe").write_all(input.as_bytes()).expect("kubectl reads");
    child.wait_with_output().expect("kubectl ends")
}

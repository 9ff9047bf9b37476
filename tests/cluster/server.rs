//! What the other tests take for granted of the API server.

use std::process::Command;

use lb_tests::manifests;

use crate::rig::Rig;

#[test]
fn it_keeps_what_is_applied_and_speaks_to_kubectl() {
    let Some(rig) = Rig::new() else { return };
    let service = manifests::service("web", 8080);
    rig.apply(&format!("{service}---\n{}", manifests::ingress("web", "web.example.com", "web", None)));

    let kubectl = |args: &[&str]| {
        let mut command = Command::new("kubectl");
        command.arg("--kubeconfig").arg(&rig.kubeconfig).args(["--namespace", &rig.namespace]).args(args);
        let output = command.output().expect("kubectl is here");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };

    let host = kubectl(&["get", "ingress", "web", "--output", "jsonpath={.spec.rules[0].host}"]);
    assert_eq!(host, "web.example.com");
    rig.delete("Service", "web");
    assert!(rig.get("Service", "web").is_none());
}

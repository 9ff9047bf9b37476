//! What the agent set in the kernel is undone by somebody else: it is set again, and told.

use std::path::{Path, PathBuf};

use lb_tests::agent::{Agent, DEADLINE, eventually};
use lb_tests::manifests::{Authority, LoadBalancer};
use lb_tests::world::World;
use penstock::config::BPFFS;
use penstock::datapath::{Attached, pins};

use crate::interfaces::ifindex;
use crate::nodes::{self, Cluster};
use crate::punt;
use crate::rig::{Arms, CLIENT, Rig};
use crate::survival::Mounted;

const VIP: &str = "203.0.113.10";

fn rig() -> Option<Rig> {
    let backends = [1, 2, 3].map(|number| (Arms::Two.backend(number)[0], 1));
    let vip = VIP.parse().unwrap();
    let service =
        LoadBalancer { name: "db", vip, protocol: "TCP", port: 5432, target_port: 5432, mode: "nat" };
    let rig = Rig::new(Arms::Two, &[("db.yaml", service.with_backends(&backends))])?;
    served(&rig);
    Some(rig)
}

fn served(rig: &Rig) {
    rig.who_answers_tcp(format!("{VIP}:5432").parse().unwrap(), 1);
}

/// Where the edge's agent pins.
fn pinned(rig: &Rig) -> PathBuf {
    rig.edge.within(|| pins::directory(Path::new(BPFFS)).unwrap())
}

fn metric(rig: &Rig, sample: &str) -> Option<f64> {
    let page = rig.agent.ask("/metrics").unwrap();
    page.lines().find_map(|line| line.strip_prefix(sample)?.trim().parse().ok())
}

fn metric_becomes(rig: &Rig, sample: &str, value: f64) {
    let became = eventually(DEADLINE, || (metric(rig, sample) == Some(value)).then_some(()));
    assert!(became.is_some(), "{sample} is {:?}\n{}", metric(rig, sample), rig.agent.log());
}

fn status_says(rig: &Rig, text: &str, wanted: bool) {
    let status = || rig.agent.cli(&["status"]).unwrap_or_default();
    let said = eventually(DEADLINE, || (status().contains(text) == wanted).then_some(()));
    assert!(said.is_some(), "{text:?} in status: wanted {wanted}\n{}\n{}", status(), rig.agent.log());
}

fn detach(rig: &Rig, name: &str) {
    let path = pinned(rig).join("links").join(name);
    rig.edge.run(&format!("bpftool link detach pinned {}", path.display())).unwrap();
}

#[test]
fn a_program_that_somebody_detaches_is_attached_again() {
    let Some(rig) = rig() else { return };
    let index = ifindex(&rig.edge, "eth0");
    let attached = |name: &str| {
        let path = pinned(&rig).join("links").join(name);
        let shown = rig.edge.run(&format!("bpftool -j link show pinned {}", path.display()));
        shown.is_ok_and(|link| !link.contains("(detached)") && !link.contains("\"netns_ino\":0"))
    };

    for (part, name) in
        [("xdp", format!("native-{index}")), ("out", format!("out-{index}")), ("lookup", "lookup".to_owned())]
    {
        assert!(attached(&name), "{name}");
        let sample = format!("penstock_datapath_restored_total{{part=\"{part}\"}}");
        assert_eq!(metric(&rig, &sample), Some(0.0));

        detach(&rig, &name);

        metric_becomes(&rig, &sample, 1.0);
        assert!(attached(&name), "{name}");
        assert!(rig.agent.log().contains("somebody detached"), "{}", rig.agent.log());
        served(&rig);
    }
}

#[test]
fn a_program_in_the_place_of_ours_is_a_problem_until_it_goes() {
    let Some(rig) = rig() else { return };
    let index = ifindex(&rig.edge, "eth0");
    let mut other = World::new().load();
    let number = index.parse().unwrap();

    detach(&rig, &format!("native-{index}"));
    let put = || rig.edge.within(|| other.kernel.attach("eth0", number, Attached::Native)).ok();
    assert!(eventually(DEADLINE, put).is_some());

    status_says(&rig, "another XDP program is attached", true);
    let sample = "penstock_datapath_problems{reason=\"not-attached\",severity=\"error\"}";
    metric_becomes(&rig, sample, 1.0);
    assert_eq!(metric(&rig, "penstock_datapath_interface_info{interface=\"eth0\",mode=\"native\"}"), None);

    drop(other);
    served(&rig);
    status_says(&rig, "another XDP program is attached", false);
    assert_eq!(metric(&rig, sample), None);
}

#[test]
fn a_local_route_that_somebody_deletes_is_set_again() {
    let authority = Authority::new("Wire test authority").unwrap();
    let Some(rig) = Rig::new(Arms::Two, &punt::files(&authority)) else { return };
    let curl = |vip: &str| {
        let vip = if vip.contains(':') { format!("[{vip}]") } else { vip.to_owned() };
        rig.client.run(&format!("curl -sS --max-time 2 --connect-to ::{vip}: http://web.example.com/"))
    };
    let served = |vip: &str| {
        let answer = eventually(DEADLINE, || curl(vip).ok().filter(|answer| answer.contains("backend: b")));
        assert!(answer.is_some(), "{vip}: {:?}\n{}", curl(vip), rig.agent.log());
    };
    punt::VIPS.iter().for_each(|vip| served(vip));

    for (number, vip) in punt::VIPS.iter().enumerate() {
        rig.edge.run(&format!("ip route del local {vip} table local dev lo")).unwrap();

        metric_becomes(&rig, "penstock_datapath_restored_total{part=\"route\"}", (number + 1) as f64);
        served(vip);
        assert!(rig.agent.log().contains("somebody deleted the local route"), "{}", rig.agent.log());
    }

    // The kernel drops them in silence, and refuses to set them again.
    rig.edge.run("ip link set lo down").unwrap();
    let told = || rig.agent.log().contains("its local route is not there: Network is down").then_some(());
    assert!(eventually(DEADLINE, told).is_some(), "{}", rig.agent.log());

    rig.edge.run("ip link set lo up").unwrap();
    punt::VIPS.iter().for_each(|vip| served(vip));
    status_says(&rig, "its local route is not there", false);
}

#[test]
fn forwarding_that_is_switched_off_is_told_until_it_is_on_again() {
    let yaml = nodes::manifests(1, 0, "local", &[nodes::pod(1, 1)]);
    let Some(cluster) = Cluster::new(1, 1, &yaml) else { return };
    let node = &cluster.nodes[0];
    let says = |wanted: bool| {
        let status = || node.agent.cli(&["status"]).unwrap_or_default();
        let said = || (status().contains("net.ipv4.ip_forward is 0") == wanted).then_some(());
        assert!(eventually(DEADLINE, said).is_some(), "wanted {wanted}\n{}", status());
    };
    says(false);

    node.host.run("sysctl -qw net.ipv4.ip_forward=0").unwrap();
    says(true);

    node.host.run("sysctl -qw net.ipv4.ip_forward=1").unwrap();
    says(false);
}

#[test]
fn a_link_that_is_down_is_told_and_the_default_route_is_no_way_around_it() {
    let Some(rig) = rig() else { return };
    rig.edge.run(&format!("ip route add default via {}", CLIENT[0])).unwrap();
    let cable = |state: &str| rig.lab.switch().run(&format!("ip link set edge1 {state}")).unwrap();

    cable("down");

    status_says(&rig, "interface eth1 has no carrier", true);
    let sample = "penstock_datapath_problems{reason=\"link-down\",severity=\"warning\"}";
    metric_becomes(&rig, sample, 1.0);
    status_says(&rig, "unresolved", true);

    cable("up");
    status_says(&rig, "interface eth1 has no carrier", false);
    served(&rig);
    rig.edge.run("ip link set eth1 down").unwrap();
    status_says(&rig, "interface eth1 is down", true);
}

#[test]
fn names_that_somebody_removes_are_made_again_so_that_the_kernel_goes_on_without_the_agent() {
    let Some(mut rig) = rig() else { return };
    rig.lab.stop(rig.agent.pid()).unwrap();
    rig.agent.cli(&["detach"]).unwrap();
    let bpffs = Mounted(rig.lab.scratch().join("bpf"));
    let flags = ["--bpffs", bpffs.0.to_str().unwrap()];
    rig.agent = Agent::start_with(&rig.lab, &rig.edge, &["eth0", "eth1"], rig.lab.scratch(), &flags).unwrap();
    let dir = rig.edge.within(|| pins::directory(&bpffs.0).unwrap());
    let index = ifindex(&rig.edge, "eth0");
    let sample = "penstock_datapath_restored_total{part=\"pins\"}";

    let steps = [
        format!("rm {}/links/native-{index}", dir.display()),
        format!("rm -r {}", dir.display()),
        format!("umount -l {}", bpffs.0.display()),
    ];
    for (number, step) in steps.iter().enumerate() {
        rig.edge.run(step).unwrap();

        metric_becomes(&rig, sample, (number + 1) as f64);
        assert!(dir.join(format!("links/native-{index}")).exists(), "{step}");
        assert!(rig.agent.log().contains("somebody removed names"), "{}", rig.agent.log());
        served(&rig);
    }

    // A directory with something in it is not mounted over.
    let hidden = format!(
        "umount -l {bpffs} && touch {bpffs}/x && test $(stat -f -c %T {bpffs}) != bpf_fs",
        bpffs = bpffs.0.display()
    );
    let put = || rig.edge.run(&hidden).ok();
    assert!(eventually(DEADLINE, put).is_some());
    status_says(&rig, "it would hide what is there", true);
    status_says(&rig, "not pinned", true);
    metric_becomes(&rig, "penstock_datapath_problems{reason=\"not-pinned\",severity=\"warning\"}", 1.0);

    std::fs::remove_file(bpffs.0.join("x")).unwrap();
    status_says(&rig, "not pinned", false);
    rig.lab.kill(rig.agent.pid()).unwrap();
    served(&rig);
    rig.agent.cli(&["detach"]).unwrap();
}

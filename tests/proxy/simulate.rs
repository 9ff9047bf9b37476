//! `penstock simulate flows` as people start it: what it prints says what it is there to say.

use std::process::Command;

use lb_tests::agent::binary;
use serde_json::Value;

/// How it ended, and what it printed.
fn simulate(args: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(binary().expect("built")).args(["simulate", "flows"]).args(args).output();
    let output = output.expect("start penstock");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn of_what_is_simulated_ours_breaks_none_but_idle_flows_and_the_tunnel_fewest_of_a_lost_balancer() {
    let dir = tempfile::tempdir().expect("a directory");
    let plot = dir.path().join("broken.svg");
    // As many flows for each place as by default. A flood takes minutes, however few the flows are.
    let small = ["--flows=8000", "--flow-entries=2048", "--scenario=rollout,scale-up,lost-balancer"];

    let (code, printed, complaint) =
        simulate(&[&small[..], &["--json", "--plot", plot.to_str().expect("text")]].concat());

    assert_eq!(code, Some(0), "{complaint}");
    assert!(complaint.starts_with("12 runs of 8000 flows"), "{complaint}");
    let outcomes: Vec<Value> = serde_json::from_str(&printed).expect("JSON");
    assert_eq!(outcomes.len(), 12, "{printed}");
    // Of those that broke, flows that had sent something within the grace time.
    let awake = |scenario: &str, scheme: &str| {
        let is_it = |outcome: &&Value| outcome["scenario"] == scenario && outcome["scheme"] == scheme;
        let outcome =
            outcomes.iter().find(is_it).unwrap_or_else(|| panic!("{scenario}, {scheme}: {printed}"));
        let count = |field: &str| outcome[field].as_u64().expect("a number");
        assert!(count("flows") > 5000, "{outcome}");
        count("broken") - count("idle")
    };
    for scenario in ["rollout", "scale-up"] {
        for scheme in ["ours", "ours-second-chance"] {
            assert_eq!(awake(scenario, scheme), 0, "{scenario}, {scheme}");
        }
        assert!(awake(scenario, "maglev") > 30, "{scenario}");
    }
    let [maglev, lru, ours, tunnel] =
        ["maglev", "maglev-lru", "ours", "ours-second-chance"].map(|scheme| awake("lost-balancer", scheme));
    assert!(tunnel < ours && ours < lru && lru < maglev, "{maglev}, {lru}, {ours}, {tunnel}");
    let drawn = std::fs::read_to_string(plot).expect("it is drawn");
    assert!(drawn.starts_with("<svg") && drawn.contains("lost balancer"), "{drawn}");
}

#[test]
fn what_cannot_be_simulated_or_drawn_is_told_by_the_exit_code() {
    let nowhere = tempfile::tempdir().expect("a directory").path().join("gone/broken.svg");
    let plot = format!("--plot={}", nowhere.display());
    let cases: [(&str, i32, &str); 3] = [
        ("--flows=0", 2, "--flows"),
        ("--scenario=earthquake", 2, "allowed: rollout, scale-up, lost-balancer, syn-flood"),
        (&plot, 71, "No such file"),
    ];
    for (flag, wanted, words) in cases {
        let (code, printed, complaint) = simulate(&[flag]);

        assert_eq!((code, printed.as_str()), (Some(wanted), ""), "{flag}: {complaint}");
        assert!(complaint.contains(words), "{flag}: {complaint}");
    }
}

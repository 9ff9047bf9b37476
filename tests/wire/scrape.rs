//! The page of a running agent with a kernel part, beside what the documentation says is on it.

use std::collections::{BTreeMap, BTreeSet};

use lb_tests::agent::{DEADLINE, eventually};
use lb_tests::manifests::LoadBalancer;

use crate::rig::{Arms, Rig};

const ROOM: &str = "penstock_datapath_";
const VIP: &str = "203.0.113.10";

/// Labels by name, as the table in docs/metrics.md has them.
fn documented() -> BTreeMap<String, BTreeSet<String>> {
    let text = std::fs::read_to_string(lb_tests::workspace().join("docs/metrics.md")).unwrap();
    let quoted =
        |cell: &str| -> Vec<String> { cell.split('`').skip(1).step_by(2).map(str::to_owned).collect() };
    let (mut known, mut above) = (BTreeMap::new(), BTreeSet::new());
    for row in text.lines().filter(|row| row.starts_with(&format!("| `{ROOM}"))) {
        let cells: Vec<&str> = row.split('|').collect();
        if cells[2].trim() != "the same" {
            above = quoted(cells[2]).into_iter().collect();
        }
        known.extend(quoted(cells[1]).into_iter().map(|name| (name, above.clone())));
    }
    known
}

/// Labels by name of every series on a page, with the words that say what it is.
fn scraped(page: &str) -> BTreeMap<String, BTreeSet<String>> {
    let mut series: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for line in page.lines().filter(|line| line.starts_with(ROOM)) {
        let (name, value) = line.rsplit_once(' ').unwrap();
        value.parse::<f64>().unwrap_or_else(|_| panic!("no number: {line}"));
        let (name, labels) = name.trim_end_matches('}').split_once('{').unwrap_or((name, ""));
        let labels = labels.split(',').filter_map(|label| Some(label.split_once('=')?.0.to_owned()));
        series.entry(name.to_owned()).or_default().extend(labels);
        let kind = if name.ends_with("_total") { "counter" } else { "gauge" };
        assert!(page.contains(&format!("\n# TYPE {name} {kind}\n")), "{name} is no {kind}");
        assert!(page.contains(&format!("\n# HELP {name} ")), "{name} says nothing of itself");
    }
    series
}

#[test]
fn a_scraper_finds_every_series_of_the_kernel_part_that_is_documented_and_no_other() {
    let backends = [1, 2, 3].map(|number| (Arms::Two.backend(number)[0], 1));
    let (vip, mode) = (VIP.parse().unwrap(), "nat");
    let service = LoadBalancer { name: "db", vip, protocol: "TCP", port: 5432, target_port: 5432, mode };
    let Some(rig) = Rig::new(Arms::Two, &[("db.yaml", service.with_backends(&backends))]) else { return };
    rig.who_answers_tcp(format!("{VIP}:5432").parse().unwrap(), 1);
    // A problem has a series as long as there is one.
    rig.lab.switch().run("ip link set edge1 down").unwrap();
    let page = || rig.agent.ask("/metrics").unwrap().replace("\r\n", "\n");
    let problem = || page().contains("penstock_datapath_problems{").then(page);

    let page = eventually(DEADLINE, problem).unwrap_or_else(|| panic!("{}", rig.agent.log()));

    let documented = documented();
    assert!(documented.len() > 20, "{documented:?}");
    assert_eq!(scraped(&page), documented);
}

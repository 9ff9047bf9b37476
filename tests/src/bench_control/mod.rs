//! What `cargo xtask bench control` measures: how long it takes from objects to routes, with how many
//! of them, and how long one change of one object takes; and the same of a whole agent beside an API server.

pub mod cluster;
pub mod live;
pub mod served;

use std::hint::black_box;
use std::time::Duration;

use penstock::l7::explain::Prepared;
use penstock::manifests::{self, Loaded};
use penstock::objects::Objects;
use penstock::translate::{self, Options, Translator};
use serde_json::{Value, json};

use cluster::Cluster;
use served::Served;

/// Requests that the time of one is the mean of.
const REQUESTS: usize = 20_000;
/// Hosts that are asked for, the same number in a cluster of any size.
const HOSTS: usize = 1000;

/// Time that this thread ran: what else the machine does is not measured.
fn on_cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or_default())
}

/// Figures of one size.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Ingresses; each has two paths and a Service with two endpoints.
    pub ingresses: usize,
    /// From manifests to objects.
    pub read: Duration,
    /// From objects to the snapshot.
    pub translate: Duration,
    /// From the snapshot to what workers look up.
    pub index: Duration,
    /// From a changed Ingress to the snapshot.
    pub change: Duration,
    /// From that to what workers look up.
    pub change_index: Duration,
    /// From a changed slice to the snapshot.
    pub slice: Duration,
    /// From that to what workers look up.
    pub slice_index: Duration,
    /// From a request to its location.
    pub route: Duration,
}

/// Measures a cluster of this size; each figure is the best of `rounds`, because what disturbs only
/// ever adds.
pub fn measure(ingresses: usize, rounds: usize) -> Row {
    let cluster = Cluster { ingresses };
    let texts = cluster.manifests();
    let options = Options::default();
    let mut row = Row {
        ingresses,
        read: Duration::MAX,
        translate: Duration::MAX,
        index: Duration::MAX,
        change: Duration::MAX,
        change_index: Duration::MAX,
        slice: Duration::MAX,
        slice_index: Duration::MAX,
        route: Duration::MAX,
    };
    let best = |slot: &mut Duration, begin: Duration| *slot = (*slot).min(on_cpu() - begin);
    let mut objects = Objects::default();
    for round in 0..rounds {
        let begin = on_cpu();
        objects = Objects::default();
        texts.iter().for_each(|text| take_in(&mut objects, read(text)));
        best(&mut row.read, begin);

        let begin = on_cpu();
        let mut translator = Translator::default();
        let translated = translator.translate(&objects, &options);
        best(&mut row.translate, begin);

        let begin = on_cpu();
        let mut prepared = Prepared::new(&translated.snapshot.l7);
        best(&mut row.index, begin);
        row.route = row.route.min(route(&cluster, &prepared));

        let index = round * 7 % ingresses;
        let changes = [
            (cluster.ingress(index, "90"), &mut row.change, &mut row.change_index),
            (Cluster::slice_at(index, 9090), &mut row.slice, &mut row.slice_index),
        ];
        for (text, translate, index) in changes {
            take_in(&mut objects, read(&text));
            let begin = on_cpu();
            let translated = translator.translate(&objects, &options);
            best(translate, begin);
            let begin = on_cpu();
            prepared.update(&translated.snapshot.l7);
            best(index, begin);
        }
        black_box(&prepared);
    }
    assert_eq!(objects.ingresses.len(), ingresses);
    row
}

fn read(text: &str) -> Loaded {
    let loaded = manifests::load_text("a.yaml", text.as_bytes(), translate::ADMISSION);
    assert!(loaded.problems.is_empty(), "{:?}", loaded.problems.first());
    loaded
}

fn take_in(objects: &mut Objects, loaded: Loaded) {
    let Objects { ingresses, services, endpoint_slices, .. } = loaded.objects;
    objects.ingresses.extend(ingresses);
    objects.services.extend(services);
    objects.endpoint_slices.extend(endpoint_slices);
}

/// Time of one lookup, hosts from everywhere in turn.
fn route(cluster: &Cluster, prepared: &Prepared) -> Duration {
    // A prime leads everywhere, and to those that rewrite as often as there are some.
    let asked = (0..HOSTS).map(|index| index * 7919 % cluster.ingresses);
    let asked: Vec<_> = asked.map(|index| (Cluster::host(index), format!("/api/{index}"))).collect();
    let lookup = |(host, path): &(String, String)| {
        black_box(prepared.path_label(black_box(host), black_box(path)));
    };
    // Patterns make what they match by at their first match.
    asked.iter().for_each(lookup);
    let begin = on_cpu();
    asked.iter().cycle().take(REQUESTS).for_each(lookup);
    (on_cpu() - begin) / REQUESTS as u32
}

/// One row as a line of text.
pub fn line(row: &Row) -> String {
    let ms = |time: Duration| time.as_secs_f64() * 1000.0;
    format!(
        "{:>9} {:>9} {:>10.1} {:>13.1} {:>9.1} {:>11.2} {:>11.2} {:>10.2} {:>11.2} {:>9.0}",
        row.ingresses,
        row.ingresses * 2,
        ms(row.read),
        ms(row.translate),
        ms(row.index),
        ms(row.change),
        ms(row.change_index),
        ms(row.slice),
        ms(row.slice_index),
        row.route.as_secs_f64() * 1e9
    )
}

/// The heading of [`line`]s.
pub const HEADING: &str = "ingresses     paths    read ms  translate ms  index ms  change, ms   its index  slice, ms   its index  route ns";

/// All rows for a program.
pub fn json(rows: &[(Row, Served)]) -> Value {
    let ms = |time: Duration| time.as_secs_f64() * 1000.0;
    let row = |(row, served): &(Row, Served)| {
        json!({
            "ingresses": row.ingresses,
            "paths": row.ingresses * 2,
            "read_ms": ms(row.read),
            "translate_ms": ms(row.translate),
            "index_ms": ms(row.index),
            "change_translate_ms": ms(row.change),
            "change_index_ms": ms(row.change_index),
            "slice_translate_ms": ms(row.slice),
            "slice_index_ms": ms(row.slice_index),
            "ingress_served_ms": ms(served.ingress),
            "slice_served_ms": ms(served.slice),
            "route_ns": row.route.as_secs_f64() * 1e9,
        })
    };
    rows.iter().map(row).collect()
}

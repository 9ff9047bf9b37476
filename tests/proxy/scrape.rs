//! What a scraper of the real admin endpoint gets, line by line: dashboards and alerts that were made for
//! ingress-nginx are to find what they ask for. `PENSTOCK_UPDATE=1` writes `scrape.txt` anew.

use lb_tests::agent::eventually;
use lb_tests::manifests;

use crate::rig::{Backend, Client, DEADLINE};
use crate::takeover::{Agents, HOST};

/// Ends of names whose values no two runs have in common: `*` stands for them.
const CHANGING: [&str; 13] = [
    "_duration_seconds_bucket",
    "_duration_seconds_sum",
    "_cpu_seconds_total",
    "_memory_bytes",
    "_start_time_seconds",
    "process_open_fds",
    "process_max_fds",
    "_read_bytes_total",
    "_write_bytes_total",
    "config_hash",
    "_controller_success",
    "_process_connections",
    "_timestamp_seconds",
];

fn ask(agents: &Agents, host: &str, target: &str) -> u16 {
    let mut client = Client::connect(agents.http);
    client.send(format!("GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"));
    client.reply().status
}

/// The page, once so many requests are counted: that is after their last byte was sent.
fn scraped(agents: &Agents, requests: u32) -> String {
    let page = || {
        let page = agents.admin("/metrics").text();
        let line = page.lines().find(|line| line.contains("nginx_process_requests_total{"))?;
        let counted: u32 = line.rsplit(' ').next()?.parse().ok()?;
        (counted >= requests).then_some(page)
    };
    eventually(DEADLINE, page).expect("counted")
}

fn steady(line: &str) -> String {
    let name = line.split(['{', ' ']).next().unwrap_or_default();
    let changes = CHANGING.iter().any(|end| name.ends_with(end)) && !line.contains("le=\"+Inf\"");
    match line.rsplit_once(' ') {
        Some((series, _)) if changes => format!("{series} *\n"),
        _ => format!("{line}\n"),
    }
}

#[test]
fn a_scraper_finds_the_names_labels_and_buckets_of_ingress_nginx() {
    let backend = Backend::mirror();
    let agents = Agents::start(backend.addr, &["--workers", "1"]);
    let wild = manifests::ingress("wild", "*.wild.example.com", "web", None);
    let lost = manifests::ingress("lost", "lost.example.com", "nobody", None);
    agents.write("more.yaml", &format!("{wild}---\n{lost}"));
    let is_known = || agents.admin("/metrics").text().contains("ingress=\"lost\"").then_some(());
    eventually(DEADLINE, is_known).expect("an orphan");

    assert_eq!(ask(&agents, HOST, "/shop?item=7"), 200);
    assert_eq!(ask(&agents, "a.wild.example.com", "/"), 200);
    assert_eq!(ask(&agents, "lost.example.com", "/"), 503);
    assert_eq!(ask(&agents, "unheard-of.example.com", "/"), 404);

    let page = scraped(&agents, 4);
    let is_known = |line: &&str| {
        ["nginx_ingress_controller_", " process_"].iter().any(|name| line.contains(name))
            || line.starts_with("process_")
    };
    let actual: String = page.lines().filter(is_known).map(steady).collect();
    let path = lb_tests::workspace().join("tests/proxy/scrape.txt");
    if std::env::var_os("PENSTOCK_UPDATE").is_some() {
        std::fs::write(&path, &actual).expect("the page is writable");
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    for (expected, actual) in expected.lines().zip(actual.lines()) {
        assert_eq!(expected, actual);
    }
    assert_eq!(expected.lines().count(), actual.lines().count());
}

#[test]
fn flags_decide_what_is_told_apart_and_what_is_left_out() {
    let backend = Backend::mirror();
    let agents = Agents::start(
        backend.addr,
        &[
            "--metrics-per-host=false",
            "--report-status-classes",
            "--exclude-socket-metrics=nginx_ingress_controller_connect_duration_seconds,request_size",
            "--time-buckets=0.5,60",
            "--length-buckets=1e6",
            "--size-buckets=1,2e3",
            // Those of native histograms are taken, and leave the bounds as they are.
            "--bucket-factor=1.1",
            "--max-buckets=100",
        ],
    );
    assert_eq!(ask(&agents, HOST, "/"), 200);
    assert_eq!(ask(&agents, "unheard-of.example.com", "/"), 404);

    let page = scraped(&agents, 2);

    let of = |name: &str| -> Vec<&str> {
        let name = format!("nginx_ingress_controller_{name}");
        page.lines().filter(|line| line.starts_with(&name)).collect()
    };
    assert!(of("requests{").iter().any(|line| line.contains("status=\"2xx\"")), "{page}");
    assert!(of("requests{").iter().any(|line| line.contains("status=\"4xx\"")), "{page}");
    assert!(!page.contains("host=\""), "{page}");
    assert_eq!((of("connect_duration_seconds").len(), of("request_size").len()), (0, 0));
    let bounds = |name: &str| {
        let lines = of(name).into_iter().filter(|line| line.contains("ingress=\"web\""));
        let bound = |line: &str| Some(line.split_once("le=\"")?.1.split_once('"')?.0.to_owned());
        lines.filter_map(bound).collect::<Vec<_>>()
    };
    assert_eq!(bounds("request_duration_seconds_bucket"), ["0.5", "60", "+Inf"]);
    assert_eq!(bounds("response_size_bucket"), ["1e+06", "+Inf"]);
    assert_eq!(bounds("bytes_sent_bucket"), ["1", "2000", "+Inf"]);
}

#[test]
fn requests_have_no_metrics_where_a_flag_says_so() {
    let backend = Backend::mirror();
    let agents = Agents::start(backend.addr, &["--enable-metrics=false"]);
    assert_eq!(ask(&agents, HOST, "/"), 200);

    let page = scraped(&agents, 1);

    let of_requests =
        ["requests{", "request_", "response_", "header_duration", "connect_duration", "bytes_sent"];
    let is_of_requests = |line: &&str| {
        let name = line.strip_prefix("nginx_ingress_controller_").unwrap_or_default();
        of_requests.iter().any(|start| name.starts_with(start))
    };
    assert_eq!(page.lines().filter(is_of_requests).collect::<Vec<_>>(), Vec::<&str>::new());
}

#[test]
fn hosts_that_nobody_names_are_counted_where_a_flag_says_so() {
    let backend = Backend::mirror();
    for (flags, counted) in [(&[][..], false), (&["--metrics-per-undefined-host"][..], true)] {
        let agents = Agents::start(backend.addr, flags);
        assert_eq!(ask(&agents, "unheard-of.example.com", "/"), 404);

        let page = scraped(&agents, 1);

        let is_told = |line: &str| {
            line.starts_with("nginx_ingress_controller_requests{") && line.contains("status=\"404\"")
        };
        assert_eq!(page.lines().any(is_told), counted, "{flags:?}: {page}");
    }
}

#[test]
fn series_of_an_ingress_end_with_it() {
    let backend = Backend::mirror();
    let agents = Agents::start(backend.addr, &[]);
    assert_eq!(ask(&agents, HOST, "/"), 200);
    assert!(scraped(&agents, 1).contains(&format!("requests{{controller_class=\"k8s.io/ingress-nginx\",controller_namespace=\"edge\",controller_pod=\"edge-0\",host=\"{HOST}\"")));

    agents.write("ingress.yaml", &manifests::ingress("other", "other.example.com", "web", None));

    let is_gone = || (!agents.admin("/metrics").text().contains(HOST)).then_some(());
    eventually(DEADLINE, is_gone).expect("gone with its Ingress");
}

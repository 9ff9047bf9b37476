use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::l7::canary::Side;
use crate::model::canary::{Canary, Rules};
use crate::model::l7::policy::Limits;
use crate::model::l7::{Policies, UpstreamTls};

const HOSTS: [&str; 4] = ["", "a.example", "b.example", "*.example"];
const NAMES: [&str; 4] = ["one", "two", "three", "four"];

fn name(index: usize) -> UpstreamName {
    UpstreamName(NAMES[index].to_owned())
}

fn host(index: usize) -> HostMatch {
    match HOSTS[index] {
        "" => HostMatch::Any,
        host => host.strip_prefix("*.").map_or_else(
            || HostMatch::Exact(host.to_owned()),
            |suffix| HostMatch::Wildcard(suffix.to_owned()),
        ),
    }
}

fn location() -> impl Strategy<Value = Location> {
    let action = prop_oneof![
        4 => (0..4usize).prop_map(|to| Action::Proxy(name(to))),
        1 => Just(Action::DefaultBackend),
        1 => Just(Action::Deny),
    ];
    let path = prop::sample::select(vec!["/", "/p"]);
    (path, action, prop::option::of(0..3u8), prop::option::of(0..2u8)).prop_map(
        |(path, action, tls, limited)| {
            let mut filters = Filters::default();
            if let Some(tls) = tls {
                filters.protocol = Protocol::Https;
                let server_name = Some(format!("tls-{tls}"));
                filters.upstream_tls = Arc::new(UpstreamTls { server_name, ..UpstreamTls::default() });
            }
            let limits = limited.map(|limited| Limits {
                ingress: ObjectName::new("default", format!("i{limited}")),
                per_second: None,
                per_minute: None,
                often_status: 503,
                at_once: None,
                at_once_status: 503,
                exempt: Default::default(),
                by: None,
            });
            filters.policies =
                limits.map(|limits| Arc::new(Policies { limits: Some(limits), ..Policies::default() }));
            Location {
                path: PathMatch::Prefix(path.to_owned()),
                path_label: path.to_owned(),
                ingress: None,
                backend: None,
                action,
                filters,
            }
        },
    )
}

fn snapshot() -> impl Strategy<Value = L7> {
    let server = prop::collection::vec(location(), 0..3)
        .prop_map(|locations| Server { locations, ..Server::default() });
    let upstream = (prop::collection::btree_set(1..5u8, 0..3), prop::option::weighted(0.3, 0..4usize));
    let upstream = upstream.prop_map(|(endpoints, canary)| Upstream {
        endpoints: endpoints.into_iter().map(|last| ([10, 0, 0, last], 80).into()).collect(),
        canary: canary.map(|canary| Canary {
            upstream: name(canary),
            rules: Rules::default(),
            sessions: Default::default(),
        }),
        ..Upstream::default()
    });
    (
        prop::collection::btree_map(0..4usize, server, 0..4),
        prop::collection::btree_map(0..4usize, upstream, 0..4),
        prop::option::of(0..4usize),
        prop::option::of(0..4usize),
    )
        .prop_map(|(servers, upstreams, default, passed)| L7 {
            servers: servers.into_iter().map(|(index, server)| (host(index), server)).collect(),
            upstreams: upstreams.into_iter().map(|(index, upstream)| (name(index), upstream)).collect(),
            default_backend: default.map(name),
            passthrough: passed.map(|to| ("p.example".to_owned(), name(to))).into_iter().collect(),
            ..L7::default()
        })
}

/// Everything that can be seen of a router, without numbers and places.
fn seen(router: &Router) -> Vec<String> {
    let upstream = |place: Option<usize>| {
        let entry = place.and_then(|place| router.upstreams.get(place));
        let canary = entry.and_then(|entry| router.upstreams.get(entry.canary.as_ref()?.upstream));
        let endpoints = entry.map(|entry| entry.endpoints.clone());
        format!("{:?} {endpoints:?} {:?}", entry.map(|entry| &entry.name), canary.map(|entry| &entry.name))
    };
    let mut seen = Vec::new();
    for host in ["unknown", "a.example", "b.example", "x.example"] {
        let (site, found) = router.site(host.as_bytes());
        for path in ["/", "/p", "/p/q"] {
            let route = site.find(path.as_bytes()).route;
            let to = match route.action {
                RouteAction::Proxy(place) => upstream(place),
                RouteAction::DefaultBackend(place) => format!("default {}", upstream(place)),
                other => format!("{other:?}"),
            };
            let client = route.tls.and_then(|place| router.clients.get(place)?.as_ref());
            let tls = client.map(|client| client.name(([10, 0, 0, 1], 80).into()));
            let (_, canary) = route.counted(Side::Canary);
            assert!(router.has(&route.labels) && router.has(canary));
            assert!(std::ptr::eq(router.route(route.at()).expect("where it says"), route));
            seen.push(format!("{host} {found:?} {path} {:?} {canary:?} {to} {tls:?}", route.labels));
        }
    }
    let zones: BTreeSet<_> = router.limit_zones.keys().collect();
    let endpoints: Vec<_> = router.endpoints.iter().collect();
    seen.push(format!("{zones:?} {endpoints:?} {}", upstream(router.passthrough("p.example"))));
    seen
}

proptest! {
    #[test]
    fn a_router_is_the_same_whether_it_is_made_at_once_or_of_the_one_before(
        snapshots in prop::collection::vec(snapshot(), 1..12)
    ) {
        let mut maker = Maker::default();
        for l7 in snapshots {
            prop_assert_eq!(seen(&maker.make(&l7)), seen(&Router::new(&l7)), "{:#?}", l7);
        }
    }
}

#[test]
fn what_stays_keeps_its_place_its_number_and_its_memory() {
    let endpoint = |last: u8| std::net::SocketAddr::from(([10, 0, 0, last], 80));
    let upstream = |last| Upstream { endpoints: [endpoint(last)].into(), ..Upstream::default() };
    let server = |to: usize| Server {
        locations: vec![Location {
            path: PathMatch::Prefix("/".to_owned()),
            path_label: "/".to_owned(),
            ingress: None,
            backend: None,
            action: Action::Proxy(name(to)),
            filters: Filters::default(),
        }],
        ..Server::default()
    };
    let l7 = L7 {
        servers: [(host(1), server(0)), (host(2), server(1))].into(),
        upstreams: [(name(0), upstream(1)), (name(1), upstream(2))].into(),
        ..L7::default()
    };
    let mut maker = Maker::default();
    let before = maker.make(&l7);
    let mut next = l7.clone();
    next.upstreams.insert(name(0), upstream(3));

    let now = maker.make(&next);

    assert_eq!(now.gone(&before).count(), 0);
    let others = before.upstreams.iter().zip(&now.upstreams).filter(|(was, is)| !Arc::ptr_eq(was, is));
    assert_eq!(others.map(|(was, _)| was.name.clone()).collect::<Vec<_>>(), [name(0)]);
    assert!(now.endpoints.contains_key(&endpoint(3)) && !now.endpoints.contains_key(&endpoint(1)));
}

//! Random histories of objects: whoever follows them step by step comes to what they come to at once, and
//! parts to what the whole comes to.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::certificates::Known;
use super::config;
use super::endpoints::Slices;
use super::findings::Findings;
use super::ingress::{self, Together};
use super::nodes::Nodes;
use super::pools::Allocator;
use super::streams::Streams;
use super::view::View;
use super::{Options, PREFIX, Translated, Translator, classes, services, translate};
use crate::model::ObjectName;
use crate::model::l7::Aliases;
use crate::objects::{Key, Object, Objects};

/// One step: an object in another version, or its end.
#[derive(Debug, Clone)]
struct Step {
    object: Value,
    ends: bool,
}

fn object(value: &Value) -> Object {
    let read = |value: &Value| value.clone();
    match value["kind"].as_str() {
        Some("Ingress") => {
            Object::Ingress(Arc::new(serde_json::from_value(read(value)).expect("an Ingress")))
        }
        Some("Service") => Object::Service(Arc::new(serde_json::from_value(read(value)).expect("a Service"))),
        Some("EndpointSlice") => {
            Object::EndpointSlice(Arc::new(serde_json::from_value(read(value)).expect("a slice")))
        }
        Some("Secret") => Object::Secret(Arc::new(serde_json::from_value(read(value)).expect("a Secret"))),
        Some("ConfigMap") => {
            Object::ConfigMap(Arc::new(serde_json::from_value(read(value)).expect("a ConfigMap")))
        }
        Some("Node") => Object::Node(Arc::new(serde_json::from_value(read(value)).expect("a Node"))),
        _ => Object::IngressClass(Arc::new(serde_json::from_value(read(value)).expect("a class"))),
    }
}

/// Services whose upstreams have one name: `a-b-c-80`.
const SERVICES: [(&str, &str); 5] = [("a", "x"), ("a", "y"), ("a", "b-c"), ("a-b", "c"), ("a", "z")];

fn steps() -> impl Strategy<Value = Step> {
    let service = prop::sample::select(SERVICES.to_vec());
    let object = prop_oneof![
        6 => ingress(),
        2 => (service.clone(), any::<bool>(), 0..4u8).prop_map(|((namespace, name), slow, vip)| {
            let annotations = if slow { json!({"penstock.dev/slow-start": "5"}) } else { json!({}) };
            let (mut spec, mut status) = (json!({"ports": [{"name": "http", "port": 80}]}), json!({}));
            if slow {
                spec["clusterIP"] = json!("10.96.0.7");
            }
            if vip > 0 {
                spec["type"] = json!("LoadBalancer");
                let addr = format!("203.0.113.{}", vip % 3);
                if vip == 2 {
                    spec["externalTrafficPolicy"] = json!("Local");
                    spec["healthCheckNodePort"] = json!(32_000);
                }
                // Asked for, or held.
                if slow {
                    status = json!({"loadBalancer": {"ingress": [{"ip": addr}]}});
                } else if vip > 1 {
                    spec["loadBalancerIP"] = json!(addr);
                }
            }
            json!({"kind": "Service", "metadata": {"namespace": namespace, "name": name, "annotations": annotations},
                "spec": spec, "status": status})
        }),
        3 => (service, 0..3u8, 0..3u8, 0..4u8).prop_map(|((namespace, name), slice, last, zone)| json!({
            "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"namespace": namespace, "name": format!("s{slice}"),
                "labels": {"kubernetes.io/service-name": name}},
            "ports": [{"name": "http", "port": 8080}],
            "endpoints": [{
                "addresses": [format!("10.0.{slice}.{last}")], "conditions": {"ready": last > 0},
                "hints": {"forZones": if zone < 3 { json!([{"name": format!("z{zone}")}]) } else { json!([]) }},
            }],
        })),
        2 => (0..2u8, 0..3u8).prop_map(|(name, version)| json!({
            "kind": "Secret", "metadata": {"namespace": "a", "name": format!("secret-{name}")},
            "stringData": {}, "data": match version {
                0 => json!({}),
                1 => json!({"auth": "dTp7U0hBfTEyMw=="}),
                _ => json!({"ca.crt": "eA=="}),
            },
        })),
        1 => prop::sample::select(vec![
            json!({}), json!({"proxy-read-timeout": "7"}), json!({"denylist-source-range": "192.0.2.0/24"}),
            json!({"server-snippet": "x y;"}), json!({"custom-http-errors": "503"}), json!({"load-balance": "ewma"}),
            json!({"add-headers": "a/headers"}), json!({"unheard-of": "x"}),
        ]).prop_map(|data| json!({
            "kind": "ConfigMap", "data": data,
            "metadata": {"namespace": "a", "name": "ingress-nginx-controller"},
        })),
        1 => prop::sample::select(vec![
            json!({"one": "addresses: [203.0.113.0/31]"}), json!({"one": "addresses: [203.0.113.1]\nautoAssign: false"}),
            json!({"one": "addresses: [203.0.113.0/30]", "two": "addresses: [203.0.113.2]\nnamespaces: [a-b]"}),
        ]).prop_map(|data| json!({
            "kind": "ConfigMap", "data": data, "metadata": {"namespace": "a", "name": crate::model::pool::CONFIG_MAP},
        })),
        1 => prop::sample::select(vec![
            json!({}), json!({"9000": "a/x:80"}), json!({"9000": "a/y:http", "9001": "a/x:80"}), json!({"9000": "x"}),
        ]).prop_map(|data| json!({
            "kind": "ConfigMap", "data": data, "metadata": {"namespace": "a", "name": "tcp"},
        })),
        1 => any::<bool>().prop_map(|has_address| json!({
            "kind": "Service",
            "metadata": {"namespace": "a", "name": "edge", "labels": {"app.kubernetes.io/name": "ingress-nginx", "app.kubernetes.io/component": "controller"}},
            "spec": {"type": "LoadBalancer", "loadBalancerIP": if has_address { "203.0.113.9" } else { "203.0.113.1" },
                "ports": [{"name": "http", "port": 80}, {"name": "https", "port": 443}]},
        })),
        1 => (prop::sample::select(SERVICES.to_vec()), 0..2u8).prop_map(|((namespace, name), last)| json!({
            "kind": "Service", "metadata": {"namespace": namespace, "name": name},
            "spec": {"type": "ExternalName", "externalName": format!("{last}.example.org"),
                "ports": [{"name": "http", "port": 80}]},
        })),
        1 => (0..3u8).prop_map(|version| json!({
            "kind": "ConfigMap", "data": {"X-Version": version.to_string()},
            "metadata": {"namespace": "a", "name": "headers"},
        })),
        1 => prop::sample::select(vec!["k8s.io/ingress-nginx", "example.com/other"]).prop_map(|controller| {
            json!({"kind": "IngressClass", "metadata": {"name": "nginx"}, "spec": {"controller": controller}})
        }),
        1 => (0..3u8).prop_map(|zone| json!({
            "kind": "Node", "metadata": {"name": "here", "labels": {"topology.kubernetes.io/zone": format!("z{zone}")}},
        })),
    ];
    (object, 0..5u8).prop_map(|(object, end)| Step { object, ends: end == 0 })
}

fn ingress() -> impl Strategy<Value = Value> {
    let host = prop::sample::select(vec!["", "one.example", "two.example", "*.example", "three.example"]);
    let path = (prop::sample::select(vec!["/", "/p", "/p/"]), prop::sample::select(vec!["Exact", "Prefix"]));
    let backend = (prop::sample::select(SERVICES.to_vec()), any::<bool>());
    let rule = (host, path, backend);
    let annotations = prop::collection::vec(
        prop::sample::select(vec![
            ("load-balance", "ewma"),
            ("upstream-hash-by", "$host"),
            ("affinity", "cookie"),
            ("canary", "true"),
            ("canary-weight", "30"),
            ("app-root", "/app"),
            ("auth-url", "http://z.a.svc/check"),
            ("auth-type", "basic"),
            ("auth-secret", "secret-0"),
            ("auth-tls-secret", "a/secret-1"),
            ("limit-rps", "3"),
            ("custom-headers", "a/headers"),
            ("rewrite-target", "/new"),
            ("use-regex", "true"),
            ("ssl-passthrough", "true"),
            ("permanent-redirect", "https://example.org"),
            ("unheard-of", "x"),
            ("server-alias", "two.example,*.four.example,~^five"),
            ("server-alias", "www.one.example"),
            ("from-to-www-redirect", "true"),
            ("service-upstream", "true"),
            ("default-backend", "y"),
            ("custom-http-errors", "404"),
        ]),
        0..4,
    );
    let class = prop::sample::select(vec!["nginx", "nginx", "nginx", "other"]);
    (
        (prop::sample::select(vec!["a", "a-b"]), 0..4u8, 0..3u8),
        prop::collection::vec(rule, 0..3),
        annotations,
        class,
        prop::option::of(0..2usize),
        any::<bool>(),
    )
        .prop_map(|((namespace, name, age), rules, annotations, class, default, tls)| {
            let annotations: BTreeMap<_, _> =
                annotations.into_iter().map(|(name, value)| (format!("{PREFIX}/{name}"), value)).collect();
            let backend = |(_, service): (&str, &str), named: bool| {
                let port = if named { json!({"name": "http"}) } else { json!({"number": 80}) };
                json!({"service": {"name": service, "port": port}})
            };
            let hosts: Vec<_> = rules.iter().map(|(host, ..)| *host).collect();
            let rules: Vec<_> = rules
                .iter()
                .map(|(host, (path, kind), (service, named))| {
                    let path = json!({"path": path, "pathType": kind, "backend": backend(*service, *named)});
                    json!({"host": host, "http": {"paths": [path]}})
                })
                .collect();
            let mut spec = json!({"ingressClassName": class, "rules": rules});
            if let Some(default) = default {
                spec["defaultBackend"] = backend(SERVICES[default], false);
            }
            if tls {
                spec["tls"] = json!([{"hosts": hosts, "secretName": "secret-1"}]);
            }
            json!({
                "kind": "Ingress",
                "metadata": {
                    "namespace": namespace, "name": format!("i{name}"), "annotations": annotations,
                    "creationTimestamp": format!("2026-01-0{}T00:00:00Z", age + 1),
                },
                "spec": spec,
            })
        })
}

fn options(routes_by_zone: bool) -> Options {
    Options {
        routes_by_zone,
        default_backend_service: Some(ObjectName::new("a", "z")),
        default_ssl_certificate: Some(ObjectName::new("a", "secret-0")),
        enable_ssl_passthrough: true,
        tcp_services: Some(ObjectName::new("a", "tcp")),
        node: Some("here".to_owned()),
        ..Options::default()
    }
}

/// All objects as one part.
fn as_a_whole(objects: &Objects, options: &Options, translated: &Translated) {
    let (mut findings, mut slices) = (Findings::default(), Slices::default());
    for (name, slice) in &objects.endpoint_slices {
        let _ = slices.follow(name, None, Some(slice)).count();
    }
    let nodes = Nodes::new(&objects.nodes, options, &mut findings);
    let view = View::new(objects, &nodes);
    let config = config::read(&objects.config_maps, None, &view, options, &mut findings);
    let served = classes::served(objects, options, &mut findings);
    let together = Together { served, flags: true };
    let mut known = Known::default();
    let whole = ingress::translate(together, &view, &slices, &mut known, &config, options, &mut findings);
    let l7 = &translated.snapshot.l7;

    assert_eq!(l7.servers, whole.servers.into_iter().collect());
    assert_eq!(l7.certificates, whole.certificates.into_iter().collect());
    assert_eq!(
        l7.passthrough,
        whole.passthrough.into_iter().map(|(host, to)| (host, Arc::new(to))).collect()
    );
    let upstreams = whole.upstreams.into_iter().map(|(name, laid)| (name, laid.upstream));
    assert_eq!(l7.upstreams, upstreams.collect());
    assert_eq!(l7.default_backend, whole.default_backend);
    let patterns = whole.patterns.into_iter().map(|(_, pattern, host)| (pattern, host)).collect();
    assert_eq!(l7.aliases, Aliases { patterns, ..whole.aliases });

    let all = objects.services.iter().collect();
    let streams = Streams::read(objects, options, &mut findings);
    let mut allocator = Allocator::default();
    let _ = allocator.follow(None, nodes.addresses(), true, objects, options, &mut findings);
    let (whole, _) = services::translate(all, streams, &slices, &nodes, &allocator, options, &mut findings);
    assert_eq!(translated.snapshot.l4.pools, whole.pools.into_iter().collect());
    assert_eq!(translated.snapshot.l4.health_ports, whole.health_ports);
    let own = services::own_punts(options);
    assert_eq!(translated.snapshot.l4.punts, whole.punts.into_iter().chain(own).collect());
    for problem in findings.into_shared() {
        assert!(translated.problems.contains(&problem), "not told: {problem}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    #[test]
    fn step_by_step_comes_to_the_same_as_at_once(
        steps in prop::collection::vec(prop::collection::vec(steps(), 1..4), 1..24),
        routes_by_zone in any::<bool>(),
    ) {
        let options = options(routes_by_zone);
        let (mut translator, mut objects) = (Translator::default(), Objects::default());
        for changes in steps {
            for Step { object: value, ends } in &changes {
                let object = object(value);
                let key: Key = object.key();
                if *ends {
                    objects.remove(&key);
                } else {
                    objects.insert(object, "");
                }
            }

            let followed = translator.translate(&objects, &options);

            prop_assert_eq!(&followed, &translate(&objects, &options), "after {:#?}", changes);
            as_a_whole(&objects, &options, &followed);
        }
    }
}

#[test]
fn what_does_not_change_stays_the_same_in_memory() {
    let mut objects = Objects::default();
    let ingress = |name: &str, service: &str, timeout: &str| {
        let alias = format!("{name}.alias,~^{name}[0-9]");
        json!({
            "kind": "Ingress",
            "metadata": {"namespace": "a", "name": name, "annotations": {
                format!("{PREFIX}/proxy-read-timeout"): timeout,
                format!("{PREFIX}/server-alias"): alias,
            }},
            "spec": {"ingressClassName": "nginx", "rules": [{"host": format!("{name}.example"), "http": {"paths": [
                {"path": "/", "pathType": "Prefix", "backend": {"service": {"name": service, "port": {"number": 80}}}},
            ]}}]},
        })
    };
    let slice = |service: &str, addr: &str| {
        json!({
            "kind": "EndpointSlice", "addressType": "IPv4", "endpoints": [{"addresses": [addr]}], "ports": [{"port": 80}],
            "metadata": {"namespace": "a", "name": service, "labels": {"kubernetes.io/service-name": service}},
        })
    };
    let service = |name: &str| json!({"kind": "Service", "metadata": {"namespace": "a", "name": name}, "spec": {"ports": [{"port": 80}]}});
    for value in [
        ingress("one", "x", "5"),
        ingress("two", "y", "5"),
        service("x"),
        service("y"),
        slice("x", "10.0.0.1"),
        slice("y", "10.0.0.2"),
    ] {
        objects.insert(object(&value), "");
    }
    let mut translator = Translator::default();
    let before = translator.translate(&objects, &Options::default()).snapshot;

    objects.insert(object(&slice("x", "10.0.0.3")), "");
    let moved = translator.translate(&objects, &Options::default()).snapshot;
    objects.insert(object(&ingress("two", "y", "6")), "");
    let now = translator.translate(&objects, &Options::default()).snapshot;

    let named = |change: crate::model::shared::Change<'_, _, _>| format!("{:?}", change.key);
    assert!(Arc::ptr_eq(&before.l4, &now.l4));
    assert_eq!(moved.l7.servers.changes(&before.l7.servers).count(), 0);
    let upstreams: Vec<_> = moved.l7.upstreams.changes(&before.l7.upstreams).map(named).collect();
    assert_eq!(upstreams, [r#"UpstreamName("a-x-80")"#]);
    let servers = now.l7.servers.changes(&moved.l7.servers).map(|change| change.key.to_string());
    assert_eq!(servers.collect::<Vec<_>>(), ["two.example"]);
    let (aliases, others) = (&before.l7.aliases, &now.l7.aliases);
    assert_eq!((others.exact.len(), others.patterns.len()), (2, 2));
    for name in ["one.alias", "two.alias"] {
        let of = |aliases: &Aliases| Arc::clone(aliases.exact.share(name).expect("an alias"));
        assert!(Arc::ptr_eq(&of(aliases), &of(others)), "{name}");
    }
    assert!(Arc::ptr_eq(&aliases.patterns, &others.patterns));
}

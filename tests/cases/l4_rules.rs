//! The rules of Services and EndpointSlices, one case each: what a pool is made of. A case with
//! several steps is a history; each step stands for itself, because the translation remembers
//! nothing.

use std::fmt::Write;

use penstock::translate::Options;
use penstock::{manifests, translate};

use crate::dump;

/// One rule.
struct Case {
    case: &'static str,
    /// Objects and what they come to, as [`dump::dump`] writes it.
    steps: Vec<(String, String)>,
}

impl Case {
    fn new(case: &'static str) -> Self {
        Self { case, steps: Vec::new() }
    }

    /// Objects, and the lines they come to.
    fn step(mut self, objects: &[&str], expected: &[&str]) -> Self {
        let text = expected.iter().fold(String::new(), |text, line| text + line + "\n");
        self.steps.push((objects.join("---\n"), text));
        self
    }
}

#[test]
fn pools_follow_the_rules_that_users_know_from_kube_proxy() {
    let mut wrong = String::new();
    let mut seen = std::collections::BTreeSet::new();
    let options = Options { node: Some("here".to_owned()), ..Options::default() };
    for Case { case, steps } in cases() {
        assert!(seen.insert(case), "{case} stands there twice");
        for (index, (objects, expected)) in steps.iter().enumerate() {
            let loaded = manifests::load_text("x.yaml", objects.as_bytes(), translate::ADMISSION);
            let actual = dump::dump(&translate::translate(&loaded.objects, &options), &loaded.problems);
            if actual != *expected {
                writeln!(wrong, "== {case}, step {index}\nexpected:\n{expected}actual:\n{actual}")
                    .expect("text");
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    assert_eq!(seen.len(), 28, "a rule has lost its case, or a new one is to be counted");
}

fn cases() -> Vec<Case> {
    [slices(), conditions(), policies(), hints(), vips(), backends()].into_iter().flatten().collect()
}

const POOL: &str = "pool default/web:80/tcp/v4";
const VIP: &str = "  vip tcp 203.0.113.10:80";

/// Service `web` on 203.0.113.10:80, with more fields of its spec.
fn web(more: &str) -> String {
    let more = if more.is_empty() { String::new() } else { format!(", {more}") };
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: web}}\nspec: {{type: LoadBalancer, loadBalancerIP: \
         203.0.113.10, ports: [{{port: 80, targetPort: 8080}}]{more}}}\n"
    )
}

/// A slice of `web` with endpoints on port 8080.
fn slice(name: &str, endpoints: &[&str]) -> String {
    slice_of("web", name, "{port: 8080}", endpoints)
}

fn slice_of(service: &str, name: &str, ports: &str, endpoints: &[&str]) -> String {
    format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {name}, labels: \
         {{kubernetes.io/service-name: {service}}}}}\naddressType: IPv4\nports: [{ports}]\nendpoints: [{}]\n",
        endpoints.join(", ")
    )
}

/// A node, with more of its metadata.
fn node(name: &str, metadata: &str) -> String {
    format!("apiVersion: v1\nkind: Node\nmetadata: {{name: {name}, {metadata}}}\n")
}

fn zone(name: &str, zone: &str) -> String {
    node(name, &format!("labels: {{topology.kubernetes.io/zone: {zone}}}"))
}

const READY_1: &str = "{addresses: [10.0.0.1]}";
const READY_2: &str = "{addresses: [10.0.0.2]}";
const FINISHING_3: &str =
    "{addresses: [10.0.0.3], conditions: {ready: false, serving: true, terminating: true}}";
const ENDING_4: &str =
    "{addresses: [10.0.0.4], conditions: {ready: false, serving: false, terminating: true}}";

const BACKEND_1: &str = "  backend 10.0.0.1:8080 nat weight 1";
const BACKEND_2: &str = "  backend 10.0.0.2:8080 nat weight 1";

const EMPTY_SLICES: &str = "Service default/web (x.yaml#1): warning: spec.ports[0]: its EndpointSlices have no endpoints: new flows to \
     port 80 are refused; run a pod that the Service selects, or list an endpoint [no-endpoints]";

fn slices() -> Vec<Case> {
    let two_ports = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {type: LoadBalancer, \
                     loadBalancerIP: 203.0.113.10, ports: [{name: http, port: 80, targetPort: web}]}\n";
    let headless =
        slice("web-1", &[READY_1]).replace("labels: {", "labels: {service.kubernetes.io/headless: \"\", ");
    let many: Vec<String> = (0..30)
        .map(|slice| {
            let endpoints: Vec<_> =
                (0..100).map(|endpoint| format!("{{addresses: [10.1.{slice}.{endpoint}]}}")).collect();
            self::slice(&format!("web-{slice}"), &endpoints.iter().map(String::as_str).collect::<Vec<_>>())
        })
        .collect();
    let many_backends: Vec<String> = (0..30)
        .flat_map(|slice| {
            (0..100).map(move |endpoint| format!("  backend 10.1.{slice}.{endpoint}:8080 nat weight 1"))
        })
        .collect();
    let mut crowd = vec![web("")];
    crowd.extend(many);
    let crowd: Vec<_> = crowd.iter().map(String::as_str).collect();
    let mut crowd_lines = vec![POOL, VIP];
    crowd_lines.extend(many_backends.iter().map(String::as_str));
    vec![
        Case::new("two slices, one Service").step(
            &[&web(""), &slice("web-1", &[READY_1]), &slice("web-2", &[READY_2])],
            &[POOL, VIP, BACKEND_1, BACKEND_2],
        ),
        Case::new("the same endpoint in two slices").step(
            &[&web(""), &slice("web-1", &[READY_1, READY_2]), &slice("web-2", &[READY_2])],
            &[POOL, VIP, BACKEND_1, BACKEND_2],
        ),
        Case::new("slice deleted")
            .step(
                &[&web(""), &slice("web-1", &[READY_1]), &slice("web-2", &[READY_2])],
                &[POOL, VIP, BACKEND_1, BACKEND_2],
            )
            .step(&[&web(""), &slice("web-2", &[READY_2])], &[POOL, VIP, BACKEND_2]),
        Case::new("slice relabelled to another Service")
            .step(
                &[&web(""), &slice("web-1", &[READY_1]), &slice("web-2", &[READY_2])],
                &[POOL, VIP, BACKEND_1, BACKEND_2],
            )
            .step(
                &[
                    &web(""),
                    &slice("web-1", &[READY_1]),
                    &slice_of("other", "web-2", "{port: 8080}", &[READY_2]),
                    &web("").replace("name: web", "name: other").replace("113.10", "113.11"),
                ],
                &[
                    "pool default/other:80/tcp/v4",
                    "  vip tcp 203.0.113.11:80",
                    BACKEND_2,
                    POOL,
                    VIP,
                    BACKEND_1,
                ],
            ),
        Case::new("port name mismatch").step(
            &[two_ports, &slice_of("web", "web-1", "{name: metrics, port: 9090}", &[READY_1])],
            &[
                POOL,
                VIP,
                "Service default/web (x.yaml#1): warning: spec.ports[0]: no EndpointSlice has a port named \
                 \"http\", only [\"metrics\"]: new flows to port 80 are refused; give the slice's port the name of \
                 the Service's port [no-endpoints]",
            ],
        ),
        Case::new("slices of nothing, with the port's name and with no ports")
            .step(
                &[two_ports, &slice_of("web", "web-1", "{name: http, port: 8080}", &[])],
                &[POOL, VIP, EMPTY_SLICES],
            )
            .step(&[two_ports, &slice_of("web", "web-1", "", &[])], &[POOL, VIP, EMPTY_SLICES]),
        Case::new("a named targetPort that is two numbers").step(
            &[
                two_ports,
                &slice_of("web", "web-1", "{name: http, port: 8080}", &[READY_1]),
                &slice_of("web", "web-2", "{name: http, port: 9090}", &[READY_1, READY_2]),
            ],
            &[
                POOL,
                VIP,
                BACKEND_1,
                "  backend 10.0.0.1:9090 nat weight 1",
                "  backend 10.0.0.2:9090 nat weight 1",
            ],
        ),
        Case::new("headless manual slices are not balanced").step(
            &[&web(""), &headless, &slice("web-2", &[READY_2])],
            &[POOL, VIP, BACKEND_2],
        ),
        Case::new("3000 endpoints in 30 slices").step(&crowd, &crowd_lines),
    ]
}

fn conditions() -> Vec<Case> {
    vec![
        Case::new("ready left out counts as true").step(
            &[&web(""), &slice("web-1", &["{addresses: [10.0.0.1], conditions: {serving: true}}"])],
            &[POOL, VIP, BACKEND_1],
        ),
        Case::new("serving left out counts as true").step(
            &[
                &web(""),
                &slice("web-1", &["{addresses: [10.0.0.1], conditions: {ready: false, terminating: true}}"]),
            ],
            &[POOL, VIP, BACKEND_1],
        ),
        Case::new("only terminating endpoints that still serve").step(
            &[&web(""), &slice("web-1", &[FINISHING_3, ENDING_4])],
            &[
                POOL,
                VIP,
                "  backend 10.0.0.3:8080 nat weight 1",
                "  backend 10.0.0.4:8080 nat weight 1 draining",
            ],
        ),
        Case::new("a terminating endpoint that stopped serving keeps its flows until it leaves the slice")
            .step(
                &[&web(""), &slice("web-1", &[READY_1, ENDING_4])],
                &[POOL, VIP, BACKEND_1, "  backend 10.0.0.4:8080 nat weight 1 draining"],
            )
            .step(&[&web(""), &slice("web-1", &[READY_1])], &[POOL, VIP, BACKEND_1]),
    ]
}

fn policies() -> Vec<Case> {
    let local = web("externalTrafficPolicy: Local");
    let dropping = "pool default/web:80/tcp/v4, drops when empty";
    vec![
        Case::new("externalTrafficPolicy Local, local terminating and remote ready").step(
            &[
                &local,
                &slice(
                    "web-1",
                    &[
                        "{addresses: [10.0.0.1], nodeName: there}",
                        "{addresses: [10.0.0.2], nodeName: here, conditions: {ready: false, terminating: true}}",
                    ],
                ),
            ],
            &[dropping, VIP, "  backend 10.0.0.2:8080 local here weight 1"],
        ),
        Case::new("externalTrafficPolicy Local, none local: drop; none anywhere: reject")
            .step(
                &[&local, &slice("web-1", &["{addresses: [10.0.0.1], nodeName: there}"])],
                &[
                    dropping,
                    VIP,
                    "Service default/web (x.yaml#1): info: spec.ports[0]: externalTrafficPolicy Local: no \
                     endpoint is on this node: new flows to port 80 are dropped [no-local-endpoint]",
                ],
            )
            .step(
                &[
                    &local,
                    &slice("web-1", &["{addresses: [10.0.0.1], nodeName: there, conditions: {ready: false}}"]),
                ],
                &[
                    POOL,
                    VIP,
                    "Service default/web (x.yaml#1): warning: spec.ports[0]: none of its endpoints is usable: new \
                     flows to port 80 are refused [no-endpoints]",
                ],
            ),
        Case::new("internalTrafficPolicy Local means nothing to external addresses").step(
            &[
                &web("internalTrafficPolicy: Local"),
                &slice("web-1", &["{addresses: [10.0.0.1], nodeName: there}", READY_2]),
            ],
            &[
                POOL,
                VIP,
                BACKEND_1,
                BACKEND_2,
                "Service default/web (x.yaml#1): info: spec.internalTrafficPolicy: Local is about cluster \
                 addresses; those served here follow externalTrafficPolicy [no-effect]",
            ],
        ),
    ]
}

fn hints() -> Vec<Case> {
    let near = "{addresses: [10.0.0.1], hints: {forZones: [{name: z1}]}}";
    let far = "{addresses: [10.0.0.2], hints: {forZones: [{name: z2}]}}";
    let both = slice("web-1", &[near, far]);
    let draining_2 = "  backend 10.0.0.2:8080 nat weight 1 draining";
    let web_with = |value: &str| {
        web("").replace(
            "name: web}",
            &format!("name: web, annotations: {{penstock.dev/topology-hints: {value}}}}}"),
        )
    };
    let told = "Service default/web (x.yaml#1): warning: metadata.annotations.penstock.dev/topology-hints: \"off\" \
                is neither follow nor ignore; they are followed [bad-value]";
    vec![
        Case::new("zone hints: complete, one missing, zone unknown")
            .step(&[&web(""), &both, &zone("here", "z1")], &[POOL, VIP, BACKEND_1, draining_2])
            .step(
                &[&web(""), &both, &slice("web-2", &["{addresses: [10.0.0.5]}"]), &zone("here", "z1")],
                &[POOL, VIP, BACKEND_1, BACKEND_2, "  backend 10.0.0.5:8080 nat weight 1"],
            )
            .step(&[&web(""), &both, &node("here", "labels: {}")], &[POOL, VIP, BACKEND_1, BACKEND_2])
            .step(&[&web(""), &both, &zone("here", "z3")], &[POOL, VIP, BACKEND_1, BACKEND_2]),
        Case::new("hints that the Service ignores, or not")
            .step(&[&web_with("ignore"), &both, &zone("here", "z1")], &[POOL, VIP, BACKEND_1, BACKEND_2])
            .step(&[&web_with("follow"), &both, &zone("here", "z1")], &[POOL, VIP, BACKEND_1, draining_2])
            .step(
                &[&web_with("\"off\""), &both, &zone("here", "z1")],
                &[POOL, VIP, BACKEND_1, draining_2, told],
            ),
        Case::new("node hints win over zone hints").step(
            &[
                &web(""),
                &slice(
                    "web-1",
                    &[
                        "{addresses: [10.0.0.1], hints: {forNodes: [{name: here}], forZones: [{name: z2}]}}",
                        "{addresses: [10.0.0.2], hints: {forNodes: [{name: there}], forZones: [{name: z1}]}}",
                    ],
                ),
                &zone("here", "z1"),
            ],
            &[POOL, VIP, BACKEND_1, draining_2],
        ),
    ]
}

fn vips() -> Vec<Case> {
    let dual = |families: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: web}}\nspec: {{type: LoadBalancer, ipFamilies: \
             [{families}], ports: [{{port: 80, targetPort: 8080}}]}}\nstatus: {{loadBalancer: {{ingress: \
             [{{ip: 203.0.113.10}}{}]}}}}\n",
            if families.contains("IPv6") { ", {ip: \"2001:db8::10\"}" } else { "" }
        )
    };
    let slice_6 = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: web-6, labels: \
                   {kubernetes.io/service-name: web}}\naddressType: IPv6\nports: [{port: 8080}]\nendpoints: \
                   [{addresses: [\"2001:db8:1::1\"]}]\n";
    let dns = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {type: LoadBalancer, loadBalancerIP: \
               203.0.113.10, ports: [{name: tcp, port: 53}, {name: udp, port: 53, protocol: UDP}]}\n";
    let status = |mode: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: web}}\nspec: {{type: LoadBalancer, ports: [{{port: \
             80, targetPort: 8080}}]}}\nstatus: {{loadBalancer: {{ingress: [{{ip: 203.0.113.10, ipMode: \
             {mode}}}]}}}}\n"
        )
    };
    let one = slice("web-1", &[READY_1]);
    vec![
        Case::new("second family added")
            .step(&[&dual("IPv4"), &one, slice_6], &[POOL, VIP, BACKEND_1])
            .step(
                &[&dual("IPv4, IPv6"), &one, slice_6],
                &[
                    POOL,
                    VIP,
                    BACKEND_1,
                    "pool default/web:80/tcp/v6",
                    "  vip tcp [2001:db8::10]:80",
                    "  backend [2001:db8:1::1]:8080 nat weight 1",
                ],
            ),
        Case::new("the same port over TCP and UDP").step(
            &[
                dns,
                &slice_of("web", "web-1", "{name: tcp, port: 5353}", &[READY_1]),
                &slice_of("web", "web-2", "{name: udp, port: 5353, protocol: UDP}", &[READY_2]),
            ],
            &[
                "pool default/web:53/tcp/v4",
                "  vip tcp 203.0.113.10:53",
                "  backend 10.0.0.1:5353 nat weight 1",
                "pool default/web:53/udp/v4",
                "  vip udp 203.0.113.10:53",
                "  backend 10.0.0.2:5353 nat weight 1",
            ],
        ),
        Case::new("another loadBalancerClass than ours")
            .step(
                &[&web("loadBalancerClass: example.com/edge"), &one],
                &[
                    "Service default/web (x.yaml#1): info: spec.loadBalancerClass: addresses left to the load \
                     balancer of class \"example.com/edge\"; ours is penstock.dev/load-balancer, or none \
                     [other-load-balancer-class]",
                ],
            )
            .step(&[&web("loadBalancerClass: penstock.dev/load-balancer"), &one], &[POOL, VIP, BACKEND_1]),
        Case::new("ipMode Proxy")
            .step(&[&status("VIP"), &one], &[POOL, VIP, BACKEND_1])
            .step(
                &[&status("Proxy"), &one],
                &[
                    "Service default/web (x.yaml#1): info: status.loadBalancer.ingress[0].ip: ipMode Proxy: \
                     packets arrive with another address, so this one is not served [ip-mode-proxy]",
                ],
            ),
        Case::new("source ranges of the other family only").step(
            &[&web("loadBalancerSourceRanges: [\" 2001:db8::/32 \"]"), &one],
            &[
                POOL,
                "  vip tcp 203.0.113.10:80 from []",
                BACKEND_1,
                "Service default/web (x.yaml#1): warning: spec.loadBalancerSourceRanges: no range is of family \
                 IPv4: nobody may use the Service's IPv4 addresses; list who may, or 0.0.0.0/0 for everybody \
                 [source-ranges-of-other-family]",
            ],
        ),
    ]
}

fn backends() -> Vec<Case> {
    let sticky = web("sessionAffinity: ClientIP");
    let sticky_pool = "pool default/web:80/tcp/v4, affinity 10800s";
    let udp = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {type: LoadBalancer, loadBalancerIP: \
               203.0.113.10, ports: [{port: 53, protocol: UDP}]}\n";
    let udp_slice = |endpoint| slice_of("web", "web-1", "{port: 53, protocol: UDP}", &[endpoint]);
    let udp_lines = ["pool default/web:53/udp/v4", "  vip udp 203.0.113.10:53"];
    let weighted = |name: &str, weight: &str, endpoint| {
        slice(name, &[endpoint]).replace(
            "metadata: {",
            &format!("metadata: {{annotations: {{penstock.dev/weight: \"{weight}\"}}, "),
        )
    };
    let tunnel = |name: &str, addr: &str, labels: &str| {
        node(name, &format!("annotations: {{penstock.dev/tunnel-address: {addr}}}, labels: {{{labels}}}"))
    };
    let there = slice("web-1", &["{addresses: [10.0.0.1], nodeName: there}"]);
    let here = tunnel("here", "192.0.2.1", "");
    vec![
        Case::new("affinity to an endpoint that is removed")
            .step(&[&sticky, &slice("web-1", &[READY_1, READY_2])], &[sticky_pool, VIP, BACKEND_1, BACKEND_2])
            .step(&[&sticky, &slice("web-1", &[READY_2])], &[sticky_pool, VIP, BACKEND_2]),
        Case::new("UDP endpoint replaced in the middle of a flow")
            .step(
                &[udp, &udp_slice(READY_1)],
                &[udp_lines[0], udp_lines[1], "  backend 10.0.0.1:53 nat weight 1"],
            )
            .step(
                &[udp, &udp_slice(READY_2)],
                &[udp_lines[0], udp_lines[1], "  backend 10.0.0.2:53 nat weight 1"],
            ),
        Case::new("weight 0").step(
            &[&web(""), &weighted("web-1", "0", READY_1), &weighted("web-2", "3", READY_2)],
            &[POOL, VIP, "  backend 10.0.0.1:8080 nat weight 0", "  backend 10.0.0.2:8080 nat weight 3"],
        ),
        Case::new("a node excluded by its label is no hop")
            .step(
                &[&web(""), &there, &here, &tunnel("there", "192.0.2.2", "")],
                &[
                    POOL,
                    VIP,
                    "  backend 10.0.0.1:8080 tunnel at 192.0.2.2 weight 1",
                    "tunnel address 192.0.2.1",
                    "peer 192.0.2.2",
                ],
            )
            .step(
                &[
                    &web(""),
                    &there,
                    &here,
                    &tunnel(
                        "there",
                        "192.0.2.2",
                        "node.kubernetes.io/exclude-from-external-load-balancers: \"\"",
                    ),
                ],
                &[POOL, VIP, BACKEND_1, "tunnel address 192.0.2.1", "peer 192.0.2.2"],
            ),
    ]
}

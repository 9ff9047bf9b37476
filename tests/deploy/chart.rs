//! The objects that the chart makes.

use std::process::Command;

use serde_json::{Value, json};

use lb_tests::helm::{self, Helm, Object, Release};

/// As the guide installs it: `--set` makes a boolean of `true`.
fn guide() -> Value {
    json!({"controller": {
        "replicaCount": 2,
        "metrics": {"enabled": true},
        "podAnnotations": {"prometheus.io/scrape": true},
    }})
}

/// Every node an edge.
fn edge() -> Value {
    json!({"controller": {"kind": "DaemonSet", "interfaces": ["eth0"]}})
}

pub fn render(helm: &mut Helm, values: Value) -> Vec<Object> {
    let release = Release { name: "ingress-nginx", namespace: "ingress-nginx", values };
    helm.template(&release).unwrap_or_else(|error| panic!("{error}"))
}

pub fn one<'a>(objects: &'a [Object], kind: &str, name: &str) -> &'a Value {
    let found = objects.iter().find(|object| object.kind() == kind && object.name() == name);
    &found.unwrap_or_else(|| panic!("no {kind} {name}")).value
}

pub fn kinds(objects: &[Object]) -> Vec<&str> {
    objects.iter().map(Object::kind).collect()
}

#[test]
fn helm_finds_nothing_to_say_about_the_chart() {
    let Some(mut helm) = Helm::start() else { return };

    let report = helm.lint().expect("lint");

    assert_eq!(report["passed"], true, "{report}");
    let worse =
        report["messages"].as_array().into_iter().flatten().filter(|message| message["severity"] != "INFO");
    assert_eq!(worse.collect::<Vec<_>>(), Vec::<&Value>::new());
}

#[test]
fn objects_have_the_names_that_the_commands_of_the_guide_use() {
    let Some(mut helm) = Helm::start() else { return };
    let objects = render(&mut helm, guide());

    // kubectl get svc, logs deployment/, logs -l, the ConfigMap and the Service and ServiceMonitor of phase 8.
    let service = one(&objects, "Service", "ingress-nginx-controller");
    assert_eq!(service["spec"]["type"], "LoadBalancer");
    let deployment = one(&objects, "Deployment", "ingress-nginx-controller");
    assert_eq!(deployment["spec"]["replicas"], 2);
    one(&objects, "ConfigMap", "ingress-nginx-controller");
    let pod = &deployment["spec"]["template"];
    assert_eq!(pod["metadata"]["labels"]["app.kubernetes.io/name"], "ingress-nginx");
    assert_eq!(pod["metadata"]["annotations"], json!({"prometheus.io/scrape": "true"}));
    let container = &pod["spec"]["containers"][0];
    let ports: Vec<_> =
        container["ports"].as_array().into_iter().flatten().map(|port| &port["name"]).collect();
    assert_eq!(ports, ["http", "https", "metrics"]);
    let metrics = one(&objects, "Service", "ingress-nginx-controller-metrics");
    assert_eq!(metrics["spec"]["ports"][0]["name"], "metrics");
    assert_eq!(metrics["spec"]["ports"][0]["port"], 10254);
    let class = one(&objects, "IngressClass", "nginx");
    assert_eq!(class["spec"]["controller"], "k8s.io/ingress-nginx");
    one(&objects, "PodDisruptionBudget", "ingress-nginx-controller");
}

#[test]
fn the_guides_upgrade_to_three_replicas_apart_is_taken() {
    let Some(mut helm) = Helm::start() else { return };
    let apart = json!({"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
        {"weight": 100, "podAffinityTerm": {"topologyKey": "kubernetes.io/hostname"}}
    ]}});

    let objects = render(&mut helm, json!({"controller": {"replicaCount": 3, "affinity": apart}}));

    let deployment = one(&objects, "Deployment", "ingress-nginx-controller");
    assert_eq!(deployment["spec"]["replicas"], 3);
    assert_eq!(deployment["spec"]["template"]["spec"]["affinity"], apart);
}

#[test]
fn names_follow_the_release_as_with_ingress_nginx() {
    let Some(mut helm) = Helm::start() else { return };
    let cases = [
        ("ingress-nginx", json!({}), "ingress-nginx-controller"),
        ("my-ingress-nginx", json!({}), "my-ingress-nginx-controller"),
        ("penstock", json!({}), "penstock-controller"),
        ("edge", json!({}), "edge-ingress-nginx-controller"),
        ("edge", json!({"fullnameOverride": "lb"}), "lb-controller"),
    ];
    for (name, values, expected) in cases {
        let release = Release { name, namespace: "x", values };
        let objects = helm.template(&release).expect("rendered");

        let deployment = one(&objects, "Deployment", expected);
        assert_eq!(deployment["metadata"]["namespace"], "x", "case {name}");
        assert_eq!(one(&objects, "ConfigMap", expected)["metadata"]["namespace"], "x", "case {name}");
        let args = &deployment["spec"]["template"]["spec"]["containers"][0]["args"];
        let flag = json!(format!("--configmap=$(POD_NAMESPACE)/{expected}"));
        assert!(args.as_array().is_some_and(|args| args.contains(&flag)), "case {name}: {args}");
    }
}

#[test]
fn a_deployment_needs_no_privilege() {
    let Some(mut helm) = Helm::start() else { return };
    let objects = render(&mut helm, guide());

    let pod = &one(&objects, "Deployment", "ingress-nginx-controller")["spec"]["template"]["spec"];

    assert_eq!(
        pod["securityContext"],
        json!({"seccompProfile": {"type": "RuntimeDefault"},
               "sysctls": [{"name": "net.ipv4.ip_unprivileged_port_start", "value": "0"}]})
    );
    assert_eq!(
        pod["containers"][0]["securityContext"],
        json!({"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": true,
               "runAsGroup": 65532, "runAsNonRoot": true, "runAsUser": 65532})
    );
    assert_eq!(pod["hostNetwork"], Value::Null);
    let volumes = pod["volumes"].as_array().into_iter().flatten();
    assert!(volumes.clone().all(|volume| volume["hostPath"].is_null()), "{volumes:?}");
}

#[test]
fn a_daemon_set_has_the_capabilities_of_the_kernel_part_and_no_others() {
    let Some(mut helm) = Helm::start() else { return };
    let objects = render(&mut helm, edge());

    let pod = &one(&objects, "DaemonSet", "ingress-nginx-controller")["spec"]["template"]["spec"];

    assert_eq!(pod["hostNetwork"], true);
    assert_eq!(pod["dnsPolicy"], "ClusterFirstWithHostNet");
    let container = &pod["containers"][0];
    assert_eq!(
        container["securityContext"],
        json!({"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "runAsGroup": 0, "runAsUser": 0,
               "capabilities": {"add": ["BPF", "NET_ADMIN", "PERFMON", "NET_BIND_SERVICE"], "drop": ["ALL"]}})
    );
    assert_eq!(pod["securityContext"], json!({"seccompProfile": {"type": "RuntimeDefault"}}));
    // All nodes have to hash alike, and a policy for pods says nothing about a node's network.
    let key =
        one(&objects, "Secret", "ingress-nginx-hash-key")["data"]["hash-key"].as_str().unwrap_or_default();
    assert_eq!(key.len(), 44, "32 hexadecimal digits in base64");
    assert!(!kinds(&objects).contains(&"NetworkPolicy"));
    assert!(!kinds(&objects).contains(&"Deployment"));
}

#[test]
fn a_daemon_set_without_the_kernel_part_still_may_bind_low_ports() {
    let Some(mut helm) = Helm::start() else { return };
    let values = json!({"controller": {"kind": "DaemonSet", "datapath": "off", "hostNetwork": true}});
    let objects = render(&mut helm, values);

    let pod = &one(&objects, "DaemonSet", "ingress-nginx-controller")["spec"]["template"]["spec"];

    let capabilities = &pod["containers"][0]["securityContext"]["capabilities"];
    assert_eq!(*capabilities, json!({"add": ["NET_BIND_SERVICE"], "drop": ["ALL"]}));
    assert!(!objects.iter().any(|object| object.name() == "ingress-nginx-hash-key"));
}

#[test]
fn strings_stay_strings_and_numbers_are_written_out() {
    let Some(mut helm) = Helm::start() else { return };
    let values = json!({"controller": {
        "config": {"use-gzip": true, "max-worker-open-files": 1_000_000, "ratio": 0.5, "log-format-upstream": "$host \"x\""},
        "service": {"annotations": {"service.beta.kubernetes.io/aws-load-balancer-cross-zone-load-balancing-enabled": true}},
    }});
    let objects = render(&mut helm, values);

    let config = &one(&objects, "ConfigMap", "ingress-nginx-controller")["data"];
    assert_eq!(
        *config,
        json!({"use-gzip": "true", "max-worker-open-files": "1000000", "ratio": "0.5", "log-format-upstream": "$host \"x\""})
    );
    let service = one(&objects, "Service", "ingress-nginx-controller");
    let annotations = service["metadata"]["annotations"].as_object().into_iter().flatten();
    assert!(annotations.clone().all(|(_, value)| value == "true"), "{annotations:?}");
}

#[test]
fn tcp_and_udp_services_have_their_ports_everywhere() {
    let Some(mut helm) = Helm::start() else { return };
    let values = json!({"tcp": {"5432": "db/pg:5432"}, "udp": {"53": "dns/coredns:53"}});
    let objects = render(&mut helm, values);

    assert_eq!(one(&objects, "ConfigMap", "ingress-nginx-tcp")["data"], json!({"5432": "db/pg:5432"}));
    assert_eq!(one(&objects, "ConfigMap", "ingress-nginx-udp")["data"], json!({"53": "dns/coredns:53"}));
    let service = one(&objects, "Service", "ingress-nginx-controller");
    assert_eq!(
        service["spec"]["ports"].as_array().map(|ports| ports[2..].to_vec()),
        Some(vec![
            json!({"name": "5432-tcp", "port": 5432, "protocol": "TCP", "targetPort": "5432-tcp"}),
            json!({"name": "53-udp", "port": 53, "protocol": "UDP", "targetPort": "53-udp"}),
        ])
    );
    let policy = one(&objects, "NetworkPolicy", "ingress-nginx-controller");
    let open = &policy["spec"]["ingress"][0]["ports"];
    assert_eq!(open[2], json!({"port": 5432, "protocol": "TCP"}));
    assert_eq!(open[3], json!({"port": 53, "protocol": "UDP"}));
}

#[test]
fn one_namespace_gives_no_rights_in_others() {
    let Some(mut helm) = Helm::start() else { return };
    let values = json!({"controller": {"scope": {"enabled": true, "namespace": "shop"}}});
    let objects = render(&mut helm, values);

    let everywhere =
        one(&objects, "ClusterRole", "ingress-nginx")["rules"].as_array().cloned().unwrap_or_default();
    let resources: Vec<_> = everywhere.iter().map(|rule| rule["resources"].clone()).collect();
    assert_eq!(resources, [json!(["ingressclasses"]), json!(["nodes"])]);
    assert_eq!(one(&objects, "Role", "ingress-nginx-watched")["metadata"]["namespace"], "shop");
    // Where Events of Nodes stand.
    let events = one(&objects, "Role", "ingress-nginx-events");
    assert_eq!(events["metadata"]["namespace"], "default");
    let rules = json!([{"apiGroups": [""], "resources": ["events"], "verbs": ["create", "patch"]}]);
    assert_eq!(events["rules"], rules);
    assert!(arguments(&objects).contains(&"--watch-namespace=shop".to_owned()));
}

#[test]
fn nobody_may_change_what_others_own() {
    let Some(mut helm) = Helm::start() else { return };
    let objects = render(&mut helm, json!({}));

    for kind in ["ClusterRole", "Role"] {
        let rules = one(&objects, kind, "ingress-nginx")["rules"].as_array().cloned().unwrap_or_default();
        for rule in rules {
            let strings = |field: &str| -> Vec<String> {
                rule[field]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter_map(|v| v.as_str().map(str::to_owned))
                    .collect()
            };
            assert!(
                !strings("verbs")
                    .iter()
                    .any(|verb| ["*", "delete", "deletecollection"].contains(&verb.as_str()))
            );
            assert!(!strings("resources").contains(&"*".to_owned()));
            let writes =
                strings("verbs").iter().any(|verb| !["get", "list", "watch"].contains(&verb.as_str()));
            let own = ["leases", "events", "ingresses/status", "services/status"];
            assert!(
                !writes || strings("resources").iter().all(|name| own.contains(&name.as_str())),
                "{rule}"
            );
        }
    }
}

#[test]
fn the_lease_that_may_be_written_is_the_one_that_the_agent_stands_for() {
    let Some(mut helm) = Helm::start() else { return };
    let cases = [
        (json!({}), "ingress-nginx-leader"),
        (json!({"updateStatus": false}), "ingress-nginx-leader-beside"),
        // As values of ingress-nginx have it.
        (json!({"extraArgs": {"update-status": "false"}}), "ingress-nginx-leader-beside"),
        (json!({"updateStatus": false, "extraArgs": {"update-status": true}}), "ingress-nginx-leader"),
        (json!({"electionID": "one", "extraArgs": {"election-id": "other"}}), "other"),
    ];
    for (controller, name) in cases {
        let objects = render(&mut helm, json!({"controller": &controller}));

        let rules = one(&objects, "Role", "ingress-nginx")["rules"].as_array().cloned().unwrap_or_default();
        let named = rules.iter().find(|rule| rule["verbs"] == json!(["get", "update"]));
        assert_eq!(named.expect("a rule")["resourceNames"], json!([name]), "{controller}");
    }
}

#[test]
fn who_announces_may_open_packet_sockets_and_nobody_else() {
    let Some(mut helm) = Helm::start() else { return };
    let values = json!({"controller": {"kind": "DaemonSet", "announce": {"interfaces": ["eth0", "eth1"]}}});
    let objects = render(&mut helm, values);

    let pod = &one(&objects, "DaemonSet", "ingress-nginx-controller")["spec"]["template"]["spec"];
    let added = &pod["containers"][0]["securityContext"]["capabilities"]["add"];
    assert_eq!(*added, json!(["BPF", "NET_ADMIN", "PERFMON", "NET_RAW", "NET_BIND_SERVICE"]));
    let flags = arguments(&objects).into_iter().filter(|flag| flag.starts_with("--announce="));
    assert_eq!(flags.collect::<Vec<_>>(), ["--announce=eth0", "--announce=eth1"]);
}

#[test]
fn pools_become_the_config_map_that_the_agent_reads() {
    let Some(mut helm) = Helm::start() else { return };
    let edge = json!({"addresses": ["203.0.113.16/28", "2001:db8::/120"], "autoAssign": false});
    let objects = render(&mut helm, json!({"controller": {"addressPools": {"edge": edge}}}));

    let written = &one(&objects, "ConfigMap", penstock::model::pool::CONFIG_MAP)["data"]["edge"];
    let read: serde_json::Value = serde_saphyr::from_str(written.as_str().expect("text")).expect("YAML");
    assert_eq!(read, edge);
}

/// Arguments of the controller's container, whatever runs it.
pub fn arguments(objects: &[Object]) -> Vec<String> {
    let runs = |object: &&Object| ["Deployment", "DaemonSet"].contains(&object.kind());
    let workload =
        objects.iter().filter(runs).find(|object| object.name().ends_with("-controller")).expect("pods");
    let arguments = &workload.value["spec"]["template"]["spec"]["containers"][0]["args"];
    arguments.as_array().into_iter().flatten().filter_map(|word| word.as_str().map(str::to_owned)).collect()
}

#[test]
fn every_argument_is_a_flag_of_the_agent() {
    let Some(mut helm) = Helm::start() else { return };
    let everything = json!({"tcp": {"1": "a/b:1"}, "udp": {"1": "a/b:1"}, "controller": {
        "interfaces": ["eth0"], "watchIngressWithoutClass": true, "ingressClassByName": true, "updateStatus": false,
        "enableTopologyAwareRouting": true,
        "reportNodeInternalIp": true, "defaultBackendService": "a/b", "disableLeaderElection": true, "electionTTL": "10s",
        "healthCheckPath": "/up", "admissionWebhooks": {"enabled": true, "warnOnly": true},
    }});
    let mut words = arguments(&render(&mut helm, everything));
    for scope in [json!({"enabled": true}), json!({"namespaceSelector": "a=b"})] {
        words.extend(arguments(&render(&mut helm, json!({"controller": {"scope": scope}}))));
    }
    let agent = lb_tests::agent::binary().expect("the agent is built");
    let help = Command::new(agent).args(["run", "--help"]).output().expect("the agent starts");
    let help = String::from_utf8_lossy(&help.stdout).into_owned();
    let known: Vec<_> = help.split(|c: char| !c.is_ascii_alphanumeric() && c != '-').collect();

    let flags = words.iter().filter_map(|word| word.split('=').next()).filter(|word| word.starts_with("--"));
    let unknown: Vec<_> = flags.filter(|flag| !known.contains(flag)).collect();

    assert!(unknown.is_empty(), "{unknown:?}");
}

#[test]
fn a_default_backend_is_a_service_of_its_own_that_the_agent_is_told_of() {
    let Some(mut helm) = Helm::start() else { return };
    let values = json!({"defaultBackend": {
        "enabled": true, "replicaCount": 2, "image": {"registry": "", "image": "errors", "tag": "1"}, "extraArgs": {"v": 1},
        "tolerations": [{"operator": "Exists"}], "service": {"servicePort": 8080},
    }, "global": {"image": {"registry": "mirror.example"}}});
    let objects = render(&mut helm, values);

    let name = "ingress-nginx-defaultbackend";
    let deployment = &one(&objects, "Deployment", name)["spec"];
    let pod = &deployment["template"]["spec"];
    assert_eq!(deployment["replicas"], 2);
    assert_eq!(pod["containers"][0]["image"], "mirror.example/errors:1");
    assert_eq!(pod["containers"][0]["args"], json!(["--v=1"]));
    assert_eq!(pod["tolerations"], json!([{"operator": "Exists"}]));
    assert_eq!(pod["automountServiceAccountToken"], false);
    let service = &one(&objects, "Service", name)["spec"];
    assert_eq!(service["ports"][0]["port"], 8080);
    assert_eq!(service["selector"], deployment["selector"]["matchLabels"]);
    let proxy = &one(&objects, "Deployment", "ingress-nginx-controller")["spec"];
    assert_ne!(service["selector"], proxy["selector"]["matchLabels"], "the proxy's pods are others");
    assert_eq!(one(&objects, "PodDisruptionBudget", name)["spec"]["minAvailable"], 1);
    let flag = format!("--default-backend-service=$(POD_NAMESPACE)/{name}");
    assert!(arguments(&objects).contains(&flag));
}

#[test]
fn an_internal_service_leads_to_the_same_pods_and_may_be_the_only_one() {
    let Some(mut helm) = Helm::start() else { return };
    let internal = json!({"enabled": true, "annotations": {"internal": true}, "loadBalancerIP": "10.0.0.1", "ports": {"http": 8080},
        "nodePorts": {"http": 30080}});
    let service = |external: bool| {
        json!({"annotations": {"external": "yes"}, "loadBalancerSourceRanges": ["0.0.0.0/0"],
               "external": {"enabled": external}, "internal": internal})
    };
    let both =
        render(&mut helm, json!({"tcp": {"5432": "db/pg:5432"}, "controller": {"service": service(true)}}));
    let alone = render(&mut helm, json!({"controller": {"service": service(false)}}));

    let (name, inner) = ("ingress-nginx-controller", "ingress-nginx-controller-internal");
    let of = one(&both, "Service", inner);
    assert_eq!(of["metadata"]["annotations"], json!({"internal": "true"}));
    assert_eq!(of["spec"]["loadBalancerIP"], "10.0.0.1");
    assert_eq!(of["spec"]["loadBalancerSourceRanges"], Value::Null);
    assert_eq!(of["spec"]["selector"], one(&both, "Service", name)["spec"]["selector"]);
    let ports: Vec<_> =
        of["spec"]["ports"].as_array().into_iter().flatten().map(|port| port["port"].clone()).collect();
    assert_eq!(ports, [json!(8080), json!(443), json!(5432)]);
    assert_eq!(of["spec"]["ports"][0]["nodePort"], 30080);
    let published = |objects: &[Object]| {
        arguments(objects).into_iter().find(|word| word.starts_with("--publish-service"))
    };
    assert_eq!(published(&both), Some(format!("--publish-service=$(POD_NAMESPACE)/{name}")));
    assert_eq!(published(&alone), Some(format!("--publish-service=$(POD_NAMESPACE)/{inner}")));
    assert!(!alone.iter().any(|object| object.kind() == "Service" && object.name() == name));
}

#[test]
fn values_that_ingress_nginx_has_do_here_what_they_say() {
    let Some(mut helm) = Helm::start() else { return };
    let values = json!({"controller": {
        "image": {"repository": "registry.example/edge", "tag": "2"}, "containerName": "edge", "shareProcessNamespace": true,
        "replicaCount": 2, "unhealthyPodEvictionPolicy": "AlwaysAllow", "progressDeadlineSeconds": 120,
        "lifecycle": {"preStop": {"exec": {"command": ["/wait-shutdown"]}}}, "allowSnippetAnnotations": false,
        "electionTTL": "10s", "disableLeaderElection": true, "healthCheckPath": "/up",
        "ingressClassResource": {"default": true, "aliases": ["edge"], "annotations": {"a": 1}},
        "service": {"clusterIPs": ["10.0.0.1"], "trafficDistribution": "PreferClose"},
        "metrics": {"enabled": true, "service": {"clusterIP": "None"}},
    }});
    let objects = render(&mut helm, values);

    let name = "ingress-nginx-controller";
    let deployment = &one(&objects, "Deployment", name)["spec"];
    let (pod, container) =
        (&deployment["template"]["spec"], &deployment["template"]["spec"]["containers"][0]);
    assert_eq!(
        (&container["image"], &container["name"]),
        (&json!("registry.example/edge:2"), &json!("edge"))
    );
    assert_eq!(
        (&pod["shareProcessNamespace"], &deployment["progressDeadlineSeconds"]),
        (&json!(true), &json!(120))
    );
    assert_eq!(container["lifecycle"], Value::Null, "there is no such program");
    assert_eq!(container["readinessProbe"]["httpGet"]["path"], "/up");
    assert_eq!(container["livenessProbe"]["httpGet"]["path"], "/build");
    let words = arguments(&objects);
    for flag in ["--election-ttl=10s", "--disable-leader-election=true", "--health-check-path=/up"] {
        assert!(words.contains(&flag.to_owned()), "{flag}: {words:?}");
    }
    assert_eq!(
        one(&objects, "PodDisruptionBudget", name)["spec"]["unhealthyPodEvictionPolicy"],
        "AlwaysAllow"
    );
    assert_eq!(one(&objects, "ConfigMap", name)["data"], json!({"allow-snippet-annotations": "false"}));
    let class = |name: &str| one(&objects, "IngressClass", name)["metadata"]["annotations"].clone();
    assert_eq!(class("nginx"), json!({"a": "1", "ingressclass.kubernetes.io/is-default-class": "true"}));
    assert_eq!(class("edge"), json!({"a": "1"}));
    let service = &one(&objects, "Service", name)["spec"];
    assert_eq!(
        (&service["clusterIPs"], &service["trafficDistribution"]),
        (&json!(["10.0.0.1"]), &json!("PreferClose"))
    );
    assert_eq!(one(&objects, "Service", "ingress-nginx-controller-metrics")["spec"]["clusterIP"], "None");
}

#[test]
fn everything_can_be_switched_on_at_once() {
    let Some(mut helm) = Helm::start() else { return };
    let values = json!({"tcp": {"1": "a/b:1"}, "commonLabels": {"team": "edge"}, "controller": {
        "addHeaders": {"X-A": "b"}, "proxySetHeaders": {"X-B": "c"}, "hostPort": {"enabled": true},
        "autoscaling": {"enabled": true, "minReplicas": 2, "targetMemoryUtilizationPercentage": 80},
        "extraArgs": {"enable-ssl-passthrough": "", "default-ssl-certificate": "a/b", "flow-entries": 1048576.0},
        "sysctls": {"net.core.rmem_max": 16777216.0},
        "metrics": {"enabled": true, "serviceMonitor": {"enabled": true}, "dashboard": {"enabled": true},
                    "prometheusRule": {"enabled": true, "rules": [{"alert": "Mine", "expr": "up == 0"}]}},
    }});
    let objects = render(&mut helm, values);

    helm::by_id(&objects);
    for kind in ["HorizontalPodAutoscaler", "PodDisruptionBudget", "ServiceMonitor", "PrometheusRule"] {
        one(&objects, kind, "ingress-nginx-controller");
    }
    assert!(objects.iter().all(|object| object.value["metadata"]["labels"]["team"] == "edge"));
    let groups = one(&objects, "PrometheusRule", "ingress-nginx-controller")["spec"]["groups"]
        .as_array()
        .map(Vec::len);
    assert_eq!(groups, Some(4));
    let words = arguments(&objects);
    assert!(words.contains(&"--enable-ssl-passthrough".to_owned()), "{words:?}");
    assert!(words.contains(&"--default-ssl-certificate=a/b".to_owned()), "{words:?}");
    // A number of a values file is a float.
    assert!(words.contains(&"--flow-entries=1048576".to_owned()), "{words:?}");
    assert!(objects.iter().any(|object| object.value.to_string().contains("\"16777216\"")));
}

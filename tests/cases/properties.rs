//! What must hold for any input, and at any size.

use std::time::{Duration, Instant};

use penstock::{manifests, translate};

use crate::{cases, input, outcome};

/// xorshift64: enough to vary inputs, and the seed is printed on failure by its index.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit.max(1) as u64) as usize
    }
}

const NONSENSE: [&str; 16] = [
    "\"\"",
    "null",
    "-1",
    "65536",
    "{}",
    "[]",
    "true",
    "\"*\"",
    "\"/(\"",
    "\"/$9$\"",
    "fe80::1",
    "\"é\"",
    "99999999999",
    "a",
    "IPv6",
    "\"/a//b\"",
];

#[test]
fn no_value_makes_the_translation_panic() {
    let inputs: Vec<_> = cases().iter().map(|case| input(case).replace("\"@", "\"x")).collect();
    for seed in 1..=600_u64 {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let text = &inputs[random.below(inputs.len())];
        let mut words: Vec<_> = text.split_inclusive([' ', ',', '\n', '}', ']']).map(str::to_owned).collect();
        for _ in 0..1 + random.below(4) {
            let at = random.below(words.len());
            let end = words[at].chars().next_back().filter(|end| !end.is_alphanumeric());
            words[at] = format!(
                "{}{}",
                NONSENSE[random.below(NONSENSE.len())],
                end.map_or(String::new(), String::from)
            );
        }
        let text = words.concat();

        let done = std::panic::catch_unwind(|| outcome(&text));

        assert!(done.is_ok(), "seed {seed}:\n{text}");
    }
}

#[test]
fn three_thousand_endpoints_in_thirty_slices_are_three_thousand_backends() {
    let mut text = String::from(
        "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {type: LoadBalancer, loadBalancerIP: 203.0.113.10, ports: [{port: 80}]}\n",
    );
    for slice in 0..30 {
        text += &format!(
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: web-{slice}\n  labels: \
             {{kubernetes.io/service-name: web}}\naddressType: IPv4\nports: [{{port: 8080}}]\nendpoints:\n"
        );
        for endpoint in 0..100 {
            text += &format!("- addresses: [\"10.1.{slice}.{endpoint}\"]\n");
        }
    }

    let loaded = manifests::load_text("x.yaml", text.as_bytes(), translate::ADMISSION);
    let translated = translate::translate(&loaded.objects, &translate::Options::default());

    assert_eq!(loaded.problems, []);
    let sizes: Vec<_> = translated.snapshot.l4.pools.values().map(|pool| pool.backends.len()).collect();
    assert_eq!(sizes, [3000]);
}

#[test]
fn ten_thousand_ingresses_translate_without_quadratic_cost() {
    let mut items = Vec::new();
    for number in 0..10_000 {
        // Half of them share one host, which is where a search per path would show.
        let host =
            if number % 2 == 0 { "shared.example.com".to_owned() } else { format!("h{number}.example.com") };
        let path = |suffix: &str| {
            serde_json::json!({"path": format!("/{number}/{suffix}"), "pathType": "Prefix",
                "backend": {"service": {"name": "web", "port": {"number": 80}}}})
        };
        items.push(serde_json::json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "Ingress",
            "metadata": {"name": format!("i{number}"), "annotations": {
                "nginx.ingress.kubernetes.io/proxy-body-size": "8m",
                "nginx.ingress.kubernetes.io/proxy-read-timeout": "30"}},
            "spec": {"ingressClassName": "nginx", "rules": [{"host": host, "http": {"paths": [path("a"), path("b")]}}]},
        }));
    }
    let text = serde_json::to_vec(&items).expect("json");
    let loaded = manifests::load_text("x.json", &text, translate::ADMISSION);
    assert_eq!(loaded.objects.ingresses.len(), 10_000);

    let start = Instant::now();
    let translated = translate::translate(&loaded.objects, &translate::Options::default());
    let took = start.elapsed();

    let locations: usize = translated.snapshot.l7.servers.values().map(|server| server.locations.len()).sum();
    assert_eq!(locations, 20_000 + 5_001);
    println!("translated in {took:?}");
    // An order of magnitude above what a debug build needs; a quadratic step needs minutes.
    assert!(took < Duration::from_secs(20), "{took:?}");
}

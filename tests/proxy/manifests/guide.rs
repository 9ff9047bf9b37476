//! The manifests that people learn Ingress by, as `deploy/examples` has them, and the requests that they are told to send.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use lb_tests::agent::eventually;
use lb_tests::manifests::{self, Authority, Slice};

use super::answer::ask;
use super::backend::{Echo, Records};
use crate::rig::{Client, DEADLINE, Reply};
use crate::takeover::Agents;
use crate::tls_client::Tls;

/// Services of the examples: name, port, endpoints.
const SERVICES: [(&str, u16, usize); 6] = [
    ("ml-api-service", 80, 3),
    ("ml-api-v1-service", 80, 1),
    ("ml-api-v2-service", 80, 1),
    ("mlflow-service", 5000, 1),
    ("tensorboard-service", 6006, 1),
    ("prometheus-service", 9090, 1),
];

struct Guide {
    agents: Agents,
    records: Records,
}

impl Guide {
    /// These phases, and what they leave to the reader.
    fn start(phases: &[&str], more: &str) -> Self {
        let records = Records::default();
        let mut files: BTreeMap<String, String> =
            phases.iter().map(|phase| (format!("{phase}.yaml"), example(phase))).collect();
        let mut services = more.to_owned();
        for (name, port, count) in SERVICES {
            if !files
                .values()
                .any(|file| file.contains(&format!("kind: Service\nmetadata:\n  name: {name}\n")))
            {
                services += "---\n";
                services += &manifests::service(name, port).replace("port: 80\n", &format!("port: {port}\n"));
            }
            for place in 1..=count {
                let echo =
                    Echo { name: format!("{name}-{place}"), place, obeys: "Reply", records: records.clone() };
                services += "---\n";
                services += &slice(name, place, echo.start());
            }
        }
        files.insert("services.yaml".to_owned(), services);
        let files: Vec<(&str, &str)> =
            files.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
        Self { agents: Agents::over(&files, &["--workers", "1"]), records }
    }

    /// As `curl -H "Host: HOST" http://ADDRESS/PATH` asks.
    fn curl(&self, host: &str, path: &str, more: &str) -> Reply {
        let mut client = Client::connect(self.agents.http);
        client.send(request("GET", host, path, more));
        client.reply()
    }

    /// As `curl https://HOST/PATH` does, whoever the certificate is of.
    fn curl_tls(&self, host: &str, path: &str, more: &str) -> (Reply, String) {
        let mut tls = Tls::connect(self.agents.https, host);
        let name = tls.common_name();
        (ask(&mut tls.0, request("GET", host, path, more).as_bytes(), false).expect("an answer"), name)
    }
}

fn request(method: &str, host: &str, path: &str, more: &str) -> String {
    format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: curl/8.5.0\r\nAccept: */*\r\n{more}\r\n")
}

fn slice(service: &str, place: usize, endpoint: SocketAddr) -> String {
    let name = format!("{service}-{place}");
    Slice { name: &name, service, port_name: "", protocol: "TCP", endpoints: &[endpoint], weight: 1 }.yaml()
}

fn example(phase: &str) -> String {
    let file = lb_tests::workspace().join("deploy/examples").join(format!("{phase}.yaml"));
    std::fs::read_to_string(file).expect("an example")
}

/// Who answered, and the line that he was asked by.
fn answer(reply: &Reply) -> (u16, String, String) {
    let backend = reply.header("x-backend").unwrap_or("nobody").to_owned();
    (reply.status, backend, reply.text().lines().next().unwrap_or_default().to_owned())
}

#[test]
fn phases_2_and_3_lead_paths_to_services() {
    let guide = Guide::start(&["phase-2", "phase-3"], "");
    let mut replicas: Vec<String> =
        (0..3).map(|_| answer(&guide.curl("api.example.com", "/predict", "")).1).collect();
    replicas.sort_unstable();

    assert_eq!(replicas, ["ml-api-service-1", "ml-api-service-2", "ml-api-service-3"]);
    let reply = guide.curl("api.example.com", "/predict", "");
    assert_eq!(answer(&reply).2, "GET /predict HTTP/1.1", "nothing is rewritten");
    assert_eq!(guide.curl("api.example.com", "/", "").status, 200);
    for (path, service, expected) in [
        ("/api/predict", "ml-api-service", "/predict"),
        ("/mlflow", "mlflow-service", "/"),
        ("/mlflow/static/a.js?v=1", "mlflow-service", "/static/a.js?v=1"),
        ("/tensorboard", "tensorboard-service", "/"),
        ("/metrics", "prometheus-service", "/"),
        ("/METRICS/graph", "prometheus-service", "/graph"),
    ] {
        let (status, backend, line) = answer(&guide.curl("ml.example.com", path, ""));

        assert!(status == 200 && backend.starts_with(service), "{path}: {status} from {backend}");
        assert_eq!(line, format!("GET {expected} HTTP/1.1"), "{path}");
    }
    assert_eq!(guide.curl("ml.example.com", "/", "").status, 404);
    assert_eq!(guide.curl("nobody.example.com", "/", "").status, 404);
}

#[test]
fn phase_4_has_tls_and_phase_5_canaries() {
    let secret = Authority::new("Let's pretend").and_then(|it| it.secret("api-tls-cert", "api.example.com"));
    let guide = Guide::start(&["phase-4", "phase-5"], &secret.expect("a Secret"));

    let plain = guide.curl("api.example.com", "/health", "");
    assert_eq!((plain.status, plain.header("location")), (308, Some("https://api.example.com/health")));
    let (reply, name) = guide.curl_tls("api.example.com", "/health", "");
    assert_eq!((reply.status, name.as_str()), (200, "api.example.com"));
    assert_eq!(reply.header("strict-transport-security"), Some("max-age=31536000; includeSubDomains"));
    for _ in 0..4 {
        let (_, primary, _) = answer(&guide.curl_tls("api.example.com", "/predict", "").0);
        let (_, canary, _) = answer(&guide.curl_tls("api.example.com", "/predict", "X-Canary: true\r\n").0);
        assert!(
            primary.starts_with("ml-api-service-") && canary == "ml-api-v2-service-1",
            "{primary} {canary}"
        );
    }
    const ASKED: usize = 400;
    let backends = (0..ASKED).map(|_| answer(&guide.curl("weighted.example.com", "/", "")).1);
    let canaries = backends.filter(|backend| backend == "ml-api-v2-service-1").count();
    // A fifth, give or take five standard deviations.
    assert!((40..=120).contains(&canaries), "{canaries} of {ASKED}");
}

#[test]
fn phase_6_has_limits_timeouts_and_sessions() {
    let guide = Guide::start(&["phase-6"], "");
    let mut upload = Client::connect(guide.agents.http);
    let length = 2 << 20;
    upload.send(request("POST", "limits.example.com", "/", &format!("Content-Length: {length}\r\n")));
    upload.send(vec![b'x'; length]);
    assert_eq!(upload.reply().status, 200);
    let mut upload = Client::connect(guide.agents.http);
    upload.send(request("POST", "limits.example.com", "/", "Content-Length: 52428801\r\n"));
    assert_eq!(upload.reply().status, 413);
    let held: Vec<Client> = (0..10)
        .map(|_| {
            let mut client = Client::connect(guide.agents.http);
            client.send(request("GET", "limits.example.com", "/held", "Reply-Late: 1\r\n"));
            client
        })
        .collect();
    let eleventh = || (guide.curl("limits.example.com", "/", "").status == 503).then_some(());
    eventually(DEADLINE, eleventh).expect("ten at once are enough");
    guide.records.release();
    held.into_iter().for_each(|mut client| assert_eq!(client.reply().status, 200));
    let more = || (guide.curl("limits.example.com", "/", "").status == 200).then_some(());
    eventually(DEADLINE, more).expect("the ten have gone");

    assert_eq!(guide.curl("timeouts.example.com", "/", "").status, 200);

    let first = guide.curl("sticky.example.com", "/", "");
    let cookie = first.header("set-cookie").expect("a cookie").to_owned();
    assert!(cookie.starts_with("ml-api-affinity=") && cookie.contains("Max-Age=3600"), "{cookie}");
    let cookie = format!("Cookie: {}\r\n", cookie.split(';').next().expect("a value"));
    for _ in 0..6 {
        let reply = guide.curl("sticky.example.com", "/", &cookie);
        assert_eq!(
            (reply.header("x-backend"), reply.header("set-cookie")),
            (first.header("x-backend"), None)
        );
    }
}

/// As `kubectl create secret generic basic-auth --from-file=auth` makes it, of what `htpasswd -c auth admin` has
/// written for the password `secret`.
const PASSWORDS: &str = "apiVersion: v1\nkind: Secret\nmetadata:\n  name: basic-auth\nstringData:\n  \
                         auth: \"admin:$apr1$penstock$OoNaxeLou02a21CPjMo4R1\\n\"\n";

#[test]
fn phase_7_asks_who_it_is() {
    let guide = Guide::start(&["phase-7"], PASSWORDS);

    let nobody = guide.curl("password.example.com", "/", "");
    let realm = "Basic realm=\"ML API - Authentication Required\"";
    assert_eq!((nobody.status, nobody.header("www-authenticate")), (401, Some(realm)));
    let admin = guide.curl("password.example.com", "/", "Authorization: Basic YWRtaW46c2VjcmV0\r\n");
    assert_eq!(admin.status, 200);
    let wrong = guide.curl("password.example.com", "/", "Authorization: Basic YWRtaW46d3Jvbmc=\r\n");
    assert_eq!(wrong.status, 401);
    // Nobody has the service at hand that is asked there: nobody enters.
    assert_eq!(guide.curl("oauth.example.com", "/", "").status, 500);
    assert_eq!(guide.curl("office.example.com", "/", "").status, 403);

    let mut preflight = Client::connect(guide.agents.http);
    preflight.send(request("OPTIONS", "cors.example.com", "/", "Origin: https://frontend.example.com\r\n"));
    let preflight = preflight.reply();
    let header = |name: &str| preflight.header(&format!("access-control-allow-{name}"));
    assert_eq!((preflight.status, header("origin")), (204, Some("https://frontend.example.com")));
    assert_eq!(header("methods"), Some("GET, POST, OPTIONS"));
    assert_eq!(header("headers"), Some("Authorization, Content-Type"));
    let other = guide.curl("cors.example.com", "/", "Origin: https://other.example.com\r\n");
    assert_eq!((other.status, other.header("access-control-allow-origin")), (200, None));
}

#[test]
fn phase_8_logs_as_it_says_and_production_asks_for_health() {
    let guide = Guide::start(&["phase-2", "phase-8", "production"], "");
    assert_eq!(guide.curl("api.example.com", "/predict?x=1", "Referer: http://a/\r\n").status, 200);

    // As `kubectl logs … | grep api.example.com` would look for it, in the only place where a pod logs.
    let line = || {
        let log = guide.agents.read("out");
        log.lines().find(|line| line.contains("GET /predict?x=1 HTTP/1.1")).map(str::to_owned)
    };
    let line = eventually(DEADLINE, line).expect("a line on standard output");
    let fields: Vec<&str> = line.split('"').collect();
    assert!(fields[0].starts_with("127.0.0.1 - - [") && fields[0].ends_with("] "), "{line}");
    assert_eq!(fields[1], "GET /predict?x=1 HTTP/1.1");
    assert!(fields[2].starts_with(" 200 "), "{line}");
    assert_eq!((fields[3], fields[5]), ("http://a/", "curl/8.5.0"));
    let rest: Vec<&str> = fields[6].split_whitespace().collect();
    assert_eq!((rest.len(), rest[2], rest[6]), (7, "[default-ml-api-service-80]", "200"), "{line}");

    let asked = || guide.records.any(|request| request.starts_with("GET /health HTTP/1.1\r\n")).then_some(());
    eventually(DEADLINE, asked).expect("asked for its health");
    assert_eq!(guide.curl("health.example.com", "/", "").status, 200);
    let metrics = guide.agents.admin("/metrics").text();
    assert!(metrics.contains("nginx_ingress_controller_requests{"), "{metrics}");
}

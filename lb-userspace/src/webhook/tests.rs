use std::sync::Arc;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsConnector;

use super::*;

/// Refuses what is called `bad`.
struct ByName;

impl Reviewer for ByName {
    fn review(&self, ingress: Value) -> Review {
        match ingress["metadata"]["name"].as_str() {
            Some("bad") => Review::refuse("it is bad"),
            _ => Review { refused: Vec::new(), warnings: vec!["mind the gap".to_owned()] },
        }
    }
}

/// A webhook on a port of its own, and what its clients trust.
struct Rig {
    addr: SocketAddr,
    trust: String,
    counts: Arc<Counts>,
    identity: watch::Sender<Identity>,
    _stop: oneshot::Sender<()>,
}

const NAME: &str = "admission.ingress-nginx.svc";

/// A certificate that is its own authority, and its key, as PEM.
struct Made {
    certificate: String,
    key: String,
}

fn made() -> Made {
    let key = rcgen::KeyPair::generate().expect("a key");
    let params = rcgen::CertificateParams::new(vec![NAME.to_owned()]).expect("a name");
    let certificate = params.self_signed(&key).expect("signed").pem();
    Made { certificate, key: key.serialize_pem() }
}

fn identity(made: &Made) -> Identity {
    Identity::new(made.certificate.as_bytes(), made.key.as_bytes()).expect("usable")
}

fn rig() -> Rig {
    rig_with(Force::Refuse)
}

fn rig_with(force: Force) -> Rig {
    let first = made();
    let listener = bind("127.0.0.1:0".parse().expect("address")).expect("bound");
    let addr = listener.local_addr().expect("bound");
    let (stop, stopped) = oneshot::channel();
    let (sender, receiver) = watch::channel(identity(&first));
    let counts = Arc::new(Counts::default());
    let listener = TcpListener::from_std(listener).expect("a listener");
    let answering = Answering { reviewer: Arc::new(ByName), force, counts: Arc::clone(&counts) };
    tokio::spawn(serve(listener, receiver, answering, stopped));
    Rig { addr, trust: first.certificate, counts, identity: sender, _stop: stop }
}

impl Rig {
    /// A connection of a client that trusts this authority.
    async fn connect(&self, trust: &str) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
        use rustls::pki_types::CertificateDer;
        use rustls::pki_types::pem::PemObject;
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(trust.as_bytes()).expect("PEM")).expect("an authority");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let stream = TcpStream::connect(self.addr).await?;
        let name = rustls::pki_types::ServerName::try_from(NAME).expect("a name");
        TlsConnector::from(Arc::new(config)).connect(name, stream).await
    }

    /// Status and body, as it gets them.
    async fn ask(&self, trust: &str, head: &str, body: &[u8]) -> std::io::Result<(u16, String)> {
        let mut stream = self.connect(trust).await?;
        let head = format!(
            "{head} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).await?;
        // It may answer before it has everything.
        let _ = stream.write_all(body).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let status = answer.split(' ').nth(1).and_then(|word| word.parse().ok()).unwrap_or_default();
        Ok((status, answer.split_once("\r\n\r\n").unwrap_or_default().1.to_owned()))
    }

    async fn review(&self, name: &str) -> Value {
        let question = json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {
            "uid": "u-1", "kind": {"group": "networking.k8s.io", "version": "v1", "kind": "Ingress"},
            "namespace": "shop", "name": name, "operation": "CREATE", "object": {"metadata": {"name": name}},
        }});
        let head = format!("POST {PATH}?timeout=10s");
        let (status, body) =
            self.ask(&self.trust, &head, question.to_string().as_bytes()).await.expect("answered");
        assert_eq!(status, 200, "{body}");
        serde_json::from_str(&body).expect("JSON")
    }
}

#[tokio::test]
async fn answers_what_the_reviewer_says_and_counts_it() {
    let rig = rig();

    let good = rig.review("good").await;
    let bad = rig.review("bad").await;

    assert_eq!(good["response"], json!({"uid": "u-1", "allowed": true, "warnings": ["mind the gap"]}));
    assert_eq!(bad["response"], json!({"uid": "u-1", "allowed": false, "status": {"message": "it is bad"}}));
    let metrics = rig.counts.metrics();
    let samples = |name: &str| {
        let metric = metrics.iter().find(|metric| metric.name.ends_with(name)).expect(name);
        metric.samples.iter().map(|sample| (sample.labels[1].1.clone(), sample.value)).collect::<Vec<_>>()
    };
    assert_eq!(samples("check_success"), [("good".to_owned(), 1.0)]);
    assert_eq!(samples("check_errors"), [("bad".to_owned(), 1.0)]);
    assert_eq!(metrics.len(), 8);
}

#[tokio::test]
async fn who_only_warns_lets_in_what_would_be_refused_and_counts_it() {
    let rig = rig_with(Force::Warn);

    let (good, bad) = (rig.review("good").await, rig.review("bad").await);

    assert_eq!(good["response"], json!({"uid": "u-1", "allowed": true, "warnings": ["mind the gap"]}));
    assert_eq!(
        bad["response"],
        json!({"uid": "u-1", "allowed": true, "warnings": ["would be refused: it is bad"]})
    );
    let metrics = rig.counts.metrics();
    let errors = metrics.iter().find(|metric| metric.name.ends_with("check_errors")).expect("counted");
    assert_eq!(errors.samples.len(), 1);
}

#[tokio::test]
async fn a_question_of_more_than_nine_megabytes_is_answered_413() {
    let rig = rig();
    let head = format!("POST {PATH}");

    let (at_once, _) = rig.ask(&rig.trust, &head, &vec![b' '; MAX_BYTES + 1]).await.expect("answered");
    let (within, _) = rig.ask(&rig.trust, &head, &vec![b' '; MAX_BYTES]).await.expect("answered");

    // The other is no JSON.
    assert_eq!((at_once, within), (413, 400));
}

#[tokio::test]
async fn whoever_sends_his_question_slowly_keeps_nobody_waiting() {
    let rig = rig();
    let mut slow = Vec::new();
    // More than there are connections at once.
    for number in 0..100 {
        let length = if number % 2 == 0 { 300 } else { MAX_BYTES };
        let mut stream = rig.connect(&rig.trust).await.expect("connected");
        let head = format!("POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n{{");
        stream.write_all(head.as_bytes()).await.expect("sent");
        slow.push(stream);
    }

    let short = rig.review("good").await;
    let long = rig.ask(&rig.trust, &format!("POST {PATH}"), &vec![b' '; 1 << 20]).await.expect("answered");

    assert_eq!(short["response"]["allowed"], true);
    // It is no JSON, but was read to the end.
    assert_eq!(long.0, 400, "{}", long.1);
}

#[tokio::test]
async fn who_says_that_much_will_come_keeps_no_long_question_waiting() {
    let rig = rig();
    let mut slow = Vec::new();
    for _ in 0..60 {
        let mut stream = rig.connect(&rig.trust).await.expect("connected");
        let head = format!("POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-length: {MAX_BYTES}\r\n\r\n");
        stream.write_all(head.as_bytes()).await.expect("sent");
        // One byte more than is read without a place.
        stream.write_all(&vec![b' '; (64 << 10) + 1]).await.expect("sent");
        slow.push(stream);
    }

    let long = rig.ask(&rig.trust, &format!("POST {PATH}"), &vec![b' '; 1 << 20]).await.expect("answered");

    // It is no JSON, but was read to the end.
    assert_eq!(long.0, 400, "{}", long.1);
}

#[tokio::test]
async fn other_paths_methods_and_nonsense_are_refused() {
    let rig = rig();
    let cases = [("POST /", 404), (&format!("GET {PATH}"), 405), (&format!("POST {PATH}"), 400)];
    for (head, expected) in cases {
        let (status, body) = rig.ask(&rig.trust, head, b"{}").await.expect("answered");

        assert_eq!(status, expected, "case {head}: {body}");
    }
}

#[tokio::test]
async fn another_certificate_is_shown_from_the_next_connection_on() {
    let rig = rig();
    let next = made();
    rig.identity.send_replace(identity(&next));

    let (status, _) = rig.ask(&next.certificate, "POST /", b"").await.expect("trusted");
    let old = rig.ask(&rig.trust, "POST /", b"").await;

    assert_eq!(status, 404);
    assert!(old.is_err(), "the old authority vouches for it, too");
}

#[test]
fn a_certificate_with_the_key_of_another_is_refused() {
    let (one, other) = (made(), made());

    let mixed = Identity::new(one.certificate.as_bytes(), other.key.as_bytes());

    assert!(matches!(mixed, Err(Error::Unusable(_))), "{mixed:?}");
    assert!(Identity::new(b"", b"").is_err());
}

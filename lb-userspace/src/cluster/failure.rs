//! Why the API server did not do what it was asked, in words that metrics and people share.

use std::error::Error as _;
use std::time::Duration;

use kube::core::Status;

/// One failure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) why: Why,
    pub(super) message: String,
}

/// Kinds of failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Why {
    /// We may not (403).
    Refused,
    /// It does not know who we are (401).
    Unauthorized,
    /// There is no such kind or object (404).
    Missing,
    /// Somebody else was faster (409).
    Conflict,
    /// What we have seen is too old to go on from (410).
    Gone,
    /// It has too much to do (429).
    Throttled,
    /// It makes no sense to it (any other 4xx).
    Rejected,
    /// It is in trouble itself (5xx), or says something else.
    Server,
    /// No connection.
    Unreachable,
    /// A connection to somebody whose certificate nobody vouches for.
    Untrusted,
    /// No answer in time.
    Slow,
    /// A watch without a sign of life.
    Silent,
    /// A connection that broke.
    Broken,
    /// An answer that says nothing to us.
    Unreadable,
}

impl Why {
    /// As a label of metrics.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Unauthorized => "unauthorized",
            Self::Missing => "missing",
            Self::Conflict => "conflict",
            Self::Gone => "gone",
            Self::Throttled => "throttled",
            Self::Rejected => "rejected",
            Self::Server => "server",
            Self::Unreachable => "unreachable",
            Self::Untrusted => "untrusted",
            Self::Slow => "slow",
            Self::Silent => "silent",
            Self::Broken => "broken",
            Self::Unreadable => "unreadable",
        }
    }
}

/// What a server that has too much to do asks for as a rule; the header that says so does not come here.
const REST: Duration = Duration::from_secs(1);

/// How the TLS library begins what it says of a certificate.
const UNTRUSTED: &str = "invalid peer certificate";

impl Failure {
    pub(super) fn new(why: Why, message: impl Into<String>) -> Self {
        Self { why, message: message.into() }
    }

    /// To be waited beside the pause before it is asked again.
    pub(super) fn rest(&self) -> Duration {
        if self.why == Why::Throttled { REST } else { Duration::ZERO }
    }

    /// What the server says.
    pub(super) fn said(status: &Status) -> Self {
        let why = match status.code {
            401 => Why::Unauthorized,
            403 => Why::Refused,
            404 => Why::Missing,
            409 => Why::Conflict,
            410 => Why::Gone,
            429 => Why::Throttled,
            400..500 => Why::Rejected,
            _ => Why::Server,
        };
        let message = if status.message.is_empty() { status.reason.clone() } else { status.message.clone() };
        Self { why, message: format!("{} ({})", message, status.code) }
    }

    pub(super) fn of(error: &kube::Error) -> Self {
        let why = match error {
            kube::Error::Api(status) => return Self::said(status),
            kube::Error::Service(_) | kube::Error::HyperError(_) => Why::Unreachable,
            kube::Error::Auth(_) => Why::Unauthorized,
            kube::Error::ReadEvents(_) => Why::Broken,
            _ => Why::Unreadable,
        };
        // The innermost cause is what a person can act on.
        let mut message = error.to_string();
        let mut cause = error.source();
        while let Some(inner) = cause {
            message = inner.to_string();
            if message.starts_with(UNTRUSTED) {
                let fix = "is its authority the one that we were given (by --certificate-authority, the kubeconfig or the pod), and its name the server's?";
                return Self { why: Why::Untrusted, message: format!("{message}; {fix}") };
            }
            cause = inner.source();
        }
        Self { why, message }
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::path::Path;
    use std::sync::Arc;

    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    use rustls::ServerConfig;
    use rustls::pki_types::PrivateKeyDer;
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;

    use super::*;
    use crate::cluster::{Access, Cluster};

    /// An authority and its certificate as PEM.
    fn authority() -> (Issuer<'static, KeyPair>, String) {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).expect("signed").pem();
        (Issuer::new(params, key), pem)
    }

    /// A server with a certificate for this name, signed by that authority.
    async fn server(name: &str, issuer: &Issuer<'static, KeyPair>) -> SocketAddr {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
        let certificate = params.signed_by(&key, issuer).expect("signed").der().clone();
        let key = PrivateKeyDer::try_from(key.serialize_der()).expect("a key");
        let config =
            ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
                .with_safe_default_protocol_versions()
                .expect("versions")
                .with_no_client_auth()
                .with_single_cert(vec![certificate], key)
                .expect("a pair");
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("bind");
        let addr = listener.local_addr().expect("bound");
        let acceptor = TlsAcceptor::from(Arc::new(config));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                // Who does not trust it hangs up.
                let _ = acceptor.accept(stream).await;
            }
        });
        addr
    }

    /// What comes of asking the server there, where this authority is trusted.
    async fn asked(addr: SocketAddr, authority: &Path) -> Failure {
        let access = Access {
            server: Some(format!("https://{addr}")),
            authority: Some(authority.to_owned()),
            ..Access::default()
        };
        let cluster = Cluster::connect(&access).await.expect("a client");
        Failure::of(&cluster.client.apiserver_version().await.expect_err("it gives no answer"))
    }

    #[test]
    fn trouble_of_the_server_is_another_thing_than_a_question_that_it_does_not_take() {
        let why = |code| Failure::said(&Status { code, ..Status::default() }).why;

        assert_eq!([500, 503, 504].map(why), [Why::Server; 3]);
        assert_eq!([400, 413, 422].map(why), [Why::Rejected; 3]);
        let rest = |code| Failure::said(&Status { code, ..Status::default() }).rest();
        assert_eq!([429, 503].map(rest), [REST, Duration::ZERO]);
    }

    #[tokio::test]
    async fn a_certificate_that_is_not_trusted_is_told_with_what_to_do() {
        let ((ours, pem), (theirs, _)) = (authority(), authority());
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), pem).expect("writable");

        for (case, name, issuer) in
            [("another authority", "127.0.0.1", &theirs), ("another name", "api.example.com", &ours)]
        {
            let Failure { why, message } = asked(server(name, issuer).await, file.path()).await;

            assert_eq!(why, Why::Untrusted, "{case}: {message}");
            assert!(message.contains("--certificate-authority"), "{case}: {message}");
        }
    }

    #[tokio::test]
    async fn a_server_that_is_not_there_is_unreachable_whatever_its_certificate() {
        let (_, pem) = authority();
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), pem).expect("writable");
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("bind");
        let addr = listener.local_addr().expect("bound");
        drop(listener);

        let Failure { why, message } = asked(addr, file.path()).await;

        assert_eq!(why, Why::Unreachable, "{message}");
        assert!(message.contains("refused") && !message.contains("--certificate-authority"), "{message}");
    }
}

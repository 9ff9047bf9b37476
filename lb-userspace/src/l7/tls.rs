//! TLS towards clients: certificates by SNI, swapped under running connections.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use rcgen::{CertificateParams, DnType, KeyPair};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::Error;
use crate::model::l7::{Certificate, HostMatch, L7};

/// Name ingress-nginx's own stand-in certificate carries; scripts look for it.
const FAKE_NAME: &str = "Kubernetes Ingress Controller Fake Certificate";

/// The TLS side of every worker.
pub(super) struct Tls {
    pub(super) config: Arc<ServerConfig>,
    certificates: Arc<Certificates>,
}

impl Tls {
    /// Ready to serve with a generated certificate until [`Tls::publish`].
    pub(super) fn new() -> Result<Self, Error> {
        let failed = |error: &dyn std::fmt::Display| Error::Tls(error.to_string());
        let fake = fake_certificate()?;
        let current = RwLock::new(Arc::new(BySni { default: Arc::clone(&fake), ..BySni::empty(&fake) }));
        let certificates = Arc::new(Certificates { fake, current });
        let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|e| failed(&e))?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(&certificates) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        config.ticketer = aws_lc_rs::Ticketer::new().map_err(|e| failed(&e))?;
        Ok(Self { config: Arc::new(config), certificates })
    }

    /// Serves the certificates of a snapshot from the next handshake on. A certificate that rustls
    /// does not take (the translation checked it, so hardly ever) leaves its hosts to the default.
    pub(super) fn publish(&self, l7: &L7) {
        let before = self.certificates.current();
        let mut parsed = Parsed { before: &before, made: HashMap::new() };
        let mut next = BySni::empty(&self.certificates.fake);
        if let Some(key) = l7.default_certificate.as_ref().and_then(|c| parsed.key(c)) {
            next.default = key;
        }
        for (host, certificate) in &l7.certificates {
            let Some(key) = parsed.key(certificate) else { continue };
            match host {
                HostMatch::Exact(name) => next.exact.insert(name.clone(), key),
                HostMatch::Wildcard(suffix) => next.wildcard.insert(suffix.clone(), key),
                HostMatch::Any => None,
            };
        }
        next.parsed = parsed.made;
        *self.certificates.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(next);
    }
}

/// Keys of the snapshot before are taken over, so a change of one certificate parses one.
struct Parsed<'b> {
    before: &'b BySni,
    made: HashMap<Vec<u8>, (Arc<Certificate>, Arc<CertifiedKey>)>,
}

impl Parsed<'_> {
    fn key(&mut self, certificate: &Arc<Certificate>) -> Option<Arc<CertifiedKey>> {
        let same = |known: &&(Arc<Certificate>, _)| *known.0 == **certificate;
        let id = &certificate.chain_pem;
        if let Some((_, key)) = self.made.get(id).filter(same) {
            return Some(Arc::clone(key));
        }
        let key = match self.before.parsed.get(id).filter(same) {
            Some((_, key)) => Arc::clone(key),
            None => match certified_key(certificate) {
                Ok(key) => Arc::new(key),
                Err(error) => {
                    tracing::warn!(secret = %certificate.secret, %error, "certificate refused by the tls library");
                    return None;
                }
            },
        };
        self.made.insert(id.clone(), (Arc::clone(certificate), Arc::clone(&key)));
        Some(key)
    }
}

fn certified_key(certificate: &Certificate) -> Result<CertifiedKey, String> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&certificate.chain_pem)
        .collect::<Result<_, _>>()
        .map_err(|error| error.to_string())?;
    let key = PrivateKeyDer::from_pem_slice(&certificate.key_pem).map_err(|error| error.to_string())?;
    CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider()).map_err(|error| error.to_string())
}

/// Answers each ClientHello from the snapshot of the moment.
struct Certificates {
    fake: Arc<CertifiedKey>,
    current: RwLock<Arc<BySni>>,
}

impl std::fmt::Debug for Certificates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Certificates(..)")
    }
}

struct BySni {
    exact: HashMap<String, Arc<CertifiedKey>>,
    /// By the suffix after `*.`.
    wildcard: HashMap<String, Arc<CertifiedKey>>,
    default: Arc<CertifiedKey>,
    parsed: HashMap<Vec<u8>, (Arc<Certificate>, Arc<CertifiedKey>)>,
}

impl BySni {
    fn empty(default: &Arc<CertifiedKey>) -> Self {
        Self {
            exact: HashMap::new(),
            wildcard: HashMap::new(),
            default: Arc::clone(default),
            parsed: HashMap::new(),
        }
    }

    /// Exact name, then a wildcard one label deep, then the default.
    fn find(&self, sni: Option<&str>) -> &Arc<CertifiedKey> {
        let Some(name) = sni.map(|name| name.trim_end_matches('.').to_ascii_lowercase()) else {
            return &self.default;
        };
        let suffix = name.split_once('.').map(|(_, suffix)| suffix);
        self.exact
            .get(&name)
            .or_else(|| suffix.and_then(|suffix| self.wildcard.get(suffix)))
            .unwrap_or(&self.default)
    }
}

impl Certificates {
    fn current(&self) -> Arc<BySni> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(self.current().find(hello.server_name())))
    }
}

fn fake_certificate() -> Result<Arc<CertifiedKey>, Error> {
    let failed = |error: &dyn std::fmt::Display| Error::Tls(error.to_string());
    let key = KeyPair::generate().map_err(|e| failed(&e))?;
    let mut params = CertificateParams::new(vec!["ingress.local".to_owned()]).map_err(|e| failed(&e))?;
    params.distinguished_name.push(DnType::CommonName, FAKE_NAME);
    params.distinguished_name.push(DnType::OrganizationName, "Acme Co");
    let certificate = params.self_signed(&key).map_err(|e| failed(&e))?;
    let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(|e| failed(&e))?;
    let chain = vec![certificate.der().clone()];
    CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider()).map(Arc::new).map_err(|e| failed(&e))
}

//! TLS towards upstreams: what nginx would accept, unless `proxy-ssl-verify` says what must be proven.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::sign::SingleCertAndKey;
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme, SupportedProtocolVersion};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::super::authorities::{Authorities, Naming, Purpose, Shown};
use super::super::keys::{self, refused};
use super::super::route::TlsEntry;
use crate::model::l7::TlsVersions;
use crate::model::upstream::{UpstreamTls, Verify};

/// A way to speak TLS that locations share, with its session cache.
#[derive(Debug)]
pub(in crate::l7) struct Client {
    /// Never given to another one: idle connections are kept by it.
    pub(in crate::l7) id: u64,
    /// `None`: what it needs could not be read, and it fails.
    pub(in crate::l7) config: Option<Arc<ClientConfig>>,
    name: Option<ServerName<'static>>,
}

impl Client {
    /// The name of a session with this endpoint: what is sent as SNI, or else, unsent, its address,
    /// so that each endpoint is offered its own tickets.
    pub(in crate::l7) fn name(&self, endpoint: SocketAddr) -> ServerName<'static> {
        self.name.clone().unwrap_or_else(|| ServerName::IpAddress(endpoint.ip().into()))
    }
}

/// Clients of the newest router; those that go on being asked for keep their sessions.
#[derive(Default)]
pub(in crate::l7) struct Clients {
    known: HashMap<TlsEntry, Arc<Client>>,
    last_id: u64,
}

impl Clients {
    /// One client for each entry, at its place.
    pub(in crate::l7) fn of(&mut self, entries: &[Option<TlsEntry>]) -> Vec<Option<Arc<Client>>> {
        let mut before = std::mem::take(&mut self.known);
        let mut clients = Vec::with_capacity(entries.len());
        for entry in entries {
            let Some(entry) = entry else {
                clients.push(None);
                continue;
            };
            let client = before.remove(entry).unwrap_or_else(|| {
                self.last_id += 1;
                Arc::new(client(self.last_id, entry))
            });
            self.known.insert(entry.clone(), Arc::clone(&client));
            clients.push(Some(client));
        }
        clients
    }
}

pub(super) fn client(id: u64, entry: &TlsEntry) -> Client {
    let TlsEntry { tls, h2 } = entry;
    let name = tls.server_name.as_ref().and_then(|name| ServerName::try_from(name.clone()).ok());
    let config = match config(tls, *h2) {
        Ok(config) => Some(Arc::new(config)),
        Err(error) => {
            tracing::warn!(%error, "upstream tls cannot be set up; its requests answer 502");
            None
        }
    };
    Client { id, config, name }
}

/// TLS by which anybody will do who is sent their name; `None`: there is none.
pub(in crate::l7) fn unverified() -> Option<Arc<ClientConfig>> {
    let tls = UpstreamTls { server_name: Some(String::new()), ..UpstreamTls::default() };
    config(&tls, false).ok().map(Arc::new)
}

fn config(tls: &UpstreamTls, h2: bool) -> Result<ClientConfig, Box<dyn std::error::Error>> {
    let UpstreamTls { identity, verify, server_name, versions } = tls;
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier =
        Arc::new(Verifier { must: verify.as_ref().map(Must::new).transpose()?, provider: provider.clone() });
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(offered(*versions))?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match identity {
        Some(identity) => {
            let key = keys::certified(identity)?;
            builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(key)))
        }
        None => builder.with_no_client_auth(),
    };
    config.enable_sni = server_name.is_some();
    config.alpn_protocols = vec![if h2 { b"h2".to_vec() } else { b"http/1.1".to_vec() }];
    Ok(config)
}

fn offered(versions: TlsVersions) -> &'static [&'static SupportedProtocolVersion] {
    static ONLY_12: [&SupportedProtocolVersion; 1] = [&rustls::version::TLS12];
    static ONLY_13: [&SupportedProtocolVersion; 1] = [&rustls::version::TLS13];
    match versions {
        TlsVersions::Both => rustls::ALL_VERSIONS,
        TlsVersions::Tls12 => &ONLY_12,
        TlsVersions::Tls13 => &ONLY_13,
    }
}

/// Checks what has to be checked, which by default is nothing but that the upstream holds the key
/// of the certificate it shows.
#[derive(Debug)]
struct Verifier {
    must: Option<Must>,
    provider: Arc<CryptoProvider>,
}

/// [`Verify`], parsed.
#[derive(Debug)]
struct Must {
    authorities: Authorities,
    name: ServerName<'static>,
    /// The name as it is written.
    text: String,
    depth: usize,
}

impl Must {
    fn new(verify: &Verify) -> Result<Self, Box<dyn std::error::Error>> {
        let Verify { roots_pem, name, depth } = verify;
        let depth = usize::try_from(*depth).unwrap_or(usize::MAX);
        let authorities = Authorities::new(roots_pem, &[])?;
        Ok(Self { authorities, name: ServerName::try_from(name.clone())?, text: name.clone(), depth })
    }

    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        provider: &CryptoProvider,
    ) -> Result<(), webpki::Error> {
        let shown = Shown {
            leaf,
            intermediates,
            purpose: Purpose::Server,
            naming: self.naming(leaf)?,
            depth: self.depth,
            now,
            algorithms: provider.signature_verification_algorithms,
        };
        self.authorities.verify(&shown)
    }

    /// By which of its names a certificate is what it must be.
    fn naming(&self, leaf: &CertificateDer<'_>) -> Result<Naming, webpki::Error> {
        let certificate = webpki::EndEntityCert::try_from(leaf);
        match certificate.and_then(|known| known.verify_is_valid_for_subject_name(&self.name)) {
            Ok(()) => Ok(Naming::Alternative),
            Err(_) if has_common_name(leaf, &self.text) => Ok(Naming::Common),
            Err(error) => Err(error),
        }
    }
}

/// As OpenSSL: the common names of a certificate count where it has no DNS name, not even one that cannot be read.
fn has_common_name(leaf: &CertificateDer<'_>, name: &str) -> bool {
    let Ok((_, leaf)) = X509Certificate::from_der(leaf) else { return false };
    let is_dns = |name: &GeneralName<'_>| matches!(name, GeneralName::DNSName(_) | GeneralName::Invalid(..));
    let counts = match leaf.subject_alternative_name() {
        Ok(names) => names.is_none_or(|names| !names.value.general_names.iter().any(is_dns)),
        Err(_) => false,
    };
    counts
        && leaf.subject().iter_common_name().any(|known| known.as_str().is_ok_and(|known| is_of(known, name)))
}

/// Whether a name in a certificate is this one, or one for all hosts of its domain.
fn is_of(known: &str, name: &str) -> bool {
    if known.eq_ignore_ascii_case(name) {
        return true;
    }
    let domain = known.strip_prefix("*.").filter(|domain| domain.contains('.'));
    let is_address = name.parse::<IpAddr>().is_ok();
    match (domain, name.split_once('.')) {
        (Some(domain), Some((host, rest))) if !is_address && !host.is_empty() => {
            domain.eq_ignore_ascii_case(rest)
        }
        _ => false,
    }
}

impl Verifier {
    /// Where nothing vouches for a key, a signature by it proves little: one that is too short to be verified is
    /// taken as it is, as nginx would take it.
    fn is_excused(&self, leaf: &CertificateDer<'_>) -> bool {
        self.must.is_none() && keys::is_short_rsa(leaf)
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if let Some(must) = &self.must {
            must.verify(leaf, intermediates, now, &self.provider).map_err(refused)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        if self.is_excused(certificate) {
            return Ok(HandshakeSignatureValid::assertion());
        }
        keys::verify_12(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        if self.is_excused(certificate) {
            return Ok(HandshakeSignatureValid::assertion());
        }
        keys::verify_13(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn common_names_are_compared_as_names_of_hosts() {
        let cases = [
            ("up.example", "up.example", true),
            ("UP.example", "up.EXAMPLE", true),
            ("up.example", "down.example", false),
            ("up.example\0.evil", "up.example", false),
            ("*.app.example", "up.app.example", true),
            ("*.app.example", "a.up.app.example", false),
            ("*.app.example", "app.example", false),
            ("*.app.example", ".app.example", false),
            ("*.example", "up.example", false),
            ("*", "up", false),
            ("u*.app.example", "up.app.example", false),
            ("10.0.0.1", "10.0.0.1", true),
            ("*.0.0.1", "10.0.0.1", false),
            ("", "up.example", false),
        ];
        for (known, name, expected) in cases {
            assert_eq!(is_of(known, name), expected, "{known:?} of {name:?}");
        }
    }
}

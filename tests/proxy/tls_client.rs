//! TLS clients of the tests: they trust everybody, resume sessions and show certificates.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use lb_tests::tls::AnyCertificate;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, ClientConnection, HandshakeKind, StreamOwned, SupportedProtocolVersion};

use crate::rig::DEADLINE;

/// A client that trusts everybody, because the test looks at the certificate itself.
pub struct Tls(pub StreamOwned<ClientConnection, TcpStream>);

/// How a client shakes hands; one that is used again resumes its sessions.
pub fn config(
    identity: Option<Identity>,
    versions: &[&'static SupportedProtocolVersion],
) -> Arc<ClientConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(versions)
        .expect("versions")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)));
    Arc::new(match identity {
        Some(Identity { chain, key }) => {
            let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key).expect("key");
            // Whatever is in the certificate: the library would refuse what is not to its taste.
            let identity = SingleCertAndKey::from(CertifiedKey::new(chain, key));
            builder.with_client_cert_resolver(Arc::new(identity))
        }
        None => builder.with_no_client_auth(),
    })
}

/// What a client shows of itself.
pub struct Identity {
    pub chain: Vec<CertificateDer<'static>>,
    pub key: PrivateKeyDer<'static>,
}

impl Tls {
    pub fn connect(addr: SocketAddr, name: &str) -> Self {
        Self::with(config(None, rustls::ALL_VERSIONS), addr, name).expect("handshake")
    }

    /// Shakes hands; the error is what the other side said.
    pub fn with(config: Arc<ClientConfig>, addr: SocketAddr, name: &str) -> std::io::Result<Self> {
        Self::over(TcpStream::connect(addr).expect("connect"), config, name)
    }

    pub fn over(mut stream: TcpStream, config: Arc<ClientConfig>, name: &str) -> std::io::Result<Self> {
        let name = ServerName::try_from(name.to_owned()).expect("a name");
        let mut session = ClientConnection::new(config, name).expect("session");
        stream.set_read_timeout(Some(DEADLINE)).expect("timeout");
        while session.is_handshaking() {
            session.complete_io(&mut stream)?;
        }
        Ok(Self(StreamOwned::new(session, stream)))
    }

    pub fn is_resumed(&self) -> bool {
        self.0.conn.handshake_kind() == Some(HandshakeKind::Resumed)
    }

    pub fn common_name(&self) -> String {
        let chain = self.0.conn.peer_certificates().expect("certificates");
        let (_, leaf) = x509_parser::parse_x509_certificate(&chain[0]).expect("x509");
        leaf.subject().iter_common_name().next().and_then(|cn| cn.as_str().ok()).expect("cn").to_owned()
    }

    /// Everything that is answered until the connection ends.
    pub fn ask(&mut self, request: &str) -> String {
        self.0.write_all(request.as_bytes()).expect("send");
        let mut text = Vec::new();
        let _ = self.0.read_to_end(&mut text);
        String::from_utf8_lossy(&text).into_owned()
    }

    /// Status of one request, on a connection that ends with it.
    pub fn status(&mut self, host: &str, path: &str) -> u16 {
        let text = self.ask(&format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"));
        text.get(9..12)
            .and_then(|status| status.parse().ok())
            .unwrap_or_else(|| panic!("no status in {text:?}"))
    }
}

/// An authority made for one test.
pub struct Ca {
    pub issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
    pub certificate: CertificateDer<'static>,
    pub pem: String,
}

impl Ca {
    pub fn new(name: &str) -> Self {
        Self::of(authority(name))
    }

    /// Whatever it says of itself.
    pub fn of(params: rcgen::CertificateParams) -> Self {
        let key = rcgen::KeyPair::generate().expect("key");
        let certificate = params.self_signed(&key).expect("self-signed");
        let (pem, der) = (certificate.pem(), certificate.der().clone());
        Self { issuer: rcgen::Issuer::new(params, key), certificate: der, pem }
    }

    /// Signs certificates, but its own one does not say that it may.
    pub fn posing(name: &str) -> Self {
        let mut params = authority(name);
        params.is_ca = rcgen::IsCa::NoCa;
        params.key_usages.clear();
        Self::of(params)
    }

    /// An authority below this one.
    pub fn below(&self, name: &str) -> Self {
        let (params, key) = (authority(name), rcgen::KeyPair::generate().expect("key"));
        let certificate = params.signed_by(&key, &self.issuer).expect("signed");
        let (pem, der) = (certificate.pem(), certificate.der().clone());
        Self { issuer: rcgen::Issuer::new(params, key), certificate: der, pem }
    }

    /// A list of the certificates with these serial numbers, good until a year.
    pub fn revoke(&self, serials: &[u64], until: i32) -> String {
        let revoked = |serial: &u64| rcgen::RevokedCertParams {
            serial_number: (*serial).into(),
            revocation_time: rcgen::date_time_ymd(2001, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let params = rcgen::CertificateRevocationListParams {
            this_update: rcgen::date_time_ymd(2001, 1, 1),
            next_update: rcgen::date_time_ymd(until, 1, 1),
            crl_number: 1.into(),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: rcgen::KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).expect("signed").pem().expect("pem")
    }

    /// A certificate that is good until a year.
    pub fn issue(&self, name: &str, until: i32) -> Identity {
        self.issue_numbered(name, until, 1)
    }

    /// The same with a serial number.
    pub fn issue_numbered(&self, name: &str, until: i32, serial: u64) -> Identity {
        self.issue_with(name, until, serial, Vec::new())
    }

    /// The same with extensions.
    pub fn issue_with(
        &self,
        name: &str,
        until: i32,
        serial: u64,
        extensions: Vec<rcgen::CustomExtension>,
    ) -> Identity {
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::OrganizationName, "Test");
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.custom_extensions = extensions;
        params.not_before = rcgen::date_time_ymd(2000, 1, 1);
        params.not_after = rcgen::date_time_ymd(until, 1, 1);
        self.issue_params(params, serial)
    }

    /// A certificate that says what it is told to.
    pub fn issue_params(&self, mut params: rcgen::CertificateParams, serial: u64) -> Identity {
        params.serial_number = Some(serial.into());
        let key = rcgen::KeyPair::generate().expect("key");
        let certificate = params.signed_by(&key, &self.issuer).expect("signed");
        let chain = vec![certificate.der().clone(), self.certificate.clone()];
        Identity { chain, key: PrivateKeyDer::try_from(key.serialize_der()).expect("key") }
    }
}

fn authority(name: &str) -> rcgen::CertificateParams {
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign, rcgen::KeyUsagePurpose::CrlSign];
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    params
}

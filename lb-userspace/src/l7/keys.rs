//! Keys of certificates, ours and those of others, whatever else the certificate holds.
//!
//! The TLS library reads certificates by the rules of the web. It refuses what `openssl x509 -req` makes where it is
//! given no extensions (version 1), and critical extensions that it does not know. Who needs the key alone does not
//! mind the rest; whom a certificate has to convince judges it elsewhere.

use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{WebPkiSupportedAlgorithms, aws_lc_rs, verify_tls13_signature_with_raw_key};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, SubjectPublicKeyInfoDer};
use rustls::server::ParsedCertificate;
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, DigitallySignedStruct, PeerMisbehaved};
use webpki::RawPublicKeyEntity;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::public_key::PublicKey;

use crate::model::l7::Certificate;

/// A certificate to show, with its key. That the two belong together the translation has checked.
pub(super) fn certified(certificate: &Certificate) -> Result<CertifiedKey, String> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&certificate.chain_pem)
        .collect::<Result<_, _>>()
        .map_err(|error| error.to_string())?;
    if chain.is_empty() {
        return Err("no certificate".to_owned());
    }
    let key = PrivateKeyDer::from_pem_slice(&certificate.key_pem).map_err(|error| error.to_string())?;
    let key = aws_lc_rs::sign::any_supported_type(&key).map_err(|error| error.to_string())?;
    // `CertifiedKey::from_der` would read the certificate, too.
    Ok(CertifiedKey::new(chain, key))
}

/// Whether a handshake of TLS 1.2 is signed by the key of a certificate.
pub(super) fn verify_12(
    message: &[u8],
    certificate: &CertificateDer<'_>,
    signature: &DigitallySignedStruct,
    algorithms: &WebPkiSupportedAlgorithms,
) -> Result<HandshakeSignatureValid, rustls::Error> {
    let key = key_of(certificate)?;
    let key = RawPublicKeyEntity::try_from(&key).map_err(refused)?;
    let known = algorithms.mapping.iter().find(|(scheme, _)| *scheme == signature.scheme);
    let (_, candidates) = known.ok_or(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme)?;
    // The scheme does not say which curve it is.
    let mut unfit = rustls::Error::from(CertificateError::BadSignature);
    for algorithm in *candidates {
        match key.verify_signature(*algorithm, message, signature.signature()) {
            Ok(()) => return Ok(HandshakeSignatureValid::assertion()),
            Err(error @ webpki::Error::UnsupportedSignatureAlgorithmForPublicKeyContext(_)) => {
                unfit = refused(error);
            }
            Err(error) => return Err(refused(error)),
        }
    }
    Err(unfit)
}

/// Whether a handshake of TLS 1.3 is signed by the key of a certificate.
pub(super) fn verify_13(
    message: &[u8],
    certificate: &CertificateDer<'_>,
    signature: &DigitallySignedStruct,
    algorithms: &WebPkiSupportedAlgorithms,
) -> Result<HandshakeSignatureValid, rustls::Error> {
    verify_tls13_signature_with_raw_key(message, &key_of(certificate)?, signature, algorithms)
}

/// An RSA key of less than 2048 bits, whose signatures the crypto library does not verify.
pub(super) fn is_short_rsa(certificate: &CertificateDer<'_>) -> bool {
    let Ok((_, certificate)) = X509Certificate::from_der(certificate) else { return false };
    matches!(certificate.public_key().parsed(), Ok(PublicKey::RSA(key)) if key.key_size() < 2048)
}

/// What webpki says, as rustls passes it on.
pub(super) fn refused(error: webpki::Error) -> rustls::Error {
    CertificateError::Other(rustls::OtherError(Arc::new(error))).into()
}

/// By webpki, which is quicker, where it can.
fn key_of(certificate: &CertificateDer<'_>) -> Result<SubjectPublicKeyInfoDer<'static>, rustls::Error> {
    if let Ok(certificate) = ParsedCertificate::try_from(certificate) {
        return Ok(certificate.subject_public_key_info());
    }
    let (_, certificate) =
        X509Certificate::from_der(certificate).map_err(|_| CertificateError::BadEncoding)?;
    Ok(SubjectPublicKeyInfoDer::from(certificate.public_key().raw.to_vec()))
}

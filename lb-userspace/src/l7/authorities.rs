//! Authorities that vouch for certificates: of clients, and of upstreams.
//!
//! webpki judges chains by the rules of the web. What it does not read but OpenSSL does (certificates of version 1, authorities
//! that show their own certificate as `openssl req -x509` makes it, plain revocation lists) it is given
//! [restated](restated), and more is asked of who vouches for it. Names are the business of whoever asks.

mod restated;

use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{
    CertificateDer, CertificateRevocationListDer, SignatureVerificationAlgorithm, UnixTime,
};
use rustls::{DistinguishedName, RootCertStore};
use webpki::{
    CertRevocationList, EndEntityCert, Error, ExpirationPolicy, KeyUsage, OwnedCertRevocationList,
    RevocationOptionsBuilder, VerifiedPath,
};
use x509_parser::certificate::Validity;
use x509_parser::prelude::{FromDer, X509Certificate, X509Version};

pub(super) use restated::fuzz;
use restated::{Body, Restating};

/// The certificates of one `ca.crt` and the revocation lists of one `ca.crl`.
#[derive(Debug)]
pub(super) struct Authorities {
    /// One that is shown itself is trusted, as with OpenSSL.
    listed: Vec<CertificateDer<'static>>,
    roots: RootCertStore,
    lists: Vec<CertRevocationList<'static>>,
    /// Of the lists that are read restated.
    bodies: Vec<Body>,
}

/// Why they cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unusable {
    #[error("certificate of an authority: {0}")]
    Pem(rustls::pki_types::pem::Error),
    #[error("certificate of an authority: {0}")]
    Certificate(rustls::Error),
    #[error("revocation list: {0}")]
    List(Error),
}

/// What a certificate is shown for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    Client,
    Server,
}

/// By which of its names a certificate is to be known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Naming {
    /// The ones that constraints of authorities are told of.
    Alternative,
    /// Its common name, of which they are not.
    Common,
}

/// A certificate, with what it is judged by.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shown<'a> {
    pub(super) leaf: &'a CertificateDer<'a>,
    pub(super) intermediates: &'a [CertificateDer<'a>],
    pub(super) purpose: Purpose,
    pub(super) naming: Naming,
    /// So many authorities may stand between it and the one in the bundle.
    pub(super) depth: usize,
    pub(super) now: UnixTime,
    pub(super) algorithms: WebPkiSupportedAlgorithms,
}

impl Authorities {
    pub(super) fn new(ca_pem: &[u8], crl_pem: &[u8]) -> Result<Self, Unusable> {
        let listed: Vec<_> =
            CertificateDer::pem_slice_iter(ca_pem).collect::<Result<_, _>>().map_err(Unusable::Pem)?;
        let mut roots = RootCertStore::empty();
        for certificate in &listed {
            roots.add(certificate.clone()).map_err(Unusable::Certificate)?;
        }
        let (mut lists, mut bodies) = (Vec::new(), Vec::new());
        for list in CertificateRevocationListDer::pem_slice_iter(crl_pem) {
            let list = list.map_err(Unusable::Pem)?;
            let read = OwnedCertRevocationList::from_der(&list).or_else(|error| {
                let (der, body) = restated::list(&list).ok_or(error)?;
                bodies.push(body);
                OwnedCertRevocationList::from_der(&der)
            });
            lists.push(read.map_err(Unusable::List)?.into());
        }
        Ok(Self { listed, roots, lists, bodies })
    }

    /// Their names, for a client to choose by.
    pub(super) fn subjects(&self) -> Vec<DistinguishedName> {
        self.roots.subjects()
    }

    /// Whether one of them vouches for a certificate.
    pub(super) fn verify(&self, shown: &Shown<'_>) -> Result<(), Error> {
        let certificate = match EndEntityCert::try_from(shown.leaf) {
            Ok(certificate) => Some(certificate),
            Err(Error::UnsupportedCertVersion) => None,
            Err(error) => return Err(error),
        };
        if self.lists.is_empty() && self.listed.iter().any(|listed| listed == shown.leaf) {
            let (_, parsed) = X509Certificate::from_der(shown.leaf).map_err(|_| Error::BadDer)?;
            return is_of_now(parsed.validity(), shown.now);
        }
        let Some(certificate) = certificate else {
            return self.verify_restated(
                restated::version_1(shown.leaf),
                shown,
                Error::UnsupportedCertVersion,
            );
        };
        let bodies: Vec<_> = self.bodies.iter().collect();
        let is_known_by_name = |path: &VerifiedPath<'_>| match shown.naming {
            Naming::Alternative => Ok(()),
            Naming::Common => self.vouches_beyond_doubt(path, shown),
        };
        match self.path(&certificate, &bodies, shown, &is_known_by_name) {
            Err(error @ Error::CaUsedAsEndEntity) if may_serve(shown.leaf, shown.purpose) => {
                self.verify_restated(restated::end_entity(shown.leaf), shown, error)
            }
            verdict => verdict,
        }
    }

    fn verify_restated(
        &self,
        restated: Option<(CertificateDer<'static>, Body)>,
        shown: &Shown<'_>,
        error: Error,
    ) -> Result<(), Error> {
        let Some((der, body)) = restated else { return Err(error) };
        let certificate = EndEntityCert::try_from(&der)?;
        let bodies: Vec<_> = self.bodies.iter().chain([&body]).collect();
        self.path(&certificate, &bodies, shown, &|path| self.vouches_beyond_doubt(path, shown))
    }

    fn path(
        &self,
        certificate: &EndEntityCert<'_>,
        bodies: &[&Body],
        shown: &Shown<'_>,
        is_enough: &dyn Fn(&VerifiedPath<'_>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let short_enough = |path: &VerifiedPath<'_>| match path.intermediate_certificates().count() {
            count if count <= shown.depth => is_enough(path),
            _ => Err(Error::MaximumPathDepthExceeded),
        };
        let lists: Vec<_> = self.lists.iter().collect();
        // As nginx with `ssl_crl`: every link of the chain needs a list that is of now.
        let revocation = RevocationOptionsBuilder::new(&lists)
            .ok()
            .map(|builder| builder.with_expiration_policy(ExpirationPolicy::Enforce).build());
        let known = shown.algorithms.all;
        let restating: Vec<_> = match bodies {
            [] => Vec::new(),
            bodies => known.iter().map(|known| Restating { known: *known, bodies }).collect(),
        };
        let restating: Vec<_> =
            restating.iter().map(|restating| restating as &dyn SignatureVerificationAlgorithm).collect();
        let algorithms = if restating.is_empty() { known } else { &restating };
        let usage = match shown.purpose {
            Purpose::Client => KeyUsage::client_auth(),
            Purpose::Server => KeyUsage::server_auth(),
        };
        certificate
            .verify_for_usage(
                algorithms,
                &self.roots.roots,
                shown.intermediates,
                shown.now,
                usage,
                revocation,
                Some(&short_enough),
            )
            .map(|_| ())
    }

    /// What webpki takes for granted of a bundle, and of keys: that who stands there is an authority, for this purpose and of now. And that
    /// none in the chain has limits that cannot be told of a certificate with such names.
    fn vouches_beyond_doubt(&self, path: &VerifiedPath<'_>, shown: &Shown<'_>) -> Result<(), Error> {
        let is_anchor = |listed: &&CertificateDer<'_>| {
            webpki::anchor_from_trusted_cert(listed).is_ok_and(|anchor| anchor == *path.anchor())
        };
        // An authority may stand there twice, renewed with the key that it had.
        let mut verdict = Err(Error::UnknownIssuer);
        for listed in self.listed.iter().filter(is_anchor) {
            verdict = may_issue(listed, shown.purpose).and_then(|validity| is_of_now(&validity, shown.now));
            if verdict.is_ok() {
                break;
            }
        }
        verdict?;
        path.intermediate_certificates()
            .try_for_each(|between| may_issue(&between.der(), shown.purpose).map(|_| ()))
    }
}

/// As OpenSSL sees it: a root of version 1, or what says that it is an authority, and for this purpose, too. Tells when.
fn may_issue(certificate: &CertificateDer<'_>, purpose: Purpose) -> Result<Validity, Error> {
    let (_, certificate) = X509Certificate::from_der(certificate).map_err(|_| Error::BadDer)?;
    let validity = certificate.validity().clone();
    if certificate.version() == X509Version::V1 && certificate.issuer() == certificate.subject() {
        return Ok(validity);
    }
    let signs =
        certificate.key_usage().is_ok_and(|usage| usage.is_none_or(|usage| usage.value.key_cert_sign()));
    let is_for_it = certificate.extended_key_usage().is_ok_and(|usage| {
        let of = |usage: &x509_parser::extensions::ExtendedKeyUsage<'_>| match purpose {
            Purpose::Client => usage.client_auth,
            Purpose::Server => usage.server_auth,
        };
        usage.is_none_or(|usage| usage.value.any || of(usage.value))
    });
    if !(certificate.is_ca() && signs && is_for_it) {
        return Err(Error::EndEntityUsedAsCa);
    }
    match certificate.name_constraints() {
        Ok(None) => Ok(validity),
        _ => Err(Error::NameConstraintViolation),
    }
}

/// The key of an authority may be one for handshakes as well: if nothing says what it is for, or this is said.
fn may_serve(certificate: &CertificateDer<'_>, purpose: Purpose) -> bool {
    let Ok((_, certificate)) = X509Certificate::from_der(certificate) else { return false };
    certificate.key_usage().is_ok_and(|usage| {
        usage.is_none_or(|usage| {
            let (signs, agrees) = (usage.value.digital_signature(), usage.value.key_agreement());
            signs || agrees || (purpose == Purpose::Server && usage.value.key_encipherment())
        })
    })
}

fn is_of_now(validity: &Validity, now: UnixTime) -> Result<(), Error> {
    let at = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    if validity.not_before.timestamp() <= at && at <= validity.not_after.timestamp() {
        return Ok(());
    }
    Err(Error::InvalidCertValidity)
}

//! Client certificates of X.509 version 1, which `openssl x509 -req` makes where it is given no extensions, and which
//! webpki does not read.
//!
//! They say nothing but a name, a time and a key, so they are judged strictly: signed by an authority of the bundle
//! itself, never by one between, both of now, and not revoked. They are never an authority between others.

use std::time::Duration;

use rustls::pki_types::{
    CertificateDer, CertificateRevocationListDer, SignatureVerificationAlgorithm, SubjectPublicKeyInfoDer,
    UnixTime,
};
use webpki::RawPublicKeyEntity;
use x509_parser::asn1_rs::{Any, Tag};
use x509_parser::certificate::Validity;
use x509_parser::prelude::{CertificateRevocationList, FromDer, X509Certificate, X509Version};

use super::is_of_now;

type Algorithms = &'static [&'static dyn SignatureVerificationAlgorithm];

/// The authorities of a bundle that may vouch for clients.
#[derive(Debug)]
pub(super) struct Issuers {
    issuers: Vec<Issuer>,
    algorithms: Algorithms,
}

#[derive(Debug)]
struct Issuer {
    /// As it is encoded.
    name: Vec<u8>,
    key: SubjectPublicKeyInfoDer<'static>,
    validity: Validity,
    lists: Vec<List>,
}

/// A revocation list that the authority has signed.
#[derive(Debug)]
struct List {
    /// Its place among those of the bundle.
    place: usize,
    next_update: UnixTime,
}

impl Issuers {
    /// Leaves out what is no authority, or one with limits that cannot be told of these certificates.
    pub(super) fn new(
        listed: &[CertificateDer<'_>],
        lists: &[CertificateRevocationListDer<'_>],
        algorithms: Algorithms,
    ) -> Self {
        let lists: Vec<_> =
            lists.iter().enumerate().filter_map(|(place, list)| signed_list(place, list)).collect();
        let issuer = |listed: &CertificateDer<'_>| {
            let (_, certificate) = X509Certificate::from_der(listed).ok()?;
            may_issue(&certificate).then(|| Issuer::new(&certificate, &lists, algorithms))
        };
        Self { issuers: listed.iter().filter_map(issuer).collect(), algorithms }
    }

    /// Whether one of them vouches for a certificate. The revocation lists are those of [`Issuers::new`].
    pub(super) fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        lists: &[webpki::CertRevocationList<'_>],
        now: UnixTime,
    ) -> Result<(), webpki::Error> {
        let (rest, parsed) = X509Certificate::from_der(leaf).map_err(|_| webpki::Error::BadDer)?;
        let signed = Signed::parse(leaf).filter(|_| rest.is_empty()).ok_or(webpki::Error::BadDer)?;
        let is_version_1 = parsed.version() == X509Version::V1
            && parsed.issuer_uid.is_none()
            && parsed.subject_uid.is_none()
            && parsed.extensions().is_empty();
        if !is_version_1 {
            return Err(webpki::Error::UnsupportedCertVersion);
        }
        if parsed.signature != parsed.signature_algorithm {
            return Err(webpki::Error::SignatureAlgorithmMismatch);
        }
        is_of_now(parsed.validity(), now)?;
        let mut verdict = Err(webpki::Error::UnknownIssuer);
        // An authority may stand there twice, with its old key and with its new one.
        for issuer in self.issuers.iter().filter(|issuer| issuer.name == parsed.issuer().as_raw()) {
            verdict = if signed.is_by(&issuer.key, self.algorithms) {
                is_of_now(&issuer.validity, now)
                    .and_then(|()| issuer.is_unrevoked(parsed.raw_serial(), lists, now))
            } else {
                Err(webpki::Error::InvalidSignatureForPublicKey)
            };
            if verdict.is_ok() {
                break;
            }
        }
        verdict
    }
}

impl Issuer {
    fn new(
        certificate: &X509Certificate<'_>,
        lists: &[(List, CertificateRevocationList<'_>, Signed<'_>)],
        algorithms: Algorithms,
    ) -> Self {
        let name = certificate.subject().as_raw();
        let key = SubjectPublicKeyInfoDer::from(certificate.public_key().raw.to_vec());
        let signs_lists = match certificate.key_usage() {
            Ok(usage) => usage.is_none_or(|usage| usage.value.crl_sign()),
            Err(_) => false,
        };
        let own = lists.iter().filter(|(_, list, signed)| {
            signs_lists && list.issuer().as_raw() == name && signed.is_by(&key, algorithms)
        });
        let lists =
            own.map(|(List { place, next_update }, ..)| List { place: *place, next_update: *next_update });
        let lists = lists.collect();
        Self { name: name.to_vec(), key, validity: certificate.validity().clone(), lists }
    }

    /// Where there are lists at all, one of this authority has to be of now, and none may name the certificate.
    fn is_unrevoked(
        &self,
        serial: &[u8],
        lists: &[webpki::CertRevocationList<'_>],
        now: UnixTime,
    ) -> Result<(), webpki::Error> {
        if lists.is_empty() {
            return Ok(());
        }
        let mut verdict = Err(webpki::Error::UnknownRevocationStatus);
        for List { place, next_update } in &self.lists {
            let list = lists.get(*place).ok_or(webpki::Error::UnknownRevocationStatus)?;
            if list.find_serial(serial)?.is_some() {
                return Err(webpki::Error::CertRevoked);
            }
            if now < *next_update {
                verdict = Ok(());
            } else if verdict.is_err() {
                verdict = Err(webpki::Error::CrlExpired { time: now, next_update: *next_update });
            }
        }
        verdict
    }
}

/// As OpenSSL sees it: a root of version 1, or what says that it is an authority and for clients, too. What it says
/// about names cannot be told of a certificate that has no extensions; it then vouches for none.
fn may_issue(certificate: &X509Certificate<'_>) -> bool {
    if certificate.version() == X509Version::V1 {
        return certificate.issuer().as_raw() == certificate.subject().as_raw();
    }
    let signs =
        certificate.key_usage().is_ok_and(|usage| usage.is_none_or(|usage| usage.value.key_cert_sign()));
    let for_clients = certificate
        .extended_key_usage()
        .is_ok_and(|usage| usage.is_none_or(|usage| usage.value.any || usage.value.client_auth));
    let is_free = certificate.name_constraints().is_ok_and(|constraints| constraints.is_none());
    certificate.is_ca() && signs && for_clients && is_free
}

/// A list that speaks for all certificates of its authority: one with a distribution point speaks for some.
fn signed_list<'a>(
    place: usize,
    der: &'a CertificateRevocationListDer<'_>,
) -> Option<(List, CertificateRevocationList<'a>, Signed<'a>)> {
    const DISTRIBUTION_POINT: &str = "2.5.29.28";
    let (_, list) = CertificateRevocationList::from_der(der).ok()?;
    let is_of_some = list.extensions().iter().any(|known| known.oid.to_id_string() == DISTRIBUTION_POINT);
    if is_of_some || list.tbs_cert_list.signature != list.signature_algorithm {
        return None;
    }
    let next_update = u64::try_from(list.next_update()?.timestamp()).ok()?;
    let next_update = UnixTime::since_unix_epoch(Duration::from_secs(next_update));
    Some((List { place, next_update }, list, Signed::parse(der)?))
}

/// What is signed in X.509 looks alike: the body, the algorithm and the signature (RFC 5280, 4.1 and 5.1).
struct Signed<'a> {
    body: &'a [u8],
    /// Contents of the AlgorithmIdentifier.
    algorithm: &'a [u8],
    signature: &'a [u8],
}

impl<'a> Signed<'a> {
    fn parse(der: &'a [u8]) -> Option<Self> {
        let (rest, whole) = Any::from_der(der).ok()?;
        let (after_body, _) = Any::from_der(whole.data).ok()?;
        let body = whole.data.get(..whole.data.len().checked_sub(after_body.len())?)?;
        let (after_algorithm, algorithm) = Any::from_der(after_body).ok()?;
        let (end, signature) = Any::from_der(after_algorithm).ok()?;
        // The first byte tells how many bits of the last do not count.
        let is_whole = rest.is_empty() && end.is_empty() && signature.tag() == Tag::BitString;
        let (unused, signature) = signature.data.split_first()?;
        (is_whole && *unused == 0).then_some(Self { body, algorithm: algorithm.data, signature })
    }

    fn is_by(&self, key: &SubjectPublicKeyInfoDer<'_>, algorithms: Algorithms) -> bool {
        let Ok(key) = RawPublicKeyEntity::try_from(key) else { return false };
        let mut fit = algorithms.iter().filter(|known| known.signature_alg_id().as_ref() == self.algorithm);
        // More than one where the algorithm does not say which curve it is.
        fit.any(|algorithm| key.verify_signature(*algorithm, self.body, self.signature).is_ok())
    }
}

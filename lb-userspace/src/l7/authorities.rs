//! Authorities that vouch for certificates: of clients, and of upstreams.
//!
//! webpki builds chains and checks their signatures, by the rules of the web. What it does not read but OpenSSL does (certificates of
//! version 1, authorities that show their own certificate as `openssl req -x509` makes it, plain revocation lists) it is given
//! [restated](restated), and what it takes for granted of who vouches is asked of each [beside it](usage). Names are the business of whoever
//! asks.

mod restated;
mod usage;

use rustls::DistinguishedName;
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{
    CertificateDer, CertificateRevocationListDer, SignatureVerificationAlgorithm, TrustAnchor, UnixTime,
};
use webpki::{
    CertRevocationList, EndEntityCert, Error, ExpirationPolicy, KeyUsage, OwnedCertRevocationList,
    RevocationOptionsBuilder, VerifiedPath,
};
use x509_parser::prelude::X509Certificate;
use x509_parser::x509::X509Name;

pub(super) use restated::fuzz;
use restated::{Body, Restating};
use usage::{Place, is_of_now, is_root, may_be_shown, may_issue, parsed};

/// The certificates of one `ca.crt` and the revocation lists of one `ca.crl`.
#[derive(Debug)]
pub(super) struct Authorities {
    /// Those that vouch for themselves: every chain ends with one. One that is shown itself is trusted, as with OpenSSL.
    roots: Vec<CertificateDer<'static>>,
    /// The same, each at its place.
    anchors: Vec<TrustAnchor<'static>>,
    /// The others in the bundle: known without being shown, and no more than that.
    between: Vec<CertificateDer<'static>>,
    subjects: Vec<DistinguishedName>,
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
    Certificate(Error),
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
        let (mut roots, mut anchors) = (Vec::new(), Vec::new());
        let (mut between, mut subjects) = (Vec::new(), Vec::new());
        for listed in CertificateDer::pem_slice_iter(ca_pem) {
            let listed = listed.map_err(Unusable::Pem)?;
            let anchor = webpki::anchor_from_trusted_cert(&listed).map_err(Unusable::Certificate)?.to_owned();
            subjects.push(DistinguishedName::in_sequence(&anchor.subject));
            if is_root(&parsed(&listed).map_err(Unusable::Certificate)?) {
                roots.push(listed);
                anchors.push(anchor);
            } else {
                between.push(listed);
            }
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
        Ok(Self { roots, anchors, between, subjects, lists, bodies })
    }

    /// Their names, for a client to choose by.
    pub(super) fn subjects(&self) -> Vec<DistinguishedName> {
        self.subjects.clone()
    }

    /// Whether one that is no root stands in the bundle by this name.
    pub(super) fn has_between(&self, name: &X509Name<'_>) -> bool {
        self.between.iter().any(|known| parsed(known).is_ok_and(|known| known.subject() == name))
    }

    /// Whether one of them vouches for a certificate.
    pub(super) fn verify(&self, shown: &Shown<'_>) -> Result<(), Error> {
        let certificate = match EndEntityCert::try_from(shown.leaf) {
            Ok(certificate) => Some(certificate),
            Err(Error::UnsupportedCertVersion) => None,
            Err(error) => return Err(error),
        };
        let leaf = parsed(shown.leaf)?;
        may_be_shown(&leaf, shown.purpose)?;
        if self.lists.is_empty() && self.roots.iter().any(|root| root == shown.leaf) {
            return is_of_now(leaf.validity(), shown.now);
        }
        let Some(certificate) = certificate else {
            let restated = restated::version_1(shown.leaf);
            return self.verify_restated(restated, shown, Error::UnsupportedCertVersion);
        };
        let bodies: Vec<_> = self.bodies.iter().collect();
        match self.path(&certificate, &bodies, shown, shown.naming) {
            Err(error @ Error::CaUsedAsEndEntity) => {
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
        // What is restated is let in below authorities without limits alone.
        self.path(&certificate, &bodies, shown, Naming::Common)
    }

    fn path(
        &self,
        certificate: &EndEntityCert<'_>,
        bodies: &[&Body],
        shown: &Shown<'_>,
        naming: Naming,
    ) -> Result<(), Error> {
        let is_enough = |path: &VerifiedPath<'_>| match path.intermediate_certificates().count() {
            count if count <= shown.depth => self.vouches(path, shown, naming),
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
        let between = self.between.iter().chain(shown.intermediates);
        let between: Vec<_> = between.map(|der| CertificateDer::from(&der[..])).collect();
        certificate
            .verify_for_usage(
                algorithms,
                &self.anchors,
                &between,
                shown.now,
                usage,
                revocation,
                Some(&is_enough),
            )
            .map(|_| ())
    }

    /// What webpki takes for granted of a bundle, and of keys: that who vouches is an authority, for this purpose and of now. And, where
    /// names are such that limits of authorities are not told of them, that none in the chain has any.
    fn vouches(&self, path: &VerifiedPath<'_>, shown: &Shown<'_>, naming: Naming) -> Result<(), Error> {
        let is_without_limits = |authority: &X509Certificate<'_>| match (naming, authority.name_constraints())
        {
            (Naming::Alternative, _) | (Naming::Common, Ok(None)) => Ok(()),
            (Naming::Common, _) => Err(Error::NameConstraintViolation),
        };
        let mut below = 0;
        for between in path.intermediate_certificates() {
            let der = between.der();
            let between = parsed(&der)?;
            may_issue(&between, Place::Between, shown.purpose, shown.now)?;
            is_without_limits(&between)?;
            below += usize::from(between.subject() != between.issuer());
        }
        // A root may stand there twice, renewed with the key that it had.
        let mut verdict = Err(Error::UnknownIssuer);
        for (root, _) in self.roots.iter().zip(&self.anchors).filter(|(_, anchor)| *anchor == path.anchor()) {
            let root = parsed(root)?;
            verdict = may_issue(&root, Place::Root { below }, shown.purpose, shown.now)
                .and_then(|()| is_without_limits(&root));
            if verdict.is_ok() {
                break;
            }
        }
        verdict
    }
}

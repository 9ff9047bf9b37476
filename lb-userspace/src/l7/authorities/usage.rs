//! What a certificate may be used for, by what it says of itself, as OpenSSL's purposes `sslclient` and `sslserver` read it.
//!
//! webpki reads no key usage, and of who stands in a bundle nothing but name and key; the rest of the rules is here. Signatures are not.

use rustls::pki_types::{CertificateDer, UnixTime};
use webpki::{Error, KeyUsage, RequiredEkuNotFoundContext};
use x509_parser::certificate::Validity;
use x509_parser::extensions::{NSCertType, ParsedExtension};
use x509_parser::prelude::{FromDer, X509Certificate, X509Version};
use x509_parser::time::ASN1Time;

use super::Purpose;

/// Where an authority stands in a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// Below another one.
    Between,
    /// At the end, with so many below it, but for those that only renew another one's key.
    Root { below: usize },
}

pub(super) fn parsed<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, Error> {
    X509Certificate::from_der(der).map(|(_, parsed)| parsed).map_err(|_| Error::BadDer)
}

/// Whether it can be the end of a chain: its own name and, where it says whose, its own key vouch for it.
pub(super) fn is_root(certificate: &X509Certificate<'_>) -> bool {
    let (mut own, mut issuers) = (None, None);
    for extension in certificate.extensions() {
        match extension.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(id) => own = Some(id),
            ParsedExtension::AuthorityKeyIdentifier(authority) => issuers = authority.key_identifier.as_ref(),
            _ => {}
        }
    }
    let is_own_key = match (own, issuers) {
        (Some(own), Some(issuers)) => own == issuers,
        (None, _) | (_, None) => true,
    };
    certificate.subject() == certificate.issuer() && is_own_key
}

/// Whether somebody may show it of himself. A key for certificates alone does not do; an authority's that says nothing of its key does.
pub(super) fn may_be_shown(certificate: &X509Certificate<'_>, purpose: Purpose) -> Result<(), Error> {
    let key_usage = certificate.key_usage().map_err(|_| Error::BadDer)?;
    let shakes_hands = key_usage.is_none_or(|usage| {
        let (signs, agrees) = (usage.value.digital_signature(), usage.value.key_agreement());
        signs || agrees || (purpose == Purpose::Server && usage.value.key_encipherment())
    });
    let netscape = certificate.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::NSCertType(kind) => Some(kind),
        _ => None,
    });
    let is_of_kind = |kind: &NSCertType| match purpose {
        Purpose::Client => kind.ssl_client(),
        Purpose::Server => kind.ssl_server(),
    };
    if shakes_hands && netscape.is_none_or(is_of_kind) {
        return is_for(certificate, purpose);
    }
    Err(unsuitable(purpose))
}

/// Whether it may vouch for others now.
pub(super) fn may_issue(
    certificate: &X509Certificate<'_>,
    place: Place,
    purpose: Purpose,
    now: UnixTime,
) -> Result<(), Error> {
    let key_usage = certificate.key_usage().map_err(|_| Error::BadDer)?;
    let constraints = certificate.basic_constraints().map_err(|_| Error::BadDer)?;
    let signs = key_usage.as_ref().is_none_or(|usage| usage.value.key_cert_sign());
    let is_authority = match (&constraints, place) {
        (Some(constraints), _) => constraints.value.ca,
        // Older ones say less of themselves.
        (None, Place::Root { .. }) => certificate.version() == X509Version::V1 || key_usage.is_some(),
        (None, Place::Between) => false,
    };
    if !(is_authority && signs) {
        return Err(Error::EndEntityUsedAsCa);
    }
    is_for(certificate, purpose)?;
    let longest = constraints.and_then(|constraints| constraints.value.path_len_constraint);
    if let (Some(longest), Place::Root { below }) = (longest, place)
        && u32::try_from(below).is_ok_and(|below| below > longest)
    {
        return Err(Error::PathLenConstraintViolated);
    }
    is_of_now(certificate.validity(), now)
}

pub(super) fn is_of_now(validity: &Validity, now: UnixTime) -> Result<(), Error> {
    let at = |time: &ASN1Time| {
        let since = u64::try_from(time.timestamp()).unwrap_or(0);
        UnixTime::since_unix_epoch(std::time::Duration::from_secs(since))
    };
    let (not_before, not_after) = (at(&validity.not_before), at(&validity.not_after));
    if now < not_before {
        return Err(Error::CertNotValidYet { time: now, not_before });
    }
    if now > not_after {
        return Err(Error::CertExpired { time: now, not_after });
    }
    Ok(())
}

/// One that is for any use is for neither of ours, by OpenSSL as by webpki.
fn is_for(certificate: &X509Certificate<'_>, purpose: Purpose) -> Result<(), Error> {
    let usage = certificate.extended_key_usage().map_err(|_| Error::BadDer)?;
    let names_it = usage.is_none_or(|usage| match purpose {
        Purpose::Client => usage.value.client_auth,
        Purpose::Server => usage.value.server_auth,
    });
    if names_it { Ok(()) } else { Err(unsuitable(purpose)) }
}

fn unsuitable(purpose: Purpose) -> Error {
    let required = match purpose {
        Purpose::Client => KeyUsage::client_auth(),
        Purpose::Server => KeyUsage::server_auth(),
    };
    Error::RequiredEkuNotFoundContext(RequiredEkuNotFoundContext { required, present: Vec::new() })
}

//! What webpki does not read, written as it would read it.
//!
//! Nothing is vouched for by that: where webpki has the signature of a restated body checked, it is checked of the body that was signed. Only
//! what stands between the two readings differs, and it says no more than the original:
//! a certificate of version 1 becomes one of version 3 without extensions, an authority's own certificate that of none, a
//! revocation list without a number gets one, and one that ends at no time ends in the year 9999.

use rustls::pki_types::{
    AlgorithmIdentifier, CertificateDer, InvalidSignature, SignatureVerificationAlgorithm,
};
use x509_parser::asn1_rs::{Any, Class, Tag};
use x509_parser::prelude::{FromDer, X509Certificate};

/// The body of a signed structure (RFC 5280, 4.1 and 5.1), as it is read and as it was signed.
#[derive(Debug)]
pub(super) struct Body {
    read: Vec<u8>,
    signed: Vec<u8>,
}

/// An algorithm that checks a restated body by what was signed.
#[derive(Debug)]
pub(super) struct Restating<'a> {
    pub(super) known: &'static dyn SignatureVerificationAlgorithm,
    pub(super) bodies: &'a [&'a Body],
}

impl SignatureVerificationAlgorithm for Restating<'_> {
    fn verify_signature(&self, key: &[u8], message: &[u8], signature: &[u8]) -> Result<(), InvalidSignature> {
        let body = self.bodies.iter().find(|body| body.read == message);
        self.known.verify_signature(key, body.map_or(message, |body| &body.signed), signature)
    }

    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        self.known.public_key_alg_id()
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        self.known.signature_alg_id()
    }
}

/// `None`: it is no certificate of version 1, which has nothing but a number, names, a time and a key.
pub(super) fn version_1(der: &[u8]) -> Option<(CertificateDer<'static>, Body)> {
    const VERSION_3: [u8; 5] = [0xa0, 3, 2, 1, 2];
    let signed = Signed::parse(der)?;
    let fields = fields(signed.contents)?;
    let [number, rest @ ..] = fields.as_slice() else { return None };
    let is_plain = rest.len() == 5 && rest.iter().all(|field| is_universal(field, Tag::Sequence));
    if !is_plain || !is_universal(number, Tag::Integer) {
        return None;
    }
    let (der, body) = signed.restated(&[&VERSION_3, signed.contents].concat())?;
    Some((CertificateDer::from(der), body))
}

/// `None`: it does not say that it is an authority's.
pub(super) fn end_entity(der: &[u8]) -> Option<(CertificateDer<'static>, Body)> {
    const BASIC_CONSTRAINTS: &str = "2.5.29.19";
    const IS_CA: [u8; 3] = [1, 1, 0xff];
    const IS_NONE: [u8; 3] = [1, 1, 0];
    let (_, parsed) = X509Certificate::from_der(der).ok()?;
    let constraints =
        parsed.extensions().iter().find(|known| known.oid.to_id_string() == BASIC_CONSTRAINTS)?.value;
    let signed = Signed::parse(der)?;
    let place = (constraints.as_ptr() as usize).checked_sub(signed.contents.as_ptr() as usize)?;
    let mut contents = signed.contents.to_vec();
    // Behind the tag and the length of the sequence.
    let flag = contents.get_mut(place..)?.get_mut(2..5)?;
    if flag != IS_CA {
        return None;
    }
    flag.copy_from_slice(&IS_NONE);
    let (der, body) = signed.restated(&contents)?;
    Some((CertificateDer::from(der), body))
}

/// `None`: it is no list, or has all that webpki asks for.
pub(super) fn list(der: &[u8]) -> Option<(Vec<u8>, Body)> {
    const VERSION_2: [u8; 3] = [2, 1, 1];
    const NEVER: &[u8] = b"\x18\x0f99991231235959Z";
    /// The extensions: one, a number of the list (2.5.29.20), which is 0.
    const NUMBER: [u8; 16] = [0xa0, 14, 0x30, 12, 0x30, 10, 6, 3, 0x55, 0x1d, 0x14, 4, 3, 2, 1, 0];
    let signed = Signed::parse(der)?;
    let fields = fields(signed.contents)?;
    let mut rest = fields.as_slice();
    if let [version, after @ ..] = rest
        && is_universal(version, Tag::Integer)
    {
        (version.whole == VERSION_2).then_some(())?;
        rest = after;
    }
    let [algorithm, issuer, this_update, rest @ ..] = rest else { return None };
    let (next_update, rest) = match rest {
        [next, rest @ ..] if is_time(next) => (Some(next.whole), rest),
        rest => (None, rest),
    };
    let (revoked, rest) = match rest {
        [revoked, rest @ ..] if is_universal(revoked, Tag::Sequence) => (revoked.whole, rest),
        rest => (&[][..], rest),
    };
    let extensions = match rest {
        [] => None,
        [extensions] => Some(extensions.whole),
        _ => return None,
    };
    if next_update.is_some() && extensions.is_some() {
        return None;
    }
    let contents = [
        &VERSION_2,
        algorithm.whole,
        issuer.whole,
        this_update.whole,
        next_update.unwrap_or(NEVER),
        revoked,
        extensions.unwrap_or(&NUMBER),
    ];
    signed.restated(&contents.concat())
}

/// A signed structure: its body, then the algorithm and the signature.
struct Signed<'a> {
    body: &'a [u8],
    /// Of the body.
    contents: &'a [u8],
    seal: &'a [u8],
}

impl<'a> Signed<'a> {
    fn parse(der: &'a [u8]) -> Option<Self> {
        let (rest, whole) = Any::from_der(der).ok()?;
        let (seal, body) = Any::from_der(whole.data).ok()?;
        let is_whole = rest.is_empty() && whole.tag() == Tag::Sequence && body.tag() == Tag::Sequence;
        let length = whole.data.len().checked_sub(seal.len())?;
        is_whole.then_some(Self { body: whole.data.get(..length)?, contents: body.data, seal })
    }

    /// With other contents under the same seal.
    fn restated(&self, contents: &[u8]) -> Option<(Vec<u8>, Body)> {
        let read = sequence(contents)?;
        let der = sequence(&[&read[..], self.seal].concat())?;
        Some((der, Body { read, signed: self.body.to_vec() }))
    }
}

struct Field<'a> {
    any: Any<'a>,
    whole: &'a [u8],
}

fn fields(mut left: &[u8]) -> Option<Vec<Field<'_>>> {
    let mut fields = Vec::new();
    while !left.is_empty() {
        let (after, any) = Any::from_der(left).ok()?;
        let whole = left.get(..left.len().checked_sub(after.len())?)?;
        fields.push(Field { any, whole });
        left = after;
    }
    Some(fields)
}

fn is_universal(field: &Field<'_>, tag: Tag) -> bool {
    field.any.class() == Class::Universal && field.any.tag() == tag
}

fn is_time(field: &Field<'_>) -> bool {
    is_universal(field, Tag::UtcTime) || is_universal(field, Tag::GeneralizedTime)
}

/// `None`: it would be larger than 4 GB.
fn sequence(contents: &[u8]) -> Option<Vec<u8>> {
    let length = u32::try_from(contents.len()).ok()?.to_be_bytes();
    let zeros = length.iter().take_while(|byte| **byte == 0).count();
    let digits = length.get(zeros..)?;
    let head = match digits {
        [] => vec![0x30, 0],
        [short @ ..=0x7f] => vec![0x30, *short],
        digits => [&[0x30, 0x80 | u8::try_from(digits.len()).ok()?], digits].concat(),
    };
    Some([&head[..], contents].concat())
}

/// What is restated is read as the original is: the same number, names, time and key, and nothing that the original has not.
pub(in crate::l7) fn fuzz(bytes: &[u8]) {
    use x509_parser::prelude::CertificateRevocationList;
    for (restated, _) in [version_1(bytes), end_entity(bytes)].into_iter().flatten() {
        let Ok((_, before)) = X509Certificate::from_der(bytes) else { continue };
        let (_, after) = X509Certificate::from_der(&restated).expect("what is restated is read");
        assert_eq!(before.raw_serial(), after.raw_serial());
        assert_eq!((before.subject(), before.issuer()), (after.subject(), after.issuer()));
        assert_eq!(before.validity(), after.validity());
        assert_eq!(before.public_key().raw, after.public_key().raw);
        assert_eq!(before.extensions().len(), after.extensions().len());
        assert!(!after.is_ca());
    }
    let Some((restated, _)) = list(bytes) else { return };
    let Ok((_, before)) = CertificateRevocationList::from_der(bytes) else { return };
    let (_, after) = CertificateRevocationList::from_der(&restated).expect("what is restated is read");
    assert_eq!((before.issuer(), before.last_update()), (after.issuer(), after.last_update()));
    assert!(before.next_update().is_none_or(|next| Some(next) == after.next_update()));
    let serials = |list: &CertificateRevocationList<'_>| {
        list.iter_revoked_certificates().map(|revoked| revoked.raw_serial().to_vec()).collect::<Vec<_>>()
    };
    assert_eq!(serials(&before), serials(&after));
}

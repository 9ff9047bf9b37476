//! The certificate of a webhook that nobody brought one for: made by an authority of its own, renewed in time, and
//! shared by all agents through a Secret, of which this knows the contents alone.
//!
//! An authority that takes another's place is trusted beside it until that one is over, so an agent that still shows
//! the older certificate is believed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose,
};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::pem::Pem;

use super::Identity;

/// What the Secret holds: PEM by key.
pub type Entries = BTreeMap<String, Vec<u8>>;

/// Certificates of the authorities that the API server is to believe, the newest first.
pub const AUTHORITY: &str = "ca";
/// Key of the newest authority.
const AUTHORITY_KEY: &str = "ca.key";
/// What the webhook shows.
const CERTIFICATE: &str = "cert";
/// Its key.
const KEY: &str = "key";

const DAY: Duration = Duration::from_secs(86_400);
/// An authority serves for so long,
const AUTHORITY_LIFE: Duration = Duration::from_secs(5 * 365 * 86_400);
/// and a certificate for so long; each is replaced when a third is left.
const LIFE: Duration = Duration::from_secs(90 * 86_400);
/// Clocks of API servers may be behind ours by this.
const SKEW: Duration = DAY;

/// What the webhook is to show of these entries.
pub fn identity(entries: &Entries) -> Result<Identity, super::Error> {
    let entry = |key: &str| entries.get(key).map_or(&[][..], Vec::as_slice);
    Identity::new(entry(CERTIFICATE), entry(KEY))
}

/// What the Secret is to hold for a webhook of these names; `None`: what it holds is good.
pub fn renewed(
    held: &Entries,
    names: &BTreeSet<String>,
    now: SystemTime,
) -> Result<Option<Entries>, super::Error> {
    let authority = Authority::held(held, now);
    if let Some(authority) = &authority
        && identity(held).is_ok()
        && serves(held, authority, names, now)
    {
        return Ok(None);
    }
    let unusable = |error: rcgen::Error| super::Error::Unusable(error.to_string());
    let authority = match authority {
        Some(authority) => authority,
        None => Authority::anew(held, now).map_err(unusable)?,
    };
    let (certificate, key) = authority.sign(names, now).map_err(unusable)?;
    Ok(Some(Entries::from([
        (AUTHORITY.to_owned(), authority.bundle.into_bytes()),
        (AUTHORITY_KEY.to_owned(), authority.key.serialize_pem().into_bytes()),
        (CERTIFICATE.to_owned(), certificate.into_bytes()),
        (KEY.to_owned(), key.into_bytes()),
    ])))
}

/// Whether the certificate is the authority's, has all names, and time left.
fn serves(held: &Entries, authority: &Authority, names: &BTreeSet<String>, now: SystemTime) -> bool {
    let Some(leaf) = certificates(held, CERTIFICATE).into_iter().next() else { return false };
    let Ok(leaf) = leaf.parse_x509() else { return false };
    let alternative = leaf.subject_alternative_name().ok().flatten();
    let shown: BTreeSet<String> = alternative
        .iter()
        .flat_map(|alternative| &alternative.value.general_names)
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            GeneralName::IPAddress(bytes) => address(bytes).map(|address| address.to_string()),
            _ => None,
        })
        .collect();
    let issuer = leaf.issuer().iter_common_name().next().and_then(|name| name.as_str().ok());
    issuer == Some(authority.name.as_str()) && names.is_subset(&shown) && has_time_left(&leaf, LIFE, now)
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        _ => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
    }
}

/// Whether it is in force, and for a third of its life at least.
fn has_time_left(certificate: &X509Certificate<'_>, life: Duration, now: SystemTime) -> bool {
    let validity = certificate.validity();
    let (now, margin) = (seconds(now), i64::try_from(life.as_secs() / 3).unwrap_or(i64::MAX));
    validity.not_before.timestamp() <= now && now.saturating_add(margin) < validity.not_after.timestamp()
}

fn seconds(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

fn certificates(held: &Entries, key: &str) -> Vec<Pem> {
    let pem = held.get(key).map_or(&[][..], Vec::as_slice);
    Pem::iter_from_buffer(pem).map_while(Result::ok).filter(|block| block.label == "CERTIFICATE").collect()
}

/// Who signs.
struct Authority {
    /// Its common name, which no other has.
    name: String,
    key: KeyPair,
    /// Its certificate and those before it that are in force.
    bundle: String,
}

impl Authority {
    /// The one that the Secret holds, if it is whole and has time left.
    fn held(held: &Entries, now: SystemTime) -> Option<Self> {
        let bundle = String::from_utf8(held.get(AUTHORITY)?.clone()).ok()?;
        let key = KeyPair::from_pem(std::str::from_utf8(held.get(AUTHORITY_KEY)?).ok()?).ok()?;
        let first = certificates(held, AUTHORITY).into_iter().next()?;
        let first = first.parse_x509().ok()?;
        let name = first.subject().iter_common_name().next()?.as_str().ok()?.to_owned();
        let ours = first.public_key().subject_public_key.data.as_ref() == key.public_key_raw();
        (ours && has_time_left(&first, AUTHORITY_LIFE, now)).then_some(Self { name, key, bundle })
    }

    fn anew(held: &Entries, now: SystemTime) -> Result<Self, rcgen::Error> {
        let key = KeyPair::generate()?;
        let mark: String =
            key.public_key_raw().iter().rev().take(8).map(|byte| format!("{byte:02x}")).collect();
        let name = format!("Penstock webhook authority {mark}");
        let mut bundle = parameters(&name, AUTHORITY_LIFE, now, true).self_signed(&key)?.pem();
        // One before it is enough: an older one signed nothing that anybody still shows.
        let before = held.get(AUTHORITY).and_then(|pem| std::str::from_utf8(pem).ok()).unwrap_or_default();
        let first = certificates(held, AUTHORITY).into_iter().next();
        if first.is_some_and(|first| first.parse_x509().is_ok_and(|first| has_time_left(&first, DAY, now)))
            && let Some(before) = before.split_inclusive("-----END CERTIFICATE-----\n").next()
        {
            bundle.push_str(before);
        }
        Ok(Self { name, key, bundle })
    }

    /// A certificate for these names and its key.
    fn sign(&self, names: &BTreeSet<String>, now: SystemTime) -> Result<(String, String), rcgen::Error> {
        let issuer = Issuer::new(parameters(&self.name, AUTHORITY_LIFE, now, true), &self.key);
        let key = KeyPair::generate()?;
        let common = names.first().map_or("penstock-webhook", String::as_str);
        // A common name has 64 characters at most (RFC 5280, appendix A.1).
        let common = if common.len() > 64 { "penstock-webhook" } else { common };
        let mut params = parameters(common, LIFE, now, false);
        params.subject_alt_names =
            CertificateParams::new(names.iter().cloned().collect::<Vec<_>>())?.subject_alt_names;
        Ok((params.signed_by(&key, &issuer)?.pem(), key.serialize_pem()))
    }
}

fn parameters(name: &str, life: Duration, now: SystemTime, authority: bool) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = (now - SKEW).into();
    params.not_after = (now + life).into();
    if authority {
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    } else {
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    }
    params
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    fn made(held: &Entries, of: &[&str], now: SystemTime) -> Option<Entries> {
        renewed(held, &names(of), now).expect("it can be made")
    }

    /// The authorities' certificates in the order in which they stand.
    fn authorities(entries: &Entries) -> usize {
        certificates(entries, AUTHORITY).len()
    }

    const NAME: &str = "ingress-nginx-controller-admission.ingress-nginx.svc";

    #[test]
    fn a_certificate_is_made_once_and_kept_until_a_third_of_its_life_is_left() {
        let begin = SystemTime::now();
        let first = made(&Entries::new(), &[NAME], begin).expect("nothing was held");
        identity(&first).expect("usable");

        assert_eq!(made(&first, &[NAME], begin + LIFE / 2), None);
        let second = made(&first, &[NAME], begin + LIFE * 3 / 4).expect("a new one");

        assert_ne!(second[CERTIFICATE], first[CERTIFICATE]);
        assert_eq!(second[AUTHORITY], first[AUTHORITY], "it is believed without another word");
    }

    #[test]
    fn another_name_takes_another_certificate() {
        let now = SystemTime::now();
        let first = made(&Entries::new(), &[NAME], now).expect("nothing was held");

        let second = made(&first, &[NAME, "127.0.0.1", "webhook.example"], now).expect("a new one");

        assert_eq!(second[AUTHORITY], first[AUTHORITY]);
        assert_eq!(made(&second, &["127.0.0.1"], now), None, "it has all of them");
        assert_eq!(made(&second, &[NAME], now), None);
    }

    #[test]
    fn an_authority_is_replaced_in_time_and_believed_beside_the_next_one() {
        let begin = SystemTime::now();
        let first = made(&Entries::new(), &[NAME], begin).expect("nothing was held");
        let later = begin + AUTHORITY_LIFE * 3 / 4;

        let second = made(&first, &[NAME], later).expect("another authority");
        let third = made(&second, &[NAME], later + AUTHORITY_LIFE * 3 / 4).expect("and another");

        assert_eq!((authorities(&first), authorities(&second), authorities(&third)), (1, 2, 2));
        let text = |entries: &Entries| String::from_utf8_lossy(&entries[AUTHORITY]).into_owned();
        assert!(text(&second).ends_with(&text(&first)));
        assert_eq!(made(&third, &[NAME], later + AUTHORITY_LIFE * 3 / 4), None);
    }

    #[test]
    fn what_is_no_certificate_of_ours_is_replaced_whole() {
        let now = SystemTime::now();
        let good = made(&Entries::new(), &[NAME], now).expect("nothing was held");
        let other = made(&Entries::new(), &[NAME], now).expect("nothing was held");

        for key in [AUTHORITY, AUTHORITY_KEY, CERTIFICATE, KEY] {
            let without = {
                let mut entries = good.clone();
                entries.remove(key);
                entries
            };
            let odd = Entries::from_iter(good.clone().into_iter().chain([(key.to_owned(), b"odd".to_vec())]));
            let mixed =
                Entries::from_iter(good.clone().into_iter().chain([(key.to_owned(), other[key].clone())]));
            for held in [without, odd, mixed] {
                let again = made(&held, &[NAME], now).unwrap_or_else(|| panic!("{key} was taken as it was"));
                identity(&again).expect("usable");
                assert_eq!(made(&again, &[NAME], now), None);
            }
        }
    }
}

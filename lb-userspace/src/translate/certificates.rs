//! TLS Secrets: read once, checked to parse, to belong together and to cover the host.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Secret;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::pem::Pem;
use x509_parser::prelude::{AttributeTypeAndValue, FromDer, X509Certificate, X509Name};

use crate::model::ObjectName;
use crate::model::l7::{Certificate, Chain, Leaf};
use crate::objects::{Key, Kind};

use super::view::View;

/// Certificates of the Secrets asked for, each read once.
pub(super) struct Certificates<'a> {
    objects: &'a View<'a>,
    known: &'a mut Known,
}

/// What Secrets came to, until they change.
#[derive(Default)]
pub(super) struct Known(HashMap<ObjectName, Result<Arc<Checked>, String>>);

impl Known {
    /// These have changed.
    pub(super) fn forget(&mut self, changed: &BTreeSet<Key>) {
        for key in changed.iter().filter(|key| key.kind == Kind::Secret) {
            self.0.remove(&key.name);
        }
    }
}

/// A usable certificate and the names it is good for.
#[derive(Debug)]
pub(super) struct Checked {
    pub certificate: Arc<Certificate>,
    /// DNS names of the leaf, lower case, wildcards as written.
    pub names: Vec<String>,
}

impl Checked {
    /// Good for this host, which may be a wildcard itself.
    pub(super) fn covers(&self, host: &str) -> bool {
        self.names.iter().any(|name| {
            name == host
                || match (name.strip_prefix("*."), host.split_once('.')) {
                    (Some(suffix), Some((_, parent))) => suffix == parent,
                    _ => false,
                }
        })
    }
}

impl<'a> Certificates<'a> {
    pub(super) fn new(objects: &'a View<'a>, known: &'a mut Known) -> Self {
        Self { objects, known }
    }

    /// The certificate of a Secret, or why there is none.
    pub(super) fn of(&mut self, secret: &ObjectName) -> Result<Arc<Checked>, String> {
        // Asked for in any case, so that it is known who has to hear of a change.
        let Some(sourced) = self.objects.secrets.get(secret) else {
            return Err(match self.objects.is_unread(secret) {
                true => format!("Secret {secret} is written, but cannot be used"),
                false => format!("Secret {secret} does not exist"),
            });
        };
        if let Some(known) = self.known.0.get(secret) {
            return known.clone();
        }
        let result = check(secret, &sourced.object).map(Arc::new);
        self.known.0.insert(secret.clone(), result.clone());
        result
    }
}

impl Certificates<'_> {
    /// What is to be done about a Secret that cannot be used.
    pub(super) fn fix(&self, secret: &ObjectName) -> &'static str {
        match self.objects.secrets.get(secret) {
            Some(_) => "put a certificate and its key into tls.crt and tls.key of the Secret",
            None if self.objects.is_unread(secret) => {
                "correct the Secret as its own problem says, or let our account read it"
            }
            None => "create the Secret with tls.crt and tls.key",
        }
    }
}

/// Reads a Secret: chain and key must parse and belong together.
pub(super) fn check(name: &ObjectName, secret: &Secret) -> Result<Checked, String> {
    let entry = |key: &str| {
        let data = secret.data.as_ref().and_then(|data| data.get(key)).map(|value| value.0.as_slice());
        data.filter(|data| !data.is_empty()).ok_or_else(|| format!("Secret {name} has no {key}"))
    };
    let (chain_pem, key_pem) = (entry("tls.crt")?, entry("tls.key")?);
    let chain = blocks(chain_pem, "CERTIFICATE", |label| label == "CERTIFICATE")
        .map_err(|reason| format!("tls.crt of Secret {name} {reason}"))?;
    let mut certificates = Vec::new();
    for (index, block) in chain.iter().enumerate() {
        let (_, certificate) = X509Certificate::from_der(block).map_err(|error| {
            format!("certificate {} in tls.crt of Secret {name} does not parse: {error}", index + 1)
        })?;
        certificates.push(certificate);
    }
    let (leaf, others) =
        certificates.split_first().ok_or_else(|| format!("tls.crt of Secret {name} holds no certificate"))?;
    let keys = blocks(key_pem, "PRIVATE KEY", |label| label.ends_with("PRIVATE KEY"))
        .map_err(|reason| format!("tls.key of Secret {name} {reason}"))?;
    let key = keys.first().ok_or_else(|| format!("tls.key of Secret {name} holds no private key"))?;
    let key = rcgen::KeyPair::try_from(key.as_slice()).map_err(|_| {
        format!("the key in tls.key of Secret {name} does not parse or is of an unknown kind")
    })?;
    if key.public_key_raw() != leaf.public_key().subject_public_key.data.as_ref() {
        return Err(format!("tls.key of Secret {name} does not belong to its tls.crt"));
    }
    Ok(Checked {
        names: names(leaf),
        certificate: Arc::new(Certificate {
            secret: name.clone(),
            chain_pem: chain_pem.to_vec(),
            key_pem: key_pem.to_vec(),
            not_after: leaf.validity().not_after.timestamp(),
            leaf: Leaf {
                not_before: leaf.validity().not_before.timestamp(),
                chain: completeness(leaf, others, entry("ca.crt").ok()),
                ..described(leaf)
            },
        }),
    })
}

/// `authority`: what else stands in the Secret as its issuer.
fn completeness(
    leaf: &X509Certificate<'_>,
    others: &[X509Certificate<'_>],
    authority: Option<&[u8]>,
) -> Chain {
    let issuer = leaf.issuer().as_raw();
    if issuer == leaf.subject().as_raw() || others.iter().any(|other| other.subject().as_raw() == issuer) {
        return Chain::Whole;
    }
    let roots = authority.and_then(|pem| blocks(pem, "CERTIFICATE", |label| label == "CERTIFICATE").ok());
    let is_issued_by_a_root = roots.iter().flatten().any(|block| {
        X509Certificate::from_der(block)
            .is_ok_and(|(_, root)| root.subject().as_raw() == issuer && root.issuer().as_raw() == issuer)
    });
    let names_its_issuers_place = leaf.extensions().iter().any(|extension| {
        let ParsedExtension::AuthorityInfoAccess(access) = extension.parsed_extension() else { return false };
        access.accessdescs.iter().any(|place| place.access_method.to_id_string() == CA_ISSUERS)
    });
    match (is_issued_by_a_root, names_its_issuers_place) {
        (true, _) => Chain::Whole,
        (false, true) => Chain::Broken,
        (false, false) => Chain::Alone,
    }
}

/// Where the certificate of the issuer is to be had (RFC 5280 4.2.2.1).
const CA_ISSUERS: &str = "1.3.6.1.5.5.7.48.2";

fn described(leaf: &X509Certificate<'_>) -> Leaf {
    let text = |part: Option<&AttributeTypeAndValue<'_>>| {
        part.and_then(|part| part.as_str().ok()).unwrap_or_default().to_owned()
    };
    let issuer = leaf.issuer();
    let algorithm = &leaf.public_key().algorithm.algorithm;
    Leaf {
        issuer: rfc2253(issuer),
        issuer_organization: text(issuer.iter_organization().next()),
        issuer_common_name: text(issuer.iter_common_name().next()),
        serial: leaf.serial.to_string(),
        key_algorithm: match algorithm.to_id_string().as_str() {
            "1.2.840.113549.1.1.1" => "RSA".to_owned(),
            "1.2.840.10045.2.1" => "ECDSA".to_owned(),
            "1.3.101.112" => "Ed25519".to_owned(),
            other => other.to_owned(),
        },
        ..Leaf::default()
    }
}

/// Parts of a name and their short names, in the order in which Go writes them.
const PARTS: [(&str, &str); 9] = [
    ("2.5.4.5", "SERIALNUMBER"),
    ("2.5.4.3", "CN"),
    ("2.5.4.17", "POSTALCODE"),
    ("2.5.4.9", "STREET"),
    ("2.5.4.8", "ST"),
    ("2.5.4.7", "L"),
    ("2.5.4.11", "OU"),
    ("2.5.4.10", "O"),
    ("2.5.4.6", "C"),
];

/// As ingress-nginx has it in `identifier`.
fn rfc2253(name: &X509Name<'_>) -> String {
    let part = |attribute: &AttributeTypeAndValue<'_>| {
        let oid = attribute.attr_type().to_id_string();
        let at = PARTS.iter().position(|(known, _)| *known == oid);
        let short = at.and_then(|at| PARTS.get(at)).map_or(oid.as_str(), |(_, short)| *short);
        (at.unwrap_or(PARTS.len()), format!("{short}={}", attribute.as_str().unwrap_or_default()))
    };
    let mut parts: Vec<(usize, String)> = name.iter_attributes().map(part).collect();
    parts.sort_by_key(|(at, _)| *at);
    parts.into_iter().map(|(_, part)| part).collect::<Vec<_>>().join(",")
}

/// Whether this is a bundle of certificates; says what is wrong with it.
pub(super) fn authorities(pem: &[u8]) -> Result<(), String> {
    for (index, block) in blocks(pem, "CERTIFICATE", |label| label == "CERTIFICATE")?.iter().enumerate() {
        X509Certificate::from_der(block).map_err(|error| {
            format!("holds a certificate (number {}) that does not parse: {error}", index + 1)
        })?;
    }
    Ok(())
}

/// Contents of the PEM blocks whose label is wanted; `label` is how they are called where there are none.
pub(super) fn blocks(pem: &[u8], label: &str, wanted: fn(&str) -> bool) -> Result<Vec<Vec<u8>>, String> {
    let mut blocks = Vec::new();
    ends_as_it_begins(pem)?;
    for block in Pem::iter_from_buffer(pem) {
        let block = block.map_err(|_| "is not PEM".to_owned())?;
        if wanted(&block.label) {
            blocks.push(block.contents);
        }
    }
    if blocks.is_empty() { Err(format!("holds no PEM block {label}")) } else { Ok(blocks) }
}

/// Readers of PEM differ in what they make of a block whose end is missing or that of another.
fn ends_as_it_begins(pem: &[u8]) -> Result<(), String> {
    let label = |line: &[u8], word: &[u8]| Some(line.strip_prefix(word)?.strip_suffix(b"-----")?.to_vec());
    let mut open = None;
    for line in pem.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii_end) {
        let (begins, ends) = (label(line, b"-----BEGIN "), label(line, b"-----END "));
        match (&open, begins, ends) {
            (None, Some(begun), _) => open = Some(begun),
            (Some(begun), None, Some(ended)) if *begun == ended => open = None,
            (_, None, None) | (None, None, Some(_)) => {}
            (Some(_), ..) => break,
        }
    }
    match open {
        None => Ok(()),
        Some(label) => {
            let label = String::from_utf8_lossy(&label).into_owned();
            Err(format!("has a block that does not end by -----END {label}-----"))
        }
    }
}

/// Subject alternative names, or the common name of a certificate that has none.
fn names(leaf: &X509Certificate<'_>) -> Vec<String> {
    let alternative = leaf.subject_alternative_name().ok().flatten();
    let Some(alternative) = alternative else {
        let common = leaf.subject().iter_common_name().filter_map(|name| name.as_str().ok());
        return common.map(str::to_ascii_lowercase).collect();
    };
    let names = alternative.value.general_names.iter().filter_map(|name| match name {
        GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
        GeneralName::IPAddress(bytes) => ip(bytes).map(|ip| ip.to_string()),
        _ => None,
    });
    names.collect()
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;
    use rcgen::{CertificateParams, CustomExtension, DnType, Issuer, KeyPair, SerialNumber};

    use super::*;

    #[test]
    fn a_leaf_is_described_in_the_words_of_metrics() {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(vec!["a.example.com".to_owned()]).expect("names");
        params.distinguished_name.push(DnType::OrganizationName, "Example");
        params.distinguished_name.push(DnType::CommonName, "edge");
        params.serial_number = Some(SerialNumber::from(4711u64));
        let certificate = params.self_signed(&key).expect("a certificate");
        let data = [("tls.crt", certificate.pem()), ("tls.key", key.serialize_pem())];
        let data = data.map(|(name, pem)| (name.to_owned(), ByteString(pem.into_bytes())));
        let secret = Secret { data: Some(data.into()), ..Secret::default() };

        let checked = check(&ObjectName::new("default", "tls"), &secret).expect("usable");

        assert_eq!(
            checked.certificate.leaf,
            Leaf {
                issuer: "CN=edge,O=Example".to_owned(),
                issuer_organization: "Example".to_owned(),
                issuer_common_name: "edge".to_owned(),
                serial: "4711".to_owned(),
                key_algorithm: "ECDSA".to_owned(),
                not_before: rcgen::date_time_ymd(1975, 1, 1).unix_timestamp(),
                chain: Chain::Whole,
            }
        );
    }

    #[test]
    fn a_block_that_does_not_end_as_it_begins_is_refused() {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec!["a.example.com".to_owned()]).expect("names");
        let chain = params.self_signed(&key).expect("a certificate").pem();
        let key = key.serialize_pem();
        let other_end = key.replace("END PRIVATE", "END RSA PRIVATE");
        let mark = "a block that does not end by -----END PRIVATE KEY-----";
        for (case, key, flaw) in [
            ("whole", key.clone(), None),
            ("with text around it", format!("Key:\n{key}-----END-----\n"), None),
            ("ended as another one", other_end.clone(), Some(mark)),
            ("not ended before the next one", other_end + &key, Some(mark)),
        ] {
            let data = [("tls.crt", chain.clone()), ("tls.key", key)];
            let data = data.map(|(name, pem)| (name.to_owned(), ByteString(pem.into_bytes())));
            let secret = Secret { data: Some(data.into()), ..Secret::default() };

            let checked = check(&ObjectName::new("default", "tls"), &secret);

            let told = checked.err().unwrap_or_default();
            assert!(flaw.map_or(told.is_empty(), |flaw| told.contains(flaw)), "{case}: {told:?}");
        }
    }

    #[test]
    fn a_leaf_without_its_issuer_is_known() {
        let params = |name: &str| {
            let mut params = CertificateParams::new(vec!["a.example.com".to_owned()]).expect("names");
            params.distinguished_name.push(DnType::CommonName, name);
            params
        };
        let [of_ca, of_leaf] = [(); 2].map(|()| KeyPair::generate().expect("a key"));
        let ca = params("ca").self_signed(&of_ca).expect("a certificate").pem();
        let issuer = Issuer::new(params("ca"), of_ca);
        let leaf = |place: Option<&[u8]>| {
            let mut params = params("leaf");
            let access = place
                .map(|place| CustomExtension::from_oid_content(&[1, 3, 6, 1, 5, 5, 7, 1, 1], place.to_vec()));
            params.custom_extensions.extend(access);
            params.signed_by(&of_leaf, &issuer).expect("a certificate").pem()
        };
        // caIssuers, the URI "a".
        let place = [0x30, 0x0f, 0x30, 0x0d, 6, 8, 0x2b, 6, 1, 5, 5, 7, 0x30, 2, 0x86, 1, 0x61];
        let cases = [
            (
                "its own issuer",
                params("x").self_signed(&of_leaf).expect("a certificate").pem(),
                "",
                Chain::Whole,
            ),
            ("with its issuer", leaf(None) + &ca, "", Chain::Whole),
            ("issued by the root beside it", leaf(Some(&place)), &*ca, Chain::Whole),
            ("alone", leaf(None), "", Chain::Alone),
            ("alone, from an issuer that can be had", leaf(Some(&place)), "", Chain::Broken),
        ];
        for (case, chain, authority, expected) in cases {
            let data =
                [("tls.crt", chain), ("tls.key", of_leaf.serialize_pem()), ("ca.crt", authority.to_owned())];
            let data = data.map(|(name, pem)| (name.to_owned(), ByteString(pem.into_bytes())));
            let secret = Secret { data: Some(data.into()), ..Secret::default() };

            let checked = check(&ObjectName::new("default", "tls"), &secret).expect("usable");

            assert_eq!(checked.certificate.leaf.chain, expected, "{case}");
        }
    }
}

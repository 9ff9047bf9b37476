//! Names in certificates as RFC 2253 writes them, which is how nginx passes them on: last part
//! first, special characters escaped, everything beyond ASCII as hex.

use x509_parser::prelude::X509Name;

/// `CN=client,OU=Unit,O=Company`; one line whatever the certificate holds.
pub(super) fn rfc2253(name: &X509Name<'_>) -> String {
    let mut parts: Vec<String> = Vec::new();
    for set in name.iter_rdn() {
        let attributes: Vec<_> = set
            .iter()
            .map(|attribute| {
                let kind = attribute.attr_type().to_id_string();
                let bytes = attribute.attr_value().data;
                let text = attribute.as_str().map_or(bytes, str::as_bytes);
                format!("{}={}", short(&kind), escape(text))
            })
            .collect();
        parts.push(attributes.join("+"));
    }
    parts.reverse();
    parts.join(",")
}

/// OpenSSL's short names.
fn short(oid: &str) -> &str {
    match oid {
        "2.5.4.3" => "CN",
        "2.5.4.4" => "SN",
        "2.5.4.5" => "serialNumber",
        "2.5.4.6" => "C",
        "2.5.4.7" => "L",
        "2.5.4.8" => "ST",
        "2.5.4.9" => "street",
        "2.5.4.10" => "O",
        "2.5.4.11" => "OU",
        "2.5.4.12" => "title",
        "2.5.4.42" => "GN",
        "2.5.4.43" => "initials",
        "0.9.2342.19200300.100.1.1" => "UID",
        "0.9.2342.19200300.100.1.25" => "DC",
        "1.2.840.113549.1.9.1" => "emailAddress",
        other => other,
    }
}

fn escape(value: &[u8]) -> String {
    let mut text = String::with_capacity(value.len());
    let last = value.len().saturating_sub(1);
    for (at, &byte) in value.iter().enumerate() {
        match byte {
            b',' | b'+' | b'"' | b'\\' | b'<' | b'>' | b';' => text.extend(['\\', char::from(byte)]),
            b'#' | b' ' if at == 0 => text.extend(['\\', char::from(byte)]),
            b' ' if at == last => text.push_str("\\ "),
            b' '..=b'~' => text.push(char::from(byte)),
            _ => text.push_str(&format!("\\{byte:02X}")),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, DnValue, KeyPair};
    use x509_parser::prelude::{FromDer, X509Certificate};

    use super::*;

    #[test]
    fn names_are_written_as_openssl_does_with_rfc2253() {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CountryName, "DE");
        params.distinguished_name.push(DnType::OrganizationName, "Käse, Brot+Söhne");
        params.distinguished_name.push(DnType::CommonName, DnValue::Utf8String(" a\r\nb#".to_owned()));
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        let (_, parsed) = X509Certificate::from_der(certificate.der()).unwrap();

        assert_eq!(rfc2253(parsed.subject()), r"CN=\ a\0D\0Ab#,O=K\C3\A4se\, Brot\+S\C3\B6hne,C=DE");
    }
}

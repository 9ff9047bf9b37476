//! OpenSSL's cipher lists, as far as they speak of suites that we have: ECDHE with an AEAD.

use super::findings::About;
use crate::model::l7::Cipher;

/// What a list comes to.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct List {
    /// In the order of the list, each once.
    pub suites: Vec<Cipher>,
    /// Names and keywords that select none of our suites.
    pub unknown: Vec<String>,
}

/// Reads a list: names, keywords joined by `+`, and `!` or `-` in front of what is taken out.
pub(super) fn read(text: &str) -> List {
    let mut list = List { suites: Vec::new(), unknown: Vec::new() };
    let mut banned: Vec<Cipher> = Vec::new();
    for word in text.split([':', ',', ' ']).filter(|word| !word.is_empty()) {
        if let Some(out) = word.strip_prefix(['!', '-']) {
            let out = chosen(out);
            list.suites.retain(|suite| !out.contains(suite));
            // `!` holds for good, `-` until the suite is named again.
            if word.starts_with('!') {
                banned.extend(out);
            }
            continue;
        }
        let chosen = chosen(word.trim_start_matches('+'));
        // `@STRENGTH` orders, and the suites of TLS 1.3 are always there.
        if chosen.is_empty() && !word.starts_with('@') && !word.starts_with("TLS_") {
            list.unknown.push(word.to_owned());
        }
        for suite in chosen {
            if !banned.contains(&suite) && !list.suites.contains(&suite) {
                list.suites.push(suite);
            }
        }
    }
    list
}

/// Suites that a name or a `+`-joined row of keywords stands for.
fn chosen(word: &str) -> Vec<Cipher> {
    if let Some(suite) = Cipher::ALL.into_iter().find(|suite| suite.as_str().eq_ignore_ascii_case(word)) {
        return vec![suite];
    }
    Cipher::ALL.into_iter().filter(|suite| word.split('+').all(|keyword| is(*suite, keyword))).collect()
}

fn is(suite: Cipher, keyword: &str) -> bool {
    let name = suite.as_str();
    match keyword {
        "ALL" | "DEFAULT" | "HIGH" | "TLSv1.2" | "ECDHE" | "EECDH" | "kECDHE" | "kEECDH" | "AEAD" => true,
        "ECDSA" | "aECDSA" => name.contains("-ECDSA-"),
        "RSA" | "aRSA" => name.contains("-RSA-"),
        "AES" | "AESGCM" => name.contains("-AES"),
        "AES128" => name.contains("-AES128-"),
        "AES256" => name.contains("-AES256-"),
        "CHACHA20" => name.contains("-CHACHA20-"),
        _ => false,
    }
}

/// Says which names of a list are not available, and that TLS 1.2 is off where none is.
pub(super) fn tell(list: &List, field: &str, about: &mut About<'_>) {
    if !list.unknown.is_empty() {
        let message = format!("not available here and left out: {}", list.unknown.join(", "));
        about.info("unknown-cipher", field, message, "");
    }
    if list.suites.is_empty() {
        about.warn(
            "no-cipher",
            field,
            "none of these ciphers is available: TLS 1.2 is not spoken, TLS 1.3 is",
            "name an ECDHE suite with AES-GCM or CHACHA20-POLY1305",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Cipher::{EcdsaAes128, EcdsaAes256, EcdsaChaCha20, RsaAes128, RsaAes256, RsaChaCha20};

    #[test]
    fn lists_select_in_their_order() {
        let cases: [(&str, &[Cipher], &[&str]); 8] = [
            ("ECDHE-RSA-AES256-GCM-SHA384:ECDHE-ECDSA-AES128-GCM-SHA256", &[RsaAes256, EcdsaAes128], &[]),
            (
                "DHE-RSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256",
                &[RsaAes128],
                &["DHE-RSA-AES128-GCM-SHA256"],
            ),
            ("HIGH:!aNULL:!MD5", &Cipher::ALL, &[]),
            ("EECDH+AESGCM:EECDH+CHACHA20", &Cipher::ALL, &[]),
            ("EECDH+AESGCM+aRSA", &[RsaAes128, RsaAes256], &[]),
            ("ALL:!ECDSA:!AES", &[RsaChaCha20], &[]),
            ("!AES:HIGH", &[EcdsaChaCha20, RsaChaCha20], &[]),
            ("RC4-SHA", &[], &["RC4-SHA"]),
        ];
        for (text, suites, unknown) in cases {
            let unknown = unknown.iter().map(|name| (*name).to_owned()).collect();
            assert_eq!(read(text), List { suites: suites.to_vec(), unknown }, "{text}");
        }
        assert_eq!(read("ECDSA+AES256:TLS_AES_128_GCM_SHA256").suites, [EcdsaAes256]);
    }
}

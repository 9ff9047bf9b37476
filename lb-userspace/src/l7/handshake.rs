//! What a TLS handshake with a client came to, in nginx's words (`$ssl_*`).

use std::net::IpAddr;

use rustls::{CipherSuite, CommonState, ProtocolVersion};

/// A finished handshake.
#[derive(Debug)]
pub(super) struct Handshake {
    /// `$ssl_protocol`.
    pub(super) protocol: &'static str,
    /// `$ssl_cipher`, by OpenSSL's name.
    pub(super) cipher: &'static str,
    /// `$ssl_server_name`: the name that the client asked for.
    pub(super) server_name: Option<Box<str>>,
}

impl Handshake {
    /// That of a session whose client asked for `name`; before its end nothing is known.
    pub(super) fn of(session: &CommonState, name: Option<&str>) -> Self {
        let suite = session.negotiated_cipher_suite().map(|suite| suite.suite());
        Self {
            protocol: match session.protocol_version() {
                Some(ProtocolVersion::TLSv1_3) => "TLSv1.3",
                Some(ProtocolVersion::TLSv1_2) => "TLSv1.2",
                _ => "-",
            },
            cipher: suite.map_or("-", cipher),
            // An address is no name (RFC 6066 3), and counts as none.
            server_name: name.filter(|name| name.parse::<IpAddr>().is_err()).map(Into::into),
        }
    }
}

/// Of every suite that is spoken here.
fn cipher(suite: CipherSuite) -> &'static str {
    match suite {
        CipherSuite::TLS13_AES_128_GCM_SHA256 => "TLS_AES_128_GCM_SHA256",
        CipherSuite::TLS13_AES_256_GCM_SHA384 => "TLS_AES_256_GCM_SHA384",
        CipherSuite::TLS13_CHACHA20_POLY1305_SHA256 => "TLS_CHACHA20_POLY1305_SHA256",
        CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256 => "ECDHE-ECDSA-AES128-GCM-SHA256",
        CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384 => "ECDHE-ECDSA-AES256-GCM-SHA384",
        CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256 => "ECDHE-ECDSA-CHACHA20-POLY1305",
        CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256 => "ECDHE-RSA-AES128-GCM-SHA256",
        CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384 => "ECDHE-RSA-AES256-GCM-SHA384",
        CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256 => "ECDHE-RSA-CHACHA20-POLY1305",
        _ => "-",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_suite_that_may_be_chosen_has_a_name() {
        for suite in rustls::crypto::aws_lc_rs::ALL_CIPHER_SUITES {
            assert_ne!(cipher(suite.suite()), "-", "{suite:?}");
        }
    }
}

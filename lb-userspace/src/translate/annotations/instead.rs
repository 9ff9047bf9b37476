//! What counts in the place of a value that cannot be read, as problems say it.

use super::super::config::{Settings, usual};

/// Defaults of the annotations that are no key of the ConfigMap.
const DEFAULTS: &[(&str, &str)] = &[
    ("affinity-canary-behavior", "sticky"),
    ("affinity-mode", "balanced"),
    ("auth-always-set-cookie", "false"),
    ("auth-keepalive", "0"),
    ("auth-keepalive-requests", "1000"),
    ("auth-keepalive-timeout", "60"),
    ("auth-signin-redirect-param", "rd"),
    ("auth-tls-pass-certificate-to-upstream", "false"),
    ("auth-tls-verify-client", "on"),
    ("auth-tls-verify-depth", "1"),
    ("backend-protocol", "HTTP"),
    ("canary", "false"),
    ("canary-weight", "0"),
    ("canary-weight-total", "100"),
    ("cors-allow-credentials", "true"),
    ("cors-max-age", "1728000"),
    ("enable-access-log", "true"),
    ("enable-cors", "false"),
    ("enable-global-auth", "true"),
    ("enable-rewrite-log", "false"),
    ("from-to-www-redirect", "false"),
    ("limit-burst-multiplier", "5"),
    ("mirror-request-body", "on"),
    ("permanent-redirect-code", "301"),
    ("proxy-ssl-protocols", "TLSv1.2"),
    ("proxy-ssl-server-name", "off"),
    ("proxy-ssl-verify", "off"),
    ("proxy-ssl-verify-depth", "1"),
    ("satisfy", "all"),
    ("session-cookie-change-on-failure", "false"),
    ("session-cookie-conditional-samesite-none", "false"),
    ("session-cookie-name", "INGRESSCOOKIE"),
    ("session-cookie-secure", "false"),
    ("ssl-passthrough", "false"),
    ("temporal-redirect-code", "302"),
    ("upstream-hash-by-subset", "false"),
    ("upstream-hash-by-subset-size", "3"),
    ("upstream-health-check-interval", "10"),
    ("use-regex", "false"),
];

/// Whether the ConfigMap's counts, the default, or nothing.
pub(super) fn instead(name: &str, settings: &Settings) -> String {
    if let Some(text) = settings.text(name) {
        return format!("the ConfigMap's {text} is used");
    }
    match DEFAULTS.iter().find(|(with_default, _)| *with_default == name) {
        Some((_, default)) => format!("the default, {default}, is used"),
        None => usual(name),
    }
}

#[cfg(test)]
mod tests {
    use super::super::named::row;
    use super::*;

    #[test]
    fn defaults_are_those_of_annotations_that_are_no_key() {
        for (name, _) in DEFAULTS {
            assert!(row(name).is_some(), "{name}");
            assert_eq!(usual(name), "it is ignored", "{name}");
        }
    }
}

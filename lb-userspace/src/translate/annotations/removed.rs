//! Annotations that ingress-nginx once had, so that who still carries them learns what became of them.

/// Without the prefix, and what there is in its place.
const REMOVED: &[(&str, &str)] = &[
    ("add-base-url", "let the application know its base path"),
    ("base-url-scheme", "let the application know its base path"),
    ("enable-datadog", "use the metrics, or enable-opentelemetry"),
    ("enable-influxdb", "use the metrics or the access log"),
    ("enable-jaeger", "use enable-opentelemetry"),
    ("enable-opentracing", "use enable-opentelemetry"),
    ("enable-websockets", "remove it: WebSockets need no annotation"),
    ("enable-zipkin", "use enable-opentelemetry"),
    ("global-rate-limit", "use limit-rps or limit-rpm, which count per balancer"),
    ("global-rate-limit-header-based", "use limit-rps or limit-rpm, which count per balancer"),
    ("global-rate-limit-ignored-cidrs", "use limit-allowlist"),
    ("global-rate-limit-key", "use limit-rps or limit-rpm, which count per client address"),
    ("global-rate-limit-window", "use limit-rps or limit-rpm, which count per balancer"),
    ("grpc-backend", "use backend-protocol: GRPC"),
    ("influxdb-host", "use the metrics or the access log"),
    ("influxdb-measurement", "use the metrics or the access log"),
    ("influxdb-port", "use the metrics or the access log"),
    ("influxdb-server-name", "use the metrics or the access log"),
    ("lua-resty-waf", "put a web application firewall in front, or behind"),
    ("lua-resty-waf-allow-unknown-content-types", "put a web application firewall in front, or behind"),
    ("lua-resty-waf-debug", "put a web application firewall in front, or behind"),
    ("lua-resty-waf-extra-rules", "put a web application firewall in front, or behind"),
    ("lua-resty-waf-ignore-rulesets", "put a web application firewall in front, or behind"),
    ("lua-resty-waf-score-threshold", "put a web application firewall in front, or behind"),
    ("mirror-uri", "use mirror-target"),
    ("opentracing-operation-name", "use opentelemetry-operation-name"),
    ("opentracing-trust-incoming-span", "use opentelemetry-trust-incoming-span"),
    ("secure-backends", "use backend-protocol: HTTPS"),
    ("secure-verify-ca-secret", "use proxy-ssl-secret and proxy-ssl-verify: \"on\""),
    ("session-cookie-hash", "remove it: affinity: cookie is enough"),
    ("upstream-fail-timeout", "use penstock.dev/eject-after on the Service"),
    ("upstream-max-fails", "use penstock.dev/eject-after on the Service"),
];

/// What there is in the place of an annotation that is no more.
pub(super) fn successor(short: &str) -> Option<&'static str> {
    REMOVED.iter().find(|(name, _)| *name == short).map(|(_, fix)| *fix)
}

#[cfg(test)]
mod tests {
    use super::super::named::row;
    use super::*;

    #[test]
    fn what_is_removed_is_not_known_as_well() {
        for (name, _) in REMOVED {
            assert!(row(name).is_none(), "{name}");
        }
    }
}

//! The one table of the ConfigMap's keys: what may stand there, its default, and what becomes of it.
//! Whether a plain key is honoured is not written here: it is what a section asks for.

use Fate::{ByFlags, Neutral, Plain, Refused, Removed};
use Form::{Bool, List, Number, Reference, Size, Text, Time};

/// One key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConfigKey {
    /// As written under `data`.
    pub name: &'static str,
    /// What may stand there.
    pub form: Form,
    /// ingress-nginx's default; empty where there is none.
    pub default: &'static str,
    /// What becomes of it.
    pub fate: Fate,
    /// One line for people.
    pub doc: &'static str,
}

/// Form of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// As Go reads booleans.
    Bool,
    /// Whole number.
    Number,
    /// Seconds, or a time as nginx writes it.
    Time,
    /// Bytes with an optional k, m or g.
    Size,
    /// Several values, blanks or commas between them.
    List,
    /// `namespace/name`.
    Reference,
    /// Anything.
    Text,
}

impl std::fmt::Display for Form {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Bool => "bool",
            Self::Number => "number",
            Self::Time => "time",
            Self::Size => "size",
            Self::List => "list",
            Self::Reference => "namespace/name",
            Self::Text => "text",
        })
    }
}

/// What becomes of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Honoured where a section asks for it, else not yet.
    Plain,
    /// Accepted and without effect here: a detail of nginx.
    Neutral,
    /// Without effect here, where it is a flag's to say.
    ByFlags,
    /// Never honoured; it may hold rules that keep somebody out, so every Ingress answers 503.
    Refused,
    /// ingress-nginx has it no more; what to use instead.
    Removed(&'static str),
}

/// What becomes of a key, with what the code of this version does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyStatus {
    /// Does what it says.
    Honoured,
    /// Not honoured yet; the default is used.
    NotYet,
    /// Accepted and without effect here.
    NoEffect,
    /// Never honoured.
    Refused,
    /// Is no more.
    Removed,
}

/// The row of a key.
pub(in crate::translate) fn row(name: &str) -> Option<&'static ConfigKey> {
    KEYS.iter().find(|row| row.name == name)
}

/// Every key that ingress-nginx has, and those it had that people still write.
#[rustfmt::skip]
pub const KEYS: &[ConfigKey] = &[
    // Client address and forwarded headers.
    plain("use-forwarded-headers", Bool, "false", "believe X-Forwarded-* of whoever connects"),
    plain("compute-full-forwarded-for", Bool, "false", "append to X-Forwarded-For instead of replacing it"),
    plain("enable-real-ip", Bool, "false", "take the client's address, and nothing else, from a header"),
    plain("forwarded-for-header", Text, "X-Forwarded-For", "the header that the address is taken from"),
    plain("proxy-real-ip-cidr", List, "0.0.0.0/0", "whose headers are believed"),
    plain("use-proxy-protocol", Bool, "false", "clients begin with a PROXY header"),
    plain("proxy-protocol-header-timeout", Time, "5s", "how long that header may take"),
    plain("proxy-add-original-uri-header", Bool, "false", "send X-Original-URI upstream"),
    plain("generate-request-id", Bool, "true", "make an X-Request-ID where there is none"),
    plain("enable-underscores-in-headers", Bool, "false", "let header names have underscores"),
    plain("ignore-invalid-headers", Bool, "true", "drop headers with odd names"),
    plain("limit-conn-zone-variable", Text, "$binary_remote_addr", "what limits count by"),
    by_flags("bind-address", List, "", "addresses to listen on: --http, --https"),
    by_flags("disable-ipv6", Bool, "false", "listen on IPv4 alone: --http, --https"),
    neutral("disable-ipv6-dns", Bool, "false", "ask for IPv4 addresses alone"),
    neutral("reuse-port", Bool, "true", "one listening socket per worker, which is always so here"),
    neutral("enable-multi-accept", Bool, "true", "how nginx accepts connections"),
    // Upstream side.
    plain("proxy-connect-timeout", Number, "5", "seconds to connect to an endpoint"),
    plain("proxy-send-timeout", Number, "60", "seconds of silence while sending upstream"),
    plain("proxy-read-timeout", Number, "60", "seconds of silence while waiting for the upstream"),
    plain("proxy-body-size", Size, "1m", "largest request body; 0: any"),
    plain("proxy-buffering", Text, "off", "read the response ahead of the client"),
    plain("proxy-request-buffering", Text, "on", "read the whole request before sending it; where it is not set, bodies stream"),
    plain("proxy-buffer-size", Size, "4k", "largest response head"),
    plain("proxy-buffers-number", Number, "4", "how many buffers of a response"),
    neutral("proxy-busy-buffers-size", Size, "", "a detail of nginx's buffers"),
    plain("proxy-max-temp-file-size", Size, "1024m", "how much of a response may go to disk"),
    plain("proxy-http-version", Text, "1.1", "HTTP version spoken upstream"),
    plain("proxy-next-upstream", List, "error timeout", "when another endpoint is tried"),
    plain("proxy-next-upstream-tries", Number, "3", "how many endpoints are tried"),
    plain("proxy-next-upstream-timeout", Number, "0", "how long endpoints are tried, seconds"),
    plain("retry-non-idempotent", Bool, "false", "repeat POST, LOCK and PATCH, too"),
    plain("proxy-cookie-domain", Text, "off", "rewrite Domain of cookies"),
    plain("proxy-cookie-path", Text, "off", "rewrite Path of cookies"),
    plain("proxy-redirect-from", Text, "off", "rewrite Location: what"),
    plain("proxy-redirect-to", Text, "off", "rewrite Location: to what"),
    plain("proxy-set-headers", Reference, "", "ConfigMap with headers of every upstream request"),
    plain("upstream-keepalive-connections", Number, "320", "idle connections kept to endpoints"),
    plain("upstream-keepalive-requests", Number, "10000", "requests of one such connection"),
    plain("upstream-keepalive-timeout", Time, "60", "how long one may be idle"),
    plain("upstream-keepalive-time", Time, "1h", "how old one may become"),
    plain("load-balance", Text, "round_robin", "how an endpoint is chosen"),
    plain("upstream-hash-by", Text, "", "choose the endpoint by a hash"),
    plain("service-upstream", Bool, "false", "send to Services' addresses instead of endpoints"),
    plain("proxy-ssl-location-only", Bool, "false", "proxy-ssl-* holds for its own paths alone"),
    neutral("grpc-buffer-size-kb", Number, "0", "buffer of a gRPC response; frames need none here"),
    plain("proxy-stream-timeout", Time, "600s", "silence of a TCP or UDP connection that the proxy serves"),
    plain("proxy-stream-next-upstream", Bool, "true", "try another endpoint for such a connection"),
    plain("proxy-stream-next-upstream-timeout", Time, "600s", "how long they are tried"),
    plain("proxy-stream-next-upstream-tries", Number, "3", "how many are tried"),
    plain("proxy-stream-responses", Number, "1", "datagrams that answer one of a client's"),
    neutral("proxy-headers-hash-max-size", Number, "512", "size of a hash table of nginx"),
    neutral("proxy-headers-hash-bucket-size", Number, "64", "size of a hash table of nginx"),
    // Client side.
    plain("keep-alive", Time, "75", "how long a client may be idle; 0: not at all"),
    plain("keep-alive-requests", Number, "1000", "requests of one client connection"),
    plain("client-header-timeout", Time, "60", "how long the head of a request may take"),
    plain("client-body-timeout", Time, "60", "silence of a client within a body"),
    plain("client-body-buffer-size", Size, "8k", "how much of a request body is held in memory"),
    plain("large-client-header-buffers", Text, "4 8k", "longest line and head of a request"),
    plain("use-http2", Bool, "true", "offer HTTP/2 on TLS listeners"),
    plain("http2-max-concurrent-streams", Number, "128", "requests at once of one HTTP/2 connection"),
    plain("max-worker-connections", Number, "16384", "connections of one worker"),
    plain("worker-shutdown-timeout", Time, "240s", "how long old requests may take when the process ends"),
    neutral("worker-processes", Text, "auto", "workers: --workers"),
    neutral("client-header-buffer-size", Size, "1k", "first buffer of a request's head"),
    neutral("http2-max-field-size", Size, "", "is no more; large-client-header-buffers counts"),
    neutral("http2-max-header-size", Size, "", "is no more; large-client-header-buffers counts"),
    neutral("http2-max-requests", Number, "", "is no more; keep-alive-requests counts"),
    neutral("max-worker-open-files", Number, "0", "raised as far as the system allows"),
    neutral("worker-cpu-affinity", Text, "", "which CPU a worker runs on"),
    neutral("worker-serial-reloads", Bool, "false", "nothing is ever reloaded here"),
    neutral("server-name-hash-max-size", Number, "1024", "size of a hash table of nginx"),
    neutral("server-name-hash-bucket-size", Number, "", "size of a hash table of nginx"),
    neutral("map-hash-bucket-size", Number, "64", "size of a hash table of nginx"),
    neutral("variables-hash-max-size", Number, "2048", "size of a hash table of nginx"),
    neutral("variables-hash-bucket-size", Number, "256", "size of a hash table of nginx"),
    neutral("lua-shared-dicts", Text, "", "memory of Lua programs"),
    neutral("enable-aio-write", Bool, "true", "how nginx writes files"),
    neutral("debug-connections", List, "", "clients that nginx logs more of"),
    // TLS, redirects, HSTS.
    plain("ssl-protocols", List, "TLSv1.2 TLSv1.3", "TLS versions towards clients"),
    plain("ssl-ciphers", List, "Mozilla's intermediate list", "TLS 1.2 ciphers towards clients"),
    plain("ssl-ecdh-curve", List, "auto", "curves, in order"),
    plain("ssl-session-cache", Bool, "true", "remember sessions"),
    plain("ssl-session-cache-size", Size, "10m", "how many"),
    plain("ssl-session-timeout", Time, "10m", "how long"),
    plain("ssl-session-tickets", Bool, "false", "let clients remember sessions; on here, because the keys change"),
    plain("ssl-session-ticket-key", Text, "", "one key for several balancers"),
    plain("ssl-reject-handshake", Bool, "false", "refuse names that no host has"),
    plain("ssl-redirect", Bool, "true", "redirect http to https where the host has TLS"),
    plain("force-ssl-redirect", Bool, "false", "redirect http to https even without TLS here"),
    plain("http-redirect-code", Number, "308", "status of such redirects"),
    plain("no-tls-redirect-locations", List, "/.well-known/acme-challenge", "paths that are never redirected"),
    plain("preserve-trailing-slash", Bool, "false", "keep a final slash in the https redirect"),
    plain("relative-redirects", Bool, "false", "send Location without scheme and host"),
    plain("use-port-in-redirects", Bool, "false", "name the port in redirects"),
    plain("hsts", Bool, "true", "send Strict-Transport-Security over TLS"),
    plain("hsts-max-age", Number, "31536000", "for how many seconds"),
    plain("hsts-include-subdomains", Bool, "true", "for all names below, too"),
    plain("hsts-preload", Bool, "false", "for lists of browsers"),
    neutral("ssl-early-data", Bool, "false", "requests that could be replayed are not taken"),
    neutral("ssl-buffer-size", Size, "4k", "records grow with the connection here"),
    neutral("ssl-dh-param", Reference, "", "no cipher that needs it is spoken"),
    neutral("enable-ocsp", Bool, "false", "revocation by OCSP, which authorities give up"),
    // Responses.
    plain("hide-headers", List, "", "headers of upstreams that clients do not see"),
    plain("add-headers", Reference, "", "ConfigMap with headers of every response"),
    plain("global-allowed-response-headers", List, "", "names that custom-headers may set"),
    plain("allow-backend-server-header", Bool, "false", "show the upstream's Server header"),
    plain("server-tokens", Bool, "false", "show a Server header of our own"),
    plain("custom-http-errors", List, "", "statuses replaced by the default backend's answer"),
    plain("disable-proxy-intercept-errors", Bool, "false", "do not replace statuses of upstreams"),
    plain("use-gzip", Bool, "false", "compress by gzip"),
    plain("gzip-level", Number, "1", "how hard"),
    plain("gzip-min-length", Number, "256", "from how many bytes"),
    plain("gzip-types", List, "text and the like", "what is compressed"),
    plain("gzip-disable", Text, "", "which User-Agents get nothing by gzip"),
    plain("enable-brotli", Bool, "false", "compress by brotli"),
    plain("brotli-level", Number, "4", "how hard"),
    plain("brotli-min-length", Number, "20", "from how many bytes"),
    plain("brotli-types", List, "text and the like", "what is compressed"),
    neutral("default-type", Text, "text/html", "of files that nginx serves"),
    // Access control.
    plain("whitelist-source-range", List, "", "client addresses that may enter"),
    plain("allowlist-source-range", List, "", "client addresses that may enter"),
    plain("denylist-source-range", List, "", "client addresses that may not enter"),
    plain("block-cidrs", List, "", "client addresses that get 403 everywhere"),
    plain("block-user-agents", List, "", "User-Agents that get 403 everywhere"),
    plain("block-referers", List, "", "Referers that get 403 everywhere"),
    plain("limit-req-status-code", Number, "503", "status of requests above a rate"),
    plain("limit-conn-status-code", Number, "503", "status of requests above a number"),
    plain("limit-rate", Number, "0", "kilobytes per second of one response"),
    plain("limit-rate-after", Number, "0", "kilobytes before limit-rate applies"),
    plain("no-auth-locations", List, "/.well-known/acme-challenge", "paths where nobody is asked who he is"),
    plain("global-auth-url", Text, "", "ask another service before every request"),
    plain("global-auth-method", Text, "", "method of the question"),
    plain("global-auth-signin", Text, "", "where an unauthenticated user is sent"),
    plain("global-auth-signin-redirect-param", Text, "rd", "name of the parameter that brings the user back"),
    plain("global-auth-response-headers", List, "", "headers copied from the answer to the request"),
    plain("global-auth-request-redirect", Text, "", "X-Auth-Request-Redirect of the question"),
    plain("global-auth-cache-key", Text, "", "remember answers under this key"),
    plain("global-auth-cache-duration", Text, "200 202 401 5m", "how long answers are remembered"),
    plain("global-auth-always-set-cookie", Bool, "false", "copy Set-Cookie whatever the status"),
    plain("allow-snippet-annotations", Bool, "false", "nginx configuration in annotations, which is never run here"),
    plain("allow-cross-namespace-resources", Bool, "false", "Secrets and ConfigMaps of other namespaces"),
    plain("annotations-risk-level", Text, "High", "riskiest annotations that are served"),
    plain("annotation-value-word-blocklist", List, "", "words that no annotation may hold"),
    plain("strict-validate-path-type", Bool, "true", "Exact and Prefix paths hold no patterns"),
    plain("penstock-mode", Text, "compat", "strict: patterns match whole paths and tell a from A, limits answer 429, another Host than the TLS server name 421, who may enter is asked before redirects (`app-root` among them), and by address before preflights, X-Forwarded-* count from proxy-real-ip-cidr alone; unknown to ingress-nginx"),
    plain("penstock-without-modsecurity", Bool, "false", "serve what asks for ModSecurity although no web application firewall runs here, instead of answering 503; each is told; unknown to ingress-nginx"),
    // Logs and traces.
    plain("log-format-upstream", Text, "see docs/ingress.md", "line of the access log"),
    plain("log-format-escape-json", Bool, "false", "escape values as JSON does"),
    plain("log-format-escape-none", Bool, "false", "escape nothing"),
    plain("log-format-stream", Text, "see docs/ingress.md", "line of a TCP or UDP Service's connection"),
    plain("disable-access-log", Bool, "false", "log no requests"),
    plain("disable-http-access-log", Bool, "false", "log no requests"),
    plain("disable-stream-access-log", Bool, "false", "log no connections of TCP and UDP Services"),
    plain("skip-access-log-urls", List, "", "targets that are not logged"),
    plain("access-log-path", Text, "/var/log/nginx/access.log", "file of the access log; the default is standard output"),
    plain("http-access-log-path", Text, "", "the same"),
    plain("stream-access-log-path", Text, "", "file of the log of TCP and UDP Services"),
    plain("enable-access-log-for-default-backend", Bool, "false", "log requests of unknown hosts"),
    plain("enable-auth-access-log", Bool, "false", "log the questions to the auth service"),
    plain("enable-syslog", Bool, "false", "log to syslog"),
    plain("syslog-host", Text, "", "where it is"),
    plain("syslog-port", Number, "514", "its port"),
    plain("enable-opentelemetry", Bool, "false", "trace requests"),
    plain("opentelemetry-trust-incoming-span", Bool, "true", "continue the client's trace"),
    plain("opentelemetry-operation-name", Text, "", "name of the span"),
    plain("otlp-collector-host", Text, "", "where traces are sent"),
    plain("otlp-collector-port", Number, "4317", "its port"),
    plain("otel-service-name", Text, "nginx", "name of this service in traces"),
    plain("otel-sampler", Text, "AlwaysOn", "which requests are traced"),
    plain("otel-sampler-ratio", Text, "0.01", "share of them"),
    plain("otel-sampler-parent-based", Bool, "true", "as the client's trace says"),
    plain("otel-max-queuesize", Number, "2048", "spans waiting to be sent"),
    plain("otel-max-exportbatchsize", Number, "512", "spans sent at once"),
    plain("otel-schedule-delay-millis", Number, "5000", "how long they wait"),
    neutral("access-log-params", Text, "", "buffers of the log; it is written in batches here"),
    neutral("error-log-path", Text, "/var/log/nginx/error.log", "errors go to standard error here"),
    neutral("error-log-level", Text, "notice", "level of nginx: RUST_LOG"),
    plain("use-geoip2", Bool, "false", "look addresses up in a database of places"),
    neutral("geoip2-autoreload-in-minutes", Number, "0", "when that database is read again"),
    // nginx itself.
    neutral("main-snippet", Text, "", "nginx configuration of the process"),
    neutral("stream-snippet", Text, "", "nginx configuration of TCP and UDP Services"),
    refused("http-snippet", Text, "nginx configuration of all hosts"),
    refused("server-snippet", Text, "nginx configuration of every host"),
    refused("location-snippet", Text, "nginx configuration of every path"),
    refused("global-auth-snippet", Text, "nginx configuration of the question to the auth service"),
    refused("enable-modsecurity", Bool, "web application firewall"),
    refused("enable-owasp-modsecurity-crs", Bool, "rules of that firewall"),
    refused("modsecurity-snippet", Text, "rules of that firewall"),
    // What it had once.
    removed("enable-opentracing", "use enable-opentelemetry"),
    removed("opentracing-operation-name", "use opentelemetry-operation-name"),
    removed("opentracing-location-operation-name", "use opentelemetry-operation-name"),
    removed("opentracing-trust-incoming-span", "use opentelemetry-trust-incoming-span"),
    removed("zipkin-collector-host", "use otlp-collector-host"),
    removed("zipkin-collector-port", "use otlp-collector-port"),
    removed("zipkin-service-name", "use otel-service-name"),
    removed("zipkin-sample-rate", "use otel-sampler-ratio"),
    removed("jaeger-collector-host", "use otlp-collector-host"),
    removed("jaeger-collector-port", "use otlp-collector-port"),
    removed("jaeger-endpoint", "use otlp-collector-host"),
    removed("jaeger-service-name", "use otel-service-name"),
    removed("jaeger-propagation-format", "traces are W3C's"),
    removed("jaeger-sampler-type", "use otel-sampler"),
    removed("jaeger-sampler-param", "use otel-sampler-ratio"),
    removed("jaeger-sampler-host", "use otel-sampler"),
    removed("jaeger-sampler-port", "use otel-sampler"),
    removed("jaeger-trace-context-header-name", "traces are W3C's"),
    removed("jaeger-debug-header", "traces are W3C's"),
    removed("jaeger-baggage-header", "traces are W3C's"),
    removed("jaeger-trace-baggage-header-prefix", "traces are W3C's"),
    removed("datadog-collector-host", "use otlp-collector-host"),
    removed("datadog-collector-port", "use otlp-collector-port"),
    removed("datadog-service-name", "use otel-service-name"),
    removed("datadog-environment", "use OpenTelemetry"),
    removed("datadog-operation-name-override", "use opentelemetry-operation-name"),
    removed("datadog-priority-sampling", "use otel-sampler"),
    removed("datadog-sample-rate", "use otel-sampler-ratio"),
    removed("global-rate-limit-memcached-host", "use limit-rps or limit-rpm, which count per balancer"),
    removed("global-rate-limit-memcached-port", "use limit-rps or limit-rpm, which count per balancer"),
    removed("global-rate-limit-memcached-connect-timeout", "use limit-rps or limit-rpm"),
    removed("global-rate-limit-memcached-max-idle-timeout", "use limit-rps or limit-rpm"),
    removed("global-rate-limit-memcached-pool-size", "use limit-rps or limit-rpm"),
    removed("global-rate-limit-status-code", "use limit-req-status-code"),
    removed("enable-dynamic-tls-records", "records grow with the connection here"),
    removed("enable-vts-status", "use the metrics"),
    removed("nginx-status-ipv4-whitelist", "use the metrics"),
    removed("nginx-status-ipv6-whitelist", "use the metrics"),
    removed("upstream-max-fails", "use penstock.dev/eject-after on the Service"),
    removed("upstream-fail-timeout", "use penstock.dev/eject-after on the Service"),
    removed("use-geoip", "use use-geoip2"),
    removed("http2-idle-timeout", "use keep-alive"),
    removed("disable-lua", "there is no Lua here"),
];

const fn plain(name: &'static str, form: Form, default: &'static str, doc: &'static str) -> ConfigKey {
    ConfigKey { name, form, default, fate: Plain, doc }
}

const fn neutral(name: &'static str, form: Form, default: &'static str, doc: &'static str) -> ConfigKey {
    ConfigKey { name, form, default, fate: Neutral, doc }
}

const fn by_flags(name: &'static str, form: Form, default: &'static str, doc: &'static str) -> ConfigKey {
    ConfigKey { name, form, default, fate: ByFlags, doc }
}

const fn refused(name: &'static str, form: Form, doc: &'static str) -> ConfigKey {
    ConfigKey { name, form, default: "", fate: Refused, doc }
}

const fn removed(name: &'static str, instead: &'static str) -> ConfigKey {
    ConfigKey { name, form: Text, default: "", fate: Removed(instead), doc: instead }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_names_each_key_once() {
        let mut names: Vec<_> = KEYS.iter().map(|row| row.name).collect();
        names.sort_unstable();
        let count = names.len();
        names.dedup();

        assert_eq!(names.len(), count);
    }
}

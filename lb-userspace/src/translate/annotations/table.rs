//! The one table of annotations: parsing, `check`, documents and tests read it.

use super::value::NAMES;
use crate::model::upstream::Condition;
use BadValue::{Close, Default, Deny, Refuse};
use Risk::{Critical, High, Low, Medium};
use Scope::{Host, Location, Upstream};
use Status::{Honoured, NoEffect, Refused, With};
use Value::{
    Bool, Chars, From, Int, Interval, Names, One, Origins, Path, Ranges, Reference, Size, Statuses, Target,
    Text, Token, Url, Word, Words,
};

/// One annotation under the prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Annotation {
    /// Without the prefix.
    pub name: &'static str,
    /// What may stand there.
    pub value: Value,
    /// ingress-nginx's risk level.
    pub risk: Risk,
    /// What it changes.
    pub scope: Scope,
    /// What a bad value does.
    pub bad_value: BadValue,
    /// How far we honour it.
    pub status: Status,
    /// One line for people.
    pub doc: &'static str,
}

/// Form of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value {
    /// As Go reads booleans.
    Bool,
    /// Decimal number, may be negative.
    Int,
    /// Decimal number, this or more.
    From(i32),
    /// Status of an error: 400 to 599.
    ErrorStatus,
    /// Some of those, with commas.
    Statuses,
    /// One of these words, in any case.
    One(&'static [&'static str]),
    /// One of these words, in this case.
    Word(&'static [&'static str]),
    /// Some of these words, in this case, blanks between them.
    Words(&'static [&'static str]),
    /// A time of a second or more.
    Interval,
    /// Bytes with an optional k, m or g.
    Size,
    /// Addresses and CIDR ranges, comma between them.
    Ranges,
    /// `name` or `namespace/name`.
    Reference,
    /// One word.
    Token,
    /// Absolute path.
    Path,
    /// Absolute http or https URL.
    Url,
    /// Where a redirect leads, whatever it is.
    Target,
    /// Names with commas, each of which counts by itself.
    Names,
    /// Origins with commas; what is none allows nobody.
    Origins,
    /// Letters, digits and some of these.
    Chars(&'static str),
    /// One line.
    Text,
}

impl std::fmt::Display for Value {
    /// As the documents write it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let words =
            |words: &[&str]| words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ");
        f.write_str(match self {
            Self::Bool => "bool",
            Self::Int => "number",
            Self::From(least) => return write!(f, "number from {least}"),
            Self::One(all) | Self::Word(all) => return f.write_str(&words(all)),
            Self::Words(all) => return write!(f, "some of {}", words(all)),
            Self::Interval => "time",
            Self::ErrorStatus => "status",
            Self::Statuses => "statuses",
            Self::Size => "size",
            Self::Ranges => "addresses, ranges",
            Self::Reference => "name or namespace/name",
            Self::Token => "word",
            Self::Path => "path",
            Self::Url => "URL",
            Self::Target => "URL or path",
            Self::Text | Self::Origins | Self::Names | Self::Chars(_) => "text",
        })
    }
}

/// ingress-nginx's risk level.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Risk {
    /// Harmless.
    Low,
    /// Can change what the author's own routes do in surprising ways.
    Medium,
    /// Can reach other services or hosts.
    High,
    /// Raw configuration.
    Critical,
}

impl Risk {
    /// As `annotations-risk-level` writes it.
    pub(in crate::translate) fn named(text: &str) -> Option<Self> {
        let all = [("low", Low), ("medium", Medium), ("high", High), ("critical", Critical)];
        all.into_iter().find(|(name, _)| text.eq_ignore_ascii_case(name)).map(|(_, risk)| risk)
    }
}

/// What an annotation changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// The paths of its Ingress.
    Location,
    /// Every path of its hosts; the oldest Ingress that sets it wins.
    Host,
    /// The upstream, also where other Ingresses use it.
    Upstream,
}

/// What a bad value does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadValue {
    /// Class A: the version of the Ingress is not admitted.
    Refuse,
    /// Class B: its locations answer 503.
    Deny,
    /// Class C: the default is used.
    Default,
    /// Class D: its hosts answer 403.
    Close,
}

/// How far an annotation is honoured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Does what it says.
    Honoured,
    /// Means something only beside this one, which decides.
    With(&'static str),
    /// Never honoured; its locations answer 503.
    Refused,
    /// Accepted and without effect here.
    NoEffect,
}

/// Every annotation of ingress-nginx, and three that people use as if it had them.
#[rustfmt::skip]
pub const TABLE: &[Annotation] = &[
    row("affinity", Word(&["cookie"]), Low, Upstream, Default, Honoured, "keep a client on one endpoint by cookie"),
    row("affinity-mode", Word(&["balanced", "persistent"]), Medium, Upstream, Default, With("affinity"), "whether scaling may move a session"),
    row("affinity-canary-behavior", Word(&["sticky", "legacy"]), Low, Upstream, Default, Honoured, "whether a session sticks to canary or primary"),
    row("session-cookie-name", Token, Medium, Location, Default, With("affinity"), "name of the affinity cookie"),
    row("session-cookie-secure", Bool, Low, Location, Default, With("affinity"), "Secure attribute of the affinity cookie"),
    row("session-cookie-expires", Int, Medium, Location, Default, With("affinity"), "Expires of the affinity cookie, seconds"),
    row("session-cookie-max-age", Int, Medium, Location, Default, With("affinity"), "Max-Age of the affinity cookie, seconds"),
    row("session-cookie-path", Text, Medium, Location, Default, With("affinity"), "Path of the affinity cookie"),
    row("session-cookie-domain", Token, Medium, Location, Default, With("affinity"), "Domain of the affinity cookie"),
    row("session-cookie-samesite", One(&["none", "lax", "strict"]), Low, Location, Default, With("affinity"), "SameSite of the affinity cookie"),
    row("session-cookie-conditional-samesite-none", Bool, Low, Location, Default, With("affinity"), "leave SameSite=None out for browsers that mishandle it"),
    row("session-cookie-change-on-failure", Bool, Low, Location, Default, With("affinity"), "choose another endpoint after a failure"),
    row("allowlist-source-range", Ranges, Medium, Location, Deny, Honoured, "client addresses that may enter"),
    row("whitelist-source-range", Ranges, Medium, Location, Deny, Honoured, "older name of allowlist-source-range"),
    row("denylist-source-range", Ranges, Medium, Location, Deny, Honoured, "client addresses that may not enter"),
    row("limit-connections", Int, Low, Location, Refuse, Honoured, "requests at once per client address; 0: any number"),
    row("limit-rps", Int, Low, Location, Refuse, Honoured, "requests per second per client address; 0: any number"),
    row("limit-rpm", Int, Low, Location, Refuse, Honoured, "requests per minute per client address; 0: any number"),
    row("limit-burst-multiplier", Int, Low, Location, Default, Honoured, "burst as a multiple of the rate"),
    row("limit-allowlist", Ranges, Low, Location, Refuse, Honoured, "client addresses without limits"),
    row("limit-whitelist", Ranges, Low, Location, Refuse, Honoured, "older name of limit-allowlist"),
    row("limit-rate", Int, Low, Location, Refuse, Honoured, "kilobytes per second of one response"),
    row("limit-rate-after", Int, Low, Location, Refuse, Honoured, "kilobytes before limit-rate applies"),
    row("auth-type", Word(&["basic", "digest"]), Low, Location, Refuse, Honoured, "ask for a password"),
    row("auth-secret", Reference, Medium, Location, Refuse, With("auth-type"), "Secret with the passwords"),
    row("auth-secret-type", Word(&["auth-file", "auth-map"]), Low, Location, Refuse, With("auth-type"), "form of that Secret"),
    row("auth-realm", Chars("-._~/: "), Medium, Location, Refuse, With("auth-type"), "realm shown to the user"),
    row("auth-url", Text, High, Location, Deny, Honoured, "ask another service before every request"),
    row("auth-signin", Text, High, Location, Default, With("auth-url"), "where an unauthenticated user is sent"),
    row("auth-signin-redirect-param", Token, Medium, Location, Default, With("auth-url"), "name of the parameter that brings the user back"),
    row("auth-method", Token, Low, Location, Deny, With("auth-url"), "method of the question"),
    row("auth-response-headers", Text, Medium, Location, Deny, With("auth-url"), "headers copied from the answer to the request"),
    row("auth-request-redirect", Text, Medium, Location, Default, With("auth-url"), "X-Auth-Request-Redirect of the question"),
    row("auth-proxy-set-headers", Reference, Medium, Location, Deny, With("auth-url"), "ConfigMap with headers of the question"),
    row("auth-always-set-cookie", Bool, Low, Location, Default, With("auth-url"), "copy Set-Cookie whatever the status"),
    row("auth-cache-key", Text, Medium, Location, Default, With("auth-url"), "remember answers under this key"),
    row("auth-cache-duration", Text, Medium, Location, Deny, With("auth-url"), "how long answers are remembered"),
    row("auth-keepalive", From(0), Low, Location, Default, With("auth-url"), "idle connections kept to the auth service"),
    row("auth-keepalive-requests", From(0), Low, Location, Default, With("auth-url"), "requests per such connection"),
    row("auth-keepalive-timeout", From(0), Low, Location, Default, With("auth-url"), "idle time of such a connection, seconds"),
    row("auth-keepalive-share-vars", Bool, Low, Location, Default, NoEffect, "a detail of nginx"),
    row("auth-snippet", Text, Critical, Location, Default, Refused, "nginx configuration"),
    row("enable-global-auth", Bool, Low, Location, Default, Honoured, "exempt from the global auth service"),
    row("satisfy", Word(&["all", "any"]), Low, Location, Default, Honoured, "whether one of several checks is enough"),
    row("auth-tls-secret", Reference, Medium, Host, Close, Honoured, "ask for a client certificate"),
    row("auth-tls-verify-client", Word(&["on", "off", "optional", "optional_no_ca"]), Medium, Host, Default, With("auth-tls-secret"), "what happens without one"),
    row("auth-tls-verify-depth", From(0), Low, Host, Default, With("auth-tls-secret"), "longest chain"),
    row("auth-tls-error-page", Text, High, Host, Default, With("auth-tls-secret"), "URL where a refused client is sent, or path of the host that answers it"),
    row("auth-tls-pass-certificate-to-upstream", Bool, Low, Host, Default, With("auth-tls-secret"), "show the certificate to the upstream"),
    row("auth-tls-match-cn", Text, High, Host, Refuse, With("auth-tls-secret"), "pattern for the subject"),
    row("canary", Bool, Low, Location, Default, Honoured, "a variant of another Ingress"),
    row("canary-by-header", Token, Medium, Upstream, Default, With("canary"), "header that chooses the canary"),
    row("canary-by-header-value", Text, Medium, Upstream, Default, With("canary-by-header"), "its value"),
    row("canary-by-header-pattern", Text, Medium, Upstream, Default, With("canary-by-header"), "pattern for its value"),
    row("canary-by-cookie", Token, Medium, Upstream, Default, With("canary"), "cookie that chooses the canary"),
    row("canary-weight", From(0), Low, Upstream, Default, With("canary"), "share of requests for the canary"),
    row("canary-weight-total", From(0), Low, Upstream, Default, With("canary"), "what canary-weight is a share of"),
    row("enable-cors", Bool, Low, Location, Default, Honoured, "answer cross-origin questions"),
    row("cors-allow-origin", Origins, Medium, Location, Default, With("enable-cors"), "origins allowed"),
    row("cors-allow-methods", Text, Medium, Location, Default, With("enable-cors"), "methods allowed"),
    row("cors-allow-headers", Text, Medium, Location, Default, With("enable-cors"), "request headers allowed"),
    row("cors-allow-credentials", Bool, Low, Location, Default, With("enable-cors"), "credentials allowed"),
    row("cors-expose-headers", Text, Medium, Location, Default, With("enable-cors"), "response headers shown to scripts"),
    row("cors-max-age", Int, Low, Location, Default, With("enable-cors"), "how long the answer may be remembered, seconds"),
    row("rewrite-target", Chars("/-._~:$?&=,%+@!*(){}"), Medium, Location, Default, Honoured, "replaces the path sent upstream; makes the host a regex host"),
    row("use-regex", Bool, Low, Host, Default, Honoured, "makes every path of the host a regex"),
    row("app-root", Path, Medium, Host, Default, Honoured, "where a request for `/` is redirected"),
    row("ssl-redirect", Bool, Low, Location, Default, Honoured, "redirect http to https where the host has TLS"),
    row("force-ssl-redirect", Bool, Medium, Location, Default, Honoured, "redirect http to https even without TLS here"),
    row("preserve-trailing-slash", Bool, Medium, Location, Default, Honoured, "keep a final slash in the https redirect"),
    row("use-port-in-redirects", Bool, Low, Location, Default, Honoured, "name the port in redirects"),
    row("permanent-redirect", Target, Medium, Location, Refuse, Honoured, "redirect everything there with 301"),
    row("permanent-redirect-code", Int, Low, Location, Refuse, Honoured, "another status for permanent-redirect"),
    row("temporal-redirect", Url, Medium, Location, Default, Honoured, "redirect everything there with 302"),
    row("temporal-redirect-code", Int, Low, Location, Refuse, Honoured, "another status for temporal-redirect"),
    row("relative-redirects", Bool, Low, Location, Refuse, Honoured, "send Location without scheme and host"),
    row("from-to-www-redirect", Bool, Low, Host, Refuse, Honoured, "redirect the www twin of the host"),
    row("server-alias", Names, High, Host, Refuse, Honoured, "more names for the host: names, wildcards, patterns behind `~`"),
    row("default-backend", Token, Low, Location, Default, Honoured, "Service that answers when there are no endpoints, and words errors"),
    row("custom-http-errors", Statuses, Low, Location, Refuse, Honoured, "statuses replaced by the default backend's answer"),
    row("disable-proxy-intercept-errors", Bool, Low, Location, Default, Honoured, "do not replace statuses of the upstream"),
    row("x-forwarded-prefix", Chars("/-._~:$ "), Medium, Location, Refuse, With("rewrite-target"), "X-Forwarded-Prefix of rewritten requests"),
    row("upstream-vhost", Chars(NAMES), Low, Location, Refuse, Honoured, "Host header sent upstream"),
    row("backend-protocol", One(&["HTTP", "HTTPS", "AUTO_HTTP", "GRPC", "GRPCS", "FCGI"]), Low, Location, Default, Honoured, "what the upstream speaks"),
    row("service-upstream", Bool, Low, Upstream, Default, Honoured, "send to the Service's address instead of its endpoints"),
    row("load-balance", Word(&["round_robin", "ewma", "least_requests"]), Low, Upstream, Refuse, Honoured, "how an endpoint is chosen"),
    row("upstream-hash-by", Chars("-_${}.:~/,| "), High, Upstream, Refuse, Honoured, "choose the endpoint by a hash"),
    row("upstream-hash-by-subset", Bool, Low, Upstream, Default, With("upstream-hash-by"), "hash to a group of endpoints"),
    row("upstream-hash-by-subset-size", From(1), Low, Upstream, Default, With("upstream-hash-by"), "size of the group"),
    row("proxy-next-upstream", Words(&Condition::WORDS), Medium, Location, Default, Honoured, "when another endpoint is tried"),
    row("proxy-next-upstream-tries", From(0), Low, Location, Default, Honoured, "how many endpoints are tried"),
    row("proxy-next-upstream-timeout", From(0), Low, Location, Default, Honoured, "how long endpoints are tried, seconds"),
    row("proxy-connect-timeout", From(0), Low, Location, Default, Honoured, "seconds to connect to an endpoint"),
    row("proxy-send-timeout", From(0), Low, Location, Default, Honoured, "seconds of silence while sending upstream"),
    row("proxy-read-timeout", From(0), Low, Location, Default, Honoured, "seconds of silence while waiting for the upstream"),
    row("proxy-http-version", Word(&["1.0", "1.1"]), Low, Location, Default, Honoured, "HTTP version spoken upstream"),
    row("connection-proxy-header", Word(&["close", "keep-alive"]), Low, Location, Refuse, Honoured, "Connection header sent upstream; upgrades do not get through"),
    row("proxy-body-size", Size, Medium, Location, Default, Honoured, "largest request body"),
    row("client-body-buffer-size", Size, Low, Location, Refuse, Honoured, "how much of a request body is held in memory"),
    row("proxy-request-buffering", Word(&["on", "off"]), Low, Location, Default, Honoured, "read the whole request before sending it; where it is not set, bodies stream"),
    row("proxy-buffering", Word(&["on", "off"]), Low, Location, Default, Honoured, "read the response ahead of the client"),
    row("proxy-buffers-number", From(1), Low, Location, Default, Honoured, "how many buffers"),
    row("proxy-buffer-size", Size, Low, Location, Default, Honoured, "largest response head"),
    row("proxy-busy-buffers-size", Size, Low, Location, Default, NoEffect, "how much may wait for the client; what was read is sent at once"),
    row("proxy-max-temp-file-size", Size, Low, Location, Default, Honoured, "how much of a response may go to disk"),
    row("proxy-cookie-domain", Text, Medium, Location, Default, Honoured, "rewrite Domain of cookies"),
    row("proxy-cookie-path", Text, Medium, Location, Default, Honoured, "rewrite Path of cookies"),
    row("proxy-redirect-from", Text, Medium, Location, Default, Honoured, "rewrite Location: what"),
    row("proxy-redirect-to", Text, Medium, Location, Default, Honoured, "rewrite Location: to what"),
    row("proxy-ssl-secret", Reference, Medium, Host, Deny, Honoured, "certificates towards the upstream"),
    row("proxy-ssl-verify", Word(&["on", "off"]), Low, Host, Default, With("proxy-ssl-secret"), "verify the upstream's certificate"),
    row("proxy-ssl-verify-depth", From(0), Low, Host, Default, With("proxy-ssl-secret"), "longest chain of the upstream"),
    row("proxy-ssl-name", Token, High, Host, Default, With("proxy-ssl-secret"), "name expected of the upstream"),
    row("proxy-ssl-server-name", Word(&["on", "off"]), Low, Host, Default, With("proxy-ssl-secret"), "send SNI upstream"),
    row("proxy-ssl-protocols", Words(&["SSLv2", "SSLv3", "TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3"]), Low, Host, Default, With("proxy-ssl-secret"), "TLS versions towards the upstream, of which those before TLSv1.2 are left out"),
    row("proxy-ssl-ciphers", Text, Medium, Host, Default, NoEffect, "TLS ciphers towards the upstream; the library's own, all of them strong, are offered"),
    row("ssl-ciphers", Chars("+:_-!.@="), Low, Host, Refuse, Honoured, "TLS ciphers towards the client"),
    row("ssl-prefer-server-ciphers", Bool, Low, Host, Default, Honoured, "whose order of ciphers counts"),
    row("ssl-passthrough", Bool, Low, Host, Default, Honoured, "hand TLS to the upstream unopened"),
    row("http2-push-preload", Bool, Low, Location, Default, NoEffect, "HTTP/2 push, which browsers have dropped"),
    row("enable-access-log", Bool, Low, Location, Default, Honoured, "log requests"),
    row("enable-rewrite-log", Bool, Low, Location, Default, Honoured, "tell of each rewritten request in the log of the program"),
    row("enable-opentelemetry", Bool, Low, Location, Default, Honoured, "trace requests"),
    row("opentelemetry-trust-incoming-span", Bool, Low, Location, Default, Honoured, "continue the client's trace"),
    row("opentelemetry-operation-name", Token, Medium, Location, Refuse, Honoured, "name of the span"),
    row("custom-headers", Reference, Medium, Location, Refuse, Honoured, "ConfigMap with response headers"),
    row("mirror-target", Text, High, Location, Default, Honoured, "send a copy of each request there"),
    row("mirror-request-body", Word(&["on", "off"]), Low, Location, Default, With("mirror-target"), "copy the body too"),
    row("mirror-host", Text, High, Location, Default, With("mirror-target"), "Host header of the copy"),
    row("fastcgi-index", Token, Medium, Location, Refuse, Honoured, "FastCGI index file"),
    row("fastcgi-params-configmap", Reference, Medium, Location, Refuse, Honoured, "FastCGI parameters"),
    row("enable-modsecurity", Bool, Low, Location, Default, Refused, "web application firewall"),
    row("enable-owasp-core-rules", Bool, Low, Location, Default, Refused, "rules of that firewall"),
    row("modsecurity-transaction-id", Text, High, Location, Default, With("enable-modsecurity"), "id for that firewall's log"),
    row("modsecurity-snippet", Text, Critical, Location, Default, Refused, "rules of that firewall"),
    row("configuration-snippet", Text, Critical, Location, Default, Refused, "nginx configuration"),
    row("server-snippet", Text, Critical, Host, Default, Refused, "nginx configuration"),
    row("stream-snippet", Text, Critical, Host, Default, Refused, "nginx configuration"),
    row("upstream-keepalive-connections", From(0), Low, Upstream, Default, Honoured, "idle connections kept per upstream; unknown to ingress-nginx"),
    row("upstream-health-check-path", Path, Low, Upstream, Default, Honoured, "probe endpoints at this path; unknown to ingress-nginx"),
    row("upstream-health-check-interval", Interval, Low, Upstream, Default, Honoured, "how often endpoints are probed; unknown to ingress-nginx"),
];

const fn row(
    name: &'static str,
    value: Value,
    risk: Risk,
    scope: Scope,
    bad_value: BadValue,
    status: Status,
    doc: &'static str,
) -> Annotation {
    Annotation { name, value, risk, scope, bad_value, status, doc }
}

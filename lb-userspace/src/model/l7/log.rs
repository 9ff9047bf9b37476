//! The access log: where it goes, what is left out, and how a line is made.

mod streams;

use std::path::PathBuf;
use std::sync::Arc;

use super::Listed;

pub use streams::{StreamFormat, StreamLog, StreamPart, StreamValue};

/// Format of ingress-nginx where the ConfigMap names none.
pub const DEFAULT_FORMAT: &str = concat!(
    r#"$remote_addr - $remote_user [$time_local] "$request" $status $body_bytes_sent "#,
    r#""$http_referer" "$http_user_agent" $request_length $request_time [$proxy_upstream_name] "#,
    "[$proxy_alternative_upstream_name] $upstream_addr $upstream_response_length ",
    "$upstream_response_time $upstream_status $req_id",
);

/// An access log that is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessLog {
    /// `access-log-path`. Shared, so that a batch of lines can name it.
    pub sink: Arc<Sink>,
    /// `log-format-upstream`.
    pub format: Format,
    /// `skip-access-log-urls`: request targets that are not logged.
    pub skip: Vec<Listed>,
    /// `enable-access-log-for-default-backend`: also what no Ingress claims.
    pub unclaimed: bool,
    /// `enable-auth-access-log`: also the questions to auth services.
    pub questions: bool,
}

impl Default for AccessLog {
    /// ingress-nginx's: everything that an Ingress claims, on standard output.
    fn default() -> Self {
        let (format, _) = Format::compile(DEFAULT_FORMAT, Escape::Default);
        Self { sink: Arc::new(Sink::Stdout), format, skip: Vec::new(), unclaimed: false, questions: false }
    }
}

/// Where lines go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sink {
    /// Standard output of the process.
    Stdout,
    /// A file, appended to; made if it is not there, or no longer.
    File(PathBuf),
    /// `enable-syslog`: a collector that takes a line in each datagram (RFC 3164).
    Syslog {
        /// Its address, or its name.
        host: String,
        /// 514 where none is said.
        port: u16,
    },
}

impl std::fmt::Display for Sink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Stdout => f.write_str("standard output"),
            Self::File(path) => path.display().fmt(f),
            Self::Syslog { host, port } => write!(f, "the collector {host}, port {port}"),
        }
    }
}

/// How values are kept from being taken for something else. The text of the format is never changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Escape {
    /// `"`, `\` and what is not printable ASCII as `\xHH`; absent is `-`.
    Default,
    /// As within a JSON string; absent is empty.
    Json,
    /// Not at all; absent is empty. Whoever sends a request can forge lines.
    None,
}

/// A format, read once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Format {
    /// For every value.
    pub escape: Escape,
    /// In order. No text follows a text.
    pub parts: Vec<Part>,
    /// A part is of a head of the response, which has to be kept for it.
    pub keeps_heads: bool,
}

/// One part of a [`Format`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// Copied.
    Text(String),
    /// Known when a request was decided.
    Early(Early),
    /// Known when its response ended.
    Late(Late),
}

/// What is known of a request once it is decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Early {
    /// A variable that does not exist here: always `-`.
    Unknown,
    /// `$remote_addr`: of the client, as far as those in front of us are believed.
    RemoteAddr,
    /// `$realip_remote_addr`: of whoever connected, or as its PROXY header says.
    PeerAddr,
    /// `$pass_access_scheme`, as the next ones with the word of those in front of us.
    AccessScheme,
    /// `$pass_server_port`.
    AccessPort,
    /// `$best_http_host`.
    AccessHost,
    /// `$remote_user`: of basic authentication, whether or not it was verified.
    RemoteUser,
    /// The same where the location asks for a password, and whoever is let in has shown it. No variable has it.
    VerifiedUser,
    /// `$request`: the request line.
    Request,
    /// `$request_method`.
    Method,
    /// `$request_uri`: path and query as sent.
    Target,
    /// `$uri`: the path decoded, or as it was rewritten.
    Uri,
    /// `$args`.
    Query,
    /// `$arg_<name>`.
    Argument(String),
    /// `$server_protocol`.
    Protocol,
    /// `$scheme`.
    Scheme,
    /// `$host`: lower case, no port.
    Host,
    /// `$http_<name>`, by the name of the header.
    Header(String),
    /// `$cookie_<name>`.
    Cookie(String),
    /// `$server_name`: the host of the Ingress.
    ServerName,
    /// `$server_port`.
    ServerPort,
    /// `$proxy_host`: the upstream that the location leads to, or who stands in for it.
    Upstream,
    /// `$proxy_alternative_upstream_name`: that of the canary that took the request.
    Alternative,
    /// `$req_id`.
    RequestId,
    /// `$namespace` of the Ingress.
    Namespace,
    /// `$ingress_name`.
    Ingress,
    /// `$service_name`.
    Service,
    /// `$service_port`.
    ServicePort,
    /// `$location_path`.
    LocationPath,
    /// `$proxy_add_x_forwarded_for`: what the client said, and the client.
    ForwardedFor,
    /// `$ssl_protocol`, as the next ones of the handshake with us.
    SslProtocol,
    /// `$ssl_cipher`.
    SslCipher,
    /// `$ssl_server_name`: the name that the client asked for.
    SslServerName,
    /// `$ssl_client_verify`, as the next ones where a certificate was asked for.
    SslClientVerify,
    /// `$ssl_client_s_dn`.
    SslClientSubject,
    /// `$ssl_client_i_dn`.
    SslClientIssuer,
    /// `$connection_requests`: how many the connection has carried, this one included.
    ConnectionRequests,
    /// `$connection`: the number of the client's connection.
    Connection,
    /// `$proxy_protocol_addr`: of the client, as a PROXY header says, believed or not.
    ProxyProtocolAddr,
    /// `$proxy_protocol_port`.
    ProxyProtocolPort,
    /// `$remote_port`.
    RemotePort,
    /// `$server_addr`: the address the client connected to.
    ServerAddr,
    /// `$https`: `on` or nothing.
    Https,
    /// `$is_args`: `?` where there is a query.
    IsArgs,
    /// `$document_root`.
    DocumentRoot,
    /// `$fastcgi_script_name`: `$uri`, and the index where that ends in `/`.
    ScriptName,
    /// `$fastcgi_path_info`: nothing splits a path here, so it is empty.
    PathInfo,
    /// `$hostname`: of this host, or its pod.
    Hostname,
    /// `$pid` of the process that serves.
    Pid,
    /// `$http2`: `h2` where it came by HTTP/2, else nothing.
    Http2,
    /// `$escaped_request_uri`: path and query, fit for a query parameter.
    EscapedTarget,
    /// `$realip_remote_port`: of whoever connected.
    PeerPort,
    /// `$ssl_client_escaped_cert`: the client's certificate as PEM, percent-encoded.
    SslClientCertificate,
    /// `$opentelemetry_trace_id`, as the next ones of a location that is traced.
    TraceId,
    /// `$opentelemetry_span_id`.
    SpanId,
    /// `$opentelemetry_context_traceparent`, as the upstream gets it.
    Traceparent,
    /// `$opentelemetry_context_tracestate`.
    Tracestate,
}

/// What is known of a request once its response has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Late {
    /// `$time_local`, in UTC.
    TimeLocal,
    /// `$time_iso8601`.
    TimeIso,
    /// `$msec`: seconds since the epoch.
    Epoch,
    /// `$status`.
    Status,
    /// `$proxy_upstream_name`: who answered, which of errors may be who words them.
    Upstream,
    /// `$body_bytes_sent`.
    BodyBytesSent,
    /// `$bytes_sent`: with the head.
    BytesSent,
    /// `$request_length`: head and body.
    RequestLength,
    /// `$request_time`.
    RequestTime,
    /// `$request_completion`: `OK` or nothing.
    Completion,
    /// `$upstream_addr`; this and what follows of each attempt.
    UpstreamAddr,
    /// `$upstream_status`.
    UpstreamStatus,
    /// `$upstream_response_length`.
    UpstreamResponseLength,
    /// `$upstream_bytes_sent`.
    UpstreamBytesSent,
    /// `$upstream_bytes_received`.
    UpstreamBytesReceived,
    /// `$upstream_connect_time`.
    UpstreamConnectTime,
    /// `$upstream_header_time`.
    UpstreamHeaderTime,
    /// `$upstream_response_time`.
    UpstreamResponseTime,
    /// `$sent_http_<name>`, by the name of a header that the client got.
    SentHeader(String),
    /// `$upstream_http_<name>`: of the endpoint that was asked last.
    UpstreamHeader(String),
    /// `$upstream_cookie_<name>`, which that one set.
    UpstreamCookie(String),
}

impl Late {
    /// It stands in the head of a response.
    fn is_of_head(&self) -> bool {
        matches!(self, Self::SentHeader(_) | Self::UpstreamHeader(_) | Self::UpstreamCookie(_))
    }
}

impl Format {
    /// Reads a format as nginx does within single quotes, and names the variables that do not exist here.
    pub fn compile(text: &str, escape: Escape) -> (Self, Vec<String>) {
        let mut unknown = Vec::new();
        let part = |piece| match piece {
            Piece::Text(text) => Part::Text(text),
            Piece::Variable(name) => Part::named(name).unwrap_or_else(|| {
                unknown.push(name.to_owned());
                Part::Early(Early::Unknown)
            }),
        };
        let parts: Vec<_> = pieces(text).into_iter().map(part).collect();
        let keeps_heads = parts.iter().any(|part| matches!(part, Part::Late(late) if late.is_of_head()));
        (Self { escape, parts, keeps_heads }, unknown)
    }
}

/// A stretch of a format as it is written.
enum Piece<'t> {
    Text(String),
    /// By its name.
    Variable(&'t str),
}

/// In order; no text follows a text.
fn pieces(text: &str) -> Vec<Piece<'_>> {
    let (mut pieces, mut literal) = (Vec::new(), String::new());
    let mut rest = text.chars();
    while let Some(char) = rest.next() {
        if char != '$' {
            literal.push(if char == '\\' { escaped(&mut rest) } else { char });
            continue;
        }
        let Some((name, after)) = variable(rest.as_str()) else {
            literal.push('$');
            continue;
        };
        rest = after.chars();
        if !literal.is_empty() {
            pieces.push(Piece::Text(std::mem::take(&mut literal)));
        }
        pieces.push(Piece::Variable(name));
    }
    if !literal.is_empty() {
        pieces.push(Piece::Text(literal));
    }
    pieces
}

/// What a backslash and the next character stand for.
fn escaped(rest: &mut std::str::Chars<'_>) -> char {
    let mut ahead = rest.clone();
    let meant = match ahead.next() {
        Some('n') => '\n',
        Some('r') => '\r',
        Some('t') => '\t',
        Some(same @ ('"' | '\'' | '\\')) => same,
        _ => return '\\',
    };
    *rest = ahead;
    meant
}

/// The name at the start, with or without braces, and what follows it.
fn variable(text: &str) -> Option<(&str, &str)> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if let Some(braced) = text.strip_prefix('{') {
        return braced.split_once('}').filter(|(name, _)| !name.is_empty() && name.chars().all(is_name));
    }
    let end = text.find(|c| !is_name(c)).unwrap_or(text.len());
    Some(text.split_at(end)).filter(|(name, _)| !name.is_empty())
}

impl Part {
    fn named(name: &str) -> Option<Self> {
        late(name).map(Self::Late).or_else(|| Early::named(name).map(Self::Early))
    }
}

impl Early {
    /// By the name of its variable, without `$`.
    pub fn named(name: &str) -> Option<Self> {
        early(name)
    }
}

/// A header as it is written, by the name that its variable has for it.
fn header_name(name: &str) -> String {
    name.replace('_', "-").to_ascii_lowercase()
}

fn early(name: &str) -> Option<Early> {
    let header = |name: &str| Early::Header(header_name(name));
    Some(match name {
        "remote_addr" | "the_real_ip" => Early::RemoteAddr,
        "remote_user" => Early::RemoteUser,
        "request" => Early::Request,
        "request_method" => Early::Method,
        "request_uri" => Early::Target,
        "uri" | "document_uri" => Early::Uri,
        "args" | "query_string" => Early::Query,
        "server_protocol" => Early::Protocol,
        "realip_remote_addr" => Early::PeerAddr,
        "scheme" => Early::Scheme,
        "pass_access_scheme" => Early::AccessScheme,
        "host" => Early::Host,
        "best_http_host" => Early::AccessHost,
        "content_type" | "content_length" => header(name),
        "server_name" => Early::ServerName,
        "server_port" => Early::ServerPort,
        "pass_server_port" | "pass_port" => Early::AccessPort,
        // Of a line of the log it is [`Late::Upstream`]; elsewhere nobody knows yet who will answer.
        "proxy_host" | "proxy_upstream_name" => Early::Upstream,
        "proxy_alternative_upstream_name" => Early::Alternative,
        "req_id" | "request_id" => Early::RequestId,
        "namespace" => Early::Namespace,
        "ingress_name" => Early::Ingress,
        "service_name" => Early::Service,
        "service_port" => Early::ServicePort,
        "location_path" => Early::LocationPath,
        "proxy_add_x_forwarded_for" => Early::ForwardedFor,
        "connection" => Early::Connection,
        "proxy_protocol_addr" => Early::ProxyProtocolAddr,
        "proxy_protocol_port" => Early::ProxyProtocolPort,
        "connection_requests" => Early::ConnectionRequests,
        "ssl_protocol" => Early::SslProtocol,
        "ssl_cipher" => Early::SslCipher,
        "ssl_server_name" => Early::SslServerName,
        "ssl_client_verify" => Early::SslClientVerify,
        "ssl_client_s_dn" => Early::SslClientSubject,
        "ssl_client_i_dn" => Early::SslClientIssuer,
        "remote_port" => Early::RemotePort,
        "server_addr" => Early::ServerAddr,
        "https" => Early::Https,
        "is_args" => Early::IsArgs,
        "document_root" => Early::DocumentRoot,
        "fastcgi_script_name" => Early::ScriptName,
        "fastcgi_path_info" => Early::PathInfo,
        "hostname" => Early::Hostname,
        "pid" => Early::Pid,
        "http2" => Early::Http2,
        "escaped_request_uri" => Early::EscapedTarget,
        "realip_remote_port" => Early::PeerPort,
        "ssl_client_escaped_cert" => Early::SslClientCertificate,
        "opentelemetry_trace_id" => Early::TraceId,
        "opentelemetry_span_id" => Early::SpanId,
        "opentelemetry_context_traceparent" => Early::Traceparent,
        "opentelemetry_context_tracestate" => Early::Tracestate,
        _ => {
            let after = |prefix: &str| name.strip_prefix(prefix).filter(|rest| !rest.is_empty());
            match (after("http_"), after("cookie_"), after("arg_")) {
                (Some(rest), ..) => header(rest),
                (_, Some(rest), _) => Early::Cookie(rest.to_owned()),
                (_, _, Some(rest)) => Early::Argument(rest.to_owned()),
                _ => return None,
            }
        }
    })
}

fn late(name: &str) -> Option<Late> {
    Some(match name {
        "time_local" => Late::TimeLocal,
        "time_iso8601" => Late::TimeIso,
        "msec" => Late::Epoch,
        "status" => Late::Status,
        "proxy_upstream_name" => Late::Upstream,
        "body_bytes_sent" => Late::BodyBytesSent,
        "bytes_sent" => Late::BytesSent,
        "request_length" => Late::RequestLength,
        "request_time" => Late::RequestTime,
        "request_completion" => Late::Completion,
        "upstream_addr" => Late::UpstreamAddr,
        "upstream_status" => Late::UpstreamStatus,
        "upstream_response_length" => Late::UpstreamResponseLength,
        "upstream_bytes_sent" => Late::UpstreamBytesSent,
        "upstream_bytes_received" => Late::UpstreamBytesReceived,
        "upstream_connect_time" => Late::UpstreamConnectTime,
        "upstream_header_time" => Late::UpstreamHeaderTime,
        "upstream_response_time" => Late::UpstreamResponseTime,
        _ => {
            let after = |prefix: &str| name.strip_prefix(prefix).filter(|rest| !rest.is_empty());
            match (after("sent_http_"), after("upstream_http_"), after("upstream_cookie_")) {
                (Some(rest), ..) => Late::SentHeader(header_name(rest)),
                (_, Some(rest), _) => Late::UpstreamHeader(header_name(rest)),
                (_, _, Some(rest)) => Late::UpstreamCookie(rest.to_owned()),
                _ => return None,
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Part {
        Part::Text(text.to_owned())
    }

    #[test]
    fn a_format_is_text_and_variables_in_order() {
        let header = Part::Early(Early::Header("x-foo".to_owned()));
        for (case, source, expected) in [
            ("plain", "$status", vec![Part::Late(Late::Status)]),
            (
                "braces end a name",
                "a${status}b$uri.",
                vec![text("a"), Part::Late(Late::Status), text("b"), Part::Early(Early::Uri), text(".")],
            ),
            ("a header", "$http_x_Foo", vec![header]),
            (
                "of the response",
                "$sent_http_X_Foo$upstream_cookie_sid",
                vec![
                    Part::Late(Late::SentHeader("x-foo".to_owned())),
                    Part::Late(Late::UpstreamCookie("sid".to_owned())),
                ],
            ),
            ("a lone dollar", "5$ $", vec![text("5$ $")]),
            ("escapes of quoted text", r#"{\"a\":\"b\\"}\t\q"#, vec![text("{\"a\":\"b\\\"}\t\\q")]),
            ("nothing", "", vec![]),
        ] {
            let (format, unknown) = Format::compile(source, Escape::Default);

            assert_eq!((format.parts, unknown), (expected, Vec::new()), "{case}");
        }
    }

    #[test]
    fn what_does_not_exist_is_named_and_becomes_a_dash() {
        let (format, unknown) = Format::compile("$geoip2_city $http_ $status", Escape::Json);

        assert_eq!(unknown, ["geoip2_city", "http_"]);
        assert_eq!(format.parts.first(), Some(&Part::Early(Early::Unknown)));
    }

    #[test]
    fn heads_are_kept_for_a_format_that_asks_for_them_alone() {
        for (source, expected) in
            [(DEFAULT_FORMAT, false), ("$http_x", false), ("$upstream_http_x", true), ("$sent_http_x", true)]
        {
            assert_eq!(Format::compile(source, Escape::Default).0.keeps_heads, expected, "{source}");
        }
    }

    #[test]
    fn the_default_format_has_no_unknown_variable() {
        assert_eq!(Format::compile(DEFAULT_FORMAT, Escape::Default).1, Vec::<String>::new());
    }
}

//! The log of TCP and UDP Services that the proxy serves: a line for each connection, and for each exchange of
//! datagrams, once it is over.

use std::sync::Arc;

use super::{Piece, Sink, pieces};

/// Format of ingress-nginx where the ConfigMap names none.
const DEFAULT_FORMAT: &str =
    "[$remote_addr] [$time_local] $protocol $status $bytes_sent $bytes_received $session_time";

/// A log that is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamLog {
    /// `stream-access-log-path`.
    pub sink: Arc<Sink>,
    /// `log-format-stream`.
    pub format: StreamFormat,
}

impl Default for StreamLog {
    /// ingress-nginx's: on standard output.
    fn default() -> Self {
        Self { sink: Arc::new(Sink::Stdout), format: StreamFormat::default() }
    }
}

/// A format, read once. Its values are numbers, addresses and names, which need no escaping; what is absent is `-`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamFormat {
    /// In order. No text follows a text.
    pub parts: Vec<StreamPart>,
}

/// One part of a [`StreamFormat`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StreamPart {
    /// Copied.
    Text(String),
    /// A variable.
    Value(StreamValue),
}

/// What is known of a connection that is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamValue {
    /// A variable that does not exist here: always `-`.
    Unknown,
    /// `$remote_addr`: of the client, or as its PROXY header says where that is believed.
    RemoteAddr,
    /// `$remote_port`.
    RemotePort,
    /// `$proxy_protocol_addr`: as the PROXY header says, believed or not.
    ProxyProtocolAddr,
    /// `$proxy_protocol_port`.
    ProxyProtocolPort,
    /// `$server_addr`: the address the client asked.
    ServerAddr,
    /// `$server_port`.
    ServerPort,
    /// `$protocol`: `TCP` or `UDP`.
    Protocol,
    /// `$status`: 200, 400 for a PROXY header that is due and does not come, 502 where no endpoint takes it,
    /// 499 where the client has gone before one did.
    Status,
    /// `$bytes_sent` to the client.
    BytesSent,
    /// `$bytes_received` from it.
    BytesReceived,
    /// `$session_time`.
    SessionTime,
    /// `$connection`: its number.
    Connection,
    /// `$time_local`, in UTC; this and the next ones when it was over.
    TimeLocal,
    /// `$time_iso8601`.
    TimeIso,
    /// `$msec`: seconds since the epoch.
    Epoch,
    /// `$hostname`: of this host, or its pod.
    Hostname,
    /// `$pid` of the process that serves.
    Pid,
    /// `$proxy_upstream_name`: `tcp-<namespace>-<service>-<port>`, or `udp-…`.
    Upstream,
    /// `$upstream_addr`; this and what follows of each attempt.
    UpstreamAddr,
    /// `$upstream_bytes_sent`.
    UpstreamBytesSent,
    /// `$upstream_bytes_received`.
    UpstreamBytesReceived,
    /// `$upstream_connect_time`.
    UpstreamConnectTime,
    /// `$upstream_first_byte_time`.
    UpstreamFirstByteTime,
    /// `$upstream_session_time`.
    UpstreamSessionTime,
}

impl Default for StreamFormat {
    fn default() -> Self {
        Self::compile(DEFAULT_FORMAT).0
    }
}

impl StreamFormat {
    /// Reads a format as nginx does within single quotes, and names the variables that do not exist here.
    pub fn compile(text: &str) -> (Self, Vec<String>) {
        let mut unknown = Vec::new();
        let part = |piece| match piece {
            Piece::Text(text) => StreamPart::Text(text),
            Piece::Variable(name) => StreamPart::Value(named(name).unwrap_or_else(|| {
                unknown.push(name.to_owned());
                StreamValue::Unknown
            })),
        };
        let parts = pieces(text).into_iter().map(part).collect();
        (Self { parts }, unknown)
    }
}

fn named(name: &str) -> Option<StreamValue> {
    Some(match name {
        "remote_addr" => StreamValue::RemoteAddr,
        "remote_port" => StreamValue::RemotePort,
        "proxy_protocol_addr" => StreamValue::ProxyProtocolAddr,
        "proxy_protocol_port" => StreamValue::ProxyProtocolPort,
        "server_addr" => StreamValue::ServerAddr,
        "server_port" => StreamValue::ServerPort,
        "protocol" => StreamValue::Protocol,
        "status" => StreamValue::Status,
        "bytes_sent" => StreamValue::BytesSent,
        "bytes_received" => StreamValue::BytesReceived,
        "session_time" => StreamValue::SessionTime,
        "connection" => StreamValue::Connection,
        "time_local" => StreamValue::TimeLocal,
        "time_iso8601" => StreamValue::TimeIso,
        "msec" => StreamValue::Epoch,
        "hostname" => StreamValue::Hostname,
        "pid" => StreamValue::Pid,
        "proxy_upstream_name" => StreamValue::Upstream,
        "upstream_addr" => StreamValue::UpstreamAddr,
        "upstream_bytes_sent" => StreamValue::UpstreamBytesSent,
        "upstream_bytes_received" => StreamValue::UpstreamBytesReceived,
        "upstream_connect_time" => StreamValue::UpstreamConnectTime,
        "upstream_first_byte_time" => StreamValue::UpstreamFirstByteTime,
        "upstream_session_time" => StreamValue::UpstreamSessionTime,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_connection_does_not_have_is_named_and_becomes_a_dash() {
        let (format, unknown) = StreamFormat::compile("$protocol:$request");

        assert_eq!(unknown, ["request"]);
        let text = StreamPart::Text(":".to_owned());
        let [protocol, dash] = [StreamValue::Protocol, StreamValue::Unknown].map(StreamPart::Value);
        assert_eq!(format.parts, [protocol, text, dash]);
    }

    #[test]
    fn the_default_format_has_no_unknown_variable() {
        assert_eq!(StreamFormat::compile(DEFAULT_FORMAT).1, Vec::<String>::new());
    }
}

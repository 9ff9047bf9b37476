//! The line of a connection to a TCP or UDP Service.

use std::net::SocketAddr;
use std::time::Duration;

use super::super::digits::{addr, number, seconds};
use super::super::upstream::{Attempt, Record};
use super::line::socket;
use super::stamp::Stamp;
use crate::model::l4::Protocol;
use crate::model::l7::log::{StreamFormat, StreamPart, StreamValue};

/// A connection, or an exchange of datagrams, that is over.
pub(in crate::l7) struct Ended<'a> {
    pub(in crate::l7) protocol: Protocol,
    /// The client, or what its PROXY header says where that is believed.
    pub(in crate::l7) client: SocketAddr,
    /// What the header says, believed or not.
    pub(in crate::l7) told: Option<SocketAddr>,
    /// What it asked.
    pub(in crate::l7) server: SocketAddr,
    /// Its number.
    pub(in crate::l7) serial: u64,
    pub(in crate::l7) status: u16,
    pub(in crate::l7) took: Duration,
    /// Bytes from the client and to it.
    pub(in crate::l7) up: u64,
    pub(in crate::l7) down: u64,
    /// Name of the upstream.
    pub(in crate::l7) upstream: &'a str,
    /// Endpoints that were tried.
    pub(in crate::l7) record: &'a Record,
}

/// Writes the line, without its end.
pub(super) fn write(format: &StreamFormat, ended: &Ended<'_>, stamp: &Stamp, out: &mut Vec<u8>) {
    for part in &format.parts {
        match part {
            StreamPart::Text(text) => out.extend_from_slice(text.as_bytes()),
            StreamPart::Value(value) => write_value(*value, ended, stamp, out),
        }
    }
}

fn write_value(value: StreamValue, ended: &Ended<'_>, stamp: &Stamp, out: &mut Vec<u8>) {
    let each = |out: &mut Vec<u8>, write: &dyn Fn(&Attempt, &mut Vec<u8>)| {
        for (place, attempt) in ended.record.all().enumerate() {
            if place > 0 {
                out.extend_from_slice(b", ");
            }
            write(attempt, out);
        }
        if ended.record.all().next().is_none() {
            out.push(b'-');
        }
    };
    let time = |took: Option<Duration>, out: &mut Vec<u8>| match took {
        Some(took) => seconds(took, out),
        None => out.push(b'-'),
    };
    match value {
        StreamValue::Unknown => out.push(b'-'),
        StreamValue::RemoteAddr => addr(ended.client.ip(), out),
        StreamValue::RemotePort => number(ended.client.port(), out),
        StreamValue::ProxyProtocolAddr => match ended.told {
            Some(told) => addr(told.ip(), out),
            None => out.push(b'-'),
        },
        StreamValue::ProxyProtocolPort => match ended.told {
            Some(told) => number(told.port(), out),
            None => out.push(b'-'),
        },
        StreamValue::ServerAddr => addr(ended.server.ip(), out),
        StreamValue::ServerPort => number(ended.server.port(), out),
        StreamValue::Protocol => out.extend_from_slice(match ended.protocol {
            Protocol::Tcp => b"TCP",
            Protocol::Udp => b"UDP",
        }),
        StreamValue::Status => number(ended.status, out),
        StreamValue::BytesSent => number(ended.down, out),
        StreamValue::BytesReceived => number(ended.up, out),
        StreamValue::SessionTime => seconds(ended.took, out),
        StreamValue::Connection => number(ended.serial, out),
        StreamValue::TimeLocal => out.extend_from_slice(stamp.local()),
        StreamValue::TimeIso => out.extend_from_slice(stamp.iso()),
        StreamValue::Epoch => seconds(stamp.since_epoch(), out),
        StreamValue::Hostname => out.extend_from_slice(rustix::system::uname().nodename().to_bytes()),
        StreamValue::Pid => number(std::process::id(), out),
        StreamValue::Upstream => out.extend_from_slice(ended.upstream.as_bytes()),
        StreamValue::UpstreamAddr => each(out, &|attempt, out| socket(attempt.addr, out)),
        StreamValue::UpstreamBytesSent => each(out, &|attempt, out| number(attempt.traffic.sent, out)),
        StreamValue::UpstreamBytesReceived => {
            each(out, &|attempt, out| number(attempt.traffic.received, out));
        }
        StreamValue::UpstreamConnectTime => each(out, &|attempt, out| time(attempt.connect, out)),
        StreamValue::UpstreamFirstByteTime => each(out, &|attempt, out| time(attempt.header, out)),
        StreamValue::UpstreamSessionTime => each(out, &|attempt, out| seconds(attempt.response, out)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::upstream::Traffic;
    use super::*;

    #[test]
    fn a_line_tells_the_connection_and_every_attempt() {
        let mut record = Record::default();
        let attempt = |last, connect, header, sent, received| Attempt {
            addr: SocketAddr::from(([10, 0, 0, last], 53)),
            status: 200,
            connect,
            header,
            response: Duration::from_millis(1500),
            bytes: 0,
            traffic: Traffic { sent, received },
        };
        let millis = |millis| Some(Duration::from_millis(millis));
        record.push(attempt(1, None, None, 0, 0));
        record.push(attempt(2, millis(3), millis(20), 5, 70_000));
        let none = Record::default();
        let ended = |record| Ended {
            protocol: Protocol::Udp,
            client: "192.0.2.7:4000".parse().expect("an address"),
            told: None,
            server: "[2001:db8::1]:53".parse().expect("an address"),
            serial: 9,
            status: 200,
            took: Duration::from_millis(2001),
            up: 5,
            down: 70_000,
            upstream: "udp-dns-coredns-53",
            record,
        };
        let mut stamp = Stamp::default();
        stamp.set(Duration::new(1_136_214_245, 250_000_000));
        let line = |format: &str, record| {
            let (format, unknown) = StreamFormat::compile(format);
            assert_eq!(unknown, Vec::<String>::new());
            let mut out = Vec::new();
            write(&format, &ended(record), &stamp, &mut out);
            String::from_utf8(out).expect("text")
        };

        for (format, expected) in [
            (
                "[$remote_addr] [$time_local] $protocol $status $bytes_sent $bytes_received $session_time",
                "[192.0.2.7] [02/Jan/2006:15:04:05 +0000] UDP 200 70000 5 2.001",
            ),
            (
                "$remote_port $server_addr $server_port $connection $proxy_protocol_addr $time_iso8601 $msec",
                "4000 2001:db8::1 53 9 - 2006-01-02T15:04:05+00:00 1136214245.250",
            ),
            ("$proxy_upstream_name $upstream_addr", "udp-dns-coredns-53 10.0.0.1:53, 10.0.0.2:53"),
            ("$upstream_bytes_sent|$upstream_bytes_received", "0, 5|0, 70000"),
            ("$upstream_connect_time|$upstream_first_byte_time", "-, 0.003|-, 0.020"),
            ("$upstream_session_time", "1.500, 1.500"),
        ] {
            assert_eq!(line(format, &record), expected, "{format}");
        }
        assert_eq!(line("$upstream_addr $upstream_connect_time", &none), "- -");
    }
}

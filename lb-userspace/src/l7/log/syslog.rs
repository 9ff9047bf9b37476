//! Lines for a collector of logs: each in a datagram of its own, as RFC 3164 has it and nginx writes it.

use std::io::{self, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs as _, UdpSocket};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::super::calendar::Moment;

/// Facility `local7`, severity `info` (RFC 3164 4.1.1), as of nginx.
const PRIORITY: u8 = 23 * 8 + 6;
/// Who speaks; what filters of collectors know ingress-nginx by.
const TAG: &str = "nginx";
/// Bytes of a line at most; the rest is cut off: a datagram of IPv4 takes 65,507, with the header before them.
const LINE_MAX: usize = 65_000;

/// A collector.
pub(super) struct Collector {
    socket: UdpSocket,
    host: String,
    /// One datagram, made anew for each line.
    datagram: Vec<u8>,
}

impl Collector {
    /// Looks the collector up. Waits for the resolver.
    pub(super) fn new(host: &str, port: u16) -> io::Result<Self> {
        let mut last = io::ErrorKind::NotFound.into();
        for addr in (host, port).to_socket_addrs()? {
            match connect(addr) {
                Ok(socket) => {
                    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
                    return Ok(Self { socket, host, datagram: Vec::new() });
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Sends each line; the error has how many were not sent beside it.
    pub(super) fn send(&mut self, lines: &[u8]) -> Result<(), (io::Error, u64)> {
        let (mut lost, mut last) = (0, None);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            write(now, &self.host, line, &mut self.datagram);
            if let Err(error) = self.socket.send(&self.datagram) {
                (lost, last) = (lost + 1, Some(error));
            }
        }
        last.map_or(Ok(()), |error| Err((error, lost)))
    }
}

fn connect(addr: SocketAddr) -> io::Result<UdpSocket> {
    let any: SocketAddr = match addr {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any)?;
    socket.connect(addr)?;
    Ok(socket)
}

fn write(now: Duration, host: &str, line: &[u8], datagram: &mut Vec<u8>) {
    let moment = Moment::of(now.as_secs());
    let (Moment { day, hour, minute, second, .. }, month) = (moment, moment.month_name());
    datagram.clear();
    // A Vec takes everything.
    let _ = write!(datagram, "<{PRIORITY}>{month} {day:>2} {hour:02}:{minute:02}:{second:02} {host} {TAG}: ");
    datagram.extend_from_slice(line.get(..LINE_MAX).unwrap_or(line));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_its_header_and_is_cut_to_what_a_datagram_takes() {
        let mut datagram = Vec::new();

        write(Duration::from_secs(1_136_214_245), "edge-1", b"GET / 200", &mut datagram);
        assert_eq!(String::from_utf8_lossy(&datagram), "<190>Jan  2 15:04:05 edge-1 nginx: GET / 200");

        write(Duration::ZERO, "edge-1", &[b'x'; 200_000], &mut datagram);
        assert!((LINE_MAX..65_507).contains(&datagram.len()));
    }

    #[test]
    fn each_line_is_a_datagram() {
        let collector = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        let port = collector.local_addr().expect("its address").port();
        let mut to = Collector::new("127.0.0.1", port).expect("an address");

        to.send(b"one\ntwo\n").expect("sent");

        let next = || {
            let mut datagram = [0; 200];
            let n = collector.recv(&mut datagram).expect("a datagram");
            String::from_utf8_lossy(&datagram[..n]).into_owned()
        };
        assert!(next().ends_with(" nginx: one"));
        assert!(next().ends_with(" nginx: two"));
    }
}

use std::io::{Read, Write};

use rustls::version::{TLS12, TLS13};
use rustls::{AlertDescription, ClientConnection, ProtocolVersion, SupportedProtocolVersion};

use super::fuzz::{NAME, configs, feed, fuzz, handshake, pair};
use super::*;
use crate::l7::buffer::BUFFER_BYTES;

/// A session, and rustls' own client in front of it, which is fed by its own means.
struct Rig {
    session: TlsSession,
    peer: ClientConnection,
}

impl Rig {
    /// Before the first byte.
    fn new(version: &'static SupportedProtocolVersion) -> Self {
        let (server, client) = configs(version).expect("configurations");
        let name = ServerName::try_from(NAME).expect("a name");
        let peer = ClientConnection::new(client, name).expect("a client");
        Self { session: TlsSession::server(server, Buf::default()).expect("a server"), peer }
    }

    /// With the handshake behind it.
    fn open(version: &'static SupportedProtocolVersion) -> Self {
        let mut rig = Self::new(version);
        while rig.peer.is_handshaking() || rig.session.state().is_handshaking() {
            let sent = rig.sent();
            assert_eq!(rig.receive(&sent), b"");
            rig.answer();
        }
        rig
    }

    /// What the peer sends.
    fn sent(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        while self.peer.wants_write() {
            self.peer.write_tls(&mut bytes).expect("memory");
        }
        bytes
    }

    /// Of a message.
    fn encrypted(&mut self, message: &[u8]) -> Vec<u8> {
        self.peer.writer().write_all(message).expect("room");
        self.sent()
    }

    /// The session gets `bytes`, and says what they mean.
    fn receive(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.try_receive(bytes).expect("sound records")
    }

    fn try_receive(&mut self, bytes: &[u8]) -> Result<Vec<u8>, Error> {
        feed(&mut self.session, bytes, || usize::MAX)
    }

    /// The peer gets what the session has to send, and says what that means.
    fn answer(&mut self) -> Vec<u8> {
        let outgoing = self.session.outgoing().to_vec();
        self.session.sent(outgoing.len());
        let (mut rest, mut plain) = (outgoing.as_slice(), Vec::new());
        while !rest.is_empty() {
            self.peer.read_tls(&mut rest).expect("room");
            let state = self.peer.process_new_packets().expect("sound records");
            let at = plain.len();
            plain.resize(at + state.plaintext_bytes_to_read(), 0);
            self.peer.reader().read_exact(&mut plain[at..]).expect("as many as there are");
        }
        plain
    }

    fn write(&mut self, parts: &[&[u8]]) -> usize {
        let parts: Vec<_> = parts.iter().map(|part| IoSlice::new(part)).collect();
        self.session.write(&parts).expect("an open session")
    }

    fn held(&self) -> usize {
        let TlsSession { incoming, outgoing, plain, .. } = &self.session;
        incoming.held() + outgoing.held() + plain.held()
    }
}

const VERSIONS: [&SupportedProtocolVersion; 2] = [&TLS13, &TLS12];

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|n| u8::try_from(n % 251).expect("small")).collect()
}

/// Lengths of the records' contents.
fn lengths(mut records: &[u8]) -> Vec<usize> {
    let mut all = Vec::new();
    while let [_, _, _, high, low, rest @ ..] = records {
        let len = usize::from(u16::from_be_bytes([*high, *low]));
        all.push(len);
        records = &rest[len..];
    }
    all
}

#[test]
fn a_handshake_is_read_however_it_is_cut() {
    for version in VERSIONS {
        for size in [1, 2, 7, 1000] {
            let mut rig = Rig::new(version);

            while rig.peer.is_handshaking() || rig.session.state().is_handshaking() {
                let sent = rig.sent();
                let read = feed(&mut rig.session, &sent, || size).expect("sound records");
                assert_eq!(read, b"", "{version:?} {size}");
                rig.answer();
            }
            assert_eq!(rig.write(&[b"welcome"]), 7);
            assert_eq!(rig.answer(), b"welcome");
        }
    }
}

#[test]
fn what_was_read_before_the_session_was_known_belongs_to_it() {
    let mut rig = Rig::new(&TLS13);
    let mut early = Buf::default();
    early.append(&rig.sent());
    let (server, _) = configs(&TLS13).expect("configurations");
    rig.session = TlsSession::server(server, early).expect("a server");

    assert_eq!(rig.session.received(0, &mut []), Ok(0));

    assert!(lengths(rig.session.outgoing()).len() > 1, "no flight");
}

#[test]
fn records_are_read_however_they_are_cut() {
    for version in VERSIONS {
        let mut rig = Rig::open(version);
        let len = [rig.encrypted(b"hello"), rig.encrypted(b", world")].concat();
        assert_eq!(rig.receive(&len), b"hello, world");

        for cut in 0..len.len() {
            let bytes = [rig.encrypted(b"hello"), rig.encrypted(b", world")].concat();
            let mut read = rig.receive(&bytes[..cut]);
            rig.session.park();
            read.extend(rig.receive(&bytes[cut..]));
            assert_eq!(read, b"hello, world", "{version:?} cut at {cut}");
        }
    }
}

#[test]
fn a_session_that_waits_holds_no_buffer_and_what_came_in_part_its_own_size() {
    let mut rig = Rig::open(&TLS13);
    rig.session.park();
    // Tickets that the first answer carries.
    assert_eq!(rig.held(), rig.session.outgoing().len());
    rig.answer();

    let bytes = rig.encrypted(&[b'x'; 1000]);
    rig.receive(&bytes[..600]);
    rig.session.park();
    assert_eq!(rig.held(), 600);
    rig.receive(&bytes[600..]);
    rig.write(&[b"answer"]);
    rig.answer();
    assert_eq!(rig.held(), 0);
}

#[test]
fn what_is_not_asked_for_yet_is_kept_in_its_order() {
    let mut rig = Rig::open(&TLS13);
    let message = pattern(40_000);
    let bytes = rig.encrypted(&message);
    let room = rig.session.room().expect("room");
    let (first, rest) = bytes.split_at(room.len());
    room.copy_from_slice(first);

    let mut into = [0; 1000];
    assert_eq!(rig.session.received(first.len(), &mut into), Ok(1000));
    assert_eq!(into, message[..1000]);
    assert!(rig.session.has_plaintext());
    // To write does not wait for what is to be read.
    assert_eq!(rig.write(&[b"an answer"]), 9);
    assert_eq!(rig.answer(), b"an answer");

    let mut read = vec![0; 39_000];
    let n = rig.session.take(&mut read);
    assert_eq!(read[..n], message[1000..1000 + n]);
    assert_eq!(rig.receive(rest), message[1000 + n..]);
    assert!(!rig.session.is_readable());
}

#[test]
fn a_head_and_its_body_share_records_that_are_full() {
    for version in VERSIONS {
        let mut rig = Rig::open(version);
        rig.answer();
        let (head, body) = (pattern(300), pattern(200_000));

        assert_eq!(rig.write(&[&head, b"", &body[..1024]]), 1324);
        assert_eq!(lengths(rig.session.outgoing()).len(), 1);
        assert_eq!(rig.answer(), [&head, &body[..1024]].concat());

        let mut written = rig.write(&[&head, &body]);
        assert_eq!(written, 4 * RECORD_BYTES);
        assert_eq!(lengths(rig.session.outgoing()).len(), 4);
        assert_eq!(rig.write(&[&body]), 0, "there is an end to what may wait");
        let mut read = rig.answer();
        while written < head.len() + body.len() {
            written += rig.write(&[&body[written - head.len()..]]);
            read.extend(rig.answer());
        }
        assert!(read == [head, body].concat(), "{version:?}");
    }
}

#[test]
fn small_pieces_wait_together() {
    let mut rig = Rig::open(&TLS13);
    rig.answer();

    let written: usize = (0..1000).map(|_| rig.write(&[b"0123456789"])).sum();
    // Nothing is lost where there was no room.
    assert_eq!(rig.answer().len(), written);
    assert_eq!(
        written,
        10 * (0..1000).take_while(|n| n * 32 < BUFFER_BYTES - OVERHEAD_BYTES).count().min(1000)
    );
}

#[test]
fn each_side_ends_for_itself() {
    for version in VERSIONS {
        let mut rig = Rig::open(version);
        let last = rig.encrypted(b"the last");
        rig.peer.send_close_notify();
        let bytes = [last, rig.sent(), b"nobody's".to_vec()].concat();
        assert_eq!(rig.receive(&bytes), b"the last");
        assert!(rig.session.is_ended() && rig.session.is_readable() && !rig.session.has_plaintext());

        assert_eq!(rig.write(&[b"still here"]), 10);
        assert_eq!(rig.answer(), b"still here");
        rig.session.close();
        rig.session.close();
        assert_eq!(lengths(rig.session.outgoing()).len(), 1);
        rig.answer();
        assert!(rig.peer.process_new_packets().expect("an end").peer_has_closed());
        assert!(rig.session.write(&[IoSlice::new(b"too late")]).is_err());
        assert_eq!(rig.held(), 0);
    }
}

#[test]
fn who_breaks_the_protocol_is_told_and_heard_no_more() {
    for version in VERSIONS {
        let mut rig = Rig::open(version);
        rig.answer();
        let mut bytes = rig.encrypted(b"hello");
        let more = rig.encrypted(b"more");
        *bytes.last_mut().expect("a tag") ^= 1;

        assert_eq!(rig.try_receive(&bytes), Err(Error::DecryptError));

        let alert = rig.session.outgoing().to_vec();
        assert_eq!(lengths(&alert).len(), 1);
        rig.peer.read_tls(&mut alert.as_slice()).expect("room");
        let told = rig.peer.process_new_packets();
        assert_eq!(told, Err(Error::AlertReceived(AlertDescription::BadRecordMac)));
        rig.session.sent(alert.len());
        assert!(rig.try_receive(&more).is_err());
        assert!(rig.session.write(&[IoSlice::new(b"no")]).is_err());
        rig.session.close();
        assert_eq!(rig.session.outgoing(), b"");
    }
}

#[test]
fn what_is_no_tls_is_refused_with_an_alert() {
    let cases: [(&str, &[u8]); 4] = [
        ("another version", b"\x16\x09\x01\0\x01\0"),
        ("a record too long", b"\x16\x03\x01\xff\xff\0"),
        ("data before its time", b"\x17\x03\x03\0\x01\0"),
        ("no hello", b"\x16\x03\x01\0\x04\x02\0\0\0"),
    ];
    for (case, bytes) in cases {
        let mut rig = Rig::new(&TLS13);
        assert!(rig.try_receive(bytes).is_err(), "{case}");
        assert!(matches!(rig.session.outgoing(), [21, 3, _, 0, 2, 2, _]), "{case}");
    }
    let mut rig = Rig::open(&TLS13);
    rig.answer();
    rig.receive(b"\x17\x03\x03\x50");
    assert!(rig.try_receive(&[0xff; 5]).is_err());
}

#[test]
fn keys_are_changed_on_demand_but_not_for_ever() {
    let mut rig = Rig::open(&TLS13);
    rig.answer();
    for _ in 0..100 {
        rig.peer.refresh_traffic_keys().expect("TLS 1.3");
        let bytes = [rig.sent(), rig.encrypted(b"with new keys")].concat();
        assert_eq!(feed(&mut rig.session, &bytes, || 5).as_deref(), Ok(&b"with new keys"[..]));
        // Our own change goes first.
        assert_eq!(rig.write(&[b"as well"]), 7);
        assert_eq!(lengths(rig.session.outgoing()).len(), 2);
        assert_eq!(rig.answer(), b"as well");
    }

    let mut flood = Vec::new();
    for _ in 0..40 {
        rig.peer.refresh_traffic_keys().expect("TLS 1.3");
        flood.extend(rig.sent());
    }
    assert!(rig.try_receive(&flood).is_err());
}

#[test]
fn either_side_agrees_on_what_there_is() {
    for version in VERSIONS {
        let (server, client) = pair(version).expect("sessions");
        let (mut server, mut client) = (server, client);
        handshake(&mut server, &mut client, || usize::MAX).expect("an agreement");

        for session in [&server, &client] {
            assert_eq!(session.state().alpn_protocol(), Some(&b"h2"[..]));
            let expected = if version.version == TLS13.version {
                ProtocolVersion::TLSv1_3
            } else {
                ProtocolVersion::TLSv1_2
            };
            assert_eq!(session.state().protocol_version(), Some(expected));
        }
        assert_eq!(client.state().peer_certificates().map(<[_]>::len), Some(1));
    }
}

proptest::proptest! {
    #[test]
    fn bytes_arrive_as_they_were_whatever_the_cuts(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..600)) {
        fuzz(&bytes);
    }
}

//! Two sides of a session face to face, for fuzzing and for tests.

use std::io::IoSlice;
use std::sync::Arc;

use rcgen::{CertificateParams, KeyPair};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::ServerName;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, Error, RootCertStore, ServerConfig, SupportedProtocolVersion};

use super::TlsSession;
use crate::l7::buffer::{Buf, copy};

/// Who the server of a fuzzed session is.
pub(super) const NAME: &str = "fuzz.example";

/// However its records are cut, a session reads what the other has written, and nothing else where a bit is
/// another; bytes of a stranger are refused or waited on.
pub(in crate::l7) fn fuzz(bytes: &[u8]) {
    let bytes = bytes.get(..4096).unwrap_or(bytes);
    let version = if bytes.len() % 2 == 0 { &TLS13 } else { &TLS12 };
    let (mut server, mut client) = pair(version).expect("sessions");
    let (mut stranger, _) = pair(version).expect("sessions");
    let _ = feed(&mut stranger, bytes, || usize::MAX);
    assert!(stranger.state().is_handshaking());
    let mut at = 0;
    let mut cut = || {
        at += 1;
        bytes.get(at % bytes.len().max(1)).map_or(1, |byte| 1 + usize::from(*byte))
    };

    handshake(&mut server, &mut client, &mut cut).expect("an agreement");
    for (from, to) in [(0, 1), (1, 0)] {
        let sessions = [&mut server, &mut client];
        let parts = bytes.split_at(bytes.len() / 3);
        let parts = [IoSlice::new(parts.0), IoSlice::new(parts.1)];
        assert_eq!(sessions[from].write(&parts).ok(), Some(bytes.len()));
        let sent = drain(sessions[from]);
        assert_eq!(feed(sessions[to], &sent, &mut cut).as_deref(), Ok(bytes));
    }

    client.write(&[IoSlice::new(bytes)]).expect("an open session");
    let mut sent = drain(&mut client);
    let place = cut() % sent.len().max(1);
    if let Some(byte) = sent.get_mut(place) {
        *byte ^= 1;
        let read = feed(&mut server, &sent, &mut cut).unwrap_or_default();
        // What a record of TLS 1.3 says of its version is ignored (RFC 8446 5.1).
        assert!(read.is_empty() || read == bytes, "a changed record was read");
    }
}

/// Configurations of two sides that trust each other.
pub(super) fn configs(
    version: &'static SupportedProtocolVersion,
) -> Result<(Arc<ServerConfig>, Arc<ClientConfig>), Box<dyn std::error::Error>> {
    let key = KeyPair::generate()?;
    let certificate = CertificateParams::new([NAME.to_owned()])?.self_signed(&key)?;
    let mut roots = RootCertStore::empty();
    roots.add(certificate.der().clone())?;
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[version])?
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key.serialize_der().try_into()?)?;
    let mut client = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    (server.alpn_protocols, client.alpn_protocols) = (vec![b"h2".to_vec()], vec![b"h2".to_vec()]);
    Ok((Arc::new(server), Arc::new(client)))
}

pub(super) fn pair(
    version: &'static SupportedProtocolVersion,
) -> Result<(TlsSession, TlsSession), Box<dyn std::error::Error>> {
    let (server, client) = configs(version)?;
    let name = ServerName::try_from(NAME)?;
    Ok((TlsSession::server(server, Buf::default())?, TlsSession::client(client, name)?))
}

pub(super) fn handshake(
    server: &mut TlsSession,
    client: &mut TlsSession,
    mut cut: impl FnMut() -> usize,
) -> Result<(), Error> {
    client.received(0, &mut [])?;
    while server.state().is_handshaking() || client.state().is_handshaking() {
        feed(server, &drain(client), &mut cut)?;
        feed(client, &drain(server), &mut cut)?;
    }
    feed(client, &drain(server), cut).map(drop)
}

/// Takes what is to be sent.
pub(super) fn drain(session: &mut TlsSession) -> Vec<u8> {
    let outgoing = session.outgoing().to_vec();
    session.sent(outgoing.len());
    outgoing
}

/// Has a session receive `bytes`, cut after so many each, and returns the plaintext of them.
pub(super) fn feed(
    session: &mut TlsSession,
    mut bytes: &[u8],
    mut cut: impl FnMut() -> usize,
) -> Result<Vec<u8>, Error> {
    let (mut plain, mut some) = (Vec::new(), [0; 100]);
    while !bytes.is_empty() {
        let room = session.room().map_err(|error| Error::General(error.to_string()))?;
        let most = cut().max(1).min(bytes.len());
        let n = copy(bytes.get(..most).unwrap_or_default(), room);
        bytes = bytes.get(n..).unwrap_or_default();
        let read = session.received(n, &mut some)?;
        plain.extend_from_slice(some.get(..read).unwrap_or_default());
        while session.has_plaintext() {
            let taken = session.take(&mut some);
            plain.extend_from_slice(some.get(..taken).unwrap_or_default());
        }
        session.park();
    }
    Ok(plain)
}

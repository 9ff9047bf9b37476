//! One side of a TLS session without its socket: what was received goes in, what is to be sent comes out.
//!
//! rustls keeps the keys and the protocol, the buffers are ours. Each is taken from its thread's pool when there is
//! something to put into it and given back as soon as that is gone, so a session that waits has none: rustls' own
//! would keep four KiB for each. A record that has come in part is parked in memory of its size.

mod fuzz;
#[cfg(test)]
mod tests;

use std::io::{self, IoSlice};
use std::sync::Arc;

use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::ServerName;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, EncryptError, UnbufferedStatus, WriteTraffic};
use rustls::{ClientConfig, CommonState, Error, ServerConfig};

pub(super) use self::fuzz::fuzz;

use super::buffer::{BUFFER_BYTES, Buf, Scratch, copy};

/// Most plaintext of one record.
const RECORD_BYTES: usize = 1 << 14;
/// No record is longer than its plaintext by more: its head, an explicit nonce, a content type and a tag.
const OVERHEAD_BYTES: usize = 64;
/// Ciphertext that may wait to be sent before no more plaintext is taken.
const OUTGOING_MAX: usize = 4 * (RECORD_BYTES + OVERHEAD_BYTES);
/// A long message is not cut into records shorter than this for want of room.
const RECORD_LEAST: usize = 4096;
/// Most ciphertext that is held undecided: the longest handshake message that rustls takes (64 KiB), and records.
const INCOMING_MAX: usize = 128 * 1024;

/// A session with all that it has not dealt with yet.
pub(super) struct TlsSession {
    side: Side,
    /// Received, and no whole record, or no whole handshake message. What rustls has seen of it stays in place.
    incoming: Buf,
    /// Encrypted, and not sent.
    outgoing: Buf,
    /// Decrypted, and not asked for yet.
    plain: Buf,
    /// Nothing comes any more.
    is_ended: bool,
    /// It broke the protocol, so nothing it sends is looked at.
    is_failed: bool,
}

enum Side {
    Server(UnbufferedServerConnection),
    Client(UnbufferedClientConnection),
}

/// What a session is moved on for.
enum Task<'t> {
    /// Plaintext goes here, as far as there is room.
    Read { into: &'t mut [u8], read: usize },
    /// Plaintext comes from here.
    Write { parts: &'t [IoSlice<'t>], written: usize },
    /// Goodbye is said.
    Close,
}

/// How far one step has led.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// There is more to do.
    Again,
    /// Plaintext was received; there may be more to do.
    Received,
    /// The peer has said goodbye; there is more to do.
    Ended,
    /// More has to be received first.
    Starved,
    /// Plaintext may be sent, and all that was received is dealt with.
    Open,
    /// Both have said goodbye.
    Closed,
}

impl TlsSession {
    /// Of a client that has sent `early` so far.
    pub(super) fn server(config: Arc<ServerConfig>, early: Buf) -> Result<Self, Error> {
        let side = Side::Server(UnbufferedServerConnection::new(config)?);
        Ok(Self { incoming: early, ..Self::new(side) })
    }

    /// One that we start.
    pub(super) fn client(config: Arc<ClientConfig>, name: ServerName<'static>) -> Result<Self, Error> {
        Ok(Self::new(Side::Client(UnbufferedClientConnection::new(config, name)?)))
    }

    fn new(side: Side) -> Self {
        let (incoming, outgoing, plain) = Default::default();
        Self { side, incoming, outgoing, plain, is_ended: false, is_failed: false }
    }

    /// What was agreed on.
    pub(super) fn state(&self) -> &CommonState {
        match &self.side {
            Side::Server(session) => session,
            Side::Client(session) => session,
        }
    }

    /// Plaintext, or its end, is there.
    pub(super) fn is_readable(&self) -> bool {
        !self.plain.is_empty() || self.is_ended
    }

    /// Plaintext is there.
    pub(super) fn has_plaintext(&self) -> bool {
        !self.plain.is_empty()
    }

    /// No more plaintext will come than there is.
    pub(super) fn is_ended(&self) -> bool {
        self.is_ended
    }

    /// Takes plaintext that is there.
    pub(super) fn take(&mut self, into: &mut [u8]) -> usize {
        let n = copy(self.plain.bytes(), into);
        self.plain.consume(n);
        n
    }

    /// Where ciphertext is to be received, followed by [`Self::received`]; an error where there is too much already.
    pub(super) fn room(&mut self) -> io::Result<&mut [u8]> {
        if self.incoming.is_full() {
            self.incoming.grow(INCOMING_MAX);
        }
        match self.incoming.space() {
            [] => Err(io::ErrorKind::InvalidData.into()),
            room => Ok(room),
        }
    }

    /// Deals with `n` bytes that were put into the room, and with what an earlier step left: returns how much
    /// plaintext went into `into`; what had no place there is kept. After an error, what is outgoing tells the peer.
    pub(super) fn received(&mut self, n: usize, into: &mut [u8]) -> Result<usize, Error> {
        self.incoming.advance(n);
        let mut task = Task::Read { into, read: 0 };
        self.run(&mut task)?;
        match task {
            Task::Read { read, .. } => Ok(read),
            Task::Write { .. } | Task::Close => Ok(0),
        }
    }

    /// The connection has ended.
    pub(super) fn end(&mut self) {
        self.is_ended = true;
    }

    /// Encrypts some of `parts`; none if what is outgoing has to be sent first.
    pub(super) fn write(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut task = Task::Write { parts, written: 0 };
        let step = self.run(&mut task).map_err(broken)?;
        match task {
            Task::Write { written, .. } if step == Step::Open => Ok(written),
            _ => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    /// Says goodbye, if that was not done.
    pub(super) fn close(&mut self) {
        // One that failed has said why.
        let _ = self.run(&mut Task::Close);
    }

    /// To be sent.
    pub(super) fn outgoing(&self) -> &[u8] {
        self.outgoing.bytes()
    }

    /// The first `n` of these bytes were sent.
    pub(super) fn sent(&mut self, n: usize) {
        self.outgoing.consume(n);
    }

    /// Before a wait: holds no more than it must.
    pub(super) fn park(&mut self) {
        self.incoming.park();
        self.outgoing.park();
        self.plain.park();
    }

    /// Deals with what was received until there is nothing left to do, then with the task.
    fn run(&mut self, task: &mut Task<'_>) -> Result<Step, Error> {
        if self.is_failed {
            return Err(Error::General("the session has failed".to_owned()));
        }
        loop {
            match self.step(task) {
                Ok(Step::Again) => {}
                Ok(Step::Received) => {
                    // Most often that is all there is, which rustls need not be asked.
                    let is_all = self.incoming.is_empty() && !self.state().wants_write();
                    if is_all && matches!(task, Task::Read { .. }) {
                        return Ok(Step::Open);
                    }
                }
                Ok(Step::Ended) => self.is_ended = true,
                Ok(reached) => {
                    if self.is_ended {
                        // What follows a goodbye is nobody's.
                        self.incoming.consume(usize::MAX);
                    }
                    return Ok(reached);
                }
                Err(error) => {
                    self.is_failed = true;
                    // The alert. rustls must not see again what it has failed on, and does not before that is out.
                    while self.state().wants_write() && self.step(task).is_ok() {}
                    return Err(error);
                }
            }
        }
    }

    fn step(&mut self, task: &mut Task<'_>) -> Result<Step, Error> {
        let Self { side, incoming, outgoing, plain, .. } = self;
        let received = incoming.bytes_mut();
        let (discard, step) = match side {
            Side::Server(session) => deal(session.process_tls_records(received), outgoing, plain, task),
            Side::Client(session) => deal(session.process_tls_records(received), outgoing, plain, task),
        };
        incoming.consume(discard);
        step
    }
}

/// Does what rustls says is next; the first so many bytes of what was received are done with.
fn deal<Data>(
    status: UnbufferedStatus<'_, '_, Data>,
    outgoing: &mut Buf,
    plain: &mut Buf,
    task: &mut Task<'_>,
) -> (usize, Result<Step, Error>) {
    let UnbufferedStatus { discard, state } = status;
    let step = state.and_then(|state| match state {
        ConnectionState::ReadTraffic(mut traffic) => {
            while let Some(record) = traffic.next_record() {
                take_in(record?.payload, plain, task);
            }
            Ok(Step::Received)
        }
        ConnectionState::EncodeTlsData(mut data) => {
            outgoing.reserve(OVERHEAD_BYTES);
            let mut encoded = data.encode(outgoing.space());
            if let Err(EncodeError::InsufficientSize(size)) = &encoded {
                outgoing.reserve(size.required_size);
                encoded = data.encode(outgoing.space());
            }
            outgoing.advance(encoded.map_err(|error| Error::General(error.to_string()))?);
            Ok(Step::Again)
        }
        ConnectionState::TransmitTlsData(data) => {
            // In its order, before all that follows.
            data.done();
            Ok(Step::Again)
        }
        ConnectionState::WriteTraffic(mut traffic) => {
            match task {
                Task::Read { .. } => {}
                Task::Write { parts, written } => *written += seal(&mut traffic, parts, outgoing)?,
                Task::Close => {
                    encrypt(outgoing, |space| traffic.queue_close_notify(space))?;
                }
            }
            Ok(Step::Open)
        }
        ConnectionState::PeerClosed => Ok(Step::Ended),
        ConnectionState::Closed => Ok(Step::Closed),
        ConnectionState::BlockedHandshake => Ok(Step::Starved),
        // No configuration of ours allows early data.
        state => Err(Error::General(format!("unexpected state {state:?}"))),
    });
    (discard, step)
}

/// Passes on what was decrypted, in order.
fn take_in(payload: &[u8], plain: &mut Buf, task: &mut Task<'_>) {
    let mut rest = payload;
    if let Task::Read { into, read } = task
        && plain.is_empty()
    {
        let n = copy(rest, into.get_mut(*read..).unwrap_or_default());
        *read += n;
        rest = rest.get(n..).unwrap_or_default();
    }
    if !rest.is_empty() {
        plain.append(rest);
    }
}

/// Encrypts some of `parts`, as few records as that can be; returns how much of them.
fn seal<Data>(
    traffic: &mut WriteTraffic<'_, Data>,
    parts: &[IoSlice<'_>],
    outgoing: &mut Buf,
) -> Result<usize, Error> {
    let all: usize = parts.iter().map(|part| part.len()).sum();
    if outgoing.is_empty() && all > BUFFER_BYTES - 2 * OVERHEAD_BYTES {
        outgoing.widen();
    }
    let (mut parts, mut sealed) = (parts.iter().map(|part| &**part), 0);
    let mut part: &[u8] = &[];
    let mut gathered = Scratch::default();
    while sealed < all {
        let waiting = outgoing.bytes().len();
        let room = outgoing.space().len().min(OUTGOING_MAX.saturating_sub(waiting));
        let most = room.saturating_sub(OVERHEAD_BYTES).min(RECORD_BYTES).min(all - sealed);
        if most < RECORD_LEAST.min(all - sealed) {
            break;
        }
        while part.is_empty() {
            part = parts.next().unwrap_or_default();
        }
        let record = match part.split_at_checked(most) {
            Some((record, rest)) => {
                part = rest;
                record
            }
            // A head and the beginning of its body: one record is cheaper than two.
            None => {
                if gathered.capacity() == 0 {
                    gathered = Scratch::take();
                }
                gathered.clear();
                while gathered.len() < most {
                    if part.is_empty() {
                        part = parts.next().unwrap_or_default();
                        continue;
                    }
                    let (taken, rest) = part.split_at(part.len().min(most - gathered.len()));
                    gathered.extend_from_slice(taken);
                    part = rest;
                }
                &gathered
            }
        };
        encrypt(outgoing, |space| traffic.encrypt(record, space))?;
        sealed += record.len();
    }
    Ok(sealed)
}

/// Has a record put behind what is outgoing. More room than was thought takes one that rustls puts in front of it.
fn encrypt(
    outgoing: &mut Buf,
    mut put: impl FnMut(&mut [u8]) -> Result<usize, EncryptError>,
) -> Result<(), Error> {
    let mut done = put(outgoing.space());
    if let Err(EncryptError::InsufficientSize(size)) = &done {
        outgoing.reserve(size.required_size);
        done = put(outgoing.space());
    }
    outgoing.advance(done.map_err(|error| Error::General(error.to_string()))?);
    Ok(())
}

/// As an error of the connection.
pub(super) fn broken(error: Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

//! One end of the conversation: messages as JSON, each with a short header that carries its
//! descriptors.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg, sockopt,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, Interest};
use tokio::net::UnixStream;

use super::{Error, Message};

/// Descriptors of one message; the kernel takes 253 at most (`SCM_MAX_FD`).
pub(super) const FDS_MAX: usize = 64;
/// Longest message. The counters of ten thousand Ingresses take a few MiB.
const LENGTH_MAX: u32 = 64 << 20;
/// Length of the message, number of its descriptors.
const HEADER: usize = 8;

/// Who is at the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Process.
    pub pid: i32,
    /// User.
    pub uid: u32,
}

/// A conversation with a process of the same user or of root.
pub struct Link {
    stream: UnixStream,
    peer: Peer,
}

impl Link {
    /// Over a connected socket, unless somebody else is at its other end.
    pub fn new(stream: UnixStream) -> Result<Self, Error> {
        let peer =
            sockopt::socket_peercred(&stream).map_err(|errno| failed("ask who is at", errno.into()))?;
        let peer = Peer { pid: peer.pid.as_raw_nonzero().get(), uid: peer.uid.as_raw() };
        let own = rustix::process::geteuid().as_raw();
        if peer.uid != own && peer.uid != 0 {
            return Err(Error::Stranger { pid: peer.pid, uid: peer.uid });
        }
        Ok(Self { stream, peer })
    }

    /// The other end, as it was when it connected or began to listen.
    pub fn peer(&self) -> Peer {
        self.peer
    }

    /// Sends a message with descriptors, [`FDS_MAX`] at most.
    pub async fn send(&mut self, message: &Message, fds: &[BorrowedFd<'_>]) -> Result<(), Error> {
        let body = serde_json::to_vec(message).map_err(|error| Error::Protocol(error.to_string()))?;
        let length = u32::try_from(body.len()).ok().filter(|length| *length <= LENGTH_MAX);
        let (Some(length), Ok(count)) = (length, u32::try_from(fds.len())) else {
            return Err(Error::Protocol(format!("a message of {} bytes is too long", body.len())));
        };
        let mut header = [0; HEADER];
        let (first, second) = header.split_at_mut(4);
        first.copy_from_slice(&length.to_le_bytes());
        second.copy_from_slice(&count.to_le_bytes());
        let sent = self.stream.async_io(Interest::WRITABLE, || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
                return Err(io::Error::from(io::ErrorKind::ArgumentListTooLong));
            }
            sendmsg(&self.stream, &[IoSlice::new(&header)], &mut control, SendFlags::NOSIGNAL)
                .map_err(io::Error::from)
        });
        match sent.await {
            Ok(HEADER) => {}
            Ok(_) => return Err(Error::Ended),
            Err(error) => return Err(gone_or("send to", error)),
        }
        self.stream.write_all(&body).await.map_err(|error| gone_or("send to", error))
    }

    /// The next message and its descriptors.
    pub async fn receive(&mut self) -> Result<(Message, Vec<OwnedFd>), Error> {
        let mut header = [0; HEADER];
        let mut fds = Vec::new();
        let read = self.stream.async_io(Interest::READABLE, || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            // Without the flag a program that we start would inherit the sockets.
            let flags = RecvFlags::CMSG_CLOEXEC;
            let received =
                recvmsg(self.stream.as_fd(), &mut [IoSliceMut::new(&mut header)], &mut control, flags)?;
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(received) = message {
                    fds.extend(received);
                }
            }
            Ok(received.bytes)
        });
        match read.await {
            // One write of eight bytes arrives as it was sent.
            Ok(HEADER) => {}
            Ok(_) => return Err(Error::Ended),
            Err(error) => return Err(gone_or("receive from", error)),
        }
        let (first, second) = header.split_at(4);
        let word = |bytes: &[u8]| bytes.try_into().map_or(u32::MAX, u32::from_le_bytes);
        let (length, count) = (word(first), word(second));
        if length > LENGTH_MAX || usize::try_from(count) != Ok(fds.len()) {
            return Err(Error::Protocol(format!("a message of {length} bytes with {} sockets", fds.len())));
        }
        let mut body = vec![0; length as usize];
        self.stream.read_exact(&mut body).await.map_err(|error| gone_or("receive from", error))?;
        let message = serde_json::from_slice(&body).map_err(|error| Error::Protocol(error.to_string()))?;
        Ok((message, fds))
    }
}

fn gone_or(call: &'static str, source: io::Error) -> Error {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, NotConnected, UnexpectedEof};
    match source.kind() {
        BrokenPipe | ConnectionReset | NotConnected | UnexpectedEof => Error::Ended,
        _ => failed(call, source),
    }
}

fn failed(call: &'static str, source: io::Error) -> Error {
    Error::System { call, object: "the other agent".to_owned(), source }
}

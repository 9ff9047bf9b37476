//! The two rtnetlink sockets of our own: one asks many things in one system call, one hears what
//! changes and notices when the kernel had to drop some of it.

use std::io;
use std::sync::Arc;

use rtnetlink::packet_core::{NLM_F_REQUEST, NetlinkBuffer, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rtnetlink::sys::{AsyncSocket, AsyncSocketExt, Socket, SocketAddr, TokioSocket};

use super::heard::Shared;

/// Requests in one system call: their answers fit the default receive buffer at once.
const BATCH: usize = 32;
/// Largest message; links with many virtual functions are long.
const DATAGRAM: usize = 1 << 16;
/// Receive buffer for announcements: a few thousand of them.
const ANNOUNCEMENTS: usize = 4 << 20;

/// `RTNLGRP_*` of linux/rtnetlink.h: links, neighbours, addresses, routes and rules of both
/// families, next hop objects.
const GROUPS: [u32; 9] = [1, 3, 5, 7, 8, 9, 11, 19, 32];

/// One request; its flags beside `NLM_F_REQUEST`.
pub(super) type Request = (u16, RouteNetlinkMessage);

/// What the kernel said to a request: a message, nothing, or an errno.
pub(super) type Answer = Result<Option<RouteNetlinkMessage>, i32>;

/// Asks the kernel; answers are there when the asking system call returns, so nothing waits.
pub(super) struct Batch {
    socket: Socket,
    sequence: u32,
    received: Vec<u8>,
}

impl Batch {
    /// Opens the socket.
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        socket.set_non_blocking(true)?;
        // Short error messages: the request is not sent back.
        socket.set_cap_ack(true)?;
        Ok(Self { socket, sequence: 0, received: Vec::with_capacity(DATAGRAM) })
    }

    /// One answer for each request, in their order; `Ok(None)` where the kernel sent none.
    pub(super) fn ask(&mut self, requests: Vec<Request>) -> io::Result<Vec<Answer>> {
        let mut answers = Vec::with_capacity(requests.len());
        let mut requests = requests.into_iter().peekable();
        while requests.peek().is_some() {
            let first = self.sequence;
            let mut sent = Vec::new();
            for (flags, message) in requests.by_ref().take(BATCH) {
                push(&mut sent, self.sequence, flags, message);
                self.sequence = self.sequence.wrapping_add(1);
            }
            let count = self.sequence.wrapping_sub(first) as usize;
            self.socket.send(&sent, 0)?;
            let from = answers.len();
            answers.resize_with(from + count, || Ok(None));
            self.collect(first, answers.get_mut(from..).unwrap_or_default())?;
        }
        Ok(answers)
    }

    fn collect(&mut self, first: u32, answers: &mut [Answer]) -> io::Result<()> {
        loop {
            self.received.clear();
            match self.socket.recv(&mut self.received, 0) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                // What was lost counts as not answered.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => continue,
                Err(error) => return Err(error),
            }
            for (sequence, answer) in messages(&self.received).filter_map(answer) {
                if let Some(slot) = answers.get_mut(sequence.wrapping_sub(first) as usize) {
                    *slot = answer;
                }
            }
        }
    }
}

fn push(to: &mut Vec<u8>, sequence: u32, flags: u16, message: RouteNetlinkMessage) {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | flags;
    header.sequence_number = sequence;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
    message.finalize();
    let start = to.len();
    to.resize(start + message.buffer_len().next_multiple_of(4), 0);
    message.serialize(to.get_mut(start..).unwrap_or_default());
}

fn answer(bytes: &[u8]) -> Option<(u32, Answer)> {
    let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(bytes).ok()?;
    let (header, payload) = message.into_parts();
    let answer = match payload {
        NetlinkPayload::InnerMessage(message) => Ok(Some(message)),
        NetlinkPayload::Error(error) => match error.code {
            Some(code) => Err(code.get().abs()),
            None => return None,
        },
        _ => return None,
    };
    Some((header.sequence_number, answer))
}

/// The messages of a datagram, each with its header.
fn messages(datagram: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let length = NetlinkBuffer::new_checked(rest).ok()?.length() as usize;
        let message = rest.get(..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// Opens the socket that hears announcements. `buffer`: bytes it holds at most, for tests.
pub(super) fn announcements(buffer: Option<usize>) -> io::Result<TokioSocket> {
    let mut socket = <TokioSocket as AsyncSocket>::new(NETLINK_ROUTE)?;
    let inner = socket.socket_mut();
    let wished = buffer.unwrap_or(ANNOUNCEMENTS);
    // Beyond net.core.rmem_max only with CAP_NET_ADMIN; with less, changes are lost sooner and
    // everything is read anew.
    if rustix::net::sockopt::set_socket_recv_buffer_size_force(&*inner, wished).is_err() {
        inner.set_rx_buf_sz(libc::c_int::try_from(wished).unwrap_or(libc::c_int::MAX))?;
    }
    inner.bind_auto()?;
    for group in GROUPS {
        inner.add_membership(group)?;
    }
    Ok(socket)
}

/// Hears announcements until the task is aborted.
pub(super) async fn listen(socket: TokioSocket, shared: Arc<Shared>) {
    let mut received = Vec::with_capacity(DATAGRAM);
    loop {
        received.clear();
        match socket.recv(&mut received).await {
            Ok(()) => messages(&received).for_each(|message| hear(message, &shared)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                tracing::debug!("announcements of the kernel were lost, everything is read anew");
                shared.lost();
            }
            Err(error) => {
                tracing::error!(%error, "changes of the network are not heard any more; please report this");
                return;
            }
        }
    }
}

fn hear(bytes: &[u8], shared: &Shared) {
    /// `RTM_NEWNEXTHOP` and `RTM_DELNEXTHOP`: a route names such an object, its own message says
    /// nothing when the object changes.
    const NEXT_HOPS: [u16; 2] = [104, 105];
    let kind = NetlinkBuffer::new_checked(bytes).map_or(0, |message| message.message_type());
    if NEXT_HOPS.contains(&kind) {
        return shared.all_routes();
    }
    match NetlinkMessage::<RouteNetlinkMessage>::deserialize(bytes).map(|message| message.payload) {
        Ok(NetlinkPayload::InnerMessage(message)) => shared.hear(message),
        Ok(_) => {}
        Err(error) => {
            // A message that we cannot read may have said anything.
            tracing::debug!(%error, kind, "unreadable announcement");
            shared.lost();
        }
    }
}

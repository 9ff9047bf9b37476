//! Which of a worker's listening sockets take connections: all, those no successor has, none.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use socket2::{SockFilter, SockRef};
use tokio::sync::Notify;

use super::listen::Place;

/// After new connections are kept away, those that are half made arrive within a round trip.
pub(super) const LAST_ARRIVALS: Duration = Duration::from_millis(200);

/// What a listening socket does with connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Entry {
    /// Takes them.
    Open,
    /// Takes those that the kernel has completed, until none comes for so long.
    Closing(Duration),
    /// Leaves them to another process.
    HandedOver,
}

/// The state of a worker's sockets, and which of them are looked after.
#[derive(Default)]
pub(super) struct Gate {
    handed_over: RefCell<HashSet<Place>>,
    closing: Cell<bool>,
    changed: Notify,
    listening: RefCell<Vec<Place>>,
    left: Notify,
}

impl Gate {
    pub(super) fn entry(&self, place: Place) -> Entry {
        if self.handed_over.borrow().contains(&place) {
            Entry::HandedOver
        } else if self.closing.get() {
            Entry::Closing(LAST_ARRIVALS)
        } else {
            Entry::Open
        }
    }

    /// Waits until [`Gate::entry`] may say something else.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Another process accepts there from now on.
    pub(super) fn hand_over(&self, places: &HashSet<Place>) {
        self.handed_over.borrow_mut().extend(places);
        self.changed.notify_waiters();
    }

    /// It does not, after all.
    pub(super) fn take_back(&self) {
        self.handed_over.borrow_mut().clear();
    }

    /// The last ones come in.
    pub(super) fn close(&self) {
        self.closing.set(true);
        self.changed.notify_waiters();
    }

    /// Notes who looks after a socket, until the returned value is dropped.
    pub(super) fn listen(self: &Rc<Self>, place: Place) -> Listening {
        self.listening.borrow_mut().push(place);
        Listening(Rc::clone(self), place)
    }

    /// Waits until nobody looks after a socket that is not to be looked after.
    pub(super) async fn left(&self) {
        let lags = |place: &Place| self.entry(*place) != Entry::Open;
        while self.listening.borrow().iter().any(lags) {
            self.left.notified().await;
        }
    }
}

/// See [`Gate::listen`].
pub(super) struct Listening(Rc<Gate>, Place);

impl Drop for Listening {
    fn drop(&mut self) {
        let Self(gate, place) = self;
        let mut listening = gate.listening.borrow_mut();
        if let Some(at) = listening.iter().position(|known| known == place) {
            listening.swap_remove(at);
        }
        gate.left.notify_waiters();
    }
}

/// Keeps new connections away from a listening socket while those that the kernel has begun are
/// completed: a client that sends its SYN again a second later is refused, or reaches somebody
/// else, where one that was told it is connected would be reset.
pub(super) fn keep_away(socket: &impl std::os::fd::AsFd) -> io::Result<()> {
    // Classic BPF over the TCP header: byte 13 has the flags.
    let op = |code: u32, jt, jf, k| SockFilter::new(code as u16, jt, jf, k);
    const SYN: u32 = 0x02;
    const ACK: u32 = 0x10;
    SockRef::from(socket).attach_filter(&[
        op(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, 0, 0, 13),
        op(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, 0, 0, SYN | ACK),
        op(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, SYN),
        op(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
        op(libc::BPF_RET | libc::BPF_K, 0, 0, u32::MAX),
    ])
}

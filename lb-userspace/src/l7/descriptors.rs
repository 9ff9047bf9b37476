//! File descriptors: how many there may be, and what is done with them.

use std::cell::Cell;
use std::io;
use std::rc::Rc;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What is not a connection: listeners, maps and links of the kernel, files, the admin port.
const OTHERS: u64 = 256;
/// A client, and the endpoint that it is passed on to.
const EACH: u64 = 2;
/// What others leave of the connections to endpoints is divided by this, and one client has no more.
const PART: usize = 4;
/// Most sockets of a worker towards endpoints of UDP ports.
const DATAGRAMS_MAX: usize = 2048;

/// Raises the limit of the process to what it may raise it to, and returns it. Shells and containers begin with 1,024.
pub fn raise_limit() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum.unwrap_or(u64::MAX),
        // The kernel's own limit may be lower.
        Err(_) => limit.current.unwrap_or(u64::MAX),
    }
}

/// What one worker may have of the descriptors of all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::l7) struct Share {
    /// Client connections, so that descriptors are left for their endpoints.
    connections: usize,
    /// Sockets towards endpoints of UDP ports: whoever sends datagrams takes few from connections.
    pub(in crate::l7) datagrams: usize,
}

impl Share {
    /// That of one of so many workers.
    pub(in crate::l7) fn of(workers: usize) -> Self {
        Self::of_limit(getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX), workers)
    }

    fn of_limit(limit: u64, workers: usize) -> Self {
        let workers = workers.max(1) as u64;
        let each = |descriptors: u64| usize::try_from(descriptors / workers).unwrap_or(usize::MAX).max(1);
        // Of few descriptors the others take a half.
        let free = limit.saturating_sub(OTHERS).max(limit / 2);
        Self { connections: each(free / EACH), datagrams: each(limit / 8).min(DATAGRAMS_MAX) }
    }

    /// Client connections beside so many sockets towards endpoints of UDP ports.
    pub(in crate::l7) fn connections(self, datagrams: usize) -> usize {
        self.connections.saturating_sub(datagrams.div_ceil(EACH as usize)).max(1)
    }
}

/// Connections of one worker to endpoints, in use or kept.
#[derive(Debug, Default)]
pub(in crate::l7) struct OpenLinks(Rc<Cell<usize>>);

/// One of them, until it is dropped.
pub(in crate::l7) struct OpenLink(Rc<Cell<usize>>);

impl OpenLinks {
    /// One more.
    pub(in crate::l7) fn open(&self) -> OpenLink {
        let Self(open) = self;
        open.set(open.get() + 1);
        OpenLink(Rc::clone(open))
    }

    /// No descriptor is left for one more, with so many `clients` of a `share` of them: each has its endpoint counted beside it.
    pub(in crate::l7) fn are_full(&self, share: usize, clients: usize) -> bool {
        clients.saturating_add(self.0.get()) >= share.saturating_mul(2)
    }

    /// One more leaves enough to others, for a client that has `own` with it, where so many are `idle`. Who has many at
    /// once has no more than a part of what the others leave: however many come, each finds something.
    pub(in crate::l7) fn are_for(&self, own: usize, share: usize, idle: usize) -> bool {
        let others = self.0.get().saturating_sub(own.saturating_add(idle));
        own <= 1 || own.saturating_mul(PART) <= share.saturating_sub(others)
    }
}

impl Drop for OpenLink {
    fn drop(&mut self) {
        let Self(open) = self;
        open.set(open.get().saturating_sub(1));
    }
}

/// What is said where there may be no more.
pub(in crate::l7) fn exhausted() -> io::Error {
    io::Error::from_raw_os_error(libc::EMFILE)
}

/// The process, or the host, has no more.
pub(super) fn are_exhausted(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

/// We lack something of our own, a descriptor, memory or a local port: it says nothing of who was to be connected to.
pub(in crate::l7) fn is_our_lack(error: &io::Error) -> bool {
    let code = error.raw_os_error();
    are_exhausted(error) || matches!(code, Some(libc::ENOBUFS | libc::ENOMEM | libc::EADDRNOTAVAIL))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_the_descriptors_are_left_for_endpoints() {
        let share = |limit, workers| {
            let share = Share::of_limit(limit, workers);
            (share.connections(0), share.datagrams, share.connections(share.datagrams))
        };

        assert_eq!(share(1024, 1), (384, 128, 320));
        assert_eq!(share(1024, 4), (96, 32, 80));
        assert_eq!(share(20_000, 2), (4936, 1250, 4311));
        assert_eq!(share(1 << 20, 2), (262_080, 2048, 261_056));
        assert_eq!(share(100, 1), (25, 12, 19));
        assert_eq!(share(3, 8), (1, 1, 1));
        assert!(share(u64::MAX, 1).2 > 1 << 40);
    }

    #[test]
    fn who_asks_many_endpoints_at_once_leaves_some_to_others() {
        let (links, share) = (OpenLinks::default(), 320);
        let mut open = Vec::new();
        for greedy in 0..8 {
            let mut own = 0;
            while links.are_for(own + 1, share, 0) {
                open.push(links.open());
                own += 1;
            }
            assert!(own >= 10, "{greedy}: {own}");
        }

        assert!(open.len() < share, "{}", open.len());
        let mut clients = 8;
        while !links.are_full(share, clients) {
            assert!(links.are_for(1, share, 0));
            open.push(links.open());
            clients += 1;
        }
        assert_eq!(open.len() + clients, 2 * share);
        assert!(clients > share / 2, "{clients}");
        assert!(links.are_for(20, share, 300), "those that idle are in nobody's way");
        open.pop();
        assert!(!links.are_full(share, clients));
    }

    #[test]
    fn what_we_lack_is_no_fault_of_the_other_side() {
        let is_ours = |code| is_our_lack(&io::Error::from_raw_os_error(code));

        assert!([libc::EMFILE, libc::EADDRNOTAVAIL, libc::ENOBUFS].into_iter().all(is_ours));
        assert!(![libc::ECONNREFUSED, libc::EHOSTUNREACH, libc::ETIMEDOUT].into_iter().any(is_ours));
    }
}

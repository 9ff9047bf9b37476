//! What is remembered of a request's attempts when it has ended, for metrics and the log
//! (`$upstream_addr` and its kin).

use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// One attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::l7) struct Attempt {
    pub(in crate::l7) addr: SocketAddr,
    /// What it answered, or what is answered for it; 0: the client left before.
    pub(in crate::l7) status: u16,
    /// Until it was connected, TLS included; zero by a kept connection.
    pub(in crate::l7) connect: Option<Duration>,
    /// Until the head of the response was read.
    pub(in crate::l7) header: Option<Duration>,
    /// Until it ended.
    pub(in crate::l7) response: Duration,
    /// Bytes of the body that came from it.
    pub(in crate::l7) bytes: u64,
    /// All bytes either way.
    pub(in crate::l7) traffic: Traffic,
}

/// Bytes of heads and bodies between us and an endpoint, as HTTP/1.1 has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(in crate::l7) struct Traffic {
    pub(in crate::l7) sent: u64,
    pub(in crate::l7) received: u64,
}

/// All of them, in order. The first costs no allocation.
#[derive(Debug, Default)]
pub(in crate::l7) struct Record {
    first: Option<Attempt>,
    more: Vec<Attempt>,
    /// How many there were when the request went somewhere else.
    before: usize,
    /// When the last one ended, if nothing was left to do for the request then.
    pub(in crate::l7) ended: Option<Instant>,
}

impl Record {
    pub(in crate::l7) fn push(&mut self, attempt: Attempt) {
        match self.first {
            None => self.first = Some(attempt),
            Some(_) => self.more.push(attempt),
        }
    }

    /// The request went somewhere else then.
    pub(in crate::l7) fn extend(&mut self, other: Self) {
        self.before = self.all().count();
        for attempt in other.all() {
            self.push(*attempt);
        }
    }

    /// The only attempt; `None` if there were more, or none.
    pub(in crate::l7) fn only(&self) -> Option<&Attempt> {
        self.first.as_ref().filter(|_| self.more.is_empty())
    }

    /// Whether the request had been somewhere else before this attempt, by its place among all.
    pub(in crate::l7) fn begins_anew(&self, place: usize) -> bool {
        place > 0 && place == self.before
    }

    /// Each attempt.
    pub(in crate::l7) fn all(&self) -> impl Iterator<Item = &Attempt> {
        self.first.iter().chain(&self.more)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_order_and_knows_an_only_attempt() {
        let attempt = |status| Attempt {
            addr: SocketAddr::from(([10, 0, 0, 1], 80)),
            status,
            connect: None,
            header: None,
            response: Duration::ZERO,
            bytes: 0,
            traffic: Traffic::default(),
        };
        let mut record = Record::default();
        assert_eq!(record.only(), None);

        record.push(attempt(502));
        assert_eq!(record.only(), Some(&attempt(502)));
        record.push(attempt(200));

        assert_eq!(record.only(), None);
        assert_eq!(record.all().map(|attempt| attempt.status).collect::<Vec<_>>(), [502, 200]);

        let mut page = Record::default();
        page.push(attempt(404));
        record.extend(page);

        assert_eq!([0, 1, 2].map(|place| record.begins_anew(place)), [false, false, true]);
    }
}

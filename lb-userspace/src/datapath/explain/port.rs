//! Which source port a flow that is not translated yet would get towards its backend, by the program's own search
//! through the translated flows as they are. Nothing is claimed.

use std::cell::Cell;

use lb_common::nat::{Forward, Reverse};
use lb_common::ports::{self, Claims, Search, Tried};
use lb_common::{BackendId, Flow, HashKey, Verdict, backend, config};

use crate::datapath::memory::Tables;

/// What is remembered of translated flows.
pub trait Translations {
    /// Client to backend, by the hash of the client's packets.
    fn forward(&self, hash: u64) -> Option<Forward>;
    /// Backend to client, by the hash of the backend's.
    fn reverse(&self, key: u64) -> Option<Reverse>;
    /// Whether there is no entry for one more. Counts them.
    fn are_full(&self) -> bool;
    /// Hashes of the flows that would be looked at next for room.
    fn oldest(&self) -> Vec<u64>;
}

/// None, where there is no agent.
impl Translations for () {
    fn forward(&self, _: u64) -> Option<Forward> {
        None
    }

    fn reverse(&self, _: u64) -> Option<Reverse> {
        None
    }

    fn are_full(&self) -> bool {
        false
    }

    fn oldest(&self) -> Vec<u64> {
        Vec::new()
    }
}

/// The port towards backend `id`; or why the flow gets none. Host byte order.
pub fn port(
    tables: &Tables,
    flows: &impl Translations,
    id: BackendId,
    flow: &Flow,
    now: u32,
) -> Result<u16, Verdict> {
    let key = config::hash_key(&tables.config);
    let identity = backend::identity(&&tables.backends, id);
    let local = identity.mode() == backend::Mode::Local as u8;
    let to_us = if local { flow.src } else { backend::source(&&tables.backends, id) };
    let answer = Flow {
        src: backend::addr(&&tables.backends, id),
        dst: to_us,
        ports: Flow::ports(identity.wire_port(), 0),
        proto: flow.proto,
    };
    let (first, count) = config::nat_range(&tables.config);
    let own = if local { flow.src_port() } else { 0 };
    let search = Search { hash: flow.hash(key), first, count: count.max(1), own };
    ports::claim(&Looking { flows, answer, key, now, has_room: Cell::new(false) }, &search).map(u16::from_be)
}

/// Looks who has which port.
struct Looking<'a, T> {
    flows: &'a T,
    /// What the backend would send, but for the port.
    answer: Flow,
    key: HashKey,
    now: u32,
    /// Another flow gave way.
    has_room: Cell<bool>,
}

impl<T: Translations> Looking<'_, T> {
    fn key_of(&self, port: u16) -> u64 {
        Flow { ports: Flow::ports(self.answer.src_port(), port), ..self.answer }.hash(self.key)
    }

    fn holder_gives_way(&self, key: u64, reverse: &Reverse) -> u32 {
        let forward = self.flows.forward(reverse.forward_key).filter(|forward| forward.reverse_key == key);
        reverse.gives_way(forward.as_ref(), self.now)
    }
}

impl<T: Translations> Claims for Looking<'_, T> {
    fn try_claim(&self, port: u16) -> Tried {
        let key = self.key_of(port);
        let Some(reverse) = self.flows.reverse(key) else {
            return if !self.has_room.get() && self.flows.are_full() { Tried::Full } else { Tried::Claimed };
        };
        Tried::Held(self.holder_gives_way(key, &reverse))
    }

    fn take(&self, _: u16) -> Tried {
        Tried::Claimed
    }

    fn willing(&self, port: u16) -> u32 {
        let key = self.key_of(port);
        self.flows.reverse(key).map_or(0, |reverse| self.holder_gives_way(key, &reverse))
    }

    fn make_room(&self) -> bool {
        let gives_room = |hash| {
            let forward = self.flows.forward(hash)?;
            let reverse =
                self.flows.reverse(forward.reverse_key).filter(|reverse| reverse.forward_key == hash);
            Some(reverse.is_none_or(|reverse| reverse.gives_room(&forward, self.now)))
        };
        self.has_room.set(self.flows.oldest().into_iter().any(|hash| gives_room(hash) == Some(true)));
        self.has_room.get()
    }
}

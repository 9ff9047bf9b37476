//! Which source port a flow that is not translated yet would get towards its backend, by the program's own search
//! through the translated flows as they are. Nothing is claimed.

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
    ports::claim(&Looking { flows, answer, key, now }, &search).map(u16::from_be)
}

/// Looks who has which port.
struct Looking<'a, T> {
    flows: &'a T,
    /// What the backend would send, but for the port.
    answer: Flow,
    key: HashKey,
    now: u32,
}

impl<T: Translations> Claims for Looking<'_, T> {
    fn try_claim(&self, port: u16) -> Tried {
        let answer = Flow { ports: Flow::ports(self.answer.src_port(), port), ..self.answer };
        let key = answer.hash(self.key);
        let Some(reverse) = self.flows.reverse(key) else {
            return if self.flows.are_full() { Tried::Full } else { Tried::Claimed };
        };
        let forward = self.flows.forward(reverse.forward_key).filter(|forward| forward.reverse_key == key);
        Tried::Held(reverse.gives_way(forward.as_ref(), self.now))
    }

    fn take(&self, _: u16) -> Tried {
        Tried::Claimed
    }
}

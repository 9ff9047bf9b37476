//! A request on its way upstream: what is sent, and all that is known of it by then.

use std::rc::Rc;
use std::sync::Arc;

use super::super::buffer::Scratch;
use super::super::compress::Accepts;
use super::super::h1::{Body, Version};
use super::super::hold::Held;
use super::super::upstream::Terms;
use super::super::{fcgi, mirror, pages};
use crate::model::l7::Policies;

/// A request ready to go upstream.
pub(in crate::l7) struct Outgoing {
    pub(in crate::l7) head: Scratch,
    pub(in crate::l7) body: Body,
    /// Bytes of the body that go with the head by now, see [`Self::resend`].
    pub(in crate::l7) resent: u64,
    /// Whether the body is read before an endpoint is chosen.
    pub(in crate::l7) hold: Hold,
    pub(in crate::l7) version: Version,
    pub(in crate::l7) is_head: bool,
    pub(in crate::l7) upgrades: bool,
    /// The endpoint ends its connection with the response.
    pub(in crate::l7) closes: bool,
    pub(in crate::l7) expects_continue: bool,
    pub(in crate::l7) terms: Terms,
    /// How its response may be compressed.
    pub(in crate::l7) accepts: Accepts,
    /// What somebody else gets of it.
    pub(in crate::l7) copy: Option<Copying>,
    /// What a FastCGI application is told.
    pub(in crate::l7) params: fcgi::Params,
    /// Attributes of the cookie for a session that begins; `None`: none begins here.
    pub(in crate::l7) cookie: Option<Box<Scratch>>,
    /// What says which of the upstream's errors somebody else words; `None`: none.
    pub(in crate::l7) replaced: Option<Arc<Policies>>,
}

impl Outgoing {
    /// An endpoint took these first bytes of the body and did nothing about the request: from now on they go with
    /// the head.
    pub(super) fn resend(&mut self, unread: &[u8]) {
        self.head.extend_from_slice(unread);
        self.resent += unread.len() as u64;
        // They passed by the same framing before.
        let _ = self.body.take(unread);
    }

    /// The client gets no answer of the upstream with this status.
    pub(super) fn is_replaced(&self, status: u16) -> bool {
        status >= 400 && self.replaced.as_ref().is_some_and(|policies| pages::replaces(policies, status))
    }
}

/// Whether a body is read whole before an endpoint is chosen.
pub(in crate::l7) enum Hold {
    /// It goes on as it comes.
    No,
    /// It is, so many bytes of it into memory.
    UpTo(usize),
    /// It was. Boxed: few requests have one.
    Here(Box<Held>),
}

/// A copy to be made of a request.
pub(in crate::l7) struct Copying {
    pub(in crate::l7) copy: Rc<mirror::Copy>,
    /// How much of the end of the request's head is its body.
    pub(in crate::l7) here: usize,
}

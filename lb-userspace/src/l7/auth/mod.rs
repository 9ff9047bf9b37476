//! What a client has to show before its request goes on (reference 4.1, item 8): the step between the
//! decision, which is pure, and the exchange. It may have to wait: for a password to be hashed.
//!
//! Its outcome is final: nothing that replaces the answers of upstreams gets to see it.

mod hashing;
mod memory;
mod password;

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::credentials::Credentials;
use super::filters::{Answer, Asked};
use super::metrics::Denied;
use super::policy::{self, Dress, Entry};
use super::worker::Worker;
use crate::model::l7::Policies;
use crate::model::l7::policy::{Auth, Basic, Satisfy};

use memory::{Marks, Memory};

pub(super) use hashing::{Hashing, start};

/// Passwords that a worker knows to be right, and for how long: a changed one counts at once, as the mark
/// of a password is of what it was compared with, too.
const RIGHT_PASSWORDS: usize = 1024;
const RIGHT_FOR: Duration = Duration::from_secs(60);

/// What one worker needs and remembers to let clients in.
pub(super) struct Doorman {
    hashing: Hashing,
    marks: Marks,
    right: Memory<()>,
}

impl Doorman {
    pub(super) fn new(hashing: Hashing) -> Self {
        Self { hashing, marks: Marks::new(), right: Memory::new(RIGHT_PASSWORDS) }
    }
}

/// The checks that a request has before it, free of the bytes that it was read from.
pub(super) struct Checks {
    policies: Arc<Policies>,
    credentials: Option<Credentials>,
}

/// Why a check was not passed.
struct Failed {
    answer: Answer,
    denied: Denied,
}

impl Checks {
    /// Those of a location for a request; `None`: there are none, or its address is enough.
    pub(super) fn of(policies: Option<&Arc<Policies>>, asked: &Asked<'_>) -> Option<Box<Self>> {
        let policies = policies?;
        let auth = policies.auth.as_ref()?;
        if auth.satisfy == Satisfy::Any && policy::entry(policies, asked.client) == Entry::Listed {
            return None;
        }
        let authorization = auth.basic.as_ref().and_then(|_| asked.headers.first("authorization"));
        let credentials = authorization.and_then(Credentials::read);
        Some(Box::new(Self { policies: Arc::clone(policies), credentials }))
    }

    /// Makes them; the answer to a client that does not pass. What it is told beside that is put on `dress`.
    pub(super) async fn make(&self, worker: &Worker, dress: &mut Dress) -> Option<Answer> {
        let auth = self.policies.auth.as_ref()?;
        let failed = self.all(auth, worker, dress).await.err()?;
        worker.counters.borrow_mut().denied(failed.denied);
        Some(failed.answer)
    }

    async fn all(&self, auth: &Auth, worker: &Worker, dress: &mut Dress) -> Result<(), Failed> {
        let Auth { satisfy: _, basic } = auth;
        if let Some(basic) = basic {
            self.password(basic, worker, dress).await?;
        }
        Ok(())
    }

    async fn password(&self, basic: &Basic, worker: &Worker, dress: &mut Dress) -> Result<(), Failed> {
        match self.has_password(basic, worker).await {
            Ok(true) => Ok(()),
            Ok(false) => {
                let challenge = ["WWW-Authenticate: Basic realm=\"", &basic.realm, "\"\r\n"];
                challenge.iter().for_each(|part| dress.replacing().extend_from_slice(part.as_bytes()));
                Err(Failed { answer: Answer::Status(401), denied: Denied::Password })
            }
            Err(hashing::Busy) => Err(Failed { answer: Answer::Status(503), denied: Denied::Busy }),
        }
    }

    async fn has_password(&self, basic: &Basic, worker: &Worker) -> Result<bool, hashing::Busy> {
        let Some(Credentials { user, password: given }) = &self.credentials else { return Ok(false) };
        let Some(kept) = basic.users.0.get(user) else { return Ok(false) };
        if !password::is_costly(kept) {
            return Ok(password::is(kept, given));
        }
        let Doorman { hashing, marks, right } = &worker.doorman;
        let mark = marks.of(&[user, given, kept.text().as_bytes()]);
        if right.get(&mark, Instant::now()).is_some() {
            return Ok(true);
        }
        let is_right = hashing.check(kept, given).await?;
        if is_right {
            right.put(mark, (), Instant::now() + RIGHT_FOR);
        }
        Ok(is_right)
    }
}

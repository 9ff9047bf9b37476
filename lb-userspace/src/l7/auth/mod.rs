//! What a client has to show before its request goes on: the step between the
//! decision, which is pure, and the exchange. It may have to wait: for a password to be hashed, for another
//! service to answer.
//!
//! Its outcome is final: what words errors comes behind it, and changes no refusal into anything else.

mod ask;
mod cache;
mod des;
mod freshness;
mod hashing;
mod password;
mod question;

use std::hint::cold_path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::credentials::Credentials;
use super::filters::{Answer, Asked};
use super::log::{End, Tally};
use super::metrics::Denied;
use super::policy::{self, Entry, HeaderEdits};
use super::snapshot::Snapshot;
use super::upstream::Record;
use super::worker::Worker;
use crate::model::l7::Policies;
use crate::model::l7::policy::{Basic, External, RememberRule, Satisfy};

use ask::{AuthClient, AuthResponse, Unanswered};
use cache::Shared;
use question::Question;

pub(super) use hashing::{Hashing, start};
pub(super) use question::{Scope, Subject};

/// Answers of other services that are remembered, the largest of them, and for how long at most.
const ANSWERS: usize = 8192;
const ANSWER_BYTES: usize = 8 * 1024;
const ANSWER_FOR: Duration = Duration::from_secs(24 * 3600);

/// What other services answered, for all workers: who is known to one has to be known to all, as the service may be
/// gone when the next one asks.
#[derive(Clone)]
pub(super) struct Answers(Arc<Shared<Arc<AuthResponse>>>);

impl Default for Answers {
    fn default() -> Self {
        Self(Arc::new(Shared::new(ANSWERS)))
    }
}

/// What one worker needs to let clients in.
pub(super) struct Authenticator {
    hashing: Hashing,
    client: AuthClient,
    answers: Answers,
}

impl Authenticator {
    pub(super) fn new(hashing: Hashing, answers: Answers) -> Self {
        Self { hashing, client: AuthClient::new(), answers }
    }

    /// Closes what nobody has used for long.
    pub(super) fn sweep(&self) {
        self.client.sweep();
    }
}

/// The checks that a request has before it, free of the bytes that it was read from.
pub(super) struct Checks {
    policies: Arc<Policies>,
    snapshot: Rc<Snapshot>,
    /// What its address came to.
    entry: Entry,
    credentials: Option<Credentials>,
    question: Option<Question>,
    /// Where the head for the upstream takes more lines.
    head_end: usize,
}

/// What the checks came to.
pub(super) enum Outcome {
    /// The request goes on, and the upstream is told these lines.
    Passed(Vec<u8>),
    Refused(Answer),
}

/// Why a check was not passed.
struct Failed {
    answer: Answer,
    denied: Denied,
    /// `WWW-Authenticate` lines.
    challenges: Vec<u8>,
}

impl Failed {
    fn with(status: u16, denied: Denied) -> Self {
        Self { answer: Answer::Status(status), denied, challenges: Vec::new() }
    }

    /// No other check makes up for it.
    fn is_final(&self) -> bool {
        matches!(self.answer, Answer::Status(500 | 503))
    }

    /// Of several, the client hears what it can do most about.
    fn rank(&self) -> u8 {
        match self.answer {
            Answer::Redirect { .. } => 2,
            Answer::Status(401) => 1,
            _ => 0,
        }
    }
}

impl Checks {
    /// Those of a location for a request; `None`: there are none, or its address is enough.
    pub(super) fn of(
        policies: Option<&Arc<Policies>>,
        asked: &Asked<'_>,
        subject: Subject<'_, '_, '_>,
        snapshot: &Rc<Snapshot>,
        authenticator: &Authenticator,
    ) -> Option<Box<Self>> {
        let policies = policies?;
        let auth = policies.auth.as_ref()?;
        cold_path();
        let entry = policy::entry(policies, asked.client);
        if auth.satisfy == Satisfy::Any && entry == Entry::Listed {
            return None;
        }
        let authorization = auth.basic.as_ref().and_then(|_| asked.headers.first("authorization"));
        let keys = authenticator.answers.0.keys();
        let question = auth.external.as_ref().map(|external| Question::new(external, subject, keys));
        Some(Box::new(Self {
            policies: Arc::clone(policies),
            snapshot: Rc::clone(snapshot),
            entry,
            credentials: authorization.and_then(Credentials::read),
            question,
            head_end: 0,
        }))
    }

    /// The head for the upstream is written, and so long.
    pub(super) fn head_is(&mut self, length: usize) {
        self.head_end = length.saturating_sub(b"\r\n".len());
    }

    /// Tells the upstream what the checks came to, in the place of what else the head says under these names.
    pub(super) fn tell(&self, lines: &[u8], head: &mut Vec<u8>) {
        tell(lines, self.head_end, head);
    }

    /// Makes them. What a client is told beside the answer is put into `edits`. `line` of the log is begun, if
    /// the request is logged.
    pub(super) async fn make(
        &self,
        worker: &Worker,
        line: Option<&[u8]>,
        edits: &mut HeaderEdits,
    ) -> Outcome {
        match self.all(worker, line, edits).await {
            Ok(onward) => Outcome::Passed(onward),
            Err(Failed { answer, denied, challenges }) => {
                // nginx's `error_page 401` takes that of a password as well.
                let sign_in = self.question.as_ref().and_then(|question| question.sign_in.as_ref());
                let answer = match (answer, sign_in) {
                    (Answer::Status(401), Some(location)) => {
                        Answer::Redirect { status: 302, location: location.clone() }
                    }
                    (answer, _) => answer,
                };
                worker.counters.borrow_mut().denied(denied);
                if !challenges.is_empty() {
                    edits.challenge(&challenges);
                }
                Outcome::Refused(answer)
            }
        }
    }

    async fn all(
        &self,
        worker: &Worker,
        line: Option<&[u8]>,
        edits: &mut HeaderEdits,
    ) -> Result<Vec<u8>, Failed> {
        let Some(auth) = self.policies.auth.as_ref() else { return Ok(Vec::new()) };
        let one_is_enough = auth.satisfy == Satisfy::Any;
        // Where all have to be passed, an address that may not enter does not get here.
        let mut failed = (self.entry == Entry::Denied).then(|| Failed::with(403, Denied::Address));
        if let Some(basic) = &auth.basic {
            match self.password(basic, worker).await {
                Ok(()) if one_is_enough => return Ok(Vec::new()),
                Ok(()) => {}
                Err(this) => failed = Some(one_of(failed, this, one_is_enough)?),
            }
        }
        if let (Some(external), Some(question)) = (&auth.external, &self.question) {
            match self.external(external, question, worker, line, edits).await {
                Ok(onward) => return Ok(onward),
                Err(this) => failed = Some(one_of(failed, this, one_is_enough)?),
            }
        }
        match failed {
            Some(failed) => Err(failed),
            None => Ok(Vec::new()),
        }
    }

    async fn password(&self, basic: &Basic, worker: &Worker) -> Result<(), Failed> {
        match self.has_password(basic, worker).await {
            Ok(true) => Ok(()),
            Ok(false) => {
                let challenge = ["WWW-Authenticate: Basic realm=\"", &basic.realm, "\"\r\n"].concat();
                Err(Failed { challenges: challenge.into_bytes(), ..Failed::with(401, Denied::Password) })
            }
            Err(hashing::Busy) => Err(Failed::with(503, Denied::Busy)),
        }
    }

    async fn has_password(&self, basic: &Basic, worker: &Worker) -> Result<bool, hashing::Busy> {
        let Some(Credentials { user, password: given }) = &self.credentials else { return Ok(false) };
        let Some(kept) = basic.users.0.get(user) else { return Ok(false) };
        if !password::is_costly(kept, given) {
            return Ok(password::is(kept, given));
        }
        worker.authenticator.hashing.check(user, kept, given).await
    }

    /// Another service (`auth-url`), which is asked, or was.
    async fn external(
        &self,
        external: &External,
        question: &Question,
        worker: &Worker,
        line: Option<&[u8]>,
        edits: &mut HeaderEdits,
    ) -> Result<Vec<u8>, Failed> {
        let told = match self.ask(external, question, worker, line).await {
            Ok(told) => told,
            Err(error) => {
                tracing::debug!(url = external.url, %error, "no answer from an auth service");
                return Err(Failed::with(500, Denied::Unanswered));
            }
        };
        if !told.cookies.is_empty() {
            edits.add_cookies(&told.cookies, external.always_set_cookie);
        }
        match (told.status, &question.sign_in) {
            (200..=299, _) => Ok(told.onward.clone()),
            (401, Some(location)) => {
                let answer = Answer::Redirect { status: 302, location: location.clone() };
                Err(Failed { answer, ..Failed::with(401, Denied::Service) })
            }
            (401, None) => {
                Err(Failed { challenges: told.challenges.clone(), ..Failed::with(401, Denied::Service) })
            }
            (403, _) => Err(Failed::with(403, Denied::Service)),
            _ => Err(Failed::with(500, Denied::Unanswered)),
        }
    }

    /// What the service says now, or said a while ago.
    async fn ask(
        &self,
        external: &External,
        question: &Question,
        worker: &Worker,
        line: Option<&[u8]>,
    ) -> Result<Arc<AuthResponse>, Unanswered> {
        let Authenticator { client, answers: Answers(answers), .. } = &worker.authenticator;
        let remembered = question.key.as_ref().and_then(|key| answers.get(key, Instant::now()));
        if let Some(told) = remembered {
            return Ok(told);
        }
        let host = question.host.as_deref().ok_or(Unanswered::Host)?;
        let (spread, began) = (worker.random.word(), Instant::now());
        let mut record = Record::default();
        let told = client.ask(&self.snapshot, external, host, &question.head, spread, &mut record).await;
        if let Some(line) = line {
            let status = told.as_ref().map_or(502, |told| told.status);
            self.log(worker, line, status, question.head.len(), (began, &record));
        }
        let told = Arc::new(told?);
        if let (Some(key), Some(time)) = (question.key, holds_for(external, &told)) {
            answers.put(key, Arc::clone(&told), Instant::now() + time);
        }
        Ok(told)
    }

    /// Ends a line for the question itself, where those are logged: the request's own, with what was answered to us.
    fn log(
        &self,
        worker: &Worker,
        line: &[u8],
        status: u16,
        head: usize,
        (began, record): (Instant, &Record),
    ) {
        let Some(log) = self.snapshot.router.log.as_deref().filter(|log| log.questions) else { return };
        let external = self.policies.auth.as_ref().and_then(|auth| auth.external.as_ref());
        let upstream = external.and_then(|external| external.upstream.as_ref()).map_or("", |name| &name.0);
        let (took, tally) = (began.elapsed(), Tally::default());
        let end = End { status, took, upstream, head, is_whole: true, tally, record, kept: None };
        worker.journal.finish(log, line, &end);
    }
}

fn tell(lines: &[u8], end: usize, head: &mut Vec<u8>) {
    if lines.is_empty() || end > head.len() {
        return;
    }
    let rest = head.split_off(end);
    policy::give_way(head, lines);
    head.extend_from_slice(lines);
    head.extend_from_slice(&rest);
}

/// The failure that counts where one passed check would have been enough; else the first ends it.
fn one_of(before: Option<Failed>, this: Failed, one_is_enough: bool) -> Result<Failed, Failed> {
    if !one_is_enough || this.is_final() {
        return Err(this);
    }
    Ok(match before {
        // A client that can do what one of them asks for has to hear of it.
        Some(before) if before.rank() == this.rank() => {
            Failed { challenges: [before.challenges, this.challenges].concat(), ..before }
        }
        Some(before) if before.rank() > this.rank() => before,
        _ => this,
    })
}

/// How long an answer may stand for others; a cookie is for one client, and what the service says of its
/// answer counts more than what is configured.
fn holds_for(external: &External, told: &AuthResponse) -> Option<Duration> {
    let remember = external.remember.as_ref()?;
    let size = told.onward.len() + told.challenges.len();
    if !told.cookies.is_empty() || size > ANSWER_BYTES {
        return None;
    }
    let knows = |rule: &&RememberRule| rule.statuses.is_empty() || rule.statuses.contains(&told.status);
    let time = told.fresh.or_else(|| remember.rules.iter().find(knows).map(|rule| rule.time))?;
    (!time.is_zero()).then(|| time.min(ANSWER_FOR))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_upstream_hears_no_header_twice() {
        let lines = "GET / HTTP/1.1\r\nHost: a\r\nX-User: nobody\r\nX-Userx: stays\r\n";
        let mut head = format!("{lines}\r\nx-user: a body\r\n").into_bytes();

        tell(b"x-user: alice\r\nX-Groups: a\r\n", lines.len(), &mut head);

        let expected = "GET / HTTP/1.1\r\nHost: a\r\nX-Userx: stays\r\nx-user: alice\r\nX-Groups: a\r\n\r\nx-user: a body\r\n";
        assert_eq!(String::from_utf8(head).expect("ascii"), expected);
    }
}

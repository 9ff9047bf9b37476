//! Threads that check passwords which take long to check, so that no worker does; and which ones were right, for all
//! workers: who is known to one waits in no queue of another, however many guess meanwhile.

use std::io;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::cache::Known;
use super::password;
use crate::model::l7::policy::Password;

/// Checks that may wait; beyond that who asks is told to come again.
const WAITING: usize = 64;
/// Threads at most: a flood of wrong passwords leaves the other cores to requests.
const THREADS: usize = 2;

/// Passwords that are known to be right, and for how long after they were last shown: a changed one counts at once,
/// as the key of a password is of what it was compared with, too.
const RIGHT: usize = 8192;
const RIGHT_FOR: Duration = Duration::from_secs(60);

/// Where checks are handed in.
#[derive(Clone)]
pub(in crate::l7) struct Hashing {
    checks: SyncSender<Check>,
    right: Arc<Known>,
}

struct Check {
    kept: Password,
    given: Vec<u8>,
    answer: oneshot::Sender<bool>,
}

/// Too many checks wait already, or nobody makes them any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Busy;

/// Starts the threads; they end when nobody can hand anything in.
pub(in crate::l7) fn start(workers: usize) -> io::Result<(Hashing, Vec<JoinHandle<()>>)> {
    let (hashing, checks) = sync_channel(WAITING);
    let checks = Arc::new(Mutex::new(checks));
    let threads = (0..workers.clamp(1, THREADS)).map(|number| {
        let checks = Arc::clone(&checks);
        std::thread::Builder::new().name(format!("penstock-hash-{number}")).spawn(move || run(&checks))
    });
    Ok((Hashing::new(hashing), threads.collect::<io::Result<_>>()?))
}

fn run(checks: &Mutex<Receiver<Check>>) {
    loop {
        let next = checks.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Check { kept, given, answer }) = next else { return };
        // Who asked may have gone meanwhile.
        if !answer.is_closed() {
            let _ = answer.send(password::is(&kept, &given));
        }
    }
}

impl Hashing {
    fn new(checks: SyncSender<Check>) -> Self {
        Self { checks, right: Arc::new(Known::new(RIGHT, RIGHT_FOR)) }
    }

    /// The password given is the one kept of this user.
    pub(super) async fn check(&self, user: &[u8], kept: &Password, given: &[u8]) -> Result<bool, Busy> {
        let key = self.right.key(&[user, given, kept.text().as_bytes()]);
        if self.right.has(&key, Instant::now()) {
            return Ok(true);
        }
        let (answer, answered) = oneshot::channel();
        let check = Check { kept: kept.clone(), given: given.to_vec(), answer };
        self.checks.try_send(check).map_err(|_| Busy)?;
        let is_right = answered.await.map_err(|_| Busy)?;
        if is_right {
            self.right.learn(key, Instant::now());
        }
        Ok(is_right)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn a_check_beyond_those_that_may_wait_is_refused() {
        let (hashing, threads) = start(1).expect("threads");
        assert_eq!(hashing.check(b"alice", &Password::Plain(b"a".to_vec()), b"a").await, Ok(true));
        let right = Arc::clone(&hashing.right);
        drop(hashing);
        for thread in threads {
            thread.join().expect("ends with its last client");
        }

        let (sender, _unread) = sync_channel(WAITING);
        let nobody = Hashing { right, ..Hashing::new(sender) };
        let waiting: Vec<_> = (0..WAITING)
            .map(|_| {
                let hashing = nobody.clone();
                let mut check =
                    Box::pin(async move { hashing.check(b"bob", &Password::Unusable, b"").await });
                let polled =
                    check.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop()));
                assert!(polled.is_pending());
                check
            })
            .collect();
        assert_eq!(nobody.check(b"bob", &Password::Unusable, b"").await, Err(Busy));
        let known = nobody.check(b"alice", &Password::Plain(b"a".to_vec()), b"a").await;
        assert_eq!(known, Ok(true), "who was let in before waits for nobody");
        drop(waiting);
    }
}

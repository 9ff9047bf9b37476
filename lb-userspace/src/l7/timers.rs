//! Deadlines of one worker: one slot per connection, swept in coarse ticks.
//!
//! A deadline costs two cell writes, a glance at the kernel's coarse clock and no timer of the runtime,
//! because nearly all of them are moved before they fall due. Precision is [`TICK_MS`] and a tick of that
//! clock; no deadline falls due early.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, Timespec, clock_gettime};
use tokio::sync::Notify;

/// How often slots are swept at most, in milliseconds.
const TICK_MS: u64 = 50;

/// How far the coarse clock may lag behind: a tick of a kernel with the slowest one.
const COARSE_MS: u64 = 10;

/// A moment in milliseconds since the worker started.
pub(super) type Due = u64;

/// All deadlines of a worker.
pub(super) struct Timers {
    base: Instant,
    /// The same moment by the coarse clock.
    coarse: u64,
    /// Last sweep; deadlines are compared to it, so no clock is read while polling.
    now: Cell<Due>,
    /// When the next sweep is planned.
    next: Cell<Due>,
    slots: RefCell<Vec<Slot>>,
    free: RefCell<Vec<usize>>,
    earlier: Notify,
}

#[derive(Default)]
struct Slot {
    waker: Option<Waker>,
    due: Due,
}

impl Timers {
    /// No deadlines; time starts now.
    pub(super) fn new() -> Self {
        Self {
            base: Instant::now(),
            coarse: coarse_ms(),
            now: Cell::new(0),
            next: Cell::new(Due::MAX),
            slots: RefCell::default(),
            free: RefCell::default(),
            earlier: Notify::new(),
        }
    }

    /// The slot of one connection; freed on drop.
    pub(super) fn alarm(self: &Rc<Self>) -> Alarm {
        let slot = Slot { waker: None, due: Due::MAX };
        let mut slots = self.slots.borrow_mut();
        let key = match self.free.borrow_mut().pop() {
            Some(key) => key,
            None => slots.len(),
        };
        match slots.get_mut(key) {
            Some(freed) => *freed = slot,
            None => slots.push(slot),
        }
        Alarm { timers: Rc::clone(self), key }
    }

    /// Wakes every connection, so that it looks at what changed (draining).
    pub(super) fn wake_all(&self) {
        for slot in self.slots.borrow().iter() {
            if let Some(waker) = &slot.waker {
                waker.wake_by_ref();
            }
        }
    }

    /// Every deadline has passed from now on, also those to come.
    pub(super) fn end(&self) {
        self.now.set(Due::MAX);
        self.wake_all();
    }

    /// See [`Self::end`].
    pub(super) fn are_over(&self) -> bool {
        self.now.get() == Due::MAX
    }

    /// Wakes what falls due, for as long as the worker lives.
    pub(super) async fn run(&self) {
        loop {
            self.next.set(self.sweep());
            let next = self.next.get();
            if next == Due::MAX {
                self.earlier.notified().await;
                continue;
            }
            // Later than the coarse clock says it is.
            let at = self.base + Duration::from_millis(next.saturating_add(COARSE_MS));
            tokio::select! {
                () = tokio::time::sleep_until(at.into()) => {}
                () = self.earlier.notified() => {}
            }
        }
    }

    /// Wakes due slots and returns when to look again.
    fn sweep(&self) -> Due {
        let now = if self.are_over() { Due::MAX } else { self.elapsed_ms() };
        self.now.set(now);
        let mut next = Due::MAX;
        for slot in self.slots.borrow_mut().iter_mut() {
            if slot.due > now {
                next = next.min(slot.due);
                continue;
            }
            slot.due = Due::MAX;
            if let Some(waker) = &slot.waker {
                waker.wake_by_ref();
            }
        }
        if next == Due::MAX { next } else { next.max(now.saturating_add(TICK_MS)) }
    }

    fn elapsed_ms(&self) -> Due {
        coarse_ms().saturating_sub(self.coarse)
    }
}

/// Read several times a request, hence without asking the hardware for the time.
fn coarse_ms() -> u64 {
    let Timespec { tv_sec, tv_nsec } = clock_gettime(ClockId::MonotonicCoarse);
    u64::try_from(tv_sec).unwrap_or_default() * 1000 + u64::try_from(tv_nsec).unwrap_or_default() / 1_000_000
}

/// One connection's place among the deadlines. All waits of the connection share it, so they
/// must be polled by the same task.
pub(super) struct Alarm {
    timers: Rc<Timers>,
    key: usize,
}

impl Alarm {
    /// The moment `after` from now.
    pub(super) fn due(&self, after: Duration) -> Due {
        let after = u64::try_from(after.as_millis()).unwrap_or(u64::from(u32::MAX));
        self.timers.elapsed_ms().saturating_add(after).saturating_add(COARSE_MS)
    }

    /// How long ago it was that `due` was `after` from now.
    pub(super) fn since(&self, due: Due, after: Duration) -> Duration {
        let left = due.saturating_sub(self.timers.elapsed_ms());
        after.saturating_add(Duration::from_millis(COARSE_MS)).saturating_sub(Duration::from_millis(left))
    }

    /// `due` has passed. Asks the clock: no tick may have come for as long as nothing was due.
    pub(super) fn is_past(&self, due: Due) -> bool {
        self.timers.elapsed_ms() >= due
    }

    /// Ready once `due` has passed; otherwise the task is woken then, or a little earlier (an
    /// older deadline of the same connection is not taken back, only outlived).
    pub(super) fn poll_due(&self, cx: &Context<'_>, due: Due) -> Poll<()> {
        if self.timers.now.get() >= due {
            return Poll::Ready(());
        }
        if let Some(slot) = self.timers.slots.borrow_mut().get_mut(self.key) {
            slot.due = slot.due.min(due);
            if !slot.waker.as_ref().is_some_and(|w| w.will_wake(cx.waker())) {
                slot.waker = Some(cx.waker().clone());
            }
        }
        if due < self.timers.next.get() {
            self.timers.next.set(due);
            self.timers.earlier.notify_one();
        }
        Poll::Pending
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        if let Some(slot) = self.timers.slots.borrow_mut().get_mut(self.key) {
            *slot = Slot { waker: None, due: Due::MAX };
            self.timers.free.borrow_mut().push(self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::{Future, poll_fn};

    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn a_deadline_falls_due_and_never_early() {
        let timers = Rc::new(Timers::new());
        let alarm = timers.alarm();
        let due = alarm.due(Duration::from_millis(80));

        let waited = poll_fn(|cx| alarm.poll_due(cx, due));
        tokio::select! {
            () = waited => {}
            () = timers.run() => unreachable!("the sweeper never ends"),
        }

        assert!(timers.elapsed_ms() >= due);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn at_the_end_nothing_is_waited_for() {
        let timers = Rc::new(Timers::new());
        let alarm = timers.alarm();
        let mut waited = std::pin::pin!(poll_fn(|cx| alarm.poll_due(cx, Due::MAX)));
        assert!(poll_fn(|cx| Poll::Ready(waited.as_mut().poll(cx).is_pending())).await);

        timers.end();
        waited.await;
        timers.sweep();

        poll_fn(|cx| alarm.poll_due(cx, Due::MAX)).await;
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_freed_slot_is_used_again() {
        let timers = Rc::new(Timers::new());

        drop(timers.alarm());
        let again = timers.alarm();

        assert_eq!((again.key, timers.slots.borrow().len()), (0, 1));
    }
}

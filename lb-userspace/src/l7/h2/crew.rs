//! Tasks of a worker that serve streams of clients, one after the other.
//!
//! What a request's way through the proxy has to remember is several KiB. A task for each stream would have
//! them allocated, moved into place and freed for each; one that stays has them where they were, warm in the
//! cache. There are as many tasks as streams were served at once of late.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

use super::super::connection;
use super::super::h1::head::Refusal;
use super::super::heads::Client;
use super::super::worker::Worker;
use super::frame_budget::FrameBudget;
use super::server::Live;
use super::stream::{Ended, Stream};

/// Tasks that may wait for a stream at once: about 8 MiB.
const WAITING_MAX: usize = 1024;

/// Those that wait for a stream, the one that waits longest first.
#[derive(Default)]
pub(in crate::l7) struct Crew {
    waiting: RefCell<Vec<Rc<Seat>>>,
    /// So many waited all the time since somebody looked.
    unused: Cell<usize>,
}

/// A stream to be served.
pub(super) struct Errand {
    pub(super) stream: Stream,
    pub(super) verdict: Result<(), Refusal>,
    pub(super) client: Rc<Client>,
    pub(super) live: Live,
    pub(super) budget: Rc<FrameBudget>,
}

impl Crew {
    /// Has a task serve the stream: the one that waits shortest, or a new one.
    pub(super) fn send(worker: &Rc<Worker>, errand: Errand) {
        let crew = &worker.crew;
        let free = crew.waiting.borrow_mut().pop();
        crew.unused.set(crew.unused.get().min(crew.waiting.borrow().len()));
        match free {
            Some(seat) => seat.tell(Next::Serve(errand)),
            None => {
                let worker = Rc::clone(worker);
                tokio::task::spawn_local(serve_streams(worker, errand));
            }
        }
    }

    /// Lets go of those that had nothing to do since it was asked last.
    pub(in crate::l7) fn sweep(&self) {
        let mut waiting = self.waiting.borrow_mut();
        let unused = self.unused.get().min(waiting.len());
        waiting.drain(..unused).for_each(|seat| seat.tell(Next::Leave));
        self.unused.set(waiting.len());
    }

    /// Takes one back; false where enough are there.
    fn wait(&self, seat: &Rc<Seat>) -> bool {
        let mut waiting = self.waiting.borrow_mut();
        let has_room = waiting.len() < WAITING_MAX;
        if has_room {
            waiting.push(Rc::clone(seat));
        }
        has_room
    }
}

/// Where a task is told what it does next.
#[derive(Default)]
struct Seat {
    next: RefCell<Option<Next>>,
    waits: Cell<bool>,
    task: RefCell<Option<Waker>>,
}

#[expect(
    clippy::large_enum_variant,
    reason = "nearly always the large one, and a box is what this is to avoid"
)]
enum Next {
    Serve(Errand),
    Leave,
}

impl Seat {
    fn tell(&self, next: Next) {
        self.next.replace(Some(next));
        if let Some(task) = &*self.task.borrow() {
            task.wake_by_ref();
        }
    }

    /// The next stream; `None` where the task is not needed any more.
    async fn next(self: &Rc<Self>, crew: &Crew) -> Option<Errand> {
        poll_fn(|cx| {
            match self.next.take() {
                Some(Next::Serve(errand)) => {
                    self.waits.set(false);
                    return Poll::Ready(Some(errand));
                }
                Some(Next::Leave) => return Poll::Ready(None),
                None => {}
            }
            // Something that the last stream waited for may wake it once more.
            if !self.waits.replace(true) {
                self.task.borrow_mut().get_or_insert_with(|| cx.waker().clone());
                if !crew.wait(self) {
                    return Poll::Ready(None);
                }
            }
            Poll::Pending
        })
        .await
    }
}

async fn serve_streams(worker: Rc<Worker>, first: Errand) {
    let seat = Rc::new(Seat::default());
    seat.tell(Next::Serve(first));
    while let Some(errand) = seat.next(&worker.crew).await {
        let Errand { stream, verdict, client, live, budget } = errand;
        match connection::serve_stream(&worker, &stream, verdict, client).await {
            Ended::Answered => budget.finished(),
            Ended::CutOff => {}
            Ended::GivenUp => budget.cancelled(),
        }
        // Before its connection hears of it.
        drop(stream);
        drop(live);
    }
}

//! Spans that wait: bounded, filled by all workers. A lock for each of them, which only traced requests pay.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::model::l7::Collector;
use crate::model::span::{Attribute, Span};

/// Spans between the proxy and a collector.
#[derive(Debug, Default)]
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    /// The first one came.
    stirred: Notify,
    /// There are enough for a batch.
    filled: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    spans: VecDeque<Span>,
    /// Most of them.
    most: usize,
    /// So many are a batch.
    enough: usize,
    is_closed: bool,
    /// Taken, and nothing was heard of them yet.
    under_way: usize,
    taken: u64,
    lost: [u64; Lost::ALL.len()],
}

/// Why a span was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lost {
    /// As many waited as may.
    QueueFull,
    /// A collector did not want it.
    Refused,
    /// A collector failed to take it several times.
    Failed,
    /// The process ended.
    Ended,
}

impl Lost {
    pub(super) const ALL: [Self; 4] = [Self::QueueFull, Self::Refused, Self::Failed, Self::Ended];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::QueueFull => "queue-full",
            Self::Refused => "refused",
            Self::Failed => "failed",
            Self::Ended => "ended",
        }
    }
}

/// What became of spans.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) taken: u64,
    /// In the order of [`Lost::ALL`].
    pub(super) lost: [u64; Lost::ALL.len()],
    pub(super) waiting: u64,
}

impl Queue {
    /// How many may wait, from now on. Those that do go to the next collector.
    pub(super) fn set(&self, collector: Option<&Collector>) {
        let mut waiting = self.lock();
        waiting.most = collector.map_or(0, |collector| collector.queue);
        waiting.enough = collector.map_or(0, |collector| collector.batch);
    }

    pub(super) fn push(&self, span: Span) {
        let mut waiting = self.lock();
        if waiting.is_closed {
            return waiting.lose(Lost::Ended, 1);
        }
        if waiting.spans.len() >= waiting.most {
            return waiting.lose(Lost::QueueFull, 1);
        }
        waiting.spans.push_back(span);
        let (now, enough) = (waiting.spans.len(), waiting.enough);
        drop(waiting);
        if now == 1 {
            self.stirred.notify_one();
        }
        if now == enough {
            self.filled.notify_one();
        }
    }

    /// Waits for the first span after there was none.
    pub(super) async fn stirred(&self) {
        self.stirred.notified().await;
    }

    /// Waits until there are enough for a batch.
    pub(super) async fn filled(&self) {
        self.filled.notified().await;
    }

    /// How many wait.
    pub(super) fn waiting(&self) -> usize {
        self.lock().spans.len()
    }

    /// Those that wait are for nobody any more.
    pub(super) fn clear(&self) {
        let mut waiting = self.lock();
        let left = waiting.spans.len();
        waiting.lose(Lost::Ended, left);
        waiting.spans.clear();
    }

    /// The first ones, so many and of so many bytes at most, but at least one; `None`: nothing waits.
    pub(super) fn take(&self, most: usize, bytes: usize) -> Option<Vec<Span>> {
        let mut waiting = self.lock();
        let mut sum = 0;
        let few = waiting.spans.iter().take(most).take_while(|span| {
            let is_first = sum == 0;
            sum += size(span);
            is_first || sum <= bytes
        });
        let count = few.count();
        waiting.under_way += count;
        (count > 0).then(|| waiting.spans.drain(..count).collect())
    }

    /// No more come in, and nobody waits for those that are under way.
    pub(super) fn close(&self) {
        let mut waiting = self.lock();
        waiting.is_closed = true;
        let left = std::mem::take(&mut waiting.under_way);
        waiting.lose(Lost::Ended, left);
        drop(waiting);
        self.clear();
    }

    /// So many of those that were under way have arrived.
    pub(super) fn took(&self, count: usize) {
        let mut waiting = self.lock();
        let count = waiting.arrive(count);
        waiting.taken += count as u64;
    }

    /// So many of those that were under way are lost.
    pub(super) fn lose(&self, why: Lost, count: usize) {
        let mut waiting = self.lock();
        let count = waiting.arrive(count);
        waiting.lose(why, count);
    }

    pub(super) fn counts(&self) -> Counts {
        let waiting = self.lock();
        Counts { taken: waiting.taken, lost: waiting.lost, waiting: waiting.spans.len() as u64 }
    }

    /// Never held across an await.
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    /// Something was heard of so many that were under way; fewer, where they were counted as lost at the end.
    fn arrive(&mut self, count: usize) -> usize {
        let count = count.min(self.under_way);
        self.under_way -= count;
        count
    }

    fn lose(&mut self, why: Lost, count: usize) {
        let place = Lost::ALL.iter().position(|lost| *lost == why);
        if let Some(lost) = place.and_then(|place| self.lost.get_mut(place)) {
            *lost += count as u64;
        }
    }
}

/// About what a span takes in a message.
fn size(span: &Span) -> usize {
    let attributes = span.attributes.iter().map(|(name, value)| {
        name.len()
            + 8
            + match value {
                Attribute::Word(word) => word.len(),
                Attribute::Text(text) => text.len(),
                Attribute::Number(_) => 8,
            }
    });
    128 + span.name.len() + span.state.len() + attributes.sum::<usize>()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn span(id: u64) -> Span {
        Span {
            trace: 1,
            id,
            parent: None,
            state: String::new(),
            name: "/".to_owned(),
            began: Duration::ZERO,
            took: Duration::ZERO,
            status: 200,
            attributes: vec![("http.target", Attribute::Text("/".repeat(1000)))],
        }
    }

    fn of(most: usize, enough: usize) -> Queue {
        let queue = Queue::default();
        *queue.lock() = Waiting { most, enough, ..Waiting::default() };
        queue
    }

    fn ids(spans: Option<Vec<Span>>) -> Vec<u64> {
        spans.into_iter().flatten().map(|span| span.id).collect()
    }

    #[test]
    fn what_is_too_many_is_dropped_and_counted() {
        let queue = of(2, 2);

        (1..=5).for_each(|id| queue.push(span(id)));

        assert_eq!(queue.counts(), Counts { taken: 0, lost: [3, 0, 0, 0], waiting: 2 });
        assert_eq!(ids(queue.take(9, usize::MAX)), [1, 2]);
        queue.push(span(6));
        assert_eq!(ids(queue.take(9, usize::MAX)), [6]);
        assert!(queue.take(9, usize::MAX).is_none());
    }

    #[test]
    fn a_batch_is_bounded_by_spans_and_by_bytes_and_never_empty() {
        let queue = of(9, 9);
        (1..=6).for_each(|id| queue.push(span(id)));

        assert_eq!(ids(queue.take(2, usize::MAX)), [1, 2]);
        assert_eq!(ids(queue.take(9, 2500)), [3, 4]);
        assert_eq!(ids(queue.take(9, 1)), [5]);
        assert_eq!(ids(queue.take(9, 2500)), [6]);
    }

    #[test]
    fn nothing_comes_in_after_the_end() {
        let queue = of(9, 9);
        queue.push(span(1));

        queue.close();
        queue.push(span(2));

        assert_eq!(queue.counts(), Counts { taken: 0, lost: [0, 0, 0, 2], waiting: 0 });
    }

    #[test]
    fn what_is_under_way_at_the_end_is_lost_once() {
        let queue = of(9, 9);
        (1..=3).for_each(|id| queue.push(span(id)));

        assert_eq!(ids(queue.take(1, usize::MAX)), [1]);
        queue.took(1);
        assert_eq!(ids(queue.take(1, usize::MAX)), [2]);
        queue.close();
        queue.lose(Lost::Failed, 1);

        assert_eq!(queue.counts(), Counts { taken: 1, lost: [0, 0, 0, 2], waiting: 0 });
    }
}

//! Work that takes long, beside the loop that keeps the tables as they should be.

use std::future::pending;

use tokio::task::{JoinError, JoinHandle};

/// A piece of work of which there is one at a time.
#[derive(Debug)]
pub(super) struct Background<T>(Option<JoinHandle<T>>);

impl<T> Default for Background<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T: Send + 'static> Background<T> {
    /// Begins it on a thread of its own, unless the last one has not ended.
    pub(super) fn begin(&mut self, work: impl FnOnce() -> T + Send + 'static) {
        if self.0.is_none() {
            self.0 = Some(tokio::task::spawn_blocking(work));
        }
    }

    /// What came of it. Waits for ever where none was begun; may be dropped and asked again.
    pub(super) async fn ended(&mut self) -> Result<T, JoinError> {
        let Some(work) = &mut self.0 else { return pending().await };
        let result = work.await;
        self.0 = None;
        result
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::mpsc;
    use std::task::{Context, Poll, Waker};

    use super::*;

    #[tokio::test]
    async fn one_at_a_time_holds_up_nobody_and_is_told_when_it_ends() {
        let mut background = Background::default();
        let (go, wait) = mpsc::channel();
        assert!(is_under_way(&mut background));

        background.begin(move || wait.recv().expect("it may end"));
        background.begin(|| panic!("there is one already"));
        assert!(is_under_way(&mut background));
        go.send(7).expect("it waits");

        assert_eq!(background.ended().await.expect("it ended"), 7);
        assert!(is_under_way(&mut background));
        background.begin(|| 8);
        assert_eq!(background.ended().await.expect("the next one"), 8);
    }

    /// Whether who asks goes on with something else.
    fn is_under_way(background: &mut Background<u8>) -> bool {
        let mut context = Context::from_waker(Waker::noop());
        matches!(pin!(background.ended()).as_mut().poll(&mut context), Poll::Pending)
    }
}

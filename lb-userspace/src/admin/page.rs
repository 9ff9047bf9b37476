//! The page of `/metrics`. It may be large, and anybody may ask for it: one is made at a time, two are there at
//! once, and who does not take it in time is left.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::Instant;

/// Pages there are at once: one that is being sent while the next is made.
const PAGES: usize = 2;
/// How old a page may get: until then it has been sent, or its clients are left.
const TAKEN_IN: Duration = Duration::from_secs(30);

/// Pages that are being sent, the newest last.
#[derive(Default)]
pub(super) struct Pages(Mutex<Vec<Weak<Page>>>);

struct Page {
    begun: Instant,
    text: String,
}

impl Pages {
    /// A page that was begun since `asked`. While as many as may be are being sent, the newest of them.
    pub(super) fn page(&self, asked: Instant, make: impl FnOnce() -> String, reader: &Reader) -> Bytes {
        let mut pages = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        pages.retain(|page| page.strong_count() > 0);
        let newest = pages.last().and_then(Weak::upgrade);
        let shared = newest.filter(|newest| newest.begun >= asked || pages.len() >= PAGES);
        let page = shared.unwrap_or_else(|| {
            let begun = Instant::now();
            let page = Arc::new(Page { begun, text: make() });
            pages.push(Arc::downgrade(&page));
            page
        });
        Bytes::from_owner(Copy::new(page, reader))
    }
}

/// A page as it is sent to one client; dropped when it is.
struct Copy {
    page: Arc<Page>,
    reader: Reader,
}

impl Copy {
    fn new(page: Arc<Page>, reader: &Reader) -> Self {
        reader.0.send_replace(Some(page.begun + TAKEN_IN));
        Self { page, reader: reader.clone() }
    }
}

impl AsRef<[u8]> for Copy {
    fn as_ref(&self) -> &[u8] {
        self.page.text.as_bytes()
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        self.reader.0.send_replace(None);
    }
}

/// A client, and by when it has to have taken its page.
#[derive(Clone, Default)]
pub(super) struct Reader(watch::Sender<Option<Instant>>);

impl Reader {
    /// Returns when it has not.
    pub(super) async fn is_late(&self) {
        let mut due = self.0.subscribe();
        loop {
            let by = *due.borrow_and_update();
            let late = async {
                match by {
                    Some(by) => tokio::time::sleep_until(by).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = late => return,
                _ = due.changed() => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// A page that tells which one it is.
    fn ask(pages: &Pages, made: &AtomicUsize) -> Bytes {
        let make = || made.fetch_add(1, Ordering::SeqCst).to_string();
        pages.page(Instant::now(), make, &Reader::default())
    }

    #[test]
    fn each_question_gets_a_page_of_its_own_while_others_are_taken() {
        let (pages, made) = (Pages::default(), AtomicUsize::new(0));

        for n in 0..5 {
            assert_eq!(ask(&pages, &made), n.to_string());
        }
    }

    #[test]
    fn clients_that_do_not_read_cost_two_pages_together() {
        let (pages, made) = (Pages::default(), AtomicUsize::new(0));

        let mut unread: Vec<_> = (0..64).map(|_| ask(&pages, &made)).collect();

        assert_eq!(made.load(Ordering::SeqCst), PAGES);
        assert_eq!(unread[63], "1", "the newest");
        unread.truncate(1);
        assert_eq!(ask(&pages, &made), "2", "there is room again");
    }

    #[test]
    fn who_waits_while_one_is_made_gets_the_next_together() {
        let (pages, made, asked) = (Pages::default(), AtomicUsize::new(0), Barrier::new(9));

        std::thread::scope(|scope| {
            let (pages, made, asked) = (&pages, &made, &asked);
            let (begins, begun) = std::sync::mpsc::channel();
            scope.spawn(move || {
                let make = || {
                    begins.send(()).expect("heard");
                    asked.wait();
                    made.fetch_add(1, Ordering::SeqCst).to_string()
                };
                pages.page(Instant::now(), make, &Reader::default());
            });
            begun.recv().expect("one is being made");
            let ask = || {
                let at = Instant::now();
                asked.wait();
                let make = || made.fetch_add(1, Ordering::SeqCst).to_string();
                pages.page(at, make, &Reader::default())
            };
            let others: Vec<_> = (0..8).map(|_| scope.spawn(ask)).collect();
            let theirs: Vec<_> = others.into_iter().map(|thread| thread.join().expect("a page")).collect();
            assert!(theirs.iter().all(|page| page == "1"), "{theirs:?}");
        });
    }

    #[tokio::test]
    async fn a_client_is_late_once_its_page_is_old_and_never_without_one() {
        let reader = Reader::default();
        let page = Arc::new(Page { begun: Instant::now() - TAKEN_IN, text: String::new() });

        let copy = Copy::new(page, &reader);

        reader.is_late().await;
        drop(copy);
        assert_eq!(*reader.0.borrow(), None);
    }
}

//! The accept loop of the small servers beside the proxy (admin, webhook, health ports): so many connections at
//! once, of which those that ask nothing make room for others, and an orderly end.
//!
//! The proxy has loops of its own, which share nothing between its workers.

use std::collections::VecDeque;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot, watch};

/// Connections served at once. One more takes the place of the one that has been silent for longest; where all are
/// being answered it waits.
const MAX_CONNECTIONS: u32 = 64;

/// Longest wait for answers that are under way when everything is to stop.
const LAST_ANSWERS: Duration = Duration::from_secs(2);

/// What an accept waits that found no descriptor free.
const PAUSE: Duration = Duration::from_millis(100);

/// Tells a connection that the server is to stop.
#[derive(Clone)]
pub struct Stopping(watch::Receiver<()>);

impl Stopping {
    /// Returns when the server is to stop: what is asked by then is answered, nothing after it.
    pub async fn told(&mut self) {
        // An error says that the loop has ended, which means the same.
        let _ = self.0.changed().await;
    }
}

/// A connection's place among those that are served: while it asks nothing, it may have to leave it to another.
#[derive(Clone)]
pub struct Place {
    line: Arc<Line>,
    seat: Arc<Seat>,
}

/// What the line knows of a connection.
#[derive(Default)]
struct Seat {
    dismissed: Notify,
    /// A question has come that is not answered yet.
    answers: AtomicBool,
}

impl Place {
    fn new(line: &Arc<Line>) -> Self {
        let place = Self { line: Arc::clone(line), seat: Arc::default() };
        place.line.join(&place.seat);
        place
    }

    /// A question has come: the connection stays until the returned value is dropped. One at a time.
    #[must_use]
    pub fn answer(&self) -> Answering {
        self.seat.answers.store(true, Ordering::SeqCst);
        self.line.leave(&self.seat);
        Answering(self.clone())
    }

    /// Returns when the connection has to leave it.
    async fn lost(&self) {
        loop {
            self.seat.dismissed.notified().await;
            if !self.seat.answers.load(Ordering::SeqCst) {
                return;
            }
            // Its question came at the same time, and goes before.
            self.line.declined.notify_waiters();
        }
    }
}

/// See [`Place::answer`].
pub struct Answering(Place);

impl Drop for Answering {
    fn drop(&mut self) {
        let Self(Place { line, seat }) = self;
        seat.answers.store(false, Ordering::SeqCst);
        line.join(seat);
    }
}

/// Connections that ask nothing; the one that has been silent for longest is the first.
#[derive(Default)]
struct Line {
    silent: Mutex<VecDeque<Arc<Seat>>>,
    joined: Notify,
    /// Who was to end had just begun to ask.
    declined: Notify,
}

impl Line {
    fn join(&self, one: &Arc<Seat>) {
        self.with(|silent| silent.push_back(Arc::clone(one)));
        self.joined.notify_waiters();
    }

    fn leave(&self, one: &Arc<Seat>) {
        self.with(|silent| silent.retain(|known| !Arc::ptr_eq(known, one)));
    }

    /// Has the first one end; false if there is none.
    fn dismiss(&self) -> bool {
        let first = self.with(VecDeque::pop_front);
        first.is_some_and(|first| {
            first.dismissed.notify_one();
            true
        })
    }

    fn with<T>(&self, act: impl FnOnce(&mut VecDeque<Arc<Seat>>) -> T) -> T {
        act(&mut self.silent.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A slot for one more connection, if need be that of another; `None`: never.
    async fn slot(&self, slots: &Arc<Semaphore>) -> Option<OwnedSemaphorePermit> {
        loop {
            if let Ok(slot) = Arc::clone(slots).try_acquire_owned() {
                return Some(slot);
            }
            let (joined, declined) = (self.joined.notified(), self.declined.notified());
            let another = async { if self.dismiss() { declined.await } else { joined.await } };
            tokio::select! {
                slot = Arc::clone(slots).acquire_owned() => return slot.ok(),
                () = another => {}
            }
        }
    }
}

/// Serves every connection by `serve`, until `stop` is told or dropped; then waits for those that are left, two
/// seconds at most. `server` is the name for the log.
pub async fn each<Served>(
    server: &'static str,
    listener: TcpListener,
    mut stop: oneshot::Receiver<()>,
    serve: impl Fn(TcpStream, SocketAddr, Stopping, Place) -> Served,
) where
    Served: Future<Output = ()> + Send + 'static,
{
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS as usize));
    let line = Arc::new(Line::default());
    let (stopping, stopped) = watch::channel(());
    loop {
        let next = async {
            let accepted = listener.accept().await;
            Some((accepted, line.slot(&slots).await?))
        };
        let next = tokio::select! {
            next = next => next,
            _ = &mut stop => None,
        };
        let Some((accepted, slot)) = next else { break };
        match accepted {
            Ok((stream, peer)) => {
                let place = Place::new(&line);
                let served = serve(stream, peer, Stopping(stopped.clone()), place.clone());
                tokio::spawn(async move {
                    tokio::select! {
                        () = served => {}
                        () = place.lost() => {
                            tracing::debug!(server, %peer, "a silent connection made room");
                        }
                    }
                    place.line.leave(&place.seat);
                    drop(slot);
                });
            }
            Err(error) => {
                // Out of descriptors or a client that vanished: neither is a reason to stop.
                tracing::warn!(server, %error, "accept failed");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
    drop((listener, stopping));
    // All slots are free when the last answer is given.
    let _ = tokio::time::timeout(LAST_ANSWERS, slots.acquire_many(MAX_CONNECTIONS)).await;
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::pin::{Pin, pin};
    use std::task::Poll;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// Answers one byte with the same byte.
    async fn echo(mut stream: TcpStream, _peer: SocketAddr, _stopping: Stopping, place: Place) {
        let mut byte = [0];
        while stream.read_exact(&mut byte).await.is_ok() {
            let _answering = place.answer();
            if stream.write_all(&byte).await.is_err() {
                return;
            }
        }
    }

    async fn ask(client: &mut TcpStream) -> std::io::Result<u8> {
        client.write_all(b"x").await?;
        client.read_u8().await
    }

    /// Whether it is not over yet.
    async fn waits<T>(mut future: Pin<&mut impl Future<Output = T>>) -> bool {
        poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx).is_pending())).await
    }

    #[tokio::test]
    async fn a_question_that_was_asked_before_the_end_is_answered() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listener");
        let addr = listener.local_addr().expect("address");
        let (stop, stopped) = oneshot::channel();
        let (arrived, mut arrivals) = tokio::sync::mpsc::unbounded_channel();
        let server =
            tokio::spawn(each("test", listener, stopped, move |stream, peer, mut stopping, place| {
                let arrived = arrived.clone();
                async move {
                    let _ = arrived.send(());
                    stopping.told().await;
                    echo(stream, peer, stopping, place).await;
                }
            }));
        let mut client = TcpStream::connect(addr).await.expect("connect");
        arrivals.recv().await.expect("accepted");

        stop.send(()).expect("told");
        assert_eq!(ask(&mut client).await.expect("answered"), b'x');
        drop(client);
        server.await.expect("ended");
        TcpStream::connect(addr).await.expect_err("nobody accepts any more");
    }

    #[tokio::test]
    async fn one_connection_more_than_there_are_places_takes_that_of_the_longest_silent() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listener");
        let addr = listener.local_addr().expect("address");
        let (_stop, stopped) = oneshot::channel();
        tokio::spawn(each("test", listener, stopped, echo));
        let mut clients = Vec::new();
        for _ in 0..MAX_CONNECTIONS {
            let mut client = TcpStream::connect(addr).await.expect("connect");
            ask(&mut client).await.expect("answered");
            clients.push(client);
        }
        ask(&mut clients[0]).await.expect("answered");

        let mut one_more = TcpStream::connect(addr).await.expect("connect");

        assert_eq!(ask(&mut one_more).await.expect("answered"), b'x');
        assert_eq!(clients[1].read(&mut [0]).await.expect("an end"), 0, "silent for longest");
        assert_eq!(ask(&mut clients[0]).await.expect("answered"), b'x', "it has spoken since");
    }

    #[tokio::test]
    async fn who_begins_to_ask_while_it_is_told_to_leave_stays_and_another_leaves() {
        let line = Arc::new(Line::default());
        let (asks, silent) = (Place::new(&line), Place::new(&line));
        let slots = Arc::new(Semaphore::new(1));
        let slot = Arc::clone(&slots).try_acquire_owned().expect("the only one");
        let mut one_more = pin!(line.slot(&slots));
        assert!(waits(one_more.as_mut()).await, "the first one is told");

        let answering = asks.answer();

        assert!(waits(pin!(asks.lost())).await, "it is being answered");
        assert!(waits(one_more.as_mut()).await, "the second one is told");
        silent.lost().await;
        drop((answering, slot));
        assert!(one_more.await.is_some());
    }

    #[tokio::test]
    async fn who_is_being_answered_keeps_its_place_and_others_wait() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listener");
        let addr = listener.local_addr().expect("address");
        let (_stop, stopped) = oneshot::channel();
        let (go_on, gone_on) = watch::channel(());
        let (arrived, mut arrivals) = tokio::sync::mpsc::unbounded_channel();
        tokio::spawn(each("test", listener, stopped, move |mut stream, _, _, place| {
            let (mut gone_on, arrived) = (gone_on.clone(), arrived.clone());
            async move {
                let answering = place.answer();
                let _ = arrived.send(());
                let _ = gone_on.changed().await;
                let _ = stream.write_all(b"x").await;
                drop(answering);
                std::future::pending::<()>().await;
            }
        }));
        let mut clients = Vec::new();
        for _ in 0..MAX_CONNECTIONS {
            clients.push(TcpStream::connect(addr).await.expect("connect"));
            arrivals.recv().await.expect("accepted");
        }
        let _one_more = TcpStream::connect(addr).await.expect("connect");
        assert!(tokio::time::timeout(PAUSE, arrivals.recv()).await.is_err(), "served beyond the places");

        go_on.send(()).expect("told");

        arrivals.recv().await.expect("served in the place of one that was answered");
        for client in &mut clients {
            assert_eq!(client.read_u8().await.expect("answered"), b'x');
        }
    }
}

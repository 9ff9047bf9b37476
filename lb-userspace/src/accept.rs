//! The accept loop of the small servers beside the proxy (admin, webhook): so many connections at once, and an
//! orderly end.
//!
//! The proxy has loops of its own, which share nothing between its workers.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, oneshot, watch};

/// Connections served at once; more wait in the accept queue.
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

/// Serves every connection by `serve`, until `stop` is told or dropped; then waits for those that are left, two
/// seconds at most. `server` is the name for the log.
pub async fn each<Served>(
    server: &'static str,
    listener: TcpListener,
    mut stop: oneshot::Receiver<()>,
    serve: impl Fn(TcpStream, SocketAddr, Stopping) -> Served,
) where
    Served: Future<Output = ()> + Send + 'static,
{
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS as usize));
    let (stopping, stopped) = watch::channel(());
    loop {
        let next = async {
            let slot = Arc::clone(&slots).acquire_owned().await.ok()?;
            Some((listener.accept().await, slot))
        };
        let next = tokio::select! {
            next = next => next,
            _ = &mut stop => None,
        };
        let Some((accepted, slot)) = next else { break };
        match accepted {
            Ok((stream, peer)) => {
                let served = serve(stream, peer, Stopping(stopped.clone()));
                tokio::spawn(async move {
                    served.await;
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
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// Answers one byte with the same byte.
    async fn echo(mut stream: TcpStream, _peer: SocketAddr, _stopping: Stopping) {
        let mut byte = [0];
        if stream.read_exact(&mut byte).await.is_ok() {
            let _ = stream.write_all(&byte).await;
        }
    }

    #[tokio::test]
    async fn a_question_that_was_asked_before_the_end_is_answered() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listener");
        let addr = listener.local_addr().expect("address");
        let (stop, stopped) = oneshot::channel();
        let (arrived, mut arrivals) = tokio::sync::mpsc::unbounded_channel();
        let server = tokio::spawn(each("test", listener, stopped, move |stream, peer, mut stopping| {
            let arrived = arrived.clone();
            async move {
                let _ = arrived.send(());
                stopping.told().await;
                echo(stream, peer, stopping).await;
            }
        }));
        let mut client = TcpStream::connect(addr).await.expect("connect");
        arrivals.recv().await.expect("accepted");

        stop.send(()).expect("told");
        client.write_all(b"x").await.expect("asked");
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.expect("answered");

        assert_eq!(answer, b"x");
        server.await.expect("ended");
        TcpStream::connect(addr).await.expect_err("nobody accepts any more");
    }

    #[tokio::test]
    async fn one_connection_more_than_there_are_places_waits_for_a_place() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listener");
        let addr = listener.local_addr().expect("address");
        let (_stop, stopped) = oneshot::channel();
        tokio::spawn(each("test", listener, stopped, echo));
        let mut clients = Vec::new();
        for _ in 0..=MAX_CONNECTIONS {
            clients.push(TcpStream::connect(addr).await.expect("connect"));
        }
        let mut last = clients.pop().expect("clients");
        last.write_all(b"x").await.expect("asked");
        let mut answer = [0];
        assert!(
            tokio::time::timeout(PAUSE, last.read_exact(&mut answer)).await.is_err(),
            "served beyond the places"
        );

        drop(clients.pop());

        last.read_exact(&mut answer).await.expect("answered");
        assert_eq!(&answer, b"x");
    }
}

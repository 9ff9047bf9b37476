//! The admin endpoint's listening socket, which may pass to another agent and come back.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::admin::{self, Live};

/// The endpoint, serving or not.
pub(super) struct Endpoint {
    socket: TcpListener,
    serving: Mutex<Option<(oneshot::Sender<()>, JoinHandle<()>)>>,
}

impl Endpoint {
    pub(super) fn new(socket: TcpListener) -> Self {
        Self { socket, serving: Mutex::default() }
    }

    pub(super) fn addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Another end of the socket.
    pub(super) fn socket(&self) -> io::Result<TcpListener> {
        self.socket.try_clone()
    }

    /// Answers from now on.
    pub(super) fn start(&self, live: Arc<dyn Live>) {
        let listener = self.socket().and_then(tokio::net::TcpListener::from_std);
        let listener = match listener {
            Ok(listener) => listener,
            Err(error) => return tracing::error!(%error, "the admin endpoint does not answer"),
        };
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(admin::serve(listener, live, stopped));
        *self.serving.lock().unwrap_or_else(PoisonError::into_inner) = Some((stop, task));
    }

    /// Gives the answers that are under way and no more.
    pub(super) async fn stop(&self) {
        let serving = self.serving.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((stop, task)) = serving {
            let _ = stop.send(());
            let _ = task.await;
        }
    }
}

//! From the desired state to what workers read: built once on a thread of its own, handed to every
//! worker, swapped between two requests.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use tokio::sync::watch;

use super::route::Router;
use super::tls::Tls;
use crate::model::l7::{L7, UpstreamName};

/// Builds routers until the desired state or the workers are gone.
pub(super) struct Publisher {
    desired: watch::Receiver<Arc<L7>>,
    tls: Arc<Tls>,
    published: watch::Sender<Arc<Router>>,
}

/// A publisher and what it publishes, starting with the state of now.
pub(super) fn publisher(
    mut desired: watch::Receiver<Arc<L7>>,
    tls: Arc<Tls>,
) -> (Publisher, watch::Receiver<Arc<Router>>) {
    let l7 = Arc::clone(&desired.borrow_and_update());
    tls.publish(&l7);
    let (published, receiver) = watch::channel(Arc::new(Router::new(&l7)));
    (Publisher { desired, tls, published }, receiver)
}

impl Publisher {
    /// Blocks its thread.
    pub(super) fn run(mut self) {
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread().build() else {
            tracing::error!("no runtime for the route thread: changes will not take effect");
            return;
        };
        runtime.block_on(async {
            loop {
                tokio::select! {
                    changed = self.desired.changed() => if changed.is_err() { break },
                    () = self.published.closed() => return,
                }
                let l7 = Arc::clone(&self.desired.borrow_and_update());
                // A host's certificate is there before a route redirects to it.
                self.tls.publish(&l7);
                self.published.send_replace(Arc::new(Router::new(&l7)));
            }
            self.published.closed().await;
        });
    }
}

/// A router and one worker's round-robin state for it.
pub(super) struct Snapshot {
    pub(super) router: Arc<Router>,
    /// Next endpoint by upstream index.
    cursors: Vec<Cell<usize>>,
}

impl Snapshot {
    /// Goes on where `before` stood; an upstream that is new starts at a random endpoint, so that
    /// many workers do not start in step.
    pub(super) fn new(router: Arc<Router>, before: Option<&Self>) -> Self {
        let known: HashMap<&UpstreamName, usize> = before
            .map(|before| {
                before.router.upstreams.iter().zip(&before.cursors).map(|(u, c)| (&u.name, c.get())).collect()
            })
            .unwrap_or_default();
        let cursors = router
            .upstreams
            .iter()
            .map(|upstream| Cell::new(known.get(&upstream.name).copied().unwrap_or_else(random)))
            .collect();
        Self { router, cursors }
    }

    /// The next endpoint of an upstream; `None` if it has none.
    pub(super) fn next_endpoint(&self, upstream: usize) -> Option<SocketAddr> {
        let endpoints = &self.router.upstreams.get(upstream)?.endpoints;
        let cursor = self.cursors.get(upstream)?;
        let at = cursor.get().checked_rem(endpoints.len())?;
        cursor.set(at + 1);
        endpoints.get(at).copied()
    }
}

fn random() -> usize {
    RandomState::new().build_hasher().finish() as usize >> 1
}

/// The snapshot one worker serves from.
pub(super) struct Current(RefCell<Rc<Snapshot>>);

impl Current {
    pub(super) fn new(router: Arc<Router>) -> Self {
        Self(RefCell::new(Rc::new(Snapshot::new(router, None))))
    }

    /// For one request; counts on this thread only.
    pub(super) fn load(&self) -> Rc<Snapshot> {
        Rc::clone(&self.0.borrow())
    }

    pub(super) fn store(&self, router: Arc<Router>) {
        let before = self.load();
        *self.0.borrow_mut() = Rc::new(Snapshot::new(router, Some(&before)));
    }
}

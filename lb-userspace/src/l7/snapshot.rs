//! From the desired state to what workers read: built once on a thread of its own, handed to every
//! worker, swapped between two requests.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use tokio::sync::watch;

use super::route::{Maker, Router};
use super::tls::Tls;
use super::upstream::{Seat, Upstreams};
use crate::model::health::Unwell;
use crate::model::l7::{ClientLimits, L7};

/// Builds routers until the desired state or the workers are gone.
pub(super) struct Publisher {
    desired: watch::Receiver<Arc<L7>>,
    tls: Arc<Tls>,
    maker: Maker,
    published: watch::Sender<Arc<Router>>,
}

/// A publisher and what it publishes, starting with the state of now.
pub(super) fn publisher(
    mut desired: watch::Receiver<Arc<L7>>,
    tls: Arc<Tls>,
) -> (Publisher, watch::Receiver<Arc<Router>>) {
    let l7 = Arc::clone(&desired.borrow_and_update());
    tls.publish(&l7);
    let mut maker = Maker::default();
    let (published, receiver) = watch::channel(Arc::new(maker.make(&l7)));
    (Publisher { desired, tls, maker, published }, receiver)
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
                self.published.send_replace(Arc::new(self.maker.make(&l7)));
            }
            self.published.closed().await;
        });
    }
}

/// A router and what one worker knows of its upstreams.
pub(super) struct Snapshot {
    pub(super) router: Arc<Router>,
    pub(super) upstreams: Upstreams,
    /// Those of the router, for connections to keep without carrying their size.
    limits: Rc<ClientLimits>,
}

impl Snapshot {
    fn new(router: Arc<Router>, upstreams: Upstreams) -> Self {
        let limits = Rc::new(router.edge.limits);
        Self { router, upstreams, limits }
    }
}

/// The snapshot one worker serves from.
pub(super) struct Current {
    snapshot: RefCell<Rc<Snapshot>>,
    unwell: RefCell<Arc<Unwell>>,
    seat: Seat,
}

impl Current {
    pub(super) fn new(router: Arc<Router>, seat: Seat) -> Self {
        let (upstreams, _) = Upstreams::new(&router.upstreams, None, seat);
        let snapshot = RefCell::new(Rc::new(Snapshot::new(router, upstreams)));
        Self { snapshot, unwell: RefCell::default(), seat }
    }

    /// For one request; counts on this thread only.
    pub(super) fn load(&self) -> Rc<Snapshot> {
        Rc::clone(&self.snapshot.borrow())
    }

    /// What a client connection may take.
    pub(super) fn limits(&self) -> Rc<ClientLimits> {
        Rc::clone(&self.snapshot.borrow().limits)
    }

    /// Serves from another router; returns the snapshot of before.
    pub(super) fn store(&self, router: Arc<Router>) -> Rc<Snapshot> {
        let before = self.load();
        let known = (before.router.upstreams.as_slice(), &before.upstreams);
        let (upstreams, new) = Upstreams::new(&router.upstreams, Some(known), self.seat);
        upstreams.set_unwell(&router.upstreams, new, &self.unwell.borrow());
        self.snapshot.replace(Rc::new(Snapshot::new(router, upstreams)));
        before
    }

    /// Endpoints that active checks found unwell, in this snapshot and those that follow.
    pub(super) fn set_unwell(&self, unwell: Arc<Unwell>) {
        let before = self.unwell.replace(Arc::clone(&unwell));
        let Snapshot { router, upstreams, limits: _ } = &**self.snapshot.borrow();
        let places = before.0.keys().chain(unwell.0.keys()).filter_map(|name| router.place_of(name));
        upstreams.set_unwell(&router.upstreams, places, &unwell);
    }
}

//! From the desired state to what workers read: built once on a thread of its own, handed to every
//! worker, swapped between two requests.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use tokio::sync::watch;

use super::route::Router;
use super::tls::Tls;
use super::upstream::{Clients, Seat, Upstreams};
use super::zones::{Zones, zones};
use crate::model::health::Unwell;
use crate::model::l7::L7;

/// Builds routers until the desired state or the workers are gone.
pub(super) struct Publisher {
    desired: watch::Receiver<Arc<L7>>,
    tls: Arc<Tls>,
    clients: Clients,
    published: watch::Sender<Arc<Router>>,
}

/// A publisher and what it publishes, starting with the state of now.
pub(super) fn publisher(
    mut desired: watch::Receiver<Arc<L7>>,
    tls: Arc<Tls>,
) -> (Publisher, watch::Receiver<Arc<Router>>) {
    let l7 = Arc::clone(&desired.borrow_and_update());
    tls.publish(&l7);
    let mut clients = Clients::default();
    let (published, receiver) = watch::channel(router(&l7, &mut clients, &Zones::new()));
    (Publisher { desired, tls, clients, published }, receiver)
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
                let known = self.published.borrow().zones.clone();
                self.published.send_replace(router(&l7, &mut self.clients, &known));
            }
            self.published.closed().await;
        });
    }
}

fn router(l7: &L7, clients: &mut Clients, known: &Zones) -> Arc<Router> {
    let mut router = Router::new(l7);
    router.clients = clients.of(&router.tls);
    router.zones = zones(&router, known);
    Arc::new(router)
}

/// A router and what one worker knows of its upstreams.
pub(super) struct Snapshot {
    pub(super) router: Arc<Router>,
    pub(super) upstreams: Upstreams,
}

impl Snapshot {
    fn new(router: Arc<Router>, before: Option<&Self>, seat: Seat) -> Self {
        let known = before.map(|before| (before.router.upstreams.as_slice(), &before.upstreams));
        let upstreams = Upstreams::new(&router.upstreams, known, seat);
        Self { router, upstreams }
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
        let snapshot = RefCell::new(Rc::new(Snapshot::new(router, None, seat)));
        Self { snapshot, unwell: RefCell::default(), seat }
    }

    /// For one request; counts on this thread only.
    pub(super) fn load(&self) -> Rc<Snapshot> {
        Rc::clone(&self.snapshot.borrow())
    }

    pub(super) fn store(&self, router: Arc<Router>) {
        let before = self.load();
        *self.snapshot.borrow_mut() = Rc::new(Snapshot::new(router, Some(&before), self.seat));
        self.tell_unwell();
    }

    /// Endpoints that active checks found unwell, in this snapshot and those that follow.
    pub(super) fn set_unwell(&self, unwell: Arc<Unwell>) {
        self.unwell.replace(unwell);
        self.tell_unwell();
    }

    fn tell_unwell(&self) {
        let snapshot = self.snapshot.borrow();
        snapshot.upstreams.set_unwell(&snapshot.router.upstreams, &self.unwell.borrow());
    }
}

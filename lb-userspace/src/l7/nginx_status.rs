//! What `/nginx_status` tells: connections and requests of all workers, asked for when somebody wants to know. It
//! is no part of the way of other requests.

use std::sync::{Arc, OnceLock, mpsc};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::{UnboundedSender, WeakUnboundedSender};

use super::metrics::Counters;
use super::worker::{Control, Worker};

/// Longest wait for the other workers; those that do not answer are left out.
const TIMEOUT: Duration = Duration::from_millis(500);
/// How often it is looked whether they did.
const POLL: Duration = Duration::from_millis(1);

/// Every worker, once all were started.
#[derive(Debug, Clone, Default)]
pub(super) struct AllWorkers(Arc<OnceLock<Vec<WeakUnboundedSender<Control>>>>);

impl AllWorkers {
    /// These are all. Weak: workers end when nobody else can tell them anything.
    pub(super) fn set(&self, controls: &[UnboundedSender<Control>]) {
        let _ = self.0.set(controls.iter().map(UnboundedSender::downgrade).collect());
    }
}

impl Worker {
    /// The page, in nginx's words.
    pub(super) async fn nginx_status(&self) -> String {
        let (answer, answers) = mpsc::channel();
        let others = self.all_workers.0.get().into_iter().flatten().enumerate();
        let others = others.filter(|(number, _)| *number != self.number).filter_map(|(_, to)| to.upgrade());
        let asked = others.filter(|to| to.send(Control::Count(answer.clone())).is_ok()).count();
        let mut total = Counters::default();
        total.add(&self.count());
        let (until, mut heard) = (Instant::now() + TIMEOUT, 0);
        while heard < asked && Instant::now() < until {
            match answers.try_recv() {
                Ok(counters) => {
                    total.add(&counters);
                    heard += 1;
                }
                Err(_) => tokio::time::sleep(POLL).await,
            }
        }
        total.nginx_status()
    }
}

//! Spans of traced requests go from here to a collector, by OTLP: away from every request, in batches, and never
//! more of them in memory than is asked for.
//!
//! One exporter for all workers. What a span says, and which request leaves one, is not decided here.

mod client;
pub mod otlp;
mod queue;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::backoff::Backoff;
use crate::model::l7::{Collector, L7};
use crate::model::report::{Metric, MetricKind, Sample};
use crate::model::span::{Span, TakeSpan};
use crate::model::{ObjectId, Problem, Severity};
use client::{Client, Failure};
use queue::{Lost, Queue};

/// How often a batch is sent that a collector does not take for the moment. One that nobody is there for waits for
/// as long as it takes.
const TRIES: u32 = 8;
/// Most bytes of a batch: collectors take 4 MiB.
const BATCH_BYTES: usize = 1 << 20;

/// The exporter; it ends when this is dropped.
pub struct Exporter {
    queue: Arc<Queue>,
    trouble: watch::Receiver<Option<Trouble>>,
    /// Has it end.
    end: mpsc::Sender<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

/// Why spans do not get on.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Trouble {
    collector: String,
    why: String,
}

impl Exporter {
    /// Sends to the collector of `desired`, from now on and after every change.
    pub fn start(desired: watch::Receiver<Arc<L7>>) -> Self {
        let queue = Arc::new(Queue::default());
        queue.set(desired.borrow().collector.as_deref());
        let (tell, trouble) = watch::channel(None);
        let (end, ends) = mpsc::channel(1);
        let sender = Sender { queue: Arc::clone(&queue), client: None, trouble: tell, backoff: pauses() };
        let task = tokio::spawn(run(sender, desired, ends));
        Self { queue, trouble, end, task }
    }

    /// Takes spans for it.
    pub fn sink(&self) -> TakeSpan {
        let queue = Arc::clone(&self.queue);
        Arc::new(move |span: Span| queue.push(span))
    }

    /// Sends what waits, once, for so long at most; what comes afterwards is dropped.
    pub async fn end(&self, within: Duration) {
        let (done, ended) = oneshot::channel();
        let sent = async {
            // A call that takes long keeps it from being heard.
            if self.end.send(done).await.is_ok() {
                let _ = ended.await;
            }
        };
        let _ = tokio::time::timeout(within, sent).await;
        self.queue.close();
    }

    /// A collector that does not take spans.
    pub fn problem(&self) -> Option<Problem> {
        let Trouble { collector, why } = self.trouble.borrow().clone()?;
        let object = ObjectId { kind: "collector".to_owned(), name: collector, ..ObjectId::default() };
        Some(Problem {
            object,
            severity: Severity::Warning,
            reason: "collector-fails",
            field: String::new(),
            message: format!("takes no spans: {why}; as many as otel-max-queuesize says wait"),
            fix:
                "look whether it listens for OTLP over gRPC there (otlp-collector-host, otlp-collector-port)"
                    .to_owned(),
        })
    }

    /// What became of spans.
    pub fn metrics(&self) -> Vec<Metric> {
        let counts = self.queue.counts();
        let lost = Lost::ALL.into_iter().zip(counts.lost);
        let sample = |labels, value: u64| Sample { suffix: "", labels, value: value as f64 };
        let lost = lost.map(|(lost, count)| sample(vec![("reason", lost.as_str().to_owned())], count));
        vec![
            Metric {
                name: "penstock_export_spans_total",
                help: "Spans of traced requests that a collector took.",
                kind: MetricKind::Counter,
                samples: vec![sample(Vec::new(), counts.taken)],
            },
            Metric {
                name: "penstock_export_dropped_spans_total",
                help: "Spans of traced requests that no collector took, by reason.",
                kind: MetricKind::Counter,
                samples: lost.collect(),
            },
            Metric {
                name: "penstock_export_waiting_spans",
                help: "Spans of traced requests that wait to be sent.",
                kind: MetricKind::Gauge,
                samples: vec![sample(Vec::new(), counts.waiting)],
            },
        ]
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Whoever sends, with the connection it has.
struct Sender {
    queue: Arc<Queue>,
    client: Option<Client>,
    trouble: watch::Sender<Option<Trouble>>,
    backoff: Backoff,
}

async fn run(
    mut sender: Sender,
    mut desired: watch::Receiver<Arc<L7>>,
    mut ends: mpsc::Receiver<oneshot::Sender<()>>,
) {
    let mut collector = desired.borrow_and_update().collector.clone();
    let mut batch = None;
    // When the next batch is due: a failed one after a pause, a new one when spans have waited for long enough.
    let mut due = None;
    loop {
        let waits = due.is_some();
        let queue = Arc::clone(&sender.queue);
        tokio::select! {
            () = queue.stirred(), if !waits => {
                due = collector.as_ref().map(|collector| Instant::now() + collector.delay);
            }
            () = queue.filled(), if batch.is_none() => due = Some(Instant::now()),
            () = at(due) => {
                due = None;
                let Some(collector) = &collector else { continue };
                due = sender.send_one(collector, &mut batch).await;
            }
            changed = desired.changed() => {
                if changed.is_err() {
                    return;
                }
                let now = desired.borrow_and_update().collector.clone();
                if now != collector {
                    sender.change(now.as_deref());
                    collector = now;
                    if collector.is_none() {
                        // Whoever comes some time later has no business with them.
                        sender.queue.clear();
                        let left = batch.take().map_or(0, |batch: Batch| batch.spans.len());
                        sender.queue.lose(Lost::Ended, left);
                    }
                    due = (batch.is_some() || sender.queue.waiting() > 0).then(Instant::now);
                }
            }
            Some(done) = ends.recv() => {
                if let Some(collector) = &collector {
                    sender.send_last(collector, batch.take()).await;
                }
                let _ = done.send(());
                return;
            }
        }
    }
}

/// Between attempts: a collector that comes back is found within half a minute.
fn pauses() -> Backoff {
    Backoff::between(Duration::from_millis(500), Duration::from_secs(30))
}

/// Never, where there is no time.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// Spans that are sent together.
struct Batch {
    spans: Vec<Span>,
    tries: u32,
}

impl Sender {
    /// Another collector, or none, from now on.
    fn change(&mut self, collector: Option<&Collector>) {
        self.queue.set(collector);
        (self.client, self.backoff) = (None, pauses());
        self.trouble.send_replace(None);
    }

    /// Sends one batch; says when the next one is due, or the same again where it failed.
    async fn send_one(&mut self, collector: &Collector, batch: &mut Option<Batch>) -> Option<Instant> {
        let spans = || self.queue.take(collector.batch, BATCH_BYTES);
        let mut now = batch.take().or_else(|| spans().map(|spans| Batch { spans, tries: 0 }))?;
        if let Err(failure) = self.send(collector, &now.spans).await {
            now.tries += u32::from(failure.was_heard());
            if now.tries < TRIES && failure.may_pass() {
                *batch = Some(now);
                return Some(Instant::now() + self.backoff.next());
            }
            self.queue.lose(failure.lost(), now.spans.len());
        }
        match self.queue.waiting() {
            0 => None,
            waiting if waiting >= collector.batch => Some(Instant::now()),
            _ => Some(Instant::now() + collector.delay),
        }
    }

    /// Sends what waits, each batch once.
    async fn send_last(&mut self, collector: &Collector, batch: Option<Batch>) {
        let mut next = batch.map(|batch| batch.spans);
        while let Some(spans) = next.take().or_else(|| self.queue.take(collector.batch, BATCH_BYTES)) {
            if self.send(collector, &spans).await.is_err() {
                self.queue.lose(Lost::Ended, spans.len());
            }
        }
    }

    async fn send(&mut self, collector: &Collector, spans: &[Span]) -> Result<(), Failure> {
        let message = otlp::message(&collector.service, spans);
        let outcome = self.call(collector, message).await;
        match &outcome {
            Ok(refused) => {
                let refused = usize::try_from(*refused).unwrap_or(0).min(spans.len());
                self.queue.took(spans.len() - refused);
                self.queue.lose(Lost::Refused, refused);
                self.backoff = pauses();
                if self.trouble.send_replace(None).is_some() {
                    tracing::info!(collector = %address(collector), "the collector takes spans again");
                }
            }
            Err(failure) => {
                let why = failure.to_string();
                let trouble = Trouble { collector: address(collector), why: why.clone() };
                // Each failure after the first says what is known.
                if self.trouble.send_replace(Some(trouble)).is_none() {
                    tracing::warn!(collector = %address(collector), why, "the collector takes no spans");
                }
            }
        }
        outcome.map(drop)
    }

    /// Sends a message; how many of its spans were refused. A connection that was used before may have ended
    /// meanwhile, which is no failure.
    async fn call(&mut self, collector: &Collector, message: Vec<u8>) -> Result<u64, Failure> {
        let message = bytes::Bytes::from(message);
        if let Some(client) = self.client.take() {
            match self.over(client, message.clone()).await {
                Err(Failure::Http2(_)) => {}
                outcome => return outcome,
            }
        }
        let client = Client::connect(&collector.host, collector.port).await?;
        self.over(client, message).await
    }

    async fn over(&mut self, mut client: Client, message: bytes::Bytes) -> Result<u64, Failure> {
        let outcome = client.export(message).await;
        if !matches!(outcome, Err(Failure::Http2(_) | Failure::Late)) {
            self.client = Some(client);
        }
        outcome
    }
}

fn address(collector: &Collector) -> String {
    let Collector { host, port, .. } = collector;
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

//! An agent that serves: what its successor may want, who may come in, and its two ends.

use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tracing::{debug, info, warn};

use super::desired::Desired;
use super::endpoint::Endpoint;
use super::live::LiveAgent;
use super::successor::{self, Outcome};
use super::{StartError, start_datapath, stop_datapath};
use crate::config::Config;
use crate::drain::Signals;
use crate::takeover::{Listener, Successor, Visit};
use crate::{datapath, l7, takeover};

/// Longest wait for the first word of who connects.
const FIRST_WORD: Duration = Duration::from_secs(5);
/// How long the last spans may take where nothing is left of the deadline, and where much is.
const LAST_SPANS: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(5)];
/// How long announced VIPs stay for requests that run when nobody new is let in: a client that was not tries again after
/// a second.
const LAST_REQUESTS: Duration = Duration::from_millis(900);
/// Pause after a visitor that could not be let in.
const TURNED_AWAY: Duration = Duration::from_millis(100);

/// An agent that serves: what its successor may want.
pub(super) struct Running {
    pub(super) config: Config,
    pub(super) desired: Desired,
    pub(super) proxy: Arc<l7::Running>,
    pub(super) live: Arc<LiveAgent>,
    pub(super) admin: Endpoint,
    /// Takeovers that led to it.
    pub(super) takeovers: u64,
    /// It is told to end.
    pub(super) ending: watch::Sender<bool>,
    pub(super) visits: mpsc::Sender<Successor>,
    /// Accepts successors.
    pub(super) listener: Mutex<Option<JoinHandle<()>>>,
}

impl Running {
    /// The kernel part anew, over what stands in the kernel.
    pub(super) async fn start_datapath(&self) -> Result<Option<Arc<datapath::Handle>>, StartError> {
        let listeners = self.proxy.listeners().map_err(StartError::Runtime)?;
        start_datapath(&self.config, &self.desired, &listeners).await
    }

    /// How long what runs may go on once this agent is to end.
    pub(super) fn deadline(&self) -> Duration {
        self.config.drain.unwrap_or_else(|| self.desired.l7.borrow().edge.shutdown)
    }

    /// Lets successors in from now on, at the socket that `bind` makes in the run directory.
    pub(super) fn accept_successors(&self, bind: impl Fn(&Path) -> Result<Listener, takeover::Error>) {
        let listener = match bind(&self.config.run_dir) {
            Ok(listener) => listener,
            Err(error) => {
                let fix = "name a directory of this user by --run-dir";
                return warn!(%error, fix, "no agent can take over from this one without a loss");
            }
        };
        let (visits, proxy, ending) = (self.visits.clone(), Arc::clone(&self.proxy), self.ending.subscribe());
        let answering = tokio::spawn(async move {
            loop {
                match listener.accept().await {
                    Ok(link) => {
                        drop(tokio::spawn(hear(link, visits.clone(), Arc::clone(&proxy), ending.clone())));
                    }
                    Err(error) => {
                        warn!(%error, "a visitor is turned away");
                        tokio::time::sleep(TURNED_AWAY).await;
                    }
                }
            }
        });
        let before = self.listener.lock().unwrap_or_else(PoisonError::into_inner).replace(answering);
        before.iter().for_each(JoinHandle::abort);
    }

    fn refuse_successors(&self) {
        let answering = self.listener.lock().unwrap_or_else(PoisonError::into_inner).take();
        answering.iter().for_each(JoinHandle::abort);
    }

    /// Sends the spans that wait, once every request has left its own. Who is told to stop at once, before or meanwhile, lets them be.
    async fn export_last(&self, began: Instant, at_once: bool, signals: &mut Signals) {
        let [least, most] = LAST_SPANS;
        let left = self.deadline().saturating_sub(began.elapsed());
        let exporter = self.live.exporter();
        if !at_once {
            tokio::select! {
                () = exporter.end(left.clamp(least, most)) => return,
                signal = signals.end() => warn!(signal, "stopped at once, the last spans are lost"),
            }
        }
        exporter.end(Duration::ZERO).await;
    }

    /// Ends after a successor took over: its connections may take their time.
    pub(super) async fn retire(&self, signals: &mut Signals) {
        let (deadline, began) = (self.deadline(), Instant::now());
        info!(seconds = deadline.as_secs(), "a successor serves, the last connections may end");
        self.refuse_successors();
        let mut retired = std::pin::pin!(self.proxy.retire(deadline));
        let at_once = loop {
            tokio::select! {
                all_ended = &mut retired => {
                    tell_drained(all_ended, deadline);
                    break false;
                }
                // To its end: what was taken from the workers is nowhere else.
                () = tokio::time::sleep(successor::DELIVERY) => successor::deliver_once(self).await,
                signal = signals.end() => break cut_off(signal),
            }
        };
        // So that what is cut off is among the counts of the last delivery.
        self.proxy.cut_off().await;
        successor::deliver_once(self).await;
        self.proxy.stop().await;
        self.export_last(began, at_once, signals).await;
        // Where the successor did not want it.
        stop_datapath(self.live.replace_datapath(None).as_deref()).await;
    }

    /// Ends because it is told to. `meeting`: with a successor that does not serve alone yet.
    pub(super) async fn drain(&self, meeting: Option<JoinHandle<Outcome>>, signals: &mut Signals) {
        self.ending.send_replace(true);
        let began = Instant::now();
        let Config { shutdown_grace, post_shutdown_grace, .. } = self.config;
        let in_order = async {
            if let Some(meeting) = meeting {
                let _ = meeting.await;
            }
            if self.live.announcer().is_any() {
                self.proxy.take_leave();
            }
            tokio::time::sleep(shutdown_grace).await;
            let deadline = self.deadline();
            let drained = std::pin::pin!(self.proxy.drain(deadline));
            tell_drained(self.leave_links(drained).await, deadline);
            tokio::time::sleep(post_shutdown_grace).await;
        };
        let at_once = tokio::select! {
            () = in_order => false,
            signal = signals.end() => cut_off(signal),
        };
        self.live.announcer().leave().await;
        self.refuse_successors();
        self.proxy.stop().await;
        self.export_last(began, at_once, signals).await;
        stop_datapath(self.live.replace_datapath(None).as_deref()).await;
        self.admin.stop().await;
    }

    /// Leaves announced VIPs to others, once what the proxy had to do for them is done, as far as that is soon: the
    /// others can but hand back what is for its connections, and new ones wait meanwhile. Flows that the kernel
    /// balances go on there.
    async fn leave_links(&self, mut drained: Pin<&mut impl Future<Output = bool>>) -> bool {
        let soon = tokio::time::timeout(LAST_REQUESTS, &mut drained).await;
        self.live.announcer().leave().await;
        self.proxy.refuse();
        match soon {
            Ok(all_ended) => all_ended,
            Err(_) => drained.await,
        }
    }
}

/// Hears out who connected.
async fn hear(
    link: takeover::Link,
    visits: mpsc::Sender<Successor>,
    proxy: Arc<l7::Running>,
    ending: watch::Receiver<bool>,
) {
    let peer = link.peer();
    match tokio::time::timeout(FIRST_WORD, takeover::hear(link)).await {
        Ok(Ok(Visit::Counted(mut counted))) => {
            proxy.add_counts(std::mem::take(&mut counted.counts)).await;
            let _ = counted.note().await;
        }
        // Nobody asks for visits any more.
        Ok(Ok(Visit::Successor(mut successor))) if *ending.borrow() => {
            let _ = successor.refuse("it is ending; start again once it has".to_owned()).await;
        }
        Ok(Ok(Visit::Successor(successor))) => {
            if let Err(
                mpsc::error::TrySendError::Full(mut successor)
                | mpsc::error::TrySendError::Closed(mut successor),
            ) = visits.try_send(successor)
            {
                let _ = successor.refuse("another one is taking over".to_owned()).await;
            }
        }
        // Somebody who only looks whether an agent is there.
        Ok(Err(takeover::Error::Ended)) => {}
        Ok(Err(error)) => warn!(pid = peer.pid, %error, "a visitor is turned away"),
        Err(_) => debug!(pid = peer.pid, "a visitor said nothing"),
    }
}

/// A second signal: nothing is waited for any more.
fn cut_off(signal: &str) -> bool {
    warn!(signal, "stopped at once, running requests are cut off");
    true
}

/// `deadline`: what there was time for.
fn tell_drained(all_ended: bool, deadline: Duration) {
    if all_ended {
        info!("drained");
    } else {
        warn!(seconds = deadline.as_secs(), "what still runs after so long is cut off (--drain-seconds)");
    }
}

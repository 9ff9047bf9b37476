//! Answers for VIPs on the links of this node: of all agents on a link, one holds each address.
//!
//! Members are known by heartbeats on the link itself, because that is what it is about: an agent that the others
//! cannot hear there is of no use to who asks there, whatever an API server knows of it. `segment` decides, purely;
//! `link` has the sockets. Each link has a thread of its own, so that nothing else delays a heartbeat.

mod election;
mod formers;
mod frame;
mod fuzz;
mod groups;
mod heartbeat;
mod link;
mod rivals;
mod segment;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::model::announce::{Announced, Rival, mac_text};
use crate::model::l4::{InForce, L4};
use crate::model::report::{Metric, MetricKind, Sample};

pub use fuzz::fuzz;
use link::Link;
use segment::{Coming, Segment};

/// Milliseconds after which time passes without a frame, too.
const TICK: u8 = 100;
/// How often the addresses of our own interface are looked at.
const LOOK: Duration = Duration::from_secs(2);
/// Pause before a link that failed is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Where and as whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Interfaces, by name.
    pub interfaces: Vec<String>,
    /// Our name among the agents: that of the node.
    pub node: String,
    /// Known to all agents that share addresses.
    pub key: Option<[u8; 16]>,
    /// An agent of this node is there until now.
    pub succeeds: bool,
    /// How long an agent that is told to end goes on with its connections: ours, and so the others'.
    pub drain: Duration,
}

/// Hears what is about to be in force on a link, before the link does.
pub type Ahead = Arc<dyn Fn(&Announced) + Send + Sync>;

/// How it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// Others take over at once.
    Leave,
    /// Another agent of this node goes on.
    Hush,
}

/// What announces for as long as it lives.
pub struct Handle {
    links: Vec<(Arc<Counts>, watch::Receiver<Arc<Announced>>)>,
    end: watch::Sender<Option<End>>,
    threads: Mutex<Vec<thread::JoinHandle<()>>>,
}

#[derive(Debug, Default)]
struct Counts {
    changes: AtomicU64,
    answers: AtomicU64,
    unanswered: AtomicU64,
}

/// Begins to announce what is desired, as far as the kernel has it.
pub fn start(
    options: &Options,
    desired: &watch::Receiver<Arc<L4>>,
    in_force: &watch::Receiver<Arc<InForce>>,
    ahead: &Ahead,
) -> io::Result<Handle> {
    let end = watch::Sender::new(None);
    let (mut links, mut threads) = (Vec::new(), Vec::new());
    for interface in &options.interfaces {
        let none =
            Announced { interface: interface.clone(), own: options.node.clone(), ..Announced::default() };
        let (told, announced) = watch::channel(Arc::new(none));
        let counts = Arc::new(Counts::default());
        links.push((Arc::clone(&counts), announced));
        let speaker = Speaker {
            interface: interface.clone(),
            options: options.clone(),
            desired: desired.clone(),
            in_force: in_force.clone(),
            end: end.subscribe(),
            told,
            ahead: Arc::clone(ahead),
            counts,
        };
        let named = thread::Builder::new().name("penstock-announce".to_owned());
        threads.push(named.spawn(move || speaker.run())?);
    }
    Ok(Handle { links, end, threads: Mutex::new(threads) })
}

impl Handle {
    /// Who holds what, on each link.
    pub fn announced(&self) -> Vec<Arc<Announced>> {
        self.links.iter().map(|(_, announced)| Arc::clone(&announced.borrow())).collect()
    }

    /// Tells the others that they are to take over, and ends.
    pub async fn leave(&self) {
        self.stop(End::Leave).await;
    }

    /// Ends without a word: another agent of this node goes on.
    pub async fn hush(&self) {
        self.stop(End::Hush).await;
    }

    async fn stop(&self, end: End) {
        self.end.send_replace(Some(end));
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        let join = move || threads.into_iter().for_each(|thread| drop(thread.join()));
        let _ = tokio::task::spawn_blocking(join).await;
    }

    /// For `/metrics`.
    pub fn metrics(&self) -> Vec<Metric> {
        let announced = self.announced();
        let label = |of: &Announced| vec![("interface", of.interface.clone())];
        let of_state = |value: fn(&Announced) -> usize| {
            let samples =
                announced.iter().map(|of| Sample { suffix: "", labels: label(of), value: value(of) as f64 });
            samples.collect()
        };
        let of_counts = |value: fn(&Counts) -> &AtomicU64| {
            let counted = self.links.iter().zip(&announced).map(|((counts, _), of)| Sample {
                suffix: "",
                labels: label(of),
                value: value(counts).load(Ordering::Relaxed) as f64,
            });
            counted.collect()
        };
        vec![
            Metric {
                name: "penstock_announced_vips",
                help: "Addresses that this agent holds on a link.",
                kind: MetricKind::Gauge,
                samples: of_state(|of| of.held().count()),
            },
            Metric {
                name: "penstock_announce_members",
                help: "Agents on a link, this one too.",
                kind: MetricKind::Gauge,
                samples: of_state(|of| of.members.len()),
            },
            Metric {
                name: "penstock_announce_changes_total",
                help: "Addresses that this agent began or ceased to hold.",
                kind: MetricKind::Counter,
                samples: of_counts(|counts| &counts.changes),
            },
            Metric {
                name: "penstock_announce_answers_total",
                help: "Questions whose an address is that were answered.",
                kind: MetricKind::Counter,
                samples: of_counts(|counts| &counts.answers),
            },
            Metric {
                name: "penstock_announce_unanswered_total",
                help: "Such questions that were too many a second.",
                kind: MetricKind::Counter,
                samples: of_counts(|counts| &counts.unanswered),
            },
        ]
    }
}

/// What looks after one link.
struct Speaker {
    interface: String,
    options: Options,
    desired: watch::Receiver<Arc<L4>>,
    in_force: watch::Receiver<Arc<InForce>>,
    end: watch::Receiver<Option<End>>,
    told: watch::Sender<Arc<Announced>>,
    ahead: Ahead,
    counts: Arc<Counts>,
}

impl Speaker {
    /// Until the end, however often the link fails.
    fn run(mut self) {
        let mut trouble: Option<String> = None;
        loop {
            let failed = match Link::open(&self.interface) {
                Ok(link) => {
                    if trouble.take().is_some() {
                        info!(interface = self.interface, "announced again");
                    }
                    match self.serve(link) {
                        Ok(()) => return,
                        Err(error) => error,
                    }
                }
                Err(error) => error,
            };
            let text = failed.to_string();
            if trouble.as_ref() != Some(&text) {
                let fix = match failed.kind() {
                    io::ErrorKind::PermissionDenied => "CAP_NET_RAW is needed",
                    // The family that a unit's RestrictAddressFamilies leaves out.
                    _ if failed.raw_os_error() == Some(Errno::EAFNOSUPPORT as i32) => {
                        "AF_PACKET is needed (RestrictAddressFamilies of the unit)"
                    }
                    _ => "",
                };
                warn!(
                    interface = self.interface,
                    error = text,
                    fix,
                    "nothing is announced there for the moment"
                );
            }
            let nothing = Announced {
                interface: self.interface.clone(),
                own: self.options.node.clone(),
                trouble: Some(text.clone()),
                ..Announced::default()
            };
            (self.ahead)(&nothing);
            self.told.send_replace(Arc::new(nothing));
            trouble = Some(text);
            if self.is_over() {
                return;
            }
            thread::sleep(RETRY);
        }
    }

    fn is_over(&self) -> bool {
        self.end.borrow().is_some() || self.end.has_changed().is_err()
    }

    fn serve(&mut self, mut link: Link) -> io::Result<()> {
        // Who lost the link was no member for a while.
        let succeeds = std::mem::take(&mut self.options.succeeds);
        let coming = if succeeds { Coming::Succeeding } else { Coming::Anew };
        let key = heartbeat::key(self.options.key);
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros() as u64;
        let now = (Instant::now(), wall);
        let (node, drain) = (self.options.node.clone(), self.options.drain);
        let mut segment = Segment::new(node, link.mac, key, coming, drain, now);
        let (mut looked, mut before) = (None::<Instant>, segment.counted);
        let (mut owned, mut offers) = (BTreeSet::new(), BTreeMap::new());
        // The first look finds it changed.
        self.desired.mark_changed();
        while !self.is_over() {
            let mut answers = Vec::new();
            link.receive(TICK, |frame| answers.extend(segment.heard(frame, Instant::now())))?;
            let mut wishes = false;
            let is_news = self.desired.has_changed().is_ok_and(|changed| changed);
            if is_news || self.in_force.has_changed().is_ok_and(|changed| changed) {
                let desired = self.desired.borrow_and_update();
                offers = self.in_force.borrow_and_update().offers(&desired);
                segment.knows(&desired.nodes);
                segment.keep_to_us(desired.shortcuts());
                wishes = true;
            }
            if looked.is_none_or(|looked| looked.elapsed() >= LOOK) {
                looked = Some(Instant::now());
                link.is_as_opened(&self.interface)?;
                owned = link::addresses(&self.interface);
                wishes = true;
            }
            if wishes && segment.wish(&offers, owned.clone(), Instant::now()) {
                link.join(segment.offers());
            }
            let due = segment.tick(Instant::now());
            // Before the link hears of it: what comes then should find where to go.
            if std::mem::take(&mut segment.is_news) {
                self.tell(segment.announced(&self.interface));
            }
            for frame in answers.iter().chain(&due) {
                link.send(frame)?;
            }
            self.count(&mut before, segment.counted);
        }
        if *self.end.borrow() == Some(End::Leave) {
            link.send(&segment.leave(Instant::now()))?;
            // Who holds nothing sends nobody anything.
            self.tell(segment.announced(&self.interface));
        }
        Ok(())
    }

    fn tell(&self, now: Announced) {
        if **self.told.borrow() != now {
            (self.ahead)(&now);
        }
        self.told.send_if_modified(|known| {
            let differs = **known != now;
            if differs {
                if known.members != now.members || !known.held().eq(now.held()) {
                    let (members, held) = (now.members.join(" "), now.held().count());
                    info!(interface = now.interface, members, held, "addresses shared out");
                }
                now.rivals_since(known).for_each(|rival| warn_of(&now.interface, &rival));
                *known = Arc::new(now);
            }
            differs
        });
    }

    fn count(&self, before: &mut segment::Counted, now: segment::Counted) {
        let add = |counter: &AtomicU64, now: u64, before: u64| {
            counter.fetch_add(now.saturating_sub(before), Ordering::Relaxed);
        };
        add(&self.counts.changes, now.changes, before.changes);
        add(&self.counts.answers, now.answers, before.answers);
        add(&self.counts.unanswered, now.unanswered, before.unanswered);
        *before = now;
    }
}

/// Tells what is new of a host; what it all answers for `status` says.
fn warn_of(interface: &str, rival: &Rival) {
    let fix = "see `penstock status`";
    match rival {
        Rival::Answers { mac, vip } => {
            let mac = mac_text(*mac);
            warn!(interface, mac, %vip, fix, "another host answers for VIPs that are held here");
        }
        Rival::Namesake { mac } => {
            let mac = mac_text(*mac);
            warn!(interface, mac, fix, "another host announces by the name of this agent");
        }
    }
}

//! Drives the engine: desired state and network changes in, tables and local routes out.

mod background;
mod shared;
mod told;
mod upkeep;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::{Duration, Instant};

use imbl::OrdSet;
use imbl::ordset::DiffItem;
use lb_common::nat::Timeouts;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinError;
use tokio::time::MissedTickBehavior;
use tracing::{info, warn};

use super::choice::Choice;
use super::devices::Devices;
use super::engine::{self, Config, Engine, Start};
use super::exhaustion::Exhaustion;
use super::held::Held;
use super::kernel::{Attached, Look, Translated};
use super::mmap;
use super::network::{Change, Netlink, View};
use super::pins::Pins;
use super::problems::{not_adopted, not_installed, not_pinned, not_taken_over};
use super::want::{self, Destinations, Join, Owner, Target};
use super::{Attach, Error, OnExit, Options, Stop};
use crate::model::Problem;
use crate::model::l4::{InForce, L4};
use background::Background;
pub use shared::Shared;
use told::tell_new;
use upkeep::Upkeep;

/// Changes of the network come in bursts; this long is waited for the rest of one, and as long as
/// the last change took, so that a storm of costly ones leaves half the time for everything else.
const BURST: Duration = Duration::from_millis(10);
const LONGEST_BURST: Duration = Duration::from_millis(250);
/// Wishes that follow closely are gathered: after one that took a millisecond, nine are waited for more,
/// so that a storm of them takes a tenth of a core; but no longer than nobody notices. The first is
/// carried out at once.
const REST: u32 = 9;
const LONGEST_REST: Duration = Duration::from_millis(25);
/// Half a round of verifying neighbours: as long as one has to answer.
const TICK: Duration = Duration::from_millis(200);
/// Ticks between sweeps of the NAT tables, and before what failed is tried again.
const SWEEP_TICKS: u32 = 25;
const RETRY_TICKS: u32 = 5;
/// Those between sweeps that also look for what flows left behind.
const REMAINS_TICKS: u32 = 12 * SWEEP_TICKS;
/// Ticks between looks at the slots that have not settled: a sixtieth of the grace time, which they outlast by as much at
/// most, but a second at least and five at most. After a storm there are hundreds of thousands.
const SETTLE_TICKS: RangeInclusive<u128> = 5..=25;
/// Ticks between looks at what others may have undone.
const UPKEEP_TICKS: u32 = 5;

/// The task behind a handle.
pub struct Worker {
    shared: Arc<Shared>,
    netlink: Netlink,
    desired: watch::Receiver<Arc<L4>>,
    /// Who sends packets here hears by that when it may.
    in_force: watch::Sender<Arc<InForce>>,
    /// The desired state that is installed: as it was wished, and as it became.
    installed: Option<(Arc<L4>, Arc<L4>)>,
    /// It has to be applied once more: some of it found no memory, which is free now.
    once_more: bool,
    /// What of an agent before us goes on without being wished for.
    held: Held,
    /// UDP port of the tunnel; 0: none.
    tunnel_port: u16,
    /// Where the packets of the wished backends go.
    destinations: Destinations,
    /// Addresses that the way to is kept known of: those, and where flows still go.
    followed: OrdSet<IpAddr>,
    /// Wish and network as they were joined last.
    join: Join,
    choice: Choice,
    attach: Attach,
    on_exit: OnExit,
    nat_ports: (u16, u16),
    settle_ticks: u32,
    /// Interfaces that the program is attached to, by index: one that is made anew under an old
    /// name has a new index.
    attached: BTreeMap<u32, (String, Attached)>,
    devices: Devices,
    /// Problems of the start, which last.
    lasting: Vec<Problem>,
    /// Problems of the last update.
    problems: Vec<Problem>,
    upkeep: Upkeep,
    /// Looks through the translated flows: half a second where there are many, and more under a flood.
    sweep: Background<Result<Translated, Error>>,
    exhaustion: Exhaustion,
}

/// Loads, attaches and installs the first state, so that the caller knows it works.
pub async fn start(
    options: Options,
    desired: watch::Receiver<Arc<L4>>,
    in_force: watch::Sender<Arc<InForce>>,
) -> Result<(Arc<Shared>, Worker), Error> {
    let Options {
        interfaces,
        wait_interfaces,
        attach,
        hash_key,
        nat_ports,
        flow_entries,
        grace,
        tunnel_port,
        pin,
        on_exit,
    } = options;
    if nat_ports.0 == 0 || nat_ports.1 < nat_ports.0 {
        return Err(Error::NatPorts(nat_ports.0, nat_ports.1));
    }
    check_nat_ports(nat_ports);
    let mut netlink = Netlink::open()?;
    netlink.refresh(|_| false).await?;
    let mut choice = Choice::new(interfaces);
    choose_defaults(&mut choice, &netlink).await?;
    if !wait_interfaces && matches!(choice, Choice::Named(_)) {
        require_one(&choice, netlink.view())?;
    }
    let key = match hash_key {
        Some(key) => key,
        None => random_key()?,
    };
    let flow_bits = flow_entries.max(1).next_power_of_two().trailing_zeros() as u8;
    let settle_ticks = settle_ticks(grace);
    let grace = lb_common::flows::clock(u64::try_from(grace.as_nanos()).unwrap_or(u64::MAX));
    let grace = u16::try_from(grace).unwrap_or(u16::MAX);
    let config = Config { hash_key: key, nat_ports, flow_bits, tunnel_port, grace };
    let mut lasting = Vec::new();
    let mut succeeds = false;
    let engine = match pin.map(|bpffs| Pins::open(&bpffs)) {
        Some(Ok(pins)) => {
            succeeds = !pins.links().is_empty();
            Engine::take_over(config, hash_key, pins)?
        }
        Some(Err(Error::Running)) => return Err(Error::Running),
        Some(Err(error)) => {
            lasting.push(not_pinned(&error));
            Engine::load(config)?
        }
        None => Engine::load(config)?,
    };
    for ifindex in engine.kernel.interfaces_before() {
        // A default route that is away for the moment must not cost the flows of its interface.
        if let Some(interface) = netlink.view().interfaces.get(&ifindex) {
            choice.keep(interface.name.clone());
        }
    }
    if !wait_interfaces {
        require_one(&choice, netlink.view())?;
    }
    let nat_ports = engine.nat_ports();
    let Start { adopted, told } = engine.start().clone();
    if adopted {
        info!(seconds = engine.tables_age(), "the tables of the agent before this one are taken over");
    }
    lasting.extend(told.into_iter().map(not_taken_over));
    let shared = Arc::new(Shared::new(engine));
    let mut worker = Worker {
        shared: Arc::clone(&shared),
        netlink,
        desired,
        in_force,
        installed: None,
        once_more: false,
        destinations: Destinations::default(),
        followed: OrdSet::new(),
        join: Join::default(),
        held: Held::default(),
        tunnel_port,
        choice,
        attach,
        nat_ports,
        settle_ticks,
        attached: BTreeMap::new(),
        devices: Devices::default(),
        on_exit,
        lasting,
        problems: Vec::new(),
        upkeep: Upkeep::default(),
        sweep: Background::default(),
        exhaustion: Exhaustion::default(),
    };
    if let Err(error) = worker.netlink.adopt_local_routes().await {
        worker.lasting.push(not_adopted(&error));
    }
    if let Err(error) = worker.install().await {
        // What the agent before us left goes on as it was, as far as we have not got.
        if !succeeds {
            worker.detach().await;
        }
        return Err(error);
    }
    worker.end_succession();
    worker.publish();
    Ok((shared, worker))
}

/// Adds the interfaces of default routes where none is named; tells whether there are new ones.
async fn choose_defaults(choice: &mut Choice, netlink: &Netlink) -> Result<bool, Error> {
    let Choice::Default(chosen) = choice else { return Ok(false) };
    let before = chosen.len();
    chosen.extend(netlink.default_interfaces().await?);
    Ok(chosen.len() > before)
}

fn require_one(choice: &Choice, view: &View) -> Result<(), Error> {
    if view.interfaces.values().any(|interface| choice.covers(interface)) {
        return Ok(());
    }
    let Choice::Named(names) = choice else { return Err(Error::NoInterface) };
    let known: Vec<&str> = view.interfaces.values().map(|interface| interface.name.as_str()).collect();
    Err(Error::UnknownInterface { name: names.join(", "), known: known.join(", ") })
}

impl Worker {
    /// Tables first: a packet that meets the program finds the VIPs in place.
    async fn install(&mut self) -> Result<(), Error> {
        let wish = Arc::clone(&self.desired.borrow());
        if wish.unread {
            let Self { netlink, choice, .. } = self;
            netlink.refresh(|interface| choice.covers(interface)).await?;
            let (want, _) = want::join(&wish, &netlink.view().network);
            self.held = self.shared.engine().left_over(&want);
        }
        self.update().await?;
        self.shared.engine().kernel.attach_lookup()?;
        self.attach_all()
    }

    /// Removes what an agent before us left and we did not take over.
    fn end_succession(&self) {
        let mut engine = self.shared.engine();
        engine.kernel.end_succession();
        // One that pins nothing has no namespace to itself.
        if engine.kernel.is_pinned() {
            let interfaces = self.netlink.view().interfaces.iter();
            engine.kernel.remove_old_filters(interfaces.map(|(ifindex, one)| (*ifindex, one.name.as_str())));
        }
    }

    /// Removes everything. Without the program the host would swallow what the routes bring.
    async fn detach(&mut self) {
        self.netlink.set_local_routes(&BTreeSet::new()).await;
        self.shared.engine().kernel.detach();
        self.shared.lock_interfaces().clear();
    }

    /// Runs until told to stop, then does what was chosen for the exit.
    pub async fn run(mut self, mut stop: oneshot::Receiver<Stop>) {
        let mut tick = tokio::time::interval(TICK);
        // After a long update the neighbours still get their time to answer.
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut ticks = 0u32;
        let mut failed = false;
        let mut burst = BURST;
        let mut rested = Instant::now();
        let how = loop {
            tokio::select! {
                how = &mut stop => break how.unwrap_or(Stop::AsChosen),
                changed = self.desired.changed() => {
                    if changed.is_err() {
                        break Stop::AsChosen;
                    }
                    tokio::time::sleep(rested.saturating_duration_since(Instant::now())).await;
                }
                () = self.netlink.changed() => tokio::time::sleep(burst).await,
                swept = self.sweep.ended() => {
                    self.note_swept(swept);
                    continue;
                }
                _ = tick.tick() => {
                    ticks = ticks.wrapping_add(1);
                    if ticks.is_multiple_of(2) {
                        self.netlink.verify_overdue().await;
                    } else {
                        self.netlink.verify().await;
                    }
                    if ticks.is_multiple_of(self.settle_ticks) {
                        self.settle().await;
                    }
                    if ticks.is_multiple_of(UPKEEP_TICKS) {
                        self.look_after().await;
                    }
                    if ticks.is_multiple_of(SWEEP_TICKS) {
                        let is_due = ticks.is_multiple_of(REMAINS_TICKS);
                        self.begin_sweep(if is_due { Look::Remains } else { Look::Flows });
                    }
                    if !(self.once_more || failed && ticks.is_multiple_of(RETRY_TICKS)) {
                        continue;
                    }
                }
            }
            let begun = Instant::now();
            let updated = self.update().await;
            let took = begun.elapsed();
            burst = took.clamp(BURST, LONGEST_BURST);
            rested = Instant::now() + (took * REST).min(LONGEST_REST);
            failed = updated.is_err();
            match updated {
                Ok(Update::Nothing) => continue,
                Ok(Update::Installed) => {}
                Err(error) => {
                    warn!(%error, "network state not read; the old tables stay");
                    continue;
                }
            }
            // Told by the problems.
            let _ = self.attach_all();
            self.publish();
        };
        if how == Stop::LetGo {
            return;
        }
        if self.on_exit == OnExit::Keep && self.shared.engine().kernel.is_pinned() {
            info!("the kernel goes on forwarding for the next agent; `penstock detach` removes it");
            return;
        }
        self.detach().await;
    }

    /// Reads what changed of network and wish; plans and applies if that makes a difference.
    async fn update(&mut self) -> Result<Update, Error> {
        let wish = Arc::clone(&self.desired.borrow_and_update());
        let is_new = !self.installed.as_ref().is_some_and(|(installed, _)| Arc::ptr_eq(installed, &wish));
        let wished = std::mem::take(&mut self.once_more) || is_new;
        if !wish.unread {
            self.held = Held::default();
        }
        let (l4, misfits) = self.complete(&wish);
        self.follow(&l4);
        let Self { netlink, choice, .. } = self;
        let mut changed = netlink.refresh(|interface| choice.covers(interface)).await?;
        if choose_defaults(choice, netlink).await? {
            netlink.refresh(|interface| choice.covers(interface)).await?;
            changed = Change::Everything;
        }
        self.restore_local_routes().await;
        match changed {
            Change::Nothing if !wished => return Ok(Update::Nothing),
            Change::NextHops(ways) if !wished => {
                self.allow_devices();
                let shared = Arc::clone(&self.shared);
                let rerouted = tokio::task::spawn_blocking(move || shared.engine().reroute(&ways)).await;
                if let Err(error) = rerouted {
                    tracing::error!(%error, "next hops not changed; please report this");
                    // The whole plan makes up for it.
                    self.shared.engine().doubt();
                    self.installed = None;
                }
                return Ok(Update::Nothing);
            }
            _ => {}
        }
        let view = self.netlink.view();
        let (want, mut problems) = self.join.follow(&l4, &view.network, &self.destinations);
        problems.extend(misfits.into_iter().chain(self.held.problem()));
        problems.extend(want::shadowed(&want, self.nat_ports, self.tunnel_port));
        problems.extend(view.problems.iter().cloned());
        problems.extend(self.missing());
        self.allow_devices();
        let punted: BTreeSet<IpAddr> = want
            .vips
            .iter()
            .filter(|(place, target)| {
                matches!(target, Target::Punt(_)) && want.addrs.get(&place.addr) == Some(&Owner::Vip)
            })
            .map(|(place, _)| place.addr)
            .collect();
        // A VIP that has a local route shows up among nobody's addresses: it stays a VIP.
        self.netlink.set_local_routes(&punted).await;
        let shared = Arc::clone(&self.shared);
        let applied = tokio::task::spawn_blocking(move || shared.engine().apply(want)).await;
        match applied {
            Ok(unplanned) => {
                problems.extend(unplanned);
                let left_out = self.shared.engine().left_out();
                self.in_force.send_replace(Arc::new(InForce { l4: Arc::clone(&l4), left_out }));
            }
            // A panic in a pure plan: a defect of ours, which must not look like success.
            Err(error) => {
                tracing::error!(%error, "the change was not installed; please report this");
                self.shared.engine().doubt();
                problems.push(not_installed(&error));
            }
        }
        self.problems = problems;
        let followed = self.followed.clone();
        self.follow(&l4);
        let is_added = |change| matches!(change, DiffItem::Add(_));
        if followed.diff(&self.followed).any(is_added) {
            self.netlink.wake();
        }
        self.installed = Some((wish, l4));
        Ok(Update::Installed)
    }

    /// The wish with what is held, and without what the settings do not allow.
    fn complete(&self, wish: &Arc<L4>) -> (Arc<L4>, Vec<Problem>) {
        let l4 = if self.held.is_empty() { Arc::clone(wish) } else { Arc::new(self.held.beside(wish)) };
        if self.tunnel_port != 0 {
            let installed = self.installed.as_ref().map(|(_, installed)| &**installed);
            let is_heard = l4.silent.is_empty();
            return (if is_heard { l4 } else { Arc::new(want::around_silence(&l4, installed)) }, Vec::new());
        }
        let (l4, problems) = want::without_tunnel(&l4);
        (Arc::new(l4), problems)
    }

    /// Keeps the way known to the backends that are wished, and to where flows still go.
    fn follow(&mut self, l4: &L4) {
        self.destinations.follow(&l4.pools);
        let mut followed = self.destinations.all().clone();
        followed.extend(self.shared.engine().former_destinations());
        if let Some((_, installed)) = &self.installed {
            followed.extend(want::left_destinations(&installed.pools, &l4.pools));
        }
        if followed != self.followed {
            self.netlink.set_backends(&followed);
            self.followed = followed;
        }
    }

    fn allow_devices(&mut self) {
        let Self { devices, netlink, choice, shared, .. } = self;
        let allow = |ifindex, to| shared.engine().kernel.allow_device(ifindex, to);
        let forget = |ifindex| shared.engine().kernel.forget_device(ifindex);
        devices.follow(netlink.view(), choice, allow, forget);
    }

    async fn settle(&mut self) {
        let shared = Arc::clone(&self.shared);
        let settled = tokio::task::spawn_blocking(move || {
            let mut engine = shared.engine();
            engine.settle();
            engine.has_room_again()
        });
        match settled.await {
            Ok(has_room) => self.once_more |= has_room,
            Err(error) => {
                tracing::error!(%error, "slots not settled; please report this");
                self.shared.engine().doubt();
            }
        }
    }

    fn begin_sweep(&mut self, look: Look) {
        let shared = Arc::clone(&self.shared);
        self.sweep.begin(move || {
            let mut sweeper = shared.engine().kernel.sweeper()?;
            let now = engine::now();
            let swept = sweeper.sweep(now, &Timeouts::default(), look);
            mmap::wait_for_readers();
            Ok(shared.engine().note_swept(now, swept).0)
        });
    }

    fn note_swept(&mut self, swept: Result<Result<Translated, Error>, JoinError>) {
        match swept {
            Ok(Ok(live)) => *self.shared.lock_translated() = live,
            Ok(Err(error)) => warn!(%error, "translated flows not swept"),
            Err(error) => tracing::error!(%error, "translated flows not swept; please report this"),
        }
        let (verdicts, translated) = (self.shared.engine().verdicts(), self.shared.translated());
        let dropped = self.exhaustion.look(&verdicts, translated.fullest, self.nat_ports, Instant::now());
        let mut shown = self.shared.lock_dropped();
        tell_new(&dropped, &shown);
        *shown = dropped;
    }
}

/// What an update did.
enum Update {
    /// Nothing that problems or interfaces depend on.
    Nothing,
    /// The desired state was planned and applied.
    Installed,
}

fn settle_ticks(grace: Duration) -> u32 {
    let ticks = grace.as_millis() / 60 / TICK.as_millis();
    ticks.clamp(*SETTLE_TICKS.start(), *SETTLE_TICKS.end()) as u32
}

fn random_key() -> Result<[u8; 16], Error> {
    let path = "/dev/urandom";
    let mut key = [0; 16];
    std::fs::File::open(path)
        .and_then(|mut file| io::Read::read_exact(&mut file, &mut key))
        .map_err(|source| Error::System { call: "read", object: path.to_owned(), source, hint: "" })?;
    Ok(key)
}

/// Ports that the host's own connections may use must not be translated to.
fn check_nat_ports((first, last): (u16, u16)) {
    let path = "/proc/sys/net/ipv4/ip_local_port_range";
    let Ok(text) = std::fs::read_to_string(path) else { return };
    let mut ends = text.split_whitespace().filter_map(|word| word.parse::<u16>().ok());
    if let (Some(low), Some(high)) = (ends.next(), ends.next())
        && first <= high
        && low <= last
    {
        warn!(
            nat_ports = format!("{first}-{last}"),
            local_ports = format!("{low}-{high}"),
            "the SNAT ports overlap net.ipv4.ip_local_port_range: connections of this host to a \
             backend may collide with translated ones"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_looked_at_every_sixtieth_of_their_grace_time_within_bounds() {
        let seconds = |grace| settle_ticks(Duration::from_secs(grace)) as f64 * TICK.as_secs_f64();

        assert_eq!([1, 60, 180, 300, 3600].map(seconds), [1.0, 1.0, 3.0, 5.0, 5.0]);
    }
}

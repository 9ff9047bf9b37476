//! What we set in the kernel may be undone by whoever has the rights to: looks after it every second, sets it again,
//! and tells both.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use tracing::{info, warn};

use super::Worker;
use crate::datapath::Error;
use crate::datapath::backoff::Backoff;
use crate::datapath::forwarding;
use crate::datapath::interfaces::{attach, bond_ports, slot, unattached_exits, word};
use crate::datapath::kernel::{self, Ended, Seen};
use crate::datapath::network::Interface;
use crate::datapath::problems::{
    self, detached, link_down, not_answered, not_attached, not_local, not_pinned, pins_gone, silent,
};
use crate::model::Problem;

/// What is looked after, as a metric names it.
#[derive(Debug, Clone, Copy)]
pub(super) enum Part {
    /// The program on an interface.
    Xdp,
    /// The program on its way out.
    Out,
    /// The socket steering.
    Lookup,
    /// The local route of a VIP.
    Route,
    /// The names on the BPF file system.
    Pins,
}

impl Part {
    pub(super) const ALL: [Self; 5] = [Self::Xdp, Self::Out, Self::Lookup, Self::Route, Self::Pins];

    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Xdp => "xdp",
            Self::Out => "out",
            Self::Lookup => "lookup",
            Self::Route => "route",
            Self::Pins => "pins",
        }
    }
}

/// What was found undone, and when it is set again.
#[derive(Debug, Default)]
pub(super) struct Upkeep {
    attachments: Backoff,
    /// What somebody ended and is not there again.
    ended: Ended,
    /// Interfaces whose answers are not translated, and why.
    unanswered: BTreeMap<u32, Problem>,
    /// Who stands before our program on the way out of an interface: numbers, and what they are called.
    preceded: BTreeMap<u32, (Vec<u32>, String)>,
    /// What cannot be attached, and why.
    unattached: Vec<Problem>,
    /// Ports of the bonds that are chosen.
    ports: BTreeSet<u32>,
    /// Interfaces that had the program, by the name that they had then.
    names: BTreeMap<String, u32>,
    pins: Backoff,
    /// Why the kernel part is not pinned again.
    unpinned: Option<Problem>,
}

impl Upkeep {
    /// The interface that had this name when the program came to it.
    pub(super) fn known_as(&self, name: &str) -> Option<u32> {
        self.names.get(name).copied()
    }
}

impl Worker {
    /// Looks whether everything is where we put it, and puts it there again.
    pub(super) async fn look_after(&mut self) {
        let now = Instant::now();
        self.find_ended(now).await;
        if !self.is_complete() && self.upkeep.attachments.is_due(now) {
            self.upkeep.unanswered.clear();
            let attached = self.attach_all();
            if attached.is_err() || !self.is_complete() {
                self.upkeep.attachments.again(now);
            }
        }
        self.look_after_pins(now);
        self.restore_local_routes().await;
        self.publish();
    }

    fn look_after_pins(&mut self, now: Instant) {
        let mut engine = self.shared.engine();
        if let Some(path) = engine.kernel.miss_pin() {
            warn!(path = %path.display(), "somebody removed names of the kernel part; without them it ends with this agent");
            self.upkeep.pins.again(now);
            self.upkeep.unpinned = Some(pins_gone(&path));
        }
        if !engine.kernel.has_lost_pins() || !self.upkeep.pins.is_due(now) {
            return;
        }
        match engine.kernel.pin_again() {
            Ok(()) => {
                info!("the kernel part is pinned again");
                self.upkeep.unpinned = None;
                self.shared.count_restored(Part::Pins);
            }
            Err(error) => {
                self.upkeep.unpinned = Some(not_pinned(&error));
                self.upkeep.pins.again(now);
            }
        }
    }

    pub(super) async fn restore_local_routes(&mut self) {
        let restored = self.netlink.restore_local_routes().await;
        (0..restored).for_each(|_| self.shared.count_restored(Part::Route));
    }

    async fn find_ended(&mut self, now: Instant) {
        let seen = match self.look().await {
            Ok(seen) => seen,
            Err(error) => {
                tracing::debug!(%error, "attachments not looked at");
                return;
            }
        };
        let mut engine = self.shared.engine();
        let ended = engine.kernel.forget_ended(&seen);
        let preceded = engine.kernel.preceded(&seen);
        drop(engine);
        self.note_preceded(preceded);
        if ended.is_empty() {
            return;
        }
        let names =
            |interfaces: &BTreeSet<u32>| interfaces.iter().map(|one| self.name(*one)).collect::<Vec<_>>();
        let Ended { xdp, out, lookup } = &ended;
        warn!(xdp = ?names(xdp), out = ?names(out), lookup, "somebody detached programs of ours");
        self.attached.retain(|ifindex, _| !ended.xdp.contains(ifindex));
        self.show_interfaces();
        self.upkeep.ended.extend(ended);
        self.upkeep.attachments.again(now);
    }

    async fn look(&self) -> Result<Seen, Error> {
        let xdp = self.netlink.xdp_programs_on(self.attached.keys().copied().collect()).await?;
        let filtered = self.shared.engine().kernel.filtered();
        let filters = self.netlink.filters_on(filtered).await?;
        Ok(Seen { xdp, filters })
    }

    /// Asks what programs are called only where they are others than before: for that the kernel's are walked through.
    fn note_preceded(&mut self, by: BTreeMap<u32, Vec<u32>>) {
        let known = std::mem::take(&mut self.upkeep.preceded);
        let named = |(ifindex, programs): (u32, Vec<u32>)| {
            let before = known.get(&ifindex).filter(|(before, _)| *before == programs);
            let names =
                before.map_or_else(|| kernel::names(&programs).join(", "), |(_, names)| names.clone());
            (ifindex, (programs, names))
        };
        self.upkeep.preceded = by.into_iter().map(named).collect();
    }

    /// Whether every interface that is chosen has both programs, and the namespace its own.
    fn is_complete(&self) -> bool {
        let engine = self.shared.engine();
        let mut chosen = self.netlink.view().interfaces.values().filter(|one| self.choice.covers(one));
        engine.kernel.has_lookup()
            && chosen.all(|one| self.attached.contains_key(&one.ifindex) && engine.kernel.is_out(one.ifindex))
    }

    fn name(&self, ifindex: u32) -> String {
        let interface = self.netlink.view().interfaces.get(&ifindex);
        interface.map(|one| one.name.clone()).unwrap_or_default()
    }

    /// What is not as it was set, or as it has to be.
    pub(super) fn undone(&self) -> Vec<Problem> {
        let Upkeep { ended: Ended { xdp, out, lookup }, unanswered, preceded, unattached, unpinned, .. } =
            &self.upkeep;
        let known = unattached.iter().chain(unanswered.values()).chain(unpinned);
        let mut undone: Vec<Problem> = known.cloned().collect();
        undone.extend(xdp.iter().map(|one| detached(&format!("the XDP program from {}", self.name(*one)))));
        let out = out.iter().map(|one| format!("the program on the way out from {}", self.name(*one)));
        undone.extend(out.map(|what| detached(&what)));
        undone.extend(lookup.then(|| detached("the socket steering (sk_lookup) from the network namespace")));
        undone.extend(self.netlink.missing_local_routes().map(|(vip, why)| not_local(vip, why)));
        // Only those answers are its business.
        if self.join.local().next().is_some() {
            let others = preceded.iter().map(|(one, (_, names))| problems::preceded(&self.name(*one), names));
            undone.extend(others);
        }
        let view = self.netlink.view();
        let exits = unattached_exits(self.devices.exits(), &self.attached, &view.interfaces);
        undone.extend(exits.into_iter().map(problems::no_program));
        let read = |path: &str| std::fs::read_to_string(path).ok();
        undone.extend(forwarding::problems(self.join.local(), &view.network, read));
        let unheard = self.netlink.silent();
        undone
            .extend(unheard.into_iter().map(|((name, cost), (addr, count))| silent(name, cost, addr, count)));
        let chosen = view.interfaces.values().filter(|one| self.choice.covers(one));
        undone.extend(chosen.filter(|one| !one.is_running()).map(|one| link_down(&one.name, one.up)));
        undone
    }

    /// Attaches to every chosen interface that is there and not attached yet, and detaches from those that are
    /// chosen no more (renamed, for instance). One that fails does not keep the others from it;
    /// `Err`: none is attached, or one that was named plainly is not.
    pub(super) fn attach_all(&mut self) -> Result<(), Error> {
        let chosen: Vec<&Interface> =
            self.netlink.view().interfaces.values().filter(|one| self.choice.covers(one)).collect();
        let ports = bond_ports(self.netlink.view().interfaces.values(), &chosen);
        let known: Vec<&Interface> =
            chosen.iter().copied().chain(ports.iter().map(|(port, _)| *port)).collect();
        let mut engine = self.shared.engine();
        let mut gone = engine.kernel.interfaces();
        gone.extend(self.attached.keys());
        gone.retain(|index| !chosen.iter().any(|one| one.ifindex == *index));
        for ifindex in gone {
            engine.kernel.detach_from(ifindex);
            engine.tables.store_interface(slot(ifindex), 0);
            if let Some((name, _)) = self.attached.remove(&ifindex) {
                warn!(
                    interface = name,
                    ifindex, "the interface is gone or has another name; its program is detached"
                );
            }
        }
        let left = |ifindex: &u32| known.iter().all(|one| slot(one.ifindex) != slot(*ifindex));
        for ifindex in self.upkeep.ports.iter().copied().filter(left) {
            engine.tables.store_interface(slot(ifindex), 0);
        }
        self.upkeep.ports = ports.iter().map(|(port, _)| port.ifindex).collect();
        for (port, bond) in &ports {
            engine.tables.store_interface(slot(port.ifindex), word(port, Some(bond), &known));
        }
        let is_chosen = |ifindex: &u32| chosen.iter().any(|one| one.ifindex == *ifindex);
        self.upkeep.unanswered.retain(|ifindex, _| is_chosen(ifindex));
        let mut failed = Vec::new();
        for interface in &chosen {
            let Interface { name, ifindex, .. } = interface;
            self.upkeep.names.insert(name.clone(), *ifindex);
            let bridge = interface.master.filter(|_| !interface.bond_port);
            let bridge = bridge.and_then(|ifindex| self.netlink.view().interfaces.get(&ifindex));
            engine.tables.store_interface(slot(*ifindex), word(interface, bridge, &known));
            if let Some((called, _)) = self.attached.get_mut(ifindex) {
                called.clone_from(name);
            } else {
                match attach(&mut engine, interface, &self.netlink.view().interfaces, self.attach) {
                    Ok(mode) => {
                        info!(interface = name, ?mode, "xdp program attached");
                        self.attached.insert(*ifindex, (name.clone(), mode));
                    }
                    Err(error) => {
                        failed.push((self.choice.insists_on(name), error));
                        continue;
                    }
                }
            }
            if !engine.kernel.is_out(*ifindex)
                && !self.upkeep.unanswered.contains_key(ifindex)
                && let Err(error) = engine.kernel.attach_out(name, *ifindex)
            {
                self.upkeep.unanswered.insert(*ifindex, not_answered(&error));
            }
        }
        self.upkeep.unattached = failed.iter().map(|(_, error)| not_attached(error)).collect();
        if !engine.kernel.has_lookup()
            && let Err(error) = engine.kernel.attach_lookup()
        {
            self.upkeep.unattached.push(not_attached(&error));
        }
        let Ended { xdp, out, lookup } = &mut self.upkeep.ended;
        let mut restored = Vec::new();
        restored.extend(xdp.extract_if(.., |one| self.attached.contains_key(one)).map(|_| Part::Xdp));
        restored.extend(out.extract_if(.., |one| engine.kernel.is_out(*one)).map(|_| Part::Out));
        restored.extend((*lookup && engine.kernel.has_lookup()).then_some(Part::Lookup));
        *lookup &= !engine.kernel.has_lookup();
        xdp.retain(is_chosen);
        out.retain(is_chosen);
        drop(engine);
        restored.into_iter().for_each(|part| self.shared.count_restored(part));
        self.show_interfaces();
        let none = self.attached.is_empty();
        failed.into_iter().find(|(insisted, _)| *insisted || none).map_or(Ok(()), |(_, error)| Err(error))
    }

    fn show_interfaces(&self) {
        *self.shared.lock_interfaces() = self.attached.values().cloned().collect();
    }
}

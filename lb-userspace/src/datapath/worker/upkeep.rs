//! What we set in the kernel may be undone by whoever has the rights to: looks after it every second, sets it again,
//! and tells both.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use tracing::{info, warn};

use super::Worker;
use crate::datapath::Error;
use crate::datapath::backoff::Backoff;
use crate::datapath::interfaces::{attach, slot, word};
use crate::datapath::kernel::Ended;
use crate::datapath::network::Interface;
use crate::datapath::problems::{detached, not_answered, not_attached};
use crate::model::Problem;

/// What is looked after.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part {
    /// The program on an interface.
    Xdp,
    /// The program on its way out.
    Out,
    /// The socket steering.
    Lookup,
}

impl Part {
    pub(super) const ALL: [Self; 3] = [Self::Xdp, Self::Out, Self::Lookup];

    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Xdp => "xdp",
            Self::Out => "out",
            Self::Lookup => "lookup",
        }
    }
}

/// What was found undone, and when it is set again.
#[derive(Debug, Default)]
pub(super) struct Upkeep {
    attachments: Backoff,
    /// Interfaces (0: none in particular) whose attachment was ended by somebody and is not there again.
    ended: BTreeSet<(Part, u32)>,
    /// Interfaces whose answers are not translated, and why.
    unanswered: BTreeMap<u32, Problem>,
    /// Interfaces that cannot be attached to, and why.
    unattached: Vec<Problem>,
}

impl Upkeep {
    /// What is not as it should be at the moment.
    pub(super) fn problems(&self, name: impl Fn(u32) -> String) -> Vec<Problem> {
        let ended = self.ended.iter().map(|(part, ifindex)| match part {
            Part::Xdp => detached(&format!("the XDP program from interface {}", name(*ifindex))),
            Part::Out => {
                detached(&format!("the program on the way out from interface {}", name(*ifindex)))
            }
            Part::Lookup => detached("the socket steering (sk_lookup) from the network namespace"),
        });
        ended.chain(self.unattached.iter().cloned()).chain(self.unanswered.values().cloned()).collect()
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
        self.publish();
    }

    async fn find_ended(&mut self, now: Instant) {
        let interfaces = self.attached.keys().copied().collect();
        let on = match self.netlink.xdp_programs_on(interfaces).await {
            Ok(on) => on,
            Err(error) => {
                tracing::debug!(%error, "attachments not looked at");
                return;
            }
        };
        let Ended { xdp, out, lookup } = self.shared.engine().kernel.forget_ended(&on);
        let mut ended: BTreeSet<(Part, u32)> = xdp.iter().map(|ifindex| (Part::Xdp, *ifindex)).collect();
        ended.extend(out.iter().map(|ifindex| (Part::Out, *ifindex)));
        ended.extend(lookup.then_some((Part::Lookup, 0)));
        if ended.is_empty() {
            return;
        }
        for (part, ifindex) in &ended {
            let interface = self.name(*ifindex);
            warn!(interface, part = part.as_str(), "somebody detached a program; it is attached again");
        }
        self.attached.retain(|ifindex, _| !xdp.contains(ifindex));
        self.show_interfaces();
        self.upkeep.ended.extend(ended);
        self.upkeep.attachments.again(now);
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

    /// What [`Upkeep::problems`] are by now.
    pub(super) fn upkeep_problems(&self) -> Vec<Problem> {
        self.upkeep.problems(|ifindex| self.name(ifindex))
    }

    /// Attaches to every chosen interface that is there and not attached yet, and detaches from those that are
    /// chosen no more (renamed, for instance). One that fails does not keep the others from it;
    /// `Err`: none is attached, or one that was named plainly is not.
    pub(super) fn attach_all(&mut self) -> Result<(), Error> {
        let chosen: Vec<&Interface> =
            self.netlink.view().interfaces.values().filter(|one| self.choice.covers(one)).collect();
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
        let is_chosen = |ifindex: &u32| chosen.iter().any(|one| one.ifindex == *ifindex);
        self.upkeep.unanswered.retain(|ifindex, _| is_chosen(ifindex));
        let mut failed = Vec::new();
        for interface in &chosen {
            let Interface { name, ifindex, .. } = interface;
            let bridge = interface.master.filter(|_| !interface.bond_port);
            let bridge = bridge.and_then(|ifindex| self.netlink.view().interfaces.get(&ifindex));
            engine.tables.store_interface(slot(*ifindex), word(interface, bridge, &chosen));
            if let Some((known, _)) = self.attached.get_mut(ifindex) {
                known.clone_from(name);
            } else {
                match attach(&mut engine, interface, self.attach) {
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
        if self.upkeep.ended.contains(&(Part::Lookup, 0))
            && !engine.kernel.has_lookup()
            && let Err(error) = engine.kernel.attach_lookup()
        {
            self.upkeep.unattached.push(not_attached(&error));
        }
        let restored = |(part, ifindex): &(Part, u32)| match part {
            Part::Xdp => self.attached.contains_key(ifindex),
            Part::Out => engine.kernel.is_out(*ifindex),
            Part::Lookup => engine.kernel.has_lookup(),
        };
        let ended = std::mem::take(&mut self.upkeep.ended);
        let (restored, ended): (BTreeSet<_>, BTreeSet<_>) = ended.into_iter().partition(restored);
        self.upkeep.ended = ended.into_iter().filter(|(_, ifindex)| *ifindex == 0 || is_chosen(ifindex)).collect();
        drop(engine);
        restored.iter().for_each(|(part, _)| self.shared.count_restored(*part));
        self.show_interfaces();
        let none = self.attached.is_empty();
        failed.into_iter().find(|(insisted, _)| *insisted || none).map_or(Ok(()), |(_, error)| Err(error))
    }

    fn show_interfaces(&self) {
        *self.shared.lock_interfaces() = self.attached.values().cloned().collect();
    }
}

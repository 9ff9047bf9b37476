//! One link as we see it: who else is there, who of us holds which address, what is to be said and when. Pure: time
//! and frames come in, frames go out.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_lc_rs::hmac;

use super::election::{self, Bid};
use super::formers::Formers;
use super::frame::{self, Mac, Question};
use super::heartbeat::{self, Heartbeat};
use super::rivals::Rivals;
use crate::allowance::Allowance;
use crate::model::announce::Announced;

/// Between two heartbeats.
const INTERVAL: Duration = Duration::from_millis(300);
/// Who is silent for so long is gone: three heartbeats may be lost.
const SILENCE: Duration = Duration::from_millis(1200);
/// When an address is told to all, after something changed: what is lost is said again.
const BURST: [Duration; 3] = [Duration::ZERO, Duration::from_secs(1), Duration::from_secs(2)];
/// And then, for whoever forgot.
const REFRESH: Duration = Duration::from_secs(60);
/// Addresses told at a time.
const AT_ONCE: usize = 256;
/// Addresses of a node that it is asked by, at most.
const ASKED_BY: usize = 4;
/// Answers a second, and at once.
const ANSWERS: u32 = 2_000;
/// Names of members at most, with those that went lately; more are not believed.
const MEMBERS: usize = 1024;
/// Addresses that all members name together, at most: 200 agents that offer 10,000 each. What is beyond counts as not
/// heard.
const TAGS: usize = 1 << 21;
/// Elections a second for what others do, and at once.
const ELECTIONS: u32 = 10;
/// Between two times that all is told again at least, whatever happens: the burst of the first is not over then.
const AGAIN: Duration = Duration::from_secs(1);
/// So long after its last word a node's number counts: a recorded frame does not bring it back, or send it away. Not
/// for ever, because a clock may be set back.
const REMEMBERED: Duration = Duration::from_secs(60);

/// How we come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Coming {
    /// As one more member.
    Anew,
    /// In the place of an agent of this node that is a member already.
    Succeeding,
}

/// What happened, for metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Counted {
    /// Addresses that we began or ceased to hold.
    pub(super) changes: u64,
    /// Questions answered.
    pub(super) answers: u64,
    /// Questions that were too many.
    pub(super) unanswered: u64,
}

/// The state.
pub(super) struct Segment {
    own: String,
    mac: Mac,
    key: hmac::Key,
    coming: Coming,
    /// Until then we only listen: who believes to be alone holds everything.
    listens: Option<Instant>,
    next_heartbeat: Instant,
    numbers: Numbers,
    members: BTreeMap<String, Member>,
    /// The last numbers of nodes, and when they came.
    numbered: BTreeMap<String, (u64, Instant)>,
    /// Addresses to be held by somebody, and whether we can.
    offers: BTreeMap<IpAddr, bool>,
    /// Addresses that our interface has.
    owned: BTreeSet<IpAddr>,
    /// Addresses of the other nodes.
    nodes: Arc<BTreeMap<String, BTreeSet<IpAddr>>>,
    holders: BTreeMap<IpAddr, Option<String>>,
    /// Addresses of which a connection that no socket of ours has may be ours all the same.
    shortcuts: BTreeSet<IpAddr>,
    /// Who held what we hold.
    formers: Formers,
    rivals: Rivals,
    /// What we hold, and when it is told next.
    plans: BTreeMap<IpAddr, Plan>,
    allowance: Allowance,
    /// When all may be told again.
    next_again: Instant,
    /// Of elections.
    elections: Allowance,
    /// One is due as soon as it may be; true: with all told again.
    due: Option<bool>,
    /// There is something to tell people.
    pub(super) is_news: bool,
    pub(super) counted: Counted,
}

/// Another agent.
struct Member {
    heard: Instant,
    mac: Mac,
    /// A whole heartbeat was heard.
    is_known: bool,
    owns: BTreeSet<u32>,
    serves: BTreeSet<u32>,
    coming: Half,
}

/// What came of a heartbeat in several parts.
#[derive(Default)]
struct Half {
    parts: u8,
    owns: BTreeSet<u32>,
    serves: BTreeSet<u32>,
}

/// The highest bids for an address: of those whose interface has it, who go before the others, and of those who can
/// serve it.
struct Bids<'a> {
    vip: IpAddr,
    owner: Option<Bid<'a>>,
    server: Option<Bid<'a>>,
}

struct Plan {
    next: Instant,
    told: usize,
}

impl Segment {
    /// `wall`: microseconds since 1970, at that instant. `drain`: how long who leaves goes on with its connections.
    pub(super) fn new(
        own: String,
        mac: Mac,
        key: hmac::Key,
        coming: Coming,
        drain: Duration,
        (now, wall): (Instant, u64),
    ) -> Self {
        Self {
            own,
            mac,
            key,
            coming,
            listens: Some(now + SILENCE),
            next_heartbeat: now,
            numbers: Numbers { start: now, wall, last: 0 },
            members: BTreeMap::new(),
            numbered: BTreeMap::new(),
            offers: BTreeMap::new(),
            owned: BTreeSet::new(),
            nodes: Arc::default(),
            holders: BTreeMap::new(),
            shortcuts: BTreeSet::new(),
            formers: Formers::new(drain),
            rivals: Rivals::default(),
            plans: BTreeMap::new(),
            allowance: a_second(ANSWERS, now),
            next_again: now,
            elections: a_second(ELECTIONS, now),
            due: None,
            is_news: true,
            counted: Counted::default(),
        }
    }

    /// Other addresses are to be held, or our interface has others; true if anything is another than before.
    pub(super) fn wish(
        &mut self,
        offers: &BTreeMap<IpAddr, bool>,
        owned: BTreeSet<IpAddr>,
        now: Instant,
    ) -> bool {
        if *offers == self.offers && owned == self.owned {
            return false;
        }
        (self.offers, self.owned) = (offers.clone(), owned);
        // Others should hear of what we can no more before they rely on us.
        self.next_heartbeat = now;
        self.elect(now, false);
        true
    }

    /// The other nodes have these addresses.
    pub(super) fn knows(&mut self, nodes: &Arc<BTreeMap<String, BTreeSet<IpAddr>>>) {
        self.nodes = Arc::clone(nodes);
    }

    /// Of these addresses nothing is handed on: nobody could tell what is of none of our connections.
    pub(super) fn keep_to_us(&mut self, shortcuts: BTreeSet<IpAddr>) {
        self.is_news |= shortcuts != self.shortcuts;
        self.shortcuts = shortcuts;
    }

    /// A frame came; perhaps there is an answer.
    pub(super) fn heard(&mut self, frame: &[u8], now: Instant) -> Option<Vec<u8>> {
        if let Some((addr, mac)) = frame::claim(frame) {
            self.claimed(addr, mac, now);
        }
        if let Some(question) = frame::question(frame) {
            // Another agent that begins to hold an address asks who else has it. By IPv6 all would hear our answer, and send
            // here what is on its way to that agent.
            if question.is_probe() && frame::sender(frame).is_some_and(|mac| self.is_agent(&mac)) {
                return None;
            }
            let target = match question {
                Question::V4 { target, asker, .. } if asker == target => return None,
                Question::V4 { target, .. } => IpAddr::V4(target),
                Question::V6 { target, .. } => IpAddr::V6(target),
            };
            if !self.plans.contains_key(&target) {
                return None;
            }
            if !self.allowance.take(now) {
                self.counted.unanswered += 1;
                return None;
            }
            self.counted.answers += 1;
            return Some(frame::answer(self.mac, &question));
        }
        if let Some(host) = frame::answerer(frame, self.mac) {
            self.formers.answers(host);
            return None;
        }
        let heartbeat = Heartbeat::of_frame(frame, &self.key)?;
        let mac = frame::sender(frame)?;
        if heartbeat.name != self.own {
            self.met(heartbeat, mac, now);
        } else if mac != self.mac && self.is_newer(&heartbeat.name, heartbeat.number, now) {
            self.is_news |= self.rivals.has_our_name(mac, now);
        }
        None
    }

    /// Somebody says that an address is his.
    fn claimed(&mut self, addr: IpAddr, mac: Mac, now: Instant) {
        if mac == self.mac || !self.plans.contains_key(&addr) || self.is_agent(&mac) {
            return;
        }
        self.is_news |= self.rivals.answers(addr, mac, now);
    }

    fn is_agent(&self, mac: &Mac) -> bool {
        self.members.values().map(|member| member.mac).chain(self.formers.macs()).any(|agent| agent == *mac)
    }

    fn met(&mut self, heartbeat: Heartbeat, mac: Mac, now: Instant) {
        let Heartbeat { name, number, leaves, part, parts, owns, serves } = heartbeat;
        if !self.is_newer(&name, number, now) {
            return;
        }
        if leaves {
            if self.members.remove(&name).is_some() {
                self.formers.leaves(&name, mac, now);
                self.elect_in_time(now, true);
            }
            return;
        }
        let named = self.members.values().map(Member::named).sum::<usize>();
        let fits = named + owns.len() + serves.len() <= TAGS;
        let member = self.members.entry(name.clone()).or_insert_with(|| {
            self.next_heartbeat = now;
            Member::new(now)
        });
        member.heard = now;
        if member.mac != mac {
            member.mac = mac;
            self.formers.is_member(&name, mac);
            // One that is new has its election when it is known.
            if member.is_known {
                self.due.get_or_insert(false);
            }
        }
        if part == 0 {
            member.coming = Half::default();
        }
        // Where a part was lost, what was known stays until the next heartbeat.
        if member.coming.parts != part || !fits {
            return;
        }
        member.coming.owns.extend(owns);
        member.coming.serves.extend(serves);
        member.coming.parts += 1;
        if member.coming.parts < parts {
            return;
        }
        let Half { owns, serves, .. } = std::mem::take(&mut member.coming);
        let is_new = !std::mem::replace(&mut member.is_known, true);
        let differs = member.owns != owns || member.serves != serves;
        (member.owns, member.serves) = (owns, serves);
        // Who comes back may have told all that our addresses are its own.
        if is_new || differs {
            self.elect_in_time(now, is_new);
        }
    }

    /// Whether it was said after all that this node said before.
    fn is_newer(&mut self, name: &str, number: u64, now: Instant) -> bool {
        if let Some((last, heard)) = self.numbered.get_mut(name) {
            let is_newer = number > *last;
            if is_newer {
                (*last, *heard) = (number, now);
            }
            return is_newer;
        }
        let has_room = self.numbered.len() < MEMBERS;
        if has_room {
            self.numbered.insert(name.to_owned(), (number, now));
        }
        has_room
    }

    /// Time has passed: what is to be sent.
    pub(super) fn tick(&mut self, now: Instant) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        let known = self.members.len();
        self.members.retain(|name, member| {
            let is_heard = now.duration_since(member.heard) < SILENCE;
            if !is_heard {
                self.formers.falls_silent(name);
            }
            is_heard
        });
        self.is_news |= self.formers.pass(now);
        self.is_news |= self.rivals.pass(|vip| self.plans.contains_key(vip), now);
        self.numbered.retain(|_, (_, heard)| now.duration_since(*heard) < REMEMBERED);
        let gone = self.members.len() != known;
        let begins = self.listens.is_some_and(|until| now >= until);
        if begins {
            self.listens = None;
        }
        if begins {
            self.elect(now, gone);
        } else if gone || self.due.is_some() {
            self.elect_in_time(now, gone);
        }
        // A successor that knows of nothing yet would say that its node serves nothing.
        let succeeds = self.coming == Coming::Succeeding && !self.offers.is_empty();
        let is_member = self.listens.is_none() || succeeds;
        if is_member && now >= self.next_heartbeat {
            self.next_heartbeat = now + INTERVAL;
            frames.extend(self.heartbeat(now));
        }
        let (own, own_v6) = (self.mac, link_local(&self.owned));
        frames.extend(self.formers.ask(now, |name, host| {
            let addrs = self.nodes.get(name).into_iter().flatten().take(ASKED_BY);
            addrs.filter_map(|addr| frame::ask(own, own_v6, host, *addr)).collect()
        }));
        let mut due: Vec<IpAddr> =
            self.plans.iter().filter(|(_, plan)| now >= plan.next).map(|(vip, _)| *vip).collect();
        due.truncate(AT_ONCE);
        for vip in due {
            frames.push(frame::probe(self.mac, vip));
            frames.extend(frame::announce(self.mac, vip));
            if let Some(plan) = self.plans.get_mut(&vip) {
                plan.told += 1;
                plan.next = match (BURST.get(plan.told), BURST.get(plan.told.wrapping_sub(1))) {
                    (Some(next), Some(this)) => now + next.saturating_sub(*this),
                    _ => now + REFRESH,
                };
            }
        }
        // Without another question, whose answer would be one more reason to do so.
        let defended = self.rivals.defend(AT_ONCE);
        frames.extend(defended.into_iter().flat_map(|vip| frame::announce(self.mac, vip)));
        frames
    }

    /// We are no member any more; the frame that says so.
    pub(super) fn leave(&mut self, now: Instant) -> Vec<u8> {
        self.plans.clear();
        self.offers.clear();
        self.formers.keep(|_| false);
        let (name, number) = (self.own.clone(), self.numbers.next(now));
        Heartbeat { name, number, leaves: true, parts: 1, ..Heartbeat::default() }
            .to_frame(self.mac, &self.key)
    }

    fn heartbeat(&mut self, now: Instant) -> Vec<Vec<u8>> {
        let served = self.offers.iter().filter(|(_, can)| **can).map(|(vip, _)| *vip);
        let owned = self.offers.keys().filter(|vip| self.owned.contains(vip)).copied();
        let parts = heartbeat::parted(&self.own, &heartbeat::tags(owned), &heartbeat::tags(served));
        let number = |part| Heartbeat { number: self.numbers.next(now), ..part };
        parts.into_iter().map(number).map(|part| part.to_frame(self.mac, &self.key)).collect()
    }

    /// The same as [`Segment::elect`] for what others do: at once, or as soon as it may be.
    fn elect_in_time(&mut self, now: Instant, again: bool) {
        let again = again || self.due == Some(true);
        if self.elections.take(now) {
            self.elect(now, again);
        } else {
            self.due = Some(again);
        }
    }

    /// Finds the holders anew. `again`: what we hold is told as if it were new, because somebody on the link may
    /// have been told otherwise.
    fn elect(&mut self, now: Instant, again: bool) {
        let was_due = self.due.take();
        let again = (again || was_due == Some(true)) && now >= self.next_again;
        if again {
            self.next_again = now + AGAIN;
        }
        let holders = self.elected();
        let ours = |vip: &IpAddr| holders.get(vip).is_some_and(|holder| holder.as_deref() == Some(&self.own));
        // What our interface has the kernel itself answers for.
        let held: BTreeSet<IpAddr> =
            holders.keys().filter(|vip| ours(vip) && !self.owned.contains(vip)).copied().collect();
        let before = self.plans.len();
        self.plans.retain(|vip, _| held.contains(vip));
        self.formers.keep(|vip| held.contains(vip));
        self.counted.changes += (before - self.plans.len()) as u64;
        for vip in held {
            let fresh = Plan { next: now, told: 0 };
            match self.plans.get_mut(&vip) {
                Some(plan) if again => *plan = fresh,
                Some(_) => {}
                None => {
                    let before = self.holders.get(&vip).and_then(Option::as_deref);
                    if let Some(name) = before.filter(|name| *name != self.own) {
                        let member = self.members.get(name).map(|member| member.mac);
                        self.formers.begin(vip, name, member);
                    }
                    self.plans.insert(vip, fresh);
                    self.counted.changes += 1;
                }
            }
        }
        self.holders = holders;
        self.is_news = true;
    }

    /// Who is to hold each address. It costs by what members name, not by all members for each address.
    fn elected(&self) -> BTreeMap<IpAddr, Option<String>> {
        let mut tagged: BTreeMap<u32, Vec<Bids<'_>>> = BTreeMap::new();
        for (vip, can) in &self.offers {
            let ours = election::bid(*vip, &self.own);
            let owner = self.owned.contains(vip).then_some(ours);
            let server = (*can && self.listens.is_none()).then_some(ours);
            tagged.entry(election::tag(*vip)).or_default().push(Bids { vip: *vip, owner, server });
        }
        for (name, member) in &self.members {
            for tag in &member.owns {
                for bids in tagged.get_mut(tag).into_iter().flatten() {
                    bids.owner = bids.owner.max(Some(election::bid(bids.vip, name)));
                }
            }
            for tag in &member.serves {
                for bids in tagged.get_mut(tag).into_iter().flatten() {
                    bids.server = bids.server.max(Some(election::bid(bids.vip, name)));
                }
            }
        }
        let holder = |Bids { vip, owner, server }| (vip, owner.or(server).map(|(_, name)| name.to_owned()));
        tagged.into_values().flatten().map(holder).collect()
    }

    /// For people.
    pub(super) fn announced(&self, interface: &str) -> Announced {
        let ours = self.listens.is_none().then(|| self.own.clone());
        let mut members: Vec<String> = self.members.keys().cloned().chain(ours).collect();
        members.sort();
        let mut formers = self.formers.known();
        formers.retain(|vip, _| !self.shortcuts.contains(vip));
        Announced {
            interface: interface.to_owned(),
            own: self.own.clone(),
            trouble: None,
            members,
            holders: self.holders.clone(),
            mac: self.mac,
            agents: self.members.values().map(|member| member.mac).chain(self.formers.macs()).collect(),
            formers,
            rivals: self.rivals.known(|mac| self.is_agent(mac)),
        }
    }

    /// Addresses to be held by somebody.
    pub(super) fn offers(&self) -> impl Iterator<Item = IpAddr> {
        self.offers.keys().copied()
    }
}

impl Member {
    fn new(now: Instant) -> Self {
        Self {
            heard: now,
            mac: Mac::default(),
            is_known: false,
            owns: BTreeSet::new(),
            serves: BTreeSet::new(),
            coming: Half::default(),
        }
    }

    /// Addresses that it names, in this heartbeat and in the last one.
    fn named(&self) -> usize {
        self.owns.len() + self.serves.len() + self.coming.owns.len() + self.coming.serves.len()
    }
}

/// The address by which neighbours on the link are asked.
fn link_local(addrs: &BTreeSet<IpAddr>) -> Option<Ipv6Addr> {
    addrs.iter().find_map(|addr| match addr {
        IpAddr::V6(addr) if addr.is_unicast_link_local() => Some(*addr),
        _ => None,
    })
}

/// So many at once, and so many a second.
fn a_second(most: u32, now: Instant) -> Allowance {
    Allowance::of(most, Duration::from_secs(1) / most, now)
}

/// Numbers for our frames, by the clock: those of the next agent of this node are higher, and those of the last one
/// still are where the next one fails.
struct Numbers {
    start: Instant,
    wall: u64,
    last: u64,
}

impl Numbers {
    fn next(&mut self, now: Instant) -> u64 {
        let passed = u64::try_from(now.duration_since(self.start).as_micros()).unwrap_or(u64::MAX);
        self.last = self.wall.saturating_add(passed).max(self.last.saturating_add(1));
        self.last
    }
}

#[cfg(test)]
mod tests;

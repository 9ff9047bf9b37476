//! The life of a pool's slots: settled, contested after a change, settled again. Pure; ARCHITECTURE.md
//! draws the state machine, lb-common's `steer` is what packets make of it.

use lb_common::{BackendId, Slot};

/// Nobody.
const NOBODY: BackendId = BackendId(0);

/// Owners of the slots of one table.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Slots {
    owners: Vec<BackendId>,
    /// How those stand that are contested, in the order of the slots. A backend that comes or goes contests a few
    /// of its table's, and for minutes: so these alone are kept, and looked at.
    contests: Vec<(u32, Contest)>,
}

/// Flows of a slot may have other owners than it has: the flow table knows, and those it does not know have
/// `previous` (id 0: nobody who lives).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Contest {
    previous: BackendId,
    /// Time since which the flow table is asked, and written, with this `previous`.
    since: u32,
    /// Time when a flow that is not remembered was last known to use `previous`.
    used: u32,
}

impl Slots {
    /// Slots as tables in force have them; without a table of previous owners none is contested. When
    /// they changed is not known: `now` is as good as the last moment.
    pub fn adopt(current: &[Slot], previous: Option<&[Slot]>, now: u32) -> Self {
        let contest = |(index, slot): (u32, &Slot)| {
            let previous = previous?.get(index as usize).filter(|_| slot.is_contested())?;
            Some((index, Contest { previous: previous.backend(), since: now, used: now }))
        };
        let contests = (0..).zip(current).filter_map(contest).collect();
        Self { owners: current.iter().map(|slot| slot.backend()).collect(), contests }
    }

    /// Whether these owners, repeated as often as needed, are the present ones.
    pub fn are_owned_as(&self, owners: &[BackendId]) -> bool {
        let wanted = |index: usize| owners.get(index & owners.len().wrapping_sub(1)).copied();
        owners.len() <= self.owners.len()
            && self.owners.iter().enumerate().all(|(index, owner)| *owner == wanted(index).unwrap_or(NOBODY))
    }

    /// log2 of the number of slots; 0 for none.
    pub fn bits(&self) -> u32 {
        self.owners.len().checked_ilog2().unwrap_or(0)
    }

    /// Slots that have not settled.
    pub fn contested(&self) -> usize {
        self.contests.len()
    }

    /// Whether a slot has this backend as its owner, or as the previous one.
    pub fn name(&self, id: BackendId) -> bool {
        self.owners.contains(&id) || self.contests.iter().any(|(_, contest)| contest.previous == id)
    }

    /// Gives the slots new owners (a power of two of them; empty: nobody owns any). `lives` says
    /// which backends still take the packets of their flows.
    ///
    /// A slot whose owner changes becomes contested if the old one lives; a contested one keeps
    /// its older owner while that lives. A table that grows or shrinks is compared slot by slot at
    /// the larger of both sizes, which names the same owners as the smaller one.
    pub fn change(&mut self, owners: &[BackendId], lives: impl Fn(BackendId) -> bool, now: u32) {
        let size = owners.len().max(self.owners.len());
        let repeated = |index: usize| owners.get(index & owners.len().wrapping_sub(1)).copied();
        let new: Vec<BackendId> = (0..size).map(|index| repeated(index).unwrap_or(NOBODY)).collect();
        let mut contests = Vec::new();
        if !self.owners.is_empty() {
            let before = self.owners.iter().copied().cycle();
            // Each time around they begin again, too.
            let mut contested = self.contests.iter().peekable();
            for ((index, owner), then) in (0u32..).zip(&new).zip(before) {
                let at = index & (self.owners.len() as u32 - 1);
                if at == 0 {
                    contested = self.contests.iter().peekable();
                }
                let contest = contested.next_if(|(slot, _)| *slot == at).map(|(_, contest)| *contest);
                contests.extend(next(then, contest, *owner, &lives, now).map(|contest| (index, contest)));
            }
        }
        contests.shrink_to_fit();
        *self = Self { owners: new, contests };
        if !owners.is_empty() && self.contests.is_empty() {
            // Back to the size of `owners`, which says the same.
            self.owners.truncate(owners.len());
        }
    }

    /// Forgets the slots where none has an owner, or had one that flows may keep. Without slots nobody asks
    /// the flow table.
    pub fn clear_if_nobody_owns_any(&mut self) {
        if self.contests.is_empty() && self.owners.iter().all(|owner| *owner == NOBODY) {
            self.owners.clear();
        }
    }

    /// Contests every slot with its own owner: flows may be remembered with other ones, although
    /// the slots had settled.
    pub fn doubt(&mut self, now: u32) {
        let contest = |(index, owner): (u32, &BackendId)| {
            let own = Contest { previous: *owner, since: now, used: now };
            (index, self.contest(index).unwrap_or(own))
        };
        self.contests = (0..).zip(&self.owners).map(contest).collect();
    }

    /// Puts other ids in the place of some.
    pub fn rename(&mut self, name: impl Fn(BackendId) -> BackendId) {
        self.owners.iter_mut().for_each(|owner| *owner = name(*owner));
        self.contests.iter_mut().for_each(|(_, contest)| contest.previous = name(contest.previous));
    }

    fn contest(&self, index: u32) -> Option<Contest> {
        let at = self.contests.binary_search_by_key(&index, |(slot, _)| *slot).ok()?;
        self.contests.get(at).map(|(_, contest)| *contest)
    }

    /// The contested slots whose previous owner was used when that was noted at `now`, and those that were contested then.
    pub fn used_at(&self, now: u32) -> impl Iterator<Item = u32> {
        self.contests.iter().filter(move |(_, contest)| contest.used == now).map(|(index, _)| *index)
    }

    /// Notes that flows which are not remembered used the previous owners of these slots (of a
    /// table of `1 << bits` slots, which may have been smaller than this one).
    pub fn note_used(&mut self, bits: u32, is_used: impl Fn(u32) -> bool, now: u32) {
        for (index, contest) in &mut self.contests {
            if is_used(*index & ((1 << bits) - 1)) {
                contest.used = now;
            }
        }
    }

    /// Notes that a spare flow which was forgotten at `then` may have been of the previous owner of any slot. Not
    /// before it is seen again does it leave a mark.
    pub fn note_forgotten(&mut self, then: u32, now: u32) {
        for (_, contest) in &mut self.contests {
            if now.wrapping_sub(then) < now.wrapping_sub(contest.used) {
                contest.used = then;
            }
        }
    }

    /// Settles the slots that are contested for longer than `grace`, unless a flow of another backend
    /// was seen within the grace time: one that is not remembered, or, as `differs(slot)` says, one
    /// that is. Returns them.
    pub fn settle(&mut self, now: u32, grace: u32, differs: impl Fn(u32) -> bool) -> Vec<(u32, Slot)> {
        let Self { owners, contests } = self;
        let mut settled = Vec::new();
        contests.retain(|(index, contest)| {
            let Contest { previous, since, used } = *contest;
            let owner = owners.get(*index as usize).copied().unwrap_or(NOBODY);
            let kept = previous != NOBODY && previous != owner && !is_over(used, now, grace);
            let stays = !is_over(since, now, grace) || kept || differs(*index);
            if !stays {
                settled.push((*index, Slot::settled(owner)));
            }
            stays
        });
        if contests.is_empty() {
            *contests = Vec::new();
        }
        settled
    }

    /// Settles the contested slots with such a previous owner and owner. Returns them.
    pub fn settle_where(&mut self, is_over: impl Fn(BackendId, BackendId) -> bool) -> Vec<(u32, Slot)> {
        let Self { owners, contests } = self;
        let owner = |index: u32| owners.get(index as usize).copied().unwrap_or(NOBODY);
        let settled = contests.extract_if(.., |(index, contest)| is_over(contest.previous, owner(*index)));
        settled.map(|(index, _)| (index, Slot::settled(owner(index)))).collect()
    }

    /// Gives flows that are not remembered to the owner where the slot is contested for longer than
    /// `grace` and every flow of the previous owner that was seen within the grace time is remembered: for UDP, where
    /// a flow's beginning cannot be told. Returns what now stands for the previous owner.
    pub fn pass(&mut self, now: u32, grace: u32) -> Vec<(u32, Slot)> {
        let Self { owners, contests } = self;
        let mut passed = Vec::new();
        for (index, Contest { previous, since, used }) in contests {
            let owner = owners.get(*index as usize).copied().unwrap_or(NOBODY);
            if is_over(*since, now, grace) && is_over(*used, now, grace) && *previous != owner {
                *previous = owner;
                passed.push((*index, Slot::settled(owner)));
            }
        }
        passed
    }

    /// Who owns a slot.
    pub fn owner(&self, index: u32) -> BackendId {
        self.owners.get(index as usize).copied().unwrap_or(NOBODY)
    }

    /// Whether a slot has settled.
    pub fn has_settled(&self, index: u32) -> bool {
        self.contest(index).is_none()
    }

    /// The current table as the program reads it.
    pub fn current(&self) -> Vec<Slot> {
        let mut slots: Vec<Slot> = self.owners.iter().map(|owner| Slot::settled(*owner)).collect();
        for (index, _) in &self.contests {
            let owner = self.owner(*index);
            slots.get_mut(*index as usize).into_iter().for_each(|slot| *slot = Slot::contested(owner));
        }
        slots
    }

    /// The previous owners' table; `None` where no slot is contested.
    pub fn previous(&self) -> Option<Vec<Slot>> {
        let mut slots = vec![Slot::settled(NOBODY); self.owners.len()];
        for (index, contest) in &self.contests {
            let previous = Slot::settled(contest.previous);
            slots.get_mut(*index as usize).into_iter().for_each(|slot| *slot = previous);
        }
        (!self.contests.is_empty()).then_some(slots)
    }
}

/// Whether the grace time is over. One unit more, because packets see a change, and we their marks, a
/// moment later than is noted.
fn is_over(since: u32, now: u32, grace: u32) -> bool {
    now.wrapping_sub(since) > grace.saturating_add(1)
}

/// How a slot stands that was `then`'s and is `owner`'s now; `None`: it has settled.
fn next(
    then: BackendId,
    contest: Option<Contest>,
    owner: BackendId,
    lives: impl Fn(BackendId) -> bool,
    now: u32,
) -> Option<Contest> {
    let alive = |id: BackendId| if id != NOBODY && lives(id) { id } else { NOBODY };
    let Some(Contest { previous, since, used }) = contest else {
        // The flows of an owner that is gone are lost whatever we do.
        let lost = then == owner || alive(then) == NOBODY;
        return (!lost).then_some(Contest { previous: then, since: now, used: now });
    };
    let older = if alive(previous) != NOBODY { previous } else { alive(then) };
    // While unknown flows were the owner's own, none was remembered.
    let begins = owner != then && (older != previous || previous == then);
    Some(Contest { previous: older, since: if begins { now } else { since }, used })
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: BackendId = BackendId(1);
    const B: BackendId = BackendId(2);
    const C: BackendId = BackendId(3);

    fn all_live(_: BackendId) -> bool {
        true
    }

    fn one(slots: &Slots) -> (Slot, Option<Slot>) {
        (slots.current()[0], slots.previous().map(|previous| previous[0]))
    }

    /// The next owner, and who is gone by then.
    type Change = (BackendId, &'static [BackendId]);

    fn changed(steps: &[Change]) -> Slots {
        let mut slots = Slots::default();
        for (now, (owner, dead)) in (100..).zip(steps) {
            slots.change(&[*owner; 1], |id| !dead.contains(&id), now);
        }
        slots
    }

    #[test]
    fn a_slot_goes_through_its_life_as_drawn() {
        let contested = |owner, previous| (Slot::contested(owner), Some(Slot::settled(previous)));
        let settled = |owner| (Slot::settled(owner), None);
        type Case<'a> = (&'a str, &'a [Change], (Slot, Option<Slot>));
        let cases: [Case<'_>; 9] = [
            ("the first owner", &[(A, &[])], settled(A)),
            ("the same owner again", &[(A, &[]), (A, &[])], settled(A)),
            ("another owner", &[(A, &[]), (B, &[])], contested(B, A)),
            ("another owner because the first is gone", &[(A, &[]), (B, &[A])], settled(B)),
            ("a second change keeps the older owner", &[(A, &[]), (B, &[]), (C, &[])], contested(C, A)),
            ("which is gone by now", &[(A, &[]), (B, &[]), (C, &[A])], contested(C, B)),
            ("a change that flips back", &[(A, &[]), (B, &[]), (A, &[])], contested(A, A)),
            ("flips back, and the other is gone", &[(A, &[]), (B, &[]), (A, &[B])], contested(A, A)),
            ("nobody is left but the old owner", &[(A, &[]), (NOBODY, &[])], contested(NOBODY, A)),
        ];
        for (case, steps, expected) in cases {
            assert_eq!(one(&changed(steps)), expected, "{case}");
        }
    }

    #[test]
    fn a_slot_settles_when_it_is_old_and_no_flow_differs() {
        let steps: [Change; 2] = [(A, &[]), (B, &[])];
        let old = |now| {
            let mut slots = changed(&steps);
            slots.settle(now, 300, |_| false)
        };
        let mut differing = changed(&steps);

        assert_eq!(old(101 + 301), vec![]);
        assert_eq!(old(101 + 302), vec![(0, Slot::settled(B))]);
        assert_eq!(differing.settle(10_000, 300, |slot| slot == 0), vec![]);
    }

    #[test]
    fn a_slot_whose_previous_owner_is_used_by_flows_that_are_not_remembered_does_not_settle() {
        let mut slots = changed(&[(A, &[]), (B, &[])]);

        slots.note_used(0, |_| true, 5_000);

        assert_eq!(slots.settle(5_301, 300, |_| false), vec![]);
        assert_eq!(slots.settle(5_302, 300, |_| false), vec![(0, Slot::settled(B))]);
    }

    #[test]
    fn a_slot_does_not_settle_while_a_flow_of_its_previous_owner_may_have_been_forgotten() {
        let mut slots = changed(&[(A, &[]), (B, &[])]);

        slots.note_forgotten(5_000, 5_100);
        slots.note_forgotten(90, 5_200);

        assert_eq!(slots.settle(5_301, 300, |_| false), vec![], "what is older changes nothing");
        assert_eq!(slots.settle(5_302, 300, |_| false), vec![(0, Slot::settled(B))]);
    }

    #[test]
    fn a_change_that_flipped_back_waits_for_no_flow_of_its_own_owner() {
        let mut slots = changed(&[(A, &[]), (B, &[]), (A, &[])]);

        slots.note_used(0, |_| true, 5_000);

        assert_eq!(slots.settle(5_001, 300, |_| false), vec![(0, Slot::settled(A))]);
    }

    #[test]
    fn what_is_unknown_passes_to_the_owner_once_all_that_lived_is_remembered() {
        let mut slots = changed(&[(A, &[]), (B, &[])]);

        assert_eq!(slots.pass(101 + 301, 300), vec![]);
        assert_eq!(slots.pass(101 + 302, 300), vec![(0, Slot::settled(B))]);

        assert_eq!(one(&slots), (Slot::contested(B), Some(Slot::settled(B))));
        slots.change(&[C], all_live, 1000);
        assert_eq!(one(&slots), (Slot::contested(C), Some(Slot::settled(B))));
    }

    #[test]
    fn what_is_unknown_does_not_pass_while_a_flow_that_lives_is_not_remembered() {
        let mut slots = changed(&[(A, &[]), (B, &[])]);

        slots.note_used(0, |_| true, 5_000);
        assert_eq!(slots.pass(5_301, 300), vec![]);
        slots.note_forgotten(5_200, 5_302);
        assert_eq!(slots.pass(5_302, 300), vec![]);

        assert_eq!(slots.pass(5_502, 300), vec![(0, Slot::settled(B))]);
    }

    #[test]
    fn a_slot_in_doubt_has_its_owner_for_all_that_is_unknown() {
        let mut slots = changed(&[(A, &[])]);

        slots.doubt(200);

        assert_eq!(one(&slots), (Slot::contested(A), Some(Slot::settled(A))));
    }

    #[test]
    fn a_table_that_grows_contests_only_the_slots_whose_owner_changes() {
        let mut slots = Slots::default();
        slots.change(&[A, B], all_live, 1);

        slots.change(&[A, B, C, B], all_live, 2);

        let expected = [Slot::settled(A), Slot::settled(B), Slot::contested(C), Slot::settled(B)];
        assert_eq!(slots.current(), expected);
        slots.change(&[A, B], all_live, 3);
        let expected = [Slot::settled(A), Slot::settled(B), Slot::contested(A), Slot::settled(B)];
        assert_eq!(slots.current(), expected, "the larger size stays while a slot is contested");
    }
}

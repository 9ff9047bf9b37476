//! Objects in parts that have nothing to do with each other, each made by itself and kept until something
//! changes that it looked at.
//!
//! What belongs together is known by what is made of it: two parts that lay claim to the same host, upstream
//! or VIP are made anew as one. So a part's maker need not know what others make, and the whole is the same
//! whether it was made at once or step by step.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;
use std::sync::Arc;

use super::upstreams::Meant;
use crate::model::Problem;
use crate::objects::Key;
use crate::panics;

/// All parts. `M`: what they are made of; `C`: what one of them has and no other may have; `T`: what is made.
pub(super) struct Parts<M, C, T> {
    parts: HashMap<usize, Part<M, C, T>>,
    next: usize,
    part_of: HashMap<M, usize>,
    claimed: HashMap<C, Vec<usize>>,
    readers: HashMap<Key, BTreeSet<usize>>,
    /// Those whose maker panicked. What it looked at until then is unknown, so each update tries again.
    failed: BTreeSet<usize>,
}

/// Some members and what they come to.
pub(super) struct Part<M, C, T> {
    members: BTreeSet<M>,
    pub made: Made<C, T>,
}

/// What is made of a part.
pub(super) struct Made<C, T> {
    pub output: T,
    pub claims: HashMap<C, Claim>,
    /// What was looked at beside the members.
    pub reads: BTreeSet<Key>,
    pub problems: Vec<Arc<Problem>>,
    /// The maker panicked, and this is made of nothing.
    pub failed: bool,
}

/// How a claim is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Claim {
    /// Nobody else may have it.
    Alone,
    /// Others may have it as well, if they mean the same.
    With(Meant),
}

impl Claim {
    fn agrees(&self, other: &Self) -> bool {
        *self != Self::Alone && self == other
    }
}

/// What an update came to.
pub(super) struct Update<M, C, T> {
    /// Parts that are no more.
    pub gone: Vec<Part<M, C, T>>,
    /// Those that there are instead.
    pub new: Vec<usize>,
}

impl<M, C, T> Default for Parts<M, C, T> {
    fn default() -> Self {
        Self {
            parts: HashMap::new(),
            next: 0,
            part_of: HashMap::new(),
            claimed: HashMap::new(),
            readers: HashMap::new(),
            failed: BTreeSet::new(),
        }
    }
}

impl<M: Ord + Hash + Clone, C: Hash + Eq + Clone, T> Parts<M, C, T> {
    /// One of them.
    pub(super) fn get(&self, id: usize) -> Option<&Part<M, C, T>> {
        self.parts.get(&id)
    }

    /// The same, to be changed.
    pub(super) fn get_mut(&mut self, id: usize) -> Option<&mut Part<M, C, T>> {
        self.parts.get_mut(&id)
    }

    /// Every one, in no order.
    pub(super) fn all(&self) -> impl Iterator<Item = &Part<M, C, T>> {
        self.parts.values()
    }

    /// The part of this member.
    pub(super) fn of(&self, member: &M) -> Option<&Part<M, C, T>> {
        self.parts.get(self.part_of.get(member)?)
    }

    /// Parts with this claim.
    pub(super) fn claiming(&self, claim: &C) -> impl Iterator<Item = &Part<M, C, T>> {
        self.claimed.get(claim).into_iter().flatten().filter_map(|id| self.parts.get(id))
    }

    /// Every member.
    pub(super) fn members(&self) -> impl Iterator<Item = &M> {
        self.part_of.keys()
    }

    /// Makes anew what has to do with members that are new, changed or gone, or has looked at what is
    /// `read`. `glue` names claims that a member has whatever is made of it; `failed` tells of members over which
    /// `make` panics, of which nothing is made then.
    pub(super) fn update(
        &mut self,
        touched: BTreeSet<M>,
        gone: &BTreeSet<M>,
        read: &BTreeSet<Key>,
        glue: impl Fn(&M) -> Vec<C>,
        mut make: impl FnMut(&BTreeSet<M>) -> Made<C, T>,
        failed: impl Fn(&BTreeSet<M>, &str) -> Vec<Arc<Problem>>,
    ) -> Update<M, C, T>
    where
        T: Default,
    {
        let of_members = touched.iter().chain(gone).filter_map(|member| self.part_of.get(member));
        let of_readers = read.iter().filter_map(|key| self.readers.get(key)).flatten();
        let stale: BTreeSet<usize> = of_members.chain(of_readers).chain(&self.failed).copied().collect();
        let mut update = Update { gone: Vec::new(), new: Vec::new() };
        let mut waiting: BTreeSet<M> = touched;
        for id in stale {
            waiting.extend(self.dissolve(id, &mut update));
        }
        waiting.retain(|member| !gone.contains(member));

        let mut sets = Sets::default();
        let mut glued: HashMap<C, usize> = HashMap::new();
        let mut made: BTreeMap<usize, (usize, Made<C, T>)> = BTreeMap::new();
        let clusters = loop {
            while let Some(member) = waiting.pop_first() {
                let index = sets.add(&member);
                for claim in glue(&member) {
                    for id in self.claimed.get(&claim).cloned().unwrap_or_default() {
                        waiting.extend(self.dissolve(id, &mut update));
                    }
                    match glued.entry(claim) {
                        Entry::Occupied(other) => sets.join(index, *other.get()),
                        Entry::Vacant(place) => drop(place.insert(index)),
                    }
                }
            }
            let clusters = sets.clusters();
            // Sets only grow: of the same size is the same set.
            made.retain(|root, (size, _)| clusters.get(root).is_some_and(|set| set.len() == *size));
            for (root, set) in &clusters {
                made.entry(*root).or_insert_with(|| {
                    let mut made = panics::catch(|| make(set)).unwrap_or_else(|panic| Made {
                        output: T::default(),
                        claims: HashMap::new(),
                        reads: BTreeSet::new(),
                        problems: failed(set, &panic),
                        failed: true,
                    });
                    for claim in set.iter().flat_map(&glue) {
                        made.claims.entry(claim).or_insert(Claim::Alone);
                    }
                    (set.len(), made)
                });
            }
            let (joins, drawn) = self.quarrels(&made);
            if joins.is_empty() && drawn.is_empty() {
                break clusters;
            }
            for (one, other) in joins {
                sets.join(one, other);
            }
            for (id, root) in drawn {
                for member in self.dissolve(id, &mut update) {
                    let index = sets.add(&member);
                    sets.join(index, root);
                    waiting.insert(member);
                }
            }
        };
        for ((_, members), (_, (_, made))) in clusters.into_iter().zip(made) {
            update.new.push(self.keep(Part { members, made }));
        }
        update
    }

    /// Which of the sets that were made have to be one, and which parts that stand have to join which set.
    #[expect(clippy::type_complexity, reason = "two lists that live for a few lines")]
    fn quarrels(
        &self,
        made: &BTreeMap<usize, (usize, Made<C, T>)>,
    ) -> (Vec<(usize, usize)>, Vec<(usize, usize)>) {
        let (mut joins, mut drawn) = (Vec::new(), Vec::new());
        let mut first: HashMap<&C, (usize, &Claim)> = HashMap::new();
        for (root, (_, made)) in made {
            for (what, claim) in &made.claims {
                match first.entry(what) {
                    Entry::Vacant(place) => drop(place.insert((*root, claim))),
                    Entry::Occupied(other) if claim.agrees(other.get().1) => {}
                    Entry::Occupied(other) => joins.push((*root, other.get().0)),
                }
                for id in self.claimed.get(what).into_iter().flatten() {
                    let standing = self.parts.get(id).and_then(|part| part.made.claims.get(what));
                    if standing.is_some_and(|standing| !standing.agrees(claim)) {
                        drawn.push((*id, *root));
                    }
                }
            }
        }
        (joins, drawn)
    }

    fn keep(&mut self, part: Part<M, C, T>) -> usize {
        let id = self.next;
        self.next += 1;
        for member in &part.members {
            self.part_of.insert(member.clone(), id);
        }
        for claim in part.made.claims.keys() {
            self.claimed.entry(claim.clone()).or_default().push(id);
        }
        for key in &part.made.reads {
            self.readers.entry(key.clone()).or_default().insert(id);
        }
        if part.made.failed {
            self.failed.insert(id);
        }
        self.parts.insert(id, part);
        id
    }

    /// Takes a part apart, if it is still there; returns its members.
    fn dissolve(&mut self, id: usize, update: &mut Update<M, C, T>) -> BTreeSet<M> {
        let Some(part) = self.parts.remove(&id) else { return BTreeSet::new() };
        self.failed.remove(&id);
        for member in &part.members {
            self.part_of.remove(member);
        }
        for claim in part.made.claims.keys() {
            if let Entry::Occupied(mut ids) = self.claimed.entry(claim.clone()) {
                ids.get_mut().retain(|known| *known != id);
                if ids.get().is_empty() {
                    ids.remove();
                }
            }
        }
        for key in &part.made.reads {
            if let Entry::Occupied(mut ids) = self.readers.entry(key.clone()) {
                ids.get_mut().remove(&id);
                if ids.get().is_empty() {
                    ids.remove();
                }
            }
        }
        let members = part.members.clone();
        update.gone.push(part);
        members
    }
}

/// Members in sets that grow together.
struct Sets<M> {
    index: HashMap<M, usize>,
    parents: Vec<usize>,
}

impl<M> Default for Sets<M> {
    fn default() -> Self {
        Self { index: HashMap::new(), parents: Vec::new() }
    }
}

impl<M: Ord + Hash + Clone> Sets<M> {
    fn add(&mut self, member: &M) -> usize {
        if let Some(index) = self.index.get(member) {
            return *index;
        }
        let index = self.parents.len();
        self.index.insert(member.clone(), index);
        self.parents.push(index);
        index
    }

    fn root(&mut self, mut index: usize) -> usize {
        while let Some(parent) = self.parents.get(index).copied().filter(|parent| *parent != index) {
            let above = self.parents.get(parent).copied().unwrap_or(parent);
            if let Some(place) = self.parents.get_mut(index) {
                *place = above;
            }
            index = above;
        }
        index
    }

    fn join(&mut self, one: usize, other: usize) {
        let (one, other) = (self.root(one), self.root(other));
        if let Some(parent) = self.parents.get_mut(one.max(other)) {
            *parent = one.min(other);
        }
    }

    /// By the root of each.
    fn clusters(&mut self) -> BTreeMap<usize, BTreeSet<M>> {
        let members: Vec<_> = self.index.iter().map(|(member, index)| (member.clone(), *index)).collect();
        let mut clusters: BTreeMap<usize, BTreeSet<M>> = BTreeMap::new();
        for (member, index) in members {
            clusters.entry(self.root(index)).or_default().insert(member);
        }
        clusters
    }
}

#[cfg(test)]
mod tests {
    use super::super::upstreams::Reach;
    use super::*;
    use crate::model::ObjectName;
    use crate::objects::Kind;

    /// Members are words that claim their letters; the first alone, the others with whoever they name.
    fn make(members: &BTreeSet<&'static str>) -> Made<char, String> {
        let all = Meant { service: ObjectName::new("", "all"), reach: Reach::Endpoints };
        let claims = members.iter().flat_map(|word| {
            let alone = word.chars().take(1).map(|letter| (letter, Claim::Alone));
            let shared = word.chars().skip(1);
            alone.chain(shared.map(|letter| (letter, Claim::With(all.clone()))))
        });
        let reads = members.iter().map(|word| Key { kind: Kind::Service, name: ObjectName::new("", *word) });
        Made {
            output: members.iter().copied().collect::<Vec<_>>().join(" "),
            claims: claims.collect(),
            reads: reads.collect(),
            problems: Vec::new(),
            failed: false,
        }
    }

    fn never(_: &BTreeSet<&'static str>, panic: &str) -> Vec<Arc<Problem>> {
        unreachable!("{panic}")
    }

    fn outputs(parts: &Parts<&'static str, char, String>) -> Vec<String> {
        let mut outputs: Vec<_> = parts.parts.values().map(|part| part.made.output.clone()).collect();
        outputs.sort();
        outputs
    }

    #[test]
    fn who_claims_the_same_alone_is_made_together_and_apart_again() {
        let mut parts = Parts::default();
        let none = BTreeSet::new();

        let words = ["ab", "cb", "a", "d"].into();
        let _ = parts.update(words, &none, &BTreeSet::new(), |_| Vec::new(), make, never);
        assert_eq!(outputs(&parts), ["a ab", "cb", "d"]);

        let update = parts.update(["ae"].into(), &none, &BTreeSet::new(), |_| Vec::new(), make, never);
        assert_eq!((update.gone.len(), update.new.len()), (1, 1));
        assert_eq!(outputs(&parts), ["a ab ae", "cb", "d"]);

        let _ =
            parts.update(BTreeSet::new(), &["a", "ae"].into(), &BTreeSet::new(), |_| Vec::new(), make, never);
        assert_eq!(outputs(&parts), ["ab", "cb", "d"]);
    }

    #[test]
    fn only_who_has_looked_is_made_anew() {
        let mut parts = Parts::default();
        let _ =
            parts.update(["a", "b"].into(), &BTreeSet::new(), &BTreeSet::new(), |_| Vec::new(), make, never);

        let read = [Key { kind: Kind::Service, name: ObjectName::new("", "b") }].into();
        let update = parts.update(BTreeSet::new(), &BTreeSet::new(), &read, |_| Vec::new(), make, never);

        let gone: Vec<_> = update.gone.iter().map(|part| part.made.output.as_str()).collect();
        assert_eq!(gone, ["b"]);
    }

    #[test]
    fn a_maker_that_panics_costs_its_members_until_it_does_no_more() {
        let (mut parts, none) = (Parts::default(), BTreeSet::new());
        let poisoned = |word: &'static str| {
            move |members: &BTreeSet<&'static str>| {
                assert!(!members.contains(word), "over {word}");
                make(members)
            }
        };
        let failed = |members: &BTreeSet<&'static str>, panic: &str| {
            let of = |word: &&str| Key { kind: Kind::Ingress, name: ObjectName::new("", *word) }.id("");
            members.iter().map(|word| Arc::new(crate::objects::panicked(&of(word), panic))).collect()
        };

        let words = ["ab", "cb", "d"].into();
        let _ = parts.update(words, &none, &BTreeSet::new(), |_| Vec::new(), poisoned("cb"), failed);
        let told: Vec<_> = parts.all().flat_map(|part| &part.made.problems).collect();
        assert_eq!(outputs(&parts), ["", "ab", "d"]);
        let [problem] = told.as_slice() else { panic!("{told:?}") };
        assert_eq!((problem.object.name.as_str(), problem.message.contains("over cb")), ("cb", true));

        let _ = parts.update(["e"].into(), &none, &BTreeSet::new(), |_| Vec::new(), poisoned("cb"), failed);
        assert_eq!(outputs(&parts), ["", "ab", "d", "e"], "and no other is kept from its change");

        let _ = parts.update(BTreeSet::new(), &none, &BTreeSet::new(), |_| Vec::new(), make, failed);
        assert_eq!(outputs(&parts), ["ab", "cb", "d", "e"], "what it looks at may have changed");
    }
}

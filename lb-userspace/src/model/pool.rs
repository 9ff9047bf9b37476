//! Address pools: which address a Service of type LoadBalancer gets. Pure arithmetic, the same on every agent.
//!
//! Who holds an address keeps it while a pool still allows it; then come those who ask for one by name, then all
//! others. Where the search for a free one begins is told by the Service's name, so that a Service that comes or
//! goes hardly ever moves another, even where nobody remembers who holds what.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use super::ObjectName;
use super::l4::{Family, IpMode, Protocol};

/// Usual name of the ConfigMap that describes the pools, beside the controller's.
pub const CONFIG_MAP: &str = "penstock-address-pools";

/// Searches go through a larger pool only as far as addresses can be in use, and this many more.
const PROBES: u128 = 65_536;

/// Addresses to give away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool {
    /// Its name.
    pub name: String,
    /// What it holds.
    pub blocks: Vec<Block>,
    /// Given to who asks for nothing in particular, too.
    pub auto_assign: bool,
    /// Those whose Services may have its addresses; empty: all.
    pub namespaces: BTreeSet<String>,
    /// The smaller, the sooner it is looked into.
    pub priority: u32,
    /// IPv4 addresses that end in 0 and 255 are left alone, for the sake of old clients.
    pub avoid_edges: bool,
}

/// Consecutive addresses of one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Block {
    first: IpAddr,
    last: IpAddr,
}

/// What a Service wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The Service.
    pub service: ObjectName,
    /// Families it shall have addresses of, the most wanted first.
    pub families: Vec<Family>,
    /// How many of them it can do with.
    pub needs: Needs,
    /// Addresses it asks for.
    pub requested: Vec<IpAddr>,
    /// The pool it asks for.
    pub pool: Option<String>,
    /// Addresses it has, as its status says.
    pub held: Vec<IpAddr>,
    /// Addresses and names in its status, where it was not agents of ours who wrote them.
    pub foreign: Vec<String>,
    /// Services of one key may have one address, if their ports differ.
    pub sharing: Option<String>,
    /// Its ports.
    pub ports: BTreeSet<(Protocol, u16)>,
    /// `externalTrafficPolicy: Local`: pods by which two may share one, else `None`.
    pub local_pods: Option<BTreeMap<String, String>>,
}

/// Whether one family is enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// What there is.
    Any,
    /// All or nothing.
    All,
}

/// What a Service gets.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Grant {
    /// Addresses, with the name of the pool each is of.
    pub addresses: BTreeMap<IpAddr, String>,
    /// What could not be had.
    pub refusals: Vec<Refusal>,
}

/// What Services have.
pub type Given = BTreeMap<ObjectName, GivenTo>;

/// What one has, as its status is to say.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GivenTo {
    /// Its addresses; none, where it once had some.
    pub addresses: BTreeSet<IpAddr>,
    /// Of all of them.
    pub mode: IpMode,
}

/// Why an address is not given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// There is no such pool.
    UnknownPool(String),
    /// No pool that this Service may use holds the address.
    NotPooled(IpAddr),
    /// A node has the address.
    OfNode(IpAddr),
    /// It has an address of that family, or serves none.
    Unwanted(IpAddr),
    /// Somebody has it.
    InUse(IpAddr, ObjectName, NotShared),
    /// All addresses of the family are given away.
    Exhausted(Family),
    /// The pool that it asks for is for other namespaces.
    NotFor(String),
    /// No pool that gives addresses to who asks for nothing is for its namespace and has any of the family.
    NoPool(Family),
    /// Of this family none could be had, and the Service needs one of each.
    Incomplete(Family),
    /// Somebody else has given it these.
    OfOthers(Vec<String>),
}

/// Why two Services cannot have one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotShared {
    /// They do not both say that they share, by the same word.
    Keys,
    /// Both have this port.
    Port(Protocol, u16),
    /// The client's address is kept for one and not for the other, or for both with other pods.
    Policies,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownPool(name) => write!(f, "there is no address pool {name:?}"),
            Self::NotPooled(addr) => write!(f, "{addr} is in no address pool that this Service may use"),
            Self::OfNode(addr) => write!(f, "{addr} is an address that a node has, so it is not given away"),
            Self::Unwanted(addr) => {
                write!(f, "{addr} is one more than this Service has a use for: one of each of its families")
            }
            Self::InUse(addr, service, why) => {
                write!(f, "{addr} belongs to Service {service}")?;
                match why {
                    NotShared::Keys => Ok(()),
                    NotShared::Port(protocol, port) => {
                        write!(f, ", which has port {port}/{protocol}, too, so the two cannot share it")
                    }
                    NotShared::Policies => f.write_str(
                        ", and the two cannot share it: their externalTrafficPolicy is not the same, or Local with other pods",
                    ),
                }
            }
            Self::Exhausted(family) => {
                write!(f, "no address pool has an IP{family} address left for this Service")
            }
            Self::NotFor(name) => {
                write!(f, "the address pool {name:?} is for Services of other namespaces than this one's")
            }
            Self::NoPool(family) => {
                write!(f, "no address pool is there for this Service's IP{family} address")
            }
            Self::Incomplete(family) => write!(f, "it needs both families and got no IP{family} address"),
            Self::OfOthers(given) => {
                let (given, verb) = (given.join(" and "), if given.len() == 1 { "is" } else { "are" });
                write!(
                    f,
                    "{given} {verb} in no address pool, and it was not agents of this release who wrote that into the status: the Service is left to who did, and gets no address here"
                )
            }
        }
    }
}

impl Grant {
    /// The Service is somebody else's, and so is its status.
    pub fn is_of_others(&self) -> bool {
        self.refusals.iter().any(|refusal| matches!(refusal, Refusal::OfOthers(_)))
    }
}

impl Claim {
    /// It has an address or a name, and neither is any of these pools' nor was it given by us: somebody else balances
    /// for it. What we gave and no pool has any more is ours to replace.
    fn is_of_others(&self, pools: &[Pool]) -> bool {
        let is_pooled = |addr: &IpAddr| pools.iter().any(|pool| pool.has(*addr));
        !self.foreign.is_empty() && !self.held.iter().any(is_pooled)
    }
}

impl Block {
    /// From the first to the last; `None` if they are of two families or the wrong way round.
    pub fn new(first: IpAddr, last: IpAddr) -> Option<Self> {
        (Family::of(first) == Family::of(last) && first <= last).then_some(Self { first, last })
    }

    /// Of its addresses.
    pub fn family(&self) -> Family {
        Family::of(self.first)
    }

    /// The first of them.
    pub fn first(&self) -> IpAddr {
        self.first
    }

    /// Whether it holds this one.
    pub fn contains(&self, addr: IpAddr) -> bool {
        Family::of(addr) == self.family() && (self.first..=self.last).contains(&addr)
    }

    /// Whether the two have an address in common.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.family() == other.family() && self.first <= other.last && other.first <= self.last
    }

    /// Addresses but one, so that all of IPv6 fits.
    fn span(&self) -> u128 {
        number(self.last) - number(self.first)
    }

    fn nth(&self, n: u128) -> IpAddr {
        address(self.family(), number(self.first).saturating_add(n))
    }
}

fn number(addr: IpAddr) -> u128 {
    match addr {
        IpAddr::V4(addr) => u128::from(u32::from(addr)),
        IpAddr::V6(addr) => u128::from(addr),
    }
}

fn address(family: Family, number: u128) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::from(u32::try_from(number).unwrap_or(u32::MAX)).into(),
        Family::V6 => Ipv6Addr::from(number).into(),
    }
}

impl FromStr for Block {
    type Err = String;

    /// `192.0.2.0/28`, `192.0.2.1-192.0.2.9` or `192.0.2.7`; IPv6 alike.
    fn from_str(text: &str) -> Result<Self, String> {
        let refused = || format!("{text:?} is no address, no CIDR block and no range FIRST-LAST");
        let parse = |text: &str| text.trim().parse::<IpAddr>().map_err(|_| refused());
        if let Some((first, last)) = text.split_once('-') {
            return Self::new(parse(first)?, parse(last)?).ok_or_else(refused);
        }
        let Some((addr, bits)) = text.split_once('/') else {
            let addr = parse(text)?;
            return Ok(Self { first: addr, last: addr });
        };
        let addr = parse(addr)?;
        let family = Family::of(addr);
        let width = if family == Family::V4 { 32 } else { 128 };
        let bits: u32 = bits.trim().parse().ok().filter(|bits| *bits <= width).ok_or_else(refused)?;
        let hosts = if width - bits == 128 { u128::MAX } else { (1 << (width - bits)) - 1 };
        let first = number(addr) & !hosts;
        Ok(Self { first: address(family, first), last: address(family, first | hosts) })
    }
}

impl Pool {
    fn allows(&self, claim: &Claim) -> bool {
        let is_asked = claim.pool.as_ref().is_none_or(|name| *name == self.name);
        is_asked && (self.namespaces.is_empty() || self.namespaces.contains(&claim.service.namespace))
    }

    /// It may be looked into for this one.
    fn is_open(&self, claim: &Claim, family: Family) -> bool {
        let is_given = claim.pool.is_some() || self.auto_assign;
        is_given && self.allows(claim) && self.blocks.iter().any(|block| block.family() == family)
    }

    /// It holds this address and gives it away.
    pub fn has(&self, addr: IpAddr) -> bool {
        self.blocks.iter().any(|block| block.contains(addr)) && !(self.avoid_edges && is_edge(addr))
    }

    /// Addresses of the family, all of them or as many as a search may need, from where the name says.
    fn candidates(&self, family: Family, name: &ObjectName, used: usize) -> impl Iterator<Item = IpAddr> {
        let blocks: Vec<_> = self.blocks.iter().filter(|block| block.family() == family).copied().collect();
        // The number of all, as far as it can be told.
        let total =
            blocks.iter().fold(0_u128, |sum, block| sum.saturating_add(block.span()).saturating_add(1));
        let start = u128::from(scatter(name)).checked_rem(total).unwrap_or(0);
        let probes = total.min(PROBES.saturating_add(used as u128));
        let avoid = self.avoid_edges;
        (0..probes)
            .filter_map(move |step| {
                let mut n = start.checked_add(step)?.checked_rem(total)?;
                blocks.iter().find_map(|block| {
                    if n <= block.span() {
                        return Some(block.nth(n));
                    }
                    n -= block.span() + 1;
                    None
                })
            })
            .filter(move |addr| !(avoid && is_edge(*addr)))
    }
}

fn is_edge(addr: IpAddr) -> bool {
    matches!(addr, IpAddr::V4(addr) if matches!(addr.octets()[3], 0 | 255))
}

/// FNV-1a: nobody gains by two Services that begin at one place.
fn scatter(name: &ObjectName) -> u64 {
    let bytes = name.namespace.bytes().chain([b'/']).chain(name.name.bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Gives addresses to claims, the earlier ones first where two want the same; never one that is `taken`.
pub fn grant(pools: &[Pool], taken: &BTreeSet<IpAddr>, claims: &[&Claim]) -> BTreeMap<ObjectName, Grant> {
    let mut order: Vec<_> = pools.iter().collect();
    // What is for few is not needed by all the others.
    order.sort_by_key(|pool| (pool.namespaces.is_empty(), pool.priority, &pool.name));
    let (used, full) = Default::default();
    let (others, claims): (Vec<&Claim>, Vec<&Claim>) =
        claims.iter().partition(|claim| claim.is_of_others(pools));
    let left = |claim: &Claim| Grant {
        addresses: BTreeMap::new(),
        refusals: vec![Refusal::OfOthers(claim.foreign.clone())],
    };
    let grants = others.into_iter().map(|claim| (claim.service.clone(), left(claim))).collect();
    let mut allocation = Allocation { pools: order, taken, used, full, grants };
    claims.iter().for_each(|claim| allocation.keep(claim));
    claims.iter().for_each(|claim| allocation.requests(claim));
    claims.iter().for_each(|claim| allocation.others(claim));
    allocation.grants
}

struct Allocation<'a> {
    pools: Vec<&'a Pool>,
    /// What nodes have. They would go on answering there themselves.
    taken: &'a BTreeSet<IpAddr>,
    /// Who has what.
    used: BTreeMap<IpAddr, Vec<&'a Claim>>,
    /// Pools, by their place, that have no address of a family left: nobody looks through a large one in vain twice.
    full: BTreeSet<(usize, Family)>,
    grants: BTreeMap<ObjectName, Grant>,
}

impl<'a> Allocation<'a> {
    /// What it holds stays its, unless it asks for something else now.
    fn keep(&mut self, claim: &'a Claim) {
        self.grants.entry(claim.service.clone()).or_default();
        let held =
            claim.held.iter().filter(|addr| claim.requested.is_empty() || claim.requested.contains(addr));
        for addr in held {
            if self.wants(claim, Family::of(*addr)) && self.free(claim, *addr) {
                self.give(claim, *addr);
            }
        }
    }

    fn requests(&mut self, claim: &'a Claim) {
        for addr in &claim.requested {
            if self.grant(claim).addresses.contains_key(addr) {
                continue;
            }
            if !self.wants(claim, Family::of(*addr)) {
                self.grant(claim).refusals.push(Refusal::Unwanted(*addr));
                continue;
            }
            let refusal = match self.owner(claim, *addr) {
                Some((owner, why)) => Refusal::InUse(*addr, owner.service.clone(), why),
                None if self.taken.contains(addr) => Refusal::OfNode(*addr),
                None if self.pool_of(claim, *addr).is_none() => Refusal::NotPooled(*addr),
                None => {
                    self.give(claim, *addr);
                    continue;
                }
            };
            self.grant(claim).refusals.push(refusal);
        }
    }

    fn others(&mut self, claim: &'a Claim) {
        if let Some(name) =
            claim.pool.as_ref().filter(|name| self.pools.iter().all(|pool| pool.name != **name))
        {
            self.grant(claim).refusals.push(Refusal::UnknownPool(name.clone()));
        } else if let Some(name) =
            claim.pool.as_ref().filter(|_| self.pools.iter().all(|pool| !pool.allows(claim)))
        {
            self.grant(claim).refusals.push(Refusal::NotFor(name.clone()));
        } else if claim.requested.is_empty() {
            for family in &claim.families {
                if !self.wants(claim, *family) {
                    continue;
                }
                match self.shared(claim, *family).or_else(|| self.search(claim, *family)) {
                    Some(addr) => self.give(claim, addr),
                    None => {
                        let refusal = match self.pools.iter().any(|pool| pool.is_open(claim, *family)) {
                            true => Refusal::Exhausted(*family),
                            false => Refusal::NoPool(*family),
                        };
                        self.grant(claim).refusals.push(refusal);
                    }
                }
            }
        }
        self.complete(claim);
    }

    /// A Service that needs both families has no use for one.
    fn complete(&mut self, claim: &'a Claim) {
        let missing: Vec<_> =
            claim.families.iter().filter(|family| self.wants(claim, **family)).copied().collect();
        let grant = self.grants.entry(claim.service.clone()).or_default();
        match claim.needs {
            Needs::All if !missing.is_empty() => {
                let given = std::mem::take(&mut grant.addresses);
                for addr in given.keys() {
                    if let Some(users) = self.used.get_mut(addr) {
                        users.retain(|user| user.service != claim.service);
                    }
                }
                self.used.retain(|_, users| !users.is_empty());
                if !given.is_empty() {
                    self.full.clear();
                }
                grant.refusals.extend(missing.into_iter().map(Refusal::Incomplete));
            }
            // It makes do with what it got.
            Needs::Any if !grant.addresses.is_empty() => {
                let is_of_one =
                    |refusal: &Refusal| matches!(refusal, Refusal::Exhausted(_) | Refusal::NoPool(_));
                grant.refusals.retain(|refusal| !is_of_one(refusal));
            }
            Needs::All | Needs::Any => {}
        }
    }

    fn grant(&mut self, claim: &Claim) -> &mut Grant {
        self.grants.entry(claim.service.clone()).or_default()
    }

    /// It shall have an address of the family and has none.
    fn wants(&self, claim: &Claim, family: Family) -> bool {
        let has = self.grants.get(&claim.service);
        let has = has.is_some_and(|grant| grant.addresses.keys().any(|addr| Family::of(*addr) == family));
        claim.families.contains(&family) && !has
    }

    fn pool_of(&self, claim: &Claim, addr: IpAddr) -> Option<&'a Pool> {
        let mut pools = self.pools.iter().filter(|_| !self.taken.contains(&addr));
        pools.find(|pool| pool.allows(claim) && pool.has(addr)).copied()
    }

    /// Who has the address and does not share it with this one, and why.
    fn owner(&self, claim: &Claim, addr: IpAddr) -> Option<(&'a Claim, NotShared)> {
        self.used.get(&addr)?.iter().find_map(|user| Some((*user, not_shared(claim, user)?)))
    }

    fn free(&self, claim: &Claim, addr: IpAddr) -> bool {
        self.pool_of(claim, addr).is_some() && self.owner(claim, addr).is_none()
    }

    fn shared(&self, claim: &Claim, family: Family) -> Option<IpAddr> {
        let key = claim.sharing.as_ref()?;
        let with_key =
            self.used.iter().filter(|(_, users)| users.iter().all(|user| user.sharing.as_ref() == Some(key)));
        with_key.map(|(addr, _)| *addr).find(|addr| Family::of(*addr) == family && self.free(claim, *addr))
    }

    fn search(&mut self, claim: &Claim, family: Family) -> Option<IpAddr> {
        let gone = self.used.len() + self.taken.len();
        for (place, pool) in self.pools.iter().enumerate() {
            if !pool.is_open(claim, family) || self.full.contains(&(place, family)) {
                continue;
            }
            let mut candidates = pool.candidates(family, &claim.service, gone);
            let is_free = |addr: &IpAddr| !self.used.contains_key(addr) && !self.taken.contains(addr);
            match candidates.find(is_free) {
                Some(addr) => return Some(addr),
                None => self.full.insert((place, family)),
            };
        }
        None
    }

    fn give(&mut self, claim: &'a Claim, addr: IpAddr) {
        let Some(pool) = self.pool_of(claim, addr) else { return };
        self.used.entry(addr).or_default().push(claim);
        self.grant(claim).addresses.insert(addr, pool.name.clone());
    }
}

/// One address serves both (`None`): they say so, no packet could be for either, and both keep the client's address alike.
fn not_shared(one: &Claim, other: &Claim) -> Option<NotShared> {
    if one.sharing.is_none() || one.sharing != other.sharing {
        return Some(NotShared::Keys);
    }
    if let Some((protocol, port)) = one.ports.intersection(&other.ports).next() {
        return Some(NotShared::Port(*protocol, *port));
    }
    (one.local_pods != other.local_pods).then_some(NotShared::Policies)
}

#[cfg(test)]
mod tests;

//! Requests by where they were led, what they asked and what they came to: a count and seven histograms
//! for each combination, as many combinations as are allowed.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Method;
use crate::l7::map::Map;
use crate::l7::route::{Labels, Route, Router, Site};
use crate::l7::upstream::Attempt;
use crate::model::metering::{Bounds, Metering};

/// What a finished request came to.
pub(in crate::l7) struct Finished<'a> {
    pub(in crate::l7) method: Method,
    pub(in crate::l7) status: u16,
    pub(in crate::l7) took: Duration,
    /// The upstream's share, if one attempt was enough.
    pub(in crate::l7) attempt: Option<&'a Attempt>,
    /// Bytes, heads and bodies.
    pub(in crate::l7) received: u64,
    pub(in crate::l7) sent: u64,
}

/// What is measured of a request. Those sorted alike stand together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub(super) enum Measure {
    Took,
    Connect,
    Header,
    Response,
    Received,
    Sent,
    SentByMagnitude,
}

const MEASURES: usize = Measure::SentByMagnitude as usize + 1;

/// How histograms are sorted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Scale {
    time: Bounds,
    length: Bounds,
    size: Bounds,
}

impl Scale {
    pub(super) fn bounds(&self, measure: Measure) -> &[f64] {
        match measure {
            Measure::Took | Measure::Connect | Measure::Header | Measure::Response => self.time.as_slice(),
            Measure::Received | Measure::Sent => self.length.as_slice(),
            Measure::SentByMagnitude => self.size.as_slice(),
        }
    }

    /// Where the buckets of a measure begin among those of all, which stand in the order of measures.
    fn start(&self, measure: Measure) -> usize {
        let (time, length) = (self.time.as_slice().len(), self.length.as_slice().len());
        match measure {
            Measure::Took | Measure::Connect | Measure::Header | Measure::Response => time * measure as usize,
            Measure::Received => 4 * time,
            Measure::Sent => 4 * time + length,
            Measure::SentByMagnitude => 4 * time + 2 * length,
        }
    }

    fn buckets(&self) -> usize {
        self.start(Measure::SentByMagnitude) + self.size.as_slice().len()
    }
}

/// Requests of one combination. All buckets lie in one piece: a scrape copies many of these.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Series {
    pub(super) requests: u64,
    /// Of each measure how often, and how much in all.
    totals: [(u64, f64); MEASURES],
    /// Of each measure in turn, by the first bound that is not below the value.
    buckets: Box<[u64]>,
}

impl Series {
    fn new(scale: &Scale) -> Self {
        Self { buckets: vec![0; scale.buckets()].into(), ..Self::default() }
    }

    fn count(&mut self, scale: &Scale, finished: &Finished<'_>) {
        let Finished { method: _, status: _, took, attempt, received, sent } = finished;
        self.requests += 1;
        let seconds = |time: Duration| Some(time.as_secs_f64());
        let header = attempt.and_then(|attempt| attempt.header);
        let (time, length, size) = (scale.time.as_slice(), scale.length.as_slice(), scale.size.as_slice());
        let measured: [(&[f64], Option<f64>); MEASURES] = [
            (time, seconds(*took)),
            (time, attempt.and_then(|attempt| attempt.connect).and_then(seconds)),
            (time, header.and_then(seconds)),
            (time, attempt.filter(|_| header.is_some()).and_then(|attempt| seconds(attempt.response))),
            (length, Some(*received as f64)),
            (length, Some(*sent as f64)),
            (size, Some(*sent as f64)),
        ];
        let mut rest = &mut *self.buckets;
        for ((bounds, value), (count, sum)) in measured.into_iter().zip(&mut self.totals) {
            let (buckets, others) =
                std::mem::take(&mut rest).split_at_mut_checked(bounds.len()).unwrap_or_default();
            rest = others;
            let Some(value) = value else { continue };
            *count += 1;
            *sum += value;
            if let Some((_, bucket)) = bounds.iter().zip(buckets).find(|(bound, _)| value <= **bound) {
                *bucket += 1;
            }
        }
    }

    /// Adds another one, sorted alike.
    pub(super) fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        for ((count, sum), (more, much)) in self.totals.iter_mut().zip(other.totals) {
            *count += more;
            *sum += much;
        }
        if self.buckets.is_empty() {
            self.buckets.clone_from(&other.buckets);
            return;
        }
        self.buckets.iter_mut().zip(other.buckets.iter()).for_each(|(mine, theirs)| *mine += theirs);
    }

    /// How often something was measured, and how much in all.
    pub(super) fn total(&self, measure: Measure) -> (u64, f64) {
        self.totals.get(measure as usize).copied().unwrap_or_default()
    }

    /// How often it came to each bound of the scale and to no lower one.
    pub(super) fn buckets(&self, scale: &Scale, measure: Measure) -> &[u64] {
        let start = scale.start(measure);
        self.buckets.get(start..start + scale.bounds(measure).len()).unwrap_or_default()
    }
}

/// Combination: where it was led, what it asked, what it came to (a status or the first digit of one).
pub(super) type Key = (Arc<Labels>, Method, u16);

/// All series of a worker, or of several added up.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Requests {
    pub(super) scale: Scale,
    /// Most combinations.
    #[serde(skip)]
    limit: usize,
    #[serde(skip)]
    status_classes: bool,
    /// Requests that no Ingress wants are counted, too.
    #[serde(skip)]
    undefined_hosts: bool,
    /// By number of the route.
    #[serde(skip)]
    live: Map<(usize, Method, u16), (Arc<Labels>, Series)>,
    /// Of routes that are gone, for as long as others have their labels.
    #[serde(with = "as_list")]
    pub(super) settled: HashMap<Key, Series>,
    /// What came when there were too many.
    pub(super) overflow: Option<Series>,
}

impl Requests {
    pub(super) fn new(metering: &Metering) -> Self {
        let Metering { time, length, size, series, .. } = metering;
        Self {
            scale: Scale { time: time.clone(), length: length.clone(), size: size.clone() },
            limit: *series,
            status_classes: metering.status_classes,
            undefined_hosts: metering.undefined_hosts || !metering.per_host,
            live: Map::default(),
            settled: HashMap::new(),
            overflow: None,
        }
    }

    /// For those of several workers added up, each within the limit of its own.
    pub(super) fn sum(metering: &Metering) -> Self {
        Self { limit: usize::MAX, ..Self::new(metering) }
    }

    /// The same, empty.
    pub(super) fn anew(&self) -> Self {
        let Self { scale, limit, status_classes, undefined_hosts, .. } = self;
        Self {
            scale: scale.clone(),
            limit: *limit,
            status_classes: *status_classes,
            undefined_hosts: *undefined_hosts,
            live: Map::default(),
            settled: HashMap::new(),
            overflow: None,
        }
    }

    /// `route`: the number of its route, if that is still there.
    pub(super) fn count(&mut self, route: Option<usize>, labels: &Arc<Labels>, finished: &Finished<'_>) {
        if !self.undefined_hosts && labels.are_unclaimed() {
            return;
        }
        let status = if self.status_classes { finished.status / 100 } else { finished.status };
        let is_full = self.live.len() + self.settled.len() >= self.limit;
        let scale = &self.scale;
        let series = match route {
            Some(route) => match self.live.entry((route, finished.method, status)) {
                Entry::Occupied(known) => &mut known.into_mut().1,
                Entry::Vacant(place) => {
                    // The route was made anew, and goes on with what was counted under its labels.
                    let before = self.settled.remove(&(Arc::clone(labels), finished.method, status));
                    match before {
                        None if is_full => self.overflow.get_or_insert_with(|| Series::new(scale)),
                        before => {
                            let series = before.unwrap_or_else(|| Series::new(scale));
                            &mut place.insert((Arc::clone(labels), series)).1
                        }
                    }
                }
            },
            None => {
                let key = (Arc::clone(labels), finished.method, status);
                if is_full && !self.settled.contains_key(&key) {
                    self.overflow.get_or_insert_with(|| Series::new(scale))
                } else {
                    self.settled.entry(key).or_insert_with(|| Series::new(scale))
                }
            }
        };
        series.count(scale, finished);
    }

    /// Routes of these sites are gone, and their series with them, which bounds the memory, unless
    /// another route has their labels now.
    pub(super) fn settle<'r>(&mut self, gone: impl Iterator<Item = &'r Arc<Site>>, next: &Router) {
        let (mut numbers, mut hosts) = (HashSet::new(), HashSet::new());
        for (number, labels) in gone.flat_map(|site| site.routes()).flat_map(Route::labels) {
            numbers.insert(number);
            hosts.insert(labels.host.as_str());
        }
        if numbers.is_empty() {
            return;
        }
        // Once for all: there may be as many series as routes.
        let sites = hosts.iter().filter_map(|host| next.labelled(host));
        let known: HashSet<&Labels> =
            sites.flat_map(Site::routes).flat_map(Route::labels).map(|(_, labels)| &**labels).collect();
        self.settled
            .retain(|(labels, ..), _| !hosts.contains(labels.host.as_str()) || known.contains(&**labels));
        let gone = self.live.extract_if(|(number, ..), _| numbers.contains(number));
        for ((_, method, status), (labels, series)) in gone {
            if !known.contains(&*labels) {
                continue;
            }
            match self.settled.entry((labels, method, status)) {
                Entry::Occupied(mut known) => known.get_mut().add(&series),
                Entry::Vacant(place) => drop(place.insert(series)),
            }
        }
    }

    /// Series of routes that are not there go.
    pub(super) fn forget_unknown(&mut self, router: &Router) {
        self.settled.retain(|(labels, ..), _| router.has(labels));
    }

    /// Adds those of another worker or process. Of one that sorts otherwise the counts are left.
    pub(super) fn add(&mut self, other: &Self) {
        let is_alike = self.scale == other.scale;
        let add = |into: &mut Series, series: &Series| {
            if is_alike {
                into.add(series);
            } else {
                into.requests += series.requests;
            }
        };
        let scale = &self.scale;
        let live = other
            .live
            .iter()
            .map(|((_, method, status), (labels, series))| ((Arc::clone(labels), *method, *status), series));
        let settled = other.settled.iter().map(|(key, series)| (key.clone(), series));
        for (key, series) in live.chain(settled) {
            let is_full = self.live.len() + self.settled.len() >= self.limit;
            let into = if is_full && !self.settled.contains_key(&key) {
                self.overflow.get_or_insert_with(|| Series::new(scale))
            } else {
                self.settled.entry(key).or_insert_with(|| Series::new(scale))
            };
            add(into, series);
        }
        if let Some(series) = &other.overflow {
            add(self.overflow.get_or_insert_with(|| Series::new(scale)), series);
        }
    }
}

impl Default for Requests {
    fn default() -> Self {
        Self::new(&Metering::default())
    }
}

/// Series as a list: JSON has no keys of several parts.
mod as_list {
    use serde::de::Deserializer;
    use serde::ser::Serializer;

    use super::{Deserialize, HashMap, Key, Labels, Method, Series};

    type Settled = HashMap<Key, Series>;

    pub(super) fn serialize<S: Serializer>(settled: &Settled, to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(
            settled.iter().map(|((labels, method, status), series)| (&**labels, method, status, series)),
        )
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Settled, D::Error> {
        let list = Vec::<(Labels, Method, u16, Series)>::deserialize(from)?;
        Ok(list
            .into_iter()
            .map(|(labels, method, status, series)| ((labels.into(), method, status), series))
            .collect())
    }
}

//! What holds for each rule whatever happens: any endpoints, any outcomes, any moments.

use std::collections::BTreeSet;

use proptest::prelude::*;
use proptest::sample::Index;

use super::latency::Latency;
use super::*;
use crate::l7::metrics::Failure;
use crate::model::expression::Expression;
use crate::model::upstream::Ejection;

fn addr(n: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, n], 80))
}

fn addrs(numbers: &BTreeSet<u8>) -> Vec<SocketAddr> {
    numbers.iter().copied().map(addr).collect()
}

fn in_turn(all: &[SocketAddr]) -> Rule {
    Rule::new(&Balance::RoundRobin, all, &[])
}

fn fresh(all: &[SocketAddr], start: usize, now: Instant) -> Rc<Endpoints> {
    Rc::new(Endpoints::new(all, Care::default(), None, start, now))
}

/// Endpoints whose failures eject nobody.
fn patient(all: &[SocketAddr], now: Instant) -> Rc<Endpoints> {
    let care = Care { ejection: Ejection { after: 0, ..Ejection::default() }, ..Care::default() };
    Rc::new(Endpoints::new(all, care, None, 0, now))
}

fn pick(endpoints: &Rc<Endpoints>, rule: &Rule, key: u64, random: &Random, now: Instant) -> Picked {
    endpoints.pick(rule, key, &Tried::default(), random, now).expect("endpoints")
}

fn numbers(least: usize) -> impl Strategy<Value = BTreeSet<u8>> {
    prop::collection::btree_set(any::<u8>(), least..12)
}

/// Some of the endpoints, so few that they are passed over.
fn few(all: &[SocketAddr], chosen: &[Index]) -> BTreeSet<SocketAddr> {
    chosen.iter().take(all.len() / 2).map(|index| all[index.index(all.len())]).collect()
}

fn every_rule(all: &[SocketAddr]) -> [Rule; 5] {
    let key = || Expression::default();
    [
        Balance::RoundRobin,
        Balance::PeakEwma,
        Balance::LeastRequests,
        Balance::Hash(key()),
        Balance::Subset { key: key(), size: 3 },
    ]
    .map(|balance| Rule::new(&balance, all, &[]))
}

/// How the endpoint of a request behaved, and how long after the one before it came.
#[derive(Debug, Clone)]
struct Event {
    endpoint: Index,
    fails: bool,
    after_ms: u64,
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = (any::<Index>(), any::<bool>(), 0u64..20_000);
    let event = event.prop_map(|(endpoint, fails, after_ms)| Event { endpoint, fails, after_ms });
    prop::collection::vec(event, 0..60)
}

proptest! {
    #[test]
    fn turns_are_even_among_those_that_are_well(
        numbers in numbers(1),
        unwell in prop::collection::vec(any::<Index>(), 0..6),
        start in 0usize..40,
        requests in 1usize..200,
    ) {
        let (all, now, random) = (addrs(&numbers), Instant::now(), Random::new(1));
        let (endpoints, unwell) = (fresh(&all, start, now), few(&all, &unwell));
        endpoints.set_unwell(|addr| unwell.contains(addr));
        let mut asked: HashMap<SocketAddr, u32> = HashMap::new();

        for _ in 0..requests {
            *asked.entry(pick(&endpoints, &in_turn(&all), 0, &random, now).addr()).or_default() += 1;
        }

        let counts = || all.iter().filter(|addr| !unwell.contains(addr)).map(|addr| asked.get(addr).copied().unwrap_or(0));
        prop_assert_eq!(counts().sum::<u32>() as usize, requests, "nobody unwell was asked");
        prop_assert!(counts().max() <= counts().min().map(|least| least + 1), "{asked:?}");
    }

    #[test]
    fn after_any_changes_the_next_round_asks_everybody_once(
        changes in prop::collection::vec((numbers(1), 0usize..30), 1..10),
    ) {
        let (now, random) = (Instant::now(), Random::new(1));
        let mut endpoints: Option<Rc<Endpoints>> = None;
        for (numbers, requests) in changes {
            let all = addrs(&numbers);
            let next = Rc::new(Endpoints::new(&all, Care::default(), endpoints.as_deref(), 0, now));
            for _ in 0..requests {
                pick(&next, &in_turn(&all), 0, &random, now);
            }

            let round: Vec<_> = all.iter().map(|_| pick(&next, &in_turn(&all), 0, &random, now).addr()).collect();

            prop_assert_eq!(round.iter().copied().collect::<BTreeSet<_>>(), all.into_iter().collect());
            endpoints = Some(next);
        }
    }

    #[test]
    fn the_busiest_of_all_gets_no_request_where_the_less_busy_of_two_does(
        numbers in numbers(2),
        busiest in any::<Index>(),
        loads in prop::collection::vec(0u32..20, 12),
        seed in any::<u64>(),
    ) {
        let (all, now, random) = (addrs(&numbers), Instant::now(), Random::new(seed));
        let endpoints = fresh(&all, 0, now);
        let rule = Rule::new(&Balance::LeastRequests, &all, &[]);
        let busiest = busiest.index(all.len());
        let mut running = Vec::new();
        for (index, load) in loads.iter().take(all.len()).enumerate() {
            let load = if index == busiest { 20 } else { *load };
            running.extend((0..load).filter_map(|_| Picked::new(Rc::clone(&endpoints), index)));
        }

        for _ in 0..20 {
            let picked = pick(&endpoints, &rule, 0, &random, now);
            prop_assert_ne!(picked.index(), busiest);
        }
    }

    #[test]
    fn what_is_known_of_latency_stays_between_the_last_and_the_worst_and_fades(
        seen in prop::collection::vec((1u64..5_000, 0u64..30_000), 1..40),
        later in 1u64..100_000,
    ) {
        let mut now = Instant::now();
        let latency = Latency::new(0.0, now);
        let mut peak = 0.0_f64;
        for (took, after) in &seen {
            now += Duration::from_millis(*after);
            let took = Duration::from_millis(*took);
            peak = peak.max(took.as_secs_f64());

            latency.observe(took, now);

            let at = latency.at(now);
            prop_assert!(at >= took.as_secs_f64() - 1e-9 && at <= peak + 1e-9, "{took:?} {at} {peak}");
        }
        let (soon, late) = (now + Duration::from_millis(later), now + Duration::from_millis(later * 2));
        prop_assert!(latency.at(late) < latency.at(soon) && latency.at(soon) < latency.at(now));
    }

    #[test]
    fn who_just_failed_is_not_asked_again_at_once_by_latency(
        numbers in numbers(3),
        dead in any::<Index>(),
        gaps in prop::collection::vec(1u64..50, 100),
        seed in any::<u64>(),
    ) {
        let (all, random) = (addrs(&numbers), Random::new(seed));
        let mut now = Instant::now();
        // Without ejection: the rule alone has to do it.
        let endpoints = patient(&all, now);
        let rule = Rule::new(&Balance::PeakEwma, &all, &[]);
        let dead = dead.index(all.len());
        let mut failed: Option<Instant> = None;
        for gap in gaps {
            now += Duration::from_millis(gap);
            let picked = pick(&endpoints, &rule, 0, &random, now);
            if picked.index() == dead {
                let pause = failed.map(|failed| now - failed);
                prop_assert!(pause.is_none_or(|pause| pause > Duration::from_secs(5)), "{pause:?}");
                picked.failed(Failure::Connect.into(), Duration::ZERO, now);
                failed = Some(now);
            } else {
                picked.succeeded(Duration::from_millis(100), now);
            }
        }
    }

    #[test]
    fn a_key_has_one_endpoint_and_only_those_of_the_unwell_move(
        numbers in numbers(2),
        unwell in prop::collection::vec(any::<Index>(), 0..6),
        keys in prop::collection::vec(any::<u64>(), 50),
        seeds in any::<[u64; 2]>(),
    ) {
        let (all, now) = (addrs(&numbers), Instant::now());
        let rule = Rule::new(&Balance::Hash(Expression::default()), &all, &[]);
        // Two workers with different pasts.
        let (one, other) = (fresh(&all, 0, now), fresh(&all, 3, now));
        let random = seeds.map(Random::new);
        let unwell = few(&all, &unwell);
        for key in keys {
            one.set_unwell(|_| false);
            let usual = pick(&one, &rule, key, &random[0], now).addr();
            prop_assert_eq!(usual, pick(&other, &rule, key, &random[1], now).addr());

            one.set_unwell(|addr| unwell.contains(addr));
            let instead = pick(&one, &rule, key, &random[0], now).addr();

            prop_assert!(!unwell.contains(&instead));
            prop_assert!(instead == usual || unwell.contains(&usual));
        }
    }

    #[test]
    fn a_key_has_as_many_endpoints_as_its_subset_should(
        numbers in numbers(1),
        size in 1usize..6,
        keys in prop::collection::vec(any::<u64>(), 2),
        seed in any::<u64>(),
    ) {
        let (all, now, random) = (addrs(&numbers), Instant::now(), Random::new(seed));
        let rule = Rule::new(&Balance::Subset { key: Expression::default(), size }, &all, &[]);
        let endpoints = fresh(&all, 0, now);
        for key in keys {
            let asked: BTreeSet<_> = (0..120).map(|_| pick(&endpoints, &rule, key, &random, now).addr()).collect();

            prop_assert_eq!(asked.len(), size.min(all.len()));
        }
    }

    #[test]
    fn whatever_fails_somebody_is_asked_and_everybody_comes_back(
        numbers in numbers(1),
        events in events(),
        unwell in prop::collection::vec(any::<Index>(), 0..20),
        seed in any::<u64>(),
    ) {
        let (all, random) = (addrs(&numbers), Random::new(seed));
        let mut now = Instant::now();
        let endpoints = fresh(&all, 0, now);
        let unwell: BTreeSet<_> = unwell.iter().map(|index| all[index.index(all.len())]).collect();
        endpoints.set_unwell(|addr| unwell.contains(addr));
        let rules = every_rule(&all);
        for Event { endpoint, fails, after_ms } in events {
            now += Duration::from_millis(after_ms);
            let index = endpoint.index(all.len());
            let picked = Picked::new(Rc::clone(&endpoints), index).expect("an endpoint");
            match fails {
                true => picked.failed(Failure::Connect.into(), Duration::from_millis(1), now),
                false => {
                    picked.succeeded(Duration::from_millis(1), now);
                }
            }
            for rule in &rules {
                prop_assert!(endpoints.pick(rule, random.word(), &Tried::default(), &random, now).is_some());
            }
        }
        endpoints.set_unwell(|_| false);
        now += Care::default().ejection.longest;

        let round: BTreeSet<_> = all.iter().map(|_| pick(&endpoints, &in_turn(&all), 0, &random, now).addr()).collect();

        prop_assert_eq!(round.len(), all.len());
    }

    #[test]
    fn a_new_endpoint_takes_ever_more_until_it_takes_all(
        start_ms in 1u64..120_000,
        moments in prop::collection::btree_set(0u64..200_000, 2..30),
    ) {
        let (old, both, now) = ([addr(1)], [addr(1), addr(2)], Instant::now());
        let care = Care { slow_start: Duration::from_millis(start_ms), ..Care::default() };
        let before = Endpoints::new(&old, care, None, 0, now);
        let endpoints = Endpoints::new(&both, care, Some(&before), 0, now);
        let mut least = 0.0;
        for moment in moments {
            let share = endpoints.share(1, now + Duration::from_millis(moment));

            prop_assert_eq!(share.is_none(), moment >= start_ms);
            let share = share.unwrap_or(1.0);
            prop_assert!(share >= least && share > 0.0 && share <= 1.0, "{share} after {least}");
            least = share;
        }
        prop_assert_eq!(endpoints.share(0, now), None, "who was there is not held back");
    }
}

#[test]
fn a_request_of_an_older_snapshot_takes_no_news_from_the_newer_one() {
    let (all, random, now) = ([addr(1), addr(2), addr(3)], Random::new(7), Instant::now());
    let rule = in_turn(&all);
    let older = fresh(&all, 0, now);
    let newer = Rc::new(Endpoints::new(&all, Care::default(), Some(&older), 0, now));
    pick(&newer, &rule, 0, &random, now);

    newer.set_unwell(|endpoint| *endpoint == addr(1));
    pick(&older, &rule, 0, &random, now);

    for _ in 0..6 {
        assert_ne!(pick(&newer, &rule, 0, &random, now).addr(), addr(1));
    }
}

//! What each rule makes of ten endpoints of which one is slow, one dead and one new, in time that
//! is only counted.

use std::collections::{BTreeSet, BinaryHeap};

use super::*;
use crate::l7::metrics::Failure;
use crate::model::upstream::Ejection;

const SEED: u64 = 7;

/// How an endpoint behaves.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    /// Answers after so many milliseconds, one request at a time for each of its eight hands.
    Answers(u64),
    /// Refuses at once.
    Dead,
}

/// What came of it.
#[derive(Debug)]
struct Outcome {
    /// Requests that each endpoint got.
    asked: Vec<u64>,
    /// Milliseconds within which half and 99 of 100 were answered.
    median: u64,
    p99: u64,
    /// Attempts at endpoints that refused.
    refused: u64,
    /// Requests that nobody answered.
    lost: u64,
}

fn addrs(n: usize) -> Vec<SocketAddr> {
    (0..n).map(|i| SocketAddr::from(([10, 0, 0, i as u8], 80))).collect()
}

/// Sends `requests`, one a millisecond, each to at most three endpoints.
fn simulate(balance: &Balance, kinds: &[Kind], care: Care, requests: u64) -> Outcome {
    let start = Instant::now();
    let all = addrs(kinds.len());
    let rule = Rule::new(balance, &all, &[]);
    let endpoints = Rc::new(Endpoints::new(&all, care, None, 0, start));
    let random = Random::new(SEED);
    let mut outcome = Outcome { asked: vec![0; kinds.len()], median: 0, p99: 0, refused: 0, lost: 0 };
    let mut times = Vec::new();
    // Hands of each endpoint, by when they are free.
    let mut hands = vec![vec![0u64; 8]; kinds.len()];
    let mut running: BinaryHeap<(std::cmp::Reverse<u64>, usize, u64)> = BinaryHeap::new();
    let mut picks: HashMap<usize, Picked> = HashMap::new();
    for request in 0..requests {
        let ms = request;
        while let Some((std::cmp::Reverse(end), id, began)) =
            running.peek().copied().filter(|(end, ..)| end.0 <= ms)
        {
            running.pop();
            let picked = picks.remove(&id).expect("runs");
            picked.succeeded(Duration::from_millis(end - began), start + Duration::from_millis(end));
        }
        let now = start + Duration::from_millis(ms);
        let key = random.word();
        let mut tried = Tried::default();
        let mut answered = false;
        for _ in 0..3 {
            let picked = endpoints.pick(&rule, key, &tried, &random, now).expect("endpoints");
            let index = picked.index();
            outcome.asked[index] += 1;
            match kinds[index] {
                Kind::Dead => {
                    outcome.refused += 1;
                    picked.failed(Failure::Connect.into(), Duration::ZERO, now);
                    tried.add(index);
                }
                Kind::Answers(takes) => {
                    let hand = hands[index].iter_mut().min().expect("hands");
                    let end = (*hand).max(ms) + takes;
                    *hand = end;
                    times.push(end - ms);
                    running.push((std::cmp::Reverse(end), request as usize, ms));
                    picks.insert(request as usize, picked);
                    answered = true;
                    break;
                }
            }
        }
        outcome.lost += u64::from(!answered);
    }
    times.sort_unstable();
    outcome.median = times[times.len() / 2];
    outcome.p99 = times[times.len() * 99 / 100];
    outcome
}

fn key() -> crate::model::expression::Expression {
    crate::model::expression::Expression::default()
}

fn every_rule() -> [Balance; 5] {
    [
        Balance::RoundRobin,
        Balance::PeakEwma,
        Balance::LeastRequests,
        Balance::Hash(key()),
        Balance::Subset { key: key(), size: 3 },
    ]
}

#[test]
fn equal_endpoints_get_equal_parts() {
    for balance in every_rule() {
        let outcome = simulate(&balance, &[Kind::Answers(5); 10], Care::default(), 20_000);

        let within = match balance {
            Balance::RoundRobin => 2000..=2000,
            Balance::Hash(_) | Balance::Subset { .. } => 1500..=2500,
            Balance::PeakEwma | Balance::LeastRequests => 1800..=2200,
        };
        assert!(outcome.asked.iter().all(|asked| within.contains(asked)), "{balance:?} {outcome:?}");
    }
}

#[test]
fn a_slow_endpoint_is_spared_by_the_rules_that_look() {
    let mut kinds = [Kind::Answers(5); 10];
    kinds[3] = Kind::Answers(400);
    for balance in [Balance::PeakEwma, Balance::LeastRequests] {
        let outcome = simulate(&balance, &kinds, Care::default(), 20_000);

        assert!(outcome.asked[3] < 400, "{balance:?} {outcome:?}");
        assert_eq!((outcome.median, outcome.lost), (5, 0), "{balance:?} {outcome:?}");
    }
    // Turn by turn it gets a tenth of everything, five times what it can do.
    let outcome = simulate(&Balance::RoundRobin, &kinds, Care::default(), 20_000);
    assert_eq!(outcome.asked[3], 2000);
    assert!(outcome.p99 > 10_000, "{outcome:?}");
}

#[test]
fn a_dead_endpoint_is_left_alone_and_costs_nobody_an_answer() {
    let mut kinds = [Kind::Answers(5); 10];
    kinds[3] = Kind::Dead;
    for balance in every_rule() {
        let outcome = simulate(&balance, &kinds, Care::default(), 20_000);

        // Five failures, then one for each pause that ended; where time counts, one is enough.
        assert!((1..=8).contains(&outcome.refused), "{balance:?} {outcome:?}");
        assert_eq!(outcome.lost, 0, "{balance:?}");
    }
    let off = Care { ejection: Ejection { after: 0, ..Ejection::default() }, ..Care::default() };
    let outcome = simulate(&Balance::RoundRobin, &kinds, off, 20_000);
    // It and its successor in turn: every ninth request has to ask another one.
    assert_eq!((outcome.refused, outcome.lost), (2222, 0));
}

#[test]
fn where_most_are_dead_all_are_asked() {
    let mut kinds = [Kind::Dead; 10];
    kinds[..3].fill(Kind::Answers(5));
    for balance in every_rule() {
        let outcome = simulate(&balance, &kinds, Care::default(), 2000);

        assert!(outcome.asked.iter().all(|asked| *asked > 20), "{balance:?} {outcome:?}");
    }
}

#[test]
fn where_most_are_dead_who_was_let_down_goes_to_the_others() {
    for alive in [1, 3, 4] {
        let mut kinds = [Kind::Dead; 10];
        kinds[..alive].fill(Kind::Answers(5));
        for balance in every_rule() {
            let outcome = simulate(&balance, &kinds, Care::default(), 20_000);

            // Those of the start, and some at the moments when many come back from a pause at once.
            assert!(outcome.lost < 200, "{alive} alive, {balance:?} {outcome:?}");
        }
    }
}

#[test]
fn who_failed_a_request_is_asked_again_after_everybody_else_by_it() {
    let (start, random, all) = (Instant::now(), Random::new(SEED), addrs(2));
    for balance in every_rule() {
        let endpoints = Rc::new(Endpoints::new(&all, Care::default(), None, 0, start));
        let rule = Rule::new(&balance, &all, &[]);
        endpoints.set_unwell(|addr| *addr == all[0]);
        let mut tried = Tried::default();
        let mut ask = || {
            let index = endpoints.pick(&rule, 0, &tried, &random, start).expect("endpoints").index();
            tried.add(index);
            index
        };

        assert_eq!([ask(), ask(), ask()], [1, 0, 1], "{balance:?}");
    }
}

#[test]
fn a_new_endpoint_starts_slowly_and_ends_equal() {
    let start = Instant::now();
    let care = Care { slow_start: Duration::from_secs(10), ..Care::default() };
    let random = Random::new(SEED);
    for balance in [Balance::RoundRobin, Balance::LeastRequests, Balance::PeakEwma] {
        let before = Rc::new(Endpoints::new(&addrs(9), care, None, 0, start));
        let all = addrs(10);
        let endpoints = Rc::new(Endpoints::new(&all, care, Some(&before), 0, start));
        let rule = Rule::new(&balance, &all, &[]);
        let mut by_second = [0u32; 12];
        let mut running = std::collections::VecDeque::new();

        for ms in 0..12_000 {
            let now = start + Duration::from_millis(ms);
            let picked = endpoints.pick(&rule, 0, &Tried::default(), &random, now).expect("endpoints");
            by_second[ms as usize / 1000] += u32::from(picked.index() == 9);
            running.push_back(picked);
            if running.len() > 20 {
                running.pop_front().expect("some").succeeded(Duration::from_millis(20), now);
            }
        }

        assert!(by_second[0] < 40, "{balance:?} {by_second:?}");
        assert!(by_second[5] < 90, "{balance:?} {by_second:?}");
        assert!((80..=120).contains(&by_second[11]), "{balance:?} {by_second:?}");
    }
}

#[test]
fn an_endpoint_that_was_slow_is_asked_again() {
    let start = Instant::now();
    let random = Random::new(SEED);
    let all = addrs(2);
    let rule = Rule::new(&Balance::PeakEwma, &all, &[]);
    let endpoints = Rc::new(Endpoints::new(&all, Care::default(), None, 0, start));
    let mut asked = 0;

    for ms in 0..60_000 {
        let now = start + Duration::from_millis(ms);
        let picked = endpoints.pick(&rule, 0, &Tried::default(), &random, now).expect("endpoints");
        let is_slow = picked.index() == 0 && ms < 1000;
        asked += u32::from(picked.index() == 0 && ms >= 59_000);
        picked.succeeded(Duration::from_millis(if is_slow { 2000 } else { 20 }), now);
    }

    assert!(asked > 300, "{asked} of the last thousand");
}

#[test]
fn the_unwell_are_passed_over_unless_most_are() {
    let start = Instant::now();
    let random = Random::new(SEED);
    let all = addrs(4);
    let rule = Rule::new(&Balance::RoundRobin, &all, &[]);
    let endpoints = Rc::new(Endpoints::new(&all, Care::default(), None, 0, start));
    let asked = || -> BTreeSet<usize> {
        let pick = || endpoints.pick(&rule, 0, &Tried::default(), &random, start).expect("endpoints").index();
        (0..8).map(|_| pick()).collect()
    };

    endpoints.set_unwell(|addr| all[..2].contains(addr));
    assert_eq!(asked(), BTreeSet::from([2, 3]));
    endpoints.set_unwell(|addr| all[..3].contains(addr));
    assert_eq!(asked(), BTreeSet::from([0, 1, 2, 3]));
    endpoints.set_unwell(|_| false);
    assert_eq!(asked(), BTreeSet::from([0, 1, 2, 3]));
}

#[test]
fn workers_that_start_apart_share_evenly() {
    let all = addrs(10);
    let start = Instant::now();
    let rule = Rule::new(&Balance::RoundRobin, &all, &[]);
    let mut asked = [0; 10];
    for worker in 0..5 {
        let endpoints = Rc::new(Endpoints::new(&all, Care::default(), None, worker * 10 / 5, start));
        for _ in 0..12 {
            let random = Random::new(SEED);
            let picked = endpoints.pick(&rule, 0, &Tried::default(), &random, start).expect("endpoints");
            asked[picked.index()] += 1;
        }
    }

    assert_eq!(asked, [6; 10]);
}

#[test]
fn weights_are_the_parts_that_endpoints_get() {
    let (all, start, random) = (addrs(4), Instant::now(), Random::new(SEED));
    for balance in every_rule() {
        let rule = Rule::new(&balance, &all, &[4, 2, 1, 1]);
        let endpoints = Rc::new(Endpoints::new(&all, Care::default(), None, 0, start));
        let mut asked = [0u32; 4];
        let mut running = std::collections::VecDeque::new();

        for ms in 0..16_000 {
            let now = start + Duration::from_millis(ms);
            let picked =
                endpoints.pick(&rule, random.word(), &Tried::default(), &random, now).expect("endpoints");
            asked[picked.index()] += 1;
            running.push_back(picked);
            if running.len() > 16 {
                running.pop_front().expect("some").succeeded(Duration::from_millis(16), now);
            }
        }

        let within = |count: u32, expected: f64, off: f64| (f64::from(count) / expected - 1.0).abs() <= off;
        let off = match balance {
            Balance::RoundRobin => 0.0,
            Balance::PeakEwma | Balance::LeastRequests => 0.2,
            Balance::Hash(_) => 0.3,
            // Drawn from three of four: the heaviest is no more than one of them.
            Balance::Subset { .. } => continue,
        };
        for (count, expected) in asked.into_iter().zip([8000.0, 4000.0, 2000.0, 2000.0]) {
            assert!(within(count, expected, off), "{balance:?} {asked:?}");
        }
    }
}

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::model::health::Probe;
use crate::model::upstream::Upstream;

const SECOND: Duration = Duration::from_secs(1);

fn endpoint(n: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, n], 80))
}

fn check(interval: Duration) -> Arc<Check> {
    Arc::new(Check::new(Probe::Tcp, interval))
}

fn checked(check: Option<&Arc<Check>>, endpoints: impl IntoIterator<Item = u8>) -> L7 {
    let upstream = Upstream {
        endpoints: endpoints.into_iter().map(endpoint).collect(),
        check: check.cloned(),
        ..Upstream::default()
    };
    L7 { upstreams: [(UpstreamName("a".to_owned()), upstream)].into(), ..L7::default() }
}

/// Runs one endpoint's probe when it is due.
fn next(checks: &mut Checks) -> Due {
    let due = checks.next().expect("somebody is watched");
    checks.begin(due).expect("due")
}

/// A probe that was answered at once.
fn ended(checks: &mut Checks, due: &Due, outcome: Result<(), Fault>) -> Option<News> {
    checks.ended(due, outcome, Instant::now(), SystemTime::UNIX_EPOCH)
}

fn is_well(checks: &Checks) -> bool {
    checks.unwell() == Unwell::default()
}

#[test]
fn an_upstream_that_asks_for_no_check_is_not_watched() {
    let mut checks = Checks::new(1);

    checks.follow(&checked(None, 0..10), Instant::now());

    assert_eq!(checks.next(), None);
}

#[test]
fn whom_the_agent_before_found_unwell_is_so_until_good_answers_raise_it() {
    let finding = Finding { fault: Fault::Timeout, since: SystemTime::UNIX_EPOCH };
    let of = |n: [u8; 2]| BTreeMap::from(n.map(|n| (endpoint(n), finding)));
    let told = Unwell([(UpstreamName("a".to_owned()), of([1, 9]))].into());
    let told = serde_json::from_value(serde_json::to_value(&told).expect("json")).expect("the same");
    let mut checks = Checks::knowing(told, 1);
    checks.follow(&L7::default(), Instant::now());
    checks.follow(&checked(Some(&check(SECOND)), [1]), Instant::now());

    let unwell = checks.unwell();
    assert_eq!(unwell.of(&UpstreamName("a".to_owned())).collect::<Vec<_>>(), [(&endpoint(1), &finding)]);
    let news = [(); 2].map(|()| {
        let due = next(&mut checks);
        ended(&mut checks, &due, Ok(()))
    });
    assert_eq!(news, [None, Some(News::Rose)]);
    checks.follow(&checked(Some(&check(SECOND)), [1, 9]), Instant::now());
    assert!(is_well(&checks), "who comes later is asked first");
}

#[test]
fn as_many_may_be_asked_at_once_as_keep_their_intervals_though_nobody_answers() {
    let mut checks = Checks::new(1);
    let many = |networks: u8| {
        let check = check(10 * SECOND);
        let endpoints =
            (0..networks).flat_map(|network| (0..=199).map(move |n| ([10, 0, network, n], 80).into()));
        let upstream = Upstream { endpoints: endpoints.collect(), check: Some(check), ..Upstream::default() };
        L7 { upstreams: [(UpstreamName("a".to_owned()), upstream)].into(), ..L7::default() }
    };

    for (networks, expected) in [(0, 64), (1, 100), (3, 300), (20, 512), (0, 64)] {
        checks.follow(&many(networks), Instant::now());

        assert_eq!(checks.at_once(), expected, "{networks} times 200 endpoints");
    }
}

#[test]
fn three_bad_answers_in_a_row_fell_a_well_endpoint_and_two_good_ones_raise_it() {
    let mut checks = Checks::new(1);
    checks.follow(&checked(Some(&check(SECOND)), [1]), Instant::now());
    let (good, bad) = (Ok(()), Err(Fault::Timeout));
    let script = [
        (good, None),
        (bad, None),
        (bad, None),
        (good, None),
        (bad, None),
        (bad, None),
        (bad, Some(News::Fell)),
        (good, None),
        (bad, None),
        (Err(Fault::Status(503)), Some(News::OtherFault)),
        (good, None),
        (good, Some(News::Rose)),
        (bad, None),
    ];
    for (n, (outcome, expected)) in script.into_iter().enumerate() {
        let due = next(&mut checks);

        assert_eq!(ended(&mut checks, &due, outcome), expected, "answer {n}");
    }
}

#[test]
fn one_bad_answer_is_enough_for_who_never_gave_a_good_one() {
    let mut checks = Checks::new(1);
    checks.follow(&checked(Some(&check(SECOND)), [1]), Instant::now());
    assert!(is_well(&checks), "ready, and nothing else is known");

    let due = next(&mut checks);
    ended(&mut checks, &due, Err(Fault::Unreachable));

    let finding = Finding { fault: Fault::Unreachable, since: SystemTime::UNIX_EPOCH };
    let of = BTreeMap::from([(endpoint(1), finding)]);
    assert_eq!(checks.unwell(), Unwell(BTreeMap::from([(UpstreamName("a".to_owned()), of)])));
}

#[test]
fn who_leaves_is_asked_no_more_and_an_answer_that_comes_late_counts_for_nothing() {
    let (mut checks, check, now) = (Checks::new(1), check(SECOND), Instant::now());
    checks.follow(&checked(Some(&check), [1]), now);
    let late = next(&mut checks);

    checks.follow(&checked(Some(&check), []), now);
    assert_eq!(checks.next(), None);
    checks.follow(&checked(Some(&check), [1]), now);
    assert_eq!(ended(&mut checks, &late, Err(Fault::Timeout)), None);

    assert!(is_well(&checks));
}

#[test]
fn who_takes_longer_than_an_interval_is_asked_again_when_it_has_answered() {
    let mut checks = Checks::new(1);
    checks.follow(&checked(Some(&check(SECOND)), [1]), Instant::now());
    let asked = checks.next().expect("somebody is watched");
    let slow = next(&mut checks);

    assert_eq!((checks.next(), checks.begin(asked + SECOND * 60)), (None, None));
    let answered = asked + SECOND * 60;
    checks.ended(&slow, Ok(()), answered, SystemTime::UNIX_EPOCH);

    assert_eq!(checks.next(), Some(answered));
}

#[test]
fn what_is_known_outlives_a_change_of_the_check_and_of_others() {
    let (mut checks, now) = (Checks::new(1), Instant::now());
    checks.follow(&checked(Some(&check(SECOND)), [1]), now);
    let due = next(&mut checks);
    ended(&mut checks, &due, Err(Fault::Timeout));
    let before = checks.unwell();

    checks.follow(&checked(Some(&check(SECOND * 9)), [1, 2]), now);

    assert_eq!(checks.unwell(), before);
    assert_eq!(checks.queue.len(), 2);
    checks.follow(&checked(None, [1, 2]), now);
    assert!(is_well(&checks), "nobody asks any more");
    assert_eq!((checks.next(), checks.counts().len()), (None, 0));
}

proptest! {
    #[test]
    fn everybody_is_asked_once_an_interval_and_not_all_at_once(
        seed in any::<u64>(),
        endpoints in prop::collection::btree_set(any::<u8>(), 20..60),
        seconds in 2u64..30,
    ) {
        let interval = Duration::from_secs(seconds);
        let (mut checks, start) = (Checks::new(seed), Instant::now());
        checks.follow(&checked(Some(&check(interval)), endpoints.iter().copied()), start);
        let mut asked: BTreeMap<SocketAddr, Vec<Duration>> = BTreeMap::new();

        while checks.next().is_some_and(|due| due < start + interval * 10) {
            let now = checks.next().expect("somebody");
            let due = next(&mut checks);
            checks.ended(&due, Ok(()), now, SystemTime::UNIX_EPOCH);
            asked.entry(due.target.endpoint).or_default().push(now - start);
        }

        prop_assert_eq!(asked.len(), endpoints.len());
        for times in asked.values() {
            prop_assert!(times[0] < SECOND);
            for gap in times.windows(2).map(|pair| pair[1] - pair[0]) {
                prop_assert!(gap >= interval.mul_f64(0.899) && gap <= interval.mul_f64(1.101), "{gap:?}");
            }
        }
        let firsts: BTreeSet<_> = asked.values().map(|times| times[0].as_millis() / 50).collect();
        prop_assert!(firsts.len() > 5, "spread over {} slices of 50 ms", firsts.len());
    }

    #[test]
    fn the_queue_holds_each_watched_endpoint_once(
        seed in any::<u64>(),
        steps in prop::collection::vec((prop::collection::btree_set(0u8..12, 0..12), 1u64..4, any::<bool>()), 1..30),
    ) {
        let (mut checks, mut now) = (Checks::new(seed), Instant::now());
        for (endpoints, seconds, answers) in steps {
            checks.follow(&checked(Some(&check(Duration::from_secs(seconds))), endpoints.clone()), now);
            now += Duration::from_millis(700);
            while let Some(due) = checks.begin(now) {
                let outcome = if answers { Ok(()) } else { Err(Fault::Closed) };
                checks.ended(&due, outcome, now, SystemTime::UNIX_EPOCH);
            }

            let mut queued: Vec<_> = checks.queue.values().map(|target| target.endpoint).collect();
            queued.sort();
            let watched: Vec<_> = endpoints.into_iter().map(endpoint).collect();
            prop_assert_eq!(queued, watched);
        }
    }
}

#[test]
fn however_long_an_interval_is_an_endpoint_is_asked_once_a_day() {
    let (mut checks, now) = (Checks::new(1), Instant::now());

    checks.follow(&checked(Some(&check(Duration::MAX)), [1]), now);
    let first = next(&mut checks);

    assert_eq!(first.check.interval, Check::LONGEST);
    ended(&mut checks, &first, Ok(()));
    let later = checks.next().expect("somebody is watched");
    assert!(later <= now + Check::LONGEST * 2, "asked again within two days");
}

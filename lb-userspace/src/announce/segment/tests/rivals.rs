//! Others who answer for what we hold, or announce by our name.

use super::*;
use crate::model::announce::Rival;

#[test]
fn a_stranger_that_answers_for_what_we_hold_is_told_and_answered_back_and_a_member_is_not() {
    let mut link = Link::new();
    ["a", "b"].into_iter().for_each(|name| link.come(name, Coming::Anew));
    link.pass(Duration::from_secs(5));
    let held = link.answerers().into_iter().find(|(_, who)| who == &["a"]).map(|(vip, _)| vip);
    let Some(IpAddr::V4(held)) = held else { panic!("a holds none") };
    let stranger = [4, 0, 0, 0, 0, 9];
    let by = |mac| {
        let [request, reply] = frame::announce_v4(mac, held);
        let asker = Question::V4 { mac: [4; 6], asker: Ipv4Addr::UNSPECIFIED, target: held };
        [request, reply, frame::answer(mac, &asker)]
    };
    for (case, mac, expected) in [
        ("a member", [2, 0, 0, 0, 0, b'b'], BTreeSet::new()),
        ("itself", [2, 0, 0, 0, 0, b'a'], BTreeSet::new()),
        ("a stranger", stranger, BTreeSet::from([Rival::Answers { mac: stranger, vip: held.into() }])),
    ] {
        for frame in by(mac) {
            link.told.clear();
            let a = link.agents.get_mut("a").expect("an agent");
            a.is_news = false;
            a.rivals = Rivals::default();

            assert_eq!(a.heard(&frame, link.now), None);

            assert_eq!(
                (a.announced("eth0").rivals, a.is_news),
                (expected.clone(), !expected.is_empty()),
                "{case}"
            );
            link.pass(Duration::from_millis(100));
            assert_eq!(link.told.contains(&("a", held.into())), !expected.is_empty(), "{case}");
        }
    }

    link.pass(Duration::from_secs(91));
    assert_eq!(link.agents["a"].announced("eth0").rivals, BTreeSet::new());
    for frame in by(stranger) {
        link.agents.get_mut("b").expect("an agent").heard(&frame, link.now);
    }
    assert_eq!(link.agents["b"].announced("eth0").rivals, BTreeSet::new(), "it is not b that holds it");
}

#[test]
fn whoever_has_an_address_that_we_hold_is_asked_so_every_minute() {
    let mut link = Link::new();
    link.come("a", Coming::Anew);
    link.pass(Duration::from_secs(5));
    let now = link.now + Duration::from_secs(60);

    let frames = link.agents.get_mut("a").expect("an agent").tick(now);

    let probed = frames.iter().filter_map(|frame| match frame::question(frame)? {
        Question::V4 { asker, target, .. } if asker.is_unspecified() => Some(IpAddr::V4(target)),
        Question::V6 { asker, target, .. } if asker.is_unspecified() => Some(IpAddr::V6(target)),
        _ => None,
    });
    assert_eq!(probed.collect::<BTreeSet<_>>(), offers().into_keys().collect());
}

#[test]
fn another_host_of_our_name_is_told_and_a_successor_is_not() {
    let mut link = Link::new();
    link.come("a", Coming::Anew);
    link.pass(Duration::from_secs(3));
    let wall = link.wall();
    let twin = |mac| {
        Segment::new(
            "a".to_owned(),
            mac,
            heartbeat::key(Some([7; 16])),
            Coming::Anew,
            DRAIN,
            (link.now, wall),
        )
    };
    let elsewhere = [2, 0, 0, 0, 0, 9];
    for (case, mac, expected) in [
        ("a successor", [2, 0, 0, 0, 0, b'a'], BTreeSet::new()),
        ("another host", elsewhere, BTreeSet::from([Rival::Namesake { mac: elsewhere }])),
    ] {
        let mut other = twin(mac);
        let later = link.now + Duration::from_secs(2);
        let frames = other.tick(later);
        assert!(!frames.is_empty());
        let a = link.agents.get_mut("a").expect("an agent");

        frames.iter().for_each(|frame| drop(a.heard(frame, later)));

        assert_eq!(a.announced("eth0").rivals, expected, "{case}");
        assert_eq!(a.announced("eth0").members, ["a"], "{case}");
    }
}

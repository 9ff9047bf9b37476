mod crowds;

use std::net::Ipv4Addr;

use super::*;
use crate::model::announce::Former;

mod rivals;

/// How long who leaves goes on with its connections.
const DRAIN: Duration = Duration::from_secs(30);

/// Agents on one link: what one sends, the others hear.
struct Link {
    start: Instant,
    /// Their clock at the start.
    wall: u64,
    now: Instant,
    agents: BTreeMap<&'static str, Segment>,
    /// Addresses told to all, by whom, in order.
    told: Vec<(&'static str, IpAddr)>,
    /// Hosts without an agent that are up.
    up: BTreeSet<&'static str>,
    /// Questions whether a host is up.
    asked: usize,
}

/// Address of a node.
fn node(name: &str) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, name.as_bytes()[0])
}

fn mac(name: &str) -> Mac {
    [2, 0, 0, 0, 0, name.as_bytes()[0]]
}

fn vip(n: u16) -> IpAddr {
    let [high, low] = n.to_be_bytes();
    IpAddr::V4(Ipv4Addr::new(203, 0, 113 + high, low))
}

fn offers() -> BTreeMap<IpAddr, bool> {
    let six = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1));
    (0..30).map(vip).chain([six]).map(|vip| (vip, true)).collect()
}

impl Link {
    fn new() -> Self {
        let now = Instant::now();
        let wall = 1_700_000_000_000_000;
        let (agents, told, up) = (BTreeMap::new(), Vec::new(), BTreeSet::new());
        Self { start: now, wall, now, agents, told, up, asked: 0 }
    }

    fn come(&mut self, name: &'static str, coming: Coming) {
        self.come_with(name, coming, &offers());
    }

    fn come_with(&mut self, name: &'static str, coming: Coming, offers: &BTreeMap<IpAddr, bool>) {
        let now = (self.now, self.wall());
        let mut segment =
            Segment::new(name.to_owned(), mac(name), heartbeat::key(Some([7; 16])), coming, DRAIN, now);
        let nodes = ["a", "b", "c"].map(|name| (name.to_owned(), BTreeSet::from([node(name).into()])));
        segment.knows(&Arc::new(nodes.into()));
        segment.wish(offers, BTreeSet::new(), self.now);
        self.agents.insert(name, segment);
    }

    /// Their clock.
    fn wall(&self) -> u64 {
        self.wall + self.now.duration_since(self.start).as_micros() as u64
    }

    /// Runs for so long, in steps of a tenth of a second.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.now += Duration::from_millis(100);
            let names: Vec<&'static str> = self.agents.keys().copied().collect();
            for name in names {
                let sent = self.agents.get_mut(name).map(|agent| agent.tick(self.now)).unwrap_or_default();
                sent.iter().for_each(|frame| self.send(name, frame));
            }
        }
    }

    fn send(&mut self, from: &'static str, frame: &[u8]) {
        if let Some(Question::V4 { asker, target, .. }) = frame::question(frame)
            && asker == target
        {
            self.told.push((from, IpAddr::V4(target)));
        }
        if let Some(Question::V4 { target, asker, .. }) = frame::question(frame)
            && asker.is_unspecified()
            && !frame.starts_with(&frame::BROADCAST)
        {
            self.asked += 1;
            let host = self.up.iter().find(|name| node(name) == target && frame.starts_with(&mac(name)));
            if let Some(answer) = host.map(|name| reply(name, from, target)) {
                let asker = self.agents.get_mut(from).expect("who asks");
                assert_eq!(asker.heard(&answer, self.now), None, "it is no question");
            }
        }
        for (name, agent) in &mut self.agents {
            if *name != from {
                let answer = agent.heard(frame, self.now);
                assert!(answer.is_none() || is_probe(frame), "an announcement is no question");
            }
        }
    }

    /// Who answers for each address.
    fn answerers(&mut self) -> BTreeMap<IpAddr, Vec<&'static str>> {
        self.answerers_of(30)
    }

    /// For so many of them.
    fn answerers_of(&mut self, count: u16) -> BTreeMap<IpAddr, Vec<&'static str>> {
        let mut found: BTreeMap<IpAddr, Vec<&'static str>> = BTreeMap::new();
        for vip in (0..count).map(vip) {
            let IpAddr::V4(target) = vip else { continue };
            let answers = found.entry(vip).or_default();
            for (name, agent) in &mut self.agents {
                let asker = Ipv4Addr::new(192, 0, 2, 7);
                answers.extend(agent.heard(&request(asker, target), self.now).map(|_| *name));
            }
        }
        found
    }

    /// An agent leaves by a word.
    fn leave(&mut self, name: &'static str) {
        let farewell = self.agents.remove(name).map(|mut agent| agent.leave(self.now)).expect("an agent");
        self.send(name, &farewell);
    }

    /// Whom an agent takes for the former holders of what it holds.
    fn formers(&self, name: &str) -> BTreeMap<IpAddr, Former> {
        self.agents[name].announced("eth0").formers
    }

    fn each_is_held_by_one(&mut self) -> BTreeSet<&'static str> {
        let answerers = self.answerers();
        assert!(answerers.values().all(|who| who.len() == 1), "{answerers:?}");
        answerers.values().flatten().copied().collect()
    }
}

/// Whether a holder asks if anybody else has its address: who thinks so, too, may say it.
fn is_probe(frame: &[u8]) -> bool {
    frame::question(frame).is_some_and(|question| question.is_probe())
}

/// A host tells that it is up.
fn reply(name: &str, asker: &str, target: Ipv4Addr) -> Vec<u8> {
    frame::answer(mac(name), &Question::V4 { mac: mac(asker), asker: Ipv4Addr::UNSPECIFIED, target })
}

fn request(asker: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let mut frame = frame::ethernet(frame::BROADCAST, [4; 6], 0x0806);
    frame.extend([0, 1, 8, 0, 6, 4, 0, 1, 4, 4, 4, 4, 4, 4]);
    frame.extend(asker.octets());
    frame.extend([0; 6]);
    frame.extend(target.octets());
    frame
}

#[test]
fn each_address_is_answered_for_by_one_of_those_who_are_there() {
    let mut link = Link::new();
    link.come("a", Coming::Anew);
    link.pass(Duration::from_secs(1));
    assert!(link.answerers().values().all(Vec::is_empty), "who has just come listens");
    link.pass(Duration::from_secs(1));
    assert_eq!(link.each_is_held_by_one(), BTreeSet::from(["a"]));

    link.come("b", Coming::Anew);
    link.come("c", Coming::Anew);
    for _ in 0..30 {
        link.pass(Duration::from_millis(100));
        link.each_is_held_by_one();
    }
    assert_eq!(link.each_is_held_by_one(), BTreeSet::from(["a", "b", "c"]));
}

#[test]
fn who_falls_silent_is_replaced_within_a_second_and_a_half_and_who_leaves_at_once() {
    let mut link = Link::new();
    ["a", "b", "c"].into_iter().for_each(|name| link.come(name, Coming::Anew));
    link.pass(Duration::from_secs(5));
    let before = link.answerers();
    link.told.clear();

    link.agents.remove("b");
    link.pass(Duration::from_millis(1500));
    assert_eq!(link.each_is_held_by_one(), BTreeSet::from(["a", "c"]));
    for (vip, who) in link.answerers() {
        assert!(before[&vip] == ["b"] || before[&vip] == who, "{vip} moved for nothing");
        assert!(link.told.contains(&(who[0], vip)), "{vip} was not told to all");
    }

    let farewell = link.agents.remove("c").map(|mut agent| agent.leave(link.now)).expect("an agent");
    link.send("c", &farewell);
    assert_eq!(link.each_is_held_by_one(), BTreeSet::from(["a"]));
}

#[test]
fn who_left_by_a_word_is_known_as_former_holder_until_its_connections_are_over() {
    let mut link = Link::new();
    ["a", "b"].into_iter().for_each(|name| link.come(name, Coming::Anew));
    link.pass(Duration::from_secs(5));
    let before = link.answerers();
    assert_eq!(link.formers("a"), BTreeMap::new(), "who came first took nothing from anybody");

    link.leave("b");

    let a = Former { name: "b".to_owned(), mac: [2, 0, 0, 0, 0, b'b'] };
    let formers = link.formers("a");
    for (vip, who) in before {
        let expected = (who == ["b"]).then_some(&a);
        assert_eq!(formers.get(&vip), expected, "{vip}");
    }
    assert!(link.agents["a"].announced("eth0").agents.contains(&a.mac));
    link.pass(DRAIN - Duration::from_secs(1));
    assert_eq!(link.formers("a"), formers);
    link.agents.get_mut("a").expect("an agent").is_news = false;
    link.pass(Duration::from_secs(1));
    assert_eq!(link.formers("a"), BTreeMap::new());
    assert!(link.agents["a"].is_news, "the kernel part is told so");
    assert!(link.agents["a"].announced("eth0").agents.is_empty());
}

#[test]
fn a_former_holder_whose_host_goes_down_is_none_any_more() {
    for (case, answers, remain) in
        [("it stays up", true, true), ("it never answers", false, true), ("it goes down", true, false)]
    {
        let mut link = Link::new();
        ["a", "b"].into_iter().for_each(|name| link.come(name, Coming::Anew));
        link.pass(Duration::from_secs(5));
        assert_eq!(link.asked, 0, "{case}: members are heard");
        link.up.extend(answers.then_some("b"));
        link.leave("b");
        let formers = link.formers("a");
        assert!(!formers.is_empty());
        link.pass(Duration::from_secs(1));

        if !remain {
            link.up.clear();
        }
        link.agents.get_mut("a").expect("an agent").is_news = false;
        link.pass(Duration::from_secs(2));
        assert_eq!(link.formers("a"), formers, "{case}: two answers may be lost");
        link.pass(Duration::from_secs(3));

        assert_eq!(link.formers("a"), if remain { formers } else { BTreeMap::new() }, "{case}");
        assert_eq!(link.agents["a"].is_news, !remain, "{case}: the kernel part is told so");
        link.asked = 0;
        link.pass(Duration::from_secs(5));
        assert_eq!(link.asked, if remain { 5 } else { 0 }, "{case}");
    }
}

#[test]
fn who_fell_silent_is_no_former_holder() {
    let mut link = Link::new();
    ["a", "b"].into_iter().for_each(|name| link.come(name, Coming::Anew));
    link.pass(Duration::from_secs(5));

    link.agents.remove("b");
    link.pass(Duration::from_secs(2));

    assert_eq!(link.each_is_held_by_one(), BTreeSet::from(["a"]));
    assert_eq!(link.formers("a"), BTreeMap::new());
}

#[test]
fn who_takes_addresses_back_knows_who_held_them_meanwhile_for_as_long_as_that_is_there() {
    let mut link = Link::new();
    link.come("b", Coming::Anew);
    link.pass(Duration::from_secs(3));
    link.come("a", Coming::Anew);
    link.pass(Duration::from_secs(600));
    let held = link.answerers().into_iter().filter(|(_, who)| who == &["a"]).map(|(vip, _)| vip);
    let held: BTreeSet<IpAddr> = held.collect();

    let by_name: BTreeSet<_> = link.formers("a").into_values().map(|former| former.name).collect();
    assert_eq!(by_name, BTreeSet::from(["b".to_owned()]));
    assert!(held.iter().all(|vip| link.formers("a").contains_key(vip)));
    assert_eq!(link.formers("b"), BTreeMap::new(), "what it holds it has held all the time");

    // It leaves, and has its time for what it has.
    link.leave("b");
    link.pass(DRAIN - Duration::from_secs(1));
    assert!(held.iter().all(|vip| link.formers("a").contains_key(vip)));
    // Who leaves sends nobody anything any more.
    let mut a = link.agents.remove("a").expect("an agent");
    a.leave(link.now);
    assert_eq!(a.announced("eth0").formers, BTreeMap::new());
}

#[test]
fn a_former_holder_that_falls_silent_is_forgotten_and_one_whose_hardware_address_changes_is_followed() {
    let mut link = Link::new();
    link.come("b", Coming::Anew);
    link.pass(Duration::from_secs(3));
    link.come("a", Coming::Anew);
    link.pass(Duration::from_secs(3));
    assert!(!link.formers("a").is_empty());

    link.agents.get_mut("b").expect("an agent").mac = [2, 0, 0, 0, 0, 9];
    link.agents.get_mut("a").expect("an agent").is_news = false;
    link.pass(Duration::from_secs(1));
    assert!(link.formers("a").values().all(|former| former.mac == [2, 0, 0, 0, 0, 9]));
    assert!(link.agents["a"].is_news, "the kernel part is told so");

    link.agents.remove("b");
    link.pass(Duration::from_secs(2));
    assert_eq!(link.formers("a"), BTreeMap::new());
}

#[test]
fn nothing_is_handed_on_of_addresses_whose_connections_others_may_take_before_the_proxy() {
    let mut link = Link::new();
    link.come("b", Coming::Anew);
    link.pass(Duration::from_secs(3));
    link.come("a", Coming::Anew);
    link.pass(Duration::from_secs(3));
    let all = link.formers("a");
    let shared = *all.keys().next().expect("one that moved");
    let expected: BTreeMap<_, _> = all.clone().into_iter().filter(|(vip, _)| *vip != shared).collect();

    for (shortcuts, expected) in [(BTreeSet::from([shared]), expected), (BTreeSet::new(), all)] {
        let agent = link.agents.get_mut("a").expect("an agent");
        agent.is_news = false;
        agent.keep_to_us(shortcuts.clone());
        assert!(agent.is_news, "the kernel part is told so");
        agent.is_news = false;
        agent.keep_to_us(shortcuts);
        assert!(!agent.is_news);
        assert_eq!(link.formers("a"), expected);
    }
}

#[test]
fn an_address_that_moves_on_has_the_newest_former_holder() {
    let mut link = Link::new();
    link.come("a", Coming::Anew);
    link.pass(Duration::from_secs(3));
    link.come("b", Coming::Anew);
    link.pass(Duration::from_secs(3));
    link.come("c", Coming::Anew);
    link.pass(Duration::from_secs(3));
    let answerers = link.answerers();
    link.leave("b");

    for (name, others) in [("a", ["b", "c"]), ("c", ["a", "b"])] {
        for (vip, former) in link.formers(name) {
            assert!(others.contains(&&*former.name), "{vip} {former:?}");
            let held_before = answerers.get(&vip).is_some_and(|who| who == &["b"]);
            assert!(!held_before || former.name == "b", "{vip} was held by b and not by {}", former.name);
        }
    }
}

#[test]
fn a_link_that_was_cut_has_one_answer_again_when_it_heals() {
    let mut link = Link::new();
    ["a", "b"].into_iter().for_each(|name| link.come(name, Coming::Anew));
    link.pass(Duration::from_secs(3));
    let away = link.agents.remove("b").expect("an agent");
    link.pass(Duration::from_secs(3));
    assert_eq!(link.each_is_held_by_one(), BTreeSet::from(["a"]));
    link.told.clear();

    link.agents.insert("b", away);
    link.pass(Duration::from_secs(1));

    // All addresses are told again, because some were told by both.
    let told: BTreeSet<_> = link.told.iter().copied().collect();
    for (vip, who) in link.answerers() {
        assert!(who.len() == 1 && told.contains(&(who[0], vip)), "{vip} {who:?}");
    }
}

#[test]
fn who_cannot_serve_an_address_does_not_hold_it_and_who_has_it_does() {
    let mut link = Link::new();
    ["a", "b"].into_iter().for_each(|name| link.come(name, Coming::Anew));
    link.pass(Duration::from_secs(2));
    let held_by_a: BTreeSet<IpAddr> =
        link.answerers().into_iter().filter(|(_, who)| who == &["a"]).map(|(vip, _)| vip).collect();
    assert!(held_by_a.len() > 2);
    let mut declined = held_by_a.iter();
    let (cannot, owns) = (*declined.next().expect("one"), *declined.next().expect("another"));
    let mut without = offers();
    without.insert(cannot, false);
    let now = link.now;
    link.agents.get_mut("a").expect("an agent").wish(&without, BTreeSet::new(), now);
    link.agents.get_mut("b").expect("an agent").wish(&offers(), BTreeSet::from([owns]), now);
    link.pass(Duration::from_millis(500));

    let answerers = link.answerers();
    assert_eq!(answerers[&cannot], ["b"]);
    assert_eq!(answerers[&owns], Vec::<&str>::new(), "its host answers itself");
    let (a, b) = (link.agents["a"].announced("eth0"), link.agents["b"].announced("eth0"));
    assert_eq!((a.holders[&owns].as_deref(), b.holders[&owns].as_deref()), (Some("b"), Some("b")));

    // Nobody can.
    link.agents.get_mut("b").expect("an agent").wish(&without, BTreeSet::new(), now);
    link.pass(Duration::from_millis(500));
    assert_eq!(link.answerers()[&cannot], Vec::<&str>::new());
    assert_eq!(link.agents["a"].announced("eth0").holders[&cannot], None);
}

#[test]
fn who_serves_none_of_many_addresses_is_left_none_of_them() {
    let all = |can| (0..300).map(|n| (vip(n), can)).collect::<BTreeMap<IpAddr, bool>>();
    let mut link = Link::new();
    link.come_with("a", Coming::Anew, &all(false));
    link.come_with("b", Coming::Anew, &all(true));

    link.pass(Duration::from_secs(3));

    assert!(link.answerers_of(300).values().all(|who| who == &["b"]));
    // The other way round, and some that both can serve.
    let some = (0..300).map(|n| (vip(n), n % 3 == 0)).collect();
    let now = link.now;
    link.agents.get_mut("a").expect("an agent").wish(&all(true), BTreeSet::new(), now);
    link.agents.get_mut("b").expect("an agent").wish(&some, BTreeSet::new(), now);
    link.pass(Duration::from_millis(100));
    let answerers = link.answerers_of(300);
    assert!(answerers.values().all(|who| who.len() == 1), "{answerers:?}");
    assert!((0..300).all(|n| n % 3 == 0 || answerers[&vip(n)] == ["a"]), "{answerers:?}");
    assert!(answerers.values().any(|who| who == &["b"]));
}

#[test]
fn what_some_do_not_know_of_is_held_by_one_who_does() {
    let mut link = Link::new();
    link.come_with("a", Coming::Anew, &(0..10).map(|n| (vip(n), true)).collect());
    link.come("b", Coming::Anew);

    link.pass(Duration::from_secs(3));

    assert_eq!(link.each_is_held_by_one(), BTreeSet::from(["a", "b"]));
    let answerers = link.answerers();
    assert!((10..30).all(|n| answerers[&vip(n)] == ["b"]), "{answerers:?}");
}

#[test]
fn a_part_that_is_lost_changes_nothing_until_the_next_heartbeat() {
    let all: BTreeMap<IpAddr, bool> = (0..300).map(|n| (vip(n), true)).collect();
    let mut link = Link::new();
    ["a", "b"].into_iter().for_each(|name| link.come_with(name, Coming::Anew, &all));
    link.pass(Duration::from_secs(5));
    let before = link.answerers_of(300);

    for lost in 0..3 {
        link.now += Duration::from_millis(300);
        let mut parts = link.agents.get_mut("a").expect("an agent").tick(link.now);
        parts.retain(|frame| Heartbeat::of_frame(frame, &heartbeat::key(Some([7; 16]))).is_some());
        assert_eq!(parts.len(), 3);
        parts.remove(lost);
        parts.iter().for_each(|frame| link.send("a", frame));
        link.pass(Duration::from_millis(100));
        assert_eq!(link.answerers_of(300), before, "without part {lost}");
    }
}

#[test]
fn what_was_recorded_counts_for_nothing() {
    let mut link = Link::new();
    ["a", "b"].into_iter().for_each(|name| link.come(name, Coming::Anew));
    link.pass(Duration::from_secs(3));
    let farewell = link.agents.remove("b").map(|mut agent| agent.leave(link.now)).expect("an agent");
    link.send("b", &farewell);
    assert_eq!(link.each_is_held_by_one(), BTreeSet::from(["a"]));
    link.now += Duration::from_millis(1);
    link.come("b", Coming::Anew);
    link.pass(Duration::from_secs(3));
    let before = link.answerers();

    link.send("b", &farewell);

    assert_eq!(link.answerers(), before);
    let mut gone = link.agents.remove("b").expect("an agent");
    let recorded = gone.heartbeat(link.now);
    let farewell = gone.leave(link.now);
    link.send("b", &farewell);
    recorded.iter().for_each(|frame| link.send("b", frame));
    assert_eq!(link.each_is_held_by_one(), BTreeSet::from(["a"]), "who left does not come back by it");

    // A clock that was set back has its node wait for a minute, not for the years.
    link.wall = 0;
    link.come("b", Coming::Anew);
    link.pass(Duration::from_secs(63));
    assert_eq!(link.each_is_held_by_one(), BTreeSet::from(["a", "b"]));
}

#[test]
fn whoever_comes_all_is_told_again_once_a_second_at_most() {
    let mut link = Link::new();
    link.come_with("a", Coming::Anew, &BTreeMap::from([(vip(1), true)]));
    link.pass(Duration::from_secs(10));
    link.told.clear();

    for n in 0..100 {
        link.now += Duration::from_millis(10);
        let stranger =
            Heartbeat { name: format!("stranger-{n}"), number: 1, parts: 1, ..Heartbeat::default() };
        link.send("stranger", &stranger.to_frame([2; 6], &heartbeat::key(Some([7; 16]))));
        let frames = link.agents.get_mut("a").expect("an agent").tick(link.now);
        frames.iter().for_each(|frame| link.send("a", frame));
    }
    link.pass(Duration::from_secs(5));

    // Three times is a burst of its own; strangers came and went for three seconds.
    assert!((3..=8).contains(&link.told.len()), "{}", link.told.len());
}

#[test]
fn a_successor_that_knows_of_nothing_yet_says_nothing() {
    let mut link = Link::new();
    ["a", "b"].into_iter().for_each(|name| link.come(name, Coming::Anew));
    link.pass(Duration::from_secs(3));
    let before = link.answerers();

    let mut successor = Segment::new(
        "a".to_owned(),
        [2, 0, 0, 0, 0, b'a'],
        heartbeat::key(Some([7; 16])),
        Coming::Succeeding,
        DRAIN,
        (link.now, link.wall()),
    );
    for _ in 0..10 {
        link.pass(Duration::from_millis(100));
        assert_eq!(successor.tick(link.now), Vec::<Vec<u8>>::new());
    }
    assert_eq!(link.answerers(), before);
}

#[test]
fn a_successor_keeps_its_nodes_place_while_it_listens() {
    let mut link = Link::new();
    ["a", "b"].into_iter().for_each(|name| link.come(name, Coming::Anew));
    link.pass(Duration::from_secs(3));
    let before = link.answerers();

    link.come("a", Coming::Succeeding);
    for _ in 0..20 {
        link.pass(Duration::from_millis(100));
        let answerers = link.answerers();
        assert!(answerers.iter().all(|(vip, who)| before[vip] == ["a"] || *who == ["b"]), "{answerers:?}");
    }
    assert_eq!(link.answerers(), before);
    // Whom its node took addresses over from it has not heard. Without it they were another's, most likely that one's.
    let formers = link.formers("a");
    for (vip, who) in before {
        let name = formers.get(&vip).map(|former| &*former.name);
        assert_eq!(name, (who == ["a"]).then_some("b"), "{vip}");
    }
}

#[test]
fn who_takes_an_address_is_not_answered_by_who_gives_it_up() {
    let mut link = Link::new();
    link.come("a", Coming::Anew);
    link.come("b", Coming::Anew);
    link.pass(Duration::from_secs(3));
    let six = *offers().keys().next_back().expect("an address");
    let holder = if link.agents["a"].plans.contains_key(&six) { "a" } else { "b" };
    let other = if holder == "a" { "b" } else { "a" };
    let agent = link.agents.get_mut(holder).expect("an agent");

    assert_eq!(
        agent.heard(&frame::probe(mac(other), six), link.now),
        None,
        "all would hear that, and come here"
    );
    assert!(agent.heard(&frame::probe(mac("z"), six), link.now).is_some(), "nobody else may take it");
}

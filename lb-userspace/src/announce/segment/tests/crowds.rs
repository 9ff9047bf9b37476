//! Many who ask, and many who say that they are members.

use super::*;

#[test]
fn a_flood_of_questions_is_answered_in_part() {
    let mut link = Link::new();
    link.come("a", Coming::Anew);
    link.pass(Duration::from_secs(2));
    let agent = link.agents.get_mut("a").expect("an agent");
    let question = request(Ipv4Addr::new(192, 0, 2, 7), Ipv4Addr::new(203, 0, 113, 1));

    let answered = (0..10_000).filter(|_| agent.heard(&question, link.now).is_some()).count();

    assert_eq!(answered, 2_000);
    assert_eq!(agent.counted.unanswered, 8_000);
    assert!(agent.heard(&question, link.now + Duration::from_secs(1)).is_some());
}

#[test]
fn a_crowd_of_strangers_has_few_elections_a_second() {
    let mut link = Link::new();
    link.come("a", Coming::Anew);
    link.pass(Duration::from_secs(2));
    let agent = link.agents.get_mut("a").expect("an agent");
    agent.is_news = false;

    let mut elections = 0;
    for n in 0..500_u64 {
        let serves = BTreeSet::from([n as u32]);
        let stranger =
            Heartbeat { name: format!("stranger-{n}"), number: 1, parts: 1, serves, ..Heartbeat::default() };
        agent.met(stranger, [2; 6], link.now + Duration::from_millis(n));
        elections += u32::from(std::mem::take(&mut agent.is_news));
    }

    assert!((1..=15).contains(&elections), "{elections} in half a second");
    let tick = link.now + Duration::from_millis(600);
    agent.tick(tick);
    assert!(std::mem::take(&mut agent.is_news), "what is left over is for the next tick");
    agent.tick(tick);
    assert!(!agent.is_news);
}

#[test]
fn what_all_members_name_together_is_bounded() {
    let mut link = Link::new();
    link.come("a", Coming::Anew);
    link.pass(Duration::from_secs(2));
    let agent = link.agents.get_mut("a").expect("an agent");
    let many = TAGS as u32 / 4;

    for n in 0..6 {
        let serves = (0..many).collect();
        let stranger =
            Heartbeat { name: format!("stranger-{n}"), number: 1, parts: 1, serves, ..Heartbeat::default() };
        agent.met(stranger, [2; 6], link.now);
    }

    assert_eq!(agent.members.values().map(Member::named).sum::<usize>(), TAGS);
    assert_eq!(agent.members.values().filter(|member| member.is_known).count(), 4);
}

use super::*;

const OLD: Mac = Mac([2, 0, 0, 0, 0, 1]);
const NEW: Mac = Mac([2, 0, 0, 0, 0, 2]);

fn hop(last: u8) -> Hop {
    (3, IpAddr::from([10, 0, 0, last]))
}

fn entry(hop: Hop, state: NeighbourState, mac: Option<Mac>) -> NeighbourMessage {
    let mut entry = NeighbourMessage::default();
    entry.header.family = AddressFamily::Inet;
    entry.header.ifindex = hop.0;
    entry.header.state = state;
    let IpAddr::V4(v4) = hop.1 else { panic!("tests use IPv4") };
    entry.attributes.push(NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)));
    entry.attributes.extend(mac.map(|mac| NeighbourAttribute::LinkLayerAddress(mac.0.to_vec())));
    entry
}

fn using(hops: &[Hop]) -> Neighbours {
    let mut neighbours = Neighbours::default();
    neighbours.set_used(hops.iter().map(|hop| (hop, 1)), BTreeSet::new());
    neighbours
}

#[test]
fn a_new_next_hop_is_asked_for_at_once_and_only_once() {
    let mut neighbours = using(&[hop(1)]);

    assert_eq!(neighbours.first(), [(hop(1), Ask::Resolve)]);
    assert_eq!(neighbours.first(), []);
}

#[test]
fn a_new_next_hop_that_does_not_answer_is_asked_for_often_for_a_while() {
    let mut neighbours = using(&[hop(1)]);
    neighbours.first();
    assert_eq!(neighbours.silent().next(), None);

    let asks: Vec<Vec<(Hop, Ask)>> =
        (0..5).flat_map(|_| [neighbours.verify(), neighbours.overdue()]).collect();

    let anew = vec![(hop(1), Ask::Anew)];
    assert_eq!(asks[..6], vec![anew; 6]);
    assert_eq!(asks[7..], [vec![], vec![(hop(1), Ask::Resolve)], vec![]]);
    assert_eq!(neighbours.silent().collect::<Vec<_>>(), [hop(1)]);
    neighbours.hear(&entry(hop(1), NeighbourState::Reachable, Some(OLD)));
    assert_eq!(neighbours.silent().next(), None);
}

#[test]
fn one_that_answers_is_left_alone_and_one_that_does_not_is_asked_for_by_broadcast() {
    let mut neighbours = using(&[hop(1), hop(2)]);
    for hop in [hop(1), hop(2)] {
        neighbours.hear(&entry(hop, NeighbourState::Stale, Some(OLD)));
    }

    assert_eq!(neighbours.verify(), [(hop(1), Ask::Verify), (hop(2), Ask::Verify)]);
    neighbours.hear(&entry(hop(1), NeighbourState::Probe, Some(OLD)));
    neighbours.hear(&entry(hop(2), NeighbourState::Probe, Some(OLD)));
    neighbours.hear(&entry(hop(1), NeighbourState::Reachable, Some(OLD)));

    assert_eq!(neighbours.overdue(), [(hop(2), Ask::Anew)]);
    assert_eq!(neighbours.overdue(), []);
}

#[test]
fn the_last_mac_serves_until_another_is_heard_or_the_kernel_gives_up() {
    let mut neighbours = using(&[hop(1)]);
    let mut news = |state, mac| (neighbours.hear(&entry(hop(1), state, mac)), neighbours.mac(hop(1)));

    assert_eq!(news(NeighbourState::Reachable, Some(OLD)), (News::Hop(hop(1)), Some(OLD)));
    assert_eq!(news(NeighbourState::None, Some(OLD)), (News::None, Some(OLD)));
    assert_eq!(news(NeighbourState::Incomplete, None), (News::None, Some(OLD)));
    assert_eq!(news(NeighbourState::Reachable, Some(NEW)), (News::Hop(hop(1)), Some(NEW)));
    assert_eq!(news(NeighbourState::Failed, None), (News::Hop(hop(1)), None));
}

#[test]
fn nobody_is_told_of_neighbours_that_are_not_used_or_did_not_move() {
    let mut neighbours = using(&[hop(1)]);
    neighbours.hear(&entry(hop(1), NeighbourState::Reachable, Some(OLD)));

    assert_eq!(neighbours.hear(&entry(hop(2), NeighbourState::Reachable, Some(OLD))), News::None);
    assert_eq!(neighbours.hear(&entry(hop(1), NeighbourState::Stale, Some(OLD))), News::None);
}

#[test]
fn an_entry_that_somebody_else_keeps_is_never_touched() {
    let learned = |mut entry: NeighbourMessage| {
        entry.header.flags = NeighbourFlags::ExtLearned;
        entry
    };
    let managed = |mut entry: NeighbourMessage| {
        entry.attributes.push(NeighbourAttribute::ExtFlags(NeighbourExtFlags::Managed));
        entry
    };
    for (case, entry) in [
        ("permanent", entry(hop(1), NeighbourState::Permanent, Some(OLD))),
        ("learned by a routing daemon", learned(entry(hop(1), NeighbourState::Reachable, Some(OLD)))),
        ("managed", managed(entry(hop(1), NeighbourState::Stale, Some(OLD)))),
    ] {
        let mut neighbours = using(&[hop(1)]);
        neighbours.hear(&entry);

        assert_eq!(neighbours.mac(hop(1)), Some(OLD), "{case}");
        assert_eq!([neighbours.first(), neighbours.verify(), neighbours.overdue()].concat(), [], "{case}");
    }
}

#[test]
fn thousands_are_asked_in_turn_and_the_busiest_every_round() {
    let hops: Vec<Hop> = (0..1000u32).map(|number| (3, IpAddr::from(number.to_be_bytes()))).collect();
    let mut neighbours = Neighbours::default();
    neighbours
        .set_used(hops.iter().enumerate().map(|(at, hop)| (hop, usize::from(at == 500))), BTreeSet::new());

    let rounds: Vec<Vec<Hop>> =
        (0..31).map(|_| neighbours.verify().into_iter().map(|(hop, _)| hop).collect()).collect();

    assert!(rounds.iter().all(|round| round.len() == BUDGET && round.contains(&hops[500])));
    let asked: BTreeSet<Hop> = rounds.into_iter().flatten().collect();
    assert_eq!(asked.len(), hops.len());
}

#[test]
fn what_was_announced_during_a_dump_is_newer_than_the_dump() {
    let mut neighbours = using(&[hop(1), hop(2), hop(3)]);
    for hop in [hop(1), hop(2), hop(3)] {
        neighbours.hear(&entry(hop, NeighbourState::Reachable, Some(OLD)));
    }

    neighbours.begin_dump();
    neighbours.hear(&entry(hop(1), NeighbourState::Reachable, Some(NEW)));
    let dump = [hop(1), hop(2)].map(|hop| entry(hop, NeighbourState::Reachable, Some(OLD)));
    let changed = neighbours.end_dump(&dump, &[]);

    assert_eq!(changed, BTreeSet::new());
    assert_eq!([1, 2, 3].map(|last| neighbours.mac(hop(last))), [Some(NEW), Some(OLD), Some(OLD)]);
    assert_eq!(neighbours.verify().last(), Some(&(hop(3), Ask::Resolve)), "the third is asked for");
}

#[test]
fn a_bridge_tells_behind_which_port_a_mac_lives() {
    let at = |port, state| {
        let mut entry = NeighbourMessage::default();
        entry.header.family = AddressFamily::Bridge;
        entry.header.ifindex = port;
        entry.header.state = state;
        entry.attributes =
            vec![NeighbourAttribute::Controller(9), NeighbourAttribute::LinkLayerAddress(OLD.0.to_vec())];
        entry
    };
    let mut neighbours = Neighbours::default();
    neighbours.set_used(std::iter::empty(), [9].into());

    assert_eq!(neighbours.hear(&at(4, NeighbourState::Permanent)), News::None, "a port's own address");
    assert_eq!(neighbours.port(9, OLD), None);
    assert_eq!(neighbours.hear(&at(4, NeighbourState::Reachable)), News::Port);
    assert_eq!(neighbours.hear(&at(5, NeighbourState::Reachable)), News::Port);
    assert_eq!(neighbours.port(9, OLD), Some(5));
    assert_eq!(neighbours.hear_gone(&at(5, NeighbourState::Reachable)), News::Port);
    assert_eq!(neighbours.port(9, OLD), None);
}

#[test]
fn one_that_answers_neither_unicast_nor_broadcast_is_doubted_before_the_kernel_gives_up() {
    let mut neighbours = using(&[hop(1), hop(2)]);
    for hop in [hop(1), hop(2)] {
        neighbours.hear(&entry(hop, NeighbourState::Reachable, Some(OLD)));
    }
    neighbours.verify();
    neighbours.hear(&entry(hop(2), NeighbourState::Reachable, Some(OLD)));
    assert_eq!(neighbours.overdue(), [(hop(1), Ask::Anew)]);
    neighbours.hear(&entry(hop(1), NeighbourState::Incomplete, None));
    assert!(!neighbours.is_doubted(hop(1)), "it had no time to answer");

    assert_eq!(neighbours.doubt(), [hop(1)]);
    assert_eq!(neighbours.doubt(), [], "told once");

    assert_eq!([1, 2].map(|last| neighbours.is_doubted(hop(last))), [true, false]);
    assert_eq!(neighbours.mac(hop(1)), Some(OLD), "where there is no other, it serves");
    let back = neighbours.hear(&entry(hop(1), NeighbourState::Reachable, Some(OLD)));
    assert_eq!((back, neighbours.is_doubted(hop(1))), (News::Hop(hop(1)), false));
}

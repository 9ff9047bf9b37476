//! The fast path's shortcuts beside the tables that they follow, after every step of random plans.

use lb_common::shortcut::WAYS;
use lb_common::{Addr, AddrEntry, TCP, VipEntry, config, wire_port};
use proptest::prelude::*;

use super::tests::{place, pool_id, vip_addr, worlds};
use super::*;
use crate::datapath::want::{Owner, Target};
use crate::model::l4::Listener;

/// Worlds some of whose VIPs are the proxy's, for some sources, or at an address of the host.
fn mixed_worlds() -> impl Strategy<Value = Vec<Want>> {
    (worlds(), any::<u64>()).prop_map(|(mut worlds, seed)| {
        for (number, want) in worlds.iter_mut().enumerate() {
            let bits = seed.rotate_left(number as u32 * 16);
            for vip in 0..4u8 {
                if !want.vips.contains_key(&place(vip)) {
                    continue;
                }
                match bits >> (4 * vip) & 7 {
                    0 => {
                        want.addrs.insert(vip_addr(vip), Owner::Node);
                    }
                    1 => {
                        want.vips.insert(place(vip), Target::Punt(Listener::Https));
                    }
                    2 => {
                        want.ranges.insert(place(vip), BTreeSet::new());
                    }
                    _ => {}
                }
            }
        }
        worlds
    })
}

/// The record of a VIP that decides alone, and whether its address is ours, by the tables.
fn by_tables(tables: &Tables, place: &Place) -> (Option<u32>, bool) {
    let epoch = config::epoch(&tables.config);
    if epoch.is_empty() {
        return (None, false);
    }
    let addr = AddrEntry::find(&tables.addrs, epoch, place.addr.into());
    let vip = VipEntry::find(&tables.vips, epoch, VipEntry::key(addr, wire_port(place.port), TCP));
    let decides = !addr.is_none() && addr.odd() | vip.odd() == 0;
    (decides.then(|| vip.record()), !addr.is_none())
}

fn by_shortcuts(tables: &Tables, place: &Place) -> (Option<u32>, bool) {
    let addr = Addr::from(place.addr);
    (tables.shortcut(addr, place.shortcut()), tables.may_be_ours(addr))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn after_every_step_shortcuts_lead_where_the_tables_do_or_nowhere(worlds in mixed_worlds()) {
        let (tables, mut book) = (Tables::owned(), Book::default());
        for want in worlds {
            for op in &book.plan(&want, 0).ops {
                op.apply(&tables, &mut ());
                for place in (0..4).map(place) {
                    let ((record, ours), (found, perhaps)) = (by_tables(&tables, &place), by_shortcuts(&tables, &place));
                    prop_assert!(found.is_none() || found == record, "{place:?}: {found:?}, not {record:?}");
                    prop_assert!(perhaps || !ours, "{place:?} is ours");
                }
            }
            for place in (0..4).map(place) {
                prop_assert_eq!(by_shortcuts(&tables, &place), by_tables(&tables, &place));
            }
        }
    }
}

/// What an agent closed that was killed before the switch, the next one opens.
#[test]
fn shortcuts_open_again_by_the_tables_alone() {
    let (tables, mut book, mut want) = (Tables::owned(), Book::default(), Want::default());
    want.addrs.insert(vip_addr(1), Owner::Vip);
    want.vips.insert(place(1), Target::Pool(pool_id(1)));
    want.pools.insert(pool_id(1), crate::datapath::want::Pool::default());
    book.plan(&want, 0).ops.iter().for_each(|op| op.apply(&tables, &mut ()));
    tables.narrow_shortcuts(&[], &[]);
    assert_eq!(by_shortcuts(&tables, &place(1)), (None, true));

    tables.open_shortcuts();

    assert!(by_tables(&tables, &place(1)).0.is_some());
    assert_eq!(by_shortcuts(&tables, &place(1)), by_tables(&tables, &place(1)));
}

#[test]
fn vips_that_want_the_same_lines_are_found_as_long_as_there_is_room() {
    let (tables, mut book, mut want) = (Tables::owned(), Book::default(), Want::default());
    let at = |port| Place { port, ..place(1) };
    let lines = |place: &Place| place.shortcut().line() / WAYS;
    let places: Vec<Place> = (1..).map(at).filter(|place| lines(place) == lines(&at(1))).take(10).collect();
    want.addrs.insert(vip_addr(1), Owner::Vip);
    want.pools.insert(pool_id(1), crate::datapath::want::Pool::default());
    for place in &places {
        want.vips.insert(*place, Target::Pool(pool_id(1)));
    }

    book.plan(&want, 0).ops.iter().for_each(|op| op.apply(&tables, &mut ()));

    let found = places.iter().filter(|place| {
        let ((record, _), (found, _)) = (by_tables(&tables, place), by_shortcuts(&tables, place));
        assert!(
            record.is_some() && (found.is_none() || found == record),
            "{place:?}: {found:?}, not {record:?}"
        );
        found.is_some()
    });
    assert_eq!(found.count(), WAYS as usize);
}

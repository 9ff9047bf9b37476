//! VIPs that share their place in the lookup tables with too many others.

use lb_common::UDP;

use super::*;

/// Adds VIPs of one address to a wish that crowd two buckets of the VIP table: one more than they hold.
fn crowd(want: &mut Want, book: &Book, vip: u8) -> Vec<Place> {
    let id = book.addr_ids.get(&vip_addr(vip)).copied().expect("an address in force");
    let mut pairs: BTreeMap<u32, Vec<Place>> = BTreeMap::new();
    for (port, protocol) in (1..=u16::MAX).flat_map(|port| [(port, Protocol::Tcp), (port, Protocol::Udp)]) {
        let proto = if protocol == Protocol::Tcp { TCP } else { UDP };
        let key = VipEntry::key(AddrEntry::vip(id), wire_port(port), proto);
        let pair = VipEntry::bucket(key, maps::VIP_LINES.trailing_zeros()) / 2;
        pairs.entry(pair).or_default().push(Place { addr: vip_addr(vip), port, protocol });
    }
    let mut places = pairs.into_values().find(|places| places.len() > 16).expect("16 are the average");
    places.truncate(17);
    for place in &places {
        want.vips.insert(*place, Target::Pool(pool_id(vip)));
    }
    places
}

#[test]
fn vips_that_crowd_a_bucket_cost_one_of_them_and_no_other_service_anything() {
    let tables = Tables::owned();
    let mut book = Book::default();
    let mut want = Want::default();
    (0..3).for_each(|vip| serve(&mut want, vip, &[vip + 1]));
    assert_eq!(carry_out(&mut book, &want, &tables), 0);

    let crowd = crowd(&mut want, &book, 1);
    let plan = book.plan(&want, 0);
    plan.ops.iter().for_each(|op| op.apply(&tables, &mut ()));
    let [problem] = &plan.problems[..] else { panic!("{:?}", plan.problems) };
    assert_eq!(problem.object.name, pool_id(1).service.name);
    assert!(problem.message.starts_with("1 of its VIPs are not served"), "{problem:?}");

    // Told as long as it lasts; all others come, change and go, and nothing that they leave is kept.
    let only = |backend| BTreeSet::from([(backend_addr(backend), true)]);
    serve(&mut want, 3, &[4]);
    assert_eq!((carry_out(&mut book, &want, &tables), ends(&tables, 3)), (1, only(4)));
    want.addrs.remove(&vip_addr(2));
    want.vips.remove(&place(2));
    assert_eq!((carry_out(&mut book, &want, &tables), ends(&tables, 2)), (1, BTreeSet::new()));
    want.ranges.insert(place(0), BTreeSet::new());
    assert_eq!((carry_out(&mut book, &want, &tables), ends(&tables, 0)), (1, only(1)));
    assert_eq!(book.lingering, Retired::default());

    for place in crowd {
        want.vips.remove(&place);
    }
    assert_eq!(carry_out(&mut book, &want, &tables), 0);
}

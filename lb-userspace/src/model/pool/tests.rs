use proptest::prelude::*;

use super::*;

fn pool(name: &str, blocks: &[&str]) -> Pool {
    Pool {
        name: name.to_owned(),
        blocks: blocks.iter().map(|text| text.parse().expect("a block")).collect(),
        auto_assign: true,
        namespaces: BTreeSet::new(),
        priority: 0,
        avoid_edges: false,
    }
}

fn claim(name: &str) -> Claim {
    Claim {
        service: ObjectName::new("shop", name),
        families: vec![Family::V4],
        needs: Needs::Any,
        requested: Vec::new(),
        pool: None,
        held: Vec::new(),
        foreign: Vec::new(),
        sharing: None,
        ports: BTreeSet::from([(Protocol::Tcp, 80)]),
        local_pods: None,
    }
}

fn grant(pools: &[Pool], claims: &[Claim]) -> BTreeMap<ObjectName, Grant> {
    super::grant(pools, &BTreeSet::new(), &claims.iter().collect::<Vec<_>>())
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// The grant of one Service; its addresses and what it was refused.
fn of(grants: &BTreeMap<ObjectName, Grant>, name: &str) -> (Vec<String>, Vec<String>) {
    let Grant { addresses, refusals } = &grants[&ObjectName::new("shop", name)];
    (addresses.keys().map(ToString::to_string).collect(), refusals.iter().map(ToString::to_string).collect())
}

#[test]
fn blocks_are_read_as_people_write_them() {
    let cases = [
        ("192.0.2.0/30", Some(("192.0.2.0", "192.0.2.3"))),
        ("192.0.2.7/30", Some(("192.0.2.4", "192.0.2.7"))),
        ("192.0.2.1-192.0.2.9", Some(("192.0.2.1", "192.0.2.9"))),
        ("192.0.2.1 - 192.0.2.9", Some(("192.0.2.1", "192.0.2.9"))),
        ("192.0.2.7", Some(("192.0.2.7", "192.0.2.7"))),
        ("0.0.0.0/0", Some(("0.0.0.0", "255.255.255.255"))),
        ("2001:db8::/126", Some(("2001:db8::", "2001:db8::3"))),
        ("::/0", Some(("::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"))),
        ("192.0.2.9-192.0.2.1", None),
        ("192.0.2.9-2001:db8::1", None),
        ("192.0.2.0/33", None),
        ("shop", None),
        ("", None),
    ];
    for (text, expected) in cases {
        let expected = expected.map(|(first, last)| Block { first: ip(first), last: ip(last) });
        assert_eq!(text.parse::<Block>().ok(), expected, "case {text:?}");
    }
}

#[test]
fn a_service_gets_one_address_of_each_of_its_families_however_many_it_asks_for() {
    let pools = [pool("a", &["192.0.2.0/24", "2001:db8::/120"])];
    let greedy =
        Claim { requested: vec![ip("192.0.2.1"), ip("192.0.2.2"), ip("2001:db8::1")], ..claim("greedy") };

    let (addresses, refusals) = of(&grant(&pools, &[greedy]), "greedy");

    assert_eq!(addresses, ["192.0.2.1"]);
    let more =
        |addr| format!("{addr} is one more than this Service has a use for: one of each of its families");
    assert_eq!(refusals, [more("192.0.2.2"), more("2001:db8::1")]);
}

#[test]
fn what_a_node_has_is_nobody_elses() {
    let pools = [pool("a", &["192.0.2.1-192.0.2.2"])];
    let asks = Claim { requested: vec![ip("192.0.2.1")], ..claim("asks") };
    let holds = Claim { held: vec![ip("192.0.2.1")], ..claim("holds") };

    let grants = super::grant(&pools, &BTreeSet::from([ip("192.0.2.1")]), &[&asks, &holds, &claim("late")]);

    let refused = "192.0.2.1 is an address that a node has, so it is not given away";
    assert_eq!(of(&grants, "asks"), (vec![], vec![refused.to_owned()]));
    assert_eq!(of(&grants, "holds"), (vec!["192.0.2.2".to_owned()], vec![]));
    assert_eq!(of(&grants, "late").1, ["no address pool has an IPv4 address left for this Service"]);
}

#[test]
fn who_holds_an_address_keeps_it_before_everybody_else() {
    let pools = [pool("a", &["192.0.2.1"])];
    let asks = Claim { requested: vec![ip("192.0.2.1")], ..claim("asks") };
    let holds = Claim { held: vec![ip("192.0.2.1")], ..claim("holds") };

    let grants = grant(&pools, &[asks, claim("any"), holds]);

    assert_eq!(of(&grants, "holds"), (vec!["192.0.2.1".to_owned()], vec![]));
    assert_eq!(of(&grants, "asks").1, ["192.0.2.1 belongs to Service shop/holds"]);
    assert_eq!(of(&grants, "any").1, ["no address pool has an IPv4 address left for this Service"]);
}

#[test]
fn what_no_pool_allows_any_more_is_given_up() {
    let pools = [pool("a", &["192.0.2.1"])];
    let moved = Claim { held: vec![ip("198.51.100.1")], ..claim("moved") };

    assert_eq!(of(&grant(&pools, &[moved]), "moved").0, ["192.0.2.1"]);
}

#[test]
fn a_service_that_others_gave_an_address_is_left_to_them() {
    let pools = [pool("a", &["192.0.2.1-192.0.2.3"])];
    let given = |name: &str, by: &str, addrs: &[&str]| {
        let foreign =
            if by == "us" { Vec::new() } else { addrs.iter().map(|addr| (*addr).to_owned()).collect() };
        let held = addrs.iter().filter_map(|addr| addr.parse().ok()).collect();
        Claim { held, foreign, ..claim(name) }
    };
    let theirs = given("theirs", "others", &["198.51.100.1"]);
    let asks = Claim { requested: vec![ip("192.0.2.1")], ..given("asks", "others", &["lb.example.com"]) };
    let adopted = given("adopted", "others", &["192.0.2.2"]);
    let lost = given("lost", "us", &["198.51.100.2"]);

    let grants = grant(&pools, &[theirs, asks, adopted, lost]);

    let left = |addr| {
        format!(
            "{addr} is in no address pool, and it was not agents of this release who wrote that into the status: the \
             Service is left to who did, and gets no address here"
        )
    };
    assert_eq!(of(&grants, "theirs"), (vec![], vec![left("198.51.100.1")]));
    assert_eq!(of(&grants, "asks"), (vec![], vec![left("lb.example.com")]));
    assert_eq!(of(&grants, "adopted"), (vec!["192.0.2.2".to_owned()], vec![]), "it is in a pool");
    assert_eq!(of(&grants, "lost").0.len(), 1, "of a pool that is no more");
    let others = grants.iter().filter(|(_, grant)| grant.is_of_others());
    assert_eq!(others.map(|(name, _)| name.name.as_str()).collect::<Vec<_>>(), ["asks", "theirs"]);
}

#[test]
fn pools_are_for_whom_they_say() {
    let theirs = Pool { namespaces: BTreeSet::from(["other".to_owned()]), ..pool("theirs", &["192.0.2.1"]) };
    let ours = Pool { namespaces: BTreeSet::from(["shop".to_owned()]), ..pool("ours", &["192.0.2.2"]) };
    let by_name = Pool { auto_assign: false, ..pool("by-name", &["192.0.2.3"]) };
    let all = pool("all", &["192.0.2.4"]);
    let pools = [all, by_name, ours, theirs];
    let named = Claim { pool: Some("by-name".to_owned()), ..claim("named") };
    let foreign = Claim { requested: vec![ip("192.0.2.1")], ..claim("foreign") };
    let nowhere = Claim { pool: Some("nowhere".to_owned()), ..claim("nowhere") };

    let grants = grant(&pools, &[claim("first"), claim("second"), named, foreign, nowhere]);

    assert_eq!(of(&grants, "first").0, ["192.0.2.2"], "its namespace's own comes first");
    assert_eq!(of(&grants, "second").0, ["192.0.2.4"]);
    assert_eq!(of(&grants, "named").0, ["192.0.2.3"]);
    assert_eq!(of(&grants, "foreign").1, ["192.0.2.1 is in no address pool that this Service may use"]);
    assert_eq!(of(&grants, "nowhere"), (vec![], vec!["there is no address pool \"nowhere\"".to_owned()]));
}

#[test]
fn an_address_is_shared_by_key_where_no_port_is_used_twice() {
    let pools = [pool("a", &["192.0.2.1-192.0.2.2"])];
    let keyed = |name: &str, protocol, port| Claim {
        sharing: Some("dns".to_owned()),
        ports: BTreeSet::from([(protocol, port)]),
        ..claim(name)
    };
    let local = Claim { local_pods: Some(BTreeMap::new()), ..keyed("local", Protocol::Tcp, 54) };

    let grants = grant(
        &pools,
        &[
            keyed("tcp", Protocol::Tcp, 53),
            keyed("udp", Protocol::Udp, 53),
            keyed("again", Protocol::Tcp, 53),
            local,
        ],
    );

    assert_eq!(of(&grants, "tcp").0, of(&grants, "udp").0);
    assert_ne!(of(&grants, "tcp").0, of(&grants, "again").0);
    assert_eq!(of(&grants, "local").0, Vec::<String>::new(), "it would not keep its clients' addresses");
}

#[test]
fn a_full_pool_is_looked_through_once_and_again_when_an_address_is_given_back() {
    // Every address of a /18 is held, and as many again wait for one.
    let held = (0..16_384_u32).map(|n| {
        let addr = IpAddr::from(std::net::Ipv4Addr::from(u32::from_be_bytes([10, 0, 0, 0]) + n));
        Claim { held: vec![addr], ..claim(&format!("a{n}")) }
    });
    let waiting = (0..16_384).map(|n| claim(&format!("b{n}")));
    let mut claims: Vec<_> = held.chain(waiting).collect();

    let grants = grant(&[pool("p", &["10.0.0.0/18"])], &claims);

    assert_eq!(of(&grants, "a16383").0, ["10.0.63.255"]);
    assert_eq!(of(&grants, "b16383").0, Vec::<String>::new());

    // The first needs an IPv6 address, too, which there is not, and gives its other one back.
    claims[0].families = vec![Family::V4, Family::V6];
    claims[0].needs = Needs::All;
    let grants = grant(&[pool("p", &["10.0.0.0/18"])], &claims);

    assert_eq!(of(&grants, "a0").0, Vec::<String>::new());
    assert_eq!(of(&grants, "b0").0, ["10.0.0.0"]);
    assert_eq!(of(&grants, "b1").0, Vec::<String>::new());
}

#[test]
fn dual_stack_is_both_or_what_there_is_as_the_service_says() {
    let four = [pool("four", &["192.0.2.1-192.0.2.2"])];
    let both = [pool("four", &["192.0.2.1"]), pool("six", &["2001:db8::1"])];
    let dual = |needs| Claim { families: vec![Family::V4, Family::V6], needs, ..claim("dual") };

    assert_eq!(of(&grant(&both, &[dual(Needs::All)]), "dual").0, ["192.0.2.1", "2001:db8::1"]);
    assert_eq!(of(&grant(&four, &[dual(Needs::Any)]), "dual").1, Vec::<String>::new());
    let refused = grant(&four, &[dual(Needs::All), claim("next")]);
    assert_eq!(of(&refused, "dual").0, Vec::<String>::new());
    assert_eq!(
        of(&refused, "dual").1.last().map(String::as_str),
        Some("it needs both families and got no IPv6 address")
    );
}

#[test]
fn addresses_at_the_edge_are_left_out_where_the_pool_says_so() {
    let careful = Pool { avoid_edges: true, ..pool("a", &["192.0.2.254-192.0.3.1"]) };
    let claims: Vec<_> = (0..3).map(|n| claim(&format!("s{n}"))).collect();

    let grants = grant(&[careful], &claims);

    let given: BTreeSet<_> = grants.values().flat_map(|grant| grant.addresses.keys().copied()).collect();
    assert_eq!(given, BTreeSet::from([ip("192.0.2.254"), ip("192.0.3.1")]));
}

fn claims() -> impl Strategy<Value = Vec<Claim>> {
    let one = (0_u8..30, 0_u8..4, 0_u8..3, proptest::option::of(0_u8..20), proptest::option::of(0_u8..20));
    proptest::collection::vec(one, 0..40).prop_map(|list| {
        let claims = list.into_iter().map(|(name, port, key, held, requested)| Claim {
            ports: BTreeSet::from([(Protocol::Tcp, u16::from(port))]),
            sharing: (key > 0).then(|| key.to_string()),
            held: held.map(|n| ip(&format!("192.0.2.{n}"))).into_iter().collect(),
            requested: requested.map(|n| ip(&format!("192.0.2.{n}"))).into_iter().collect(),
            ..claim(&format!("s{name}"))
        });
        // One Service has one claim.
        claims.map(|claim| (claim.service.clone(), claim)).collect::<BTreeMap<_, _>>().into_values().collect()
    })
}

/// The claims as they are once their grants stand in their status.
fn remembered(claims: &[Claim], grants: &BTreeMap<ObjectName, Grant>) -> Vec<Claim> {
    let held = |claim: &Claim| grants[&claim.service].addresses.keys().copied().collect();
    claims.iter().map(|claim| Claim { held: held(claim), ..claim.clone() }).collect()
}

proptest! {
    #[test]
    fn no_two_have_one_address_unless_they_may_share_it(claims in claims()) {
        let grants = grant(&[pool("a", &["192.0.2.0/28"])], &claims);

        for (index, one) in claims.iter().enumerate() {
            for other in &claims[..index] {
                let common = grants[&one.service].addresses.keys().any(|addr| grants[&other.service].addresses.contains_key(addr));
                prop_assert!(!common || not_shared(one, other).is_none(), "{} and {}", one.service, other.service);
            }
        }
    }

    #[test]
    fn what_was_granted_stays_when_others_come_and_go(claims in claims(), gone in 0_usize..40) {
        let pools = [pool("a", &["192.0.2.0/28"])];
        let before = grant(&pools, &claims);
        let mut next = remembered(&claims, &before);
        if gone < next.len() {
            next.remove(gone);
        }
        next.insert(0, claim("newcomer"));

        let after = grant(&pools, &next);

        for claim in next.iter().filter(|claim| !claim.held.is_empty()) {
            prop_assert_eq!(&after[&claim.service].addresses, &before[&claim.service].addresses, "{}", &claim.service);
        }
    }

    #[test]
    fn an_address_is_found_while_there_is_one(services in 0_usize..40) {
        let claims: Vec<_> = (0..services).map(|n| claim(&format!("s{n}"))).collect();

        let grants = grant(&[pool("a", &["192.0.2.0/28", "2001:db8::/64", "198.51.100.9"])], &claims);

        let given = grants.values().filter(|grant| !grant.addresses.is_empty()).count();
        prop_assert_eq!(given, services.min(17));
    }

    #[test]
    fn what_is_a_block_holds_its_ends_and_nothing_else_is_one(
        text in prop_oneof![".{0,40}", "[0-9a-f:.]{0,20}[-/ ]?[0-9a-f:.]{0,20}", "[12]{1,3}(\\.[0-9]{1,3}){3}[-/][0-9.]{1,9}"],
    ) {
        match text.parse::<Block>() {
            Ok(block) => {
                prop_assert!(block.first <= block.last && Family::of(block.first) == Family::of(block.last));
                prop_assert!(block.contains(block.first) && block.contains(block.last), "{text}");
            }
            Err(why) => prop_assert!(why.contains(&format!("{text:?}")), "{why}"),
        }
    }
}

#[test]
fn a_refusal_says_the_reason_that_holds() {
    let named = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
    let theirs = Pool { namespaces: named(&["other"]), ..pool("theirs", &["192.0.2.1"]) };
    let by_name = Pool { auto_assign: false, ..pool("by-name", &["192.0.2.8/31"]) };
    let shared =
        |name| Claim { requested: vec![ip("192.0.2.8")], sharing: Some("dns".to_owned()), ..claim(name) };
    let first = shared("first");
    let local = Some(BTreeMap::from([("app".to_owned(), "web".to_owned())]));
    let elsewhere = BTreeSet::from([(Protocol::Tcp, 81)]);
    let cases = [
        (
            "no pool gives to who asks nothing",
            claim("x"),
            "no address pool is there for this Service's IPv4 address",
        ),
        (
            "of a pool for others",
            Claim { pool: Some("theirs".to_owned()), ..claim("x") },
            "the address pool \"theirs\" is for Services of other namespaces than this one's",
        ),
        (
            "of a pool without the family",
            Claim { pool: Some("by-name".to_owned()), families: vec![Family::V6], ..claim("x") },
            "no address pool is there for this Service's IPv6 address",
        ),
        (
            "another key",
            Claim { sharing: Some("web".to_owned()), ..shared("x") },
            "192.0.2.8 belongs to Service shop/first",
        ),
        (
            "the same port",
            shared("x"),
            "192.0.2.8 belongs to Service shop/first, which has port 80/tcp, too, so the two cannot share it",
        ),
        (
            "another policy",
            Claim { ports: elsewhere, local_pods: local, ..shared("x") },
            "192.0.2.8 belongs to Service shop/first, and the two cannot share it: their externalTrafficPolicy is not the \
             same, or Local with other pods",
        ),
    ];
    for (case, claim, expected) in cases {
        let grants = grant(&[theirs.clone(), by_name.clone()], &[first.clone(), claim]);

        assert_eq!(of(&grants, "x"), (vec![], vec![expected.to_owned()]), "{case}");
    }
}

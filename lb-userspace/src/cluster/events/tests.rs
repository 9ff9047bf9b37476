use super::*;

#[test]
fn reasons_are_those_that_people_look_for() {
    for (kind, field, reason, expected) in [
        (
            Kind::Ingress,
            "metadata.annotations.nginx.ingress.kubernetes.io/a",
            "bad-annotation",
            "AnnotationParsingFailed",
        ),
        (Kind::Ingress, "spec.tls[0].secretName", "missing-secret", "MissingSecret"),
        (Kind::Service, "metadata.annotations.penstock.dev/vips", "vip-conflict", "VipConflict"),
    ] {
        assert_eq!(event_reason(kind, field, reason), expected, "{field}");
    }
}

#[test]
fn what_usually_passes_is_told_when_it_has_lasted_and_anything_else_at_once() {
    let what = |reason: &str, patience| What {
        about: ObjectReference::default(),
        kind: "Warning",
        reason: reason.to_owned(),
        message: String::new(),
        patience,
    };
    let (lasts, fleeting) = (what("VipConflict", Duration::ZERO), what("NoEndpoints", SETTLING));
    let both = || vec![lasts.clone(), fleeting.clone()];
    let (mut memory, begun) = (Memory::default(), Instant::now());
    let at = |seconds| begun + Duration::from_secs(seconds);

    assert_eq!(memory.due(both(), at(0)), std::slice::from_ref(&lasts));
    assert_eq!(memory.settled(), Some(at(5)));
    // It passed, and comes again.
    assert_eq!(memory.due(vec![lasts.clone()], at(2)), []);
    assert_eq!(memory.due(both(), at(3)), []);
    assert_eq!(memory.due(both(), at(7)), []);
    assert_eq!(memory.due(both(), at(8)), std::slice::from_ref(&fleeting));
    assert_eq!(memory.settled(), None);
    assert_eq!(memory.due(both(), at(9)), []);
    assert_eq!(memory.due(both(), at(8) + REPEAT), both());
}

fn what(namespace: Option<&str>, message: &str) -> What {
    What {
        about: ObjectReference { namespace: namespace.map(str::to_owned), ..ObjectReference::default() },
        kind: "Warning",
        reason: "BadValue".to_owned(),
        message: message.to_owned(),
        patience: Duration::ZERO,
    }
}

#[test]
fn a_namespace_where_we_may_tell_nothing_holds_up_no_other() {
    let (node, shop, second) = (what(None, "node"), what(Some("shop"), "shop"), what(None, "second"));
    let (mut memory, now) = (Memory::default(), Instant::now());
    let counts = Counts::default();
    memory.queue.extend([node, second, shop.clone()]);
    let refused = memory.next(now, &counts).expect("the first one");

    memory.parked.refused(&refused.namespace(), refused, now);

    assert_eq!(memory.next(now, &counts), Some(shop));
    assert_eq!(memory.next(now, &counts), None);
    let again = memory.waits(now).expect("something waits");
    assert!(again > now);
    assert_eq!(memory.next(again, &counts).expect("tried again").message, "node");
    assert_eq!(memory.parked.release("default").len(), 1);
    assert_eq!(memory.waits(now), None);
}

#[test]
fn what_waits_in_a_namespace_does_so_once_and_takes_no_place_of_others() {
    let (mut memory, now, counts) = (Memory::default(), Instant::now(), Counts::default());
    let lasting: Vec<What> = (0..150).map(|number| what(Some("shop"), &number.to_string())).collect();
    // Every half hour what lasts is due again.
    for _ in 0..10 {
        memory.queue(lasting.clone(), &counts);
        while let Some(refused) = memory.next(now, &counts) {
            memory.parked.refused(&refused.namespace(), refused, now);
        }
    }
    assert_eq!(memory.parked.release("shop").len(), 100);
    assert_eq!(counts.dropped.load(Ordering::Relaxed), 500);
    memory.queue(vec![what(Some("edge"), "told")], &counts);

    assert_eq!(memory.next(now, &counts), Some(what(Some("edge"), "told")));
}

#[test]
fn an_event_of_the_longest_name_has_one_that_the_api_server_takes() {
    let named = |name: &str| {
        let about = ObjectReference { name: Some(name.to_owned()), ..ObjectReference::default() };
        What { about, ..what(Some("shop"), "") }.name()
    };
    // No part of a name between dots ends with a hyphen.
    let longest = format!("{}-.{}", "a".repeat(234), "b".repeat(17));

    for (name, expected) in [("web", "web."), (longest.as_str(), &format!("{}.", "a".repeat(234)))] {
        let event = named(name);
        assert_eq!(event.get(..expected.len()), Some(expected), "{event}");
        assert!(event.len() <= LONGEST_NAME && !event.contains("-."), "{event}");
    }
}

#[test]
fn an_event_waits_for_a_server_in_trouble_and_not_for_one_that_cannot_take_it() {
    let cases = [(Why::Server, false), (Why::Throttled, false), (Why::Rejected, true), (Why::Missing, true)];
    for (why, expected) in cases {
        assert_eq!(is_in_vain(&Failure::new(why, "")), expected, "{why:?}");
    }
}

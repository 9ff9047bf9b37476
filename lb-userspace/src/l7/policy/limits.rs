//! How often a client may ask: nginx's leaky bucket, in units so small that nothing is rounded.

use std::net::IpAddr;

use crate::model::l7::policy::{Allowance, Limits};

/// A request in units of which a rate of one a minute drains one a millisecond. (nginx counts in
/// thousandths of a request, and drains 16 of them a second at one a minute.)
const REQUEST: u64 = 60_000;
/// Units that drain in a millisecond at one request a second, and at one a minute.
const SECOND: u64 = 60;
const MINUTE: u64 = 1;

/// What one client has poured lately.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(in crate::l7) struct Buckets {
    second: Option<Bucket>,
    minute: Option<Bucket>,
}

/// What was in it, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Bucket {
    units: u64,
    at_ms: u64,
}

impl Buckets {
    /// Takes one request more, or changes nothing and says so: what is refused does not count.
    #[must_use]
    pub(in crate::l7) fn take(&mut self, limits: &Limits, now_ms: u64) -> bool {
        let second = poured(self.second, limits.per_second, SECOND, now_ms);
        let minute = poured(self.minute, limits.per_minute, MINUTE, now_ms);
        let (Some(second), Some(minute)) = (second, minute) else { return false };
        *self = Self { second, minute };
        true
    }
}

/// The bucket with one request more; `None`: it would overflow. The first request finds it empty and takes no
/// room, so `burst` more pass with it.
fn poured(
    before: Option<Bucket>,
    allowance: Option<Allowance>,
    drains: u64,
    now_ms: u64,
) -> Option<Option<Bucket>> {
    let Some(Allowance { requests, burst }) = allowance else { return Some(None) };
    let after = match before {
        None => Bucket { units: 0, at_ms: now_ms },
        Some(Bucket { units, at_ms }) => {
            // Workers read the clock by themselves: one may be behind another.
            let drained = now_ms.saturating_sub(at_ms).saturating_mul(drains * u64::from(requests));
            let units = units.saturating_add(REQUEST).saturating_sub(drained);
            Bucket { units, at_ms: at_ms.max(now_ms) }
        }
    };
    (after.units <= burst.saturating_mul(REQUEST)).then_some(Some(after))
}

pub(super) fn explain(limits: &Limits, client: IpAddr) -> String {
    let Limits { ingress, per_second, per_minute, often_status, at_once, at_once_status, by, exempt } =
        limits;
    if exempt.contains(client) {
        return format!("none for {client}: it is one of {exempt}");
    }
    let rate = |allowance: &Option<Allowance>, period: &str| {
        let Allowance { requests, burst } = (*allowance)?;
        Some(format!("{requests} a {period} and {burst} more at once, else {often_status}"))
    };
    let at_once = at_once.map(|most| format!("{most} under way, else {at_once_status}"));
    let told = [rate(per_second, "second"), rate(per_minute, "minute"), at_once];
    let told: Vec<_> = told.into_iter().flatten().collect();
    let told = told.join("; ");
    match by {
        None => format!("{client} may ask Ingress {ingress}: {told}"),
        Some(by) => format!("all clients with the same {by} may ask Ingress {ingress}: {told}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ObjectName;
    use crate::model::l7::policy::AddressSet;

    fn limits(per_second: Option<(u32, u64)>, per_minute: Option<(u32, u64)>) -> Limits {
        let allowance = |(requests, burst)| Allowance { requests, burst };
        Limits {
            ingress: ObjectName::new("default", "web"),
            per_second: per_second.map(allowance),
            per_minute: per_minute.map(allowance),
            often_status: 503,
            at_once: None,
            at_once_status: 503,
            by: None,
            exempt: AddressSet::default(),
        }
    }

    fn taken(limits: &Limits, at_ms: &[u64]) -> Vec<bool> {
        let mut buckets = Buckets::default();
        at_ms.iter().map(|now| buckets.take(limits, *now)).collect()
    }

    #[test]
    fn one_and_the_burst_pass_at_once_and_then_what_drains() {
        let (yes, no) = (true, false);
        let cases: [(&str, Limits, &[u64], &[bool]); 8] = [
            ("1/s, burst 2", limits(Some((1, 2)), None), &[0, 0, 0, 0], &[yes, yes, yes, no]),
            ("no burst", limits(Some((1, 0)), None), &[0, 0, 999, 1000], &[yes, no, no, yes]),
            ("what is refused does not count", limits(Some((1, 0)), None), &[0, 500, 1000], &[yes, no, yes]),
            ("half a slot is kept", limits(Some((2, 0)), None), &[0, 500, 999, 1000], &[yes, yes, no, yes]),
            (
                "a full bucket drains",
                limits(Some((1, 1)), None),
                &[5, 5, 1004, 1005, 1005],
                &[yes, yes, no, yes, no],
            ),
            ("1/min", limits(None, Some((1, 0))), &[0, 59_999, 60_000], &[yes, no, yes]),
            ("both have to allow it", limits(Some((9, 9)), Some((1, 1))), &[0, 0, 0], &[yes, yes, no]),
            ("a clock behind", limits(Some((1, 1)), None), &[9000, 8000, 8000], &[yes, yes, no]),
        ];
        for (case, limits, at_ms, expected) in cases {
            assert_eq!(taken(&limits, at_ms), expected, "{case}");
        }
    }

    #[test]
    fn a_request_that_one_limit_refuses_is_not_counted_by_the_other() {
        // The minute allows one; the seconds allow three at once, of which the refused took none.
        let strict = limits(Some((1, 2)), Some((1, 0)));
        let mut buckets = Buckets::default();
        assert!(buckets.take(&strict, 0));
        for _ in 0..10 {
            assert!(!buckets.take(&strict, 0));
        }

        let loose = limits(Some((1, 2)), None);
        let passed = (0..10).filter(|_| buckets.take(&loose, 0)).count();

        assert_eq!(passed, 2);
    }

    proptest::proptest! {
        /// Whatever comes when: in any stretch of time no more passes than the burst, one, and what drains.
        #[test]
        fn never_more_passes_than_the_burst_and_what_drains(
            requests in 1u32..50,
            burst in 0u64..50,
            gaps in proptest::collection::vec(0u64..200, 1..300),
        ) {
            let limits = limits(Some((requests, burst)), None);
            let mut buckets = Buckets::default();
            let mut now = 0;
            let mut passed = Vec::new();
            for gap in gaps {
                now += gap;
                if buckets.take(&limits, now) {
                    passed.push(now);
                }
            }
            for (i, first) in passed.iter().enumerate() {
                for (j, last) in passed.iter().enumerate().skip(i) {
                    let most = (burst + 1) * 1000 + (last - first) * u64::from(requests);
                    proptest::prop_assert!(((j - i + 1) * 1000) as u64 <= most, "{} of {passed:?}", j - i + 1);
                }
            }
        }
    }
}

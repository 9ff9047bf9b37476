//! Flows that `nat` had no room for: each is a dropped packet with a verdict, and together they are a problem
//! that is shown as long as it goes on.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use lb_common::Verdict;
use serde::Serialize;

use super::problems::of_datapath;
use crate::model::{Problem, Severity};

/// How long one dropped packet is shown.
const SHOWN: Duration = Duration::from_secs(60);

/// Where a port for one more flow is the hardest to find.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Fullest {
    /// The backend with the most flows by `nat`.
    pub backend: SocketAddr,
    /// Those flows, of the protocol with more; each has a port of the range to itself.
    pub flows: usize,
}

/// What was counted when, and what is shown of it.
#[derive(Debug, Default)]
pub(super) struct Exhaustion {
    ports: Growth,
    entries: Growth,
}

#[derive(Debug, Default)]
struct Growth {
    counted: Option<u64>,
    last: Option<Instant>,
}

impl Growth {
    /// Takes a count; whether it grew lately. The first is of who knows when.
    fn look(&mut self, count: u64, now: Instant) -> bool {
        if self.counted.replace(count).is_some_and(|before| count > before) {
            self.last = Some(now);
        }
        self.last.is_some_and(|last| now.duration_since(last) < SHOWN)
    }
}

impl Exhaustion {
    /// What there is to tell, by the packets of each verdict.
    pub(super) fn look(
        &mut self,
        verdicts: &[(Verdict, u64)],
        fullest: Option<Fullest>,
        range: (u16, u16),
        now: Instant,
    ) -> Vec<Problem> {
        let count = |of: Verdict| verdicts.iter().filter(|(verdict, _)| *verdict == of).map(|(_, n)| n).sum();
        let mut problems = Vec::new();
        if self.ports.look(count(Verdict::NatPortsExhausted), now) {
            // Not how many flows exactly: what is told does not change with each of them.
            let most = fullest.map_or(String::new(), |most| format!(", most of them to {}", most.backend));
            problems.push(Problem {
                reason: Verdict::NatPortsExhausted.as_str(),
                fix: FIX_PORTS.to_owned(),
                severity: Severity::Error,
                ..of_datapath(no_port(range, "their backend") + &most)
            });
        }
        if self.entries.look(count(Verdict::NatTableFull), now) {
            problems.push(Problem {
                reason: Verdict::NatTableFull.as_str(),
                fix: FIX_ENTRIES.to_owned(),
                severity: Severity::Error,
                ..of_datapath(NO_ENTRY.to_owned())
            });
        }
        problems
    }
}

/// What can be done where ports are exhausted.
pub(super) const FIX_PORTS: &str = "widen --nat-ports, or add backends; see `nat` in docs/services.md";

/// What can be done where there is no entry for one more translated flow.
pub(super) const FIX_ENTRIES: &str = "spread the Services over more nodes, or reach backends by another mode";

/// Says that there is none.
pub(super) const NO_ENTRY: &str =
    "new flows by `nat` or `local` find no room to be remembered and are dropped";

/// Says that ports of a range (the first, the last) are exhausted.
pub(super) fn no_port((first, last): (u16, u16), backend: &str) -> String {
    format!("new flows find no free port of {first}-{last} towards {backend} and are dropped")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_dropped_is_told_for_a_minute_and_what_an_agent_before_counted_is_not() {
        let (mut exhaustion, start) = (Exhaustion::default(), Instant::now());
        let fullest = Fullest { backend: "10.9.0.11:8000".parse().expect("an address"), flows: 16 };
        let mut look = |ports, entries, second| {
            let verdicts = [
                (Verdict::NatPortsExhausted, ports),
                (Verdict::NatTableFull, entries),
                (Verdict::ForwardedNat, second),
            ];
            let now = start + Duration::from_secs(second);
            let problems = exhaustion.look(&verdicts, Some(fullest), (62_000, 62_015), now);
            problems.into_iter().map(|problem| problem.message).collect::<Vec<_>>()
        };

        assert_eq!(look(7, 0, 0), Vec::<String>::new());
        let told = look(8, 0, 5);
        assert!(
            told.len() == 1 && told[0].contains("62000-62015") && told[0].contains("10.9.0.11:8000"),
            "{told:?}"
        );
        assert_eq!(look(8, 0, 64), told);
        assert_eq!(look(8, 1, 66).len(), 1);
        assert!(look(8, 1, 70)[0].contains("remembered"));
        assert_eq!(look(8, 1, 126), Vec::<String>::new());
    }
}

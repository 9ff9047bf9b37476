//! Why backends get nothing. One cause may be that of thousands of backends, so it is told once, with how many they are.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use super::problem;
use crate::model::Problem;
use crate::model::l4::PoolId;

/// Addresses of backends that one cause concerns and that are told of one by one.
const TOLD_ALONE: usize = 8;

/// What keeps packets from a backend, or its answers from clients.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Cause {
    /// No way leads there that we can use.
    NoWay(String),
    /// The stack of this host is to deliver, and has no route.
    NotRouted(String),
    /// Its answers to this address of ours come in by an interface without the program.
    Unanswered(IpAddr),
    /// It is this host, whose stack would not take this address of a VIP for its own.
    NotHeld(IpAddr),
}

/// Backends of one cause, in whatever pools.
type ByAddr<'a> = BTreeMap<IpAddr, Vec<(&'a PoolId, SocketAddr)>>;

/// A problem for each cause, or, where it concerns the way to few addresses, for each of them.
pub(super) fn tell<'a>(concerned: impl Iterator<Item = (&'a Cause, &'a PoolId, SocketAddr)>) -> Vec<Problem> {
    let mut by_cause: BTreeMap<&Cause, ByAddr<'a>> = BTreeMap::new();
    for (cause, id, addr) in concerned {
        by_cause.entry(cause).or_default().entry(addr.ip()).or_default().push((id, addr));
    }
    let mut problems = Vec::new();
    for (cause, by_addr) in by_cause {
        let is_of_each =
            matches!(cause, Cause::NoWay(_) | Cause::NotRouted(_)) && by_addr.len() <= TOLD_ALONE;
        let told = if is_of_each { by_addr.len() } else { 1 };
        let others = by_addr.len() - told;
        problems.extend(by_addr.values().take(told).filter_map(|at| cause.problem(at, others)));
    }
    problems
}

impl Cause {
    /// `at`: backends of one address, in whatever pools; `others`: how many addresses it stands for beside that.
    fn problem(&self, at: &[(&PoolId, SocketAddr)], others: usize) -> Option<Problem> {
        let (id, addr) = at.first()?;
        let who = match (others, at.len()) {
            (0, 1) => format!("backend {addr}"),
            (0, ports) => format!("backend {addr}, at {ports} ports of Services,"),
            (1, _) => format!("backend {addr} and another address, of this Service and others,"),
            (others, _) => {
                format!("backend {addr} and {others} other addresses, of this Service and others,")
            }
        };
        let (it, has, is) = if others == 0 { ("it", "has", "is") } else { ("they", "have", "are") };
        let (its, them) = if others == 0 { ("its", "it") } else { ("their", "them") };
        let (reason, message, fix) = match self {
            // The plan keeps it if it is installed, so that its flows go on when there is a way again.
            Self::NoWay(why) => (
                "no-way",
                format!("{}: {why}; flows that {it} {has} stay with {them}", who.trim_end_matches(',')),
                "see `ip route get` for its address".to_owned(),
            ),
            // Packets to it end there.
            Self::NotRouted(why) => (
                "no-way",
                format!("{who} {is} on this node, but the node does not reach {them}: {why}"),
                "the network plugin of the node makes this route when the pod starts".to_owned(),
            ),
            // `nat` translates answers where they come in; without the program there, clients wait in vain.
            Self::Unanswered(source) => (
                "unattached-interface",
                format!(
                    "{}: {its} answers to {source} come in by an interface without our program and reach no client",
                    who.trim_end_matches(',')
                ),
                format!(
                    "name the interface that holds {source} (`ip addr show to {source}`) with --interface, too"
                ),
            ),
            // What is left to the stack as it came goes nowhere.
            Self::NotHeld(vip) => {
                let bits = if vip.is_ipv4() { 32 } else { 128 };
                let message =
                    format!("{who} {is} this host, which does not have the address {vip} of the Service");
                ("vip-not-held", message, format!("ip addr add {vip}/{bits} dev lo"))
            }
        };
        Some(Problem { reason, fix, ..problem(id, message) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ObjectName;
    use crate::model::l4::{Family, Protocol};

    fn pool(name: &str, protocol: Protocol) -> PoolId {
        let service = ObjectName::new("default", name).into();
        PoolId { service, port: 80, protocol, family: Family::V4 }
    }

    fn backend(last: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 1, last], 80))
    }

    fn told(cause: &Cause, pools: &[PoolId], backends: u8) -> Vec<String> {
        let all = pools.iter().flat_map(|id| (1..=backends).map(move |last| (cause, id, backend(last))));
        tell(all).into_iter().map(|problem| problem.message).collect()
    }

    #[test]
    fn a_cause_is_told_once_of_each_address_where_they_are_few_and_once_where_they_are_many() {
        let pools = [pool("dns", Protocol::Tcp), pool("dns", Protocol::Udp), pool("web", Protocol::Tcp)];
        let no_way = Cause::NoWay("no route".to_owned());
        let unanswered = Cause::Unanswered([192, 0, 2, 3].into());

        assert_eq!(
            told(&no_way, &pools[..1], 1),
            ["backend 10.0.1.1:80: no route; flows that it has stay with it"]
        );
        let several = told(&no_way, &pools, 8);
        assert_eq!(several.len(), 8);
        assert_eq!(
            several[0],
            "backend 10.0.1.1:80, at 3 ports of Services: no route; flows that it has stay with it"
        );
        assert_eq!(
            told(&no_way, &pools, 200),
            [
                "backend 10.0.1.1:80 and 199 other addresses, of this Service and others: no route; flows that they have stay \
              with them"
            ]
        );
        assert_eq!(
            told(&unanswered, &pools, 2),
            [
                "backend 10.0.1.1:80 and another address, of this Service and others: their answers to 192.0.2.3 come in by \
              an interface without our program and reach no client"
            ]
        );
    }

    #[test]
    fn each_cause_is_told_by_itself() {
        let id = pool("web", Protocol::Tcp);
        let causes = [
            Cause::NoWay("no route".to_owned()),
            Cause::NotRouted("no route".to_owned()),
            Cause::NotHeld([203, 0, 113, 9].into()),
        ];

        let problems = tell(causes.iter().map(|cause| (cause, &id, backend(1))));

        let said: Vec<_> = problems.iter().map(|one| (one.reason, one.message.as_str())).collect();
        assert_eq!(
            said,
            [
                ("no-way", "backend 10.0.1.1:80: no route; flows that it has stay with it"),
                ("no-way", "backend 10.0.1.1:80 is on this node, but the node does not reach it: no route"),
                (
                    "vip-not-held",
                    "backend 10.0.1.1:80 is this host, which does not have the address 203.0.113.9 of the Service"
                ),
            ]
        );
    }
}

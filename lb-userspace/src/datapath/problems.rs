//! What the datapath itself has to tell: problems of no object.

use std::net::IpAddr;
use std::path::Path;

use tokio::task::JoinError;

use super::Error;
use super::network::Cost;
use crate::model::{ObjectId, Problem, Severity};

/// An interface that was chosen and is not there.
pub(super) fn missing(message: String) -> Problem {
    let fix = "it is used as soon as it appears; until then its packets are not balanced".to_owned();
    Problem { severity: Severity::Warning, reason: NO_INTERFACE, fix, ..of_datapath(message) }
}

/// An interface that had this name while the program sat on it, and has another one now.
pub(super) fn renamed(before: &str, now: &str) -> Problem {
    let message = format!("interface {before} is called {now} now, so its packets are not balanced");
    let fix = format!("ip link set {now} name {before}, or name {now} with --interface");
    Problem { severity: Severity::Warning, reason: NO_INTERFACE, fix, ..of_datapath(message) }
}

const NO_INTERFACE: &str = "no-interface";
const LINK_DOWN: &str = "link-down";

/// Makes an error of an interface that is down or away while there are backends that nothing leads to: it is why, and stands first.
pub(super) fn blame_links(problems: &mut [Problem]) {
    if !problems.iter().any(|one| ["no-way", "unattached-interface"].contains(&one.reason)) {
        return;
    }
    let causes = problems.iter_mut().filter(|one| [NO_INTERFACE, LINK_DOWN].contains(&one.reason));
    causes.for_each(|one| one.severity = Severity::Error);
}

/// Frames to backends leave by a device without the program.
pub(super) fn no_program(interface: &str) -> Problem {
    let message = format!(
        "packets to backends leave by {interface}, which does not have the program: most drivers drop what is redirected to \
         them then, though it counts as forwarded"
    );
    let fix = format!("name it with --interface {interface}, too");
    Problem { severity: Severity::Warning, reason: "unattached-interface", fix, ..of_datapath(message) }
}

/// Who is asked for on an interface, and does not answer; so many are.
pub(super) fn silent(interface: &str, cost: Cost, addr: IpAddr, count: usize) -> Problem {
    let others = match count.saturating_sub(1) {
        0 => "does not answer".to_owned(),
        1 => "and another do not answer".to_owned(),
        others => format!("and {others} others do not answer"),
    };
    let cost = match cost {
        Cost::Dropped => "packets to backends behind are dropped as unresolved-next-hop",
        Cost::Detour => "packets to backends behind take other next hops of their routes",
    };
    let message = format!("{addr} {others} on {interface} (ARP, neighbour discovery): {cost}");
    let fix = format!("see whether it is up and on this link; `ip neigh show dev {interface}`");
    Problem { severity: Severity::Warning, reason: "silent-next-hop", fix, ..of_datapath(message) }
}

pub(super) fn not_adopted(error: &Error) -> Problem {
    let message = format!(
        "local routes of an agent before this one are not known ({error}); some may lead VIPs into this host"
    );
    let fix = "compare `ip route show table local proto 183` with the VIPs".to_owned();
    Problem { severity: Severity::Warning, reason: "local-routes", fix, ..of_datapath(message) }
}

pub(super) fn not_pinned(error: &Error) -> Problem {
    let message = format!("the kernel part ends with this agent: {error}");
    let fix = "give a BPF file system with --bpffs, or accept it with --pin off".to_owned();
    Problem { severity: Severity::Warning, reason: "not-pinned", fix, ..of_datapath(message) }
}

/// A name of ours was removed from the BPF file system.
pub(super) fn pins_gone(path: &Path) -> Problem {
    let message = format!("the kernel part ends with this agent: somebody removed {}", path.display());
    let fix = "it is pinned again, after a minute at most".to_owned();
    Problem { severity: Severity::Warning, reason: "not-pinned", fix, ..of_datapath(message) }
}

pub(super) fn not_taken_over(message: String) -> Problem {
    Problem { severity: Severity::Warning, reason: "not-taken-over", ..of_datapath(message) }
}

pub(super) fn not_attached(error: &Error) -> Problem {
    Problem { reason: "not-attached", ..of_datapath(error.to_string()) }
}

/// An interface with the program by which nothing comes in or leaves; `up`: it only lacks a carrier.
pub(super) fn link_down(name: &str, up: bool) -> Problem {
    let (message, fix) = if up {
        (format!("interface {name} has no carrier"), "look at its cable, or at its other end".to_owned())
    } else {
        (format!("interface {name} is down"), format!("ip link set {name} up"))
    };
    Problem { severity: Severity::Warning, reason: LINK_DOWN, fix, ..of_datapath(message) }
}

/// Somebody ended an attachment of ours; `what` and from where.
pub(super) fn detached(what: &str) -> Problem {
    let fix = "it is attached again, after a minute at most; find out who detaches it (bpftool, ip link)";
    let message = format!("somebody detached {what}");
    Problem { reason: "detached", fix: fix.to_owned(), ..of_datapath(message) }
}

/// Others stand before our program on the way out of an interface, which translates the answers of backends on this host.
pub(super) fn preceded(interface: &str, programs: &str) -> Problem {
    let message = format!(
        "on the way out of {interface} our program is not asked first but after {programs}: where that hands a packet on by \
         anything else than TCX_NEXT (TC_ACT_UNSPEC, -1), clients get answers from the addresses of the backends on this host, \
         and reset them"
    );
    let fix = "attach it behind penstock_out; an agent that begins puts its own program first, so a restart does, too".to_owned();
    Problem { reason: "not-first", fix, ..of_datapath(message) }
}

/// The stack does not accept what comes for a VIP of the proxy.
pub(super) fn not_local(vip: IpAddr, why: &str) -> Problem {
    let message = format!("nobody reaches the proxy at {vip}: its local route is not there: {why}");
    let fix = format!(
        "it is tried again, after a minute at most; needs CAP_NET_ADMIN: ip route add local {vip} dev lo"
    );
    Problem { reason: "no-local-route", field: format!("VIP {vip}"), fix, ..of_datapath(message) }
}

pub(super) fn not_answered(error: &Error) -> Problem {
    let fix = "reach the backends on this host by mode nat, or use a newer kernel".to_owned();
    Problem { severity: Severity::Warning, reason: "no-local-answers", fix, ..of_datapath(error.to_string()) }
}

pub(super) fn not_installed(error: &JoinError) -> Problem {
    Problem { reason: "internal", ..of_datapath(format!("the last change was not installed: {error}")) }
}

/// A problem of the data path itself.
pub(super) fn of_datapath(message: String) -> Problem {
    Problem {
        object: ObjectId { origin: "datapath".to_owned(), ..ObjectId::default() },
        severity: Severity::Error,
        reason: "datapath",
        field: String::new(),
        message,
        fix: String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_to_blame_while_backends_are_out_of_reach() {
        let lost = Problem { reason: "no-way", ..of_datapath("backend 10.0.0.1:80: no route".to_owned()) };
        let links = [link_down("eth0", false), renamed("eth1", "wan1"), missing("no eth2".to_owned())];
        let blamed = |others: &[Problem]| {
            let mut problems = [&links[..], others].concat();
            blame_links(&mut problems);
            problems.iter().take(links.len()).map(|one| one.severity).collect::<Vec<_>>()
        };

        assert_eq!(blamed(&[]), [Severity::Warning; 3]);
        assert_eq!(blamed(&[lost]), [Severity::Error; 3]);
    }
}

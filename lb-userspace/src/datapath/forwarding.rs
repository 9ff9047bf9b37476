//! Whether the host forwards what mode `local` leaves to it. Asked every second: nobody announces a change of these settings.

use std::net::IpAddr;

use super::want::Network;
use crate::model::l4::Family;
use crate::model::{ObjectId, Problem, Severity};

/// A problem for each family that has backends on this host (`local`) and is not forwarded. `read` gives a
/// setting of the kernel by its path.
pub fn problems(
    local: impl Iterator<Item = IpAddr>,
    network: &Network,
    read: impl Fn(&str) -> Option<String>,
) -> Vec<Problem> {
    let families = [(Family::V4, "net.ipv4.ip_forward"), (Family::V6, "net.ipv6.conf.all.forwarding")];
    let is_off = |setting: &str| {
        read(&format!("/proc/sys/{}", setting.replace('.', "/"))).is_some_and(|value| value.trim() == "0")
    };
    let off: Vec<(Family, &str)> = families.into_iter().filter(|(_, setting)| is_off(setting)).collect();
    if off.is_empty() {
        return Vec::new();
    }
    let is_own = |addr: &IpAddr| network.node_addrs.contains(addr) || network.other_addrs.contains(addr);
    let forwarded: Vec<IpAddr> = local.filter(|addr| !is_own(addr)).collect();
    let missing = off.into_iter().filter_map(|(family, setting)| {
        let count = forwarded.iter().filter(|addr| Family::of(**addr) == family).count();
        (count > 0).then(|| not_forwarded(count, setting))
    });
    missing.collect()
}

fn not_forwarded(count: usize, setting: &str) -> Problem {
    Problem {
        object: ObjectId { origin: "datapath".to_owned(), ..ObjectId::default() },
        severity: Severity::Error,
        reason: "no-forwarding",
        field: String::new(),
        message: format!("{count} backends on this host are not reached: {setting} is 0"),
        fix: format!("sysctl -w {setting}=1"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn local(addrs: &[&str]) -> impl Iterator<Item = IpAddr> {
        addrs.iter().map(|addr| addr.parse().expect("address"))
    }

    #[test]
    fn only_what_has_to_be_forwarded_and_is_not_is_a_problem() {
        let network =
            Network { node_addrs: ["10.0.0.1".parse().expect("address")].into(), ..Network::default() };
        let (pod, own, v6) = ("10.2.0.1", "10.0.0.1", "fd00::1");
        let cases: [(&str, &[&str], &str, usize); 5] = [
            ("a pod", &[pod], "0\n", 1),
            ("pods of both families", &[pod, v6], "0\n", 2),
            ("forwarding is on", &[pod, v6], "1\n", 0),
            ("the host itself", &[own], "0\n", 0),
            ("nothing", &[], "0\n", 0),
        ];
        for (case, addrs, setting, count) in cases {
            let found = problems(local(addrs), &network, |_| Some(setting.to_owned()));

            assert_eq!(found.len(), count, "{case}: {found:?}");
        }
    }

    #[test]
    fn a_problem_names_the_setting() {
        let found = problems(local(&["10.2.0.1"]), &Network::default(), |path| {
            (path == "/proc/sys/net/ipv4/ip_forward").then(|| "0".to_owned())
        });

        assert_eq!(found[0].fix, "sysctl -w net.ipv4.ip_forward=1");
    }
}

//! Whether the host forwards what mode `local` leaves to it.

use std::net::IpAddr;

use super::want::{Network, Want};
use crate::model::l4::{Family, ForwardingMode};
use crate::model::{ObjectId, Problem, Severity};

/// A problem for each family that has backends on this host and is not forwarded. `read` gives a
/// setting of the kernel by its path.
pub fn problems(want: &Want, network: &Network, read: impl Fn(&str) -> Option<String>) -> Vec<Problem> {
    let is_own = |addr: &IpAddr| network.node_addrs.contains(addr) || network.other_addrs.contains(addr);
    let backends = want.pools.values().flat_map(|pool| &pool.backends);
    let local = backends.filter(|(_, backend)| backend.mode == ForwardingMode::Local);
    let forwarded: Vec<IpAddr> = local.map(|(addr, _)| addr.ip()).filter(|addr| !is_own(addr)).collect();
    let families = [(Family::V4, "net.ipv4.ip_forward"), (Family::V6, "net.ipv6.conf.all.forwarding")];
    let missing = families.into_iter().filter_map(|(family, setting)| {
        let count = forwarded.iter().filter(|addr| Family::of(**addr) == family).count();
        let path = format!("/proc/sys/{}", setting.replace('.', "/"));
        (count > 0 && read(&path)?.trim() == "0").then(|| not_forwarded(count, setting))
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
    use crate::datapath::want::{Backend, Pool, Way};
    use crate::model::ObjectName;
    use crate::model::l4::{PoolId, Protocol};
    use lb_common::Tags;
    use lb_common::backend::NextHop;

    fn want(mode: ForwardingMode, addrs: &[&str]) -> Want {
        let id = PoolId {
            service: ObjectName::new("default", "db"),
            port: 80,
            protocol: Protocol::Tcp,
            family: Family::V4,
        };
        let backends = addrs.iter().map(|addr| {
            let to: IpAddr = addr.parse().expect("address");
            let way = Way { source: to, next_hop: NextHop::default(), mtu: 1500, tags: Tags::NONE };
            ((to, 80).into(), Backend { weight: 1, draining: false, mode, to, way })
        });
        let pool = Pool { backends: backends.collect(), ..Pool::default() };
        Want { pools: [(id, pool)].into(), ..Want::default() }
    }

    #[test]
    fn only_what_has_to_be_forwarded_and_is_not_is_a_problem() {
        let network =
            Network { node_addrs: ["10.0.0.1".parse().expect("address")].into(), ..Network::default() };
        let (pod, own, v6) = ("10.2.0.1", "10.0.0.1", "fd00::1");
        let cases: [(&str, ForwardingMode, &[&str], &str, usize); 6] = [
            ("a pod", ForwardingMode::Local, &[pod], "0\n", 1),
            ("pods of both families", ForwardingMode::Local, &[pod, v6], "0\n", 2),
            ("forwarding is on", ForwardingMode::Local, &[pod, v6], "1\n", 0),
            ("the host itself", ForwardingMode::Local, &[own], "0\n", 0),
            ("another mode", ForwardingMode::Nat, &[pod], "0\n", 0),
            ("nothing", ForwardingMode::Local, &[], "0\n", 0),
        ];
        for (case, mode, addrs, setting, count) in cases {
            let found = problems(&want(mode, addrs), &network, |_| Some(setting.to_owned()));

            assert_eq!(found.len(), count, "{case}: {found:?}");
        }
    }

    #[test]
    fn a_problem_names_the_setting() {
        let want = want(ForwardingMode::Local, &["10.2.0.1"]);

        let found = problems(&want, &Network::default(), |path| {
            assert_eq!(path, "/proc/sys/net/ipv4/ip_forward");
            Some("0".to_owned())
        });

        assert_eq!(found[0].fix, "sysctl -w net.ipv4.ip_forward=1");
    }
}

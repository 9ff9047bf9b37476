//! `penstock capture`: shows packets as they went, which nothing else on the host sees once the
//! program has sent or dropped them.
//!
//! Filter, sampling and rate work in the kernel, so a flood costs what the rate allows. One
//! capture runs at a time; it ends when its [`Capture`] is dropped.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use lb_common::capture::{self as wire, Head, SNAP};
use lb_common::{Action as WireAction, Addr, Verdict};
use rustix::time::{ClockId, clock_gettime};

use super::kernel::Ring;
use super::worker::Shared;
use crate::model::capture::{Action, Filter, Packet, Tally};

/// Packets that are read at once at most.
const BATCH: usize = 256;
/// Pause between looks at an empty ring buffer. The program wakes nobody up, which would cost more
/// than the event itself; a full ring takes longer than this at 300,000 packets per second.
const PAUSE: Duration = Duration::from_millis(20);

/// Why nothing can be captured.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such verdict.
    #[error("verdict {name:?}: allowed: pass, drop, send, {known}, or a beginning of these and *")]
    Verdict {
        /// As given.
        name: String,
        /// All there are.
        known: String,
    },
    /// Somebody else captures.
    #[error("another capture is running; one at a time")]
    Busy,
    /// The kernel refused.
    #[error(transparent)]
    Kernel(#[from] super::Error),
}

/// A running capture.
pub struct Capture {
    shared: Arc<Shared>,
    ring: Ring,
    /// Names by index, as far as they were asked for.
    interfaces: BTreeMap<u32, String>,
}

impl Capture {
    /// Begins to capture.
    pub(super) fn start(shared: Arc<Shared>, filter: &Filter) -> Result<Self, Error> {
        let filter = in_wire_form(filter)?;
        let ring = shared.engine().start_capture(&filter)?.ok_or(Error::Busy)?;
        Ok(Self { shared, ring, interfaces: BTreeMap::new() })
    }

    /// The packets that were shown since the last call, in order; waits for the first one.
    pub async fn next(&mut self) -> Vec<Packet> {
        loop {
            let offset = now(ClockId::Realtime).saturating_sub(now(ClockId::Monotonic));
            let mut packets = Vec::new();
            while packets.len() < BATCH
                && let Some((head, bytes)) = self.ring.take()
            {
                packets.extend(packet(&head, bytes, offset, &mut self.interfaces));
            }
            if !packets.is_empty() {
                return packets;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// How it went so far.
    pub fn tally(&self) -> Tally {
        self.shared.engine().kernel.capture_tally().unwrap_or_default()
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.shared.engine().stop_capture();
    }
}

/// The filter as the kernel program reads it.
pub fn in_wire_form(filter: &Filter) -> Result<wire::Filter, Error> {
    let Filter { verdicts, vip, host, every, rate, snap } = filter;
    let mut mask = if verdicts.is_empty() { u64::MAX } else { 0 };
    for name in verdicts {
        mask |= verdicts_named(name)?;
    }
    let (vip, vip_port) = vip.map(|(addr, port)| (Addr::from(addr), port.to_be())).unwrap_or_default();
    Ok(wire::Filter {
        verdicts: mask,
        interval_ns: 1_000_000_000u64.checked_div(u64::from(*rate)).unwrap_or(0),
        every: (*every).max(1),
        snap: (*snap).min(SNAP as u16),
        vip,
        vip_port,
        host: host.map(Addr::from).unwrap_or_default(),
    })
}

/// Bits of the verdicts that a name stands for.
fn verdicts_named(name: &str) -> Result<u64, Error> {
    let is_meant = |verdict: &Verdict| match (name, name.strip_suffix('*')) {
        ("pass", _) => verdict.action() == WireAction::Pass,
        ("drop", _) => verdict.action() == WireAction::Drop,
        ("send", _) => verdict.action() == WireAction::Send,
        (_, Some(beginning)) => verdict.as_str().starts_with(beginning),
        _ => verdict.as_str() == name,
    };
    let shown = || Verdict::ALL.into_iter().filter(|verdict| *verdict != Verdict::NotOurs);
    let mask = shown().filter(is_meant).fold(0, |mask, verdict| mask | 1 << verdict as u64);
    if mask == 0 {
        let known = shown().map(Verdict::as_str).collect::<Vec<_>>().join(", ");
        return Err(Error::Verdict { name: name.to_owned(), known });
    }
    Ok(mask)
}

fn packet(
    head: &Head,
    bytes: Vec<u8>,
    offset: Duration,
    interfaces: &mut BTreeMap<u32, String>,
) -> Option<Packet> {
    let verdict = head.verdict()?;
    let flow = head.flow;
    let socket = |addr: Addr, port: u16| SocketAddr::new(addr.into(), port.swap_bytes());
    Some(Packet {
        at: offset + Duration::from_nanos(head.time_ns),
        interface: interfaces.entry(head.ifindex).or_insert_with(|| interface_name(head.ifindex)).clone(),
        verdict: verdict.as_str(),
        action: match verdict.action() {
            WireAction::Pass => Action::Pass,
            WireAction::Drop => Action::Drop,
            WireAction::Send => Action::Send,
        },
        xdp_action: head.action,
        flow: (flow.proto != 0 || flow.src != Addr::default()).then(|| {
            (flow.proto as u8, socket(flow.src, flow.src_port()), socket(flow.dst, flow.dst_port()))
        }),
        length: head.length,
        bytes,
    })
}

fn interface_name(ifindex: u32) -> String {
    let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None);
    socket
        .and_then(|socket| rustix::net::netdevice::index_to_name(socket.as_fd(), ifindex))
        .unwrap_or_else(|_| format!("interface {ifindex}"))
}

fn now(clock: ClockId) -> Duration {
    let time = clock_gettime(clock);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_is_named_in_full_by_its_beginning_or_by_what_is_done() {
        let bit = |verdict: Verdict| 1u64 << verdict as u64;

        assert_eq!(verdicts_named("no-backend").unwrap(), bit(Verdict::NoBackend));
        assert_eq!(
            verdicts_named("replied-*").unwrap(),
            bit(Verdict::RepliedLocal) | bit(Verdict::RepliedNat) | bit(Verdict::RepliedIcmp)
        );
        let drops = verdicts_named("drop").unwrap();
        assert_eq!(drops & bit(Verdict::ClosedPort), bit(Verdict::ClosedPort));
        assert_eq!(drops & bit(Verdict::Punted), 0);
    }

    #[test]
    fn what_is_no_verdict_is_refused_with_those_there_are() {
        for name in ["nonsense", "not-ours", "", "x*"] {
            let error = verdicts_named(name).expect_err(name).to_string();
            assert!(error.contains("forwarded-nat") && !error.contains("not-ours,"), "{error}");
        }
    }
}

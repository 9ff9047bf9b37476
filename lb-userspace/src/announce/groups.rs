//! The groups that are asked for IPv6 addresses: a card hands up the solicitations of those alone that somebody here is in.
//!
//! The kernel bounds the groups of a socket by `net.core.optmem_max` (some hundred, or some thousand since Linux 6.8), so
//! one socket may not be enough.

use std::collections::BTreeSet;
use std::io;
use std::net::Ipv6Addr;

use socket2::{Domain, Socket, Type};
use tracing::warn;

/// Sockets at most, of a link.
const SOCKETS: usize = 64;

/// On one interface.
pub(super) struct Groups {
    index: u32,
    sockets: Vec<(Socket, BTreeSet<Ipv6Addr>)>,
    /// It was told that there are more groups than can be joined.
    told: bool,
}

impl Groups {
    pub(super) fn on(index: u32) -> Self {
        Self { index, sockets: Vec::new(), told: false }
    }

    /// Joins these and leaves others. What could not be joined is tried again with the next call.
    pub(super) fn join(&mut self, wanted: &BTreeSet<Ipv6Addr>) {
        for (socket, joined) in &mut self.sockets {
            joined.retain(|group| {
                wanted.contains(group) || socket.leave_multicast_v6(group, self.index).is_err()
            });
        }
        self.sockets.retain(|(_, joined)| !joined.is_empty());
        let joined: BTreeSet<Ipv6Addr> = self.joined().copied().collect();
        let mut failed = (0, None);
        for group in wanted.difference(&joined) {
            if let Err(error) = self.join_one(*group) {
                failed = (failed.0 + 1, Some(error));
            }
        }
        let is_news = !std::mem::replace(&mut self.told, failed.1.is_some());
        if let (groups, Some(error)) = failed
            && is_news
        {
            warn!(groups, %error, "not all groups of IPv6 addresses are joined; a card may keep questions for those from us");
        }
    }

    fn joined(&self) -> impl Iterator<Item = &Ipv6Addr> {
        self.sockets.iter().flat_map(|(_, joined)| joined)
    }

    /// By a socket that has room, or a further one.
    fn join_one(&mut self, group: Ipv6Addr) -> io::Result<()> {
        let index = self.index;
        let takes = |(socket, _): &&mut (Socket, _)| socket.join_multicast_v6(&group, index).is_ok();
        if let Some((_, joined)) = self.sockets.iter_mut().rev().find(takes) {
            joined.insert(group);
            return Ok(());
        }
        if self.sockets.len() == SOCKETS {
            return Err(io::Error::other("all sockets are full"));
        }
        let socket = Socket::new(Domain::IPV6, Type::DGRAM, None)?;
        socket.join_multicast_v6(&group, index)?;
        self.sockets.push((socket, BTreeSet::from([group])));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::announce::frame;

    #[test]
    fn more_groups_than_a_socket_takes_are_joined_and_left_again() {
        let vip = |number: u32| Ipv6Addr::from(0x2001_0db8_u128 << 96 | u128::from(number));
        let wanted: BTreeSet<Ipv6Addr> =
            (0..6000).map(|number| frame::solicited_group(vip(number))).collect();
        // The loopback interface.
        let mut groups = Groups::on(1);

        groups.join(&wanted);

        assert_eq!(groups.joined().copied().collect::<BTreeSet<_>>(), wanted);
        assert!(groups.sockets.len() > 1, "one socket takes all of them here");
        groups.join(&BTreeSet::new());
        assert_eq!(groups.joined().count(), 0);
    }
}

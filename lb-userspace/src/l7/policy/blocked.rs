//! Who is turned away on every host.

use std::net::IpAddr;

use super::Headers;
use crate::model::l7::Blocked;

/// Its User-Agent or Referer is listed.
pub(in crate::l7) fn names(blocked: &Blocked, headers: &Headers<'_>) -> bool {
    let Blocked { clients: _, agents, referers } = blocked;
    [(agents, "user-agent"), (referers, "referer")].into_iter().any(|(list, name)| {
        let value = headers.first(name).filter(|_| !list.is_empty());
        value.is_some_and(|value| list.iter().any(|listed| listed.takes(value)))
    })
}

/// Its address is.
pub(in crate::l7) fn holds(blocked: &Blocked, client: IpAddr) -> bool {
    blocked.clients.contains(client)
}

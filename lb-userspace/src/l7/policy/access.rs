//! Who may enter, by address.

use std::net::IpAddr;

use super::super::filters::Answer;
use crate::model::l7::policy::Access;

/// What an address comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::l7) enum Entry {
    /// It is one of those that may enter.
    Listed,
    /// Nobody says anything about it, so it may.
    Open,
    /// It may not.
    Denied,
}

pub(super) fn entry(access: &Access, client: IpAddr) -> Entry {
    let Access { denied, allowed } = access;
    match allowed {
        _ if denied.contains(client) => Entry::Denied,
        None => Entry::Open,
        Some(allowed) if allowed.contains(client) => Entry::Listed,
        Some(_) => Entry::Denied,
    }
}

pub(super) fn refuse(access: &Access, client: IpAddr) -> Option<Answer> {
    (entry(access, client) == Entry::Denied).then_some(Answer::Status(403))
}

pub(super) fn explain(access: &Access, client: IpAddr) -> String {
    let verdict = if entry(access, client) == Entry::Denied { "is answered 403" } else { "may enter" };
    let denied =
        if access.denied.is_empty() { String::new() } else { format!("; denied: {}", access.denied) };
    let allowed = access.allowed.as_ref().map(|allowed| format!("; allowed: {allowed}")).unwrap_or_default();
    format!("{client} {verdict}{denied}{allowed}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::l4::Prefix;
    use crate::model::l7::policy::AddressSet;

    fn set(addr: &str, bits: u8) -> AddressSet {
        Prefix::new(addr.parse().unwrap(), bits).into_iter().collect()
    }

    #[test]
    fn who_is_denied_stays_out_even_if_allowed() {
        let denied = set("10.1.0.0", 16);
        let allowed = Some(set("10.0.0.0", 8));
        let cases = [
            ("both lists", denied.clone(), allowed.clone(), [false, true, false]),
            ("denied only", denied, None, [false, true, true]),
            ("allowed only", AddressSet::default(), allowed, [true, true, false]),
            ("nobody allowed", AddressSet::default(), Some(AddressSet::default()), [false; 3]),
        ];
        for (case, denied, allowed, expected) in cases {
            let access = Access { denied, allowed };
            let open = ["10.1.2.3", "10.2.2.3", "192.0.2.1"]
                .map(|client| refuse(&access, client.parse().unwrap()).is_none());
            assert_eq!(open, expected, "{case}");
        }
    }
}

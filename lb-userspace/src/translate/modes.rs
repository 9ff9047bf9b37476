//! How packets reach a backend: what was asked for, joined with where the backend is.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use super::findings::About;
use super::nodes::Nodes;
use super::ours;
use crate::model::l4::{At, ForwardingMode};
use crate::model::{ObjectId, Severity};

/// What an annotation asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) enum Wanted {
    /// What fits the place of each backend.
    #[default]
    Auto,
    /// This mode, wherever the backend is.
    Fixed(ForwardingMode),
}

impl Wanted {
    /// `auto` or the word of a mode.
    pub(super) fn named(text: &str) -> Option<Self> {
        if text == "auto" {
            return Some(Self::Auto);
        }
        ForwardingMode::ALL.into_iter().find(|mode| mode.as_str() == text).map(Self::Fixed)
    }

    /// Every backend has to hold the VIP itself.
    pub(super) fn keeps_destination(self) -> bool {
        matches!(self, Self::Fixed(mode) if mode.keeps_destination())
    }
}

/// Backends of one port that cannot have the mode they were to have, told once for each reason.
#[derive(Default)]
pub(super) struct Misfits {
    asked: BTreeMap<Misfit, Vec<(SocketAddr, ForwardingMode)>>,
    /// Nodes that nobody asked a mode for, and that a tunnel could lead to.
    bare: BTreeSet<(ObjectId, &'static str, String)>,
    /// The nodes that were asked about.
    by_nat: BTreeSet<String>,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Misfit {
    /// The field that asks for the mode.
    field: String,
    mode: ForwardingMode,
    why: String,
    fix: String,
}

impl Misfits {
    /// The mode for a backend: as `field` wants it where that is possible, else the one of its place.
    pub(super) fn resolve(
        &mut self,
        (wanted, field): (Wanted, &str),
        backend: SocketAddr,
        at: At,
        node: Option<&str>,
        nodes: &Nodes,
    ) -> ForwardingMode {
        let auto = match at {
            At::Here => ForwardingMode::Local,
            At::Node { .. } => ForwardingMode::Tunnel,
            At::Elsewhere => ForwardingMode::Nat,
        };
        let Wanted::Fixed(mode) = wanted else {
            if let (ForwardingMode::Nat, Some(node)) = (auto, node)
                && !self.by_nat.contains(node)
            {
                self.by_nat.insert(node.to_owned());
                self.bare.extend(nodes.why_nat(node));
            }
            return auto;
        };
        let (why, fix) = match (mode, at) {
            (ForwardingMode::Local, At::Here) | (ForwardingMode::Tunnel, At::Node { .. }) => return mode,
            (ForwardingMode::Nat | ForwardingMode::L2 | ForwardingMode::Ipip, _) => return mode,
            (ForwardingMode::Local, At::Node { .. } | At::Elsewhere) => match node {
                Some(node) => (format!("is on node {node:?}, not on this one"), "use auto".to_owned()),
                None => (
                    "names no node, so it counts as being elsewhere".to_owned(),
                    "write its nodeName if it is on this node, or use auto".to_owned(),
                ),
            },
            (ForwardingMode::Tunnel, At::Here) => {
                ("is on this node, where no tunnel is needed".to_owned(), String::new())
            }
            (ForwardingMode::Tunnel, At::Elsewhere) => {
                let (why, fix) = nodes.why_no_tunnel(node);
                (format!("cannot be reached by a tunnel: {why}"), format!("{fix}, or use auto"))
            }
        };
        let misfit = Misfit { field: field.to_owned(), mode, why, fix };
        self.asked.entry(misfit).or_default().push((backend, auto));
        auto
    }

    /// Says them.
    pub(super) fn say(self, about: &mut About<'_>) {
        for (node, message, fix) in self.bare {
            about.instead(&node).info("no-tunnel-address", ours::field(ours::TUNNEL), message, fix);
        }
        for (Misfit { field, mode, why, fix }, backends) in self.asked {
            let Some((first, instead)) = backends.first() else { continue };
            let others = match backends.len() - 1 {
                0 => String::new(),
                others => format!(" (and {others} more like it)"),
            };
            let message = format!("{mode}: backend {first}{others} {why}; {instead} is used");
            // A tunnel to oneself is what a Service for many nodes asks of each of them.
            let is_better = (mode, *instead) == (ForwardingMode::Tunnel, ForwardingMode::Local);
            let severity = if is_better { Severity::Info } else { Severity::Warning };
            about.say(severity, "mode-does-not-fit", field, message, fix);
        }
    }
}

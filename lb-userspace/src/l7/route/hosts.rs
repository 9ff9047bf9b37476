//! Which server a name belongs to.

use std::collections::HashMap;

use crate::model::l7::{Aliases, HostMatch, Pattern};

/// Longest host name looked up; longer ones belong to no server.
const HOST_MAX: usize = 255;

/// Label of the host that no server names.
pub(super) const UNNAMED: &str = "_";

/// Servers, by their numbers, and the names they answer for.
#[derive(Debug)]
pub(super) struct Hosts {
    /// Names of servers, and their aliases.
    exact: HashMap<Box<[u8]>, usize>,
    /// Aliases by the suffix after `*.`, at any depth.
    below: HashMap<Box<[u8]>, usize>,
    /// Aliases that are patterns.
    patterns: Vec<(Pattern, usize)>,
    /// By the suffix after `*.`.
    wildcard: HashMap<Box<[u8]>, usize>,
    any: usize,
}

/// How a request found its host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::l7) enum HostFound {
    /// The name itself, or an alias that is a name.
    Exact,
    /// An alias that stands for many names.
    Alias,
    /// `*.` + suffix.
    Wildcard,
    /// No server names it: `_`.
    Unnamed,
}

impl Hosts {
    /// Of servers in the order of their numbers, one of which is for any name.
    pub(super) fn new<'h>(servers: impl Iterator<Item = &'h HostMatch>, aliases: &Aliases) -> Self {
        let (mut exact, mut wildcard, mut any) = (HashMap::new(), HashMap::new(), 0);
        for (number, host) in servers.enumerate() {
            match host {
                HostMatch::Exact(name) => {
                    exact.insert(name.as_bytes().into(), number);
                }
                HostMatch::Wildcard(suffix) => {
                    wildcard.insert(suffix.as_bytes().into(), number);
                }
                HostMatch::Any => any = number,
            }
        }
        let of = |host: &HostMatch| match host {
            HostMatch::Exact(name) => exact.get(name.as_bytes()).copied(),
            HostMatch::Wildcard(suffix) => wildcard.get(suffix.as_bytes()).copied(),
            HostMatch::Any => Some(any),
        };
        let named = |(name, host): (&String, &HostMatch)| Some((name.as_bytes().into(), of(host)?));
        let names: Vec<(Box<[u8]>, usize)> = aliases.exact.iter().filter_map(named).collect();
        let below = aliases.below.iter().filter_map(named).collect();
        let patterns = aliases.patterns.iter();
        let patterns = patterns.filter_map(|(pattern, host)| Some((pattern.clone(), of(host)?))).collect();
        exact.extend(names);
        Self { exact, below, patterns, wildcard, any }
    }

    /// The server for a Host header (with or without port).
    pub(super) fn find(&self, host: &[u8]) -> (usize, HostFound) {
        let mut lower = [0u8; HOST_MAX];
        let name = bare_host(host);
        match lower.get_mut(..name.len()) {
            Some(lower) if !name.is_empty() => {
                lower.copy_from_slice(name);
                lower.make_ascii_lowercase();
                self.lookup(lower)
            }
            _ => (self.any, HostFound::Unnamed),
        }
    }

    fn lookup(&self, name: &[u8]) -> (usize, HostFound) {
        if let Some(&index) = self.exact.get(name) {
            return (index, HostFound::Exact);
        }
        if let Some(index) = self.alias(name) {
            return (index, HostFound::Alias);
        }
        if !self.wildcard.is_empty() {
            let suffix = name.iter().position(|&b| b == b'.').and_then(|dot| name.get(dot + 1..));
            if let Some(&index) = suffix.and_then(|suffix| self.wildcard.get(suffix)) {
                return (index, HostFound::Wildcard);
            }
        }
        (self.any, HostFound::Unnamed)
    }

    /// By an alias that is no plain name.
    fn alias(&self, name: &[u8]) -> Option<usize> {
        if !self.below.is_empty() {
            // The suffix behind the first dot is the longest.
            let dots = name.iter().enumerate().filter(|(_, byte)| **byte == b'.');
            let mut suffixes = dots.filter_map(|(dot, _)| name.get(dot + 1..));
            if let Some(&index) = suffixes.find_map(|suffix| self.below.get(suffix)) {
                return Some(index);
            }
        }
        self.patterns.iter().find(|(pattern, _)| pattern.regex().is_match(name)).map(|(_, index)| *index)
    }
}

/// A Host header without port and trailing dot.
pub(in crate::l7) fn bare_host(host: &[u8]) -> &[u8] {
    let end = if host.first() == Some(&b'[') {
        host.iter().position(|&b| b == b']').map_or(host.len(), |at| at + 1)
    } else {
        host.iter().position(|&b| b == b':').unwrap_or(host.len())
    };
    let name = host.get(..end).unwrap_or_default();
    name.strip_suffix(b".").unwrap_or(name)
}

/// `_`, `*.example.com` or the name.
pub(in crate::l7) fn host_label(host: &HostMatch) -> String {
    match host {
        HostMatch::Exact(name) => name.clone(),
        HostMatch::Wildcard(suffix) => format!("*.{suffix}"),
        HostMatch::Any => UNNAMED.to_owned(),
    }
}

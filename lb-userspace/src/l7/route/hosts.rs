//! Which server a name belongs to.

use crate::l7::map::Map;
use crate::model::l7::{Aliases, HostMatch, Pattern};

/// Longest host name looked up; longer ones belong to no server.
const HOST_MAX: usize = 255;

/// Label of the host that no server names.
pub(super) const UNNAMED: &str = "_";

/// Places of servers, and the names they answer for.
#[derive(Debug, Clone, Default)]
pub(super) struct Hosts {
    exact: Map<Box<[u8]>, usize>,
    /// By the suffix after `*.`.
    wildcard: Map<Box<[u8]>, usize>,
    any: Option<usize>,
    further: Further,
}

/// Names beside those of the servers.
#[derive(Debug, Clone, Default)]
struct Further {
    exact: Map<Box<[u8]>, usize>,
    /// By the suffix after `*.`, at any depth.
    below: Map<Box<[u8]>, usize>,
    patterns: Vec<(Pattern, usize)>,
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
    /// Gives a server its place.
    pub(super) fn insert(&mut self, host: &HostMatch, place: usize) {
        match host {
            HostMatch::Exact(name) => {
                self.exact.insert(name.as_bytes().into(), place);
            }
            HostMatch::Wildcard(suffix) => {
                self.wildcard.insert(suffix.as_bytes().into(), place);
            }
            HostMatch::Any => self.any = Some(place),
        }
    }

    /// Takes a server's place away.
    pub(super) fn remove(&mut self, host: &HostMatch) {
        match host {
            HostMatch::Exact(name) => {
                self.exact.remove(name.as_bytes());
            }
            HostMatch::Wildcard(suffix) => {
                self.wildcard.remove(suffix.as_bytes());
            }
            HostMatch::Any => self.any = None,
        }
    }

    /// The place of a server.
    pub(super) fn place_of(&self, host: &HostMatch) -> Option<usize> {
        match host {
            HostMatch::Exact(name) => self.exact.get(name.as_bytes()).copied(),
            HostMatch::Wildcard(suffix) => self.wildcard.get(suffix.as_bytes()).copied(),
            HostMatch::Any => self.any,
        }
    }

    /// The place of the server that is labelled so.
    pub(super) fn labelled(&self, label: &str) -> Option<usize> {
        match label.strip_prefix("*.") {
            _ if label == UNNAMED => self.any,
            Some(suffix) => self.wildcard.get(suffix.as_bytes()).copied(),
            None => self.exact.get(label.as_bytes()).copied(),
        }
    }

    /// Further names, instead of those of before.
    pub(super) fn set_aliases(&mut self, aliases: &Aliases) {
        let named =
            |(name, host): (&String, &HostMatch)| Some((name.as_bytes().into(), self.place_of(host)?));
        let exact = aliases.exact.iter().filter_map(named).collect();
        let below = aliases.below.iter().filter_map(named).collect();
        let patterns = aliases.patterns.iter();
        let patterns = patterns.filter_map(|(pattern, host)| Some((pattern.clone(), self.place_of(host)?)));
        let patterns = patterns.collect();
        self.further = Further { exact, below, patterns };
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
            _ => (self.nameless(), HostFound::Unnamed),
        }
    }

    fn lookup(&self, name: &[u8]) -> (usize, HostFound) {
        if let Some(&index) = self.exact.get(name) {
            return (index, HostFound::Exact);
        }
        if let Some(found) = self.further.find(name) {
            return found;
        }
        if !self.wildcard.is_empty() {
            // An empty label is none.
            let dot = name.iter().position(|&b| b == b'.').filter(|dot| *dot > 0);
            let suffix = dot.and_then(|dot| name.get(dot + 1..));
            if let Some(&index) = suffix.and_then(|suffix| self.wildcard.get(suffix)) {
                return (index, HostFound::Wildcard);
            }
        }
        (self.nameless(), HostFound::Unnamed)
    }

    /// Where what no server names goes; there always is such a place once there are any.
    fn nameless(&self) -> usize {
        self.any.unwrap_or(0)
    }
}

impl Further {
    fn find(&self, name: &[u8]) -> Option<(usize, HostFound)> {
        if !self.exact.is_empty()
            && let Some(&place) = self.exact.get(name)
        {
            return Some((place, HostFound::Exact));
        }
        if !self.below.is_empty() {
            // The suffix behind the first dot is the longest.
            let dots = name.iter().enumerate().filter(|(dot, byte)| *dot > 0 && **byte == b'.');
            let mut suffixes = dots.filter_map(|(dot, _)| name.get(dot + 1..));
            if let Some(&place) = suffixes.find_map(|suffix| self.below.get(suffix)) {
                return Some((place, HostFound::Alias));
            }
        }
        let fits = |(pattern, _): &&(Pattern, usize)| pattern.regex().is_match(name);
        self.patterns.iter().find(fits).map(|(_, place)| (*place, HostFound::Alias))
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

//! Names beside those of the servers.

use std::sync::Arc;

use super::{HostMatch, Pattern};
use crate::model::Shared;

/// Further names of servers (`server-alias`). They count less than the exact names of servers, and more
/// than their wildcards.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Aliases {
    /// Whole names; lower case. None of them is a server's.
    pub exact: Shared<String, HostMatch>,
    /// By the suffix after `*.`, however many labels deep; of several that fit the longest counts.
    pub below: Shared<String, HostMatch>,
    /// Tried in this order.
    pub patterns: Arc<[(Pattern, HostMatch)]>,
}

/// A host that only leads to another one (`from-to-www-redirect`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moved {
    /// Name of the other one.
    pub to: String,
    /// 301, 302, 307 or 308.
    pub status: u16,
}

//! `limit-rps`, `limit-rpm`, `limit-connections` and what goes with them.

use std::sync::Arc;

use super::AddressSet;
use crate::model::ObjectName;
use crate::model::expression::Expression;

/// How often, and how often at once, one client address may ask the locations of an Ingress.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Whose locations count together.
    pub ingress: ObjectName,
    /// Requests per second.
    pub per_second: Option<Allowance>,
    /// Requests per minute; both have to allow a request.
    pub per_minute: Option<Allowance>,
    /// Answer to what is too often: 400 to 599.
    pub often_status: u16,
    /// Requests at once.
    pub at_once: Option<u32>,
    /// Answer to what is too many at once: 400 to 599.
    pub at_once_status: u16,
    /// What tells clients apart; `None`: their address. Who has nothing to show for it is not counted.
    pub by: Option<Arc<Expression>>,
    /// Addresses without limits.
    pub exempt: AddressSet,
}

/// A leaky bucket: one request passes, and so many more at once; then as many as drain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowance {
    /// Requests that drain in the period.
    pub requests: u32,
    /// Requests beyond the first that may come together.
    pub burst: u64,
}

//! Which endpoints take new flows, which only keep those they have: the rules that users know from
//! kube-proxy, and ours for the flows that exist.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use super::endpoints::{Endpoint, State};
use super::nodes::Nodes;
use crate::model::l4::{BackendState, OnEmpty, Protocol};

/// `spec.externalTrafficPolicy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Policy {
    /// Endpoints on any node.
    Cluster,
    /// Endpoints on this node.
    Local,
}

/// The hints of endpoints, by which `spec.trafficDistribution` keeps traffic near.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Hints {
    /// As kube-proxy follows them: each node, or zone, has endpoints of its own.
    #[default]
    Follow,
    /// All nodes have the same endpoints, so that a flow finds its own whichever node it comes by.
    Ignore,
}

/// What a pool is made of.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Choice<'a> {
    pub backends: BTreeMap<SocketAddr, (BackendState, &'a Endpoint<'a>)>,
    pub empty: OnEmpty,
}

/// Chooses among the endpoints of one port.
pub(super) fn choose<'a>(
    endpoints: &'a BTreeMap<SocketAddr, Endpoint<'a>>,
    (policy, hints): (Policy, Hints),
    protocol: Protocol,
    nodes: &Nodes,
) -> Choice<'a> {
    let is_here = |endpoint: &Endpoint<'_>| nodes.is_here(endpoint.node);
    // Local and cluster sets are independent: a local endpoint that finishes wins over a ready one
    // elsewhere.
    let candidates: BTreeMap<SocketAddr, &Endpoint<'_>> = endpoints
        .iter()
        .filter(|(_, endpoint)| policy == Policy::Cluster || is_here(endpoint))
        .map(|(addr, endpoint)| (*addr, endpoint))
        .collect();
    let active = active(&candidates, policy, hints, nodes);
    let all_take =
        candidates.iter().all(|(addr, endpoint)| endpoint.state != State::Ready || active.contains(addr));
    let backends = candidates.into_iter().filter_map(|(addr, endpoint)| {
        if active.contains(&addr) {
            return Some((addr, (BackendState::Active, endpoint)));
        }
        // Where topology chooses among the ready ones, nobody knows whether it had chosen this one: one that
        // terminates has no hints.
        let state = match endpoint.state {
            State::Finishing if all_take => BackendState::Leaving,
            _ => BackendState::Draining,
        };
        keeps_flows(endpoint.state, protocol).then_some((addr, (state, endpoint)))
    });
    let serves_elsewhere = |endpoint: &Endpoint<'_>| {
        matches!(endpoint.state, State::Ready | State::Finishing) && !is_here(endpoint)
    };
    let empty = if policy == Policy::Local && endpoints.values().any(serves_elsewhere) {
        OnEmpty::Drop
    } else {
        OnEmpty::Reject
    };
    Choice { backends: backends.collect(), empty }
}

/// The ready ones, as far as topology keeps them; else those that still serve while terminating.
fn active(
    candidates: &BTreeMap<SocketAddr, &Endpoint<'_>>,
    policy: Policy,
    hints: Hints,
    nodes: &Nodes,
) -> BTreeSet<SocketAddr> {
    let in_state = |state: State| -> Vec<(SocketAddr, &Endpoint<'_>)> {
        let matching = candidates.iter().filter(|(_, endpoint)| endpoint.state == state);
        matching.map(|(addr, endpoint)| (*addr, *endpoint)).collect()
    };
    let ready = in_state(State::Ready);
    let chosen = match (policy, hints) {
        _ if ready.is_empty() => in_state(State::Finishing),
        (Policy::Cluster, Hints::Follow) => near(ready, nodes),
        (Policy::Local, _) | (Policy::Cluster, Hints::Ignore) => ready,
    };
    chosen.into_iter().map(|(addr, _)| addr).collect()
}

/// Those whose hints name this node, else this zone; all where one of them has no such hint.
fn near<'a>(
    ready: Vec<(SocketAddr, &'a Endpoint<'a>)>,
    nodes: &Nodes,
) -> Vec<(SocketAddr, &'a Endpoint<'a>)> {
    let here = hinted(&ready, |endpoint| &endpoint.for_nodes, nodes.here());
    here.unwrap_or_else(|| in_zone(ready, nodes.zone()))
}

/// Those whose hints name this zone; all where one of them has no hint, or nobody is of the zone.
pub(super) fn in_zone<'a>(
    ready: Vec<(SocketAddr, &'a Endpoint<'a>)>,
    zone: Option<&str>,
) -> Vec<(SocketAddr, &'a Endpoint<'a>)> {
    hinted(&ready, |endpoint| &endpoint.for_zones, zone).unwrap_or(ready)
}

fn hinted<'a>(
    ready: &[(SocketAddr, &'a Endpoint<'a>)],
    hints: fn(&'a Endpoint<'a>) -> &'a BTreeSet<&'a str>,
    name: Option<&str>,
) -> Option<Vec<(SocketAddr, &'a Endpoint<'a>)>> {
    let complete = ready.iter().all(|(_, endpoint)| !hints(endpoint).is_empty());
    let name = name.filter(|_| complete)?;
    let named: Vec<_> =
        ready.iter().filter(|(_, endpoint)| hints(endpoint).contains(name)).copied().collect();
    (!named.is_empty()).then_some(named)
}

/// An endpoint that takes no new flows keeps its old ones until it leaves its slice: terminating or
/// not, and also when only topology turned new flows away. One that is not ready and does not
/// terminate may answer again, which a TCP flow waits for; a UDP client would never notice.
fn keeps_flows(state: State, protocol: Protocol) -> bool {
    match state {
        State::Ready | State::Finishing | State::Ending => true,
        State::NotReady => protocol == Protocol::Tcp,
    }
}

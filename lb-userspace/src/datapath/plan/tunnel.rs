//! What the receiving end of the tunnel needs: who may send, and which backend a tag names.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use lb_common::{BackendId, maps};

use super::former::{Rewrite, Standing};
use super::{Book, Op, Plan, Retired};
use crate::datapath::want::Want;
use crate::model::l4::PoolId;

impl Book {
    /// Who may send. A flow that began in the tunnel goes on there, whatever mode its sender has for new ones: it knows
    /// us by the address that one of us has no more. So who is a peer no longer stays one while it is heard.
    pub(super) fn plan_peers(&mut self, want: &Want, now: u32, plan: &mut Plan) {
        let before: BTreeSet<IpAddr> = self.peers.keys().copied().collect();
        self.peers.retain(|peer, standing| *standing != Standing::Over || want.peers.contains(peer));
        for standing in self.peers.values_mut().filter(|standing| **standing == Standing::Wanted) {
            *standing = Standing::Former { named: now };
        }
        self.peers.extend(want.peers.iter().map(|peer| (*peer, Standing::Wanted)));
        if !self.peers.keys().eq(&before) {
            plan.ops.push(Op::Peers(self.peers.keys().copied().collect()));
        }
    }

    /// Those that an agent before us heard.
    pub fn adopt_peers(&mut self, peers: impl Iterator<Item = IpAddr>) {
        self.peers.extend(peers.map(|peer| (peer, Standing::Wanted)));
    }

    /// Whether anybody may send who is no peer any more.
    pub fn has_former_peers(&self) -> bool {
        self.peers.values().any(|standing| *standing != Standing::Wanted)
    }

    /// Notes who of them was not heard for the grace time, after which the sender, too, has forgotten such a flow. They
    /// go with the next plan; returns whether there are any.
    pub fn review_peers(&mut self, heard: &BTreeMap<IpAddr, u32>, now: u32, grace: u32) -> bool {
        let mut any = false;
        for (peer, standing) in &mut self.peers {
            let Standing::Former { named } = standing else { continue };
            let since = |then: u32| now.saturating_sub(then);
            let silence = heard.get(peer).map_or(since(*named), |heard| since(*heard).min(since(*named)));
            if silence > grace {
                *standing = Standing::Over;
                any = true;
            }
        }
        any
    }

    /// After the backends of this plan, before their ids are given back.
    pub(super) fn plan_tunnel(&mut self, touched: &BTreeSet<PoolId>, plan: &mut Plan, retired: &Retired) {
        let mut names: BTreeMap<u64, BackendId> = BTreeMap::new();
        let mut before: BTreeMap<u64, BackendId> = BTreeMap::new();
        for pool in touched {
            names.extend(self.names_of(pool));
        }
        let tags = touched.iter().filter_map(|pool| self.tags.get(pool)).chain(&retired.tags);
        for tag in tags {
            before.extend(self.names.range(maps::tag_key(*tag, 0)..=maps::tag_key(*tag, u32::MAX)));
        }
        let gone: BTreeSet<u64> = before.keys().filter(|key| !names.contains_key(key)).copied().collect();
        let put = names.into_iter().filter(|(key, id)| before.get(key) != Some(id));
        let put: BTreeMap<u64, BackendId> = put.collect();
        self.names.extend(&put);
        for key in &gone {
            self.names.remove(key);
        }
        if !put.is_empty() {
            plan.ops.push(Op::Names(put));
        }
        if !gone.is_empty() {
            plan.ops.push(Op::NoNames(gone));
        }
    }

    /// Backends of a pool that a tunnelled packet may name: those here, and those that it may be sent on to.
    fn names_of(&self, pool: &PoolId) -> impl Iterator<Item = (u64, BackendId)> {
        let tag = self.tags.get(pool).copied();
        let named = move |wanted: bool| {
            let lines = self.of_pool(pool).filter(move |((_, _, rewrite), line)| {
                matches!(rewrite, Rewrite::Delivered | Rewrite::Tunnelled)
                    && (line.standing == Standing::Wanted) == wanted
            });
            lines.filter_map(move |(_, line)| Some((maps::tag_key(tag?, line.words[1][2] as u32), line.id)))
        };
        // A backend as it is wanted before its former self.
        named(false).chain(named(true))
    }
}

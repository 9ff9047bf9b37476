//! Nodes: which of them we are, where the others take tunnelled packets, and which are no hop.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;

use super::findings::{About, Findings};
use super::ours;
use super::{Options, StreamsBy};
use crate::model::l4::{At, Family};
use crate::model::{ObjectId, ObjectName};
use crate::objects::{Key, Kind, LEAVING_TAINTS, Map};

const ZONE: &str = "topology.kubernetes.io/zone";
const EXCLUDED: &str = "node.kubernetes.io/exclude-from-external-load-balancers";

/// What the Node objects say.
#[derive(PartialEq, Eq, Default)]
pub(super) struct Nodes {
    here: Option<String>,
    /// Where our own Node object came from; `None`: there is none.
    origin: Option<Arc<str>>,
    zone: Option<String>,
    /// Every node but ours.
    others: BTreeMap<String, Other>,
    own: BTreeSet<IpAddr>,
    /// Nobody outside is to send packets to us: somebody says so, or we will be gone.
    excluded: bool,
    /// What all of them have.
    addresses: BTreeSet<IpAddr>,
    /// What each but ours has, by name, its tunnel addresses among it.
    named: Arc<BTreeMap<String, BTreeSet<IpAddr>>>,
    /// There is a kernel part, which could tunnel.
    forwards: bool,
}

#[derive(PartialEq, Eq)]
struct Other {
    origin: Arc<str>,
    tunnel: BTreeSet<IpAddr>,
    excluded: bool,
}

impl Nodes {
    pub(super) fn new(objects: &Map<String, Node>, options: &Options, findings: &mut Findings) -> Self {
        let forwards = options.streams == StreamsBy::Kernel;
        let mut nodes = Self { here: options.node.clone(), forwards, ..Self::default() };
        let mut taken: BTreeMap<IpAddr, &str> = BTreeMap::new();
        let mut named = BTreeMap::new();
        for (name, sourced) in objects {
            let id = id(name, &sourced.origin);
            let mut about = findings.about(&id);
            ours::unknown(&sourced.object.metadata, Kind::Node, &mut about);
            nodes.addresses.extend(addresses(&sourced.object));
            let tunnel = tunnel_addrs(name, &sourced.object, &mut taken, &mut about);
            if nodes.here.as_ref() == Some(name) {
                nodes.zone = label(&sourced.object, ZONE).filter(|zone| !zone.is_empty()).map(str::to_owned);
                nodes.own = tunnel;
                nodes.origin = Some(Arc::clone(&sourced.origin));
                nodes.excluded = label(&sourced.object, EXCLUDED).is_some() || leaves(&sourced.object);
            } else {
                let excluded = label(&sourced.object, EXCLUDED).is_some();
                let origin = Arc::clone(&sourced.origin);
                let all = addresses(&sourced.object).chain(tunnel.iter().copied());
                named.insert(name.clone(), all.collect());
                nodes.others.insert(name.clone(), Other { origin, tunnel, excluded });
            }
        }
        nodes.named = Arc::new(named);
        nodes.say_what_is_missing(objects, findings);
        nodes
    }

    /// Without our own Node object the rest is half a truth: nothing is tunnelled, no zone known.
    fn say_what_is_missing(&self, objects: &Map<String, Node>, findings: &mut Findings) {
        let Some(here) = &self.here else { return };
        let known = objects.get(here);
        let id = id(here, known.map_or("", |sourced| &*sourced.origin));
        let mut about = findings.about(&id);
        if known.is_none() && !objects.is_empty() {
            about.warn(
                "own-node-unknown",
                "",
                "this node has no Node object, so its zone is unknown and nothing is tunnelled",
                "add it, or name this node as the others call it with --node-name",
            );
        } else if self.own.is_empty() && self.others.values().any(|other| !other.tunnel.is_empty()) {
            about.warn(
                "no-own-tunnel-address",
                ours::field(ours::TUNNEL),
                "other nodes take tunnelled packets, but not from a node without an address of its own: nothing \
                 is tunnelled",
                format!("annotate this node with {}: <its address>", ours::TUNNEL),
            );
        }
    }

    /// Our name.
    pub(super) fn here(&self) -> Option<&str> {
        self.here.as_deref()
    }

    /// Our zone.
    pub(super) fn zone(&self) -> Option<&str> {
        self.zone.as_deref()
    }

    /// The node is ours. An endpoint that names no node is never local.
    pub(super) fn is_here(&self, node: Option<&str>) -> bool {
        node.is_some() && node == self.here()
    }

    /// Where an endpoint of this family on this node is.
    pub(super) fn at(&self, node: Option<&str>, family: Family) -> At {
        if self.is_here(node) {
            return At::Here;
        }
        match self.tunnel_to(node, family) {
            Some(tunnel) => At::Node { tunnel },
            None => At::Elsewhere,
        }
    }

    /// The inner family's own address first; any other that both ends have does as well.
    fn tunnel_to(&self, node: Option<&str>, family: Family) -> Option<IpAddr> {
        let other = self.others.get(node?).filter(|other| !other.excluded)?;
        let we_have = |addr: &&IpAddr| self.own.iter().any(|own| Family::of(*own) == Family::of(**addr));
        let common = || other.tunnel.iter().filter(we_have);
        common().find(|addr| Family::of(**addr) == family).or_else(|| common().next()).copied()
    }

    /// Why nothing is tunnelled to a node, and what would help.
    pub(super) fn why_no_tunnel(&self, node: Option<&str>) -> (String, String) {
        let annotation = ours::TUNNEL;
        let Some(node) = node else {
            return ("it names no node".to_owned(), "write its nodeName".to_owned());
        };
        match self.others.get(node) {
            None => (format!("there is no Node {node}"), format!("add it, annotated with {annotation}")),
            Some(other) if other.excluded => {
                (format!("Node {node} is labelled {EXCLUDED}"), "remove the label".to_owned())
            }
            Some(other) if other.tunnel.is_empty() => (
                format!("Node {node} has no tunnel address"),
                format!("annotate it with {annotation}: <its address>"),
            ),
            Some(_) => (
                format!("this node and Node {node} have no tunnel addresses of one family"),
                format!("annotate both with {annotation}"),
            ),
        }
    }

    /// The node whose annotation would have spared a backend on `node` from `nat`, and what to say about that; `None`
    /// where it is nobody's, or was told of all.
    pub(super) fn why_nat(&self, node: &str) -> Option<(ObjectId, &'static str, String)> {
        let here = (self.here.as_deref()?, self.origin.as_ref()?);
        let other = self.others.get(node).filter(|other| !other.excluded && self.forwards)?;
        let ((name, origin), message, whom) = match (self.own.is_empty(), other.tunnel.is_empty()) {
            (_, false) => return None,
            (true, true) => (
                here,
                "backends on other nodes are reached by nat: this node has no tunnel address",
                "this node and those that run Penstock",
            ),
            (false, true) => (
                (node, &other.origin),
                "backends on this node are reached by nat: it has no tunnel address",
                "it, if it runs Penstock,",
            ),
        };
        let fix = format!(
            "annotate {whom} with {}: <its address>, so that backends see client addresses and flows outlive a VIP that moves",
            ours::TUNNEL
        );
        Some((id(name, origin), message, fix))
    }

    /// Tunnel addresses of those of these nodes that we tunnel to, because their agents, the pods of this Service, are not
    /// ready. A node without such a pod may run an agent all the same, one that nobody told the cluster of.
    pub(super) fn silent<'a>(
        &self,
        unready: impl Iterator<Item = &'a str>,
        agents: &ObjectName,
        findings: &mut Findings,
    ) -> BTreeSet<IpAddr> {
        let mut silent = BTreeSet::new();
        for node in unready.filter(|_| self.forwards && !self.own.is_empty()) {
            let Some(other) = self.others.get(node).filter(|other| !other.excluded) else { continue };
            if other.tunnel.is_empty() {
                continue;
            }
            silent.extend(&other.tunnel);
            findings.about(&id(node, &other.origin)).info(
                "agent-not-ready",
                "",
                format!(
                    "its agent is not ready, as the EndpointSlices of Service {agents} say: backends there that are new \
                     are reached by nat until it is, the others by tunnel as before"
                ),
                format!(
                    "see why: kubectl -n {} get pods -o wide --field-selector spec.nodeName={node}",
                    agents.namespace
                ),
            );
        }
        silent
    }

    /// Nobody outside is to send packets to this node.
    pub(super) fn is_excluded(&self) -> bool {
        self.excluded
    }

    /// Addresses that nodes have.
    pub(super) fn addresses(&self) -> &BTreeSet<IpAddr> {
        &self.addresses
    }

    /// Addresses of the other nodes, by name.
    pub(super) fn named(&self) -> &Arc<BTreeMap<String, BTreeSet<IpAddr>>> {
        &self.named
    }

    /// Our own tunnel addresses.
    pub(super) fn own(&self) -> BTreeSet<IpAddr> {
        self.own.clone()
    }

    /// Tunnel addresses of the others. Of excluded ones, too: they get no packets from us, but what
    /// still arrives at them may come on to our backends.
    pub(super) fn peers(&self) -> BTreeSet<IpAddr> {
        self.others.values().flat_map(|other| &other.tunnel).copied().collect()
    }
}

fn tunnel_addrs<'a>(
    name: &'a str,
    node: &'a Node,
    taken: &mut BTreeMap<IpAddr, &'a str>,
    about: &mut About<'_>,
) -> BTreeSet<IpAddr> {
    let mut addrs: BTreeSet<IpAddr> = BTreeSet::new();
    let field = ours::field(ours::TUNNEL);
    for text in ours::text(&node.metadata, ours::TUNNEL).iter().flat_map(|text| text.split(',')) {
        let addr = match ours::tunnel_addr(text) {
            Ok(addr) => addr,
            Err(message) => {
                about.error_fix("bad-tunnel-address", &field, message, "write an address of this node");
                continue;
            }
        };
        if let Some(owner) = taken.get(&addr).filter(|owner| **owner != name) {
            about.error_fix(
                "bad-tunnel-address",
                &field,
                format!("{addr} is the tunnel address of Node {owner} already"),
                "write an address of this node alone",
            );
            continue;
        }
        if addrs.iter().any(|known| Family::of(*known) == Family::of(addr) && *known != addr) {
            about.warn(
                "bad-tunnel-address",
                &field,
                format!("{addr} is a second address of its family; it is not used"),
                "one of each family is enough",
            );
            continue;
        }
        taken.insert(addr, name);
        addrs.insert(addr);
    }
    addrs
}

fn addresses(node: &Node) -> impl Iterator<Item = IpAddr> {
    let status = node.status.as_ref().and_then(|status| status.addresses.as_ref());
    status.into_iter().flatten().filter_map(|addr| addr.address.parse().ok())
}

fn leaves(node: &Node) -> bool {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
    node.metadata.deletion_timestamp.is_some()
        || taints.into_iter().flatten().any(|taint| LEAVING_TAINTS.contains(&taint.key.as_str()))
}

fn label<'a>(node: &'a Node, name: &str) -> Option<&'a str> {
    node.metadata.labels.as_ref()?.get(name).map(String::as_str)
}

fn id(name: &str, origin: &str) -> ObjectId {
    Key { kind: Kind::Node, name: ObjectName::new("", name) }.id(origin)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::Sourced;

    #[test]
    fn a_node_that_will_be_gone_is_no_hop_and_one_that_is_drained_is() {
        let cases = [
            ("as usual", "{}", false),
            (
                "excluded by its label",
                "{metadata: {labels: {node.kubernetes.io/exclude-from-external-load-balancers: ''}}}",
                true,
            ),
            (
                "cordoned",
                "{spec: {unschedulable: true, taints: [{key: node.kubernetes.io/unschedulable, effect: NoSchedule}]}}",
                false,
            ),
            (
                "its kubelet is silent",
                "{spec: {taints: [{key: node.kubernetes.io/unreachable, effect: NoExecute}]}}",
                false,
            ),
            (
                "about to be taken away",
                "{spec: {taints: [{key: ToBeDeletedByClusterAutoscaler, effect: NoSchedule}]}}",
                true,
            ),
            (
                "out of service",
                "{spec: {taints: [{key: node.kubernetes.io/out-of-service, effect: NoExecute}]}}",
                true,
            ),
            ("deleted", "{metadata: {deletionTimestamp: '2026-01-01T00:00:00Z'}}", true),
        ];
        for (case, text, expected) in cases {
            assert_eq!(nodes(&[("here", text)]).is_excluded(), expected, "{case}");
        }
    }

    #[test]
    fn the_other_nodes_are_known_by_their_addresses_and_where_they_take_tunnelled_packets() {
        let text = "{metadata: {annotations: {penstock.dev/tunnel-address: 192.0.2.9}}, status: {addresses: [{type: \
                    InternalIP, address: 192.0.2.1}, {type: Hostname, address: there}]}}";

        let nodes = nodes(&[("here", "{}"), ("there", text)]);

        let expected = ["192.0.2.1", "192.0.2.9"].map(|addr| addr.parse().expect("an address"));
        assert_eq!(**nodes.named(), BTreeMap::from([("there".to_owned(), BTreeSet::from(expected))]));
    }

    /// What these Nodes say to the one that is `here`.
    fn nodes(texts: &[(&str, &str)]) -> Nodes {
        let node = |text| Arc::new(serde_saphyr::from_str::<Node>(text).expect("a Node"));
        let sourced = texts
            .iter()
            .map(|(name, text)| ((*name).to_owned(), Sourced { object: node(text), origin: "".into() }));
        let options = Options { node: Some("here".to_owned()), ..Options::default() };
        Nodes::new(&sourced.collect(), &options, &mut Findings::default())
    }
}

//! Real connections across network namespaces, through the real binary.
//! Needs root; a machine that has no namespaces skips, or fails where `PENSTOCK_REQUIRE` names `wire`.

mod addresses;
mod affinity;
mod announce;
mod beginning;
mod capture;
mod change;
mod clsact;
mod fork;
mod former;
mod health_port;
mod here;
mod interfaces;
mod l4;
mod lab;
mod local;
mod many;
mod names;
mod narrow;
mod nat_ports;
mod next_hop;
mod nodes;
mod ours_or_not;
mod protocol;
mod punt;
mod rig;
mod rollout;
mod scrape;
mod stay;
mod survival;
mod tagged;
mod takeover;
mod tunnel;
mod unresolved;
mod upkeep;
mod vlan;

//! One packet through the real program, by BPF_PROG_TEST_RUN.

mod affinity;
mod again;
mod asked;
mod capture;
mod cpus;
mod fixtures;
mod former;
mod here;
mod icmp;
mod local;
mod martian;
mod modes;
mod narrow;
mod ports;
mod random;
mod refuse;
mod rollout;
mod room;
mod run;
mod seen;
mod slow;
mod state;
mod tunnel;
mod verifier;
mod vlan;
mod wrap;

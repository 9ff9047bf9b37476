//! The agent beside a real kube-apiserver. `cargo xtask test cluster` starts one for all tests; each
//! has a namespace of its own. No controller runs there: what kubelets and controllers would make, the
//! tests make.

mod account;
mod acme;
mod agent;
mod balancers;
mod data_path;
mod deploy;
mod families;
mod flags;
mod follow;
mod nodes;
mod objects;
mod relay;
mod rig;
mod scope;
mod served_flags;
mod server;
mod trouble;
mod webhook;
mod write;

//! AGENT: the user-space half of Penstock.
//!
//! Rooms meet in [`agent`] through plain values from [`model`] and `watch` channels; sibling rooms
//! never import each other (`cargo xtask layers` checks the edges, ARCHITECTURE.md explains them).
#![deny(unsafe_code)]

mod accept;
pub mod admin;
pub mod agent;
mod allowance;
pub mod announce;
mod backoff;
pub mod capture;
pub mod check;
pub mod cli;
pub mod cluster;
pub mod config;
pub mod datapath;
pub mod dns;
pub mod drain;
pub mod export;
pub mod health;
pub mod health_port;
pub mod l7;
pub mod manifests;
pub mod model;
pub mod objects;
mod panics;
pub mod takeover;
pub mod translate;
pub mod webhook;

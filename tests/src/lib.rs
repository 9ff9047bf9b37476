//! Shared builders for the tests of every tier.

pub mod agent;
pub mod echo;
pub mod manifests;
pub mod netns;
pub mod packet;
pub mod tier;
pub mod world;

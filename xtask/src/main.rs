//! `cargo xtask`: the one entry point for building, testing and benching.
fn main() {}

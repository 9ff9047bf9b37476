//! The `penstock` binary: parses the command line and hands over to the agent.
fn main() {}

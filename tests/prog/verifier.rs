//! What the kernel's verifier makes of the programs.

use lb_tests::world::{World, can_run_programs};
use penstock::datapath::engine::Engine;

/// Half of what the kernel allows, and about half a second of an agent's start.
const MOST: u32 = 500_000;

#[test]
fn every_program_is_cheap_to_verify() {
    if !lb_tests::tier::require("prog", can_run_programs) {
        return;
    }
    is_cheap(&World::new().load());
}

/// Whether its programs are cheap to verify.
pub fn is_cheap(engine: &Engine) {
    let counts = engine.kernel.verified();
    for (name, count) in &counts {
        println!("{name}: {count} instructions");
    }
    assert!(counts.len() > 3, "{counts:?}");
    assert!(counts.iter().all(|(_, count)| *count < MOST), "{counts:?}");
}

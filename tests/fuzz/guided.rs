//! The same targets, driven by libFuzzer: it keeps what reaches code that nothing before it reached, and goes on from
//! there. `cargo xtask fuzz` builds it with the counters that this takes; `PENSTOCK_FUZZ_TARGET` names the target.
#![no_main]

mod targets;

use std::sync::LazyLock;

use targets::{Target, targets};

static CHOSEN: LazyLock<Target> = LazyLock::new(|| {
    let name = std::env::var("PENSTOCK_FUZZ_TARGET").expect("PENSTOCK_FUZZ_TARGET names a target");
    targets().into_iter().find(|target| target.name == name).expect("there is such a target")
});

// A panic that somebody catches is found all the same: the process ends where it begins.
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    (CHOSEN.run)(bytes);
});

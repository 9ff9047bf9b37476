//! Embeds the kernel object that `cargo xtask build-ebpf` leaves in `target/ebpf`, or an empty
//! file where it was not built yet: the agent then compiles and says at start what to run.
use std::path::Path;

fn main() {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let object = workspace.join("target/ebpf/penstock.bpf.o");
    println!("cargo::rerun-if-changed={}", object.display());
    let out = Path::new(&std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("penstock.bpf.o");
    let bytes = std::fs::read(&object).unwrap_or_default();
    std::fs::write(&out, bytes).expect("OUT_DIR is writable");
}

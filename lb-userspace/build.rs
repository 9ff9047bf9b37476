//! Embeds the kernel object that `cargo xtask build-ebpf` leaves in `target/ebpf`, or an empty
//! file where it was not built yet: the agent then compiles and says at start what to run.
use std::path::Path;

fn main() {
    // From the package's folder, where cargo runs this: a path that was compiled in is another workspace's where the
    // target folder was copied.
    let object = Path::new("../target/ebpf/penstock.bpf.o");
    println!("cargo::rerun-if-changed={}", object.display());
    let out = Path::new(&std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("penstock.bpf.o");
    let bytes = std::fs::read(object).unwrap_or_default();
    std::fs::write(&out, bytes).expect("OUT_DIR is writable");
}

//! Real connections across network namespaces, through the real binary.
//! Needs root; a machine that has no namespaces skips, or fails where `PENSTOCK_REQUIRE` names `wire`.

mod lab;

/// A lab, or nothing where this machine has no namespaces.
fn lab() -> Option<lb_tests::netns::Lab> {
    let possible = lb_tests::tier::require("wire", lb_tests::netns::possible);
    possible.then(|| lb_tests::netns::Lab::new().expect("namespaces are possible"))
}

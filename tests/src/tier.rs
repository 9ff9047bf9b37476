//! Whether a tier can run on this machine.

/// True when `check` finds nothing in the way. Otherwise says why, and fails the test where
/// `PENSTOCK_REQUIRE` (a list with commas, or `all`) names the tier.
pub fn require(tier: &str, check: impl FnOnce() -> Result<(), String>) -> bool {
    require_by(tier, &[tier, "all"], check)
}

/// The same for what only some kernels have: `all` does not mean it.
pub fn require_by_name(tier: &str, check: impl FnOnce() -> Result<(), String>) -> bool {
    require_by(tier, &[tier], check)
}

fn require_by(tier: &str, words: &[&str], check: impl FnOnce() -> Result<(), String>) -> bool {
    let Err(reason) = check() else { return true };
    let required = std::env::var("PENSTOCK_REQUIRE").unwrap_or_default();
    if required.split(',').any(|word| words.contains(&word.trim())) {
        panic!("tier {tier} is required but cannot run: {reason}");
    }
    eprintln!("SKIPPED, tier {tier} cannot run: {reason}");
    false
}

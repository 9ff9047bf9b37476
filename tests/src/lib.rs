//! Shared builders for the tests of every tier.

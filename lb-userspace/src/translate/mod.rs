//! PURE: Objects -> Snapshot.

//! Maps that every request asks several times.

use std::collections::HashMap;

/// Hashes a few times as fast as the standard one, by a seed that no two maps share. Its keys come from the
/// configuration alone: who asks for odd ones finds nothing, and cannot put anything in.
pub(super) type Map<K, V> = HashMap<K, V, foldhash::fast::RandomState>;

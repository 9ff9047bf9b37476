//! Chooses the backend of a flow: hash, slot, id.

use lb_common::{BackendId, Descriptor, Slot};

use crate::maps;

/// Backend of a hash; `None` where the VIP has no table.
#[inline(always)]
pub fn pick(table: Descriptor, hash: u64) -> Option<BackendId> {
    if table.is_none() {
        return None;
    }
    maps::slot(table.pool_index(hash)).map(|slot| Slot(slot).backend())
}

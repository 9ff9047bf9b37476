//! The filters that stand on the way out of interfaces, where the kernel has no tcx.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::TryStreamExt;
use rtnetlink::packet_route::tc::{TcAttribute, TcFilterBpfOption, TcMessage, TcOption};

use super::{Netlink, netlink};
use crate::datapath::Error;

impl Netlink {
    /// The programs of the filters on the way out of each of these interfaces, in the order in which they are asked;
    /// 0: a filter that is no eBPF program.
    pub async fn filters_on(&self, interfaces: BTreeSet<u32>) -> Result<BTreeMap<u32, Vec<u32>>, Error> {
        let mut found = BTreeMap::new();
        for ifindex in interfaces {
            let mut filters = self.handle.traffic_filter(ifindex.cast_signed()).get().egress().execute();
            let mut programs = Vec::new();
            while let Some(filter) =
                filters.try_next().await.map_err(|error| netlink("list", "filters", error))?
            {
                programs.extend(program(&filter));
            }
            found.insert(ifindex, programs);
        }
        Ok(found)
    }
}

/// `None`: what says that there are filters of a priority.
fn program(filter: &TcMessage) -> Option<u32> {
    if u32::from(filter.header.handle) == 0 {
        return None;
    }
    let options = filter.attributes.iter().filter_map(|attribute| match attribute {
        TcAttribute::Options(options) => Some(options),
        _ => None,
    });
    let number = options.flatten().find_map(|option| match option {
        TcOption::Bpf(TcFilterBpfOption::ProgId(number)) => Some(*number),
        _ => None,
    });
    Some(number.unwrap_or(0))
}

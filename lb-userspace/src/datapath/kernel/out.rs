//! The program on the way out: translates the answers of backends on this host. It stands before all others there: the first
//! of them that does not hand a packet on ends their row, and what it says of itself is that it hands on everything.

use std::io;

use aya::programs::links::FdLink;
use aya::programs::tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle};
use aya::programs::{LinkOrder, ProgramError, SchedClassifier, TcAttachType, TestRun, TestRunOptions};

use super::attach::named;
use super::{Error, Kernel, Run, io_error, load_error};

pub(super) const PROGRAM: &str = "penstock_out";

/// A program on the way out of an interface until this is dropped.
#[must_use]
pub(super) enum Out {
    /// A link, beside those of others.
    Tcx(FdLink),
    /// A filter of the `clsact` qdisc.
    Filter(Filter),
}

/// A filter, which has no name that outlives us but its place among filters.
pub(super) struct Filter {
    link: Option<SchedClassifierLink>,
    /// It stays when we go, as pinned attachments do.
    stays: bool,
}

impl Drop for Filter {
    fn drop(&mut self) {
        if self.stays {
            std::mem::forget(self.link.take());
        }
    }
}

/// Where our filter may stand, the best place first. Of filters with one priority the newest is asked first
/// (`cls_bpf_change` puts it in front), so each agent takes the place that the one before it has not. The last place
/// is for interfaces where the first priority belongs to classifiers of another kind.
const PLACES: [(u16, TcHandle); 3] =
    [(1, TcHandle::new(0, 7183)), (1, TcHandle::new(0, 7184)), (7183, TcHandle::new(0, 1))];

impl Kernel {
    pub(super) fn load_out(&mut self) -> Result<(), Error> {
        self.out()?.load().map_err(|source| load_error(PROGRAM, source))
    }

    /// Puts the program on the way out of an interface: as a link (Linux 6.6), else as a filter. The link of an agent before
    /// us goes when ours is there: it may stand behind others. For that moment both run, and the second finds nothing to do.
    pub fn attach_out(&mut self, name: &str, ifindex: u32) -> Result<(), Error> {
        let link = match tcx(self.out()?, name) {
            Ok(link) => link,
            Err(error) => {
                tracing::warn!(interface = name, %error, "no tcx here, a clsact filter is used");
                return self.attach_filter(name, ifindex);
            }
        };
        let link = match self.pinning() {
            Some(pins) => named(pins, link, &pin(ifindex))?,
            None => link,
        };
        self.out.insert(ifindex, Out::Tcx(link));
        Ok(())
    }

    /// Puts the program on the way out of an interface as a filter, whatever the kernel has; one of an agent
    /// before us goes when it is there.
    pub fn attach_filter(&mut self, name: &str, ifindex: u32) -> Result<(), Error> {
        let stays = self.pins.is_some();
        let link = filter(self.out()?, name).map_err(|error| Error::System {
            call: "attach a filter to",
            object: format!("{name} (egress)"),
            source: io_error(error),
            hint: "needs Linux 6.6 or newer, or the kernel module sch_ingress",
        })?;
        // The one before may have had the same place: its end would be ours.
        if let Some(Out::Filter(before)) = self.out.get_mut(&ifindex) {
            before.stays = true;
        }
        self.out.insert(ifindex, Out::Filter(Filter { link: Some(link), stays }));
        Ok(())
    }

    /// Takes the program off the way out of an interface.
    pub(super) fn detach_out(&mut self, ifindex: u32) {
        if let Some(Out::Filter(mut filter)) = self.out.remove(&ifindex) {
            filter.stays = false;
        }
        if let Some(pins) = &self.pins {
            pins.remove_link(&pin(ifindex));
        }
    }

    /// Removes filters of agents before us from these interfaces, by index, but for the one that ours took the place
    /// of: such an agent may have been killed, and the interface may be none of ours, or have a link now.
    pub fn remove_old_filters<'a>(&self, interfaces: impl IntoIterator<Item = (u32, &'a str)>) {
        let is_ours = |ifindex: &u32| matches!(self.out.get(ifindex), Some(Out::Filter(_)));
        let others = interfaces.into_iter().filter(|(ifindex, _)| !is_ours(ifindex));
        remove_filters(others.map(|(_, name)| name));
    }

    /// Runs the program over one packet on its way out. For tests.
    pub fn test_out(&mut self, packet: &[u8]) -> Result<Run, Error> {
        let mut out = vec![0; packet.len() + 256];
        let mut options = TestRunOptions::new();
        options.data_in = Some(packet);
        options.data_out = Some(&mut out);
        let result = self.out()?.test_run(options).map_err(|error| Error::System {
            call: "test run of",
            object: PROGRAM.to_owned(),
            source: io_error(error),
            hint: "",
        })?;
        out.truncate(result.data_size_out as usize);
        Ok(Run { action: result.return_value, packet: out, nanoseconds: result.duration.as_nanos() as u64 })
    }

    fn out(&mut self) -> Result<&mut SchedClassifier, Error> {
        let program = self.ebpf.program_mut(PROGRAM).ok_or(Error::Object(PROGRAM))?;
        program.try_into().map_err(|_| Error::Object(PROGRAM))
    }
}

/// Removes the filters that agents left on the way out of these interfaces: they have no name on the
/// BPF file system, but bear the program's. The `clsact` qdisc stays, as others may use it.
pub fn remove_filters<'a>(interfaces: impl IntoIterator<Item = &'a str>) {
    for name in interfaces {
        match tc::qdisc_detach_program(name, TcAttachType::Egress, PROGRAM) {
            Ok(()) => tracing::info!(interface = name, "filter removed"),
            // Nearly every interface has none.
            Err(TcError::IoError(error)) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => tracing::warn!(interface = name, %error, "filters not looked through"),
        }
    }
}

/// Name of an attachment that is pinned.
pub(super) fn pin(ifindex: u32) -> String {
    format!("out-{ifindex}")
}

fn tcx(program: &mut SchedClassifier, name: &str) -> Result<FdLink, ProgramError> {
    let first = TcAttachOptions::TcxOrder(LinkOrder::first());
    let id = program.attach_with_options(name, TcAttachType::Egress, first)?;
    let link = program.take_link(id)?;
    link.try_into().map_err(|_| ProgramError::NotAttached)
}

fn filter(program: &mut SchedClassifier, name: &str) -> Result<SchedClassifierLink, ProgramError> {
    // There may be one already, ours or another's; it stays when we go.
    let _ = tc::qdisc_add_clsact(name);
    let [best, second, last] = PLACES;
    let front = [best, second].into_iter().find_map(|place| Some((place, add(program, name, place).ok()?)));
    let (place, link) = match front {
        Some(front) => front,
        None => (last, replace(program, name, last).or_else(|_| add(program, name, last))?),
    };
    for (priority, handle) in PLACES.into_iter().filter(|other| *other != place) {
        // One that is dropped is removed, if it is there.
        let _ = SchedClassifierLink::attached(name, TcAttachType::Egress, priority, handle, None);
    }
    Ok(link)
}

/// Adds the filter at a place where there is none.
fn add(
    program: &mut SchedClassifier,
    name: &str,
    (priority, handle): (u16, TcHandle),
) -> Result<SchedClassifierLink, ProgramError> {
    let options = TcAttachOptions::Netlink(NlOptions { priority, handle, classid: None });
    let id = program.attach_with_options(name, TcAttachType::Egress, options)?;
    program.take_link(id)
}

/// Puts the program into the filter of a place.
fn replace(
    program: &mut SchedClassifier,
    name: &str,
    (priority, handle): (u16, TcHandle),
) -> Result<SchedClassifierLink, ProgramError> {
    let there = SchedClassifierLink::attached(name, TcAttachType::Egress, priority, handle, None);
    let id = program.attach_to_link(there.map_err(TcError::IoError)?)?;
    program.take_link(id)
}

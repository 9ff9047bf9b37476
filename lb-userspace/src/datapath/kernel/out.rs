//! The program on the way out: translates the answers of backends on this host.

use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions};
use aya::programs::{LinkOrder, ProgramError, SchedClassifier, TcAttachType, TestRun, TestRunOptions};

use super::attach::not_pinned;
use super::{Error, Kernel, Run, io_error, load_error};

pub(super) const PROGRAM: &str = "penstock_out";

/// A program on the way out of an interface until this is dropped.
#[must_use]
pub(super) enum Out {
    /// A link, beside those of others.
    Tcx(#[expect(dead_code, reason = "held for its drop")] FdLink),
    /// A filter of the `clsact` qdisc.
    Filter(#[expect(dead_code, reason = "held for its drop")] SchedClassifierLink),
}

impl Kernel {
    pub(super) fn load_out(&mut self) -> Result<(), Error> {
        self.out()?.load().map_err(|source| load_error(PROGRAM, source))
    }

    /// Puts the program on the way out of an interface: as a link (Linux 6.6), else as a filter.
    pub fn attach_out(&mut self, name: &str, ifindex: u32) -> Result<(), Error> {
        if let Some(link) = self.swap_out(ifindex) {
            self.out.insert(ifindex, Out::Tcx(link));
            return Ok(());
        }
        self.detach_out(ifindex);
        let path = self.pins.as_ref().map(|pins| pins.link(&pin(ifindex)));
        let program = self.out()?;
        let out = match (tcx(program, name), path) {
            (Ok(link), None) => Out::Tcx(link),
            (Ok(link), Some(path)) => {
                Out::Tcx(link.pin(&path).map_err(|error| not_pinned(&path, error))?.into())
            }
            (Err(error), _) => {
                tracing::warn!(interface = name, %error, "no tcx here, a clsact filter is used");
                Out::Filter(filter(program, name).map_err(|error| Error::System {
                    call: "attach a filter to",
                    object: format!("{name} (egress)"),
                    source: io_error(error),
                    hint: "needs Linux 6.6 or newer, or the kernel module sch_ingress",
                })?)
            }
        };
        self.out.insert(ifindex, out);
        Ok(())
    }

    /// The attachment of an agent before us, with our program.
    fn swap_out(&mut self, ifindex: u32) -> Option<FdLink> {
        let path = self.pins.as_ref()?.link(&pin(ifindex));
        let link = SchedClassifierLink::try_from(FdLink::from(PinnedLink::from_pin(&path).ok()?)).ok()?;
        let program = self.out().ok()?;
        let id = program.attach_to_link(link).ok()?;
        program.take_link(id).ok()?.try_into().ok()
    }

    /// Takes the program off the way out of an interface.
    pub(super) fn detach_out(&mut self, ifindex: u32) {
        self.out.remove(&ifindex);
        if let Some(pins) = &self.pins {
            pins.remove_link(&pin(ifindex));
        }
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

/// Name of an attachment that is pinned.
pub(super) fn pin(ifindex: u32) -> String {
    format!("out-{ifindex}")
}

fn tcx(program: &mut SchedClassifier, name: &str) -> Result<FdLink, ProgramError> {
    let last = TcAttachOptions::TcxOrder(LinkOrder::default());
    let id = program.attach_with_options(name, TcAttachType::Egress, last)?;
    let link = program.take_link(id)?;
    link.try_into().map_err(|_| ProgramError::NotAttached)
}

fn filter(program: &mut SchedClassifier, name: &str) -> Result<SchedClassifierLink, ProgramError> {
    // There may be one already, ours or another's; it stays when we go.
    let _ = tc::qdisc_add_clsact(name);
    let options = TcAttachOptions::Netlink(NlOptions::default());
    let id = program.attach_with_options(name, TcAttachType::Egress, options)?;
    program.take_link(id)
}

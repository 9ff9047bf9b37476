//! Attachments: the program on interfaces, the socket steering on our network namespace. Where
//! they are pinned, they pass from agent to agent, and only their program is swapped.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;

use aya::pin::PinError;
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::xdp::XdpLink;
use aya::programs::{ProgramError, XdpMode};

use super::{Attached, Error, Kernel, PROGRAM, io_error, out};
use crate::datapath::mmap;
use crate::datapath::pins::Pins;

/// Our network namespace.
pub(super) const NAMESPACE: &str = "/proc/self/ns/net";
pub(super) const LOOKUP: &str = "lookup";

impl Attached {
    pub(super) fn pin(self, ifindex: u32) -> String {
        match self {
            Self::Native => format!("native-{ifindex}"),
            Self::Generic => format!("generic-{ifindex}"),
        }
    }
}

impl Kernel {
    /// How a program of an agent before us sits on an interface.
    pub fn attached_before(&self, ifindex: u32) -> Option<Attached> {
        let pins = self.pins.as_ref()?;
        [Attached::Native, Attached::Generic].into_iter().find(|how| pins.link(&how.pin(ifindex)).exists())
    }

    /// Interfaces that a program of an agent before us sits on.
    pub fn interfaces_before(&self) -> Vec<u32> {
        let names = self.pins.iter().flat_map(Pins::links);
        let index = |name: String| {
            let (how, index) = name.split_once('-')?;
            ["native", "generic"].contains(&how).then(|| index.parse().ok())?
        };
        names.filter_map(index).collect()
    }

    /// Attaches the XDP program to an interface. If a program of an agent before us is there, the
    /// new one takes its place between two packets.
    pub fn attach(&mut self, name: &str, ifindex: u32, mode: Attached) -> Result<(), Error> {
        if let Some(link) = self.swap(ifindex, mode) {
            self.xdp.insert(ifindex, (mode, link));
            return Ok(());
        }
        // In another mode, or on an interface that is gone.
        self.detach_in(ifindex);
        let flags = match mode {
            Attached::Native => XdpMode::Driver,
            Attached::Generic => XdpMode::Skb,
        };
        let program = self.xdp(PROGRAM)?;
        let link = program.attach_to_if_index(ifindex, flags).and_then(|id| program.take_link(id));
        let link = link.map_err(|error| {
            let source = io_error(error);
            let hint = match source.raw_os_error() {
                Some(libc::EBUSY | libc::EEXIST) => {
                    "another XDP program is attached: see ip link show; penstock detach removes ours"
                }
                Some(libc::EPERM) => "needs CAP_NET_ADMIN and CAP_BPF",
                Some(libc::ERANGE) => "its MTU is too large for the driver's XDP",
                Some(libc::EOPNOTSUPP) => "its driver has no XDP: use --datapath generic",
                _ => "",
            };
            Error::System { call: "attach xdp to", object: name.to_owned(), source, hint }
        })?;
        let link = match self.pinning() {
            Some(pins) => {
                let path = pins.link(&mode.pin(ifindex));
                // aya falls back to netlink without a word, and such an attachment has no name.
                let link = FdLink::try_from(link).map_err(|error| failed(&path, error))?;
                let link = link.pin(&path).map_err(|error| not_pinned(&path, error))?;
                XdpLink::try_from(FdLink::from(link)).map_err(|error| failed(&path, error))?
            }
            None => link,
        };
        self.xdp.insert(ifindex, (mode, link));
        Ok(())
    }

    fn swap(&mut self, ifindex: u32, mode: Attached) -> Option<XdpLink> {
        let path = self.pins.as_ref()?.link(&mode.pin(ifindex));
        let link = PinnedLink::from_pin(&path).ok()?;
        let program = self.xdp(PROGRAM).ok()?;
        let swapped = XdpLink::try_from(FdLink::from(link)).map_err(io::Error::other).and_then(|link| {
            let id = program.attach_to_link(link).map_err(io_error)?;
            program.take_link(id).map_err(io_error)
        });
        match swapped {
            Ok(link) => Some(link),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "attachment does not serve again, attaching anew");
                None
            }
        }
    }

    /// Detaches the programs from an interface; one that is gone has let go of them already.
    pub fn detach_from(&mut self, ifindex: u32) {
        self.detach_in(ifindex);
        self.detach_out(ifindex);
    }

    pub(super) fn detach_in(&mut self, ifindex: u32) {
        self.xdp.remove(&ifindex);
        if let Some(pins) = &self.pins {
            [Attached::Native, Attached::Generic].iter().for_each(|how| pins.remove_link(&how.pin(ifindex)));
        }
    }

    /// Attaches the socket steering to our network namespace. Both programs run until the old one
    /// goes, and say the same.
    pub fn attach_lookup(&mut self) -> Result<(), Error> {
        let file = std::fs::File::open(NAMESPACE).map_err(|source| Error::System {
            call: "open",
            object: NAMESPACE.to_owned(),
            source,
            hint: "",
        })?;
        let failed = |error: ProgramError| Error::System {
            call: "attach sk_lookup to",
            object: NAMESPACE.to_owned(),
            source: io_error(error),
            hint: "needs CAP_NET_ADMIN and CAP_BPF, Linux 5.9 or newer",
        };
        let program = self.sk_lookup()?;
        let id = program.attach(file).map_err(failed)?;
        let mut link: FdLink = program.take_link(id).map_err(failed)?.into();
        if let Some(pins) = self.pinning() {
            link = named(pins, link, LOOKUP)?;
        }
        self.lookup = Some(link);
        Ok(())
    }

    /// To be called when everything is attached: whatever an agent before us pinned and we did not
    /// take over goes.
    pub fn end_succession(&mut self) {
        let (Some(pins), Some(set)) = (&self.pins, &self.set) else { return };
        let ours = |name: &String| {
            name == LOOKUP
                || self.xdp.keys().any(|ifindex| {
                    [Attached::Native, Attached::Generic].iter().any(|how| *name == how.pin(*ifindex))
                })
                || self.out.keys().any(|ifindex| *name == out::pin(*ifindex))
        };
        pins.links().iter().filter(|name| !ours(name)).for_each(|name| pins.remove_link(name));
        // A packet may still be on its way through a program that was swapped.
        mmap::wait_for_readers();
        pins.keep_only(set);
    }

    /// Whether the kernel goes on without us.
    pub fn is_pinned(&self) -> bool {
        self.set.is_some()
    }

    /// Forgets the names, which another process goes on with, and drops our ends of what has one. What
    /// has none (a filter, where there is no tcx) stays until the other's stands there.
    pub fn let_go(&mut self) {
        self.pins = None;
        self.xdp.clear();
        self.out.retain(|_, out| matches!(out, out::Out::Filter(_)));
        self.lookup = None;
    }

    /// Detaches everything and forgets what is pinned; maps stay until we go.
    pub fn detach(&mut self) {
        if let Some(pins) = &self.pins {
            pins.remove();
        }
        self.set = None;
        self.xdp.clear();
        let out: Vec<u32> = self.out.keys().copied().collect();
        out.into_iter().for_each(|ifindex| self.detach_out(ifindex));
        self.lookup = None;
    }
}

/// Numbers of the XDP programs of ours that the kernel holds, whoever loaded them; none where we may not ask.
pub fn loaded() -> BTreeSet<u32> {
    let programs = aya::programs::loaded_programs().filter_map(Result::ok);
    programs.filter(|program| program.name_as_str() == Some(PROGRAM)).map(|program| program.id()).collect()
}

/// Names of these programs, for people.
pub fn names(numbers: &[u32]) -> Vec<String> {
    let programs = aya::programs::loaded_programs().filter_map(Result::ok);
    let known: BTreeMap<u32, String> = programs
        .filter(|program| numbers.contains(&program.id()))
        .filter_map(|program| Some((program.id(), program.name_as_str()?.to_owned())))
        .collect();
    let name = |number: &u32| match (number, known.get(number)) {
        (0, _) => "a filter".to_owned(),
        (_, Some(name)) if !name.is_empty() => name.clone(),
        _ => format!("program {number}"),
    };
    numbers.iter().map(name).collect()
}

/// Gives an attachment its name. One that has it goes then, not before.
pub(super) fn named(pins: &Pins, link: FdLink, name: &str) -> Result<FdLink, Error> {
    let next = format!("{name}-next");
    pins.remove_link(&next);
    let path = pins.link(&next);
    let link = link.pin(&path).map_err(|error| not_pinned(&path, error))?;
    pins.rename_link(&next, name)?;
    Ok(link.into())
}

pub(super) fn not_pinned(path: &Path, error: PinError) -> Error {
    match error {
        PinError::SyscallError(error) => failed(path, error.io_error),
        other => failed(path, other),
    }
}

pub(super) fn failed(path: &Path, error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    let source = io::Error::other(error);
    Error::System { call: "pin", object: path.display().to_string(), source, hint: "" }
}

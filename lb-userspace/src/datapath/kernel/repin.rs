//! Our names on the BPF file system may vanish while we run: it is unmounted, or somebody removes them. Nothing breaks
//! until we end; from then on nothing is left.

use std::path::{Path, PathBuf};

use aya::programs::links::FdLink;
use aya::programs::xdp::XdpLink;

use super::attach::{self, not_pinned};
use super::out::{self, Out};
use super::{Error, Kernel};
use crate::datapath::pins::Pins;

impl Kernel {
    /// Where attachments are pinned at the moment.
    pub(super) fn pinning(&self) -> Option<&Pins> {
        self.pins.as_ref().filter(|_| self.set.is_some())
    }

    /// The first name of ours that is there no more. From then on the kernel part counts as not pinned, until
    /// [`Kernel::pin_again`] succeeds.
    pub fn miss_pin(&mut self) -> Option<PathBuf> {
        let (pins, set) = (self.pins.as_ref()?, self.set.as_ref()?);
        let xdp = self.xdp.iter().map(|(ifindex, (mode, _))| mode.pin(*ifindex));
        let links = self.out.iter().filter(|(_, out)| matches!(out, Out::Tcx(_)));
        let out = links.map(|(ifindex, _)| out::pin(*ifindex));
        let lookup = self.lookup.iter().map(|_| attach::LOOKUP.to_owned());
        let names = xdp.chain(out).chain(lookup).map(|name| pins.link(&name));
        let missing = names.chain(self.pinned_maps(set)).find(|path| !path.exists())?;
        self.set = None;
        Some(missing)
    }

    /// Whether names were missed and are not there again.
    pub fn has_lost_pins(&self) -> bool {
        self.pins.is_some() && self.set.is_none()
    }

    /// Pins everything anew.
    pub fn pin_again(&mut self) -> Result<(), Error> {
        let Some(pins) = self.pins.take() else { return Ok(()) };
        let pinned = self.pin_all(&pins);
        self.pins = Some(pins);
        self.set = Some(pinned?);
        Ok(())
    }

    /// Maps first, as ever. That shows that names can be made: an attachment whose name fails all the same ends with
    /// that, as aya lets go of it, and is found and made again.
    fn pin_all(&mut self, pins: &Pins) -> Result<PathBuf, Error> {
        pins.make()?;
        let set = self.pin_set(pins)?;
        for ifindex in self.interfaces() {
            self.pin_interface(pins, ifindex)?;
        }
        if let Some(link) = self.lookup.take() {
            self.lookup = Some(pinned(link, &pins.link(attach::LOOKUP))?);
        }
        pins.keep_only(&set);
        Ok(set)
    }

    fn pin_interface(&mut self, pins: &Pins, ifindex: u32) -> Result<(), Error> {
        if let Some((mode, link)) = self.xdp.remove(&ifindex) {
            let path = pins.link(&mode.pin(ifindex));
            let link = FdLink::try_from(link).map_err(|error| attach::failed(&path, error))?;
            let link =
                XdpLink::try_from(pinned(link, &path)?).map_err(|error| attach::failed(&path, error))?;
            self.xdp.insert(ifindex, (mode, link));
        }
        let out = match self.out.remove(&ifindex) {
            Some(Out::Tcx(link)) => Out::Tcx(pinned(link, &pins.link(&out::pin(ifindex)))?),
            Some(filter) => filter,
            None => return Ok(()),
        };
        self.out.insert(ifindex, out);
        Ok(())
    }
}

/// The attachment with this name; one that has it still keeps it.
fn pinned(link: FdLink, path: &Path) -> Result<FdLink, Error> {
    if path.exists() {
        return Ok(link);
    }
    Ok(link.pin(path).map_err(|error| not_pinned(path, error))?.into())
}

//! The devices of a living sandbox: those that its namespace has now and those that come later are put under the verdict, for
//! as long as a process serves it.

use super::{
    Directories,
    error::Error,
    plan::Plan,
    record::{DeviceLine, Record},
    seat::Set,
    sharing::Place,
    target::Target,
};
use crate::datapath::{
    device::{self, Device, Found},
    netns::Netns,
    resolver::Resolver,
    shape,
    tables::Tables,
    tc::{self, Behind, Held, Placed},
};
use egress_common::{
    addr::Addr,
    sandbox::{Identity, OnDevice},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
};

/// The programs, and the devices that they are on.
pub(super) struct Devices {
    /// Who has the programs.
    set: Arc<Set>,
    tables: Arc<Tables>,
    identity: Identity,
    /// Where the sandbox's maps and links are pinned.
    pins: PathBuf,
    links: PathBuf,
    /// Where the devices are: egressd's own namespace.
    pub(super) host: Netns,
    host_netns: u64,
    name: String,
    directories: Directories,
    /// False where a test leaves tcx out.
    tcx: bool,
    /// One of the addresses that a device may send from, if any were there to be taken.
    usual_source: Option<Addr>,
    placed: BTreeMap<u32, (String, Placed)>,
    /// Those with a queue for what they receive.
    shaped: BTreeSet<u32>,
    /// The device of a guest.
    guest: Option<u32>,
    /// Where that one's questions go.
    resolver: Option<Resolver>,
    stays: bool,
}

impl Devices {
    /// Nothing is on a device yet. The addresses that devices may send from are those of the sandbox now, or that the guest was
    /// given, for good: later ones may be of its own making.
    pub(super) fn new(
        set: &Arc<Set>,
        identity: Identity,
        pins: PathBuf,
        plan: &Plan,
        tcx: bool,
        directories: &Directories,
    ) -> Result<Self, Error> {
        let host = Netns::current()?;
        let sources = match &plan.guest {
            Some(guest) => guest.clone(),
            None if plan.facts.own_netns || !plan.found.devices.is_empty() => device::source_addresses(&plan.netns)?,
            None => BTreeSet::new(),
        };
        sources.iter().try_for_each(|source| set.tables.set_source(identity.slot, (*source).into()))?;
        let guest = plan.guest.as_ref().and_then(|_| plan.found.devices.first()).map(|device| device.ifindex);
        if guest.is_some() {
            // Whoever takes the sandbox over gives it another resolver, without loading anything.
            set.on_device(&pins.join("maps"), directories, Behind::Guest, |programs| {
                Ok(programs.pin_program(tc::ANSWERS, &pins.join(tc::ANSWERS))?)
            })?;
        }
        Ok(Self {
            set: Arc::clone(set),
            tables: Arc::clone(&set.tables),
            identity,
            links: pins.join("links"),
            pins,
            host,
            host_netns: plan.host_netns,
            name: plan.name.clone(),
            directories: directories.clone(),
            tcx,
            usual_source: set.tables.usual_source(identity.slot)?,
            placed: BTreeMap::new(),
            shaped: BTreeSet::new(),
            guest,
            resolver: None,
            stays: false,
        })
    }

    /// Those of a sandbox that another process attached; they stay when this is dropped. `host` is where they are.
    pub(super) fn resume(
        set: &Arc<Set>,
        identity: Identity,
        pins: PathBuf,
        host: Netns,
        record: &Record,
        directories: &Directories,
    ) -> Result<Self, Error> {
        let links = pins.join("links");
        let held = |line: &DeviceLine| -> Result<_, Error> {
            Ok((line.ifindex, (line.name.clone(), tc::held(line.ifindex, line.held, line.made_clsact, &links)?)))
        };
        Ok(Self {
            set: Arc::clone(set),
            tables: Arc::clone(&set.tables),
            identity,
            usual_source: set.tables.usual_source(identity.slot)?,
            placed: record.devices.iter().map(held).collect::<Result<_, _>>()?,
            shaped: record.devices.iter().filter(|line| line.shaped).map(|line| line.ifindex).collect(),
            pins,
            links,
            host,
            host_netns: record.host_netns,
            name: record.name.clone(),
            directories: directories.clone(),
            tcx: true,
            guest: match record.target {
                Target::Guest { ifindex, .. } => Some(ifindex),
                Target::Cgroup { .. } => None,
            },
            resolver: None,
            stays: true,
        })
    }

    /// Has the guest's questions go there, and the answers come back, from now on.
    pub(super) fn lead_to(&mut self, resolver: Resolver) -> Result<(), Error> {
        let Some(guest) = self.guest else { return Ok(()) };
        let back = OnDevice { identity: self.identity, resolver: guest, ..OnDevice::default() };
        self.tables.set_device(resolver.ifindex, back)?;
        let there = resolver.ifindex;
        self.resolver = Some(resolver);
        if let Some(resolver) = &mut self.resolver {
            self.host.enter(|| resolver.hand_back(&self.pins.join(tc::ANSWERS)))??;
        }
        if let Some(on) = self.tables.device(guest)? {
            // That of an owner that is gone, and of its device.
            self.tables.remove_device(on.resolver)?;
            self.tables.set_device(guest, OnDevice { resolver: there, ..on })?;
        }
        Ok(())
    }

    /// From here on, the guest's questions are denied.
    fn lead_nowhere(&mut self) -> Result<(), Error> {
        let (Some(guest), Some(resolver)) = (self.guest, self.resolver.take()) else { return Ok(()) };
        if let Some(on) = self.tables.device(guest)?
            && on.identity == self.identity
            && on.resolver == resolver.ifindex
        {
            self.tables.set_device(guest, OnDevice { resolver: 0, ..on })?;
        }
        if self.tables.device(resolver.ifindex)?.is_some_and(|on| on.identity == self.identity) {
            self.tables.remove_device(resolver.ifindex)?;
        }
        Ok(())
    }

    /// The first hook that is not where it was put, if any.
    pub(super) fn missing(&self) -> Result<Option<String>, Error> {
        for ifindex in self.placed.keys() {
            if !self.is_in_place(*ifindex)? {
                return Ok(Some(tc::name(tc::DEVICE_HOOKS[0].0, *ifindex)));
            }
        }
        Ok(None)
    }

    /// From here on, dropping it takes nothing off.
    pub(super) fn stay(&mut self) {
        self.stays = true;
    }

    /// Names of the programs in place.
    pub(super) fn hooks(&self) -> impl Iterator<Item = String> {
        self.placed.keys().flat_map(|ifindex| tc::DEVICE_HOOKS.map(|(hook, _)| tc::name(hook, *ifindex)))
    }

    /// True where nothing is to be done for what was found.
    pub(super) fn is_settled(&self, found: &Found) -> bool {
        self.placed.keys().all(|ifindex| self.is_in_place(*ifindex).is_ok_and(|in_place| in_place))
            && found.devices.iter().all(|device| self.placed.contains_key(&device.ifindex))
    }

    /// What the record says of them.
    pub(super) fn lines(&self) -> Vec<DeviceLine> {
        let line = |(ifindex, (name, placed)): (&u32, &(String, Placed))| DeviceLine {
            name: name.clone(),
            ifindex: *ifindex,
            held: placed.held,
            made_clsact: placed.made_clsact,
            shaped: self.shaped.contains(ifindex),
        };
        self.placed.iter().map(line).collect()
    }

    /// Puts what was found under the verdict and forgets what is gone, while the caller holds the lock of the state directory. What
    /// could not be put there comes back, with the reason.
    ///
    /// A device stays while the host has it, wherever its other end went: root inside may move that to a namespace below its
    /// own.
    pub(super) fn settle(&mut self, found: &Found) -> Vec<(Device, Error)> {
        let mut failed = Vec::new();
        for ifindex in self.placed.keys().copied().collect::<Vec<_>>() {
            match self.is_in_place(ifindex) {
                Ok(true) => {}
                Ok(false) => self.forget(ifindex),
                Err(error) => {
                    tracing::error!(%error, ifindex, "a device cannot be looked at; it is taken to be as it was");
                }
            }
        }
        for device in &found.devices {
            if self.placed.contains_key(&device.ifindex) {
                continue;
            }
            if let Err(error) = self.place(device) {
                failed.push((device.clone(), error));
            }
        }
        failed
    }

    fn place(&mut self, device: &Device) -> Result<(), Error> {
        // Else whatever it sent would be of no known source.
        let usual_source = self.usual_source.ok_or(Error::NoSources)?;
        if self.tables.device(device.ifindex)?.is_some_and(|on| on.identity != self.identity) {
            return Err(Error::DeviceShown { device: device.name.clone() });
        }
        let place = Place {
            directories: &self.directories,
            host_netns: self.host_netns,
            ifindex: device.ifindex,
            name: &self.name,
        };
        let (ifindex, nonce, links) = (device.ifindex, self.identity.nonce, &self.links);
        let behind = if self.guest.is_some() { Behind::Guest } else { Behind::Sandbox };
        let resolver = self.resolver.as_ref().map_or(0, |resolver| resolver.ifindex);
        let placed = self.set.on_device(&self.pins.join("maps"), &self.directories, behind, |programs| {
            let on = OnDevice { resolver, usual_source, ..place.join(self.identity, self.tcx, behind)? };
            self.tables.set_device(ifindex, on)?;
            Ok(tc::attach((programs, behind), ifindex, nonce, links, self.tcx)?)
        })?;
        self.placed.insert(ifindex, (device.name.clone(), placed));
        self.shape_one(device.ifindex);
        Ok(())
    }

    /// Gives each device a queue at the rate that the sandbox may receive, or takes it away; what the record says of them then.
    pub(super) fn shape(&mut self) -> Vec<DeviceLine> {
        self.placed.keys().copied().collect::<Vec<_>>().into_iter().for_each(|ifindex| self.shape_one(ifindex));
        self.lines()
    }

    /// Without the queue the buckets of the kernel half limit alone.
    fn shape_one(&mut self, ifindex: u32) {
        let tables = &self.tables;
        let limit = tables.limits(self.identity.slot).map_or(0, |limits| limits.ingress.bits_per_s);
        // On a device that others share, the queue would hold up theirs.
        let shared = tables.device(ifindex).ok().flatten().is_none_or(|on| on.mark != 0);
        let done = self.host.enter(|| match limit {
            0 => shape::unshape(ifindex).map(|()| false),
            _ if shared => shape::unshape(ifindex).map(|()| false),
            bits => shape::shape(ifindex, bits),
        });
        let shaped = done.map_err(Error::from).and_then(|done| Ok(done?)).unwrap_or_else(|error| {
            tracing::warn!(%error, ifindex, "the device has no queue; what comes too fast is dropped");
            false
        });
        if shaped {
            self.shaped.insert(ifindex)
        } else {
            self.shaped.remove(&ifindex)
        };
    }

    fn is_in_place(&self, ifindex: u32) -> Result<bool, Error> {
        let Some((_, placed)) = self.placed.get(&ifindex) else { return Ok(false) };
        Ok(match placed.held {
            Held::Tcx => tc::links_are_attached(ifindex, &self.links)?,
            Held::Clsact => {
                self.host.enter(|| tc::own_filters(ifindex, self.identity.nonce))??.iter().all(Option::is_some)
            }
        })
    }

    /// Takes off what is left on a device that was removed, or that somebody took our programs from.
    fn forget(&mut self, ifindex: u32) {
        let Some((name, placed)) = self.placed.remove(&ifindex) else { return };
        if self.shaped.remove(&ifindex) && !self.host.enter(|| shape::unshape(ifindex)).is_ok_and(|done| done.is_ok()) {
            tracing::warn!(device = name, "the queue of a device that went away stays");
        }
        tc::unpin(ifindex, &self.links);
        if placed.held == Held::Clsact {
            let removed = self.host.enter(|| tc::remove_filters(ifindex, self.identity.nonce, placed.made_clsact));
            if let Err(error) = removed.map_err(Error::from).and_then(|done| Ok(done?)) {
                tracing::warn!(%error, device = name, "a filter of a device that went away stays");
            }
        }
        if let Err(error) = self.tables.remove_device(ifindex) {
            tracing::warn!(%error, device = name, "a device that went away stays in the map");
        }
    }
}

/// An attach that came to nothing takes back what no pin's removal takes off.
impl Drop for Devices {
    fn drop(&mut self) {
        if let Err(error) = self.lead_nowhere() {
            tracing::warn!(%error, "the guest's questions lead to a resolver that is gone; nobody answers them");
        }
        if !self.stays {
            self.placed.keys().copied().collect::<Vec<_>>().into_iter().for_each(|ifindex| self.forget(ifindex));
        }
    }
}

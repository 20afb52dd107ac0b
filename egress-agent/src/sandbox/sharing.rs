//! Several sandboxes in one network namespace, each with a program on its device. A frame says nothing of who sent it, so the
//! verdict is the union of theirs: whoever allows a frame marks it, and the one that is asked last drops what is not marked.
//!
//! Everything here is done by whoever holds the lock of the state directory. At each step some program on the device drops what
//! nobody allowed.

use super::{Directories, error::Error, record::Record};
use crate::{
    datapath::{
        tables::Tables,
        tc::{self, Behind, Held},
    },
    level::{Level, Reached},
};
use egress_common::sandbox::{Identity, OnDevice};

/// Why a guest's device is not shared.
pub(super) const GUESTS: &str = "a guest's is nobody else's";

/// The device of a network namespace.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) directories: &'a Directories,
    /// Cookie of the network namespace in which it is.
    pub(super) host_netns: u64,
    pub(super) ifindex: u32,
    /// Of the sandbox that asks.
    pub(super) name: &'a str,
}

impl Place<'_> {
    /// The records of the other sandboxes on the device.
    fn others(self) -> Result<Vec<Record>, Error> {
        let mut all = Record::all(self.directories)?;
        all.retain(|record| {
            record.name != self.name
                && record.host_netns == self.host_netns
                && record.devices.iter().any(|line| line.ifindex == self.ifindex)
        });
        Ok(all)
    }

    /// What the maps of the others say, the one that is asked last first. One whose program is not there counts for nothing.
    fn entries(self) -> Result<Vec<(Tables, OnDevice)>, Error> {
        let mut entries = Vec::new();
        for record in self.others()? {
            let pins = self.directories.pin.join(&record.name);
            let maps = pins.join("maps");
            if !maps.exists() {
                continue;
            }
            let tables = Tables::open(&maps, &self.directories.listeners())?;
            if let Some(on) = tables.device(self.ifindex)?
                && tc::links_are_attached(self.ifindex, &pins.join("links"))?
            {
                entries.push((tables, on));
            }
        }
        entries.sort_by_key(|(_, on)| on.place);
        Ok(entries)
    }

    /// Makes room for one more, who is asked before all others. The entry is for its own map, before its program is attached.
    pub(super) fn join(self, identity: Identity, tcx: bool, behind: Behind) -> Result<OnDevice, Error> {
        for record in self.others()? {
            let line = record.devices.iter().find(|line| line.ifindex == self.ifindex);
            let why = match line {
                _ if behind == Behind::Guest || record.target.is_guest() => GUESTS,
                Some(line) if line.held == Held::Clsact || !tcx => "sharing it needs tcx (Linux 6.6)",
                _ if record.required >= Some(Level::L2) => "it was required to be that one's alone (L2)",
                _ => continue,
            };
            let device = line.map(|line| line.name.clone()).unwrap_or_default();
            return Err(Error::DeviceTaken { device, name: record.name, which: record.target.which(), why });
        }
        let mut entries = self.entries()?;
        if entries.is_empty() {
            return Ok(OnDevice { identity, ..OnDevice::default() });
        }
        let known = entries.iter().map(|(_, on)| on.mark).find(|mark| *mark != 0);
        let mark = known.unwrap_or_else(|| rand::random::<u64>().max(1));
        let place = 1 + entries.iter().map(|(_, on)| on.place).max().unwrap_or(0);
        self.write(&mut entries, mark)?;
        Ok(OnDevice { identity, mark, place, ..OnDevice::default() })
    }

    /// Says goodbye for one whose program is about to be taken off.
    pub(super) fn leave(self) -> Result<(), Error> {
        let mut entries = self.entries()?;
        let mark = if entries.len() < 2 { 0 } else { entries[0].1.mark };
        self.write(&mut entries, mark)
    }

    /// The first of them drops what no other has marked.
    fn write(self, entries: &mut [(Tables, OnDevice)], mark: u64) -> Result<(), Error> {
        for (at, (tables, on)) in entries.iter_mut().enumerate() {
            let place = if at == 0 { 0 } else { on.place };
            if (on.mark, on.place) != (mark, place) {
                (on.mark, on.place) = (mark, place);
                tables.set_device(self.ifindex, *on)?;
            }
        }
        Ok(())
    }
}

/// What is promised to a sandbox whose devices others have too.
pub(super) fn level(directories: &Directories, record: &Record, mut level: Reached) -> Result<Reached, Error> {
    for line in &record.devices {
        let place = Place { directories, host_netns: record.host_netns, ifindex: line.ifindex, name: &record.name };
        let others: Vec<_> = place.others()?.into_iter().map(|other| other.name).collect();
        if others.is_empty() {
            continue;
        }
        if level.level > Some(Level::L1) {
            let own = Reached { level: Some(Level::L1), text: Level::L1.to_string(), missing: level.missing };
            level = record.judged.iter().fold(own, Reached::minus_those_of);
        }
        let why = format!(
            "for L2: a network namespace of its own: device {} passes what {} may reach too",
            line.name,
            others.join(", ")
        );
        // Whoever judged the level may have been told.
        if !level.missing.contains(&why) {
            level.missing.push(why);
        }
    }
    Ok(level)
}

//! Who shares what is loaded. The sandboxes of one process that have the same directories share program sets: each has a slot in
//! the maps of one, and room there that no other can use up.
//!
//! The first set has room for one sandbox, each later one for four times as many as the one before: a process that makes one
//! sandbox pays for one, and loading gets rarer the more there are. A set stays loaded while any sandbox of these directories lives.

use super::{Directories, error::Error, ring::Ring, room::LEAST};
use crate::datapath::{
    load::{Capacity, Programs},
    records::Records,
    tables::{Tables, rules_of},
    tc::Behind,
};
use std::{
    ops::Range,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

const SANDBOXES_AT_MOST: u32 = 64;
const GROWTH: u32 = 4;

/// A loaded program set, or the maps of one that another process loaded.
pub(super) struct Set {
    programs: Mutex<Held>,
    pub(super) tables: Arc<Tables>,
    pub(super) ring: Ring,
    /// The kernel's number of its event ring, by which it is known whoever loaded it.
    id: u32,
    each: Capacity,
    sandboxes: u32,
    seats: Mutex<Seats>,
}

/// Programs that this process has loaded.
enum Held {
    All(Programs),
    /// Another process loaded the set, and links hold its programs. Of those for devices, ours over the same maps, once one comes.
    Devices(Option<Programs>),
}

#[derive(Default)]
struct Seats {
    /// A slot is never given twice: nothing that was said of the one before can be true of the next.
    taken: u32,
    /// Slot and network namespace of those who live: the programs of a set show one of its sandboxes on a device.
    netns_cookies: Vec<(u32, u64)>,
}

/// One sandbox's place in a set. Cleared when it is dropped before it was kept.
pub(super) struct Seat {
    pub(super) set: Arc<Set>,
    _family: Arc<Family>,
    pub(super) slot: u32,
    kept: bool,
}

/// What a sandbox wants of a set.
pub(super) struct Wanted<'a> {
    pub(super) capacity: Capacity,
    /// Of its own network namespace; none in egressd's, where no device is looked for.
    pub(super) netns_cookie: Option<u64>,
    /// ifindex of each device that it has now.
    pub(super) devices: &'a [u32],
}

/// The sets of one process below the same directories.
struct Family {
    directories: Directories,
    sets: Mutex<Sets>,
}

#[derive(Default)]
struct Sets {
    alive: Vec<Weak<Set>>,
    /// Those that have room; kept though nobody may be in them.
    roomy: Vec<Arc<Set>>,
    loaded: u32,
}

static FAMILIES: Mutex<Vec<Weak<Family>>> = Mutex::new(Vec::new());

impl Seat {
    /// A place in a set that has room, or in a new one. The maps are pinned below `maps`. The caller holds the lock of the state
    /// directory.
    pub(super) fn take(directories: &Directories, wanted: &Wanted<'_>, maps: &Path) -> Result<Self, Error> {
        let family = Family::of(directories);
        let mut sets = lock(&family.sets);
        // Whoever took the last sandbox down from outside took the map of listeners with it.
        let listeners = directories.listeners();
        sets.roomy.retain(|set| set.has_room() && set.tables.lists_listeners_at(&listeners).is_ok_and(|same| same));
        for set in &sets.roomy {
            if let Some(slot) = set.sit(wanted)? {
                let seat = Self { set: Arc::clone(set), _family: Arc::clone(&family), slot, kept: false };
                set.tables.pin(maps)?;
                return Ok(seat);
            }
        }
        let small = wanted.capacity.fits(LEAST);
        let (sandboxes, each) = if small && sets.loaded > 0 {
            (GROWTH.saturating_pow(sets.loaded).min(SANDBOXES_AT_MOST), LEAST)
        } else {
            (1, wanted.capacity)
        };
        let set = Arc::new(Set::load(sandboxes, each, directories, maps)?);
        let slot = set.sit(wanted)?.unwrap_or(1);
        sets.remember(&set);
        if sandboxes > 1 {
            sets.roomy.push(Arc::clone(&set));
        }
        // A large policy's own set says nothing of how many there will be.
        sets.loaded += u32::from(small);
        drop(sets);
        Ok(Self { set, _family: family, slot, kept: false })
    }

    /// The place of a sandbox whose maps are pinned below `maps`.
    pub(super) fn resume(directories: &Directories, slot: u32, maps: &Path) -> Result<Self, Error> {
        let family = Family::of(directories);
        let mut sets = lock(&family.sets);
        let id = Records::id(maps)?;
        let alive = sets.alive.iter().filter_map(Weak::upgrade).find(|set| set.id == id);
        let set = alive.map_or_else(|| Set::open(directories, maps, id).map(Arc::new), Ok)?;
        sets.remember(&set);
        drop(sets);
        Ok(Self { set, _family: family, slot, kept: true })
    }

    /// The sandbox is there; who takes it down clears its slot.
    pub(super) fn keep(&mut self) {
        self.kept = true;
    }

    pub(super) fn tables(&self) -> &Arc<Tables> {
        &self.set.tables
    }

    /// Room in the maps.
    pub(super) fn capacity(&self) -> Capacity {
        self.set.each
    }

    /// The part of the rule array that is the sandbox's.
    pub(super) fn rules(&self) -> Range<u32> {
        rules_of(self.slot, self.set.each.rules)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        lock(&self.set.seats).netns_cookies.retain(|(slot, _)| *slot != self.slot);
        if !self.kept
            && self.set.sandboxes > 1
            && let Err(error) = self.set.tables.clear(self.slot)
        {
            tracing::warn!(%error, slot = self.slot, "something of a sandbox that was not made stays in the maps");
        }
    }
}

impl Set {
    fn load(sandboxes: u32, each: Capacity, directories: &Directories, maps: &Path) -> Result<Self, Error> {
        let mut programs = Programs::load(sandboxes, each, Some(&directories.listeners()), None)?;
        let tables = Arc::new(Tables::take(&mut programs, maps, sandboxes > 1)?);
        let ring = Ring::new(Records::take(&mut programs)?, &tables);
        let (id, seats) = (Records::id(maps)?, Mutex::default());
        Ok(Self { programs: Mutex::new(Held::All(programs)), tables, ring, id, each, sandboxes, seats })
    }

    fn open(directories: &Directories, maps: &Path, id: u32) -> Result<Self, Error> {
        let tables = Arc::new(Tables::open(maps, &directories.listeners())?);
        let (sandboxes, each) = Tables::capacity(maps)?;
        let ring = Ring::new(Records::open(maps)?, &tables);
        let programs = Mutex::new(Held::Devices(None));
        Ok(Self { programs, tables, ring, id, each, sandboxes, seats: Mutex::default() })
    }

    /// With the programs of cgroups, which whoever loaded the set has alone.
    pub(super) fn on_cgroup<T>(&self, act: impl FnOnce(&mut Programs) -> Result<T, Error>) -> Result<T, Error> {
        match &mut *lock(&self.programs) {
            Held::All(programs) => act(programs),
            Held::Devices(_) => Err(Error::Adopted),
        }
    }

    /// With the programs of devices, loaded when first asked for. `maps` are the pins of any sandbox of the set.
    pub(super) fn on_device<T>(
        &self,
        maps: &Path,
        directories: &Directories,
        behind: Behind,
        act: impl FnOnce(&mut Programs) -> Result<T, Error>,
    ) -> Result<T, Error> {
        match &mut *lock(&self.programs) {
            Held::All(programs) | Held::Devices(Some(programs)) => {
                programs.load_device_programs(behind)?;
                act(programs)
            }
            Held::Devices(none) => act(none.insert(Programs::over(maps, &directories.listeners(), behind)?)),
        }
    }

    fn has_room(&self) -> bool {
        lock(&self.seats).taken < self.sandboxes
    }

    /// The next slot; none where it does not fit, or where one that has a slot may be on the same device.
    fn sit(&self, wanted: &Wanted<'_>) -> Result<Option<u32>, Error> {
        let mut seats = lock(&self.seats);
        let mut meets = seats.netns_cookies.iter().any(|(_, cookie)| Some(*cookie) == wanted.netns_cookie);
        for ifindex in wanted.devices {
            meets |= self.tables.device(*ifindex)?.is_some();
        }
        if seats.taken == self.sandboxes || meets || !wanted.capacity.fits(self.each) {
            return Ok(None);
        }
        seats.taken += 1;
        let slot = seats.taken;
        seats.netns_cookies.extend(wanted.netns_cookie.map(|cookie| (slot, cookie)));
        Ok(Some(slot))
    }
}

impl Sets {
    fn remember(&mut self, set: &Arc<Set>) {
        let known = Arc::downgrade(set);
        self.alive.retain(|set| set.strong_count() > 0 && !set.ptr_eq(&known));
        self.alive.push(known);
    }
}

impl Family {
    fn of(directories: &Directories) -> Arc<Self> {
        let mut families = lock(&FAMILIES);
        families.retain(|family| family.strong_count() > 0);
        let known = families.iter().filter_map(Weak::upgrade).find(|family| family.directories == *directories);
        known.unwrap_or_else(|| {
            let family = Arc::new(Self { directories: directories.clone(), sets: Mutex::default() });
            families.push(Arc::downgrade(&family));
            family
        })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

//! Who shares what is loaded. The sandboxes of one process that have the same directories share program sets: each has a slot in
//! the maps of one, and room there that no other can use up.
//!
//! The first set has room for one sandbox, each later one for four times as many as the one before: a process that makes one
//! sandbox pays for one, and loading gets rarer the more there are. A set stays loaded while any sandbox of these directories lives.
//!
//! Where sets are kept loaded (`datapath::kept`), a sandbox that would have one loaded takes one of those, alone, and gives it back.

use super::{Directories, build::kept_by, error::Error, ring::Ring, room::LEAST};
use crate::datapath::{
    bpffs::PinRoot,
    kept::{Kept, PROGRAMS, Waiting},
    load::{Capacity, Programs, Room},
    records::Records,
    tables::{Tables, rules_of},
    tc::Behind,
};
use std::{
    fs,
    ops::Range,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

const SANDBOXES_AT_MOST: u32 = 64;
const GROWTH: u32 = 4;
/// What a set that is kept loaded is made for: one sandbox after the other.
const KEPT: Room = Room { slots: 16, at_once: 1, each: LEAST };

/// A loaded program set, or the maps of one that another process loaded.
pub(super) struct Set {
    programs: Mutex<Held>,
    pub(super) tables: Arc<Tables>,
    pub(super) ring: Ring,
    /// The kernel's number of its event ring, by which it is known whoever loaded it.
    id: u32,
    room: Room,
    seats: Mutex<Seats>,
}

/// Programs that this process has loaded, or opened.
struct Held {
    /// Those of cgroups, and of devices once one comes. None where another process has the set, and links hold its programs.
    whole: Option<Programs>,
    /// Where the others lack those of devices: ours, over the same maps, once one comes.
    of_devices: Option<Programs>,
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
    /// A place in a set that has room, in one that is kept loaded, or in a new one. The maps are pinned below `maps`, which is
    /// empty. `root` is held by whoever has the lock of the state directory.
    pub(super) fn take(
        directories: &Directories,
        root: &PinRoot,
        wanted: &Wanted<'_>,
        maps: &Path,
    ) -> Result<Self, Error> {
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
        let kept = if small { Kept::find(root).unwrap_or_else(none_kept) } else { None };
        let taken = kept.as_ref().and_then(|kept| Set::take(kept, directories, wanted, maps).unwrap_or_else(none_kept));
        let (set, slot) = if let Some(taken) = taken {
            taken
        } else {
            let room = match (small, sets.loaded) {
                (true, 0) if kept.is_some() => KEPT,
                (true, loaded) => Room::shared(GROWTH.saturating_pow(loaded).min(SANDBOXES_AT_MOST), LEAST),
                (false, _) => Room::shared(1, wanted.capacity),
            };
            let set = Set::load(room, directories, maps)?;
            // A large policy's own set says nothing of how many there will be.
            sets.loaded += u32::from(small);
            let slot = set.sit(wanted)?.unwrap_or(1);
            (set, slot)
        };
        let set = Arc::new(set);
        sets.remember(&set);
        if set.room.at_once > 1 {
            sets.roomy.push(Arc::clone(&set));
        }
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

    /// Gives the set, whose maps are pinned below `maps`, to the next sandbox, whoever makes it. Nobody is in it any more. Done
    /// as well where none is to be kept, or this one is not to be.
    pub(super) fn give_back(&self, root: &PinRoot, maps: &Path) -> Result<(), Error> {
        let Set { room, id, .. } = *self.set;
        let slot = self.slot + 1;
        if room.at_once > 1 || slot > room.slots {
            return Ok(());
        }
        let Some(kept) = Kept::find(root)? else { return Ok(()) };
        let build = kept_by();
        if kept.waiting(&build)?.len() >= kept.most as usize {
            return Ok(());
        }
        if self.set.pin_programs(maps)? {
            kept.give(maps, &Waiting { build, ring: id, slot })?;
        }
        Ok(())
    }

    /// Room in the maps.
    pub(super) fn capacity(&self) -> Capacity {
        self.set.room.each
    }

    /// The part of the rule array that is the sandbox's.
    pub(super) fn rules(&self) -> Range<u32> {
        rules_of(self.slot, self.set.room.each.rules)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        lock(&self.set.seats).netns_cookies.retain(|(slot, _)| *slot != self.slot);
        if !self.kept
            && self.set.room.slots > 1
            && let Err(error) = self.set.tables.clear(self.slot)
        {
            tracing::warn!(%error, slot = self.slot, "something of a sandbox that was not made stays in the maps");
        }
    }
}

impl Set {
    fn load(room: Room, directories: &Directories, maps: &Path) -> Result<Self, Error> {
        let mut programs = Programs::load(room, Some(&directories.listeners()), None)?;
        let tables = Arc::new(Tables::take(&mut programs, maps, room.at_once > 1)?);
        let ring = Ring::new(Records::take(&mut programs)?, &tables);
        let programs = Mutex::new(Held { whole: Some(programs), of_devices: None });
        Ok(Self { programs, tables, ring, id: Records::id(maps)?, room, seats: Mutex::default() })
    }

    fn open(directories: &Directories, maps: &Path, id: u32) -> Result<Self, Error> {
        let tables = Arc::new(Tables::open(maps, &directories.listeners())?);
        let ring = Ring::new(Records::open(maps)?, &tables);
        let programs = Mutex::new(Held { whole: None, of_devices: None });
        Ok(Self { programs, tables, ring, id, room: Tables::room(maps)?, seats: Mutex::default() })
    }

    /// The first of the sets that wait that is fit for this, and the slot there; it is moved to `maps`.
    fn take(
        kept: &Kept,
        directories: &Directories,
        wanted: &Wanted<'_>,
        maps: &Path,
    ) -> Result<Option<(Self, u32)>, Error> {
        for waiting in kept.waiting(&kept_by())? {
            kept.take(&waiting, maps)?;
            match Self::again(&waiting, directories, wanted, maps) {
                Ok(Some(taken)) => return Ok(Some(taken)),
                Ok(None) => {}
                Err(error) => drop(none_kept::<Self>(error)),
            }
            let again = fs::remove_dir_all(maps).and_then(|()| fs::create_dir(maps));
            again.map_err(Error::file(maps, "empty"))?;
        }
        Ok(None)
    }

    fn again(
        waiting: &Waiting,
        directories: &Directories,
        wanted: &Wanted<'_>,
        maps: &Path,
    ) -> Result<Option<(Self, u32)>, Error> {
        let set = Self::open(directories, maps, waiting.ring)?;
        lock(&set.programs).whole = Some(Programs::open(&maps.join(PROGRAMS))?);
        lock(&set.seats).taken = waiting.slot.saturating_sub(1);
        let slot = set.sit(wanted)?;
        Ok(slot.map(|slot| (set, slot)))
    }

    /// Loads a set that waits for whoever comes.
    pub(super) fn preload(kept: &Kept, directories: &Directories) -> Result<(), Error> {
        let maps = kept.unfinished()?;
        let set = Self::load(KEPT, directories, &maps)?;
        set.on_device(&maps, directories, Behind::Sandbox, |_| Ok(()))?;
        set.on_cgroup(|programs| programs.refused_foreign().map_or(Ok(()), |error| Err(Error::NotKept(error))))?;
        set.pin_programs(&maps)?;
        Ok(kept.give(&maps, &Waiting { build: kept_by(), ring: set.id, slot: 1 })?)
    }

    /// Pins what is not pinned yet beside the maps. False where another process has the programs, or the kernel refused some.
    fn pin_programs(&self, maps: &Path) -> Result<bool, Error> {
        let mut held = lock(&self.programs);
        let Held { whole: Some(whole), of_devices } = &mut *held else { return Ok(false) };
        if whole.refused_foreign().is_some() {
            return Ok(false);
        }
        let pins = maps.join(PROGRAMS);
        if !pins.exists() {
            fs::create_dir(&pins).map_err(Error::file(&pins, "make"))?;
        }
        [Some(whole), of_devices.as_mut()].into_iter().flatten().try_for_each(|programs| programs.pin(&pins))?;
        Ok(true)
    }

    /// With the programs of cgroups, which whoever loaded the set has alone.
    pub(super) fn on_cgroup<T>(&self, act: impl FnOnce(&mut Programs) -> Result<T, Error>) -> Result<T, Error> {
        lock(&self.programs).whole.as_mut().map_or(Err(Error::Adopted), act)
    }

    /// With the programs of devices, loaded when first asked for. `maps` are the pins of any sandbox of the set.
    pub(super) fn on_device<T>(
        &self,
        maps: &Path,
        directories: &Directories,
        behind: Behind,
        act: impl FnOnce(&mut Programs) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let Held { whole, of_devices } = &mut *lock(&self.programs);
        if let Some(programs) = whole
            && programs.load_device_programs(behind)?
        {
            return act(programs);
        }
        match of_devices {
            Some(programs) => {
                programs.load_device_programs(behind)?;
                act(programs)
            }
            none => act(none.insert(Programs::over(maps, &directories.listeners(), behind)?)),
        }
    }

    fn has_room(&self) -> bool {
        lock(&self.seats).taken < self.room.slots
    }

    /// The next slot; none where it does not fit, or where one that has a slot may be on the same device.
    fn sit(&self, wanted: &Wanted<'_>) -> Result<Option<u32>, Error> {
        let mut seats = lock(&self.seats);
        let mut meets = seats.netns_cookies.iter().any(|(_, cookie)| Some(*cookie) == wanted.netns_cookie);
        for ifindex in wanted.devices {
            meets |= self.tables.device(*ifindex)?.is_some();
        }
        if seats.taken == self.room.slots || meets || !wanted.capacity.fits(self.room.each) {
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

/// What goes wrong with sets that are kept costs the time that loading takes, and nothing else.
fn none_kept<T>(error: impl std::error::Error + 'static) -> Option<T> {
    tracing::warn!(
        error = &error as &dyn std::error::Error,
        "a program set that was kept cannot be used; another is loaded"
    );
    None
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

//! The kernel half, loaded once for several sandboxes of a process.

pub use super::load_error::LoadError;
use super::{
    foreign::{self, Unavailable},
    kept,
    tc::Behind,
};
use aya::{
    Ebpf, EbpfLoader, VerifierLogLevel,
    maps::{Map, MapData, MapError, MapInfo},
    programs::{Program, ProgramError},
};
use egress_common::{event::RULES_AT_ONCE, names, sandbox::Identity};
use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

/// The object that `build.rs` made.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/egress"));

/// How much room the maps have for each sandbox, in entries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Capacity {
    /// Compiled rules.
    pub rules: u32,
    /// Single addresses, learned ones included.
    pub permits: u32,
    /// Networks.
    pub networks: u32,
}

impl Capacity {
    /// True where this much finds room in that.
    pub(crate) fn fits(self, room: Self) -> bool {
        self.rules <= room.rules && self.permits <= room.permits && self.networks <= room.networks
    }
}

/// For how many sandboxes maps are made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Room {
    /// Slots, none of which is given twice.
    pub(crate) slots: u32,
    /// How many live at a time.
    pub(crate) at_once: u32,
    /// For each of those.
    pub(crate) each: Capacity,
}

impl Room {
    /// For as many at a time as there are slots.
    pub(crate) const fn shared(slots: u32, each: Capacity) -> Self {
        Self { slots, at_once: slots, each }
    }
}

/// Device entries for each sandbox that lives: by them maps tell for how many at a time they were made.
pub(super) const DEVICES_EACH: u32 = 64;
/// Entries that no policy asks for: for one sandbox, and for each that shares them with it. Maps that forget their oldest
/// entries are made whole at once, so there is less for each of many.
const OTHERS: [(&str, u32, u32); 6] = [
    (names::map::OWN, 1024, 1024),
    (names::map::SOURCES, 1024, 1024),
    (names::map::DEVICES, DEVICES_EACH, DEVICES_EACH),
    (names::map::FLOWS, 1024, 128),
    (names::map::CLIENTS, 256, 64),
    (names::map::DENIALS, 1024, 128),
];
/// Bytes of the event ring for each sandbox, up to a few: some seconds of all that one may report, and it is read as it fills.
const RING_BYTES_EACH: u32 = 64 * 1024;
const RING_BYTES_AT_MOST: u32 = 256 * 1024;

/// A program's name, and how many instructions the verifier walked, or why it refused.
pub(crate) type Tried = (String, Result<Option<u32>, LoadError>);

/// The loaded programs, with their maps where it was us who loaded them.
pub(crate) struct Programs {
    source: Source,
    /// Whether those are among them that judge foreign sockets.
    pub(super) foreign: Result<(), Unavailable>,
}

/// Where programs are from.
enum Source {
    Object(Box<Ebpf>),
    /// Pins of a set that stays loaded, by name.
    Pins(BTreeMap<&'static str, Program>),
}

impl Programs {
    /// Creates the maps and loads every program of a cgroup, for that many sandboxes. `listeners` is the pin of the one map that
    /// all owners share.
    pub(crate) fn load(room: Room, listeners: Option<&Path>, test: Option<Identity>) -> Result<Self, LoadError> {
        if OBJECT.is_empty() {
            return Err(LoadError::NoObject);
        }
        quietly(|log| Self::load_at(room, listeners, test, log))
    }

    /// The programs that are pinned in this directory, by their own names ([`Programs::pin`]): all of a cgroup that this kernel
    /// needs, and those of devices that whoever pinned them had loaded.
    pub(crate) fn open(pins: &Path) -> Result<Self, LoadError> {
        let (programs, foreign) = kept::programs(pins)?;
        Ok(Self { source: Source::Pins(programs), foreign })
    }

    /// Why those that judge foreign sockets are not among them, where the kernel seemed fit for them.
    pub(crate) fn refused_foreign(&self) -> Option<Arc<LoadError>> {
        match &self.foreign {
            Err(Unavailable::Load(error)) => Some(Arc::clone(error)),
            _ => None,
        }
    }

    /// Pins every program that is loaded, where it is not pinned yet.
    pub(crate) fn pin(&mut self, pins: &Path) -> Result<(), LoadError> {
        let Source::Object(ebpf) = &mut self.source else { return Ok(()) };
        let loaded = ebpf.programs_mut().filter(|(_, program)| program.fd().is_ok());
        for (name, program) in loaded {
            let path = pins.join(name);
            if !path.exists() {
                let program_name = name.to_owned();
                program.pin(&path).map_err(|source| LoadError::PinProgram { program: program_name, path, source })?;
            }
        }
        Ok(())
    }

    /// The programs of devices alone, over maps that another process made and pinned, with programs of the same layouts.
    pub(crate) fn over(maps: &Path, listeners: &Path, behind: Behind) -> Result<Self, LoadError> {
        if OBJECT.is_empty() {
            return Err(LoadError::NoObject);
        }
        quietly(|log| {
            let mut loader = EbpfLoader::new();
            loader.verifier_log_level(log).map_pin_path(names::map::LISTENERS, listeners);
            for map in super::tables::PINNED {
                let path = maps.join(map);
                let failed = |source| LoadError::Map { map, source: Box::new(source) };
                let made = MapInfo::from_pin(&path).map_err(failed)?;
                loader.map_max_entries(map, made.max_entries()).map_pin_path(map, path);
            }
            let source = Source::Object(Box::new(open(loader)?));
            let mut programs = Self { source, foreign: foreign::availability() };
            programs.load_device_programs(behind)?;
            Ok(programs)
        })
    }

    fn load_at(
        room: Room,
        listeners: Option<&Path>,
        test: Option<Identity>,
        log: VerifierLogLevel,
    ) -> Result<Self, LoadError> {
        let Room { slots, at_once, each } = room;
        let identity;
        let mut loader = EbpfLoader::new();
        loader
            .verifier_log_level(log)
            // Slot 0 is nobody's.
            .map_max_entries(names::map::SANDBOXES, slots + 1)
            .map_max_entries(names::map::COUNTERS, slots + 1)
            .map_max_entries(names::map::LIMITS, slots + 1)
            .map_max_entries(names::map::METERS, slots + 1)
            .map_max_entries(names::map::RULES, slots * each.rules)
            .map_max_entries(names::map::PASSED, (slots * each.rules).div_ceil(RULES_AT_ONCE as u32))
            .map_max_entries(names::map::PERMITS, at_once * each.permits)
            .map_max_entries(names::map::NETWORKS, at_once * each.networks)
            .map_max_entries(names::map::EVENTS, (at_once * RING_BYTES_EACH).min(RING_BYTES_AT_MOST));
        for (map, one, more) in OTHERS {
            loader.map_max_entries(map, one + (at_once - 1) * more);
        }
        if let Some(path) = listeners {
            loader.map_pin_path(names::map::LISTENERS, path);
        }
        if let Some(test) = test {
            identity = test;
            loader.override_global(names::global::TEST_IDENTITY, bytemuck::bytes_of(&identity), true);
        }
        let mut ebpf = open(loader)?;
        load_programs(&mut ebpf, |_, program| !is_of_devices(program) && !is_of_tasks(program))?;
        let foreign = load_foreign(&mut ebpf);
        Ok(Self { source: Source::Object(Box::new(ebpf)), foreign })
    }

    /// Loads the programs of devices, which a sandbox without one does not need. Done as well when they are loaded already. False
    /// where they are not, and these came from pins.
    pub(crate) fn load_device_programs(&mut self, behind: Behind) -> Result<bool, LoadError> {
        let wanted = behind.programs();
        match &mut self.source {
            Source::Object(ebpf) => load_programs(ebpf, |name, program| {
                wanted.contains(&name) && matches!(program, Program::SchedClassifier(program) if program.fd().is_err())
            })
            .map(|()| true),
            Source::Pins(programs) => Ok(wanted.iter().all(|name| programs.contains_key(name))),
        }
    }

    /// A program, by its name.
    pub(super) fn program(&self, name: &str) -> Option<&Program> {
        match &self.source {
            Source::Object(ebpf) => ebpf.program(name),
            Source::Pins(programs) => programs.get(name),
        }
    }

    /// The same, to attach or pin it.
    pub(super) fn program_mut(&mut self, name: &str) -> Option<&mut Program> {
        match &mut self.source {
            Source::Object(ebpf) => ebpf.program_mut(name),
            Source::Pins(programs) => programs.get_mut(name),
        }
    }

    /// Pins a program, for whoever has to attach it when this process is gone.
    pub(crate) fn pin_program(&mut self, name: &'static str, path: &Path) -> Result<(), LoadError> {
        let program = self.program_mut(name).ok_or(LoadError::MissingMap { map: name })?;
        program.pin(path).map_err(|source| LoadError::Pin { map: name, path: path.into(), source })
    }

    /// Loads each program by itself, with the smallest maps: how many instructions the verifier walked (`None` where the kernel
    /// does not tell, before 5.16), or why it refused.
    pub(crate) fn try_each() -> Result<Vec<Tried>, LoadError> {
        if OBJECT.is_empty() {
            return Err(LoadError::NoObject);
        }
        let mut loader = EbpfLoader::new();
        loader.verifier_log_level(VerifierLogLevel::DISABLE);
        for map in [names::map::RULES, names::map::PERMITS, names::map::NETWORKS] {
            loader.map_max_entries(map, 16);
        }
        let mut ebpf = open(loader)?;
        let load = |(name, program): (&str, &mut Program)| {
            let loaded = load_program(name, program).and_then(|()| program.info());
            let failed = |source| LoadError::Program { program: name.to_owned(), source: Box::new(source) };
            (name.to_owned(), loaded.map(|info| info.verified_instruction_count()).map_err(failed))
        };
        // Those that this kernel has not, or has no need of, say nothing about it.
        let wanted = |(name, program): &(&str, &mut Program)| {
            !is_of_tasks(program) || foreign::kernel().is_ok_and(|kernel| kernel.needs(name))
        };
        Ok(ebpf.programs_mut().filter(wanted).map(load).collect())
    }

    /// Pins a map under its own name.
    pub(crate) fn pin_map(&self, name: &'static str, directory: &Path) -> Result<(), LoadError> {
        let Source::Object(ebpf) = &self.source else { return Err(LoadError::MissingMap { map: name }) };
        let map = ebpf.map(name).ok_or(LoadError::MissingMap { map: name })?;
        let path = directory.join(name);
        map.pin(&path).map_err(|source| LoadError::Pin { map: name, path, source })
    }

    /// Takes a map out, typed.
    pub(crate) fn map<T>(&mut self, name: &'static str) -> Result<T, LoadError>
    where
        T: TryFrom<Map, Error = MapError>,
    {
        let Source::Object(ebpf) = &mut self.source else { return Err(LoadError::MissingMap { map: name }) };
        let map = ebpf.take_map(name).ok_or(LoadError::MissingMap { map: name })?;
        T::try_from(map).map_err(|source| LoadError::Map { map: name, source: Box::new(source) })
    }
}

/// Opens a map that was pinned, typed.
pub(crate) fn open_pinned<T>(name: &'static str, path: &Path) -> Result<T, LoadError>
where
    T: TryFrom<Map, Error = MapError>,
{
    let failed = |source| LoadError::Map { map: name, source: Box::new(source) };
    let map = MapData::from_pin(path).and_then(Map::from_map_data).map_err(failed)?;
    T::try_from(map).map_err(failed)
}

fn is_of_devices(program: &Program) -> bool {
    matches!(program, Program::SchedClassifier(_))
}

fn is_of_tasks(program: &Program) -> bool {
    matches!(program, Program::LsmCgroup(_))
}

/// Makes the maps, and gives the programs what they have to know of the running kernel.
fn open(mut loader: EbpfLoader<'_>) -> Result<Ebpf, LoadError> {
    if let Ok(kernel) = foreign::kernel() {
        loader.override_global(names::global::OFFSETS, bytemuck::bytes_of(&kernel.offsets), true);
    }
    loader.load(OBJECT).map_err(|error| LoadError::Object(Box::new(error)))
}

fn load_foreign(ebpf: &mut Ebpf) -> Result<(), Unavailable> {
    let kernel = foreign::kernel()?;
    Ok(load_programs(ebpf, |name, program| is_of_tasks(program) && kernel.needs(name))?)
}

/// The verifier writes its log only when asked, and asking costs more than verifying.
fn quietly(load: impl Fn(VerifierLogLevel) -> Result<Programs, LoadError>) -> Result<Programs, LoadError> {
    match load(VerifierLogLevel::DISABLE) {
        Err(LoadError::Program { .. }) => load(VerifierLogLevel::default()),
        other => other,
    }
}

/// Nearly all of the time is the verifier's, which takes no lock for a caller with the capabilities: a second thread halves it.
fn load_programs(ebpf: &mut Ebpf, which: impl Fn(&str, &Program) -> bool) -> Result<(), LoadError> {
    let mut waiting: Vec<_> = ebpf.programs_mut().filter(|(name, program)| which(name, program)).collect();
    // The longest last, from where they are taken first.
    waiting.sort_by_key(|(_, program)| match program {
        Program::CgroupSkb(_) | Program::SchedClassifier(_) => 2,
        Program::CgroupSockAddr(_) => 1,
        _ => 0,
    });
    let waiting = Mutex::new(waiting);
    let work = || -> Result<(), LoadError> {
        loop {
            let next = waiting.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let Some((name, program)) = next else { return Ok(()) };
            load_program(name, program)
                .map_err(|source| LoadError::Program { program: name.to_owned(), source: Box::new(source) })?;
        }
    };
    std::thread::scope(|scope| {
        // Without a thread, the work is done all the same.
        let second = std::thread::Builder::new().spawn_scoped(scope, work);
        let first = work();
        let second =
            second.map_or(Ok(()), |thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        first.and(second)
    })
}

fn load_program(name: &str, program: &mut Program) -> Result<(), ProgramError> {
    match program {
        Program::LsmCgroup(program) => {
            // Nobody asks for one where the kernel was not found fit.
            let kernel = foreign::kernel().map_err(|_| ProgramError::UnexpectedProgramType)?;
            program.load(name, &kernel.btf)
        }
        Program::CgroupSockAddr(program) => program.load(),
        Program::CgroupSock(program) => program.load(),
        Program::CgroupSkb(program) => program.load(),
        Program::SockOps(program) => program.load(),
        Program::SchedClassifier(program) => program.load(),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}

//! The kernel half, loaded once for several sandboxes of a process.

use super::{
    foreign::{self, Unavailable},
    tc::Behind,
};
use aya::{
    Ebpf, EbpfError, EbpfLoader, VerifierLogLevel,
    maps::{Map, MapData, MapError, MapInfo},
    pin::PinError,
    programs::{Program, ProgramError},
};
use egress_common::{event::RULES_AT_ONCE, names, sandbox::Identity};
use std::{
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

/// The object that `build.rs` made.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/egress"));

/// Errors of loading the kernel half.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The build left the kernel half out.
    #[error("this egressd was built without its kernel half (AYA_BUILD_SKIP); build it again without that variable")]
    NoObject,
    /// Maps could not be made.
    #[error("cannot create the BPF maps")]
    Object(#[source] Box<EbpfError>),
    /// The verifier or the kernel refused a program.
    #[error("cannot load the BPF program {program}; egressd needs Linux 5.15 or newer with CONFIG_CGROUP_BPF")]
    Program {
        /// Its name.
        program: String,
        /// What the kernel said.
        #[source]
        source: Box<ProgramError>,
    },
    /// The object lacks a map that the agent knows: two halves of different builds.
    #[error("the BPF object has no {map}; build egressd again")]
    MissingMap {
        /// Its name.
        map: &'static str,
    },
    /// A map is not what the agent expects.
    #[error("the BPF map {map} is not of the expected kind; build egressd again")]
    Map {
        /// Its name.
        map: &'static str,
        /// What differs.
        #[source]
        source: Box<MapError>,
    },
    /// A map could not be pinned.
    #[error("cannot pin the BPF object {map} at {}; is the bpffs there full or read-only?", path.display())]
    Pin {
        /// Its name.
        map: &'static str,
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: PinError,
    },
}

impl LoadError {
    /// True where the kernel said EPERM: a capability is missing, or BPF is locked down.
    pub fn is_permission(&self) -> bool {
        let mut source: Option<&(dyn std::error::Error + 'static)> = Some(self);
        while let Some(error) = source {
            if let Some(io) = error.downcast_ref::<std::io::Error>()
                && io.kind() == std::io::ErrorKind::PermissionDenied
            {
                return true;
            }
            source = error.source();
        }
        false
    }
}

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

/// Entries that no policy asks for: for one sandbox, and for each that shares them with it. Maps that forget their oldest
/// entries are made whole at once, so there is less for each of many.
const OTHERS: [(&str, u32, u32); 6] = [
    (names::map::OWN, 1024, 1024),
    (names::map::SOURCES, 1024, 1024),
    (names::map::DEVICES, 64, 64),
    (names::map::FLOWS, 1024, 128),
    (names::map::CLIENTS, 256, 64),
    (names::map::DENIALS, 1024, 128),
];
/// Bytes of the event ring for each sandbox, up to a few: some seconds of all that one may report, and it is read as it fills.
const RING_BYTES_EACH: u32 = 64 * 1024;
const RING_BYTES_AT_MOST: u32 = 256 * 1024;

/// A program's name, and how many instructions the verifier walked, or why it refused.
pub(crate) type Tried = (String, Result<Option<u32>, LoadError>);

/// The loaded programs and their maps.
pub(crate) struct Programs {
    pub(crate) ebpf: Ebpf,
    /// Whether those are among them that judge foreign sockets.
    pub(super) foreign: Result<(), Unavailable>,
}

impl Programs {
    /// Creates the maps and loads every program of a cgroup, for as many sandboxes as that (a power of two), each with that
    /// much room. `listeners` is the pin of the one map that all owners share.
    pub(crate) fn load(
        sandboxes: u32,
        capacity: Capacity,
        listeners: Option<&Path>,
        test: Option<Identity>,
    ) -> Result<Self, LoadError> {
        if OBJECT.is_empty() {
            return Err(LoadError::NoObject);
        }
        quietly(|log| Self::load_at(sandboxes, capacity, listeners, test, log))
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
            let mut programs = Self { ebpf: open(loader)?, foreign: foreign::availability() };
            programs.load_device_programs(behind)?;
            Ok(programs)
        })
    }

    fn load_at(
        sandboxes: u32,
        capacity: Capacity,
        listeners: Option<&Path>,
        test: Option<Identity>,
        log: VerifierLogLevel,
    ) -> Result<Self, LoadError> {
        let identity;
        let mut loader = EbpfLoader::new();
        loader
            .verifier_log_level(log)
            // Slot 0 is nobody's.
            .map_max_entries(names::map::SANDBOXES, sandboxes + 1)
            .map_max_entries(names::map::COUNTERS, sandboxes + 1)
            .map_max_entries(names::map::LIMITS, sandboxes + 1)
            .map_max_entries(names::map::METERS, sandboxes + 1)
            .map_max_entries(names::map::RULES, sandboxes * capacity.rules)
            .map_max_entries(names::map::PASSED, (sandboxes * capacity.rules).div_ceil(RULES_AT_ONCE as u32))
            .map_max_entries(names::map::PERMITS, sandboxes * capacity.permits)
            .map_max_entries(names::map::NETWORKS, sandboxes * capacity.networks)
            .map_max_entries(names::map::EVENTS, (sandboxes * RING_BYTES_EACH).min(RING_BYTES_AT_MOST));
        for (map, one, each) in OTHERS {
            loader.map_max_entries(map, one + (sandboxes - 1) * each);
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
        Ok(Self { ebpf, foreign })
    }

    /// Loads the programs of devices, which a sandbox without one does not need. Done as well when they are loaded already.
    pub(crate) fn load_device_programs(&mut self, behind: Behind) -> Result<(), LoadError> {
        let wanted = behind.programs();
        load_programs(&mut self.ebpf, |name, program| {
            wanted.contains(&name) && matches!(program, Program::SchedClassifier(program) if program.fd().is_err())
        })
    }

    /// Pins a program, for whoever has to attach it when this process is gone.
    pub(crate) fn pin_program(&mut self, name: &'static str, path: &Path) -> Result<(), LoadError> {
        let program = self.ebpf.program_mut(name).ok_or(LoadError::MissingMap { map: name })?;
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
        let map = self.ebpf.map(name).ok_or(LoadError::MissingMap { map: name })?;
        let path = directory.join(name);
        map.pin(&path).map_err(|source| LoadError::Pin { map: name, path, source })
    }

    /// Takes a map out, typed.
    pub(crate) fn map<T>(&mut self, name: &'static str) -> Result<T, LoadError>
    where
        T: TryFrom<Map, Error = MapError>,
    {
        let map = self.ebpf.take_map(name).ok_or(LoadError::MissingMap { map: name })?;
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

//! Program sets that stay loaded between sandboxes, so that the next one has nothing to load.
//!
//! Each waits in a directory below one whose name says how many may: `kept:2/BUILD-RING-SLOT`, with the pins of its maps, and
//! those of its programs in [`PROGRAMS`]. No owner of pins has a colon in its name. A set goes to a sandbox, and back, by one
//! rename(2), so whoever has it has it alone. No slot of it is given twice: its number is the next one's.

use super::{
    attach::CGROUP_HOOKS,
    bpffs::{PinError, PinRoot},
    foreign::{self, Unavailable},
    load::LoadError,
    tc::Behind,
};
use aya::programs::{
    CgroupSkb, CgroupSkbAttachType, CgroupSock, CgroupSockAddr, CgroupSockAddrAttachType, CgroupSockAttachType,
    LsmCgroup, Program, ProgramError, SchedClassifier, SockOps,
};
use nix::errno::Errno;
use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

/// The directory of a set's programs, beside its maps.
pub(crate) const PROGRAMS: &str = "programs";
/// Before the number of sets that may wait.
const PREFIX: &str = "kept:";
/// Where a set is while it is being loaded.
const UNFINISHED: &str = "unfinished";

/// The directory of the sets that wait.
#[derive(Debug)]
pub(crate) struct Kept {
    directory: PathBuf,
    /// How many may wait.
    pub(crate) most: u32,
}

/// A set that waits, as its directory's name has it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Waiting {
    /// The build that loaded it.
    pub(crate) build: String,
    /// The kernel's number of its event ring.
    pub(crate) ring: u32,
    /// The slot that its next sandbox gets.
    pub(crate) slot: u32,
}

impl Waiting {
    fn name(&self) -> String {
        let Self { build, ring, slot } = self;
        format!("{build}-{ring}-{slot}")
    }

    fn of(name: &str) -> Option<Self> {
        let mut parts = name.split('-');
        let (build, ring, slot) = (parts.next()?.to_owned(), parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        parts.next().is_none().then_some(Self { build, ring, slot })
    }
}

impl Kept {
    /// None where nobody asked for sets to be kept.
    pub(crate) fn find(root: &PinRoot) -> Result<Option<Self>, PinError> {
        let most_of = |name: &str| name.strip_prefix(PREFIX)?.parse().ok();
        let found = root.owners()?.into_iter().find_map(|name| Some((most_of(&name)?, name)));
        Ok(found.map(|(most, name)| Self { directory: root.path().join(name), most }))
    }

    /// So many may wait from here on.
    pub(crate) fn set(root: &PinRoot, most: u32) -> Result<Self, PinError> {
        let directory = root.path().join(format!("{PREFIX}{most}"));
        match Self::find(root)? {
            Some(kept) if kept.most == most => {}
            Some(kept) => fs::rename(&kept.directory, &directory).map_err(failed("rename", &kept.directory))?,
            None => fs::create_dir(&directory).map_err(failed("make", &directory))?,
        }
        Ok(Self { directory, most })
    }

    /// Nothing is kept any more.
    pub(crate) fn end(self) -> Result<(), PinError> {
        fs::remove_dir_all(&self.directory).map_err(failed("remove", &self.directory))
    }

    /// Those of this build, sorted. Those of others, which nobody would take, and what was not finished, are removed.
    pub(crate) fn waiting(&self, build: &str) -> Result<Vec<Waiting>, PinError> {
        let mut ours = Vec::new();
        for entry in fs::read_dir(&self.directory).map_err(failed("read", &self.directory))? {
            let path = entry.map_err(failed("read", &self.directory))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            match Waiting::of(&name) {
                Some(waiting) if waiting.build == build => ours.push(waiting),
                _ => fs::remove_dir_all(&path).map_err(failed("remove", &path))?,
            }
        }
        ours.sort();
        Ok(ours)
    }

    /// Moves a set to a sandbox: to the directory of its maps, which is empty.
    pub(crate) fn take(&self, waiting: &Waiting, maps: &Path) -> Result<(), PinError> {
        let path = self.directory.join(waiting.name());
        fs::rename(&path, maps).map_err(failed("take", &path))
    }

    /// Moves a set from where it is.
    pub(crate) fn give(&self, maps: &Path, waiting: &Waiting) -> Result<(), PinError> {
        fs::rename(maps, self.directory.join(waiting.name())).map_err(failed("keep", maps))
    }

    /// Unloads one that waits.
    pub(crate) fn remove(&self, waiting: &Waiting) -> Result<(), PinError> {
        let path = self.directory.join(waiting.name());
        fs::remove_dir_all(&path).map_err(failed("remove", &path))
    }

    /// An empty directory for a set that is to be loaded.
    pub(crate) fn unfinished(&self) -> Result<PathBuf, PinError> {
        let path = self.directory.join(UNFINISHED);
        fs::create_dir(&path).map_err(failed("make", &path))?;
        Ok(path)
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PinError {
    let path = path.to_owned();
    move |error| {
        let source = error.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw);
        PinError::Entry { action, path, source }
    }
}

/// Opens the programs that are pinned below `pins`: all cgroup hooks, those of tasks where this kernel has them, and those of
/// devices that are there.
#[expect(clippy::type_complexity, reason = "both halves of what is loaded")]
pub(super) fn programs(pins: &Path) -> Result<(BTreeMap<&'static str, Program>, Result<(), Unavailable>), LoadError> {
    let mut programs = BTreeMap::new();
    let mut add = |name: &'static str| -> Result<(), LoadError> {
        let path = pins.join(name);
        let failed = |source| LoadError::PinnedProgram { path: path.clone(), source: Box::new(source) };
        programs.insert(name, open(name, &path).map_err(failed)?);
        Ok(())
    };
    CGROUP_HOOKS.iter().try_for_each(|hook| add(hook.name))?;
    let foreign = foreign::availability();
    if foreign.is_ok() {
        foreign::needed().try_for_each(&mut add)?;
    }
    let of_devices = [Behind::Sandbox, Behind::Guest].into_iter().flat_map(Behind::programs).copied();
    of_devices.filter(|name| pins.join(name).exists()).try_for_each(&mut add)?;
    Ok((programs, foreign))
}

/// Opens a pinned program. What it was loaded for is not to be read off it.
fn open(name: &str, path: &Path) -> Result<Program, ProgramError> {
    use CgroupSockAddrAttachType as Call;
    let call = |attach_type| CgroupSockAddr::from_pin(path, attach_type).map(Program::CgroupSockAddr);
    let packets = |side| CgroupSkb::from_pin(path, side).map(Program::CgroupSkb);
    match name {
        "egress" => packets(CgroupSkbAttachType::Egress),
        "ingress" => packets(CgroupSkbAttachType::Ingress),
        "sock_create" => CgroupSock::from_pin(path, CgroupSockAttachType::SockCreate).map(Program::CgroupSock),
        "sock_ops" => SockOps::from_pin(path).map(Program::SockOps),
        "connect4" => call(Call::Connect4),
        "connect6" => call(Call::Connect6),
        "sendmsg4" => call(Call::UDPSendMsg4),
        "sendmsg6" => call(Call::UDPSendMsg6),
        "recvmsg4" => call(Call::UDPRecvMsg4),
        "recvmsg6" => call(Call::UDPRecvMsg6),
        "getpeername4" => call(Call::GetPeerName4),
        "getpeername6" => call(Call::GetPeerName6),
        "bind4" => call(Call::Bind4),
        "bind6" => call(Call::Bind6),
        task if foreign::HOOKS.contains(&task) => LsmCgroup::from_pin(path).map(Program::LsmCgroup),
        _ => SchedClassifier::from_pin(path).map(Program::SchedClassifier),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_is_known_by_the_name_of_its_directory() {
        let waiting = Waiting { build: "00ff_1a".into(), ring: 17, slot: 3 };
        assert_eq!(waiting.name(), "00ff_1a-17-3");
        assert_eq!(Waiting::of("00ff_1a-17-3"), Some(waiting));
        for other in ["", UNFINISHED, "00ff_1a-17", "00ff_1a-17-3-1", "00ff_1a-17-x", "00ff_1a--1-3"] {
            assert_eq!(Waiting::of(other), None, "{other}");
        }
    }
}

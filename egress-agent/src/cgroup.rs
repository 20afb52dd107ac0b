//! Directories of the cgroup v2 tree: find, refuse, make, watch, kill, remove.
//!
//! egressd limits no resources, so this is all that it knows of cgroups. A [`Cgroup`] is an open directory: what is read or
//! killed through it is that cgroup, whatever its path leads to by then. (The v2 tree knows no rename.)

mod mount;
mod refuse;

pub use mount::{CgroupMount, cgroup_of_process, own_cgroup};
pub use refuse::CgroupError;

use nix::{
    errno::Errno,
    fcntl::{OFlag, openat},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::stat::{Mode, fstat, mkdirat},
};
use refuse::io;
use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs::{self, File},
    io::{Read, Write},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::{FileExt, MetadataExt},
    },
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

/// One cgroup of the v2 tree.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
    name: PathBuf,
    id: u64,
    root: bool,
    dir: OwnedFd,
}

impl Cgroup {
    /// Opens the cgroup at `path`: absolute, or relative to the mount point.
    ///
    /// # Errors
    /// What is missing, outside the v2 tree or cannot hold processes is refused, each with its own error.
    pub fn open(mount: &CgroupMount, path: &Path) -> Result<Self, CgroupError> {
        let asked = mount.point().join(path);
        let dir = refuse::open_v2_directory(&asked, mount)?;
        Self::from_directory(&asked, dir)
    }

    /// Opens the cgroup in which process `pid` is now.
    pub fn of_process(mount: &CgroupMount, pid: u32) -> Result<Self, CgroupError> {
        Self::open_named(mount, cgroup_of_process(pid)?)
    }

    /// Opens the cgroup in which this process is.
    pub fn own(mount: &CgroupMount) -> Result<Self, CgroupError> {
        Self::open_named(mount, own_cgroup()?)
    }

    fn open_named(mount: &CgroupMount, cgroup: PathBuf) -> Result<Self, CgroupError> {
        match mount.directory_of(&cgroup) {
            Some(directory) => Self::open(mount, &directory),
            None => Err(CgroupError::OutsideMount { cgroup, mount: mount.point().to_owned() }),
        }
    }

    /// Makes a new cgroup in `parent`, named `PREFIX-PID-N` with this process's id.
    ///
    /// # Errors
    /// [`CgroupError::Create`] when the kernel refuses; [`CgroupError::Threaded`] when the parent belongs to a threaded
    /// subtree, whose new members cannot hold processes (nothing is left behind then).
    pub fn create_child(parent: &Self, prefix: &str) -> Result<Self, CgroupError> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        loop {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let name = format!("{prefix}-{}-{number}", std::process::id());
            let path = parent.path.join(&name);
            match mkdirat(&parent.dir, name.as_str(), Mode::from_bits_truncate(0o755)) {
                Ok(()) => {}
                // Left by a process that had the same id, or that has it in another pid namespace.
                Err(Errno::EEXIST) => continue,
                Err(source) => return Err(CgroupError::Create { path, source: source.into() }),
            }
            let opened = openat(&parent.dir, name.as_str(), refuse::DIRECTORY, Mode::empty())
                .map_err(|source| io(&path, "open")(source.into()))
                .and_then(|dir| Self::from_directory(&path, dir));
            if opened.is_err() {
                fs::remove_dir(&path).map_err(io(&path, "remove"))?;
            }
            return opened;
        }
    }

    fn from_directory(asked: &Path, dir: OwnedFd) -> Result<Self, CgroupError> {
        let path = refuse::real_path(&dir).map_err(io(asked, "resolve"))?;
        let id = fstat(&dir).map_err(|source| io(&path, "stat")(source.into()))?.st_ino;
        let name = CgroupMount::all()?
            .iter()
            .filter_map(|mount| Some((mount.point().as_os_str().len(), mount.cgroup_of(&path)?)))
            .max_by_key(|(depth, _)| *depth)
            .map(|(_, name)| name)
            .ok_or(CgroupError::NoMount)?;
        let mut cgroup = Self { path, name, id, root: false, dir };
        // Only the root of the tree has no type (Documentation/admin-guide/cgroup-v2.rst).
        match cgroup.read("cgroup.type") {
            Ok(kind) => refuse::unless_domain(&cgroup.path, kind.trim())?,
            Err(CgroupError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => cgroup.root = true,
            Err(error) => return Err(error),
        }
        Ok(cgroup)
    }

    /// Directory, without symbolic links.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Name as in `/proc/PID/cgroup`.
    pub fn name(&self) -> &Path {
        &self.name
    }

    /// Id, as `bpf_get_current_cgroup_id` and cgroup links know it: the inode number of the directory (fs/kernfs).
    pub fn id(&self) -> u64 {
        self.id
    }

    /// How many cgroups lie above it. None where the root of the tree is not to be seen, as within a cgroup namespace.
    pub fn depth(&self) -> Option<u32> {
        /// Of the root of any tree (`kernfs_create_root` in fs/kernfs/dir.c).
        const ROOT_ID: u64 = 1;
        let device = fstat(&self.dir).ok()?.st_dev;
        let ids = self.path.ancestors().map_while(|above| {
            let found = fs::metadata(above).ok()?;
            (found.dev() == device).then(|| found.ino())
        });
        (0..).zip(ids).find_map(|(depth, id)| (id == ROOT_ID).then_some(depth))
    }

    /// The open directory.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// Refuses what must not be enforced: the root of the tree, and a cgroup with egressd itself in it or below.
    pub fn check_enforceable(&self) -> Result<(), CgroupError> {
        let own = own_cgroup()?;
        if self.root {
            Err(CgroupError::Root { path: self.path.clone() })
        } else if own.starts_with(&self.name) {
            Err(CgroupError::HoldsEgressd { path: self.path.clone(), own })
        } else {
            Ok(())
        }
    }

    /// True where process `pid` is in this cgroup or below; false for a process that is gone.
    pub fn holds(&self, pid: u32) -> bool {
        cgroup_of_process(pid).is_ok_and(|cgroup| cgroup.starts_with(&self.name))
    }

    /// The nearest ancestor that lets `uid`, a member of `gids`, move its processes out of this cgroup: it owns the
    /// directory or may write its `cgroup.procs`. `None` = this cgroup keeps what is put into it.
    ///
    /// Looks as far up as the mount shows the tree.
    pub fn delegated_to(&self, uid: u32, gids: &[u32]) -> Result<Option<PathBuf>, CgroupError> {
        for ancestor in self.path.ancestors().skip(1) {
            let procs = ancestor.join("cgroup.procs");
            let writable = match fs::metadata(&procs) {
                Ok(metadata) => refuse::may_write(&metadata, uid, gids),
                // Above the mount point, or hidden from a caller without rights over it.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(io(&procs, "stat")(error)),
            };
            let owner = fs::metadata(ancestor).map_err(io(ancestor, "stat"))?.uid();
            if writable || owner == uid {
                return Ok(Some(ancestor.to_owned()));
            }
        }
        Ok(None)
    }

    /// True while a process lives in this cgroup or below. A removed cgroup is not populated.
    pub fn populated(&self) -> Result<bool, CgroupError> {
        if self.gone() {
            return Ok(false);
        }
        self.events().and_then(|events| self.read_populated(&events))
    }

    /// Waits until no process is left here or below, woken by the kernel.
    ///
    /// # Errors
    /// [`CgroupError::Populated`] with the processes that are left after `limit`.
    pub fn wait_unpopulated(&self, limit: Duration) -> Result<(), CgroupError> {
        let deadline = Instant::now() + limit;
        if self.gone() {
            return Ok(());
        }
        let events = self.events()?;
        while self.read_populated(&events)? {
            if deadline <= Instant::now() {
                return Err(CgroupError::Populated { path: self.path.clone(), pids: self.procs()?, waited: limit });
            }
            match poll(&mut [PollFd::new(events.as_fd(), PollFlags::POLLPRI)], poll_until(deadline)) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(source) => return Err(io(&self.path.join("cgroup.events"), "poll")(source.into())),
            }
        }
        Ok(())
    }

    /// Sends SIGKILL to every process here and below, in one step that no fork escapes (`cgroup.kill`, kernel 5.14).
    pub fn kill(&self) -> Result<(), CgroupError> {
        if self.gone() {
            return Ok(());
        }
        let mut file = self.open_file("cgroup.kill", OFlag::O_WRONLY)?;
        file.write_all(b"1").map_err(io(&self.path.join("cgroup.kill"), "write"))
    }

    /// Ids of the processes here and below, as seen from the caller's pid namespace.
    pub fn procs(&self) -> Result<Vec<u32>, CgroupError> {
        let mut pids = Vec::new();
        for directory in self.tree()? {
            let path = directory.join("cgroup.procs");
            match fs::read_to_string(&path) {
                Ok(text) => pids.extend(text.lines().filter_map(|line| line.parse::<u32>().ok())),
                // Removed meanwhile; or threaded, whose processes are listed at the domain above it.
                Err(error) if vanished(&error) || error.raw_os_error() == Some(libc::EOPNOTSUPP) => {}
                Err(error) => return Err(io(&path, "read")(error)),
            }
        }
        Ok(pids)
    }

    /// Ids of this cgroup and of those below it.
    pub fn ids(&self) -> Result<BTreeSet<u64>, CgroupError> {
        let mut ids = BTreeSet::new();
        for directory in self.tree()? {
            match fs::metadata(&directory) {
                Ok(metadata) => drop(ids.insert(metadata.ino())),
                Err(error) if vanished(&error) => {}
                Err(error) => return Err(io(&directory, "stat")(error)),
            }
        }
        Ok(ids)
    }

    /// Removes this cgroup and those below it; done as well when it is already gone.
    ///
    /// # Errors
    /// [`CgroupError::Io`] with EBUSY while a process is left: kill and wait first.
    pub fn remove(&self) -> Result<(), CgroupError> {
        if self.gone() {
            return Ok(());
        }
        for directory in self.tree()?.iter().rev() {
            match fs::remove_dir(directory) {
                Err(error) if !vanished(&error) => return Err(io(directory, "remove")(error)),
                _ => {}
            }
        }
        Ok(())
    }

    /// Opens `cgroup.procs` for a process that will move itself here by writing `0`.
    pub(crate) fn entrance(&self) -> Result<OwnedFd, CgroupError> {
        self.open_file("cgroup.procs", OFlag::O_WRONLY).map(OwnedFd::from)
    }

    /// This directory and all below it, parents before children.
    fn tree(&self) -> Result<Vec<PathBuf>, CgroupError> {
        let mut found = vec![self.path.clone()];
        let mut next = 0;
        while let Some(directory) = found.get(next).cloned() {
            next += 1;
            let entries = match fs::read_dir(&directory) {
                Ok(entries) => entries,
                Err(error) if vanished(&error) => continue,
                Err(error) => return Err(io(&directory, "list")(error)),
            };
            for entry in entries {
                let entry = entry.map_err(io(&directory, "list"))?;
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    found.push(entry.path());
                }
            }
        }
        Ok(found)
    }

    /// True once the directory was removed, even where another took its path.
    fn gone(&self) -> bool {
        fs::metadata(&self.path).map_or_else(|error| vanished(&error), |metadata| metadata.ino() != self.id)
    }

    fn events(&self) -> Result<File, CgroupError> {
        self.open_file("cgroup.events", OFlag::O_RDONLY)
    }

    /// Reading also re-arms the poll (fs/kernfs/file.c, `kernfs_generic_poll`).
    fn read_populated(&self, events: &File) -> Result<bool, CgroupError> {
        let mut text = [0; 256];
        match events.read_at(&mut text, 0) {
            Ok(length) => Ok(text[..length].split(|&byte| byte == b'\n').any(|line| line == b"populated 1")),
            Err(error) if vanished(&error) => Ok(false),
            Err(error) => Err(io(&self.path.join("cgroup.events"), "read")(error)),
        }
    }

    fn read(&self, file: &str) -> Result<String, CgroupError> {
        let mut text = String::new();
        self.open_file(file, OFlag::O_RDONLY)?.read_to_string(&mut text).map_err(io(&self.path.join(file), "read"))?;
        Ok(text)
    }

    fn open_file(&self, file: &str, access: OFlag) -> Result<File, CgroupError> {
        openat(&self.dir, OsStr::new(file), access | OFlag::O_CLOEXEC, Mode::empty())
            .map(File::from)
            .map_err(|source| io(&self.path.join(file), "open")(source.into()))
    }
}

/// How long poll may wait until `deadline`, rounded up: a wait of 0 ms would spin through the last millisecond.
pub(crate) fn poll_until(deadline: Instant) -> PollTimeout {
    let left = deadline.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
    PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
}

/// The kernel's words for a cgroup that was removed: the path leads nowhere, or the open file has lost its node.
fn vanished(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV))
}

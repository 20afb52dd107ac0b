//! What is not a cgroup to enforce, and how that is said.

use super::mount::CgroupMount;
use nix::{
    errno::Errno,
    fcntl::{OFlag, open},
    sys::{
        stat::Mode,
        statfs::{CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC, fstatfs},
    },
};
use std::{
    fs::{self, Metadata},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
    time::Duration,
};

/// Why a cgroup cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// No mount of type cgroup2 can be seen.
    #[error(
        "no cgroup v2 tree can be seen here; leave the mount namespace that hides it (ip netns exec makes one), or mount it: mount -t cgroup2 none /sys/fs/cgroup"
    )]
    NoMount,
    /// The process has no `0::` line.
    #[error("{} has no line for cgroup v2: boot a kernel that has CONFIG_CGROUPS, without cgroup_disable=", path.display())]
    NotInTree {
        /// The file that was read.
        path: PathBuf,
    },
    /// Nothing there.
    #[error("cgroup {} does not exist; name a directory under {}", path.display(), mount.display())]
    Missing {
        /// What was asked for.
        path: PathBuf,
        /// Mount point of the v2 tree.
        mount: PathBuf,
    },
    /// A directory of a v1 hierarchy.
    #[error("{} belongs to cgroup v1, where destinations cannot be enforced; the v2 tree is at {}", path.display(), mount.display())]
    V1 {
        /// What was asked for.
        path: PathBuf,
        /// Mount point of the v2 tree.
        mount: PathBuf,
    },
    /// Another file system, or no directory at all.
    #[error("{} is no cgroup; name a directory under {}", path.display(), mount.display())]
    NotCgroup {
        /// What was asked for.
        path: PathBuf,
        /// Mount point of the v2 tree.
        mount: PathBuf,
    },
    /// Threads of one process can stand in several threaded cgroups, so a sibling thread would stay free.
    #[error("cgroup {} is of type \"{kind}\" and cannot hold a sandbox; name its nearest ancestor of type \"domain\"", path.display())]
    Threaded {
        /// The cgroup.
        path: PathBuf,
        /// Content of `cgroup.type`.
        kind: String,
    },
    /// The root holds every process of the host.
    #[error("{} is the root of the cgroup tree and holds every process; name a cgroup below it", path.display())]
    Root {
        /// The cgroup.
        path: PathBuf,
    },
    /// Enforcement would cut off the agent.
    #[error("cgroup {} holds egressd itself, which is in {}; name another, or start egressd outside it", path.display(), own.display())]
    HoldsEgressd {
        /// The cgroup.
        path: PathBuf,
        /// Where egressd is, named as in `/proc/PID/cgroup`.
        own: PathBuf,
    },
    /// The process's cgroup lies outside what the mount shows.
    #[error("cgroup {} cannot be seen under {}; run egressd in the host's cgroup and mount namespaces", cgroup.display(), mount.display())]
    OutsideMount {
        /// Name as in `/proc/PID/cgroup`.
        cgroup: PathBuf,
        /// Mount point of the v2 tree.
        mount: PathBuf,
    },
    /// The kernel refused a new cgroup.
    #[error("cannot make cgroup {}; run as root, or name a parent that can be written: --cgroup PATH", path.display())]
    Create {
        /// The new directory.
        path: PathBuf,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// Processes are left after the wait.
    #[error("cgroup {} still holds processes {pids:?} after {waited:?}; it stays enforced: see what holds them (cat /proc/PID/stack), then egressd detach", path.display())]
    Populated {
        /// The cgroup.
        path: PathBuf,
        /// Who is left.
        pids: Vec<u32>,
        /// How long was waited.
        waited: Duration,
    },
    /// A file of the tree could not be used.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What was tried, as a verb.
        action: &'static str,
        /// The kernel's answer.
        source: std::io::Error,
    },
}

/// How directories of the tree are opened.
pub(super) const DIRECTORY: OFlag = OFlag::O_DIRECTORY.union(OFlag::O_RDONLY).union(OFlag::O_CLOEXEC);

/// Names file and action of an I/O error.
pub(super) fn io(path: &Path, action: &'static str) -> impl FnOnce(std::io::Error) -> CgroupError {
    let path = path.to_owned();
    move |source| CgroupError::Io { path, action, source }
}

pub(super) fn open_v2_directory(asked: &Path, mount: &CgroupMount) -> Result<OwnedFd, CgroupError> {
    let (path, mount) = (asked.to_owned(), mount.point().to_owned());
    let dir = match open(asked, DIRECTORY, Mode::empty()) {
        Ok(dir) => dir,
        Err(Errno::ENOENT) => return Err(CgroupError::Missing { path, mount }),
        Err(Errno::ENOTDIR) => return Err(CgroupError::NotCgroup { path, mount }),
        Err(source) => return Err(io(asked, "open")(source.into())),
    };
    match fstatfs(&dir).map_err(|source| io(asked, "stat")(source.into()))?.filesystem_type() {
        CGROUP2_SUPER_MAGIC => Ok(dir),
        CGROUP_SUPER_MAGIC => Err(CgroupError::V1 { path, mount }),
        _ => Err(CgroupError::NotCgroup { path, mount }),
    }
}

/// Where an open directory is, without symbolic links and `..`.
pub(super) fn real_path(dir: &OwnedFd) -> std::io::Result<PathBuf> {
    fs::read_link(format!("/proc/self/fd/{}", dir.as_raw_fd()))
}

/// "threaded" and "domain invalid" cannot hold processes of their own. "domain threaded" can: its threads may spread only
/// below it, where its hooks run as well.
pub(super) fn unless_domain(path: &Path, kind: &str) -> Result<(), CgroupError> {
    match kind {
        "domain" | "domain threaded" => Ok(()),
        _ => Err(CgroupError::Threaded { path: path.to_owned(), kind: kind.to_owned() }),
    }
}

/// What the file's owner and mode bits give; the owner counts as writer, since it may change the mode.
pub(super) fn may_write(metadata: &Metadata, uid: u32, gids: &[u32]) -> bool {
    let mode = metadata.mode();
    metadata.uid() == uid || mode & 0o002 != 0 || (mode & 0o020 != 0 && gids.contains(&metadata.gid()))
}

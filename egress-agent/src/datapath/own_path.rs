//! Directories that nobody but root can replace.
//!
//! Pins and locks are only as safe as every directory above them: whoever may rename one component puts his own in its place
//! (attack: nobody made `egressd/` first in the world-writable bpffs of the distribution and removed the pins).

use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, open, openat},
    sys::stat::{FileStat, Mode, fstat, fstatat, mkdirat},
};
use std::{
    ffi::OsStr,
    os::fd::OwnedFd,
    path::{Component, Path, PathBuf},
};

/// Ours alone: what every directory of egressd has.
pub(super) const PRIVATE: Mode = Mode::S_IRWXU;
/// Write permission of group and others.
const SHARED_WRITE: u32 = 0o022;
const STICKY: u32 = 0o1000;

/// Why a directory is not used.
#[derive(Debug, thiserror::Error)]
pub enum PathError {
    /// A relative path would depend on where egressd was started.
    #[error("{path} is not an absolute path without `..`: write it out from /")]
    NotAbsolute {
        /// The path as given.
        path: PathBuf,
    },
    /// A component of the path is a symbolic link or no directory.
    #[error("{path} is a symbolic link or not a directory: name the real directory, without links")]
    NotADirectory {
        /// The path up to that component.
        path: PathBuf,
    },
    /// Its owner could replace what is below.
    #[error(
        "{path} belongs to uid {uid}, who could replace what egressd keeps below it: type `chown root {path}` or choose a directory of root's"
    )]
    NotRoots {
        /// The path up to that component.
        path: PathBuf,
        /// Its owner.
        uid: u32,
    },
    /// Others could replace what is below.
    #[error("{path} is writable by others (mode {mode:03o}): type `chmod go-w {path}` or choose another directory")]
    SharedWrite {
        /// The path up to that component.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Others may look into egressd's own directory.
    #[error("{path} is egressd's own and open to others (mode {mode:03o}): type `chmod 700 {path}`")]
    NotPrivate {
        /// The directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A component could not be opened or made.
    #[error("cannot open or make {path}: egressd must run as root, with its directories below a writable /run")]
    Open {
        /// The path up to that component.
        path: PathBuf,
        /// What the system call said.
        source: Errno,
    },
}

/// A directory of egressd's: root's, mode 0700, below directories in which nobody else can replace a component.
#[derive(Debug)]
pub(super) struct OwnDir {
    pub(super) fd: OwnedFd,
    pub(super) path: PathBuf,
    /// True when it was made just now.
    pub(super) created: bool,
}

/// Opens `path` and checks it and everything above; missing components are made with mode 0700.
pub(super) fn open_own_dir(path: &Path) -> Result<OwnDir, PathError> {
    let mut at = PathBuf::from("/");
    let mut fd = open("/", O_DIR, Mode::empty()).map_err(|source| PathError::Open { path: at.clone(), source })?;
    let mut created = false;
    check_above(&fd, &at)?;
    let mut components = path.components().peekable();
    if components.next() != Some(Component::RootDir) {
        return Err(PathError::NotAbsolute { path: path.into() });
    }
    while let Some(component) = components.next() {
        let Component::Normal(name) = component else {
            return Err(PathError::NotAbsolute { path: path.into() });
        };
        at.push(name);
        (fd, created) = step(&fd, name, &at)?;
        if components.peek().is_some() {
            check_above(&fd, &at)?;
        }
    }
    let stat = check_owner(&fd, &at)?;
    if stat.st_mode & 0o077 != 0 {
        return Err(PathError::NotPrivate { path: at, mode: stat.st_mode & 0o7777 });
    }
    Ok(OwnDir { fd, path: at, created })
}

/// Never follows a link, so what is checked is what is used.
pub(super) const O_DIR: OFlag =
    OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

fn step(parent: &OwnedFd, name: &OsStr, at: &Path) -> Result<(OwnedFd, bool), PathError> {
    let made = match fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        // Somebody who makes it between the look and mkdir is caught by the check of its owner.
        Err(Errno::ENOENT) => match mkdirat(parent, name, PRIVATE) {
            Ok(()) => true,
            Err(Errno::EEXIST) => false,
            Err(source) => return Err(PathError::Open { path: at.into(), source }),
        },
        _ => false,
    };
    match openat(parent, name, O_DIR, Mode::empty()) {
        Ok(fd) => Ok((fd, made)),
        Err(Errno::ELOOP | Errno::ENOTDIR) => Err(PathError::NotADirectory { path: at.into() }),
        Err(source) => Err(PathError::Open { path: at.into(), source }),
    }
}

fn check_owner(fd: &OwnedFd, at: &Path) -> Result<FileStat, PathError> {
    let stat = fstat(fd).map_err(|source| PathError::Open { path: at.into(), source })?;
    if stat.st_uid != 0 {
        return Err(PathError::NotRoots { path: at.into(), uid: stat.st_uid });
    }
    Ok(stat)
}

/// A directory above ours. In a sticky one (/tmp, the distribution's bpffs) nobody renames or removes what is root's, and the
/// next component is checked to be root's.
fn check_above(fd: &OwnedFd, at: &Path) -> Result<(), PathError> {
    let mode = check_owner(fd, at)?.st_mode & 0o7777;
    if mode & SHARED_WRITE != 0 && mode & STICKY == 0 {
        return Err(PathError::SharedWrite { path: at.into(), mode });
    }
    Ok(())
}

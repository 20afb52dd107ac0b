//! The directory in which egressd processes meet: its lock makes them take turns.

use super::own_path::{OwnDir, PathError, open_own_dir};
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg, OFlag, openat},
    sys::stat::Mode,
};
use std::{
    fs::File,
    os::fd::{AsFd, BorrowedFd},
    path::{Path, PathBuf},
};

const LOCK: &str = "lock";

/// Why the state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// It is not root's alone.
    #[error("the state directory cannot be used")]
    Path(#[from] PathError),
    /// Its lock cannot be taken.
    #[error("cannot lock {path}: it must be a plain file of root's on a file system with flock(2)")]
    Lock {
        /// The lock file.
        path: PathBuf,
        /// What the system call said.
        source: Errno,
    },
}

/// A directory of root's with mode 0700.
#[derive(Debug)]
pub struct StateDir(OwnDir);

/// While it lives, no other egressd process (or thread) with the same state directory holds one.
#[derive(Debug)]
#[must_use = "dropping it unlocks"]
pub struct StateLock {
    _file: Flock<File>,
}

impl StateDir {
    /// Opens `path` (absolute, no symbolic links), making it where it is missing.
    pub fn open(path: &Path) -> Result<Self, StateError> {
        Ok(Self(open_own_dir(path)?))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// Waits until it is this caller's turn. The lock ends with the process at the latest, however that dies.
    pub fn lock(&self) -> Result<StateLock, StateError> {
        let failed = |source| StateError::Lock { path: self.0.path.join(LOCK), source };
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mut file = File::from(openat(&self.0.fd, LOCK, flags, Mode::S_IRUSR | Mode::S_IWUSR).map_err(failed)?);
        loop {
            file = match Flock::lock(file, FlockArg::LockExclusive) {
                Ok(file) => return Ok(StateLock { _file: file }),
                Err((file, Errno::EINTR)) => file,
                Err((_, errno)) => return Err(failed(errno)),
            };
        }
    }
}

impl AsFd for StateDir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.fd.as_fd()
    }
}

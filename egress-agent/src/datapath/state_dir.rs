//! The directory in which egressd processes meet: its lock makes them take turns.

use super::own_path::{OwnDir, PathError, open_own_dir};
use nix::{
    errno::Errno,
    fcntl::{AtFlags, Flock, FlockArg, OFlag, openat},
    sys::stat::{Mode, fstat, fstatat},
    unistd::unlink,
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
    file: Flock<File>,
    path: PathBuf,
}

impl StateLock {
    /// Takes the lock's file away with the lock: for the last one in the directory. Whoever waits for it makes a new one.
    pub fn remove(self) -> Result<(), StateError> {
        let Self { file, path } = self;
        let removed = unlink(&path);
        drop(file);
        match removed {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(source) => Err(StateError::Lock { path, source }),
        }
    }
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
        let path = self.0.path.join(LOCK);
        loop {
            let file = File::from(openat(&self.0.fd, LOCK, flags, Mode::S_IRUSR | Mode::S_IWUSR).map_err(failed)?);
            let file = match Flock::lock(file, FlockArg::LockExclusive) {
                Ok(file) => file,
                Err((_, Errno::EINTR)) => continue,
                Err((_, errno)) => return Err(failed(errno)),
            };
            // The one before may have taken the file away while we waited for it: then another stands in its place.
            let ours = fstat(&*file).map_err(failed)?;
            match fstatat(&self.0.fd, LOCK, AtFlags::AT_SYMLINK_NOFOLLOW) {
                Ok(there) if (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino) => {
                    return Ok(StateLock { file, path });
                }
                Ok(_) | Err(Errno::ENOENT) => {}
                Err(errno) => return Err(failed(errno)),
            }
        }
    }
}

impl AsFd for StateDir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.fd.as_fd()
    }
}

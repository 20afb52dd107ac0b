//! Where links and maps are pinned: a bpffs of egressd's own, with a directory for each owner of pins.
//!
//! Whether egressd mounted it stands in the mount itself (its source), so no process needs another's memory to clean up.

use super::{
    own_path::{O_DIR, OwnDir, PRIVATE, PathError, open_own_dir},
    state_dir::StateLock,
};
use crate::mountinfo;
use nix::{
    dir::{Dir, Type},
    errno::Errno,
    fcntl::openat,
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::{
        stat::{Mode, mkdirat, stat},
        statfs::{BPF_FS_MAGIC, fstatfs},
        statvfs::{FsFlags, fstatvfs},
    },
    unistd::{UnlinkatFlags, unlinkat},
};
use std::{
    ffi::{OsStr, OsString},
    fs, io,
    os::{fd::OwnedFd, unix::ffi::OsStrExt as _},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

/// Mount source of a bpffs that egressd mounted on a directory that was there.
const SOURCE: &str = "egressd";
/// Mount source of one whose directory egressd made, and which goes with it.
const SOURCE_WITH_DIR: &str = "egressd-dir";
/// The first mount namespace's inode where it is fixed (6.18, `include/uapi/linux/nsfs.h`); other namespaces' are larger. It
/// answers where a security module hides PID 1.
const MNT_NS_INIT_INO: u64 = 0xefff_fff8;
const OWNER_NAME_AT_MOST: usize = 64;

/// Why pins cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// The directory is not root's alone.
    #[error("the pin directory cannot be used")]
    Path(#[from] PathError),
    /// Only root of the initial user namespace may mount.
    #[error(
        "mounting a bpffs on {path} needs CAP_SYS_ADMIN: run egressd as root, or type `mount -t bpf -o mode=700 bpf {path}` before"
    )]
    MountPermission {
        /// The directory.
        path: PathBuf,
    },
    /// Mounting failed otherwise.
    #[error("cannot mount a bpffs on {path}: the kernel needs CONFIG_BPF_SYSCALL")]
    Mount {
        /// The directory.
        path: PathBuf,
        /// What the system call said.
        source: Errno,
    },
    /// Nothing can be pinned.
    #[error("the bpffs on {path} is read-only: type `mount -o remount,rw {path}`")]
    ReadOnly {
        /// The directory.
        path: PathBuf,
    },
    /// The mount table cannot be read.
    #[error("cannot read {}: mount /proc", mountinfo::TABLE)]
    Mounts(#[source] io::Error),
    /// Our mount namespace cannot be compared with PID 1's.
    #[error("cannot compare {path} with PID 1's: this needs root and a mounted /proc")]
    MountNamespace {
        /// The file that could not be read.
        path: &'static str,
        /// What the system call said.
        source: Errno,
    },
    /// bpffs reserves dots, and a slash would leave the directory.
    #[error("{name:?} cannot name an owner of pins: use 1 to 64 letters, digits, `-` and `_`")]
    OwnerName {
        /// The name.
        name: String,
    },
    /// Somebody has that name.
    #[error("{path} exists: another egressd owns it, or one left it behind (`egressd status` shows whose it is)")]
    OwnerExists {
        /// The owner's directory.
        path: PathBuf,
    },
    /// A file or directory below could not be made, read or removed.
    #[error("cannot {action} {path}")]
    Entry {
        /// make, open, read or remove.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the system call said.
        source: Errno,
    },
}

/// True when this process sees the mounts of PID 1. A bpffs that is mounted in a transient mount namespace (`ip netns exec`
/// and `unshare -m` make one) dies with it, and the pins with the bpffs.
pub fn is_init_mount_namespace() -> Result<bool, PinError> {
    let id = |path| -> Result<_, PinError> {
        let stat = stat(path).map_err(|source| PinError::MountNamespace { path, source })?;
        Ok((stat.st_dev, stat.st_ino))
    };
    let own = id("/proc/thread-self/ns/mnt")?;
    Ok(own.1 == MNT_NS_INIT_INO || own == id("/proc/1/ns/mnt")?)
}

/// egressd's bpffs, ready to pin in.
#[derive(Debug)]
pub struct PinRoot {
    dir: OwnDir,
}

impl PinRoot {
    /// Opens the bpffs on `path` (absolute, no symbolic links), making the directory and mounting a bpffs with mode 0700
    /// where they are missing. A directory inside a bpffs is taken as it is.
    pub fn open(path: &Path, _turn: &StateLock) -> Result<Self, PinError> {
        let mut dir = open_own_dir(path)?;
        if !is_bpffs(&dir)? {
            if let Err(error) = mount_bpffs(&dir) {
                remove_if_made(&dir);
                return Err(error);
            }
            // The descriptor is of the directory below the mount.
            dir = OwnDir { created: dir.created, ..open_own_dir(path)? };
        }
        let flags = fstatvfs(&dir.fd).map_err(|source| entry("read", &dir.path, source))?.flags();
        if flags.contains(FsFlags::ST_RDONLY) {
            return Err(PinError::ReadOnly { path: dir.path });
        }
        Ok(Self { dir })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.dir.path
    }

    /// Makes the directory of one owner of pins (mode 0700). `name` is 1 to 64 letters, digits, `-` and `_`.
    pub fn create_owner_dir(&self, name: &str) -> Result<PathBuf, PinError> {
        let path = self.owner_path(name)?;
        match mkdirat(&self.dir.fd, name, PRIVATE) {
            Ok(()) => Ok(path),
            Err(Errno::EEXIST) => Err(PinError::OwnerExists { path }),
            Err(source) => Err(entry("make", &path, source)),
        }
    }

    /// The directory of an owner that is there, None where it is not.
    pub fn owner_dir(&self, name: &str) -> Result<Option<PathBuf>, PinError> {
        let path = self.owner_path(name)?;
        match openat(&self.dir.fd, name, O_DIR, Mode::empty()) {
            Ok(_) => Ok(Some(path)),
            Err(Errno::ENOENT) => Ok(None),
            Err(source) => Err(entry("open", &path, source)),
        }
    }

    /// Unpins everything of one owner and removes its directory, if it is there. What was pinned lives on while a process
    /// holds it.
    pub fn remove_owner_dir(&self, name: &str) -> Result<(), PinError> {
        let path = self.owner_path(name)?;
        match remove_tree(&self.dir.fd, OsStr::new(name)) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(source) => Err(entry("remove", &path, source)),
        }
    }

    /// The names of all owners, sorted.
    pub fn owners(&self) -> Result<Vec<String>, PinError> {
        let dirs = self.entries()?.into_iter().filter(|(_, kind)| *kind == Some(Type::Directory));
        let mut names: Vec<_> = dirs.map(|(name, _)| name.to_string_lossy().into_owned()).collect();
        names.sort_unstable();
        Ok(names)
    }

    /// Unmounts the bpffs and removes the directory, where egressd made them and nobody has pins there. True when the mount is
    /// gone.
    pub fn release(self, _turn: &StateLock) -> Result<bool, PinError> {
        let path = self.dir.path.clone();
        // The kernel itself puts files with a dot there, which nobody else can (`bpf_lookup` in kernel/bpf/inode.c).
        let empty = self.entries()?.iter().all(|(name, _)| name.as_bytes().contains(&b'.'));
        let source = mounted_on(mountinfo::mounts().map_err(PinError::Mounts)?, &path).unwrap_or_default();
        if !empty || ![SOURCE, SOURCE_WITH_DIR].map(str::as_bytes).contains(&source.as_slice()) {
            return Ok(false);
        }
        // Our own descriptor would keep the mount busy.
        drop(self);
        // A thread of ours that starts a program has copies of our descriptors between fork and exec.
        let mut attempts = 0..10;
        loop {
            match umount2(&path, MntFlags::UMOUNT_NOFOLLOW) {
                Ok(()) => break,
                Err(Errno::EBUSY) if attempts.next().is_some() => thread::sleep(Duration::from_millis(3)),
                Err(Errno::EBUSY) => return Ok(false),
                Err(source) => return Err(entry("unmount", &path, source)),
            }
        }
        if source == SOURCE_WITH_DIR.as_bytes() {
            fs::remove_dir(&path).map_err(|error| entry("remove", &path, errno(&error)))?;
        }
        Ok(true)
    }

    fn entries(&self) -> Result<Vec<Entry>, PinError> {
        entries(&self.dir.fd).map_err(|source| entry("read", &self.dir.path, source))
    }

    fn owner_path(&self, name: &str) -> Result<PathBuf, PinError> {
        let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
        if name.is_empty() || name.len() > OWNER_NAME_AT_MOST || !plain {
            return Err(PinError::OwnerName { name: name.into() });
        }
        Ok(self.dir.path.join(name))
    }
}

fn is_bpffs(dir: &OwnDir) -> Result<bool, PinError> {
    fstatfs(&dir.fd)
        .map(|statfs| statfs.filesystem_type() == BPF_FS_MAGIC)
        .map_err(|source| entry("read", &dir.path, source))
}

fn mount_bpffs(dir: &OwnDir) -> Result<(), PinError> {
    let source = if dir.created { SOURCE_WITH_DIR } else { SOURCE };
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    // The path was checked component by component: nobody but root can have changed it since.
    mount(Some(source), &dir.path, Some("bpf"), flags, Some("mode=700")).map_err(|source| match source {
        Errno::EPERM | Errno::EACCES => PinError::MountPermission { path: dir.path.clone() },
        source => PinError::Mount { path: dir.path.clone(), source },
    })
}

/// Leaves nothing behind when there will be no mount. A failure hides no error: the caller has one already.
fn remove_if_made(dir: &OwnDir) {
    if dir.created {
        fs::remove_dir(&dir.path).ok();
    }
}

/// Source of the bpffs that was mounted last on `path`.
fn mounted_on(table: Vec<mountinfo::Mount>, path: &Path) -> Option<Vec<u8>> {
    let last = table.into_iter().rfind(|mount| mount.point == path);
    last.filter(|mount| mount.kind == b"bpf").map(|mount| mount.source)
}

fn entry(action: &'static str, path: &Path, source: Errno) -> PinError {
    PinError::Entry { action, path: path.into(), source }
}

fn errno(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw)
}

/// Name and kind.
type Entry = (OsString, Option<Type>);

/// All entries but `.` and `..`.
fn entries(dir: &OwnedFd) -> Result<Vec<Entry>, Errno> {
    let mut dir = Dir::openat(dir, ".", O_DIR, Mode::empty())?;
    let all = dir.iter().map(|entry| {
        let entry = entry?;
        Ok((OsStr::from_bytes(entry.file_name().to_bytes()).to_owned(), entry.file_type()))
    });
    all.filter(|entry| !matches!(entry, Ok((name, _)) if name == "." || name == "..")).collect()
}

fn remove_tree(parent: &OwnedFd, name: &OsStr) -> Result<(), Errno> {
    let dir = openat(parent, name, O_DIR, Mode::empty())?;
    for (name, kind) in entries(&dir)? {
        match kind {
            Some(Type::Directory) => remove_tree(&dir, &name)?,
            _ => unlinkat(&dir, name.as_os_str(), UnlinkatFlags::NoRemoveDir)?,
        }
    }
    unlinkat(parent, name, UnlinkatFlags::RemoveDir)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"25 23 0:6 / /dev rw,nosuid - devtmpfs devtmpfs rw
44 23 0:33 / /run/egressd/bpf rw,nosuid shared:7 - bpf egressd-dir rw,mode=700
45 23 0:34 / /run/my\\040pins rw,nosuid - bpf egressd rw,mode=700
46 23 0:35 / /sys/fs/bpf rw - bpf bpf rw
47 23 0:36 / /run/over rw - bpf egressd rw
48 23 0:37 / /run/over rw - tmpfs tmpfs rw
49 23
";

    #[test]
    fn the_mount_on_top_says_whose_it_is() {
        let source = |path: &str| {
            mounted_on(mountinfo::parse(TABLE), Path::new(path)).map(|source| String::from_utf8(source).unwrap())
        };
        assert_eq!(source("/run/egressd/bpf").as_deref(), Some(SOURCE_WITH_DIR));
        assert_eq!(source("/run/my pins").as_deref(), Some(SOURCE));
        assert_eq!(source("/sys/fs/bpf").as_deref(), Some("bpf"));
        for other in ["/dev", "/run/egressd", "/run/over", "/", ""] {
            assert_eq!(source(other), None, "{other}");
        }
    }
}

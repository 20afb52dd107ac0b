//! `--summary FILE`, opened with the rights of CMD's user: egressd may be root, and the path may lead anywhere.

use anyhow::{Context as _, Result};
use egress_agent::run::Identity;
use nix::unistd::{Gid, Uid, setfsgid, setfsuid};
use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

/// Creates or empties the file. A symbolic link in its place is refused.
pub(super) fn create(path: &Path, identity: &Identity) -> Result<File> {
    let (uid, gid) = (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid));
    let opened = std::thread::scope(|scope| scope.spawn(|| open_as(path, uid, gid)).join());
    // A panic in there is a defect of ours, and no file is the safe reading of it.
    let opened = opened.unwrap_or_else(|_panic| Err(io::Error::other("the thread that opens it panicked")));
    opened.with_context(|| format!("--summary {}: cannot write it as uid {uid}", path.display()))
}

/// For a thread of its own: file system ids belong to the thread, and leaving uid 0 takes its file capabilities along.
fn open_as(path: &Path, uid: Uid, gid: Gid) -> io::Result<File> {
    if Uid::effective().is_root() && !uid.is_root() {
        // SAFETY: no pointer is read for a list of length 0. The raw call changes this thread alone; the C library's would
        // change all.
        if unsafe { libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>()) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    setfsgid(gid);
    setfsuid(uid);
    // The calls return the former id whether they worked or not, so asking again is how to know (setfsuid(2)).
    if setfsgid(gid) != gid || setfsuid(uid) != uid {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    // Non-blocking, because opening a FIFO would wait for its reader.
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC;
    OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).custom_flags(flags).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{io::Write as _, os::unix::fs::symlink};

    fn own() -> Identity {
        let (uid, gid) = (Uid::effective().as_raw(), Gid::effective().as_raw());
        Identity { uid, gid, groups: Vec::new(), home: "/".into(), name: "own".into(), switched: false }
    }

    #[test]
    fn a_plain_file_is_made_and_a_link_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (plain, link) = (dir.path().join("plain"), dir.path().join("link"));
        create(&plain, &own()).unwrap().write_all(b"x").unwrap();
        assert_eq!(std::fs::read(&plain).unwrap(), b"x");
        symlink(&plain, &link).unwrap();
        let error = create(&link, &own()).unwrap_err();
        assert!(error.to_string().contains("--summary"), "{error}");
        assert_eq!(std::fs::read(&plain).unwrap(), b"x", "nothing went through the link");
    }
}

//! A mount namespace in which the doors out of the sandbox are covered.

use super::{Cover, Failure, Mounts, Step, check, integers};
use std::{
    ffi::{CStr, c_long, c_ulong},
    ptr,
};

/// Nothing in a cover is a program, a device or another user's right.
const INERT: c_ulong = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;

/// Makes the namespace and what is in it, and enters the caller's working directory again.
pub(super) fn apply(mounts: &Mounts) -> Result<(), Failure> {
    integers(Step::Mounts, libc::SYS_unshare, [libc::CLONE_NEWNS.into(), 0, 0, 0, 0])?;
    // Nothing goes back to the host, and nothing that the host mounts later comes here: nobody would cover it.
    mount(None, c"/", None, libc::MS_REC | libc::MS_PRIVATE, None)?;
    for cover in &mounts.covers {
        match lay(cover) {
            // It is gone, or hidden by another mount: it leads nowhere.
            Err(Failure { errno: libc::ENOENT | libc::ENOTDIR, .. }) if *cover != Cover::Proc => {}
            laid => laid?,
        }
    }
    match &mounts.cwd {
        Some(cwd) => enter(cwd),
        None => Ok(()),
    }
}

/// Makes a directory the working directory.
pub(super) fn enter(directory: &CStr) -> Result<(), Failure> {
    // SAFETY: a C string that outlives the call.
    check(Step::Directory, unsafe { libc::syscall(libc::SYS_chdir, directory.as_ptr()) }).map(drop)
}

fn lay(cover: &Cover) -> Result<(), Failure> {
    match cover {
        Cover::Proc => mount(Some(c"proc"), c"/proc", Some(c"proc"), INERT, None),
        Cover::ReadOnly { path, mounted } => {
            if !mounted {
                mount(Some(path), path, None, libc::MS_BIND | libc::MS_REC, None)?;
            }
            match close(path) {
                // No mount is to be seen at that path.
                Err(Failure { errno: libc::EINVAL, .. }) if *mounted => Ok(()),
                closed => closed,
            }
        }
        Cover::Directory { path, options, writable } => {
            let flags = if *writable { INERT } else { INERT | libc::MS_RDONLY };
            mount(Some(c"egressd"), path, Some(c"tmpfs"), flags, Some(options))
        }
        Cover::File(path) => mount(Some(c"/dev/null"), path, None, libc::MS_BIND, None),
    }
}

/// Makes a mount read-only and leaves its other attributes as they are (mount_setattr(2), Linux 5.12).
fn close(path: &CStr) -> Result<(), Failure> {
    let attributes = libc::mount_attr { attr_set: libc::MOUNT_ATTR_RDONLY, attr_clr: 0, propagation: 0, userns_fd: 0 };
    let size = size_of::<libc::mount_attr>();
    let here = c_long::from(libc::AT_FDCWD);
    // SAFETY: a C string and a local of the given size, both of which outlive the call.
    check(Step::Mounts, unsafe {
        libc::syscall(libc::SYS_mount_setattr, here, path.as_ptr(), 0_usize, &raw const attributes, size)
    })
    .map(drop)
}

fn mount(
    source: Option<&CStr>,
    target: &CStr,
    kind: Option<&CStr>,
    flags: c_ulong,
    options: Option<&CStr>,
) -> Result<(), Failure> {
    let pointer = |text: Option<&CStr>| text.map_or(ptr::null(), CStr::as_ptr);
    // SAFETY: C strings that outlive the call, or null where the kernel takes none.
    check(Step::Mounts, unsafe {
        libc::syscall(libc::SYS_mount, pointer(source), target.as_ptr(), pointer(kind), flags, pointer(options))
    })
    .map(drop)
}

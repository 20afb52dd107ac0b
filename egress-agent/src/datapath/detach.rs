//! Taking links off that others may hold: the end that `egressd detach` asks for.

use aya::programs::links::{FdLink, LinkError, PinnedLink};
use std::{
    fs, io,
    os::fd::{AsRawFd as _, OwnedFd},
    path::{Path, PathBuf},
};

/// A link could not be taken off.
#[derive(Debug, thiserror::Error)]
pub enum DetachError {
    /// The pins could not be listed.
    #[error("cannot list the pins in {}", path.display())]
    List {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A pin is no link, or cannot be opened.
    #[error("cannot open the pinned link {}", path.display())]
    Open {
        /// The pin.
        path: PathBuf,
        /// Why.
        #[source]
        source: LinkError,
    },
    /// The kernel refused.
    #[error("cannot detach the pinned link {}", path.display())]
    Detach {
        /// The pin.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// What is pinned in `pins`, by name, opened.
pub(crate) fn pinned_links(pins: &Path) -> Result<Vec<(String, FdLink)>, DetachError> {
    let list = |source| DetachError::List { path: pins.into(), source };
    let mut links = Vec::new();
    for entry in fs::read_dir(pins).map_err(list)? {
        let entry = entry.map_err(list)?;
        let path = entry.path();
        let link = PinnedLink::from_pin(&path).map_err(|source| DetachError::Open { path, source })?;
        links.push((entry.file_name().to_string_lossy().into_owned(), link.into()));
    }
    links.sort_by(|(left, _), (right, _)| left.cmp(right));
    Ok(links)
}

/// Takes a pinned link off its cgroup or device at once, whoever else holds it (BPF_LINK_DETACH, 5.9).
pub(crate) fn detach_link(path: &Path) -> Result<(), DetachError> {
    const BPF_OBJ_GET: libc::c_int = 7;
    const BPF_LINK_DETACH: libc::c_int = 34;
    let failed = |source| DetachError::Detach { path: path.into(), source };
    let name = std::ffi::CString::new(std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str()))
        .map_err(|error| failed(error.into()))?;
    // union bpf_attr: pathname, bpf_fd, file_flags.
    let mut get = [name.as_ptr() as u64, 0, 0];
    // SAFETY: the attribute lives through the call, and so does the string that it points to.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, BPF_OBJ_GET, get.as_mut_ptr(), size_of_val(&get)) };
    let Ok(fd @ 0..) = i32::try_from(fd) else { return Err(failed(io::Error::last_os_error())) };
    // SAFETY: the call just made this descriptor, and nobody else has it.
    let fd: OwnedFd = unsafe { std::os::fd::FromRawFd::from_raw_fd(fd) };
    let mut detach = [u32::try_from(fd.as_raw_fd()).unwrap_or(u32::MAX)];
    // SAFETY: the attribute lives through the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, BPF_LINK_DETACH, detach.as_mut_ptr(), size_of_val(&detach)) };
    if result == 0 { Ok(()) } else { Err(failed(io::Error::last_os_error())) }
}

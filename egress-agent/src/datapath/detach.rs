//! Taking links off that others may hold: the end that `egressd detach` asks for.

use std::{
    ffi::CString,
    fs, io,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
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
        source: io::Error,
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

/// What is pinned in `pins`, by name, and whether it still is on its cgroup or device: a link that was detached, or whose
/// target is gone, names no target any more.
pub(crate) fn pinned_links(pins: &Path) -> Result<Vec<(String, bool)>, DetachError> {
    let list = |source| DetachError::List { path: pins.into(), source };
    let mut links = Vec::new();
    for entry in fs::read_dir(pins).map_err(list)? {
        let entry = entry.map_err(list)?;
        let path = entry.path();
        let attached = is_attached(&path).map_err(|source| DetachError::Open { path, source })?;
        links.push((entry.file_name().to_string_lossy().into_owned(), attached));
    }
    links.sort();
    Ok(links)
}

/// Takes a pinned link off its cgroup or device at once, whoever else holds it (BPF_LINK_DETACH, 5.9).
pub(crate) fn detach_link(path: &Path) -> Result<(), DetachError> {
    const BPF_LINK_DETACH: libc::c_int = 34;
    let failed = |source| DetachError::Detach { path: path.into(), source };
    let link = open(path).map_err(failed)?;
    let mut detach = [link.as_raw_fd().cast_unsigned()];
    bpf(BPF_LINK_DETACH, &mut detach).map(drop).map_err(failed)
}

/// True while the link is on its cgroup or device: the kernel clears the target's id where it no longer is
/// (`bpf_cgroup_link_fill_link_info`, `tcx_link_fill_info`).
fn is_attached(path: &Path) -> io::Result<bool> {
    const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
    /// BPF_LINK_TYPE_TCX
    const TCX: u32 = 11;
    let link = open(path)?;
    // struct bpf_link_info: type, id, prog_id, padding, then a union: cgroup_id (u64), or ifindex (u32) and attach type.
    let mut info = [0_u32; 16];
    let pointer = info.as_mut_ptr() as u64;
    // union bpf_attr: bpf_fd, info_len, info.
    let words = [u64::from(link.as_raw_fd().cast_unsigned()) | (size_of_val(&info) as u64) << 32, pointer];
    let mut attribute = words;
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attribute)?;
    Ok(if info[0] == TCX { info[4] != 0 } else { info[4] != 0 || info[5] != 0 })
}

fn open(path: &Path) -> io::Result<OwnedFd> {
    const BPF_OBJ_GET: libc::c_int = 7;
    let name = CString::new(path.as_os_str().as_bytes())?;
    // union bpf_attr: pathname, bpf_fd, file_flags.
    let mut attribute = [name.as_ptr() as u64, 0, 0];
    let fd = bpf(BPF_OBJ_GET, &mut attribute)?;
    // SAFETY: the call just made this descriptor, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn bpf<T>(command: libc::c_int, attribute: &mut T) -> io::Result<i32> {
    // SAFETY: the attribute, and what it points to, lives through the call, and the kernel takes no more of it than its size.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attribute), size_of::<T>()) };
    match i32::try_from(result) {
        Ok(result @ 0..) => Ok(result),
        _ => Err(io::Error::last_os_error()),
    }
}

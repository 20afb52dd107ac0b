//! Taking links off that others may hold: the end that `egressd detach` asks for.

use super::bpf::{Bpf, bpf};
use std::{
    ffi::CString,
    fs, io,
    os::{
        fd::{AsRawFd as _, OwnedFd},
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

/// A pinned link.
pub(crate) struct Pinned {
    pub(crate) name: String,
    /// What it is on; none where it was detached, or its cgroup or device is gone.
    pub(crate) target: Option<Target>,
}

/// A link that is on something, and the program that it puts there.
pub(crate) struct Target {
    pub(crate) program: u32,
}

/// What is pinned in `pins`, by name.
pub(crate) fn pinned_links(pins: &Path) -> Result<Vec<Pinned>, DetachError> {
    let list = |source| DetachError::List { path: pins.into(), source };
    let mut links = Vec::new();
    for entry in fs::read_dir(pins).map_err(list)? {
        let entry = entry.map_err(list)?;
        let target = target(&entry.path())?;
        links.push(Pinned { name: entry.file_name().to_string_lossy().into_owned(), target });
    }
    links.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(links)
}

/// Takes a pinned link off its cgroup or device at once, whoever else holds it (BPF_LINK_DETACH, 5.9).
pub(crate) fn detach_link(path: &Path) -> Result<(), DetachError> {
    let failed = |source| DetachError::Detach { path: path.into(), source };
    let link = open(path).map_err(failed)?;
    let mut detach = [link.as_raw_fd().cast_unsigned()];
    bpf(Bpf::LinkDetach, &mut detach).map(drop).map_err(failed)
}

/// What a pinned link is on: the kernel clears the target's id where it no longer is (`bpf_cgroup_link_fill_link_info`,
/// `tcx_link_fill_info`).
pub(crate) fn target(path: &Path) -> Result<Option<Target>, DetachError> {
    /// BPF_LINK_TYPE_TCX
    const TCX: u32 = 11;
    // struct bpf_link_info: type, id, prog_id, padding, then a union: cgroup_id (u64), or ifindex (u32) and attach type.
    let [kind, _, program, _, low, high, ..] =
        link_info(path).map_err(|source| DetachError::Open { path: path.into(), source })?;
    let gone = if kind == TCX { low == 0 } else { low == 0 && high == 0 };
    Ok((!gone).then_some(Target { program }))
}

fn link_info(path: &Path) -> io::Result<[u32; 16]> {
    let link = open(path)?;
    let mut info = [0_u32; 16];
    let pointer = info.as_mut_ptr() as u64;
    // union bpf_attr: bpf_fd, info_len, info.
    let mut attribute = [u64::from(link.as_raw_fd().cast_unsigned()) | (size_of_val(&info) as u64) << 32, pointer];
    bpf(Bpf::ObjInfo, &mut attribute)?;
    Ok(info)
}

fn open(path: &Path) -> io::Result<OwnedFd> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    // union bpf_attr: pathname, bpf_fd, file_flags.
    let mut attribute = [name.as_ptr() as u64, 0, 0];
    Bpf::ObjGet.make(&mut attribute)
}

//! The system call bpf(2), for what aya does not offer.

use bytemuck::Pod;
use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
};

/// Commands, as `enum bpf_cmd` numbers them (`include/uapi/linux/bpf.h`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(i32)]
pub(super) enum Bpf {
    MapCreate = 0,
    MapUpdate = 2,
    ProgLoad = 5,
    ObjPin = 6,
    ObjGet = 7,
    ProgTestRun = 10,
    ProgGetFdById = 13,
    ObjInfo = 15,
    MapUpdateBatch = 26,
    LinkCreate = 28,
    LinkDetach = 34,
}

impl Bpf {
    /// Runs a command that makes a descriptor: of a map, a program, a link, or a pinned one of them.
    pub(super) fn make<T>(self, attribute: &mut T) -> io::Result<OwnedFd> {
        let fd = bpf(self, attribute)?;
        // SAFETY: the commands that are called this way return a new descriptor, which nobody else has.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

/// Runs a command. `attribute` has the layout of the command's part of `union bpf_attr`, and what it points to is alive.
pub(super) fn bpf<T>(command: Bpf, attribute: &mut T) -> io::Result<i32> {
    // SAFETY: the attribute, and what it points to, lives through the call, and the kernel takes no more of it than its size.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command as i32, std::ptr::from_mut(attribute), size_of::<T>()) };
    match i32::try_from(result) {
        Ok(result @ 0..) => Ok(result),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Writes entries of a map that holds keys and values of these types by one call (BPF_MAP_UPDATE_BATCH, 5.6 for hashes).
///
/// # Errors
/// The kernel stopped at an entry (`generic_map_update_batch` in kernel/bpf/syscall.c): those before it are written, and
/// nothing is said of which one it was. EINVAL and ENOTSUPP where it does not know the call.
pub(super) fn update_batch<K: Pod, V: Pod>(map: BorrowedFd<'_>, entries: &[(K, V)]) -> io::Result<()> {
    let (keys, values): (Vec<K>, Vec<V>) = entries.iter().copied().unzip();
    // union bpf_attr: in_batch, out_batch, keys, values, then count and map_fd (u32 each), elem_flags, flags.
    let count_and_map = u64::from(map.as_raw_fd().cast_unsigned()) << 32 | entries.len() as u64 & 0xffff_ffff;
    let mut attribute = [0, 0, keys.as_ptr() as u64, values.as_ptr() as u64, count_and_map, 0, 0];
    bpf(Bpf::MapUpdateBatch, &mut attribute).map(drop)
}

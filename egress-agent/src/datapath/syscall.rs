//! bpf(2), where aya does not call it.

use bytemuck::Pod;
use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd},
};

/// Calls it with an attribute that begins as `union bpf_attr` does for the command.
pub(super) fn bpf<T>(command: libc::c_int, attribute: &mut T) -> io::Result<i32> {
    // SAFETY: the attribute, and what it points to, lives through the call, and the kernel takes no more of it than its size.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attribute), size_of::<T>()) };
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
    const BPF_MAP_UPDATE_BATCH: libc::c_int = 26;
    let (keys, values): (Vec<K>, Vec<V>) = entries.iter().copied().unzip();
    // union bpf_attr: in_batch, out_batch, keys, values, then count and map_fd (u32 each), elem_flags, flags.
    let count_and_map = u64::from(map.as_raw_fd().cast_unsigned()) << 32 | entries.len() as u64 & 0xffff_ffff;
    let mut attribute = [0, 0, keys.as_ptr() as u64, values.as_ptr() as u64, count_and_map, 0, 0];
    bpf(BPF_MAP_UPDATE_BATCH, &mut attribute).map(drop)
}

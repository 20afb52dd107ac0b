//! Socket options that identify a socket and are missing from the library.

use bytemuck::Pod;
use nix::errno::Errno;
use std::os::fd::{AsFd, AsRawFd as _};

/// Reads an option of level SOL_SOCKET whose value is a plain number.
pub(super) fn get<T: Pod>(socket: &impl AsFd, name: libc::c_int) -> Result<T, Errno> {
    let mut value = T::zeroed();
    let mut len = size_of::<T>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes to `value`, which is that large and takes any bits, and the length to `len`.
    let done = unsafe {
        libc::getsockopt(socket.as_fd().as_raw_fd(), libc::SOL_SOCKET, name, (&raw mut value).cast(), &raw mut len)
    };
    Errno::result(done).map(|_| value)
}

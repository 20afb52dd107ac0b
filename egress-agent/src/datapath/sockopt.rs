//! What of sockets is missing from the library: options that identify one, and the end of a connection without packets.

use bytemuck::Pod;
use nix::errno::Errno;
use std::{
    io,
    os::fd::{AsFd, AsRawFd as _},
};

/// Takes the peer off a datagram socket; also the port, where its connect had bound it (connect(2), AF_UNSPEC).
pub(crate) fn disconnect(socket: &impl AsFd) -> io::Result<()> {
    let nobody = libc::sockaddr { sa_family: libc::AF_UNSPEC as libc::sa_family_t, sa_data: [0; 14] };
    let len = size_of_val(&nobody) as libc::socklen_t;
    // SAFETY: the kernel reads `len` bytes of the address, which lives through the call.
    let done = unsafe { libc::connect(socket.as_fd().as_raw_fd(), &raw const nobody, len) };
    Ok(Errno::result(done).map(drop)?)
}

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

//! The kernel's event ring, read as it fills.

use super::load::{LoadError, Programs, open_pinned};
use aya::maps::{MapData, MapInfo, RingBuf};
use egress_common::{event::Record, names::map};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd, OwnedFd},
    path::Path,
};

/// Records of denied calls and packets, in the order in which the kernel wrote them.
pub(crate) struct Records(RingBuf<MapData>);

impl Records {
    pub(crate) fn take(programs: &mut Programs) -> Result<Self, LoadError> {
        programs.map(map::EVENTS).map(Self)
    }

    /// The ring that another process pinned, from where its reader was.
    pub(crate) fn open(pins: &Path) -> Result<Self, LoadError> {
        open_pinned(map::EVENTS, &pins.join(map::EVENTS)).map(Self)
    }

    /// What is there now.
    pub(crate) fn drain(&mut self, mut each: impl FnMut(&Record)) {
        while let Some(item) = self.0.next() {
            // A record of another length is of another build; there is none such in a map that we made.
            if let Ok(record) = bytemuck::try_pod_read_unaligned::<Record>(&item) {
                each(&record);
            }
        }
    }

    /// For [`wait`], which does not keep anybody from reading.
    pub(crate) fn descriptor(&self) -> io::Result<OwnedFd> {
        // SAFETY: the ring buffer owns this descriptor for longer than this borrow.
        unsafe { BorrowedFd::borrow_raw(self.0.as_raw_fd()) }.try_clone_to_owned()
    }

    /// The kernel's number of the ring, by which processes tell whether they have the same.
    pub(crate) fn id(pins: &Path) -> Result<u32, LoadError> {
        let failed = |source| LoadError::Map { map: map::EVENTS, source: Box::new(source) };
        Ok(MapInfo::from_pin(pins.join(map::EVENTS)).map_err(failed)?.id())
    }
}

/// Waits for records in the ring, or until `stop` is readable; true in the latter case.
pub(crate) fn wait(ring: BorrowedFd<'_>, stop: BorrowedFd<'_>, timeout: PollTimeout) -> Result<bool, Errno> {
    let mut fds = [PollFd::new(ring, PollFlags::POLLIN), PollFd::new(stop, PollFlags::POLLIN)];
    match poll(&mut fds, timeout) {
        Ok(_) => Ok(fds[1].any().unwrap_or(true)),
        Err(Errno::EINTR) => Ok(false),
        Err(errno) => Err(errno),
    }
}

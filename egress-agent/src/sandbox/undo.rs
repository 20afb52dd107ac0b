//! What goes with a sandbox that came to nothing, and with the last one.

use super::{Directories, error::Error, record::Record};
use crate::datapath::{bpffs::PinRoot, state_dir::StateLock};

/// Takes back what an attach that failed had made.
pub(super) struct Undo<'a> {
    pub(super) directories: &'a Directories,
    pub(super) name: &'a str,
    pub(super) armed: bool,
}

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        if !self.armed {
            return;
        }
        // Nothing runs in the cgroup under this policy yet, so taking its hooks off opens nothing that was closed.
        if let Err(error) = std::fs::remove_dir_all(self.directories.pin.join(self.name)).or_else(ignore_missing) {
            tracing::error!(%error, "pins of {} are left behind; `egressd detach` removes them", self.name);
        }
        if let Err(error) = Record::remove(self.directories, self.name) {
            tracing::error!(%error, "the record of {} is left behind", self.name);
        }
    }
}

fn ignore_missing(error: std::io::Error) -> std::io::Result<()> {
    if error.kind() == std::io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

/// After the last owner: the shared map's pin, the bpffs itself, and the lock.
pub(super) fn end_of_pins(directories: &Directories, root: PinRoot, turn: StateLock) {
    if !root.owners().is_ok_and(|owners| owners.is_empty()) {
        return;
    }
    let ended = std::fs::remove_file(directories.listeners()).or_else(ignore_missing);
    let ended =
        ended.map_err(Error::file(&directories.pin, "remove")).and_then(|()| Ok(root.release(&turn).map(drop)?));
    if let Err(error) = ended.and_then(|()| Ok(turn.remove()?)) {
        tracing::warn!(%error, "something of the last sandbox is left in the state or pin directory");
    }
}

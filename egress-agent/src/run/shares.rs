//! What CMD shares with the host, where it would have its own.

/// `--share`. The default is nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Shares {
    /// Processes.
    pub pids: bool,
    /// Mounts. Then processes as well: the host's `/proc` shows them, and tells nothing of those in a namespace.
    pub mounts: bool,
}

impl Shares {
    /// True where CMD has a pid namespace of its own.
    pub(super) fn own_pids(self) -> bool {
        !self.pids && !self.mounts
    }

    /// True where CMD has a mount namespace of its own.
    pub(super) fn own_mounts(self) -> bool {
        !self.mounts
    }
}

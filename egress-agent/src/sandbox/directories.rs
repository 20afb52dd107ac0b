//! Where egressd keeps things.

use egress_common::names::map;
use std::path::PathBuf;

/// Where egressd keeps what it must find again. Two instances with different directories never meet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Directories {
    /// Events and records of sandboxes.
    pub state: PathBuf,
    /// Pinned links and maps: a bpffs of its own.
    pub pin: PathBuf,
}

impl Default for Directories {
    fn default() -> Self {
        Self { state: "/run/egressd".into(), pin: "/run/egressd/bpf".into() }
    }
}

impl Directories {
    /// The pin of the one map that all owners share.
    pub(super) fn listeners(&self) -> PathBuf {
        self.pin.join(map::LISTENERS)
    }
}

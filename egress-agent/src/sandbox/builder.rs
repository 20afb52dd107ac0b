//! What a sandbox is to be: collected before anything is looked at.

use super::{Directories, live::Sandbox};
use crate::{level::Level, policy::Policy};
use std::path::PathBuf;

/// Collects what a sandbox is made of.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "one for each question that the caller answers")]
pub struct Builder {
    pub(super) policy: Policy,
    pub(super) cgroup: Option<PathBuf>,
    pub(super) netns: Option<PathBuf>,
    pub(super) device: Option<String>,
    pub(super) directories: Directories,
    pub(super) strict: bool,
    pub(super) require: Option<Level>,
    pub(super) raw_sockets: bool,
    pub(super) privileged: bool,
    pub(super) outlives: bool,
    pub(super) tcx: bool,
}

impl Sandbox {
    /// Starts to describe a sandbox.
    pub fn builder(policy: Policy) -> Builder {
        Builder {
            policy,
            cgroup: None,
            netns: None,
            device: None,
            directories: Directories::default(),
            strict: false,
            require: None,
            raw_sockets: false,
            privileged: false,
            outlives: false,
            tcx: true,
        }
    }
}

impl Builder {
    /// The cgroup's directory; below the cgroup v2 mount where it is relative.
    #[must_use]
    pub fn cgroup(mut self, directory: impl Into<PathBuf>) -> Self {
        self.cgroup = Some(directory.into());
        self
    }

    /// Its network namespace: a name of `ip netns`, or a path. Otherwise that of the processes in the cgroup, or egressd's own.
    #[must_use]
    pub fn netns(mut self, name_or_path: impl Into<PathBuf>) -> Self {
        self.netns = Some(name_or_path.into());
        self
    }

    /// The host side of its device, where it is not to be found from the namespace.
    #[must_use]
    pub fn device(mut self, name: impl Into<String>) -> Self {
        self.device = Some(name.into());
        self
    }

    /// Where to keep pins and events.
    #[must_use]
    pub fn dirs(mut self, directories: Directories) -> Self {
        self.directories = directories;
        self
    }

    /// Refuse where the cgroup holds sockets that the hooks cannot judge.
    #[must_use]
    pub fn strict(mut self, strict: bool) -> Self {
        self.strict = strict;
        self
    }

    /// Refuse below this level.
    #[must_use]
    pub fn require(mut self, level: Level) -> Self {
        self.require = Some(level);
        self
    }

    /// The sandbox keeps CAP_NET_RAW: raw sockets may be made where a device judges what they send.
    #[must_use]
    pub fn raw_sockets(mut self, raw_sockets: bool) -> Self {
        self.raw_sockets = raw_sockets;
        self
    }

    /// Code in the sandbox is uid 0 in the host's user namespace, or will be: no level holds for it.
    #[must_use]
    pub fn privileged(mut self, privileged: bool) -> Self {
        self.privileged = privileged;
        self
    }

    /// Refuse where enforcement would end with this process: its mount namespace is a private one, and so are its pins.
    #[must_use]
    pub fn outlives(mut self, outlives: bool) -> Self {
        self.outlives = outlives;
        self
    }

    /// As on a kernel without tcx, for tests of what stands in for it.
    #[doc(hidden)]
    #[must_use]
    pub fn without_tcx(mut self) -> Self {
        self.tcx = false;
        self
    }
}

//! Why the kernel half is not loaded, pinned or found.

use aya::{EbpfError, maps::MapError, pin::PinError, programs::ProgramError};
use std::path::PathBuf;

/// Errors of loading the kernel half.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The build left the kernel half out.
    #[error("this egressd was built without its kernel half (AYA_BUILD_SKIP); build it again without that variable")]
    NoObject,
    /// Maps could not be made.
    #[error("cannot create the BPF maps")]
    Object(#[source] Box<EbpfError>),
    /// The verifier or the kernel refused a program.
    #[error("cannot load the BPF program {program}; egressd needs Linux 5.15 or newer with CONFIG_CGROUP_BPF")]
    Program {
        /// Its name.
        program: String,
        /// What the kernel said.
        #[source]
        source: Box<ProgramError>,
    },
    /// The object lacks a map that the agent knows: two halves of different builds.
    #[error("the BPF object has no {map}; build egressd again")]
    MissingMap {
        /// Its name.
        map: &'static str,
    },
    /// A map is not what the agent expects.
    #[error("the BPF map {map} is not of the expected kind; build egressd again")]
    Map {
        /// Its name.
        map: &'static str,
        /// What differs.
        #[source]
        source: Box<MapError>,
    },
    /// A program could not be pinned.
    #[error("cannot pin the BPF program {program} at {}; is the bpffs there full or read-only?", path.display())]
    PinProgram {
        /// Its name.
        program: String,
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: PinError,
    },
    /// A pinned program cannot be opened.
    #[error("cannot open the pinned BPF program {}", path.display())]
    PinnedProgram {
        /// The pin.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: Box<ProgramError>,
    },
    /// A map could not be pinned.
    #[error("cannot pin the BPF object {map} at {}; is the bpffs there full or read-only?", path.display())]
    Pin {
        /// Its name.
        map: &'static str,
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: PinError,
    },
}

impl LoadError {
    /// True where the kernel said EPERM: a capability is missing, or BPF is locked down.
    pub fn is_permission(&self) -> bool {
        let mut source: Option<&(dyn std::error::Error + 'static)> = Some(self);
        while let Some(error) = source {
            if let Some(io) = error.downcast_ref::<std::io::Error>()
                && io.kind() == std::io::ErrorKind::PermissionDenied
            {
                return true;
            }
            source = error.source();
        }
        false
    }
}

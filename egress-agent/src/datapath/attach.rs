//! Hooks onto cgroups and devices, always as links: a link is pinned, so it outlives us, and nobody with a mere descriptor
//! of the cgroup can take it off (attached the old way, an unprivileged process can: `kernel/bpf/cgroup.c`).

use super::{foreign, load::Programs, tables::Tables};
use aya::{
    maps::MapError,
    pin::PinError as PinLinkError,
    programs::{
        CgroupAttachMode, CgroupSkbAttachType, Program, ProgramError,
        links::{FdLink, LinkError, PinnedLink},
    },
};
use egress_common::sandbox::Identity;
use std::{
    io,
    os::fd::BorrowedFd,
    path::{Path, PathBuf},
};

/// Errors of putting hooks in place.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The kernel refused a hook.
    #[error("cannot attach {hook}; `egressd doctor` shows what this kernel can do")]
    Hook {
        /// The hook.
        hook: &'static str,
        /// What the kernel said.
        #[source]
        source: Box<ProgramError>,
    },
    /// A link could not be pinned.
    #[error("cannot pin the link of {hook} at {}; is the bpffs there full or read-only?", path.display())]
    Pin {
        /// The hook.
        hook: &'static str,
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: PinLinkError,
    },
    /// A pinned link cannot be opened.
    #[error("cannot open the pinned link {}", path.display())]
    Open {
        /// The pin.
        path: PathBuf,
        /// Why.
        #[source]
        source: LinkError,
    },
    /// The identity of a hook could not be written.
    #[error("cannot write the sandbox's identity for {hook}: is the cgroup gone?")]
    Identity {
        /// The hook.
        hook: &'static str,
        /// Why.
        #[source]
        source: Box<MapError>,
    },
    /// A directory for pins could not be made.
    #[error("cannot make {}", path.display())]
    Directory {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A filter of somebody else's is asked before ours could be.
    #[error(
        "another filter stands where egressd's must be first: `tc filter show dev DEVICE {side}` shows it (ifindex {ifindex}); add it again with `pref 2` or more"
    )]
    NotFirst {
        /// Of the device.
        ifindex: u32,
        /// ingress or egress.
        side: &'static str,
    },
    /// Filters of a device cannot be listed, made or removed.
    #[error("cannot {action} the filters of the device with ifindex {ifindex}: `tc filter show` needs to work on it")]
    Filter {
        /// list, make or remove.
        action: &'static str,
        /// Of the device.
        ifindex: u32,
        /// What the kernel said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Asked for by a test of this very path.
    #[error("attach of {hook} fails because EGRESSD_FAULT says so")]
    Fault {
        /// The hook.
        hook: &'static str,
    },
}

/// A hook of a cgroup: program name, which is the pin's name too, and `enum bpf_attach_type` (`include/uapi/linux/bpf.h`).
pub(crate) struct CgroupHook {
    pub(crate) name: &'static str,
    pub(crate) attach_type: u32,
}

/// All of them, the boundary first: from the first link on, the cgroup is closed.
pub(crate) const CGROUP_HOOKS: [CgroupHook; 14] = [
    CgroupHook { name: "egress", attach_type: 1 },
    CgroupHook { name: "ingress", attach_type: 0 },
    CgroupHook { name: "sock_create", attach_type: 2 },
    CgroupHook { name: "connect4", attach_type: 10 },
    CgroupHook { name: "connect6", attach_type: 11 },
    CgroupHook { name: "sendmsg4", attach_type: 14 },
    CgroupHook { name: "sendmsg6", attach_type: 15 },
    CgroupHook { name: "recvmsg4", attach_type: 19 },
    CgroupHook { name: "recvmsg6", attach_type: 20 },
    CgroupHook { name: "getpeername4", attach_type: 29 },
    CgroupHook { name: "getpeername6", attach_type: 30 },
    CgroupHook { name: "bind4", attach_type: 8 },
    CgroupHook { name: "bind6", attach_type: 9 },
    CgroupHook { name: "sock_ops", attach_type: 3 },
];

/// A hook in place. Dropping it closes our descriptor; the pin keeps the hook.
pub(crate) struct Hooked {
    pub(crate) name: String,
    _link: FdLink,
}

/// Attaches every cgroup hook, pins it below `pins`, and gives the cgroup its identity. Everything is denied from the first
/// link until the identity's slot is filled.
pub(crate) fn cgroup(
    programs: &mut Programs,
    tables: &Tables,
    cgroup: BorrowedFd<'_>,
    cgroup_id: u64,
    identity: Identity,
    pins: &Path,
    fault: Option<&str>,
) -> Result<Vec<Hooked>, AttachError> {
    let mut hooked = Vec::with_capacity(CGROUP_HOOKS.len());
    for hook in &CGROUP_HOOKS {
        if fault.and_then(|fault| fault.strip_prefix("attach_")) == Some(hook.name) {
            return Err(AttachError::Fault { hook: hook.name });
        }
        let failed = |source| AttachError::Hook { hook: hook.name, source: Box::new(source) };
        let link = attach_one(programs, hook.name, cgroup).map_err(failed)?;
        // The kernel keeps the storage of an earlier attach to the same cgroup: nobody, until all hooks are in place.
        set_identity(tables, hook, cgroup_id, Identity::default())?;
        hooked.push(pin(link, hook.name, hook.name.to_owned(), pins)?);
    }
    for hook in &CGROUP_HOOKS {
        set_identity(tables, hook, cgroup_id, identity)?;
    }
    Ok(hooked)
}

/// Makes the cgroup nobody's: before its links go, and whenever it is to be closed at once.
pub(crate) fn disown(tables: &Tables, cgroup_id: u64) -> Result<(), AttachError> {
    CGROUP_HOOKS.iter().try_for_each(|hook| set_identity(tables, hook, cgroup_id, Identity::default()))?;
    foreign::disown(tables, cgroup_id)
        .map_err(|source| AttachError::Identity { hook: foreign::HOOKS[0], source: Box::new(source) })
}

fn set_identity(tables: &Tables, hook: &CgroupHook, cgroup_id: u64, identity: Identity) -> Result<(), AttachError> {
    tables
        .set_identity(cgroup_id, hook.attach_type, identity)
        .map_err(|source| AttachError::Identity { hook: hook.name, source: Box::new(source) })
}

pub(super) fn attach_one(programs: &mut Programs, name: &str, cgroup: BorrowedFd<'_>) -> Result<FdLink, ProgramError> {
    // Flags of bpf_link_create; a link is always one of several.
    let mode = CgroupAttachMode::Single;
    match programs.program_mut(name) {
        Some(Program::CgroupSockAddr(program)) => {
            let id = program.attach(cgroup, mode)?;
            Ok(program.take_link(id)?.try_into()?)
        }
        Some(Program::CgroupSock(program)) => {
            let id = program.attach(cgroup, mode)?;
            Ok(program.take_link(id)?.try_into()?)
        }
        Some(Program::LsmCgroup(program)) => {
            let id = program.attach(cgroup)?;
            Ok(program.take_link(id)?.into())
        }
        Some(Program::SockOps(program)) => {
            let id = program.attach(cgroup, mode)?;
            Ok(program.take_link(id)?.try_into()?)
        }
        Some(Program::CgroupSkb(program)) => {
            let side = program.expected_attach_type().unwrap_or(CgroupSkbAttachType::Egress);
            let id = program.attach(cgroup, side, mode)?;
            Ok(program.take_link(id)?.try_into()?)
        }
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}

/// Hooks that another process pinned, held open too.
pub(crate) fn held<'n>(pins: &Path, names: impl Iterator<Item = &'n str>) -> Result<Vec<Hooked>, AttachError> {
    names
        .map(|name| {
            let path = pins.join(name);
            let link = PinnedLink::from_pin(&path).map_err(|source| AttachError::Open { path, source })?;
            Ok(Hooked { name: name.to_owned(), _link: link.into() })
        })
        .collect()
}

pub(super) fn pin(link: FdLink, hook: &'static str, name: String, pins: &Path) -> Result<Hooked, AttachError> {
    let path = pins.join(&name);
    let link = link.pin(&path).map_err(|source| AttachError::Pin { hook, path, source })?;
    Ok(Hooked { name, _link: link.into() })
}

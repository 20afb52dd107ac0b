//! Sockets that were made outside a sandbox and are used inside. The hooks of a cgroup follow the socket; those of LSMs follow
//! the task that calls, where a kernel has them for cgroups and lets root load them. Elsewhere nothing fails: the level says
//! what is not judged.

use super::{
    attach::{AttachError, Hooked, attach_one, pin},
    bpf::Bpf,
    btf::Types,
    load::{LoadError, Programs},
    sockets::{ForeignSocket, SocketKind},
    table_error::gone,
    tables::Tables,
};
use crate::cgroup::Cgroup;
use aya::{Btf, maps::MapError};
use aya_obj::btf::{BtfType, Func, FuncLinkage, Ptr};
use egress_common::{kernel::Offsets, sandbox::Identity};
use nix::errno::Errno;
use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    sync::{Arc, LazyLock},
};

/// Programs, by the names of their hooks, which are the pins' names too. The kernel has room for ten hooks of all its cgroups
/// (`CGROUP_LSM_NUM` in include/linux/bpf-cgroup-defs.h).
pub(crate) const HOOKS: [&str; 8] = [
    "socket_sendmsg",
    "socket_connect",
    "socket_recvmsg",
    "socket_setsockopt",
    "socket_getsockopt",
    "socket_create",
    "file_receive",
    SPLICED,
];
/// Asked at every read and write, so only where nothing else sees what splice(2) sends.
const SPLICED: &str = "file_permission";
/// BPF_LSM_CGROUP of `enum bpf_attach_type`. One number for all of them, so one identity.
const ATTACH_TYPE: u32 = 43;

/// Why foreign sockets are not judged here.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum Unavailable {
    /// It was not built in, or not asked for.
    #[error("bpf is not among the LSMs of this kernel: boot with `lsm={active},bpf`")]
    NotAnLsm {
        /// Those that are.
        active: String,
    },
    /// EPERM, or a kernel without them.
    #[error("this kernel lets root load no program of that kind ({0})")]
    Refused(Errno),
    /// /sys/kernel/btf/vmlinux cannot be read.
    #[error("the kernel's BTF cannot be read; it takes CONFIG_DEBUG_INFO_BTF")]
    NoBtf,
    /// An older kernel.
    #[error("the kernel's BTF has no {0}; it takes Linux 6.1")]
    Lacks(&'static str),
    /// A program was refused.
    #[error("{0}")]
    Load(#[source] Arc<LoadError>),
    /// A hook was refused. The kernel has room for ten of them at once.
    #[error("{0}; other programs may use up the kernel's ten hooks")]
    Attach(#[source] Arc<AttachError>),
    /// Which cgroup lies how deep is not to be seen from within a cgroup namespace.
    #[error("the root of the cgroup tree is not to be seen from here: start egressd outside any cgroup namespace")]
    NoRoot,
}

/// What it takes to load them.
pub(super) struct Kernel {
    pub(super) btf: Btf,
    pub(super) offsets: Offsets,
    splices_unseen: bool,
}

/// The running kernel, looked at once.
pub(super) fn kernel() -> Result<&'static Kernel, Unavailable> {
    static KERNEL: LazyLock<Result<Kernel, Unavailable>> = LazyLock::new(look);
    KERNEL.as_ref().map_err(Clone::clone)
}

fn look() -> Result<Kernel, Unavailable> {
    // Where securityfs is not mounted, the kernel itself is asked.
    if let Ok(active) = fs::read_to_string("/sys/kernel/security/lsm")
        && !active.trim().split(',').any(|lsm| lsm == "bpf")
    {
        return Err(Unavailable::NotAnLsm { active: active.trim().to_owned() });
    }
    may_load().map_err(Unavailable::Refused)?;
    let bytes = fs::read("/sys/kernel/btf/vmlinux").map_err(|_| Unavailable::NoBtf)?;
    let types = Types::read(&bytes).ok_or(Unavailable::NoBtf)?;
    Ok(Kernel {
        offsets: offsets(&types)?,
        // Since 6.5 splice(2) sends by sendmsg.
        splices_unseen: types.function("splice_to_socket").is_none(),
        btf: hooks_alone(&types)?,
    })
}

fn offsets(types: &Types<'_>) -> Result<Offsets, Unavailable> {
    let at = |structure, path: &[&str], what| types.offset_of(structure, path).ok_or(Unavailable::Lacks(what));
    Ok(Offsets {
        socket_sk: at("socket", &["sk"], "socket.sk")?,
        sock_family: at("sock", &["__sk_common", "skc_family"], "sock.skc_family")?,
        sock_cgroup: at("sock", &["sk_cgrp_data", "cgroup"], "sock.sk_cgrp_data")?,
        task_cgroups: at("task_struct", &["cgroups"], "task_struct.cgroups")?,
        css_set_cgroup: at("css_set", &["dfl_cgrp"], "css_set.dfl_cgrp")?,
        cgroup_level: at("cgroup", &["level"], "cgroup.level")?,
        cgroup_ancestors: at("cgroup", &["ancestors"], "cgroup.ancestors")?,
    })
}

/// The kernel's types without any but the hooks, each by its own number: that is all that aya looks up, and parsing the others
/// takes it 26 ms.
fn hooks_alone(types: &Types<'_>) -> Result<Btf, Unavailable> {
    let number = |hook: &&str| {
        let function = format!("bpf_lsm_{hook}");
        Some((types.function(&function)?, function))
    };
    let found = HOOKS.iter().map(number).collect::<Option<BTreeMap<_, _>>>();
    let (mut btf, mut next) = (Btf::new(), 1);
    for (number, function) in found.ok_or(Unavailable::Lacks("hooks of LSMs"))? {
        for _ in next..number {
            btf.add_type(BtfType::Ptr(Ptr::new(0, 0)));
        }
        let name = btf.add_string(&function);
        btf.add_type(BtfType::Func(Func::new(name, 0, FuncLinkage::Static)));
        next = number + 1;
    }
    Ok(btf)
}

/// Asks for a program on no hook, which is refused in any case: by EINVAL where the kernel would load a right one.
fn may_load() -> Result<(), Errno> {
    const BPF_PROG_TYPE_LSM: u64 = 29;
    // r0 = 1; exit
    let program: [u64; 2] = [0x1_0000_00b7, 0x95];
    // union bpf_attr: prog_type, insn_cnt; insns; license; log (three words); prog_flags; prog_name (two words); prog_ifindex,
    // expected_attach_type.
    let mut attribute = [
        BPF_PROG_TYPE_LSM | (program.len() as u64) << 32,
        program.as_ptr() as u64,
        c"GPL".as_ptr() as u64,
        0,
        0,
        0,
        0,
        0,
        u64::from(ATTACH_TYPE) << 32,
    ];
    match Bpf::ProgLoad.make(&mut attribute).map_err(|error| error.raw_os_error()) {
        Ok(_) | Err(Some(libc::EINVAL)) => Ok(()),
        Err(errno) => Err(errno.map_or(Errno::UnknownErrno, Errno::from_raw)),
    }
}

/// Whether this kernel is fit for them, as far as can be told without loading one.
pub(crate) fn availability() -> Result<(), Unavailable> {
    kernel().map(drop)
}

/// The hooks that this kernel needs; none where it is not fit for them.
pub(super) fn needed() -> impl Iterator<Item = &'static str> {
    let kernel = kernel().ok();
    HOOKS.into_iter().filter(move |name| kernel.is_some_and(|kernel| kernel.needs(name)))
}

impl Kernel {
    /// True for a hook that this kernel needs.
    pub(super) fn needs(&self, name: &str) -> bool {
        HOOKS.contains(&name) && (name != SPLICED || self.splices_unseen)
    }
}

/// Attaches the hooks to a cgroup and pins them below `pins`: all of them, or none.
pub(crate) fn attach(
    programs: &mut Programs,
    tables: &Tables,
    cgroup: &Cgroup,
    identity: Identity,
    pins: &Path,
) -> Result<Vec<Hooked>, Unavailable> {
    programs.foreign.clone()?;
    let depth = cgroup.depth().ok_or(Unavailable::NoRoot)?;
    let put = |name: &'static str| {
        let failed = |source| AttachError::Hook { hook: name, source: Box::new(source) };
        let link = attach_one(programs, name, cgroup.fd()).map_err(failed)?;
        // The storage of an earlier attach may be there.
        set_identity(tables, cgroup.id(), Identity { depth, ..identity })
            .map_err(|source| AttachError::Identity { hook: name, source: Box::new(source) })?;
        pin(link, name, name.to_owned(), pins)
    };
    let hooked = needed().map(put).collect::<Result<Vec<_>, _>>();
    hooked.map_err(|error| {
        for name in HOOKS {
            let _absent = fs::remove_file(pins.join(name));
        }
        Unavailable::Attach(Arc::new(error))
    })
}

/// Makes the hooks of the cgroup nobody's, where there were any.
pub(super) fn disown(tables: &Tables, cgroup_id: u64) -> Result<(), MapError> {
    gone(set_identity(tables, cgroup_id, Identity::default()))
}

fn set_identity(tables: &Tables, cgroup_id: u64, identity: Identity) -> Result<(), MapError> {
    tables.set_identity(cgroup_id, ATTACH_TYPE, identity)
}

/// True where all that this kernel needs are among these.
pub(crate) fn is_judged<'n>(hooks: impl Iterator<Item = &'n str>) -> bool {
    let hooks: Vec<_> = hooks.collect();
    availability().is_ok() && needed().all(|name| hooks.contains(&name))
}

/// True for a socket that the hooks hold. AF_XDP sends when it is polled, which no hook sees.
pub(crate) fn judges(socket: &ForeignSocket) -> bool {
    match socket.kind {
        SocketKind::Tcp | SocketKind::Udp | SocketKind::Raw | SocketKind::Packet => true,
        SocketKind::Other { family, .. } => family != libc::AF_XDP,
        SocketKind::Unreadable => false,
    }
}

impl From<LoadError> for Unavailable {
    fn from(error: LoadError) -> Self {
        Self::Load(Arc::new(error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aya_obj::btf::BtfKind;

    /// Wherever it is new enough; on other kernels `cargo xtask vm` looks.
    #[test]
    fn the_running_kernels_fields_are_found() {
        let bytes = fs::read("/sys/kernel/btf/vmlinux").unwrap_or_default();
        let Some(types) = Types::read(&bytes) else { return };
        let found = offsets(&types).unwrap();
        // `skc_family` stands behind two addresses and two ports (include/net/sock.h); the others are anywhere but first.
        assert_eq!(found.sock_family, 16);
        for offset in [found.socket_sk, found.sock_cgroup, found.task_cgroups, found.css_set_cgroup] {
            assert!(offset > 0 && offset % 8 == 0, "{found:?}");
        }
        assert!(found.cgroup_ancestors > found.cgroup_level, "{found:?}");
        let (few, all) = (hooks_alone(&types).unwrap(), Btf::from_sys_fs().unwrap());
        for hook in HOOKS.map(|hook| format!("bpf_lsm_{hook}")) {
            let number = |btf: &Btf| btf.id_by_type_name_kind(&hook, BtfKind::Func).unwrap();
            assert_eq!(number(&few), number(&all), "{hook}");
        }
    }
}

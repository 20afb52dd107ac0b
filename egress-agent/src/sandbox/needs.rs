//! What enforcement needs of the host, as one table: printed by `doctor`, and the answer to every "why not here?".

use crate::{
    cgroup::CgroupMount,
    datapath::{
        bpffs,
        load::{Capacity, Programs},
        tc,
    },
};
use serde::{Serialize, Serializer, ser::SerializeStruct as _};
use std::path::Path;

/// One requirement.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Need {
    /// What needs it.
    pub hook: &'static str,
    /// First kernel that has it.
    pub kernel: &'static str,
    /// What it stops.
    pub contains: &'static str,
    /// Whether this host has it.
    pub present: Present,
    /// What to do where it has not.
    pub fix: String,
}

/// Whether a host has something.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Present {
    /// Yes.
    Yes,
    /// No.
    No,
    /// It could not be looked at, for this reason.
    Unknown(String),
}

impl Serialize for Need {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut need = serializer.serialize_struct("Need", 6)?;
        need.serialize_field("hook", self.hook)?;
        need.serialize_field("kernel", self.kernel)?;
        need.serialize_field("contains", self.contains)?;
        let (present, why) = match &self.present {
            Present::Yes => ("yes", None),
            Present::No => ("no", None),
            Present::Unknown(why) => ("unknown", Some(why)),
        };
        need.serialize_field("present", present)?;
        need.serialize_field("why", &why)?;
        need.serialize_field("fix", &self.fix)?;
        need.end()
    }
}

/// Looks at this host.
pub fn probe() -> Vec<Need> {
    vec![cgroup2(), programs(), device(), mounts(), resolver_sockets()]
}

fn cgroup2() -> Need {
    let present = match CgroupMount::find() {
        Ok(mount) if mount.writable() => Present::Yes,
        Ok(_) => Present::No,
        Err(error) => Present::Unknown(error.to_string()),
    };
    Need {
        hook: "cgroup v2",
        kernel: "4.5",
        contains: "identity: which sandbox a socket belongs to",
        present,
        fix: "mount -t cgroup2 none /sys/fs/cgroup, writable for egressd".to_owned(),
    }
}

/// Loads the real programs, which shows more than any version number.
fn programs() -> Need {
    let smallest = Capacity { rules: 16, permits: 16, networks: 16 };
    let present = match Programs::load(1, smallest, None, None) {
        Ok(_) => Present::Yes,
        Err(error) if error.is_permission() => Present::Unknown("not permitted: run as root".to_owned()),
        Err(error) => Present::Unknown(error.to_string()),
    };
    Need {
        hook: "cgroup connect, sendmsg, recvmsg, getpeername, bind, sock_create, skb",
        kernel: "5.15",
        contains: "L1: packets of every socket made in the sandbox; DNS redirect",
        present,
        fix: "boot Linux 5.15 or newer with CONFIG_BPF_SYSCALL and CONFIG_CGROUP_BPF; run as root".to_owned(),
    }
}

/// What stands on a device is found by trying, at attach too.
fn device() -> Need {
    let (hook, present) = match tc::has_tcx() {
        Ok(true) => ("tcx on the host side of the device", Present::Yes),
        // Older than anything else that is needed here.
        Ok(false) => ("clsact on the host side of the device, in place of tcx", Present::Yes),
        Err(error) => ("tcx or clsact on the host side of the device", Present::Unknown(error.to_string())),
    };
    Need {
        hook,
        kernel: "6.6, 4.5",
        contains: "L2: packet sockets, AF_XDP, tunnels and nested namespaces of a sandbox with its own network namespace",
        present,
        fix: "run as root; boot a kernel with CONFIG_NET_XGRESS, or with CONFIG_NET_CLS_BPF and CONFIG_NET_SCH_INGRESS"
            .to_owned(),
    }
}

fn mounts() -> Need {
    Need {
        hook: "pins",
        kernel: "4.4",
        contains: "enforcement outlives egressd",
        present: match bpffs::is_init_mount_namespace() {
            Ok(true) => Present::Yes,
            Ok(false) => Present::No,
            Err(error) => Present::Unknown(error.to_string()),
        },
        fix: "start egressd in PID 1's mount namespace; enter a network namespace with --netns, not `ip netns exec`"
            .to_owned(),
    }
}

/// Resolvers that answer over unix sockets ask from outside the sandbox.
fn resolver_sockets() -> Need {
    const SOCKETS: [&str; 3] =
        ["/run/systemd/resolve/io.systemd.Resolve", "/run/nscd/socket", "/run/avahi-daemon/socket"];
    let found: Vec<&str> = SOCKETS.into_iter().filter(|path| Path::new(path).exists()).collect();
    Need {
        hook: "no resolver on a unix socket",
        kernel: "-",
        contains: "names asked past egressd's resolver (nss-resolve, nscd, avahi)",
        present: if found.is_empty() { Present::Yes } else { Present::No },
        fix: format!("hide {} from the sandbox, or leave `resolve` out of nsswitch.conf", found.join(", ")),
    }
}

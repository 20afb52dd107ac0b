//! What enforcement needs of the host, as one table: printed by `doctor`, and the answer to every "why not here?".

use crate::{
    cgroup::CgroupMount,
    datapath::{
        bpffs, foreign,
        load::{LoadError, Programs, Tried},
        tc, unix,
    },
    level::Level,
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
    /// The first level that cannot be had without it; none where no level rests on it.
    pub level: Option<Level>,
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
    /// No, for this reason, and every level is to be had without it.
    Absent(String),
    /// It could not be looked at, for this reason.
    Unknown(String),
}

impl Serialize for Need {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut need = serializer.serialize_struct("Need", 7)?;
        need.serialize_field("hook", self.hook)?;
        need.serialize_field("kernel", self.kernel)?;
        need.serialize_field("contains", self.contains)?;
        need.serialize_field("level", &self.level)?;
        let (present, why) = match &self.present {
            Present::Yes => ("yes", None),
            Present::No => ("no", None),
            Present::Absent(why) => ("absent", Some(why)),
            Present::Unknown(why) => ("unknown", Some(why)),
        };
        need.serialize_field("present", present)?;
        need.serialize_field("why", &why)?;
        need.serialize_field("fix", &self.fix)?;
        need.end()
    }
}

/// What a host has, and what comes of it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Survey {
    /// The running kernel's release.
    pub kernel: String,
    /// The highest level that a sandbox can reach here; none where not even L1 can be had.
    pub highest: Option<Level>,
    /// One by one.
    pub needs: Vec<Need>,
    /// What this kernel's verifier made of each program; empty where it could not be asked.
    pub programs: Vec<Verified>,
}

/// One program of the kernel half.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Verified {
    /// Its name.
    pub program: String,
    /// How many instructions the verifier walked; none where it refused, and before kernel 5.16.
    pub verified_instructions: Option<u32>,
}

/// Looks at this host.
pub fn probe() -> Survey {
    let loaded = Programs::try_each();
    let mut needs = vec![cgroup2()];
    needs.extend(HOOKS.iter().map(|hook| hook.need(&loaded)));
    needs.extend([device(), mounts(), tasks(&loaded), unix_sockets(), resolver_sockets()]);
    let programs = loaded.unwrap_or_default().into_iter();
    let verified = |(program, count): Tried| Verified { program, verified_instructions: count.ok().flatten() };
    Survey {
        kernel: std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
        highest: highest(&needs),
        needs,
        programs: programs.map(verified).collect(),
    }
}

/// The level below the first that lacks something.
fn highest(needs: &[Need]) -> Option<Level> {
    let lacks = |level| needs.iter().any(|need| need.level == Some(level) && need.present != Present::Yes);
    [Level::L1, Level::L2, Level::L3].into_iter().take_while(|level| !lacks(*level)).last()
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
        level: Some(Level::L1),
        present,
        fix: "mount -t cgroup2 none /sys/fs/cgroup, writable for egressd".to_owned(),
    }
}

/// Programs that are needed for the same reason.
struct Hooks {
    hook: &'static str,
    /// Of the hook, or of the youngest thing that its programs call.
    kernel: &'static str,
    contains: &'static str,
    level: Level,
    programs: &'static [&'static str],
}

const HOOKS: [Hooks; 9] = [
    Hooks {
        hook: "cgroup connect4, connect6",
        kernel: "5.11",
        contains: "connections to what no rule names; leads port 53 to egressd",
        level: Level::L1,
        programs: &["connect4", "connect6"],
    },
    Hooks {
        hook: "cgroup sendmsg4, sendmsg6",
        kernel: "5.11",
        contains: "datagrams of unconnected sockets; leads port 53 to egressd",
        level: Level::L1,
        programs: &["sendmsg4", "sendmsg6"],
    },
    Hooks {
        hook: "cgroup recvmsg4, recvmsg6, getpeername4, getpeername6",
        kernel: "5.8",
        contains: "nothing: clients take egressd's DNS answers for their server's",
        level: Level::L1,
        programs: &["recvmsg4", "recvmsg6", "getpeername4", "getpeername6"],
    },
    Hooks {
        hook: "cgroup bind4, bind6",
        kernel: "5.11",
        contains: "somebody else in the place of egressd's DNS listener",
        level: Level::L1,
        programs: &["bind4", "bind6"],
    },
    Hooks {
        hook: "cgroup sock_create",
        kernel: "5.11",
        contains: "raw sockets, and protocols that no rule is about",
        level: Level::L1,
        programs: &["sock_create"],
    },
    Hooks {
        hook: "cgroup egress, ingress",
        kernel: "5.12",
        contains: "every packet of every socket made in the sandbox, whatever its header",
        level: Level::L1,
        programs: &["egress", "ingress"],
    },
    Hooks {
        hook: "cgroup sock_ops",
        kernel: "5.12",
        contains: "nothing: TCP keeps to its rate without losses",
        level: Level::L1,
        programs: &["sock_ops"],
    },
    Hooks {
        hook: "programs of a device",
        kernel: "5.12",
        contains: "every frame of a sandbox with its own network namespace, whoever made it",
        level: Level::L2,
        programs: &["device_egress", "device_ingress"],
    },
    Hooks {
        hook: "programs of a guest's device",
        kernel: "5.12",
        contains: "every frame of a guest kernel or a user-space network stack; hands its DNS to egressd",
        level: Level::L3,
        programs: &["guest_egress", "guest_ingress", "guest_answers"],
    },
];

impl Hooks {
    /// Loads of the real programs show more than any version number.
    fn need(&self, loaded: &Result<Vec<Tried>, LoadError>) -> Need {
        let refused = match loaded {
            Err(error) => Some(error),
            Ok(all) => {
                let mut ours = all.iter().filter(|(name, _)| self.programs.contains(&name.as_str()));
                ours.find_map(|(_, count)| count.as_ref().err())
            }
        };
        let present = match refused {
            None => Present::Yes,
            Some(error) if error.is_permission() => Present::Unknown("not permitted: run as root".to_owned()),
            Some(error) => Present::Unknown(error.to_string()),
        };
        Need {
            hook: self.hook,
            kernel: self.kernel,
            contains: self.contains,
            level: Some(self.level),
            present,
            fix: "boot Linux 5.15 or newer with CONFIG_BPF_SYSCALL and CONFIG_CGROUP_BPF; run as root".to_owned(),
        }
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
        contains: "packet sockets, AF_XDP, tunnels and nested namespaces of a sandbox with its own network namespace",
        level: Some(Level::L2),
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
        level: Some(Level::L1),
        present: match bpffs::is_init_mount_namespace() {
            Ok(true) => Present::Yes,
            Ok(false) => Present::No,
            Err(error) => Present::Unknown(error.to_string()),
        },
        fix: "start egressd in PID 1's mount namespace; enter a network namespace with --netns, not `ip netns exec`"
            .to_owned(),
    }
}

/// Hooks that follow the calling task.
fn tasks(loaded: &Result<Vec<Tried>, LoadError>) -> Need {
    let refused = foreign::availability().map_err(|error| error.to_string()).and_then(|()| {
        let mut all = loaded.iter().flatten().filter(|(name, _)| foreign::HOOKS.contains(&name.as_str()));
        all.find_map(|(_, count)| count.as_ref().err()).map_or(Ok(()), |error| Err(error.to_string()))
    });
    Need {
        hook: "lsm_cgroup socket_sendmsg, socket_connect, socket_recvmsg, socket_setsockopt, socket_getsockopt, socket_create, file_receive",
        kernel: "6.1",
        contains: "sockets made outside and used inside: inherited, passed, taken; AF_VSOCK and other families without a hook",
        level: None,
        present: refused.map_or_else(Present::Absent, |()| Present::Yes),
        fix: "boot with bpf among the LSMs, or give the sandbox a device of its own (L2)".to_owned(),
    }
}

/// `allow.unix` with names is refused without them.
fn unix_sockets() -> Need {
    Need {
        hook: "connect_unix, sendmsg_unix",
        kernel: "6.7",
        contains: "unix sockets that `allow.unix` does not name: container engines, D-Bus, helpers outside",
        level: None,
        present: unix::availability().map_or_else(|error| Present::Absent(error.to_string()), |()| Present::Yes),
        fix: "boot Linux 6.7 or newer with BTF; until then leave `allow.unix` out, and `run` covers the known sockets"
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
        level: None,
        present: if found.is_empty() { Present::Yes } else { Present::No },
        fix: format!("hide {} from the sandbox, or leave `resolve` out of nsswitch.conf", found.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_level_is_the_one_before_the_first_that_lacks_something() {
        let need = |level, present| Need { hook: "x", kernel: "-", contains: "-", level, present, fix: String::new() };
        let unknown = || Present::Unknown("not root".to_owned());
        for (needs, expected) in [
            (vec![need(Some(Level::L1), Present::Yes), need(None, Present::No)], Some(Level::L3)),
            (vec![need(Some(Level::L1), Present::Yes), need(Some(Level::L2), unknown())], Some(Level::L1)),
            (vec![need(Some(Level::L1), Present::No), need(Some(Level::L2), Present::Yes)], None),
        ] {
            assert_eq!(highest(&needs), expected, "{needs:?}");
        }
    }
}

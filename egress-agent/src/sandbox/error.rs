//! What can go wrong, by stage. Each message names the object and the way out.

use super::target::Which;
use crate::{
    cgroup::CgroupError,
    compile::CompileError,
    datapath::{
        NetlinkError, attach::AttachError, bpffs::PinError, detach::DetachError, device::DeviceError,
        listeners::ListenError, load::LoadError, netns::NetnsError, resolver::ResolverError, sockets::SocketError,
        state_dir::StateError, tables::TableError, unix::UnixError,
    },
    dns::DnsError,
    level::Level,
    policy::PolicyError,
};
use std::{
    io,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

/// What can go wrong, by stage.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The policy's text.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The policy cannot be enforced whole.
    #[error(transparent)]
    Compile(#[from] CompileError),
    /// The cgroup.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// No cgroup was given.
    #[error("no cgroup is given; name one: Sandbox::builder(policy).cgroup(…)")]
    NoCgroup,
    /// A cgroup's sandbox is not a guest's.
    #[error("a sandbox is that of a cgroup or of a guest, and both are given; leave one out")]
    CgroupAndGuest,
    /// Where a guest may send from is not known.
    #[error(
        "no address of the guest behind {device} is given, so nothing could come from there; name each: --self ADDR"
    )]
    NoGuestAddress {
        /// Its device.
        device: String,
    },
    /// No machine's own address.
    #[error(
        "{address} is no address that a guest has: give those of its own interface, IPv6 link-local ones too, as --self ADDR"
    )]
    GuestAddress {
        /// As it was given.
        address: IpAddr,
    },
    /// Only hooks of a cgroup see the inside of a sandbox.
    #[error(
        "{key} is about the inside of a guest, where nobody judges; leave it out (the device judges all that leaves)"
    )]
    NotForGuests {
        /// The key of the policy.
        key: &'static str,
    },
    /// What a guest may send from is given at attach, for good.
    #[error("{name} was attached for a guest with other addresses than these; detach it first: `egressd detach {}`", which.flag())]
    OtherGuest {
        /// The sandbox.
        name: String,
        /// Its device.
        which: Which,
    },
    /// Nobody but the guest can make its packets.
    #[error("{name} is a guest's, and verify tries ways out of a cgroup: try them in the guest")]
    VerifyGuest {
        /// The sandbox.
        name: String,
    },
    /// Where a guest's questions are answered.
    #[error(transparent)]
    Resolver(Box<ResolverError>),
    /// The network namespace.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// The sandbox's device.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The kernel half.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A set that every sandbox would have to load anew.
    #[error(
        "no program set is kept: the kernel refuses one of those that judge sockets from outside; egressd doctor shows which"
    )]
    NotKept(#[source] Arc<LoadError>),
    /// A hook.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// A link that cannot be taken off.
    #[error(transparent)]
    Detach(#[from] DetachError),
    /// The queue of a device.
    #[error("cannot make, change or remove the queue of a device; `tc qdisc show` needs to work on it")]
    Queue(#[from] NetlinkError),
    /// A map.
    #[error(transparent)]
    Table(#[from] TableError),
    /// The bpffs.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// The state directory.
    #[error(transparent)]
    State(#[from] StateError),
    /// The DNS listener.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The DNS half.
    #[error(transparent)]
    Dns(#[from] DnsError),
    /// A file of the state directory.
    #[error("cannot {action} {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// read, write, make or remove.
        action: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A record in the state directory is of another build, or damaged.
    #[error("{} is not a sandbox's record; `egressd detach --cgroup PATH` of the same version removes it", path.display())]
    Record {
        /// The file.
        path: PathBuf,
        /// What differs.
        #[source]
        source: serde_json::Error,
    },
    /// No descriptor is left.
    #[error("cannot duplicate a descriptor; is the limit on open files too low?")]
    Descriptor(#[source] io::Error),
    /// Sockets of the cgroup's processes.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// Unix sockets cannot be judged.
    #[error(transparent)]
    Unix(#[from] UnixError),
    /// Their programs hold the names.
    #[error("allow.unix cannot be changed under a living sandbox; detach it, and attach it anew")]
    UnixChanged,
    /// A thread could not be started.
    #[error("cannot start the thread {name}; is the limit on tasks too low?")]
    Thread {
        /// Its name.
        name: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Sandboxes do not nest: the outer hooks would judge the inner redirect.
    #[error("cgroup {} is {relation} the sandbox {name} ({}); sandboxes do not nest: detach that one, or name another cgroup", cgroup.display(), other.display())]
    Nested {
        /// The cgroup that was asked for.
        cgroup: PathBuf,
        /// above, below or the same as.
        relation: &'static str,
        /// The enforced one.
        name: String,
        /// Its cgroup.
        other: PathBuf,
    },
    /// Another sandbox has the device, and cannot share it.
    #[error("{device} is the device of the sandbox {name} ({which}) already, and {why}: give this one a network namespace of its own, or detach that one: `egressd detach {}`", which.flag())]
    DeviceTaken {
        /// Host side of the device.
        device: String,
        /// The sandbox that has it.
        name: String,
        /// What that one stands on.
        which: Which,
        /// Why it is not shared.
        why: &'static str,
    },
    /// What a device may send from is taken at attach, and there was nothing to take.
    #[error("the sandbox had no address when it was attached; attach it after its network is set up")]
    NoSources,
    /// What an adopted sandbox is enforced with was chosen at its attach.
    #[error("whoever takes a sandbox over takes it with the devices that it has; detach it, and attach it anew")]
    Adopted,
    /// Programs that sandboxes share show one of them on a device.
    #[error(
        "device {device} came to a sandbox that shares its programs with another one on that device; attach one of the two by a process of its own"
    )]
    DeviceShown {
        /// Its name.
        device: String,
    },
    /// Filters belong to a device, and a device to a network namespace.
    #[error(
        "the devices of {name} are in another network namespace: run this where it was attached, e.g. `nsenter --net=/run/netns/NAME egressd status`"
    )]
    HostNetns {
        /// The sandbox.
        name: String,
    },
    /// No sandbox has this cgroup, or this guest.
    #[error("no sandbox of {which} is in force; `egressd status` lists those that are")]
    NotAttached {
        /// What was asked for.
        which: Which,
    },
    /// No sandbox has this name.
    #[error("no sandbox is called {name:?}; `egressd status` lists those that are in force")]
    Unknown {
        /// The name that was asked for.
        name: String,
    },
    /// Two sandboxes would have one name.
    #[error("another sandbox is called {name:?}; pin this one under a name of its own")]
    NameTaken {
        /// The name that was asked for.
        name: String,
    },
    /// A sandbox that somebody serves cannot be adopted.
    #[error("process {pid} serves the sandbox {name}; adopt it when that has ended")]
    Served {
        /// The sandbox.
        name: String,
        /// Its owner.
        pid: u32,
    },
    /// A sandbox stays in its network namespace.
    #[error("{name} is enforced already, in another network namespace than {}; leave --netns out, or detach it first", netns.display())]
    OtherNetns {
        /// The sandbox.
        name: String,
        /// Where it is not.
        netns: PathBuf,
    },
    /// Sandboxes that one process attached report into one ring, which has one reader.
    #[error(
        "process {pid} serves {other}, which was attached together with {name}: adopt both in one process, when that has ended"
    )]
    SharedRing {
        /// The sandbox.
        name: String,
        /// The one that is served.
        other: String,
        /// By whom.
        pid: u32,
    },
    /// Its maps are of another version.
    #[error(
        "the sandbox {name} was attached by an egressd of another version; detach it with that one, and attach it anew"
    )]
    OtherBuild {
        /// The sandbox.
        name: String,
    },
    /// Somebody took a hook off.
    #[error(
        "the hook {hook} of the sandbox {name} is gone, so it is not enforced; `egressd detach` it, and attach it anew"
    )]
    HookGone {
        /// The sandbox.
        name: String,
        /// The hook.
        hook: String,
    },
    /// The network namespace of a sandbox cannot be found again.
    #[error(
        "the network namespace of the sandbox {name} is not found: it is not this one, no process of its cgroup is in it, and none was named when it was attached; start a process in both, and adopt again"
    )]
    NetnsLost {
        /// The sandbox.
        name: String,
    },
    /// There is more than one sandbox to choose from, or none.
    #[error("{count} sandboxes are in force; name one: --cgroup PATH")]
    Ambiguous {
        /// How many.
        count: usize,
    },
    /// Less can be promised than was asked for.
    #[error("{wanted} was required, {reached} is what this sandbox reaches: {missing}")]
    Require {
        /// What was asked for.
        wanted: Level,
        /// What there is, in words.
        reached: String,
        /// What is missing.
        missing: String,
    },
    /// Sockets in the cgroup belong to another cgroup, and no hook of ours sees them.
    #[error("{count} sockets of processes in {} were made elsewhere and pass unjudged (first: {first}); restart those processes inside the cgroup", cgroup.display())]
    ForeignSockets {
        /// The cgroup.
        cgroup: PathBuf,
        /// How many.
        count: usize,
        /// One of them.
        first: String,
    },
    /// The name half does not answer.
    #[error("the agent does not answer the sandbox's DNS within {}; is the machine overloaded?", humantime::format_duration(*waited))]
    SilentAgent {
        /// How long was waited.
        waited: Duration,
        /// The last attempt.
        #[source]
        source: io::Error,
    },
    /// A pin would not outlive this mount namespace.
    #[error(
        "this mount namespace is not PID 1's, and pins made here would die with it; enter the network namespace with --netns instead of `ip netns exec`"
    )]
    TransientMounts,
    /// A proxy of the policy takes no connection.
    #[error("proxy {proxy} took no connection within {}; start it, or wait longer: --wait-proxy 60s", humantime::format_duration(*waited))]
    Proxy {
        /// The proxy.
        proxy: SocketAddr,
        /// How long was waited.
        waited: Duration,
        /// The last attempt.
        #[source]
        source: io::Error,
    },
}

impl From<ResolverError> for Error {
    fn from(error: ResolverError) -> Self {
        Self::Resolver(Box::new(error))
    }
}

impl Error {
    /// Exit code of every verb but `run`: 2 usage or policy, 3 this host cannot, 4 permission, 5 enforcement lost.
    pub fn exit_code(&self) -> u8 {
        if self.is_permission() {
            return 4;
        }
        match self {
            Self::Policy(_)
            | Self::Compile(_)
            | Self::Cgroup(_)
            | Self::NoCgroup
            | Self::CgroupAndGuest
            | Self::NoGuestAddress { .. }
            | Self::GuestAddress { .. }
            | Self::NotForGuests { .. }
            | Self::OtherGuest { .. }
            | Self::Nested { .. }
            | Self::OtherNetns { .. }
            | Self::DeviceTaken { .. }
            | Self::UnixChanged
            | Self::NotAttached { .. }
            | Self::Unknown { .. }
            | Self::NameTaken { .. }
            | Self::Ambiguous { .. } => 2,
            _ => 3,
        }
    }

    /// True where the kernel said that the caller may not.
    pub fn is_permission(&self) -> bool {
        let mut error: Option<&(dyn std::error::Error + 'static)> = Some(self);
        while let Some(current) = error {
            let denied = match (current.downcast_ref::<io::Error>(), current.downcast_ref::<nix::errno::Errno>()) {
                (Some(io), _) => matches!(io.raw_os_error(), Some(libc::EPERM | libc::EACCES)),
                (_, Some(errno)) => matches!(errno, nix::errno::Errno::EPERM | nix::errno::Errno::EACCES),
                _ => false,
            };
            if denied {
                return true;
            }
            error = current.source();
        }
        matches!(self, Self::Pin(PinError::MountPermission { .. }))
    }

    pub(super) fn thread(name: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Self::Thread { name, source }
    }

    pub(super) fn file(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { path, action, source }
    }
}

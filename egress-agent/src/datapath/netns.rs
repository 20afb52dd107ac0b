//! A network namespace, held open, and work done inside it.

use super::{netlink::NetlinkError, sockopt};
use nix::{
    errno::Errno,
    fcntl::{OFlag, open},
    sched::{CloneFlags, setns, unshare},
    sys::{
        socket::{AddressFamily, SockFlag, SockType, socket},
        stat::{Mode, fstat},
    },
    unistd::Pid,
};
use std::{
    fmt, io,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
    path::Path,
    thread,
};

/// Where `ip netns add` keeps its names.
const NAMED: &str = "/run/netns";

/// Why a network namespace could not be held or used. `netns` is the name under which the caller knows it.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// There is nothing at that path, or it may not be read.
    #[error(
        "cannot open the network namespace {netns}: name one that `ip netns list` shows, a path, or a living process"
    )]
    Open {
        /// The namespace.
        netns: String,
        /// What the system call said.
        source: Errno,
    },
    /// The path or the descriptor is something else.
    #[error("{netns} is not a network namespace: a file below /run/netns or /proc/PID/ns/net is one")]
    NotANetns {
        /// The path.
        netns: String,
    },
    /// The name would leave the directory of names.
    #[error("{netns:?} is not the name of a network namespace: give a name without `/`, or a path")]
    Name {
        /// The name.
        netns: String,
    },
    /// Its identity cannot be read (SO_NETNS_COOKIE came with kernel 5.14).
    #[error("cannot identify the network namespace {netns}: this needs kernel 5.14 or newer")]
    Identify {
        /// The namespace.
        netns: String,
        /// What the system call said.
        source: Errno,
    },
    /// setns(2) was refused.
    #[error("cannot enter the network namespace {netns}: this needs CAP_SYS_ADMIN here and in it; run egressd as root")]
    Enter {
        /// The namespace.
        netns: String,
        /// What the system call said.
        source: Errno,
    },
    /// unshare(2) was refused.
    #[error("cannot make the network namespace {netns}: this needs CAP_SYS_ADMIN; run egressd as root")]
    Make {
        /// What it is for.
        netns: String,
        /// What the system call said.
        source: Errno,
    },
    /// No thread for the work inside.
    #[error("cannot start a thread for the network namespace {netns}")]
    Thread {
        /// The namespace.
        netns: String,
        /// What the system call said.
        source: io::Error,
    },
    /// The work inside panicked: a defect of egressd.
    #[error("the work inside the network namespace {netns} panicked: this is a defect of egressd, please report it")]
    Panicked {
        /// The namespace.
        netns: String,
    },
    /// The kernel could not be asked inside.
    #[error("cannot ask the kernel about the network namespace {netns}")]
    Netlink {
        /// The namespace.
        netns: String,
        /// Which request failed.
        source: NetlinkError,
    },
}

impl NetnsError {
    /// The error number with which the kernel refused a request inside, if it did.
    pub fn refusal(&self) -> Option<i32> {
        let Self::Netlink { source, .. } = self else { return None };
        source.refusal()
    }
}

/// Which namespace it is, as long as it lives. The inode alone may be given again once it is gone.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct NetnsId {
    /// Device number of the nsfs.
    pub device: u64,
    /// The number that `readlink /proc/PID/ns/net` shows.
    pub inode: u64,
}

/// A network namespace that lives as long as this does.
#[derive(Debug)]
pub struct Netns {
    fd: OwnedFd,
    name: String,
    ip: String,
    id: NetnsId,
}

impl Netns {
    /// The calling thread's.
    pub fn current() -> Result<Self, NetnsError> {
        Self::open(Path::new("/proc/thread-self/ns/net"), "of egressd".into(), "ip".into())
    }

    /// The one bound to `path`.
    pub fn from_path(path: &Path) -> Result<Self, NetnsError> {
        Self::open(path, path.display().to_string(), format!("nsenter --net={} ip", path.display()))
    }

    /// The one that `ip netns` knows by `name`.
    pub fn from_name(name: &str) -> Result<Self, NetnsError> {
        if name.is_empty() || name == "." || name == ".." || name.contains(['/', '\0']) {
            return Err(NetnsError::Name { netns: name.into() });
        }
        Self::open(&Path::new(NAMED).join(name), name.into(), format!("ip -n {name}"))
    }

    /// A new one, which nobody else knows; `name` is how messages call it.
    pub(crate) fn make(name: String) -> Result<Self, NetnsError> {
        let failed = |source| NetnsError::Make { netns: name.clone(), source };
        // Left on a thread that ends.
        let made = thread::scope(|scope| {
            let work = || {
                unshare(CloneFlags::CLONE_NEWNET)?;
                open("/proc/thread-self/ns/net", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
            };
            let thread = thread::Builder::new().name("new-netns".into()).spawn_scoped(scope, work);
            let thread = thread.map_err(|source| NetnsError::Thread { netns: name.clone(), source })?;
            thread.join().map_err(|_| NetnsError::Panicked { netns: name.clone() })?.map_err(failed)
        })?;
        Self::from_fd(made, name)
    }

    /// The one in which a process lives now.
    pub fn from_pid(pid: Pid) -> Result<Self, NetnsError> {
        let path = format!("/proc/{pid}/ns/net");
        Self::open(Path::new(&path), format!("of process {pid}"), format!("nsenter --net={path} ip"))
    }

    /// One that the caller holds open; `name` is how messages call it.
    pub fn from_fd(fd: OwnedFd, name: String) -> Result<Self, NetnsError> {
        let ip = format!("nsenter --net=/proc/{}/fd/{} ip", Pid::this(), fd.as_raw_fd());
        Self::checked(fd, name, ip)
    }

    fn checked(fd: OwnedFd, name: String, ip: String) -> Result<Self, NetnsError> {
        // SAFETY: NS_GET_NSTYPE takes no argument and writes nothing; any other kind of file refuses it.
        let kind = unsafe { libc::ioctl(fd.as_raw_fd(), libc::NS_GET_NSTYPE) };
        if kind != libc::CLONE_NEWNET {
            return Err(NetnsError::NotANetns { netns: name });
        }
        match fstat(&fd) {
            Ok(stat) => Ok(Self { fd, name, ip, id: NetnsId { device: stat.st_dev, inode: stat.st_ino } }),
            Err(source) => Err(NetnsError::Identify { netns: name, source }),
        }
    }

    fn open(path: &Path, name: String, ip: String) -> Result<Self, NetnsError> {
        // O_NONBLOCK: the path is the user's, and a FIFO there must not hang egressd.
        match open(path, OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK, Mode::empty()) {
            Ok(fd) => Self::checked(fd, name, ip),
            Err(source) => Err(NetnsError::Open { netns: name, source }),
        }
    }

    /// A second handle of the same namespace.
    pub fn try_clone(&self) -> Result<Self, NetnsError> {
        let fd = self.fd.try_clone().map_err(|error| NetnsError::Open {
            netns: self.name.clone(),
            source: error.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw),
        })?;
        Ok(Self { fd, name: self.name.clone(), ip: self.ip.clone(), id: self.id })
    }

    /// How messages call it: a name, a path, `of process PID`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What to type for `ip` to act inside, for messages that say what to type next.
    pub fn ip_command(&self) -> &str {
        &self.ip
    }

    /// Which one it is.
    pub fn id(&self) -> NetnsId {
        self.id
    }

    /// True when both handles hold one namespace.
    pub fn same_as(&self, other: &Self) -> bool {
        self.id == other.id
    }

    /// What `bpf_get_netns_cookie` says in it: never given to another namespace until the next boot.
    pub fn cookie(&self) -> Result<u64, NetnsError> {
        self.enter(|| {
            let socket = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
            sockopt::get(&socket, libc::SO_NETNS_COOKIE)
        })?
        .map_err(|source| NetnsError::Identify { netns: self.name.clone(), source })
    }

    /// Runs `work` inside. It gets a thread of its own for that, unless the caller's is there: nothing else of this process ever
    /// moves. Sockets that it opens stay in that namespace.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
        // A move takes the kernel milliseconds, also to where one is already, and a thread a tenth of one.
        if Self::current().is_ok_and(|current| current.same_as(self)) {
            return Ok(work());
        }
        let netns = || self.name.clone();
        thread::scope(|scope| {
            thread::Builder::new()
                .name("in-netns".into())
                .spawn_scoped(scope, || setns(&self.fd, CloneFlags::CLONE_NEWNET).map(|()| work()))
                .map_err(|source| NetnsError::Thread { netns: netns(), source })?
                .join()
                .map_err(|_| NetnsError::Panicked { netns: netns() })?
                .map_err(|source| NetnsError::Enter { netns: netns(), source })
        })
    }

    /// Like [`Netns::enter`] for work that talks netlink.
    pub(super) fn ask<T: Send>(&self, work: impl FnOnce() -> Result<T, NetlinkError> + Send) -> Result<T, NetnsError> {
        self.enter(work)?.map_err(|source| NetnsError::Netlink { netns: self.name.clone(), source })
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl fmt::Display for Netns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_to_name_our_own_namespace_finds_it() {
        let current = Netns::current().unwrap();
        let by_path = Netns::from_path(Path::new("/proc/self/ns/net")).unwrap();
        let by_pid = Netns::from_pid(Pid::this()).unwrap();
        assert!(
            current.same_as(&by_path) && current.same_as(&by_pid) && current.same_as(&current.try_clone().unwrap())
        );
        assert_eq!(by_pid.to_string(), format!("of process {}", Pid::this()));
        assert_eq!(by_path.ip_command(), "nsenter --net=/proc/self/ns/net ip");
        assert_eq!(by_pid.ip_command(), format!("nsenter --net=/proc/{}/ns/net ip", Pid::this()));
    }

    #[test]
    fn what_is_no_network_namespace_is_refused() {
        for path in ["/proc/self/ns/mnt", "/dev/null", "/proc/self/status", "/"] {
            let refused = Netns::from_path(Path::new(path));
            assert!(matches!(refused, Err(NetnsError::NotANetns { .. })), "{path}: {refused:?}");
        }
        for name in ["", ".", "..", "../ns", "a/b"] {
            assert!(matches!(Netns::from_name(name), Err(NetnsError::Name { .. })), "{name}");
        }
        let missing = Netns::from_name("egressd-test-missing").unwrap_err();
        assert!(missing.to_string().contains("egressd-test-missing"), "{missing}");
    }
}

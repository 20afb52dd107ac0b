//! Sockets that the processes of a sandbox hold but did not make in it.
//!
//! A socket belongs for life to the cgroup in which it was made, and only that cgroup's hooks see it: one that was inherited,
//! passed or made before its process joined is out of the sandbox's reach. Not seen here are descriptors in flight between
//! unix sockets and files registered with io_uring alone. Freeze the cgroup while looking, or the answer is of the past.

use super::{
    netns::{Netns, NetnsError, NetnsId},
    sock_diag::{self, InetSocket, Protocol},
    sockopt,
};
use nix::{
    errno::Errno,
    sys::socket::{SockaddrStorage, getpeername, getsockname},
    unistd::Pid,
};
use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    fs, io,
    net::SocketAddr,
    os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
    path::PathBuf,
    sync::Arc,
};

/// PIDFD_THREAD of pidfd_open(2), kernel 6.9.
const PIDFD_THREAD: libc::c_uint = libc::O_EXCL as libc::c_uint;

/// Why a sandbox's sockets are not known.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// /proc does not show a process's descriptors.
    #[error(
        "cannot read {path}: listing a sandbox's sockets needs root (CAP_SYS_PTRACE) and a /proc that shows its processes"
    )]
    Process {
        /// The directory.
        path: PathBuf,
        /// What reading it said.
        source: io::Error,
    },
    /// The sockets of a namespace could not be listed.
    #[error("cannot list the sockets of a network namespace")]
    Netns(#[from] NetnsError),
    /// The kernel offers no way to end this one.
    #[error(
        "descriptor {fd} of process {pid} ({kind}) cannot be ended from outside: stop the process and start it without it"
    )]
    NotDestroyable {
        /// Who holds it.
        pid: Pid,
        /// Under which number.
        fd: RawFd,
        /// What it is.
        kind: SocketKind,
    },
}

/// What a socket speaks.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum SocketKind {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// Raw IPv4 or IPv6.
    Raw,
    /// AF_PACKET.
    Packet,
    /// Anything else that may leave the host.
    Other {
        /// `AF_*`.
        family: i32,
        /// Its number within the family.
        protocol: i32,
    },
    /// It could not be looked at.
    Unreadable,
}

impl std::fmt::Display for SocketKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp => f.write_str("TCP"),
            Self::Udp => f.write_str("UDP"),
            Self::Raw => f.write_str("raw IP"),
            Self::Packet => f.write_str("AF_PACKET"),
            Self::Other { family, protocol } => write!(f, "address family {family}, protocol {protocol}"),
            Self::Unreadable => f.write_str("a socket that cannot be looked at"),
        }
    }
}

/// Where a socket was made.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Origin {
    /// In the v2 cgroup with this id, which is none of the sandbox's.
    Cgroup(u64),
    /// The kernel does not say: it tells the cgroup of TCP and UDP sockets that are bound, connected or listening.
    Unknown,
}

/// A socket that the sandbox's hooks may not see.
#[derive(Clone, Debug)]
pub struct ForeignSocket {
    /// One process that holds it.
    pub pid: Pid,
    /// The descriptor there.
    pub fd: RawFd,
    /// What it speaks.
    pub kind: SocketKind,
    /// Where it was made.
    pub origin: Origin,
    /// Where it is bound, if it is an internet socket.
    pub local: Option<SocketAddr>,
    /// Where it is connected to.
    pub remote: Option<SocketAddr>,
    listed: Option<(Arc<Netns>, InetSocket)>,
}

impl ForeignSocket {
    /// Ends its connection (see [`sock_diag::destroy`]: it stays open, and foreign). False when that was over already.
    pub fn destroy(&self) -> Result<bool, SocketError> {
        let Some((netns, socket)) = &self.listed else {
            return Err(SocketError::NotDestroyable { pid: self.pid, fd: self.fd, kind: self.kind });
        };
        Ok(sock_diag::destroy(netns, socket)?)
    }
}

/// The sockets in the hands of `pids` that were not made in one of the cgroups `own` (ids of the sandbox's cgroup and of those
/// below), each once. Where a socket was made may be unknown; then it is listed. Unix and netlink sockets are not.
pub fn foreign_sockets(pids: &[Pid], own: &BTreeSet<u64>) -> Result<Vec<ForeignSocket>, SocketError> {
    let (mut seen, mut tables, mut foreign) = (BTreeSet::new(), Tables::default(), Vec::new());
    for pid in pids {
        for Held { thread, fd, inode } in held(*pid)? {
            if seen.insert(inode) {
                foreign.extend(judge(*pid, thread, fd, own, &mut tables)?);
            }
        }
    }
    Ok(foreign)
}

/// A socket in one thread's table of descriptors. Threads nearly always share one, but may have their own.
struct Held {
    thread: Pid,
    fd: RawFd,
    inode: u64,
}

fn held(pid: Pid) -> Result<Vec<Held>, SocketError> {
    let mut held = Vec::new();
    for thread in entries(format!("/proc/{pid}/task").into())? {
        let path = PathBuf::from(format!("/proc/{pid}/task/{thread}/fd"));
        for fd in entries(path.clone())? {
            // Closed meanwhile: not held any more.
            let Ok(target) = fs::read_link(path.join(fd.to_string())) else { continue };
            if let Some(inode) = target.to_str().and_then(socket_inode) {
                held.push(Held { thread: Pid::from_raw(thread), fd, inode });
            }
        }
    }
    Ok(held)
}

/// The numbers that name the entries of a directory of /proc; none for a process that ended.
fn entries(path: PathBuf) -> Result<Vec<i32>, SocketError> {
    let gone = |error: &io::Error| matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH));
    let read = fs::read_dir(&path).and_then(|dir| {
        dir.map(|entry| Ok(entry?.file_name().to_str().and_then(|name| name.parse().ok())))
            .collect::<io::Result<Vec<_>>>()
    });
    match read {
        Ok(names) => Ok(names.into_iter().flatten().collect()),
        Err(error) if gone(&error) => Ok(Vec::new()),
        Err(source) => Err(SocketError::Process { path, source }),
    }
}

/// From what readlink says of a descriptor: `socket:[INODE]`.
fn socket_inode(link: &str) -> Option<u64> {
    link.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

fn judge(
    pid: Pid,
    thread: Pid,
    fd: RawFd,
    own: &BTreeSet<u64>,
    tables: &mut Tables,
) -> Result<Option<ForeignSocket>, SocketError> {
    let mut foreign = ForeignSocket {
        pid,
        fd,
        kind: SocketKind::Unreadable,
        origin: Origin::Unknown,
        local: None,
        remote: None,
        listed: None,
    };
    let socket = match duplicate(pid, thread, fd) {
        Ok(socket) => socket,
        Err(Errno::EBADF | Errno::ESRCH) => return Ok(None),
        Err(_) => return Ok(Some(foreign)),
    };
    match kind(&socket) {
        Ok(Some(kind)) => foreign.kind = kind,
        Ok(None) => return Ok(None),
        Err(_) => return Ok(Some(foreign)),
    }
    foreign.local = getsockname(socket.as_raw_fd()).ok().as_ref().and_then(address);
    foreign.remote = getpeername(socket.as_raw_fd()).ok().as_ref().and_then(address);
    if matches!(foreign.kind, SocketKind::Tcp | SocketKind::Udp) {
        foreign.listed = tables.find(&socket, pid)?;
    }
    match foreign.listed.as_ref().and_then(|(_, socket)| socket.cgroup) {
        Some(cgroup) if own.contains(&cgroup) => return Ok(None),
        Some(cgroup) => foreign.origin = Origin::Cgroup(cgroup),
        None => {}
    }
    Ok(Some(foreign))
}

/// Our own descriptor of the same socket.
fn duplicate(pid: Pid, thread: Pid, fd: RawFd) -> Result<OwnedFd, Errno> {
    let flags = if pid == thread { 0 } else { PIDFD_THREAD };
    // SAFETY: pidfd_open takes two numbers.
    let pidfd = owned(unsafe { libc::syscall(libc::SYS_pidfd_open, thread.as_raw(), flags) })?;
    // SAFETY: pidfd_getfd takes three numbers; the first stays open across the call.
    owned(unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), fd, 0) })
}

/// Takes the descriptor that a system call returned.
fn owned(returned: libc::c_long) -> Result<OwnedFd, Errno> {
    let fd = Errno::result(returned)? as RawFd;
    // SAFETY: the kernel just gave this descriptor to us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// None for families that never leave the host.
fn kind(socket: &OwnedFd) -> Result<Option<SocketKind>, Errno> {
    let option = |name| sockopt::get::<i32>(socket, name);
    let (family, kind, protocol) = (option(libc::SO_DOMAIN)?, option(libc::SO_TYPE)?, option(libc::SO_PROTOCOL)?);
    Ok(match (family, kind, protocol) {
        (libc::AF_UNIX | libc::AF_NETLINK, ..) => None,
        (libc::AF_INET | libc::AF_INET6, libc::SOCK_RAW, _) => Some(SocketKind::Raw),
        (libc::AF_INET | libc::AF_INET6, _, libc::IPPROTO_TCP) => Some(SocketKind::Tcp),
        (libc::AF_INET | libc::AF_INET6, _, libc::IPPROTO_UDP) => Some(SocketKind::Udp),
        (libc::AF_PACKET, ..) => Some(SocketKind::Packet),
        _ => Some(SocketKind::Other { family, protocol }),
    })
}

fn address(storage: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = storage.as_sockaddr_in().map(|v4| SocketAddr::from((v4.ip(), v4.port())));
    v4.or_else(|| storage.as_sockaddr_in6().map(|v6| SocketAddr::from((v6.ip(), v6.port()))))
}

/// The sockets of each namespace that was met, by cookie. A descriptor may come from a namespace that is not its process's.
#[derive(Default)]
struct Tables(BTreeMap<NetnsId, (Arc<Netns>, BTreeMap<u64, InetSocket>)>);

impl Tables {
    fn find(&mut self, socket: &OwnedFd, pid: Pid) -> Result<Option<(Arc<Netns>, InetSocket)>, SocketError> {
        // SAFETY: SIOCGSKNS takes no argument and returns a new descriptor.
        let netns = owned(unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::SIOCGSKNS) }.into());
        let (Ok(netns), Ok(cookie)) = (netns, sockopt::get::<u64>(socket, libc::SO_COOKIE)) else { return Ok(None) };
        let netns = Netns::from_fd(netns, format!("of a socket of process {pid}"))?;
        let (netns, sockets) = match self.0.entry(netns.id()) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => {
                let sockets = sock_diag::list(&netns, &[Protocol::Tcp, Protocol::Udp])?
                    .into_iter()
                    .map(|socket| (socket.cookie, socket))
                    .collect();
                new.insert((Arc::new(netns), sockets))
            }
        };
        Ok(sockets.get(&cookie).map(|socket| (Arc::clone(netns), socket.clone())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sockets_have_a_socket_inode() {
        assert_eq!(socket_inode("socket:[4711]"), Some(4711));
        for other in ["pipe:[4711]", "/dev/null", "socket:[]", "socket:[47", "socket:4711", "anon_inode:[eventfd]"] {
            assert_eq!(socket_inode(other), None, "{other}");
        }
    }
}

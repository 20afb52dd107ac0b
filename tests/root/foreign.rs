//! Foreign sockets: which cgroup a process's sockets were made in, and what ends them.

use egress_agent::datapath::{
    netns::Netns,
    sock_diag::{self, Protocol},
    sockets::{ForeignSocket, Origin, SocketError, SocketKind, foreign_sockets},
};
use nix::{
    sched::{CloneFlags, unshare},
    sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket},
    unistd::Pid,
};
use std::{
    collections::BTreeSet,
    fs::{self, File, OpenOptions},
    io::{ErrorKind, Read as _, Write as _},
    net::{TcpListener, TcpStream, UdpSocket},
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd, RawFd},
        unix::{fs::MetadataExt as _, net::UnixDatagram, process::CommandExt as _},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
};

/// A cgroup that is removed in the end.
struct Cgroup(PathBuf);

impl Cgroup {
    fn new() -> Self {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let line = table.lines().find(|line| line.contains(" - cgroup2 ")).expect("a cgroup v2 mount");
        let root = Path::new(line.split(' ').nth(4).unwrap());
        Self::at(root.join(format!("egl-{}-sockets{}", std::process::id(), MADE.fetch_add(1, Ordering::Relaxed))))
    }

    fn at(path: PathBuf) -> Self {
        fs::create_dir(&path).expect("making a cgroup needs root");
        Self(path)
    }

    fn id(&self) -> u64 {
        fs::metadata(&self.0).unwrap().ino()
    }

    fn processes(&self) -> File {
        OpenOptions::new().write(true).open(self.0.join("cgroup.procs")).unwrap()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        fs::remove_dir(&self.0).ok();
    }
}

/// A process that waits in a cgroup.
struct Sandboxed {
    child: Child,
    inherited: Vec<RawFd>,
}

impl Sandboxed {
    /// Joins `cgroup`, then makes one TCP listener and one bound UDP socket, and keeps `inherited` open.
    fn spawn(netns: &Netns, cgroup: &Cgroup, inherited: &[BorrowedFd<'_>]) -> Self {
        let inherited: Vec<_> = inherited.iter().map(std::os::fd::AsRawFd::as_raw_fd).collect();
        let (kept, processes) = (inherited.clone(), cgroup.processes());
        let mut command = Command::new("cat");
        command.stdin(Stdio::piped()).stdout(Stdio::null());
        let prepare = move || {
            (&processes).write_all(b"0")?;
            for kind in [SockType::Stream, SockType::Datagram] {
                let own = socket(AddressFamily::Inet, kind, SockFlag::empty(), None)?;
                let any = nix::sys::socket::SockaddrIn::new(127, 0, 0, 1, 0);
                nix::sys::socket::bind(own.as_raw_fd(), &any)?;
                // The program that comes keeps it.
                std::mem::forget(own);
            }
            for fd in &kept {
                // SAFETY: F_SETFD takes a number; the descriptor is open in the parent until spawn returns.
                unsafe { libc::fcntl(*fd, libc::F_SETFD, 0) };
            }
            Ok(())
        };
        // SAFETY: between fork and exec it only makes system calls and allocates nothing.
        unsafe { command.pre_exec(prepare) };
        Self { child: netns.enter(move || command.spawn().unwrap()).unwrap(), inherited }
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).unwrap())
    }

    fn foreign(&self, own: &[u64]) -> Vec<ForeignSocket> {
        foreign_sockets(&[self.pid()], &own.iter().copied().collect()).unwrap()
    }

    fn descriptors(&self, own: &[u64]) -> BTreeSet<RawFd> {
        self.foreign(own).iter().map(|socket| socket.fd).collect()
    }
}

impl Drop for Sandboxed {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn netns() -> Netns {
    let netns = thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace needs root");
        Netns::current().unwrap()
    })
    .join()
    .unwrap();
    netns.set_loopback_up().unwrap();
    netns
}

fn open(netns: &Netns, family: AddressFamily, kind: SockType, protocol: Option<SockProtocol>) -> OwnedFd {
    netns.enter(|| socket(family, kind, SockFlag::SOCK_CLOEXEC, protocol).unwrap()).unwrap()
}

/// Both ends of a connection inside.
fn connection(netns: &Netns) -> (TcpStream, TcpStream) {
    netns
        .enter(|| {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            (client, listener.accept().unwrap().0)
        })
        .unwrap()
}

#[test]
fn sockets_from_outside_are_foreign_and_own_ones_are_not() {
    let (inside, elsewhere, cgroup) = (netns(), netns(), Cgroup::new());
    let here = own_cgroup();
    let (client, _server) = connection(&inside);
    let bound = inside.enter(|| UdpSocket::bind("[::1]:0").unwrap()).unwrap();
    let away = elsewhere.enter(|| UdpSocket::bind("127.0.0.1:0").unwrap()).unwrap();
    let loose_udp = open(&inside, AddressFamily::Inet, SockType::Datagram, None);
    let loose_tcp = open(&inside, AddressFamily::Inet6, SockType::Stream, None);
    let raw = open(&inside, AddressFamily::Inet, SockType::Raw, Some(SockProtocol::Icmp));
    let packet = open(&inside, AddressFamily::Packet, SockType::Raw, None);
    let harmless = UnixDatagram::unbound().unwrap();
    let netlink = open(&inside, AddressFamily::Netlink, SockType::Raw, None);
    let held: [BorrowedFd<'_>; 9] = [
        client.as_fd(),
        bound.as_fd(),
        away.as_fd(),
        loose_udp.as_fd(),
        loose_tcp.as_fd(),
        raw.as_fd(),
        packet.as_fd(),
        harmless.as_fd(),
        netlink.as_fd(),
    ];
    let sandboxed = Sandboxed::spawn(&inside, &cgroup, &held);

    let expected = [
        (SocketKind::Tcp, Origin::Cgroup(here)),
        (SocketKind::Udp, Origin::Cgroup(here)),
        (SocketKind::Udp, Origin::Cgroup(here)),
        (SocketKind::Udp, Origin::Unknown),
        (SocketKind::Tcp, Origin::Unknown),
        (SocketKind::Raw, Origin::Unknown),
        (SocketKind::Packet, Origin::Unknown),
    ];
    let foreign = sandboxed.foreign(&[cgroup.id()]);
    let found: Vec<_> = sandboxed
        .inherited
        .iter()
        .filter_map(|fd| foreign.iter().find(|socket| socket.fd == *fd))
        .map(|socket| (socket.kind, socket.origin))
        .collect();
    assert_eq!((found.as_slice(), foreign.len()), (&expected[..], expected.len()), "{foreign:#?}");
    let connected = foreign.iter().find(|socket| socket.fd == client.as_raw_fd()).unwrap();
    assert_eq!((connected.pid, connected.local), (sandboxed.pid(), client.local_addr().ok()));
    assert_eq!(connected.remote, client.peer_addr().ok());

    // The control: seen from another sandbox, the two of its own are foreign as well.
    assert_eq!(sandboxed.descriptors(&[]).len(), expected.len() + 2);
    assert_eq!(sandboxed.descriptors(&[cgroup.id(), here]).len(), 4, "only the unknown ones are left");
}

#[test]
fn a_cgroup_below_is_the_sandboxs_when_it_is_named() {
    let (inside, outer) = (netns(), Cgroup::new());
    let inner = Cgroup::at(outer.0.join("inner"));
    let sandboxed = Sandboxed::spawn(&inside, &inner, &[]);
    assert!(sandboxed.foreign(&[outer.id(), inner.id()]).is_empty());
    let origins: BTreeSet<_> = sandboxed.foreign(&[outer.id()]).iter().map(|socket| socket.origin).collect();
    assert_eq!(origins, [Origin::Cgroup(inner.id())].into());
    drop(sandboxed);
    drop(inner);
}

#[test]
fn destroying_ends_the_connection_and_not_the_descriptor() {
    let (inside, cgroup) = (netns(), Cgroup::new());
    let (mut client, mut server) = connection(&inside);
    let (mut other, mut other_server) = connection(&inside);
    let loose = open(&inside, AddressFamily::Inet, SockType::Datagram, None);
    let sandboxed = Sandboxed::spawn(&inside, &cgroup, &[client.as_fd(), loose.as_fd()]);
    let foreign = sandboxed.foreign(&[cgroup.id()]);
    let of = |fd: RawFd| foreign.iter().find(|socket| socket.fd == fd).unwrap();
    assert!(of(client.as_raw_fd()).destroy().unwrap());
    assert_eq!(client.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionAborted);
    assert_eq!(server.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert!(!of(client.as_raw_fd()).destroy().unwrap(), "it is gone");
    let refused = of(loose.as_raw_fd()).destroy().unwrap_err();
    assert!(matches!(refused, SocketError::NotDestroyable { kind: SocketKind::Udp, .. }), "{refused}");
    // Another connection is untouched.
    other_server.write_all(b"x").unwrap();
    assert_eq!(other.read(&mut [0]).unwrap(), 1);

    // What `destroy` says of the descriptor: it connects again.
    let listener = inside.enter(|| TcpListener::bind("127.0.0.1:0").unwrap()).unwrap();
    let again = nix::sys::socket::SockaddrStorage::from(listener.local_addr().unwrap());
    nix::sys::socket::connect(client.as_raw_fd(), &again)
        .or_else(|_| {
            let unspecified = libc::sockaddr { sa_family: libc::AF_UNSPEC as u16, sa_data: [0; 14] };
            // SAFETY: the address lives across the call and is as long as said.
            let done = unsafe {
                libc::connect(
                    client.as_raw_fd(),
                    &raw const unspecified,
                    size_of::<libc::sockaddr>() as libc::socklen_t,
                )
            };
            nix::errno::Errno::result(done)?;
            nix::sys::socket::connect(client.as_raw_fd(), &again)
        })
        .unwrap();
    assert_eq!(client.peer_addr().ok(), listener.local_addr().ok());
}

#[test]
fn sockets_of_a_namespace_are_listed_and_ended_one_by_one() {
    let (inside, outside) = (netns(), netns());
    let (mut client, _server) = connection(&inside);
    let udp = inside.enter(|| UdpSocket::bind("[::1]:0").unwrap()).unwrap();
    udp.connect("[::1]:9").unwrap();
    udp.set_nonblocking(true).unwrap();
    let sockets = sock_diag::list(&inside, &[Protocol::Tcp, Protocol::Udp]).unwrap();
    let of = |local| sockets.iter().find(|socket| Some(socket.local) == local).unwrap();
    let (tcp, datagrams) = (of(client.local_addr().ok()), of(udp.local_addr().ok()));
    assert_eq!((tcp.remote, tcp.cgroup), (client.peer_addr().ok(), Some(own_cgroup())));
    assert_eq!(datagrams.remote, "[::1]:9".parse().ok());
    assert!(sock_diag::list(&outside, &[Protocol::Tcp, Protocol::Udp]).unwrap().is_empty());

    assert_eq!(udp.recv(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
    assert!(sock_diag::destroy(&inside, datagrams).unwrap());
    assert_eq!(udp.recv(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionAborted);
    assert!(!sock_diag::destroy(&outside, tcp).unwrap(), "it is not there");
    assert!(sock_diag::destroy(&inside, tcp).unwrap());
    assert_eq!(client.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionAborted);
}

#[test]
fn a_process_that_is_gone_holds_nothing() {
    let (inside, cgroup) = (netns(), Cgroup::new());
    let sandboxed = Sandboxed::spawn(&inside, &cgroup, &[]);
    let pid = sandboxed.pid();
    assert_eq!(foreign_sockets(&[pid, pid], &BTreeSet::new()).unwrap().len(), 2);
    drop(sandboxed);
    assert!(foreign_sockets(&[pid], &BTreeSet::new()).unwrap().is_empty());
}

/// Id of the v2 cgroup of this process.
fn own_cgroup() -> u64 {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let root = table.lines().find(|line| line.contains(" - cgroup2 ")).and_then(|line| line.split(' ').nth(4)).unwrap();
    let mine = fs::read_to_string("/proc/self/cgroup").unwrap();
    let path = mine.lines().find_map(|line| line.strip_prefix("0::/")).unwrap();
    fs::metadata(Path::new(root).join(path)).unwrap().ino()
}

//! Which open descriptors CMD inherits.
//!
//! A socket belongs to the cgroup of its birth, so one that comes from outside passes no hook of the sandbox; an object that
//! can make or fetch sockets (io_uring, pidfd, tun) is no better.

use super::error::{FdKind, RunError};
use nix::sys::statfs::{BPF_FS_MAGIC, CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC, FsType, NSFS_MAGIC, statfs};
use std::{
    fs, io,
    os::{
        fd::RawFd,
        unix::{
            ffi::OsStrExt,
            fs::{FileTypeExt, MetadataExt},
        },
    },
};

/// Major number of miscellaneous devices: tun, vhost-net, vsock, kvm (Documentation/admin-guide/devices.txt).
const MISC_MAJOR: u64 = 10;

/// Descriptors, 3 and above, that CMD inherits beside 0, 1 and 2.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct KeptFds(Vec<RawFd>);

impl KeptFds {
    /// Looks at 0, 1, 2 and at the arguments of `--keep-fd`. Call it first thing after start: what egressd opens itself is
    /// told from what was handed over only by its close-on-exec flag.
    ///
    /// # Errors
    /// An internet socket (any socket but a unix one) or a refused object among 0-2; a kept descriptor that is not open,
    /// that is egressd's own, or that is a socket or a refused object.
    pub fn check(keep: &[RawFd]) -> Result<Self, RunError> {
        for fd in 0..=2 {
            match kind(fd) {
                Ok(None | Some(FdKind::Socket(Some(libc::AF_UNIX)) | FdKind::Other)) => {}
                Ok(Some(kind)) => return Err(RunError::StdioRefused { fd, kind }),
                // Closed, which is the caller's choice.
                Err(source) if source.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(RunError::FdUnreadable { fd, source }),
            }
        }
        let mut kept = Vec::new();
        for &fd in keep.iter().filter(|fd| !(0..=2).contains(*fd)) {
            if !inherited(fd).map_err(|source| RunError::FdUnreadable { fd, source })? {
                return Err(RunError::FdNotInherited(fd));
            }
            match kind(fd).map_err(|source| RunError::FdUnreadable { fd, source })? {
                None => kept.push(fd),
                Some(kind) => return Err(RunError::FdRefused { fd, kind }),
            }
        }
        kept.sort_unstable();
        kept.dedup();
        Ok(Self(kept))
    }

    /// The descriptors, ascending.
    pub fn as_slice(&self) -> &[RawFd] {
        &self.0
    }
}

/// True where the descriptor is open and would survive an exec, as all do that came through one.
fn inherited(fd: RawFd) -> io::Result<bool> {
    let flags = match fs::read_to_string(format!("/proc/self/fdinfo/{fd}")) {
        Ok(text) => text.lines().find_map(|line| i32::from_str_radix(line.strip_prefix("flags:")?.trim(), 8).ok()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    flags.map(|flags| flags & libc::O_CLOEXEC == 0).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// What the descriptor is, where that is a reason to refuse it.
fn kind(fd: RawFd) -> io::Result<Option<FdKind>> {
    let path = format!("/proc/self/fd/{fd}");
    let target = fs::read_link(&path)?;
    let metadata = fs::metadata(&path)?;
    let file_type = metadata.file_type();
    Ok(if file_type.is_socket() {
        Some(FdKind::Socket(socket_family(fd)))
    } else if target.as_os_str().as_bytes().starts_with(b"anon_inode:") {
        Some(FdKind::Anonymous)
    } else if file_type.is_char_device() {
        (nix::sys::stat::major(metadata.rdev()) == MISC_MAJOR).then_some(FdKind::PacketDevice)
    } else if file_type.is_fifo() {
        None
    } else if file_type.is_file() || file_type.is_dir() {
        is_kernel_file(statfs(path.as_str())?.filesystem_type()).then_some(FdKind::KernelFile)
    } else {
        Some(FdKind::Other)
    })
}

fn is_kernel_file(fs: FsType) -> bool {
    [BPF_FS_MAGIC, CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC, NSFS_MAGIC].contains(&fs)
}

fn socket_family(fd: RawFd) -> Option<i32> {
    let mut family: libc::c_int = 0;
    let mut length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: both pointers lead to locals that outlive the call, and `length` is the size of the first. The number may
    // belong to anything: the call fails then.
    let failed =
        unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_DOMAIN, (&raw mut family).cast(), &raw mut length) };
    (failed == 0).then_some(family)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::fcntl::{FcntlArg, FdFlag, fcntl};
    use std::{
        fs::File,
        net::{TcpListener, UdpSocket},
        os::{
            fd::{AsFd, AsRawFd},
            unix::net::UnixDatagram,
        },
    };

    /// Opened by Rust with close-on-exec; without it the descriptor looks as if it had been handed over.
    fn handed_over<Fd: AsFd + AsRawFd>(fd: &Fd) -> RawFd {
        fcntl(fd.as_fd(), FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
        fd.as_raw_fd()
    }

    #[test]
    fn files_pipes_and_plain_devices_are_kept() {
        let (reader, writer) = io::pipe().unwrap();
        let (null, file, dir) =
            (File::open("/dev/null").unwrap(), tempfile::tempfile().unwrap(), File::open("/").unwrap());
        let mut fds =
            [handed_over(&reader), handed_over(&writer), handed_over(&null), handed_over(&file), handed_over(&dir)];
        fds.reverse();
        let kept = KeptFds::check(&[&fds[..], &fds[..2], &[1]].concat()).unwrap();
        fds.sort_unstable();
        assert_eq!(kept.as_slice(), fds);
    }

    #[test]
    fn sockets_are_refused_with_their_family() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let udp = UdpSocket::bind("[::1]:0").unwrap();
        let unix = UnixDatagram::unbound().unwrap();
        for (fd, family) in [
            (handed_over(&tcp), libc::AF_INET),
            (handed_over(&udp), libc::AF_INET6),
            (handed_over(&unix), libc::AF_UNIX),
        ] {
            let error = KeptFds::check(&[fd]).unwrap_err();
            assert!(matches!(error, RunError::FdRefused { kind: FdKind::Socket(Some(found)), .. } if found == family));
        }
    }

    #[test]
    fn kernel_objects_are_refused() {
        let namespace = File::open("/proc/self/ns/net").unwrap();
        let error = KeptFds::check(&[handed_over(&namespace)]).unwrap_err();
        assert!(matches!(error, RunError::FdRefused { kind: FdKind::KernelFile, .. }));
        let event = nix::sys::eventfd::EventFd::new().unwrap();
        let error = KeptFds::check(&[handed_over(&event)]).unwrap_err();
        assert!(matches!(error, RunError::FdRefused { kind: FdKind::Anonymous, .. }));
    }

    #[test]
    fn what_was_not_handed_over_is_refused() {
        let own = File::open("/dev/null").unwrap();
        assert!(matches!(KeptFds::check(&[own.as_raw_fd()]), Err(RunError::FdNotInherited(_))));
        assert!(matches!(KeptFds::check(&[1 << 20]), Err(RunError::FdNotInherited(_))));
        assert!(matches!(KeptFds::check(&[-1]), Err(RunError::FdNotInherited(-1))));
    }
}

//! Why CMD could not be started or followed.

use crate::cgroup::CgroupError;
use std::{ffi::OsString, io, os::fd::RawFd};

/// Everything of egressd's own that can go wrong around CMD. [`RunError::exit_code`] is what `run` exits with.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// No such command.
    #[error("{}: command not found", .0.display())]
    NotFound(OsString),
    /// There, but the kernel will not execute it.
    #[error("{}: cannot execute", command.display())]
    NotExecutable {
        /// What was to be executed.
        command: OsString,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A signal came before CMD was started; it never was.
    #[error("stopped by signal {signal} before the command was started")]
    Interrupted {
        /// Its number.
        signal: u8,
    },
    /// `run` without a command.
    #[error("no command; say what to run: egressd run … -- CMD [ARG…]")]
    NoCommand,
    /// An argument or variable with a NUL byte in it, which no process can be given.
    #[error("{} has a NUL byte in it", .0.display())]
    Nul(OsString),
    /// `--env` without `=` or a name.
    #[error("--env {}: write --env NAME=VALUE", .0.display())]
    EnvSyntax(OsString),
    /// `--env` with a name that is egressd's own.
    #[error("--env {}: names that begin with EGRESSD_ are egressd's own and never reach the command", .0.display())]
    EnvReserved(OsString),
    /// A capability that does not exist.
    #[error("--keep-cap {0}: no such capability; names are as in capabilities(7), such as net_bind_service")]
    UnknownCapability(String),
    /// A capability with which every promise is void.
    #[error("--keep-cap {0}: never kept, because a process that has it can switch enforcement off")]
    ForbiddenCapability(String),
    /// A capability that cgroup hooks alone do not hold.
    #[error(
        "--keep-cap {0}: only with a network namespace of its own (--netns) whose host-side device was found, because packets written below IP pass no cgroup hook"
    )]
    CapabilityNeedsDevice(String),
    /// A capability that egressd itself does not have.
    #[error("--keep-cap {0}: egressd does not have it itself; run as root")]
    CapabilityNotHeld(String),
    /// `--keep-fd` of a descriptor that nobody handed over.
    #[error("--keep-fd {0}: not open when egressd was started")]
    FdNotInherited(RawFd),
    /// `--keep-fd` of what could send past the hooks, or carry such a descriptor.
    #[error("--keep-fd {fd} is {kind}; only files, directories, pipes, terminals and plain devices can be kept")]
    FdRefused {
        /// The descriptor.
        fd: RawFd,
        /// What it is.
        kind: FdKind,
    },
    /// A socket on 0, 1 or 2 that belongs to the caller's cgroup for ever.
    #[error(
        "descriptor {fd} is {kind}, whose packets no hook of the sandbox sees; redirect it (for example through cat)"
    )]
    StdioRefused {
        /// 0, 1 or 2.
        fd: RawFd,
        /// What it is.
        kind: FdKind,
    },
    /// A descriptor could not be looked at.
    #[error("cannot look at descriptor {fd}")]
    FdUnreadable {
        /// The descriptor.
        fd: RawFd,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Something about the user.
    #[error(transparent)]
    Identity(#[from] super::identity::IdentityError),
    /// Something about the cgroup.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The child could not be made what it must be, and was ended before it executed anything.
    #[error("cannot {} for the command", step.action())]
    Child {
        /// Where it failed.
        step: Step,
        /// The kernel's answer.
        source: io::Error,
    },
    /// No filter of system calls for this machine.
    #[error("cannot make a seccomp filter for this machine; egressd run needs x86_64, aarch64 or riscv64")]
    Seccomp(#[source] seccompiler::BackendError),
    /// A system call of the waiting side failed.
    #[error("{call} failed")]
    Syscall {
        /// Its name.
        call: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl RunError {
    /// Exit code of `run`: 127 not found, 126 not executable, 128+n stopped by signal n before the start, 125 all else.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::NotFound(_) => 127,
            Self::NotExecutable { .. } => 126,
            // Signal numbers are below 65.
            Self::Interrupted { signal } => 128 + signal,
            _ => 125,
        }
    }

    /// Names the system call of an error.
    pub(super) fn syscall(call: &'static str) -> impl FnOnce(nix::errno::Errno) -> Self {
        move |source| Self::Syscall { call, source: source.into() }
    }
}

/// What an inherited descriptor turned out to be, where it is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FdKind {
    /// A socket; the address family where it is known.
    Socket(Option<i32>),
    /// An object without a file: BPF map, io_uring, pidfd, epoll.
    Anonymous,
    /// A device that makes or carries packets (tun, tap, vhost), or another of the miscellaneous ones.
    PacketDevice,
    /// A file of cgroupfs, bpffs, nsfs or proc.
    KernelFile,
    /// A block device or something unknown.
    Other,
}

impl std::fmt::Display for FdKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Socket(Some(libc::AF_INET | libc::AF_INET6)) => f.write_str("an internet socket"),
            Self::Socket(Some(libc::AF_UNIX)) => f.write_str("a unix socket"),
            Self::Socket(Some(family)) => write!(f, "a socket of address family {family}"),
            Self::Socket(None) => f.write_str("a socket"),
            Self::Anonymous => f.write_str("a kernel object without a file"),
            Self::PacketDevice => f.write_str("a miscellaneous device such as tun or vhost"),
            Self::KernelFile => f.write_str("a file of cgroupfs, bpffs, nsfs or proc"),
            Self::Other => f.write_str("a block device or unknown"),
        }
    }
}

/// What the child does between its birth and the execution of CMD, in this order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum Step {
    /// Birth inside the cgroup.
    Clone,
    /// Moving into the cgroup, where it could not be born there.
    Cgroup,
    /// A pid namespace, and its first process.
    Pids,
    /// Entering the network namespace.
    Netns,
    /// A mount namespace, and its covers.
    Mounts,
    /// A session keyring.
    Keyring,
    /// Closing descriptors.
    Descriptors,
    /// Emptying the bounding set.
    Bounding,
    /// Switching off what uid 0 gains at exec.
    Securebits,
    /// Supplementary groups.
    Groups,
    /// Group id.
    Gid,
    /// User id.
    Uid,
    /// Permitted, effective and inheritable sets.
    Capabilities,
    /// Ambient set.
    Ambient,
    /// no_new_privs.
    NoNewPrivs,
    /// The filter of system calls.
    Seccomp,
    /// Working directory.
    Directory,
    /// Signal dispositions and mask.
    Signals,
    /// Executing CMD.
    Exec,
}

impl Step {
    const ALL: [Self; 19] = [
        Self::Clone,
        Self::Cgroup,
        Self::Pids,
        Self::Netns,
        Self::Mounts,
        Self::Keyring,
        Self::Descriptors,
        Self::Bounding,
        Self::Securebits,
        Self::Groups,
        Self::Gid,
        Self::Uid,
        Self::Capabilities,
        Self::Ambient,
        Self::NoNewPrivs,
        Self::Seccomp,
        Self::Directory,
        Self::Signals,
        Self::Exec,
    ];

    /// The step with this number, as it comes through the pipe.
    pub(super) fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|step| *step as u8 == number)
    }

    fn action(self) -> &'static str {
        match self {
            Self::Clone => "make a process in the cgroup",
            Self::Cgroup => "enter the cgroup",
            Self::Pids => "make a pid namespace (needs CAP_SYS_ADMIN: run as root, or give it up by --share pid)",
            Self::Mounts => {
                "make a mount namespace and cover in it what leads out (needs CAP_SYS_ADMIN: run as root, or give it up by --share mounts)"
            }
            Self::Keyring => "make a session keyring (a system call filter around egressd may refuse keyctl)",
            Self::Netns => "enter the network namespace (--netns; needs CAP_SYS_ADMIN)",
            Self::Descriptors => "close inherited descriptors",
            Self::Bounding => "empty the bounding set of capabilities (needs CAP_SETPCAP; run as root)",
            Self::Securebits => "set securebits (needs CAP_SETPCAP; run as root)",
            Self::Groups => "set supplementary groups (needs CAP_SETGID; run as root)",
            Self::Gid => "set the group id",
            Self::Uid => "set the user id",
            Self::Capabilities => "drop capabilities",
            Self::Ambient => "set ambient capabilities",
            Self::NoNewPrivs => "set no_new_privs",
            Self::Seccomp => "install the seccomp filter (needs a kernel with CONFIG_SECCOMP_FILTER)",
            Self::Directory => "enter the working directory",
            Self::Signals => "reset signals",
            Self::Exec => "execute",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_follow_the_contract() {
        let io = || io::Error::from_raw_os_error(libc::EACCES);
        assert_eq!(RunError::NotFound("x".into()).exit_code(), 127);
        assert_eq!(RunError::NotExecutable { command: "x".into(), source: io() }.exit_code(), 126);
        assert_eq!(RunError::Interrupted { signal: 15 }.exit_code(), 143);
        assert_eq!(RunError::Child { step: Step::Uid, source: io() }.exit_code(), 125);
        assert_eq!(RunError::NoCommand.exit_code(), 125);
        assert_eq!(RunError::Cgroup(CgroupError::NoMount).exit_code(), 125);
    }

    #[test]
    fn every_step_survives_its_number() {
        for step in Step::ALL {
            assert_eq!(Step::from_number(step as u8), Some(step));
        }
        assert_eq!(Step::from_number(Step::ALL.len() as u8), None);
    }
}

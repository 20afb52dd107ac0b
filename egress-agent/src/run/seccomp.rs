//! System calls that CMD is refused: those that reach past the hooks, or through which others act for it.
//!
//! The programs are made before the clone; between clone and exec nothing is allocated. CMD and its descendants cannot take
//! them off again, and a filter that they add can only refuse more.
//!
//! Not refused here, and why:
//! - ptrace and process_vm_writev: without a pid namespace an outsider looks like a child of one's own, and debuggers are
//!   ordinary programs. The level names what is open ([`super::Missing::PidNamespace`]).
//! - numbers that the running kernel knows and this file does not: no address family, terminal or keyring is behind a call
//!   without its number here; io_uring, which was such a door, is closed as a whole.

use super::{RunError, capability::KeptCaps};
use nix::errno::Errno;
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, sock_filter,
};
use std::{collections::BTreeMap, ffi::c_int};

/// A system call, and the rules of which one must match; no rule = the call is refused whatever its arguments are.
type Refused = (libc::c_long, Vec<SeccompRule>);

/// What every sandbox may make sockets of. Netlink is how programs learn their own addresses and routes.
const FAMILIES: [c_int; 4] = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];

/// SOCK_TYPE_MASK, include/linux/net.h: the rest of the argument is SOCK_CLOEXEC and SOCK_NONBLOCK.
const SOCKET_TYPE_MASK: u64 = 0xf;

/// The number is the same on all architectures (include/linux/net.h); the libc crate does not have it for all.
const SOCK_PACKET: c_int = 10;

/// Options that join a group or a set of sources. Reports of membership (IGMP, MLD) carry the group to the link, and the
/// kernel itself sends them.
const MEMBERSHIP: [(c_int, &[c_int]); 2] = [
    (
        libc::IPPROTO_IP,
        &[
            libc::IP_ADD_MEMBERSHIP,
            libc::IP_ADD_SOURCE_MEMBERSHIP,
            libc::IP_MSFILTER,
            libc::MCAST_JOIN_GROUP,
            libc::MCAST_JOIN_SOURCE_GROUP,
            libc::MCAST_MSFILTER,
        ],
    ),
    (
        libc::IPPROTO_IPV6,
        &[
            libc::IPV6_ADD_MEMBERSHIP,
            libc::IPV6_JOIN_ANYCAST,
            libc::MCAST_JOIN_GROUP,
            libc::MCAST_JOIN_SOURCE_GROUP,
            libc::MCAST_MSFILTER,
        ],
    ),
];

/// The first number of the x32 ABI (__X32_SYSCALL_BIT), and the first one behind all of its numbers. Those calls report the
/// architecture of x86_64, so the check of it lets them through to rules that do not know them. Other 64-bit architectures
/// have no calls there.
const X32: u32 = 0x4000_0000;
const BEYOND_X32: u32 = 0x8000_0000;

/// The filter of one sandbox, ready to be installed.
pub(super) struct Filter(Vec<BpfProgram>);

impl Filter {
    /// `keep_caps` decides whether packet sockets are left: with CAP_NET_RAW they are what was asked for.
    ///
    /// # Errors
    /// [`RunError::Seccomp`] where no filter can be made for this machine.
    pub(super) fn new(keep_caps: KeptCaps) -> Result<Self, RunError> {
        let programs = || {
            // The kernel takes the strictest of all verdicts, so two programs give two error numbers. An unknown family
            // is what programs that try several expect; a refusal of what exists is EPERM, as with container engines.
            Ok(vec![program(families(keep_caps.net_raw())?, libc::EAFNOSUPPORT)?, program(calls()?, libc::EPERM)?])
        };
        programs().map(Self).map_err(RunError::Seccomp)
    }

    /// Binds the calling thread, for ever and over exec. It must have no_new_privs set. Allocates nothing and takes no lock.
    ///
    /// # Errors
    /// The kernel's answer.
    pub(super) fn install(&self) -> nix::Result<()> {
        for program in &self.0 {
            // seccompiler refuses programs over 4096 instructions.
            let length = program.len() as u16;
            let program = libc::sock_fprog { len: length, filter: program.as_ptr().cast_mut().cast() };
            // SAFETY: a local that points to `length` instructions of the shape of `struct sock_filter`; the kernel copies
            // them and writes nothing.
            let set =
                unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0_usize, &raw const program) };
            Errno::result(set)?;
        }
        Ok(())
    }
}

/// Sockets of families that no hook sees.
fn families(packet: bool) -> Result<Vec<Refused>, BackendError> {
    let allowed = FAMILIES.into_iter().chain(packet.then_some(libc::AF_PACKET));
    let other = allowed.map(|family| argument(0, SeccompCmpOp::Ne, family)).collect::<Result<Vec<_>, _>>()?;
    let mut rules = vec![SeccompRule::new(other)?];
    let pair = rules.clone();
    if !packet {
        // The old spelling of a packet socket, which the kernel turns into one.
        let packet_type = argument(1, SeccompCmpOp::MaskedEq(SOCKET_TYPE_MASK), SOCK_PACKET)?;
        rules.push(SeccompRule::new(vec![equals(0, libc::AF_INET)?, packet_type])?);
    }
    Ok(vec![(libc::SYS_socket, rules), (libc::SYS_socketpair, pair)])
}

/// All else.
fn calls() -> Result<Vec<Refused>, BackendError> {
    let mut terminal = Vec::new();
    // Both put words into the mouth of whoever reads the terminal next: the caller's shell. Numbers are below 2^16.
    for request in [libc::TIOCSTI, libc::TIOCLINUX] {
        terminal.push(SeccompRule::new(vec![equals(1, request as c_int)?])?);
    }
    let mut membership = Vec::new();
    for (level, options) in MEMBERSHIP {
        for option in options {
            membership.push(SeccompRule::new(vec![equals(1, level)?, equals(2, *option)?])?);
        }
    }
    Ok(vec![
        (libc::SYS_ioctl, terminal),
        (libc::SYS_setsockopt, membership),
        // Looking for a key can start a helper of root's in the host's namespaces, which resolves names.
        (libc::SYS_add_key, vec![]),
        (libc::SYS_request_key, vec![]),
        (libc::SYS_keyctl, vec![]),
        // Another process's sockets belong to its cgroup, not to this one's.
        (libc::SYS_pidfd_getfd, vec![]),
        // Its operations make sockets and set their options without a system call, where no filter is asked.
        (libc::SYS_io_uring_setup, vec![]),
    ])
}

/// Answers `errno` to what is refused, ends the process at a call of another ABI than the machine's own (its numbers mean other
/// calls), and allows the rest.
fn program(refused: Vec<Refused>, errno: c_int) -> Result<BpfProgram, BackendError> {
    let refuse = SeccompAction::Errno(errno.unsigned_abs());
    let rules: BTreeMap<_, _> = refused.into_iter().collect();
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    let own_abi = BpfProgram::try_from(SeccompFilter::new(rules, SeccompAction::Allow, refuse, arch)?)?;
    let statement = |code: u32, jt, jf, k| sock_filter { code: code as u16, jt, jf, k };
    let x32 = [
        // Offset 0 of struct seccomp_data is the number. That of a call which a tracer skips is -1, beyond x32.
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        statement(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, 2, 0, BEYOND_X32),
        statement(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, 0, 1, X32),
        statement(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_KILL_PROCESS),
    ];
    Ok(x32.into_iter().chain(own_abi).collect())
}

fn equals(index: u8, value: c_int) -> Result<SeccompCondition, BackendError> {
    argument(index, SeccompCmpOp::Eq, value)
}

/// A condition on the lower half of an argument. That half is all that the kernel reads of families, levels, options and ioctl
/// requests: a comparison of all 64 bits would be passed by a set bit above.
fn argument(index: u8, operator: SeccompCmpOp, value: c_int) -> Result<SeccompCondition, BackendError> {
    SeccompCondition::new(index, SeccompCmpArgLen::Dword, operator, u64::from(value.cast_unsigned()))
}

#[cfg(test)]
#[path = "seccomp_tests.rs"]
mod tests;

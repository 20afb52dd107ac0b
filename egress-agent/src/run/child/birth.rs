//! Processes that are born in the cgroup.

use super::{Failure, Step, give_notice};
use crate::cgroup::poll_until;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, poll},
    sys::signal::{SigSet, SigmaskHow, Signal, kill},
    sys::wait::waitpid,
    unistd::Pid,
};
use std::{
    ffi::{c_int, c_long},
    fs::File,
    io::Read,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
    ptr,
    time::{Duration, Instant},
};

/// include/uapi/linux/sched.h. The constant of the libc crate is a `c_int` and too short for this bit.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// A child of this process.
#[derive(Debug)]
pub(crate) struct Born {
    /// Its number, as this process sees it.
    pub(crate) pid: Pid,
    /// Readable once it has ended.
    pub(crate) pidfd: OwnedFd,
}

impl Born {
    /// Waits for its end; it is not reaped. False where it lives on.
    pub(crate) fn ends_within(&self, limit: Duration) -> nix::Result<bool> {
        let deadline = Instant::now() + limit;
        loop {
            match poll(&mut [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)], poll_until(deadline)) {
                Err(Errno::EINTR) => {}
                polled => return polled.map(|ready| ready > 0),
            }
        }
    }
}

/// Makes a process in the cgroup, which lives `life` with `cgroup.procs` to enter by (-1 where it is in already) and a
/// descriptor of which it must hold no copy once it is what it is to be. Life returns only to say what failed.
///
/// # Errors
/// What it reported; it is gone then.
pub(crate) fn bear(
    cgroup: BorrowedFd<'_>,
    entrance: BorrowedFd<'_>,
    life: impl FnOnce(RawFd, RawFd) -> Failure,
) -> Result<Born, Failure> {
    let failed = Failure::at(Step::Clone);
    let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(&failed)?;
    // No handler of this process may run in the child.
    let mask = SigSet::all().thread_swap_mask(SigmaskHow::SIG_BLOCK).map_err(&failed)?;
    // SAFETY: the child lives on its own copy of the memory and does not return from it.
    let born = match unsafe { clone_into(cgroup.as_raw_fd()) } {
        Ok(None) => give_notice(life(-1, writer.as_raw_fd()), writer.as_raw_fd()),
        // Seccomp filters that predate clone3 answer so.
        // SAFETY: as above.
        Err(Errno::ENOSYS) => match unsafe { clone_beside() } {
            Ok(None) => give_notice(life(entrance.as_raw_fd(), writer.as_raw_fd()), writer.as_raw_fd()),
            born => born,
        },
        born => born,
    };
    let restored = mask.thread_set_mask();
    let Some(born) = born.map_err(&failed)? else { return Err(failed(Errno::ENOSYS)) };
    drop(writer);
    let mut report = Vec::new();
    let read = File::from(reader).read_to_end(&mut report);
    let failure = match (restored, read, Failure::from_report(&report)) {
        (Ok(()), Ok(_), None) => return Ok(born),
        (_, _, Some(failure)) => failure,
        (Err(errno), ..) => Failure::at(Step::Signals)(errno),
        (_, Err(error), _) => Failure { step: Step::Clone, errno: error.raw_os_error().unwrap_or(libc::EIO) },
    };
    // A child that reported ends by itself; of one that cannot be read nothing is known.
    let killed = kill(born.pid, Signal::SIGKILL);
    let reaped = waitpid(born.pid, None);
    tracing::debug!(pid = %born.pid, ?failure, ?killed, ?reaped, "not started");
    Err(failure)
}

/// Clones this process into the cgroup. `None` in the child; the process and its pidfd in the parent.
///
/// # Safety
/// In the child only what needs no lock and no allocation may run, and it must not return from the caller.
unsafe fn clone_into(cgroup: RawFd) -> nix::Result<Option<Born>> {
    let mut pidfd: c_int = -1;
    // SAFETY: the struct is plain integers, for all of which 0 means "not used".
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = CLONE_INTO_CGROUP | libc::CLONE_PIDFD as u64;
    arguments.pidfd = (&raw mut pidfd) as u64;
    arguments.exit_signal = libc::SIGCHLD as u64;
    arguments.cgroup = i64::from(cgroup).cast_unsigned();
    // SAFETY: the pointer and the size describe a local that outlives the call; without CLONE_VM and a new stack the child
    // goes on with a copy of this one.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size_of::<libc::clone_args>()) };
    // SAFETY: the kernel wrote `pidfd` if it made a process.
    unsafe { newborn(pid, &raw const pidfd) }
}

/// Clones this process beside itself, in the caller's cgroup.
///
/// # Safety
/// As [`clone_into`].
unsafe fn clone_beside() -> nix::Result<Option<Born>> {
    let mut pidfd: c_int = -1;
    let flags = c_long::from(libc::CLONE_PIDFD | libc::SIGCHLD);
    let (none, no_tls) = (ptr::null_mut::<c_int>(), 0);
    // SAFETY: no stack means a copy of this one; the third argument is where the pidfd goes, a local that outlives the call.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, none, &raw mut pidfd, none, no_tls) };
    // SAFETY: as in `clone_into`.
    unsafe { newborn(pid, &raw const pidfd) }
}

/// # Safety
/// `pidfd` points to an open descriptor that nobody else owns, if `pid` is positive.
unsafe fn newborn(pid: c_long, pidfd: *const c_int) -> nix::Result<Option<Born>> {
    match pid {
        0 => Ok(None),
        ..0 => Err(Errno::last()),
        // SAFETY: by this function's contract.
        // A pid is a positive c_int (PID_MAX_LIMIT is 2^22).
        _ => Ok(Some(Born { pid: Pid::from_raw(pid as c_int), pidfd: unsafe { OwnedFd::from_raw_fd(pidfd.read()) } })),
    }
}

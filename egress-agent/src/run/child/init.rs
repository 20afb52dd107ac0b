//! Process 1 of CMD's pid namespace. It does nothing: the kernel reaps orphans for it, CMD is this process's own child, so
//! its exit status and its signals pass nobody, and when process 1 ends the kernel kills all others.

use super::{Born, Failure, Plan, Step, birth::bear, check, confine, execute, integers};
use nix::{fcntl::OFlag, sys::wait::waitpid, unistd::pipe2};
use std::{
    ffi::c_int,
    os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd},
    ptr,
    time::Duration,
};

/// How long the kernel has to kill the namespace.
const END_LIMIT: Duration = Duration::from_secs(10);

/// Process 1. It ends, and with it every process of the namespace, once this is dropped or this process is gone.
#[derive(Debug)]
pub(in crate::run) struct Init {
    born: Born,
    /// The end that is written to, which never happens. Unlike PR_SET_PDEATHSIG it is the process's and not a thread's.
    lifeline: Option<OwnedFd>,
}

impl Init {
    /// The calling thread must have unshared its pid namespace and have no child there.
    pub(super) fn start(plan: &Plan, cgroup: BorrowedFd<'_>, entrance: BorrowedFd<'_>) -> Result<Self, Failure> {
        let (reader, lifeline) = pipe2(OFlag::O_CLOEXEC).map_err(Failure::at(Step::Pids))?;
        let end = reader.as_raw_fd();
        let born = bear(cgroup, entrance, |entrance, report| become_init(plan, end, entrance, report))?;
        Ok(Self { born, lifeline: Some(lifeline) })
    }
}

impl Drop for Init {
    fn drop(&mut self) {
        drop(self.lifeline.take());
        // It is done only when whoever has a parent outside is reaped, which CMD is by now.
        let ended = self.born.ends_within(END_LIMIT);
        if ended == Ok(true) {
            let reaped = waitpid(self.born.pid, None);
            tracing::debug!(?reaped, "process 1 of the command");
        } else {
            tracing::error!(pid = %self.born.pid, ?ended, "process 1 of the command does not end");
        }
    }
}

fn become_init(plan: &Plan, lifeline: RawFd, entrance: RawFd, report: RawFd) -> Failure {
    if let Err(failure) = settle(plan, lifeline, entrance, report) {
        return failure;
    }
    let mut byte = 0_u8;
    // SAFETY: one byte of a local. Handlers there are none, so a signal from outside ends it or goes unheard.
    while unsafe { libc::read(lifeline, (&raw mut byte).cast(), 1) } > 0 {}
    // SAFETY: takes a number.
    unsafe { libc::_exit(0) }
}

/// It is as confined as CMD, whose user can reach it.
fn settle(plan: &Plan, lifeline: RawFd, entrance: RawFd, report: RawFd) -> Result<(), Failure> {
    confine::arrive(entrance)?;
    confine::leave_keyring()?;
    confine::close_others(0, &[lifeline], report)?;
    confine::give_up(plan, 0)?;
    confine::hide_memory()?;
    execute::reset_signals()?;
    ignore_children()?;
    integers(Step::Descriptors, libc::SYS_close, [report.into(), 0, 0, 0, 0]).map(drop)
}

/// Whose parent ignores SIGCHLD is reaped by the kernel, orphans too (`reparent_leader` in kernel/exit.c).
fn ignore_children() -> Result<(), Failure> {
    // SAFETY: plain integers and a handler, for which all zero bytes are an empty mask and no flags.
    let mut ignore: libc::sigaction = unsafe { std::mem::zeroed() };
    ignore.sa_sigaction = libc::SIG_IGN;
    // SAFETY: a local that outlives the call, and null for "do not tell the old one".
    let set: c_int = unsafe { libc::sigaction(libc::SIGCHLD, &raw const ignore, ptr::null_mut()) };
    check(Step::Signals, set.into()).map(drop)
}

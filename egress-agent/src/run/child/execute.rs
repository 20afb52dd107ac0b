//! CMD, from its first instruction to exec.

use super::{Failure, Plan, Step, confine, cover, integers};
use nix::errno::Errno;
use std::{ffi::CStr, os::fd::RawFd, ptr};

/// CMD's whole life before it is executed.
pub(super) fn become_command(plan: &mut Plan, entrance: RawFd, report: RawFd) -> Failure {
    match confined(plan, entrance, report) {
        Ok(()) => execute(plan),
        Err(failure) => failure,
    }
}

/// Order matters: the cgroup before the namespaces, mounts while the capability is there, descriptors before anything of CMD's
/// choosing can run.
fn confined(plan: &Plan, entrance: RawFd, report: RawFd) -> Result<(), Failure> {
    confine::arrive(entrance)?;
    if plan.netns >= 0 {
        integers(Step::Netns, libc::SYS_setns, [plan.netns.into(), libc::CLONE_NEWNET.into(), 0, 0, 0])?;
    }
    if let Some(mounts) = &plan.mounts {
        cover::apply(mounts)?;
    }
    confine::leave_keyring()?;
    confine::close_others(3, &plan.keep_fds, report)?;
    confine::give_up(plan, plan.keep_caps)?;
    match &plan.cwd {
        Some(cwd) => cover::enter(cwd),
        None => Ok(()),
    }
}

/// Executes the first candidate that the kernel takes. Returns only when it takes none: with EACCES where one was found that
/// may not be executed, with ENOENT where none was. A directory of PATH that may not be searched holds none, as shells have it
/// (execvp would say EACCES, and with root's PATH no command of a lesser user was ever just "not found").
fn execute(plan: &mut Plan) -> Failure {
    if let Err(failure) = reset_signals() {
        return failure;
    }
    let named = plan.argv.strings.first().is_some_and(|program| program.as_bytes().contains(&b'/'));
    let mut errno = libc::ENOENT;
    for candidate in &plan.candidates {
        // SAFETY: a C string and two null-terminated arrays of C strings, all owned by the plan.
        unsafe { libc::execve(candidate.as_ptr(), plan.argv.pointers.as_ptr(), plan.envp.pointers.as_ptr()) };
        match Errno::last_raw() {
            libc::EACCES if named || exists(candidate) => errno = libc::EACCES,
            libc::ENOENT | libc::ENOTDIR | libc::EACCES => {}
            libc::ENOEXEC => {
                if let Some(script) = plan.shell_argv.pointers.get_mut(1) {
                    *script = candidate.as_ptr();
                }
                let shell = plan.shell_argv.strings.first().map_or(ptr::null(), |shell| shell.as_ptr());
                // SAFETY: as above; a null path would only make the call fail.
                unsafe { libc::execve(shell, plan.shell_argv.pointers.as_ptr(), plan.envp.pointers.as_ptr()) };
                return Failure { step: Step::Exec, errno: libc::ENOEXEC };
            }
            other => return Failure { step: Step::Exec, errno: other },
        }
    }
    Failure { step: Step::Exec, errno }
}

/// False also where the caller may not look.
fn exists(path: &CStr) -> bool {
    // SAFETY: a C string that outlives the call, which writes nothing.
    unsafe { libc::syscall(libc::SYS_faccessat, libc::AT_FDCWD, path.as_ptr(), libc::F_OK) == 0 }
}

/// Unblocks all signals and gives them their default action, except what the caller had ignored (nohup, a shell's
/// background job). SIGPIPE and SIGCHLD always get it: the Rust runtime ignores the first, and with the second ignored
/// CMD could not wait for children.
pub(super) fn reset_signals() -> Result<(), Failure> {
    let fail = || Failure { step: Step::Signals, errno: Errno::last_raw() };
    for signal in 1..=64 {
        // SAFETY: plain integers and a handler, for which all zero bytes are SIG_DFL and an empty mask.
        let (mut old, default): (libc::sigaction, libc::sigaction) = unsafe { std::mem::zeroed() };
        // SAFETY: both point to locals. Signals that have no action to ask for (32, 33) fail and are left alone.
        let known = unsafe { libc::sigaction(signal, ptr::null(), &raw mut old) } == 0;
        let ignored = old.sa_sigaction == libc::SIG_IGN && !matches!(signal, libc::SIGPIPE | libc::SIGCHLD);
        if known && !ignored && old.sa_sigaction != libc::SIG_DFL {
            // SAFETY: as above.
            if unsafe { libc::sigaction(signal, &raw const default, ptr::null_mut()) } != 0 {
                return Err(fail());
            }
        }
    }
    // SAFETY: the set is a local, emptied before it is used.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        if libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut()) != 0 {
            return Err(fail());
        }
    }
    Ok(())
}

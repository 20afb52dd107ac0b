//! From birth in the cgroup to the execution of CMD.
//!
//! Between clone and exec the child is a copy of one thread of a process that may have had many: a lock that another thread
//! held stays held for ever. So the child allocates nothing, takes no lock, and calls the kernel past the C library, whose
//! setresuid and setgroups would wait for threads that the copy does not have. All memory it needs is in [`Plan`].

use super::{
    error::{RunError, Step},
    seccomp::Filter,
};
use nix::{errno::Errno, sys::signal::SigSet, unistd::Pid};
use std::{
    ffi::{CStr, CString, c_char, c_int, c_long, c_uint},
    fs::File,
    io::{self, Read},
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
    ptr,
};

/// include/uapi/linux/sched.h. The constant of the libc crate is a `c_int` and too short for this bit.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// `_LINUX_CAPABILITY_VERSION_3`, include/uapi/linux/capability.h.
const CAPABILITY_VERSION: u32 = 0x2008_0522;

/// Strings in the shape that exec takes: an array of pointers with a null at its end.
pub(super) struct StringArray {
    strings: Vec<CString>,
    pointers: Vec<*const c_char>,
}

impl StringArray {
    pub(super) fn new(strings: Vec<CString>) -> Self {
        let pointers = strings.iter().map(|string| string.as_ptr()).chain([ptr::null()]).collect();
        Self { strings, pointers }
    }
}

/// What the child does, ready made. A descriptor of -1 means "nothing to do".
pub(super) struct Plan {
    /// Paths to try, in order.
    pub(super) candidates: Vec<CString>,
    /// Arguments of CMD.
    pub(super) argv: StringArray,
    /// `/bin/sh`, a place for the path, the arguments after the first: for a script without an interpreter line.
    pub(super) shell_argv: StringArray,
    /// Environment of CMD.
    pub(super) envp: StringArray,
    /// Network namespace to enter.
    pub(super) netns: RawFd,
    /// Descriptors from 3 up that stay, ascending.
    pub(super) keep_fds: Vec<RawFd>,
    /// Supplementary groups; `None` = they are right already.
    pub(super) groups: Option<Vec<libc::gid_t>>,
    /// User.
    pub(super) uid: libc::uid_t,
    /// Group.
    pub(super) gid: libc::gid_t,
    /// Capabilities that stay, as a bit mask.
    pub(super) keep_caps: u64,
    /// System calls that are refused.
    pub(super) filter: Filter,
    /// Working directory.
    pub(super) cwd: Option<CString>,
}

/// Makes the process and waits until it executes CMD.
///
/// # Errors
/// What failed, and where; the process is gone then.
pub(super) fn start(
    mut plan: Plan,
    cgroup: BorrowedFd<'_>,
    entrance: BorrowedFd<'_>,
) -> Result<(Pid, OwnedFd), Failure> {
    let failed = |step| move |source: Errno| Failure { step, errno: source as c_int };
    let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(failed(Step::Clone))?;
    // No handler of this process may run in the child.
    let mask = SigSet::all().thread_swap_mask(nix::sys::signal::SigmaskHow::SIG_BLOCK).map_err(failed(Step::Clone))?;
    // SAFETY: the child runs `become_command` on its own copy of the memory and does not return from it.
    let born = match unsafe { clone_into(cgroup.as_raw_fd()) } {
        Ok(None) => become_command(&mut plan, -1, writer.as_raw_fd()),
        // Seccomp filters that predate clone3 answer so.
        // SAFETY: as above.
        Err(Errno::ENOSYS) => match unsafe { clone_beside() } {
            Ok(None) => become_command(&mut plan, entrance.as_raw_fd(), writer.as_raw_fd()),
            born => born,
        },
        born => born,
    };
    let restored = mask.thread_set_mask();
    let Some((pid, pidfd)) = born.map_err(failed(Step::Clone))? else { return Err(failed(Step::Clone)(Errno::ENOSYS)) };
    drop(writer);
    let mut report = Vec::new();
    let read = File::from(reader).read_to_end(&mut report);
    let failure = match (restored, read, Failure::from_report(&report)) {
        (Ok(()), Ok(_), None) => return Ok((pid, pidfd)),
        (_, _, Some(failure)) => failure,
        (Err(errno), ..) => failed(Step::Signals)(errno),
        (_, Err(error), _) => Failure { step: Step::Clone, errno: error.raw_os_error().unwrap_or(libc::EIO) },
    };
    // A child that reported ends by itself; of one that cannot be read nothing is known.
    let killed = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
    let reaped = nix::sys::wait::waitpid(pid, None);
    tracing::debug!(%pid, ?failure, ?killed, ?reaped, "command not started");
    Err(failure)
}

/// Clones this process into the cgroup. `None` in the child; the process and its pidfd in the parent.
///
/// # Safety
/// In the child only what needs no lock and no allocation may run, and it must not return from the caller.
unsafe fn clone_into(cgroup: RawFd) -> nix::Result<Option<(Pid, OwnedFd)>> {
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
unsafe fn clone_beside() -> nix::Result<Option<(Pid, OwnedFd)>> {
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
unsafe fn newborn(pid: c_long, pidfd: *const c_int) -> nix::Result<Option<(Pid, OwnedFd)>> {
    match pid {
        0 => Ok(None),
        ..0 => Err(Errno::last()),
        // SAFETY: by this function's contract.
        // A pid is a positive c_int (PID_MAX_LIMIT is 2^22).
        _ => Ok(Some((Pid::from_raw(pid as c_int), unsafe { OwnedFd::from_raw_fd(pidfd.read()) }))),
    }
}

/// A step of the child that failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Failure {
    pub(super) step: Step,
    pub(super) errno: c_int,
}

impl Failure {
    /// What goes through the pipe: the step, then the error number in native order.
    fn report(self) -> [u8; 5] {
        let [a, b, c, d] = self.errno.to_ne_bytes();
        [self.step as u8, a, b, c, d]
    }

    /// `None` for the empty report of a child that executed CMD.
    fn from_report(report: &[u8]) -> Option<Self> {
        let [step, a, b, c, d] = *report else { return None };
        Some(Self { step: Step::from_number(step)?, errno: c_int::from_ne_bytes([a, b, c, d]) })
    }

    pub(super) fn source(self) -> io::Error {
        io::Error::from_raw_os_error(self.errno)
    }
}

/// The child's whole life. `entrance` is `cgroup.procs`, open for writing, where it was not born in the cgroup.
fn become_command(plan: &mut Plan, entrance: RawFd, report: RawFd) -> ! {
    let failure = match confine(plan, entrance, report) {
        Ok(()) => execute(plan),
        Err(failure) => failure,
    };
    let bytes = failure.report();
    // SAFETY: the buffer is a local of the given length; a write that fails leaves an empty report and a child that died
    // with 125, which the parent takes for CMD's own end.
    unsafe {
        libc::write(report, bytes.as_ptr().cast(), bytes.len());
        libc::_exit(125)
    }
}

/// Gives up everything that CMD must not have. Order matters: what needs a capability comes before it is dropped, the
/// cgroup before the namespace, descriptors before anything of CMD's choosing can run.
fn confine(plan: &Plan, entrance: RawFd, report: RawFd) -> Result<(), Failure> {
    // No process of the same user may attach to this copy of egressd's memory. Exec sets it anew.
    integers(Step::Clone, libc::SYS_prctl, [libc::PR_SET_DUMPABLE.into(), 0, 0, 0, 0])?;
    if entrance >= 0 {
        // SAFETY: one byte of static memory. "0" is whoever writes; nothing was opened that would stay behind.
        check(Step::Cgroup, unsafe { libc::syscall(libc::SYS_write, entrance, b"0".as_ptr(), 1_usize) })?;
    }
    if plan.netns >= 0 {
        integers(Step::Netns, libc::SYS_setns, [plan.netns.into(), libc::CLONE_NEWNET.into(), 0, 0, 0])?;
    }
    close_others(&plan.keep_fds, report)?;
    drop_bounding(plan.keep_caps)?;
    let keep = if plan.keep_caps == 0 { 0 } else { libc::SECBIT_KEEP_CAPS };
    let bits = integers(Step::Securebits, libc::SYS_prctl, [libc::PR_GET_SECUREBITS.into(), 0, 0, 0, 0])?
        | c_long::from(libc::SECBIT_NOROOT | libc::SECBIT_NOROOT_LOCKED | keep);
    integers(Step::Securebits, libc::SYS_prctl, [libc::PR_SET_SECUREBITS.into(), bits, 0, 0, 0])?;
    if let Some(groups) = &plan.groups {
        // SAFETY: pointer and length are those of a vector that outlives the call.
        check(Step::Groups, unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) })?;
    }
    let (uid, gid) = (plan.uid.into(), plan.gid.into());
    integers(Step::Gid, libc::SYS_setresgid, [gid, gid, gid, 0, 0])?;
    integers(Step::Uid, libc::SYS_setresuid, [uid, uid, uid, 0, 0])?;
    set_capabilities(plan.keep_caps)?;
    integers(Step::NoNewPrivs, libc::SYS_prctl, [libc::PR_SET_NO_NEW_PRIVS.into(), 1, 0, 0, 0])?;
    plan.filter.install().map_err(|errno| Failure { step: Step::Seccomp, errno: errno as c_int })?;
    if let Some(cwd) = &plan.cwd {
        // SAFETY: a C string that outlives the call.
        check(Step::Directory, unsafe { libc::syscall(libc::SYS_chdir, cwd.as_ptr()) })?;
    }
    Ok(())
}

/// Closes everything from 3 up but `keep` (ascending) and `report`, and takes close-on-exec off what is kept.
fn close_others(keep: &[RawFd], report: RawFd) -> Result<(), Failure> {
    let mut first = 3;
    let mut rest = keep;
    let mut report = Some(report);
    loop {
        let next = match (rest.first().copied(), report) {
            (Some(kept), Some(own)) if own < kept => report.take(),
            (Some(kept), _) => {
                rest = rest.get(1..).unwrap_or_default();
                integers(Step::Descriptors, libc::SYS_fcntl, [kept.into(), libc::F_SETFD.into(), 0, 0, 0])?;
                Some(kept)
            }
            (None, Some(_)) => report.take(),
            (None, None) => None,
        };
        let Some(next) = next else {
            let last = c_long::from(c_uint::MAX);
            return integers(Step::Descriptors, libc::SYS_close_range, [first, last, 0, 0, 0]).map(|_| ());
        };
        if first < c_long::from(next) {
            integers(Step::Descriptors, libc::SYS_close_range, [first, c_long::from(next) - 1, 0, 0, 0])?;
        }
        first = c_long::from(next) + 1;
    }
}

/// Drops every capability that the kernel knows and that is not kept.
fn drop_bounding(keep: u64) -> Result<(), Failure> {
    for capability in 0..64 {
        match integers(Step::Bounding, libc::SYS_prctl, [libc::PR_CAPBSET_READ.into(), capability, 0, 0, 0]) {
            Ok(0) => {}
            Ok(_) if keep >> capability & 1 == 1 => {}
            Ok(_) => {
                integers(Step::Bounding, libc::SYS_prctl, [libc::PR_CAPBSET_DROP.into(), capability, 0, 0, 0])?;
            }
            // The first number above the last capability.
            Err(Failure { errno: libc::EINVAL, .. }) => break,
            Err(failure) => return Err(failure),
        }
    }
    Ok(())
}

/// Leaves exactly `keep` in the permitted, effective, inheritable and ambient sets. The ambient set is what a user other
/// than root carries over exec.
fn set_capabilities(keep: u64) -> Result<(), Failure> {
    let (low, high) = (keep as u32, (keep >> 32) as u32);
    let header: [u32; 2] = [CAPABILITY_VERSION, 0];
    let sets: [u32; 6] = [low, low, low, high, high, high];
    // SAFETY: the shapes of cap_user_header_t (version, pid 0 = self) and of two cap_user_data_t (effective, permitted,
    // inheritable), both all u32.
    check(Step::Capabilities, unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr()) })?;
    let ambient = |operation: c_int, capability| {
        let arguments = [libc::PR_CAP_AMBIENT.into(), operation.into(), capability, 0, 0];
        integers(Step::Ambient, libc::SYS_prctl, arguments)
    };
    ambient(libc::PR_CAP_AMBIENT_CLEAR_ALL, 0)?;
    for capability in (0..64).filter(|capability| keep >> capability & 1 == 1) {
        ambient(libc::PR_CAP_AMBIENT_RAISE, capability)?;
    }
    Ok(())
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
fn reset_signals() -> Result<(), Failure> {
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

/// A system call whose arguments are all numbers. Only for calls that read and write no memory of this process.
fn integers(step: Step, number: c_long, arguments: [c_long; 5]) -> Result<c_long, Failure> {
    let [first, second, third, fourth, fifth] = arguments;
    // SAFETY: every caller in this file names prctl (with options that take numbers), setns, fcntl, close_range, setresgid
    // or setresuid; none takes a pointer.
    check(step, unsafe { libc::syscall(number, first, second, third, fourth, fifth) })
}

fn check(step: Step, returned: c_long) -> Result<c_long, Failure> {
    if returned < 0 { Err(Failure { step, errno: Errno::last_raw() }) } else { Ok(returned) }
}

impl From<Failure> for RunError {
    fn from(failure: Failure) -> Self {
        Self::Child { step: failure.step, source: failure.source() }
    }
}

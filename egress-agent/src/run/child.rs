//! From birth in the cgroup to the execution of CMD, and beside it the first process of its pid namespace.
//!
//! Between clone and exec the child is a copy of one thread of a process that may have had many: a lock that another thread
//! held stays held for ever. So the child allocates nothing, takes no lock, and calls the kernel past the C library, whose
//! setresuid and setgroups would wait for threads that the copy does not have. All memory it needs is in [`Plan`].

mod birth;
mod confine;
mod cover;
mod execute;
mod init;

pub(crate) use birth::{Born, bear};
pub(crate) use confine::arrive;
pub(super) use init::Init;

use super::{
    error::{RunError, Step},
    seccomp::Filter,
};
use nix::{
    errno::Errno,
    sched::{CloneFlags, unshare},
};
use std::{
    ffi::{CString, c_char, c_int, c_long},
    io,
    os::fd::{BorrowedFd, RawFd},
    ptr,
};

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
    /// A pid namespace of its own.
    pub(super) own_pids: bool,
    /// Network namespace to enter.
    pub(super) netns: RawFd,
    /// A mount namespace of its own, with this in it.
    pub(super) mounts: Option<Mounts>,
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

/// What a mount namespace has that the host's has not.
pub(super) struct Mounts {
    /// In this order.
    pub(super) covers: Vec<Cover>,
    /// The caller's working directory, to be entered again: what was entered before is the one below a cover. `None` = it is
    /// deleted, and nothing is there.
    pub(super) cwd: Option<CString>,
}

/// One mount over what is there. What is gone by then needs none.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Cover {
    /// A procfs that shows the processes of the own pid namespace alone.
    Proc,
    /// Read-only: a mount as it is, or a directory by a mount onto itself.
    ReadOnly {
        /// The directory.
        path: CString,
        /// False where it is no mount.
        mounted: bool,
    },
    /// A directory, by a tmpfs with these options.
    Directory {
        /// The directory.
        path: CString,
        /// See tmpfs(5).
        options: CString,
        /// False: nothing can be made in it.
        writable: bool,
    },
    /// A file or socket, by /dev/null.
    File(CString),
}

/// A started command.
pub(super) struct Started {
    /// CMD.
    pub(super) command: Born,
    /// Process 1 of its pid namespace, where that is its own.
    pub(super) init: Option<Init>,
}

/// Makes the processes and waits until CMD is executed. The pid namespace is for children of the calling thread, for good:
/// call it on a thread that ends with this.
///
/// # Errors
/// What failed, and where; the processes are gone then.
pub(super) fn start(mut plan: Plan, cgroup: BorrowedFd<'_>, entrance: BorrowedFd<'_>) -> Result<Started, Failure> {
    let init = if plan.own_pids {
        unshare(CloneFlags::CLONE_NEWPID).map_err(Failure::at(Step::Pids))?;
        Some(Init::start(&plan, cgroup, entrance)?)
    } else {
        None
    };
    let command =
        birth::bear(cgroup, entrance, |entrance, report| execute::become_command(&mut plan, entrance, report))?;
    Ok(Started { command, init })
}

/// A step of the child that failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Failure {
    pub(super) step: Step,
    pub(super) errno: c_int,
}

impl Failure {
    /// What the kernel said at this step.
    pub(crate) fn at(step: Step) -> impl Fn(Errno) -> Self {
        move |errno| Self { step, errno: errno as c_int }
    }

    /// What goes through the pipe: the step, then the error number in native order.
    fn report(self) -> [u8; 5] {
        let [a, b, c, d] = self.errno.to_ne_bytes();
        [self.step as u8, a, b, c, d]
    }

    /// `None` for the empty report of a child that did what it was to do.
    fn from_report(report: &[u8]) -> Option<Self> {
        let [step, a, b, c, d] = *report else { return None };
        Some(Self { step: Step::from_number(step)?, errno: c_int::from_ne_bytes([a, b, c, d]) })
    }

    pub(super) fn source(self) -> io::Error {
        io::Error::from_raw_os_error(self.errno)
    }
}

/// Tells the parent what failed, and ends.
fn give_notice(failure: Failure, report: RawFd) -> ! {
    let bytes = failure.report();
    // SAFETY: the buffer is a local of the given length; a write that fails leaves an empty report and a child that died
    // with 125, which the parent takes for CMD's own end.
    unsafe {
        libc::write(report, bytes.as_ptr().cast(), bytes.len());
        libc::_exit(125)
    }
}

/// A system call whose arguments are all numbers. Only for calls that read and write no memory of this process.
fn integers(step: Step, number: c_long, arguments: [c_long; 5]) -> Result<c_long, Failure> {
    let [first, second, third, fourth, fifth] = arguments;
    // SAFETY: every caller below names prctl (with options that take numbers), setns, unshare, keyctl (with a null pointer),
    // fcntl, close, close_range, setresgid or setresuid; none takes a pointer to memory.
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

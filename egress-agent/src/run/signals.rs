//! Signals that are sent to `run` go on to CMD, once.
//!
//! CMD stays in the caller's process group, so what the terminal sends (Ctrl-C, Ctrl-\, Ctrl-Z, a resize) reaches it anyway;
//! passing that on would double it. The kernel tells the two apart in `si_code`.

use super::RunError;
use nix::{
    sys::{
        signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction},
        signalfd::{SfdFlags, SignalFd},
    },
    unistd::{getpid, getsid},
};
use std::os::fd::{AsFd, BorrowedFd};

/// Left alone: faults and limits of egressd itself, and what stops its whole process group when CMD touches the terminal
/// from the background. KILL and STOP cannot be taken at all; PIPE is ignored by the Rust runtime.
const NOT_TAKEN: [Signal; 15] = [
    Signal::SIGKILL,
    Signal::SIGSTOP,
    Signal::SIGPIPE,
    Signal::SIGTTIN,
    Signal::SIGTTOU,
    Signal::SIGILL,
    Signal::SIGTRAP,
    Signal::SIGABRT,
    Signal::SIGBUS,
    Signal::SIGFPE,
    Signal::SIGSEGV,
    Signal::SIGSYS,
    Signal::SIGXCPU,
    Signal::SIGXFSZ,
    Signal::SIGSTKFLT,
];

/// These end a process that does not handle them, and so they end `run` before CMD is started.
const ENDING: [Signal; 4] = [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM];

/// The signals of this process, blocked and readable from a descriptor.
#[derive(Debug)]
pub struct Signals {
    fd: SignalFd,
    session_leader: bool,
}

/// A signal that was sent to this process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Arrival {
    pub(super) signal: Signal,
    /// `si_code`.
    pub(super) code: i32,
    /// `si_pid`: who sent it, where a process did.
    pub(super) sender: u32,
}

impl Signals {
    /// Takes the signals of this process over. **Call it before any thread is started**: only the calling thread and those
    /// that it starts later have them blocked, and one thread that has not is enough for the default action to end
    /// the process.
    pub fn take() -> Result<Self, RunError> {
        let mut set = SigSet::empty();
        for signal in Signal::iterator().filter(|signal| !NOT_TAKEN.contains(signal)) {
            set.add(signal);
        }
        set.thread_block().map_err(RunError::syscall("pthread_sigmask"))?;
        let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
        // A caller that ignores SIGCHLD hands that on, and the kernel would then throw CMD's exit status away.
        // SAFETY: no handler is installed.
        unsafe { sigaction(Signal::SIGCHLD, &default) }.map_err(RunError::syscall("sigaction"))?;
        let fd = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
            .map_err(RunError::syscall("signalfd"))?;
        let session_leader = getsid(None).is_ok_and(|leader| leader == getpid());
        Ok(Self { fd, session_leader })
    }

    /// Asks whether a signal came that ends `run` while it prepared. Call it right before [`super::spawn`]: a Ctrl-C from
    /// before CMD's birth reached nobody else.
    ///
    /// # Errors
    /// [`RunError::Interrupted`].
    pub fn check_before_start(&self) -> Result<(), RunError> {
        while let Some(arrival) = self.read()? {
            if ENDING.contains(&arrival.signal) {
                return Err(RunError::Interrupted { signal: arrival.signal as u8 });
            }
        }
        Ok(())
    }

    /// The next signal, without waiting.
    pub(super) fn read(&self) -> Result<Option<Arrival>, RunError> {
        let read = self.fd.read_signal().map_err(RunError::syscall("read of signalfd"))?;
        Ok(read.and_then(|read| {
            let signal = Signal::try_from(read.ssi_signo.cast_signed()).ok()?;
            Some(Arrival { signal, code: read.ssi_code, sender: read.ssi_pid })
        }))
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub(super) fn session_leader(&self) -> bool {
        self.session_leader
    }
}

/// True where CMD did not get the signal by itself. `from_sandbox` tells whether the sender is in the sandbox: `kill 0` of
/// a script reaches the whole process group, `run` included, and so has reached CMD already.
pub(super) fn must_forward(arrival: Arrival, session_leader: bool, from_sandbox: impl FnOnce(u32) -> bool) -> bool {
    match (arrival.signal, arrival.code) {
        (Signal::SIGCHLD, _) => false,
        (_, libc::SI_USER | libc::SI_QUEUE | libc::SI_TKILL) => !from_sandbox(arrival.sender),
        // A hang-up goes to the session leader alone (drivers/tty/tty_jobctrl.c, tty_signal_session_leader).
        (Signal::SIGHUP, libc::SI_KERNEL) => session_leader,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forwarded(signal: Signal, code: i32) -> bool {
        must_forward(Arrival { signal, code, sender: 7 }, false, |_| false)
    }

    #[test]
    fn what_a_process_sent_goes_on() {
        for code in [libc::SI_USER, libc::SI_QUEUE, libc::SI_TKILL] {
            assert!(forwarded(Signal::SIGINT, code));
            assert!(forwarded(Signal::SIGUSR1, code));
        }
    }

    #[test]
    fn what_the_terminal_sent_reaches_cmd_anyway() {
        for signal in [Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTSTP, Signal::SIGWINCH] {
            assert!(!forwarded(signal, libc::SI_KERNEL));
            assert!(!must_forward(Arrival { signal, code: libc::SI_KERNEL, sender: 0 }, true, |_| false));
        }
    }

    #[test]
    fn a_hang_up_goes_on_from_the_session_leader_alone() {
        let hang_up = Arrival { signal: Signal::SIGHUP, code: libc::SI_KERNEL, sender: 0 };
        assert!(must_forward(hang_up, true, |_| false));
        assert!(!must_forward(hang_up, false, |_| false));
    }

    #[test]
    fn what_the_sandbox_sent_to_its_process_group_is_not_doubled() {
        let sent = Arrival { signal: Signal::SIGTERM, code: libc::SI_USER, sender: 7 };
        assert!(!must_forward(sent, false, |sender| sender == 7));
        assert!(must_forward(sent, false, |sender| sender == 8));
    }

    #[test]
    fn the_end_of_a_child_stays_here() {
        assert!(!forwarded(Signal::SIGCHLD, libc::CLD_EXITED));
        assert!(!forwarded(Signal::SIGCHLD, libc::SI_USER));
    }
}

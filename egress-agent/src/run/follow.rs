//! Following CMD to its end: signals, time limits, job control, exit status.

use super::{
    RunError,
    child::{Born, Init},
    signals::{Arrival, Signals, must_forward},
    terminal::Foreground,
};
use crate::cgroup::{Cgroup, poll_until};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signal::{Signal, kill, raise},
    unistd::{Pid, getpgrp, getsid},
};
use std::{
    fs::File,
    os::fd::AsFd,
    time::{Duration, Instant},
};

/// How long CMD has between SIGTERM and SIGKILL after `--timeout`, unless `--kill-after` says otherwise.
pub const KILL_AFTER: Duration = Duration::from_secs(10);

/// How long the kernel has to end killed processes.
pub const END_LIMIT: Duration = Duration::from_secs(10);

/// Time limits of a command.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Limits {
    /// From the call of [`Child::wait`] to SIGTERM.
    pub timeout: Option<Duration>,
    /// From SIGTERM, forwarded or of `timeout`, to the end of the whole cgroup. `None` = [`KILL_AFTER`] after `timeout`,
    /// never after a forwarded one.
    pub kill_after: Option<Duration>,
}

/// How CMD ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exit {
    /// It exited, with this code.
    Code(u8),
    /// A signal, with this number, ended it.
    Signal(u8),
    /// It ran into [`Limits::timeout`], whatever it exited with then.
    TimedOut,
}

impl Exit {
    /// Exit code of `run`: CMD's own; 128+n for signal n; 124 for the timeout.
    pub fn code(self) -> u8 {
        match self {
            Self::Code(code) => code,
            // Signal numbers are below 65.
            Self::Signal(signal) => 128 + signal,
            Self::TimedOut => 124,
        }
    }
}

/// A started command. Dropped before its end was seen, it ends the whole cgroup.
#[derive(Debug)]
pub struct Child<'cgroup> {
    command: Born,
    /// Ends, and is reaped, after CMD.
    init: Option<Init>,
    cgroup: &'cgroup Cgroup,
    foreground: Foreground,
    stopped: bool,
    exit: Option<Exit>,
}

/// What becomes of CMD by the clock.
#[derive(Default)]
struct Clock {
    term_at: Option<Instant>,
    kill_at: Option<Instant>,
    killed_at: Option<Instant>,
    timed_out: bool,
}

impl<'cgroup> Child<'cgroup> {
    pub(super) fn new(command: Born, init: Option<Init>, cgroup: &'cgroup Cgroup, foreground: Foreground) -> Self {
        Self { command, init, cgroup, foreground, stopped: false, exit: None }
    }

    /// Process id of CMD.
    pub fn pid(&self) -> u32 {
        self.command.pid.as_raw().cast_unsigned()
    }

    /// Follows CMD to its end: forwards signals, keeps time, and stops and continues with it under a shell's job control.
    ///
    /// # Errors
    /// [`RunError::Cgroup`] when killed processes do not end within [`END_LIMIT`].
    pub fn wait(&mut self, signals: &Signals, limits: Limits) -> Result<Exit, RunError> {
        let mut clock = Clock { term_at: limits.timeout.map(|limit| Instant::now() + limit), ..Clock::default() };
        loop {
            self.reap()?;
            if let Some(exit) = self.exit {
                return Ok(if clock.timed_out { Exit::TimedOut } else { exit });
            }
            self.keep_time(&mut clock, limits)?;
            let mut fds = [
                PollFd::new(signals.fd(), PollFlags::POLLIN),
                PollFd::new(self.command.pidfd.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut fds, clock.next_deadline().map_or(PollTimeout::NONE, poll_until)) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(RunError::syscall("poll")(errno)),
            }
            while let Some(arrival) = signals.read()? {
                self.reap()?;
                self.pass_on(arrival, signals.session_leader(), &mut clock, limits)?;
            }
        }
    }

    /// Ends what CMD left in the cgroup, and waits until nobody is there. Only then may its hooks be detached.
    ///
    /// # Errors
    /// [`RunError::Cgroup`] with the processes that did not end within [`END_LIMIT`]. The cgroup must stay enforced then.
    pub fn end(mut self) -> Result<(), RunError> {
        self.end_cgroup()
    }

    fn end_cgroup(&mut self) -> Result<(), RunError> {
        self.cgroup.kill()?;
        // Process 1 ends only when CMD, which has another parent, is reaped.
        if self.exit.is_none() {
            self.command.ends_within(END_LIMIT).map_err(RunError::syscall("poll"))?;
            self.reap()?;
        }
        // First, because its end is told at once and that of the cgroup not: two notices of `cgroup.events` are 10 ms apart
        // (CGROUP_FILE_NOTIFY_MIN_INTV in kernel/cgroup/cgroup.c).
        drop(self.init.take());
        self.cgroup.wait_unpopulated(END_LIMIT)?;
        self.foreground.take_back();
        Ok(())
    }

    /// Takes up every change of state that the kernel has to tell.
    fn reap(&mut self) -> Result<(), RunError> {
        while self.exit.is_none() {
            match status_of(self.command.pid).map_err(RunError::syscall("waitpid"))? {
                None => break,
                Some(Status::Exited(code)) => self.exit = Some(Exit::Code(code)),
                Some(Status::Killed(signal)) => self.exit = Some(Exit::Signal(signal)),
                Some(Status::Continued) => self.stopped = false,
                Some(Status::Stopped) => {
                    self.stopped = true;
                    stop_with_it()?;
                }
            }
        }
        Ok(())
    }

    fn pass_on(
        &self,
        arrival: Arrival,
        session_leader: bool,
        clock: &mut Clock,
        limits: Limits,
    ) -> Result<(), RunError> {
        // A shell continues the whole process group; only a CMD that is still stopped did not hear of it.
        if arrival.signal == Signal::SIGCONT && !self.stopped {
            return Ok(());
        }
        if self.exit.is_some() || !must_forward(arrival, session_leader, |sender| self.is_of_sandbox(sender)) {
            return Ok(());
        }
        self.send(arrival.signal)?;
        if arrival.signal == Signal::SIGTERM && clock.kill_at.is_none() {
            clock.kill_at = limits.kill_after.map(|limit| Instant::now() + limit);
        }
        Ok(())
    }

    /// True where a process with this number, as it came with a signal, is in the sandbox.
    ///
    /// It is the number in the sender's own namespace (`prepare_kill_siginfo` in kernel/signal.c), so a process of the sandbox can
    /// have that of one outside. The one outside is meant then, if it is a program and not the kernel's: a doubled signal is
    /// better than a lost one.
    fn is_of_sandbox(&self, sender: u32) -> bool {
        if self.init.is_none() {
            return self.cgroup.holds(sender);
        }
        let is_inside = |pid| inner_number(pid) == Some(sender);
        // Process 1 sends nothing.
        sender > 1
            && self.cgroup.procs().is_ok_and(|pids| pids.into_iter().any(is_inside))
            && (self.cgroup.holds(sender) || !is_program(sender))
    }

    fn keep_time(&self, clock: &mut Clock, limits: Limits) -> Result<(), RunError> {
        let now = Instant::now();
        if clock.term_at.is_some_and(|at| at <= now) {
            clock.term_at = None;
            clock.timed_out = true;
            clock.kill_at = clock.kill_at.or(Some(now + limits.kill_after.unwrap_or(KILL_AFTER)));
            self.send(Signal::SIGTERM)?;
            // A stopped process takes no other signal.
            self.send(Signal::SIGCONT)?;
        }
        if clock.kill_at.is_some_and(|at| at <= now) && clock.killed_at.is_none() {
            clock.killed_at = Some(now);
            self.cgroup.kill()?;
        }
        if clock.killed_at.is_some_and(|at| at + END_LIMIT <= now) {
            // Names who is left.
            self.cgroup.wait_unpopulated(Duration::ZERO)?;
        }
        Ok(())
    }

    /// CMD is not reaped yet, so its number is still its own.
    fn send(&self, signal: Signal) -> Result<(), RunError> {
        kill(self.command.pid, signal).map_err(RunError::syscall("kill"))
    }
}

impl Clock {
    fn next_deadline(&self) -> Option<Instant> {
        match (self.killed_at, self.kill_at, self.term_at) {
            (Some(killed_at), ..) => Some(killed_at + END_LIMIT),
            (None, Some(kill_at), Some(term_at)) => Some(kill_at.min(term_at)),
            (None, kill_at, term_at) => kill_at.or(term_at),
        }
    }
}

impl Drop for Child<'_> {
    fn drop(&mut self) {
        if self.exit.is_none()
            && let Err(error) = self.end_cgroup()
        {
            tracing::error!(%error, cgroup = %self.cgroup.path().display(), "command not ended");
        }
    }
}

/// A change of state of a child.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Status {
    /// It exited, with this code.
    Exited(u8),
    /// The signal with this number ended it.
    Killed(u8),
    /// A signal stopped it.
    Stopped,
    /// SIGCONT continued it.
    Continued,
}

/// The next change of state, without waiting. nix's waitpid knows no real-time signals: it consumes the status of a child
/// that died of one, and reports an error.
fn status_of(pid: Pid) -> nix::Result<Option<Status>> {
    let mut status: libc::c_int = 0;
    // SAFETY: the pointer leads to a local that outlives the call.
    let found =
        unsafe { libc::waitpid(pid.as_raw(), &raw mut status, libc::WNOHANG | libc::WUNTRACED | libc::WCONTINUED) };
    Ok((Errno::result(found)? != 0).then(|| {
        if libc::WIFEXITED(status) {
            // The low byte of what was given to exit.
            Status::Exited(libc::WEXITSTATUS(status).cast_unsigned() as u8)
        } else if libc::WIFSIGNALED(status) {
            // Signal numbers are below 65.
            Status::Killed(libc::WTERMSIG(status).cast_unsigned() as u8)
        } else if libc::WIFSTOPPED(status) {
            Status::Stopped
        } else {
            Status::Continued
        }
    }))
}

/// The process's number in its own pid namespace.
fn inner_number(pid: u32) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("NSpid:"))?.split_ascii_whitespace().last()?.parse().ok()
}

/// False for threads of the kernel, which have the low numbers on most hosts, and for processes that are gone.
fn is_program(pid: u32) -> bool {
    std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| !line.is_empty())
}

/// Stops this process, so that the shell sees the job as stopped once CMD is. Without a shell that does job control nobody
/// would continue it, so it only waits then.
fn stop_with_it() -> Result<(), RunError> {
    if under_job_control() { raise(Signal::SIGSTOP).map_err(RunError::syscall("raise")) } else { Ok(()) }
}

/// True where a shell with job control started this: there is a terminal, and the shell gave us a process group other than
/// its own.
fn under_job_control() -> bool {
    let own_group = getsid(None).is_ok_and(|session| session != getpgrp());
    own_group && File::open("/dev/tty").is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_follow_the_contract() {
        for code in 0..=255 {
            assert_eq!(Exit::Code(code).code(), code);
        }
        for (signal, code) in [(2, 130), (9, 137), (11, 139), (15, 143), (34, 162)] {
            assert_eq!(Exit::Signal(signal).code(), code);
        }
        assert_eq!(Exit::TimedOut.code(), 124);
    }

    #[test]
    fn the_earliest_deadline_counts_until_the_kill() {
        let now = Instant::now();
        let (soon, late) = (now + Duration::from_secs(100), now + Duration::from_secs(1000));
        assert_eq!(Clock::default().next_deadline(), None);
        let both = Clock { term_at: Some(late), kill_at: Some(soon), ..Clock::default() };
        assert_eq!(both.next_deadline(), Some(soon));
        let killed = Clock { killed_at: Some(now), ..both };
        assert_eq!(killed.next_deadline(), Some(now + END_LIMIT));
    }
}

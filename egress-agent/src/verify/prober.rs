//! A process that probes when it is told to: one of two, which differ in their cgroup alone.

use super::{
    VerifyError,
    probes::{PROBES, Targets},
};
use crate::{
    cgroup::{Cgroup, poll_until},
    run::{Born, Failure, RunError, Step, arrive, bear},
};
use nix::{
    errno::Errno,
    fcntl::OFlag,
    poll::{PollFd, PollFlags, poll},
    sys::{
        signal::{Signal, kill},
        wait::waitpid,
    },
    unistd::{pipe2, read, write},
};
use std::{
    ffi::c_int,
    io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd, RawFd},
    time::{Duration, Instant},
};

/// A probe is one system call or a few; whoever is silent for longer is frozen, or gone.
const PATIENCE: Duration = Duration::from_secs(5);

/// It ends with this process, however that ends.
#[derive(Debug)]
pub(super) struct Prober {
    born: Born,
    commands: Option<OwnedFd>,
    outcomes: OwnedFd,
}

impl Prober {
    /// Starts it in the cgroup and in the network namespace. It is what the caller is otherwise, so that what stops it are hooks
    /// and not missing rights. `foreign` is a socket that belongs to neither.
    pub(super) fn start(
        cgroup: &Cgroup,
        netns: BorrowedFd<'_>,
        targets: &Targets,
        foreign: BorrowedFd<'_>,
    ) -> Result<Self, VerifyError> {
        let entrance = cgroup.entrance().map_err(crate::sandbox::Error::from)?;
        let pipe = || pipe2(OFlag::O_CLOEXEC).map_err(|source| VerifyError::Pipe(source.into()));
        let ((orders, commands), (outcomes, told)) = (pipe()?, pipe()?);
        let fds = [orders.as_raw_fd(), told.as_raw_fd(), foreign.as_raw_fd()];
        let netns = netns.as_raw_fd();
        let life = |entrance, _report| match settle(entrance, netns, fds) {
            Ok(()) => serve(targets),
            Err(failure) => failure,
        };
        let born = bear(cgroup.fd(), entrance.as_fd(), life)
            .map_err(|failure| VerifyError::Prober { cgroup: cgroup.path().to_owned(), source: failure.into() })?;
        Ok(Self { born, commands: Some(commands), outcomes })
    }

    /// Its number.
    pub(super) fn pid(&self) -> u32 {
        self.born.pid.as_raw().cast_unsigned()
    }

    /// Has it try one way out: what the system calls said. Nonblocking calls that go on are done.
    pub(super) fn attempt(&self, probe: u8) -> Result<Result<(), Errno>, VerifyError> {
        let silent = |source: Errno| VerifyError::Silent { pid: self.born.pid, source: source.into() };
        let commands = self.commands.as_ref().ok_or_else(|| silent(Errno::EPIPE))?;
        write(commands, &[probe]).map_err(silent)?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            match poll(&mut [PollFd::new(self.outcomes.as_fd(), PollFlags::POLLIN)], poll_until(deadline)) {
                Ok(0) => return Err(silent(Errno::ETIMEDOUT)),
                Ok(_) => break,
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(silent(errno)),
            }
        }
        let mut outcome = [0; size_of::<c_int>()];
        match read(&self.outcomes, &mut outcome).map_err(silent)? {
            length if length == outcome.len() => {}
            _ => return Err(silent(Errno::EPIPE)),
        }
        Ok(match c_int::from_ne_bytes(outcome) {
            0 | libc::EINPROGRESS => Ok(()),
            errno => Err(Errno::from_raw(errno)),
        })
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        drop(self.commands.take());
        // One that does not end by itself is frozen; it holds nothing.
        if self.born.ends_within(PATIENCE) != Ok(true) {
            let killed = kill(self.born.pid, Signal::SIGKILL);
            tracing::warn!(pid = %self.born.pid, ?killed, "a prober does not end");
        }
        let reaped = waitpid(self.born.pid, None);
        tracing::debug!(?reaped, "a prober");
    }
}

/// From birth on nothing but three descriptors: orders, what to say, and the socket from outside.
fn settle(entrance: RawFd, netns: RawFd, fds: [RawFd; 3]) -> Result<(), Failure> {
    arrive(entrance)?;
    let at = |step| move |errno: Errno| Failure::at(step)(errno);
    // SAFETY: the descriptor is open in the copy of the caller that this is.
    nix::sched::setns(unsafe { BorrowedFd::borrow_raw(netns) }, nix::sched::CloneFlags::CLONE_NEWNET)
        .map_err(at(Step::Netns))?;
    for (number, fd) in (0..).zip(fds) {
        // SAFETY: takes numbers. What the caller had on 0 to 2 this process does not use.
        Errno::result(unsafe { libc::dup2(fd, number) }).map_err(at(Step::Descriptors))?;
    }
    // The end by which a failure is told is among them: whoever waits for it knows that there was none.
    // SAFETY: takes numbers; every descriptor that this process uses is below 3.
    let closed = unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0) };
    Errno::result(closed).map(drop).map_err(at(Step::Descriptors))
}

fn serve(targets: &Targets) -> ! {
    // SAFETY: open from `settle` on, for as long as this process lives.
    let [orders, told, foreign] = [0, 1, 2].map(|fd| unsafe { BorrowedFd::borrow_raw(fd) });
    let mut order = [0];
    while read(orders, &mut order) == Ok(1) {
        let outcome = match PROBES.get(usize::from(order[0])).map(|probe| (probe.run)(targets, foreign)) {
            Some(Ok(())) => 0,
            Some(Err(errno)) => errno as c_int,
            None => libc::ENOSYS,
        };
        if write(told, &outcome.to_ne_bytes()).is_err() {
            break;
        }
    }
    // SAFETY: takes a number.
    unsafe { libc::_exit(0) }
}

impl From<Failure> for Box<RunError> {
    fn from(failure: Failure) -> Self {
        Self::new(failure.into())
    }
}

impl VerifyError {
    /// What the cgroup does not take in, a child of it may.
    pub(super) fn is_inner_cgroup(&self) -> bool {
        let Self::Prober { source, .. } = self else { return false };
        let RunError::Child { source, .. } = &**source else { return false };
        matches!(source.raw_os_error(), Some(libc::EBUSY | libc::EOPNOTSUPP))
            || source.kind() == io::ErrorKind::ResourceBusy
    }
}

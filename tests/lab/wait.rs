//! Waiting on conditions, never on time alone.

use std::{
    io::PipeReader,
    os::fd::{AsFd, BorrowedFd},
    sync::Arc,
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Deadlines are for a machine that runs tests natively; `EGRESS_LAB_PATIENCE` says how often that long others may take.
pub(crate) fn patient(deadline: Duration) -> Duration {
    let times = std::env::var("EGRESS_LAB_PATIENCE").ok().and_then(|times| times.parse().ok());
    deadline * times.unwrap_or(1)
}

/// Waits until `condition` holds; panics with `what` after `deadline`.
#[track_caller]
pub fn until(deadline: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = patient(deadline);
    let end = Instant::now() + deadline;
    while !condition() {
        assert!(Instant::now() < end, "not within {deadline:?}: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Ends the threads of a lab: they poll on this pipe beside their sockets, and its writer is dropped with the lab.
#[derive(Clone, Debug)]
pub(crate) struct Stop(Arc<PipeReader>);

impl Stop {
    pub(crate) fn new() -> (Self, std::io::PipeWriter) {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        (Self(Arc::new(reader)), writer)
    }

    /// True when one of `fds` is readable, false when the lab ends.
    pub(crate) fn wait(&self, fds: &[BorrowedFd<'_>]) -> bool {
        let mut polled: Vec<_> = fds.iter().map(|fd| PollFd::new(*fd, PollFlags::POLLIN)).collect();
        polled.push(PollFd::new(self.0.as_fd(), PollFlags::POLLIN));
        while poll(&mut polled, PollTimeout::NONE).is_err() {}
        polled.last().is_none_or(|stop| !stop.any().unwrap_or(true))
    }
}

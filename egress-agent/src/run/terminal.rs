//! The terminal's foreground, taken back when CMD has ended.
//!
//! A shell that does job control gives it back at its end. One in a pid namespace cannot: the process group that it was started
//! in has no number there. Whoever follows egressd in a script would then read from the background, and be stopped.

use nix::{
    errno::Errno,
    sys::signal::{SigSet, SigmaskHow, Signal, killpg},
    unistd::{getpgrp, tcgetpgrp, tcsetpgrp},
};
use std::fs::File;

/// The terminal, where this process's group is in its foreground.
#[derive(Debug)]
pub(super) struct Foreground(Option<File>);

impl Foreground {
    /// Before CMD can change it.
    pub(super) fn note() -> Self {
        let terminal = File::options().read(true).write(true).open("/dev/tty").ok();
        Self(terminal.filter(|terminal| tcgetpgrp(terminal) == Ok(getpgrp())))
    }

    /// When all of CMD has ended. A group that lives keeps the foreground: the caller's shell gave it that.
    pub(super) fn take_back(&self) {
        let Some(terminal) = &self.0 else { return };
        let Ok(group) = tcgetpgrp(terminal) else { return };
        if group == getpgrp() || killpg(group, None) != Err(Errno::ESRCH) {
            return;
        }
        // From the background this is a signal that stops, unless it is blocked.
        let mut stop = SigSet::empty();
        stop.add(Signal::SIGTTOU);
        let mask = stop.thread_swap_mask(SigmaskHow::SIG_BLOCK);
        let taken = tcsetpgrp(terminal, getpgrp());
        let unblocked = mask.and_then(|mask| mask.thread_set_mask());
        tracing::debug!(?taken, ?unblocked, "foreground of the terminal");
    }
}

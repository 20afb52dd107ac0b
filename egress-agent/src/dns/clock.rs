//! The time by which answers grow old. Permits are on another clock, the kernel's, which stands still while the machine
//! sleeps; an answer from before must not come back as a fresh one.

use crate::clock::since_boot;
use std::time::{Duration, Instant};

/// [`Instant`]s that went on while the machine slept.
#[derive(Debug)]
pub(super) struct Clock {
    made: Instant,
    /// Time since the boot when this clock was made.
    booted: Duration,
    /// A test's time machine.
    #[cfg(test)]
    ahead_ms: std::sync::atomic::AtomicU64,
}

impl Clock {
    pub(super) fn new() -> Self {
        Self {
            made: Instant::now(),
            booted: since_boot(),
            #[cfg(test)]
            ahead_ms: std::sync::atomic::AtomicU64::default(),
        }
    }

    pub(super) fn now(&self) -> Instant {
        let now = self.made + since_boot().saturating_sub(self.booted);
        #[cfg(test)]
        let now = now + Duration::from_millis(self.ahead_ms.load(std::sync::atomic::Ordering::SeqCst));
        now
    }

    #[cfg(test)]
    pub(super) fn advance(&self, by: Duration) {
        let ms = u64::try_from(by.as_millis()).unwrap();
        self.ahead_ms.fetch_add(ms, std::sync::atomic::Ordering::SeqCst);
    }
}

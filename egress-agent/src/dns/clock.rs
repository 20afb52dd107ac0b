//! The time by which answers grow old. Tests put it forward.

use std::time::Instant;

/// Now, by a clock that stands still while the machine sleeps, as the kernel's clock of permits does.
#[derive(Debug, Default)]
pub(super) struct Clock {
    #[cfg(test)]
    ahead_ms: std::sync::atomic::AtomicU64,
}

impl Clock {
    #[cfg(not(test))]
    pub(super) fn now(&self) -> Instant {
        Instant::now()
    }

    #[cfg(test)]
    pub(super) fn now(&self) -> Instant {
        Instant::now() + std::time::Duration::from_millis(self.ahead_ms.load(std::sync::atomic::Ordering::SeqCst))
    }

    #[cfg(test)]
    pub(super) fn advance(&self, by: std::time::Duration) {
        let ms = u64::try_from(by.as_millis()).unwrap();
        self.ahead_ms.fetch_add(ms, std::sync::atomic::Ordering::SeqCst);
    }
}

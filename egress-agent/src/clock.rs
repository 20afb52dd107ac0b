//! The host's clocks.

use nix::time::{ClockId, clock_gettime};
use std::time::Duration;

/// Both clocks always exist on Linux; without them no time seems to pass.
fn read(clock: ClockId) -> Duration {
    clock_gettime(clock).map_or(Duration::ZERO, Duration::from)
}

/// Time since the boot, with what the machine slept (CLOCK_BOOTTIME, clock_gettime(2)).
pub(crate) fn since_boot() -> Duration {
    read(ClockId::CLOCK_BOOTTIME)
}

/// How long the machine has slept since its boot: what CLOCK_BOOTTIME counts and CLOCK_MONOTONIC does not.
/// It never shrinks by more than the time between two readings.
pub(crate) fn slept() -> Duration {
    let monotonic = read(ClockId::CLOCK_MONOTONIC);
    since_boot().saturating_sub(monotonic)
}

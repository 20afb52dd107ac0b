//! The host's clocks.

use nix::time::{ClockId, clock_gettime};
use std::time::Duration;

/// How long the machine has slept since its boot: what CLOCK_BOOTTIME counts and CLOCK_MONOTONIC does not (clock_gettime(2)).
/// It never shrinks by more than the time between two readings.
pub(crate) fn slept() -> Duration {
    // Both always exist on Linux; without them nothing ever seems to be slept.
    let read = |clock| clock_gettime(clock).map_or(Duration::ZERO, Duration::from);
    let monotonic = read(ClockId::CLOCK_MONOTONIC);
    read(ClockId::CLOCK_BOOTTIME).saturating_sub(monotonic)
}

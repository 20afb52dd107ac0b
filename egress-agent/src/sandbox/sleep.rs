//! Suspend. Permits end by a clock that stands still while the machine sleeps (CLOCK_MONOTONIC), and the answers that they rest
//! on grow old all the same (CLOCK_BOOTTIME): what was slept is taken off their lives.

use crate::clock;
use egress_common::permit::{NEVER_NS, Permit};
use std::time::Duration;

/// Less is the time between the readings of two clocks. It is not lost: it adds up to the next reading.
const NOTICEABLE: Duration = Duration::from_millis(500);

/// What was slept up to the last look.
#[derive(Debug)]
pub(super) struct Sleep {
    seen: Duration,
}

impl Sleep {
    /// From now on.
    pub(super) fn new() -> Self {
        Self { seen: clock::slept() }
    }

    /// What was slept since the last call that returned something.
    pub(super) fn slept(&mut self) -> Option<Duration> {
        self.since(clock::slept())
    }

    fn since(&mut self, total: Duration) -> Option<Duration> {
        let slept = total.saturating_sub(self.seen);
        if slept < NOTICEABLE {
            return None;
        }
        self.seen = total;
        Some(slept)
    }
}

/// The permit after so much sleep: what was learned ends earlier, what the policy itself names does not.
pub(super) fn aged(permit: &Permit, slept_ns: u64) -> Permit {
    let mut aged = *permit;
    for grant in aged.grants.iter_mut().filter(|grant| grant.expires_ns != NEVER_NS) {
        grant.expires_ns = grant.expires_ns.saturating_sub(slept_ns);
    }
    aged
}

#[cfg(test)]
mod tests {
    use super::*;
    use egress_common::permit::{Grant, RuleRef};

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn sleep_is_what_one_clock_counts_and_the_other_does_not() {
        let mut sleep = Sleep { seen: s(10) };
        let mut between = |boottime: Duration, monotonic| sleep.since(boottime.saturating_sub(monotonic));
        assert_eq!(between(s(110), s(100)), None);
        assert_eq!(between(s(3110), s(3100)), None, "awake for long");
        assert_eq!(between(s(6711), s(3101)), Some(s(3600)));
        assert_eq!(between(s(6712), s(3102)), None, "told once");
        let jitter = Duration::from_millis(300);
        assert_eq!(between(s(6712) + jitter, s(3102)), None);
        assert_eq!(between(s(6712) + 2 * jitter, s(3102)), Some(2 * jitter), "naps add up");
        assert_eq!(between(s(6712), s(3102)), None, "read the other way round");
    }

    #[test]
    fn the_clocks_of_this_host_do_not_drift_apart_while_it_is_awake() {
        let mut sleep = Sleep::new();
        assert_eq!(sleep.slept(), None);
    }

    #[test]
    fn what_was_learned_ages_and_what_the_policy_names_does_not() {
        let grant = |tag, expires_ns| Grant { expires_ns, rule: RuleRef { index: tag, tag } };
        let mut permit = Permit::default();
        permit.grants[0] = grant(1, NEVER_NS);
        permit.grants[1] = grant(2, 900);
        permit.grants[2] = grant(3, 100);
        let aged = aged(&permit, 500);
        assert_eq!(aged.grants[..3], [grant(1, NEVER_NS), grant(2, 400), grant(3, 0)]);
        assert_eq!((aged.deny, aged.grants[3]), (permit.deny, permit.grants[3]));
    }
}

//! How many queries a second a sandbox may ask.

use std::time::{Duration, Instant};

/// Seconds of the rate that may come at once.
const BURST_S: u64 = 2;
/// Beyond this multiple of the rate even refusals cost too much: such queries get no answer.
const DROP_FACTOR: u64 = 10;
/// Larger rates are read as this one: no socket is faster, and the arithmetic stays within 64 bits.
const MAX_RATE: u32 = 1_000_000;
const NS: u64 = 1_000_000_000;

/// What to do with one more query.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    Serve,
    Refuse,
    Drop,
}

/// Two token buckets, and what they kept back since the last report.
#[derive(Clone, Debug)]
pub(super) struct Budget {
    serve: Bucket,
    refuse: Bucket,
    refused: u64,
    dropped: u64,
    reported: Option<Instant>,
}

#[derive(Clone, Debug)]
struct Bucket {
    /// Queries a second.
    rate: u64,
    /// Billionths of a query, at most BURST_S seconds of the rate.
    tokens: u64,
    filled: Instant,
}

impl Bucket {
    fn full(rate: u64, now: Instant) -> Self {
        Self { rate, tokens: rate * BURST_S * NS, filled: now }
    }

    fn take(&mut self, now: Instant) -> bool {
        let elapsed = now.saturating_duration_since(self.filled).min(Duration::from_secs(BURST_S));
        self.filled = now;
        self.tokens = (self.tokens + elapsed.as_nanos() as u64 * self.rate).min(self.rate * BURST_S * NS);
        let left = self.tokens.checked_sub(NS);
        self.tokens = left.unwrap_or(self.tokens);
        left.is_some()
    }
}

impl Budget {
    /// Full buckets for `rate` queries a second.
    pub(super) fn new(rate: u32, now: Instant) -> Self {
        let rate = u64::from(rate.min(MAX_RATE));
        Self {
            serve: Bucket::full(rate, now),
            refuse: Bucket::full(rate * DROP_FACTOR, now),
            refused: 0,
            dropped: 0,
            reported: None,
        }
    }

    /// Takes over a new rate; what was used up stays used up.
    pub(super) fn set_rate(&mut self, rate: u32) {
        let rate = u64::from(rate.min(MAX_RATE));
        for (bucket, rate) in [(&mut self.serve, rate), (&mut self.refuse, rate * DROP_FACTOR)] {
            bucket.rate = rate;
            bucket.tokens = bucket.tokens.min(rate * BURST_S * NS);
        }
    }

    /// Counts one query.
    pub(super) fn take(&mut self, now: Instant) -> Verdict {
        let may_refuse = self.refuse.take(now);
        if self.serve.take(now) {
            Verdict::Serve
        } else if may_refuse {
            self.refused += 1;
            Verdict::Refuse
        } else {
            self.dropped += 1;
            Verdict::Drop
        }
    }

    /// How many were refused and dropped since the last report, at most once a second.
    pub(super) fn report(&mut self, now: Instant) -> Option<(u64, u64)> {
        let due = self.reported.is_none_or(|last| now.saturating_duration_since(last) >= Duration::from_secs(1));
        (due && self.refused + self.dropped > 0).then(|| {
            self.reported = Some(now);
            (std::mem::take(&mut self.refused), std::mem::take(&mut self.dropped))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(budget: &mut Budget, now: Instant, queries: usize, verdict: Verdict) -> usize {
        (0..queries).filter(|_| budget.take(now) == verdict).count()
    }

    #[test]
    fn a_burst_of_two_seconds_passes_then_the_rate() {
        let start = Instant::now();
        let mut budget = Budget::new(100, start);
        assert_eq!(count(&mut budget, start, 300, Verdict::Serve), 200);
        assert_eq!(count(&mut budget, start + Duration::from_millis(500), 300, Verdict::Serve), 50);
        assert_eq!(count(&mut budget, start + Duration::from_secs(3600), 300, Verdict::Serve), 200);
    }

    #[test]
    fn a_flood_is_refused_then_dropped_and_reported_once_a_second() {
        let start = Instant::now();
        let mut budget = Budget::new(100, start);
        assert_eq!(budget.report(start), None);
        assert_eq!(count(&mut budget, start, 2000, Verdict::Refuse), 1800);
        assert_eq!(budget.report(start), Some((1800, 0)));
        assert_eq!(count(&mut budget, start, 10, Verdict::Drop), 10);
        assert_eq!(budget.report(start), None);
        assert_eq!(budget.report(start + Duration::from_secs(1)), Some((0, 10)));
    }

    #[test]
    fn a_lower_rate_takes_saved_tokens_away() {
        let start = Instant::now();
        let mut budget = Budget::new(100, start);
        budget.set_rate(10);
        assert_eq!(count(&mut budget, start, 300, Verdict::Serve), 20);
    }
}

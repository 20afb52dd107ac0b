//! How many queries a second a sandbox may ask, and how much of them may go on to upstreams.

use std::time::{Duration, Instant};

/// Seconds of the rate that may come at once.
const BURST_S: u64 = 2;
/// Beyond this multiple of the rate even refusals cost too much: such queries get no answer.
const DROP_FACTOR: u32 = 10;
/// One of so many queries may go to an upstream; three seconds' worth of them at once.
const FORWARD_PART: u32 = 5;
const FORWARD_BURST: Duration = Duration::from_secs(3);
/// Octets of answers for each query of the rate: 1 MiB a second at the default rate.
const OCTETS: u32 = 2048;
/// Larger rates are read as this one: no socket is faster.
const MAX_RATE: u32 = 1_000_000;

/// What to do with one more query.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    Serve,
    Refuse,
    Drop,
}

/// A token bucket that counts in time: credit grows with the clock up to a bound, and a token costs some of it.
#[derive(Clone, Debug)]
pub(super) struct Bucket {
    cost_ns: i64,
    most_ns: i64,
    credit_ns: i64,
    filled: Instant,
}

fn ns(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

impl Bucket {
    /// Full. One token comes every `cost`, and credit for `most` is kept.
    pub(super) fn full(cost: Duration, most: Duration, now: Instant) -> Self {
        let (cost_ns, most_ns) = (ns(cost), ns(most.max(cost)));
        Self { cost_ns, most_ns, credit_ns: most_ns, filled: now }
    }

    fn set_cost(&mut self, cost: Duration, most: Duration) {
        (self.cost_ns, self.most_ns) = (ns(cost), ns(most.max(cost)));
        self.credit_ns = self.credit_ns.min(self.most_ns);
    }

    fn fill(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.filled);
        self.filled = self.filled.max(now);
        self.credit_ns = self.credit_ns.saturating_add(ns(elapsed)).min(self.most_ns);
    }

    /// Takes a token where there is one.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        self.fill(now);
        let enough = self.credit_ns >= self.cost_ns;
        if enough {
            self.credit_ns -= self.cost_ns;
        }
        enough
    }

    /// Takes what has been used already, into debt if need be.
    fn charge(&mut self, now: Instant, tokens: usize) {
        self.fill(now);
        let cost = self.cost_ns.saturating_mul(i64::try_from(tokens).unwrap_or(i64::MAX));
        self.credit_ns = self.credit_ns.saturating_sub(cost);
    }

    fn in_debt(&mut self, now: Instant) -> bool {
        self.fill(now);
        self.credit_ns < 0
    }

    /// Until there is a token.
    fn wait(&self) -> Duration {
        Duration::from_nanos(u64::try_from(self.cost_ns - self.credit_ns).unwrap_or(0))
    }
}

/// What a sandbox may ask, and what was kept back since the last report.
#[derive(Clone, Debug)]
pub(super) struct Budget {
    serve: Bucket,
    refuse: Bucket,
    forward: Bucket,
    octets: Bucket,
    refused: u64,
    dropped: u64,
    reported: Option<Instant>,
}

/// Cost and bound of the four buckets.
fn measures(rate: u32) -> [(Duration, Duration); 4] {
    let second = Duration::from_secs(1);
    let cost = second / rate.clamp(1, MAX_RATE);
    let burst = Duration::from_secs(BURST_S);
    [(cost, burst), (cost / DROP_FACTOR, burst), (cost * FORWARD_PART, FORWARD_BURST), (cost / OCTETS, second)]
}

impl Budget {
    /// Full buckets for `rate` queries a second.
    pub(super) fn new(rate: u32, now: Instant) -> Self {
        let [serve, refuse, forward, octets] = measures(rate).map(|(cost, most)| Bucket::full(cost, most, now));
        Self { serve, refuse, forward, octets, refused: 0, dropped: 0, reported: None }
    }

    /// Takes over a new rate; what was used up stays used up.
    pub(super) fn set_rate(&mut self, rate: u32) {
        let buckets = [&mut self.serve, &mut self.refuse, &mut self.forward, &mut self.octets];
        for (bucket, (cost, most)) in buckets.into_iter().zip(measures(rate)) {
            bucket.set_cost(cost, most);
        }
    }

    /// Counts one query.
    pub(super) fn take(&mut self, now: Instant) -> Verdict {
        let may_refuse = self.refuse.take(now);
        if !self.octets.in_debt(now) && self.serve.take(now) {
            Verdict::Serve
        } else if may_refuse {
            self.refused += 1;
            Verdict::Refuse
        } else {
            self.dropped += 1;
            Verdict::Drop
        }
    }

    /// Takes one question to upstreams, or says how long until the next one may go.
    pub(super) fn forward(&mut self, now: Instant) -> Result<(), Duration> {
        if self.forward.take(now) { Ok(()) } else { Err(self.forward.wait()) }
    }

    /// Counts a question that waited for upstreams in vain.
    pub(super) fn refuse_forward(&mut self) {
        self.refused += 1;
    }

    /// Counts an answer.
    pub(super) fn answered(&mut self, now: Instant, octets: usize) {
        self.octets.charge(now, octets);
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
    fn one_query_in_five_may_go_on_and_answers_have_a_size() {
        let start = Instant::now();
        let mut budget = Budget::new(500, start);
        assert_eq!((0..1000).filter(|_| budget.forward(start).is_ok()).count(), 300);
        assert_eq!(budget.forward(start), Err(Duration::from_millis(10)));
        assert!(budget.forward(start + Duration::from_millis(10)).is_ok());
        budget.answered(start, 1_000_000);
        assert_eq!(budget.take(start), Verdict::Serve);
        budget.answered(start, 1_000_000);
        assert_eq!(budget.take(start), Verdict::Refuse);
        assert_eq!(budget.take(start + Duration::from_millis(1100)), Verdict::Serve);
    }

    #[test]
    fn a_lower_rate_takes_saved_tokens_away() {
        let start = Instant::now();
        let mut budget = Budget::new(100, start);
        budget.set_rate(10);
        assert_eq!(count(&mut budget, start, 300, Verdict::Serve), 20);
    }
}

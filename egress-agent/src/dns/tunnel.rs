//! Names below a wildcard are the sandbox's own words, and whoever serves the zone hears them: new ones are few, short and
//! shallow. A name that a rule spells out carries nothing.

use super::{
    budget::Bucket,
    name::{Labels, Name},
};
use std::{
    collections::{HashMap, VecDeque},
    hash::{BuildHasher, RandomState},
    time::{Duration, Instant},
};

/// Names below one wildcard that may go out for the first time in a minute, and at once.
const NAMES: u32 = 60;
const NAMES_BURST: u32 = 200;
/// Octets of their labels in any minute.
const OCTETS: usize = 4096;
/// Labels below the wildcard's base, and octets of the whole name in wire form.
const MAX_FREE_LABELS: usize = 6;
const MAX_NAME: usize = 180;
const MINUTE: Duration = Duration::from_secs(60);

/// True for a name whose labels are too many or too long for what wildcards are written for.
pub(super) fn is_outsized(labels: &Labels<'_>, free_labels: usize) -> bool {
    free_labels > MAX_FREE_LABELS || 1 + octets(labels) > MAX_NAME
}

fn octets(labels: &[&[u8]]) -> usize {
    labels.iter().map(|label| 1 + label.len()).sum()
}

/// What went out below each wildcard of a sandbox.
#[derive(Debug, Default)]
pub(super) struct Tunnels {
    /// By the wire form of the wildcard's base.
    bases: HashMap<Box<[u8]>, Gauge>,
    /// Keyed: names that collide would be free.
    hasher: RandomState,
}

#[derive(Debug)]
struct Gauge {
    names: Bucket,
    /// Of the last minute, oldest first.
    sent: VecDeque<Sent>,
    octets: usize,
    refused: u64,
    reported: Option<Instant>,
}

#[derive(Debug)]
struct Sent {
    at: Instant,
    name: u64,
    octets: usize,
}

/// Names below a base that were kept back since the last report.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Kept {
    pub(super) base: Name,
    pub(super) refused: u64,
}

impl Tunnels {
    /// Counts a name that is not known yet. False where it has to stay, perhaps with a report, at most one a second.
    pub(super) fn take(&mut self, name: &Name, free_labels: usize, now: Instant) -> (bool, Option<Kept>) {
        let octets = octets(name.labels().get(..free_labels).unwrap_or_default());
        let base = name.as_wire().get(octets..).unwrap_or_default();
        let hash = self.hasher.hash_one(name);
        let gauge = self.bases.entry(base.into()).or_insert_with(|| Gauge::new(now));
        if gauge.take(hash, octets, now) {
            return (true, None);
        }
        let refused = gauge.report(now);
        let kept = refused.map(|refused| Kept { base: Name::from_wire(base).unwrap_or_else(Name::root), refused });
        (false, kept)
    }
}

impl Gauge {
    fn new(now: Instant) -> Self {
        let cost = MINUTE / NAMES;
        let names = Bucket::full(cost, cost * NAMES_BURST, now);
        Self { names, sent: VecDeque::new(), octets: 0, refused: 0, reported: None }
    }

    fn take(&mut self, name: u64, octets: usize, now: Instant) -> bool {
        while let Some(oldest) = self.sent.front().filter(|sent| now.saturating_duration_since(sent.at) >= MINUTE) {
            self.octets -= oldest.octets;
            self.sent.pop_front();
        }
        // The other family, or a client that asks again.
        if self.sent.iter().any(|sent| sent.name == name) {
            return true;
        }
        if self.octets + octets > OCTETS || !self.names.take(now) {
            self.refused += 1;
            return false;
        }
        self.octets += octets;
        self.sent.push_back(Sent { at: now, name, octets });
        true
    }

    fn report(&mut self, now: Instant) -> Option<u64> {
        let due = self.reported.is_none_or(|last| now.saturating_duration_since(last) >= Duration::from_secs(1));
        due.then(|| {
            self.reported = Some(now);
            std::mem::take(&mut self.refused)
        })
    }
}

#[cfg(test)]
#[path = "tunnel_tests.rs"]
mod tests;

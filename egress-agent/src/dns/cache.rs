//! What one sandbox's upstreams said, until it grows old. Kept as they said it: whether the policy lets it out is asked at
//! every use, so it outlives a reload.
//!
//! Of one sandbox alone: the time that an answer takes would tell what a neighbour asked for.

use super::{lifetime, name::Name};
use lru::LruCache;
use std::{
    net::{IpAddr, SocketAddr},
    num::NonZeroUsize,
    sync::Arc,
    time::{Duration, Instant},
};

/// Names and types that are remembered; the one that was used longest ago gives way.
const ENTRIES: NonZeroUsize = NonZeroUsize::new(1024).unwrap();
/// Longest life of an answer, whatever its TTL says.
const MAX_TTL: u32 = 3600;
/// How long an answer that grew old still helps out while no upstream answers (RFC 8767, 5: at most days).
const STALE: Duration = Duration::from_mins(15);
/// After a failure upstreams are left alone for this long where an old answer is at hand (RFC 8767, 5: at most 30 s).
const RECHECK: Duration = Duration::from_secs(5);

/// A question to an upstream.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Key {
    pub(super) name: Name,
    pub(super) qtype: u16,
}

/// What upstreams know of a name, whatever the policy thinks of it.
#[derive(Debug)]
pub(super) struct Known {
    /// Targets of the CNAME chain, in order.
    pub(super) hops: Vec<Name>,
    pub(super) found: Found,
    /// Seconds from when it was learned.
    pub(super) ttl: u32,
}

/// How the chain ended.
#[derive(Debug)]
pub(super) enum Found {
    Addresses {
        addresses: Vec<IpAddr>,
        server: SocketAddr,
    },
    /// Data of SVCB or HTTPS records, as far as it may be let out.
    Services(Vec<Vec<u8>>),
    NoData,
    NxDomain,
    TooLong,
}

impl Known {
    /// No data where there may be some.
    pub(super) fn nothing(ttl: u32) -> Self {
        Self { hops: Vec::new(), found: Found::NoData, ttl }
    }

    /// How long it is kept; `None` for what is no answer.
    fn life(&self) -> Option<Duration> {
        let seconds = match self.found {
            Found::Addresses { .. } | Found::Services(_) => self.ttl.clamp(1, MAX_TTL),
            Found::NoData | Found::NxDomain => lifetime::negative_ttl(self.ttl),
            Found::TooLong => return None,
        };
        Some(Duration::from_secs(seconds.into()))
    }

    pub(super) fn has_addresses(&self) -> bool {
        matches!(self.found, Found::Addresses { .. })
    }

    /// False for what fails a whole lookup where A is well: musl takes "no such name" for AAAA as the last word.
    pub(super) fn answers_aaaa(&self) -> bool {
        matches!(self.found, Found::Addresses { .. } | Found::NoData)
    }
}

/// What the cache has for a question.
#[derive(Clone, Debug)]
pub(super) enum Cached {
    /// With the rest of its TTL. `renewed`: it will be renewed before it grows old.
    Fresh { known: Arc<Known>, ttl: u32, renewed: bool },
    /// Addresses that grew old. `ask`: it is time to ask upstream again.
    Stale { known: Arc<Known>, ask: bool },
}

struct Entry {
    known: Arc<Known>,
    learned: Instant,
    life: Duration,
    /// Upstreams failed; they are left alone until then.
    spared_until: Option<Instant>,
    /// It was used since it was learned, and will be renewed before it grows old.
    renewed: bool,
}

/// Answers of one sandbox's upstreams.
pub(super) struct Cache {
    entries: LruCache<Key, Entry>,
}

impl Cache {
    pub(super) fn new() -> Self {
        // Unbounded, for a bounded one takes its whole room at once; `put` holds the bound.
        Self { entries: LruCache::unbounded() }
    }

    pub(super) fn get(&mut self, key: &Key, now: Instant) -> Option<Cached> {
        let entry = self.entries.get(key)?;
        let known = Arc::clone(&entry.known);
        let age = now.saturating_duration_since(entry.learned);
        if age < entry.life {
            let ttl = u64::from(known.ttl).saturating_sub(age.as_secs()).max(1);
            return Some(Cached::Fresh { known, ttl: ttl as u32, renewed: entry.renewed });
        }
        if !known.has_addresses() || age >= entry.life + STALE {
            self.entries.pop(key);
            return None;
        }
        let ask = entry.spared_until.is_none_or(|until| now >= until);
        Some(Cached::Stale { known, ask })
    }

    /// True where something is known of the name, old or new.
    pub(super) fn holds(&self, key: &Key) -> bool {
        self.entries.contains(key)
    }

    pub(super) fn put(&mut self, key: Key, known: Arc<Known>, now: Instant) {
        let Some(life) = known.life() else { return };
        self.entries.put(key, Entry { known, learned: now, life, spared_until: None, renewed: false });
        while self.entries.len() > ENTRIES.get() {
            self.entries.pop_lru();
        }
    }

    /// No upstream answered the question.
    pub(super) fn failed(&mut self, key: &Key, now: Instant) {
        if let Some(entry) = self.entries.peek_mut(key) {
            entry.spared_until = Some(now + RECHECK);
        }
    }

    /// For an answer with addresses that is used for the first time: how long until it should be renewed, at 80 % of its
    /// life. `jitter` is from 0 to 1, and takes up to a tenth off.
    pub(super) fn renewal(&mut self, key: &Key, now: Instant, jitter: f64) -> Option<Duration> {
        let entry = self.entries.peek_mut(key).filter(|entry| !entry.renewed && entry.known.has_addresses())?;
        entry.renewed = true;
        let due = entry.learned + entry.life.mul_f64(0.8 - jitter / 10.0);
        Some(due.saturating_duration_since(now))
    }

    pub(super) fn clear(&mut self) {
        self.entries.clear();
    }
}

#[cfg(test)]
#[path = "cache_tests.rs"]
mod tests;

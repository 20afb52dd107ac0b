//! Targets of CNAME chains that went out in answers: a resolver inside the sandbox asks for each of them by itself. It may,
//! for addresses alone, by the rules of the name whose chain it was, and no longer than the answer lives.

use super::name::Name;
use lru::LruCache;
use std::{
    num::NonZeroUsize,
    time::{Duration, Instant},
};

/// Targets of one sandbox that are remembered; the one that was used longest ago gives way.
const TARGETS: NonZeroUsize = NonZeroUsize::new(1024).unwrap();
const LONGEST: Duration = Duration::from_hours(1);

/// Targets that one sandbox may ask for.
pub(super) struct Derived {
    targets: LruCache<Name, Target>,
}

struct Target {
    rules: Vec<usize>,
    until: Instant,
}

impl Derived {
    pub(super) fn new() -> Self {
        Self { targets: LruCache::unbounded() }
    }

    /// An answer with this chain goes out. A target of two chains is one of whichever lives longer.
    pub(super) fn note(&mut self, chain: &[Name], rules: &[usize], ttl: u32, now: Instant) {
        let until = now + Duration::from_secs(ttl.into()).min(LONGEST);
        for hop in chain {
            if self.targets.get(hop).is_none_or(|known| known.until < until) {
                self.targets.put(hop.clone(), Target { rules: rules.to_vec(), until });
            }
        }
        while self.targets.len() > TARGETS.get() {
            self.targets.pop_lru();
        }
    }

    /// The rules by which a target may be asked for.
    pub(super) fn rules(&mut self, name: &Name, now: Instant) -> Option<Vec<usize>> {
        self.targets.get(name).filter(|target| now < target.until).map(|target| target.rules.clone())
    }

    /// Rules of another policy have other numbers.
    pub(super) fn clear(&mut self) {
        self.targets.clear();
    }
}

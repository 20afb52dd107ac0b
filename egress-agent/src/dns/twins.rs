//! A and AAAA of one name: musl fails the whole lookup when one of the two answers is an error, so AAAA must not fail
//! beside a good A.

use super::name::Name;
use lru::LruCache;
use std::{
    collections::HashMap,
    num::NonZeroUsize,
    sync::{Mutex, MutexGuard, PoisonError},
};
use tokio::{sync::Notify, time::Instant};

/// Names whose A permit is remembered. The one that was permitted longest ago gives way, and its AAAA fails as it is.
const MAX_LIVE: NonZeroUsize = NonZeroUsize::new(1024).unwrap();

/// Which names have an A question in flight or a live A permit.
#[derive(Debug)]
pub(super) struct Twins {
    names: Mutex<Names>,
    settled: Notify,
}

#[derive(Debug)]
struct Names {
    /// A questions in flight: no more than may wait for upstreams.
    pending: HashMap<Name, usize>,
    /// Until when the last A permit lives.
    live: LruCache<Name, Instant>,
}

impl Names {
    fn permitted(&mut self, name: &Name, until: Instant) {
        let until = self.live.peek(name).map_or(until, |known| until.max(*known));
        self.live.put(name.clone(), until);
        while self.live.len() > MAX_LIVE.get() {
            self.live.pop_lru();
        }
    }

    /// `None` while that depends on a question in flight.
    fn is_live(&self, name: &Name) -> Option<bool> {
        let live = self.live.peek(name).is_some_and(|until| Instant::now() < *until);
        (live || !self.pending.contains_key(name)).then_some(live)
    }
}

impl Twins {
    pub(super) fn new() -> Self {
        // Unbounded, for a bounded one takes its whole room at once; `permitted` holds the bound.
        let names = Names { pending: HashMap::new(), live: LruCache::unbounded() };
        Self { names: Mutex::new(names), settled: Notify::new() }
    }

    fn names(&self) -> MutexGuard<'_, Names> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An A question is being asked, until the guard is dropped.
    pub(super) fn begin(&self, name: &Name) -> Pending<'_> {
        *self.names().pending.entry(name.clone()).or_default() += 1;
        Pending { twins: self, name: name.clone(), live_until: None }
    }

    /// An A permit of the name lives until then.
    pub(super) fn permitted(&self, name: &Name, until: Instant) {
        self.names().permitted(name, until);
    }

    /// Waits for the A questions in flight; true where an A permit is live then.
    pub(super) async fn is_live(&self, name: &Name) -> bool {
        loop {
            let settled = self.settled.notified();
            if let Some(live) = self.names().is_live(name) {
                return live;
            }
            settled.await;
        }
    }
}

/// An A question in flight.
#[derive(Debug)]
pub(super) struct Pending<'a> {
    twins: &'a Twins,
    name: Name,
    live_until: Option<Instant>,
}

impl Pending<'_> {
    /// Its addresses are permitted until then.
    pub(super) fn permitted(&mut self, until: Instant) {
        self.live_until = Some(until);
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        let mut names = self.twins.names();
        if let Some(count) = names.pending.get_mut(&self.name) {
            *count -= 1;
            if *count == 0 {
                names.pending.remove(&self.name);
            }
        }
        if let Some(until) = self.live_until {
            names.permitted(&self.name, until);
        }
        drop(names);
        self.twins.settled.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn later() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    fn numbered(number: usize) -> Name {
        format!("n{number}.example.test").parse().unwrap()
    }

    #[tokio::test]
    async fn c07_aaaa_waits_for_the_a_in_flight_and_no_longer() {
        let twins = Twins::new();
        let name: Name = "api.example.test".parse().unwrap();
        assert!(!twins.is_live(&name).await);
        for permitted in [true, false] {
            let name: Name = format!("{permitted}.example.test").parse().unwrap();
            let mut pending = twins.begin(&name);
            let settle = async {
                tokio::task::yield_now().await;
                if permitted {
                    pending.permitted(later());
                }
                drop(pending);
            };
            let (live, ()) = tokio::join!(twins.is_live(&name), settle);
            assert_eq!(live, permitted);
        }
        let names = twins.names();
        assert_eq!((names.pending.len(), names.live.len()), (0, 1), "only live names are remembered");
    }

    #[tokio::test]
    async fn a_permit_that_ended_counts_no_more_and_makes_room() {
        let twins = Twins::new();
        for number in 0..MAX_LIVE.get() + 10 {
            let name = numbered(number);
            twins.begin(&name).permitted(Instant::now());
            assert!(!twins.is_live(&name).await);
        }
        assert!(twins.names().live.len() <= MAX_LIVE.get());
        let name: Name = "api.example.test".parse().unwrap();
        twins.begin(&name).permitted(later());
        assert!(twins.is_live(&name).await);
    }

    #[tokio::test]
    async fn beyond_its_room_the_newest_names_are_remembered() {
        let twins = Twins::new();
        for number in 0..=MAX_LIVE.get() {
            twins.permitted(&numbered(number), later());
        }
        assert!(!twins.is_live(&numbered(0)).await);
        assert!(twins.is_live(&numbered(1)).await && twins.is_live(&numbered(MAX_LIVE.get())).await);
    }
}

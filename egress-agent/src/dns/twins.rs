//! A and AAAA of one name: musl fails the whole lookup when one of the two answers is an error, so AAAA must not fail
//! beside a good A.

use super::name::Name;
use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};
use tokio::{sync::Notify, time::Instant};

/// Names that are remembered; beyond it AAAA fails as it is.
const MAX_NAMES: usize = 1024;

/// Which names have an A question in flight or a live A permit.
#[derive(Debug, Default)]
pub(super) struct Twins {
    names: Mutex<HashMap<Name, Twin>>,
    settled: Notify,
}

#[derive(Debug, Default)]
struct Twin {
    pending: usize,
    live_until: Option<Instant>,
}

impl Twin {
    fn is_live(&self, now: Instant) -> bool {
        self.live_until.is_some_and(|until| now < until)
    }
}

impl Twins {
    fn names(&self) -> MutexGuard<'_, HashMap<Name, Twin>> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An A question is being asked, until the guard is dropped.
    pub(super) fn begin<'a>(&'a self, name: &'a Name) -> Pending<'a> {
        let mut names = self.names();
        if names.len() >= MAX_NAMES && !names.contains_key(name) {
            let now = Instant::now();
            names.retain(|_, twin| twin.pending > 0 || twin.is_live(now));
        }
        let counted = names.len() < MAX_NAMES || names.contains_key(name);
        if counted {
            names.entry(name.clone()).or_default().pending += 1;
        }
        Pending { twins: self, name, counted, live_until: None }
    }

    /// An A permit of the name lives until then.
    pub(super) fn permitted(&self, name: &Name, until: Instant) {
        let mut names = self.names();
        if names.len() < MAX_NAMES || names.contains_key(name) {
            let twin = names.entry(name.clone()).or_default();
            twin.live_until = twin.live_until.max(Some(until));
        }
    }

    /// Waits for the A questions in flight; true where an A permit is live then.
    pub(super) async fn is_live(&self, name: &Name) -> bool {
        loop {
            let settled = self.settled.notified();
            match self.names().get(name) {
                None => return false,
                Some(twin) if twin.is_live(Instant::now()) => return true,
                Some(twin) if twin.pending == 0 => return false,
                Some(_) => {}
            }
            settled.await;
        }
    }
}

/// An A question in flight.
#[derive(Debug)]
pub(super) struct Pending<'a> {
    twins: &'a Twins,
    name: &'a Name,
    counted: bool,
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
        if !self.counted {
            return;
        }
        let mut names = self.twins.names();
        if let Some(twin) = names.get_mut(self.name) {
            twin.pending -= 1;
            twin.live_until = twin.live_until.max(self.live_until);
            if twin.pending == 0 && twin.live_until.is_none() {
                names.remove(self.name);
            }
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

    #[tokio::test]
    async fn c07_aaaa_waits_for_the_a_in_flight_and_no_longer() {
        let twins = Twins::default();
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
        assert_eq!(twins.names().len(), 1, "only live names are remembered");
    }

    #[tokio::test]
    async fn a_permit_that_ended_counts_no_more_and_makes_room() {
        let twins = Twins::default();
        for number in 0..MAX_NAMES + 10 {
            let name: Name = format!("n{number}.example.test").parse().unwrap();
            twins.begin(&name).permitted(Instant::now());
            assert!(!twins.is_live(&name).await);
        }
        assert!(twins.names().len() <= MAX_NAMES);
        let name: Name = "api.example.test".parse().unwrap();
        twins.begin(&name).permitted(later());
        assert!(twins.is_live(&name).await);
    }
}

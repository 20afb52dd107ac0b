//! Identical questions in flight are one question: what a sandbox asks a hundred times at once leaves once, and a forger
//! has one exchange to guess at (RFC 5452, 5).

use super::{
    cache::{Key, Known},
    exchange::UpstreamError,
};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};
use tokio::sync::OnceCell;

/// Beyond it, flights that ended early are looked for.
const TIDY_AT: usize = 1024;

/// Why upstreams' word is not known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Unknown {
    Upstream(UpstreamError),
    /// Too many questions are with upstreams already.
    Busy,
    /// More questions than the budget has for upstreams.
    Rate,
}

/// Whoever comes first asks; should that one be cancelled, the next one does.
pub(super) type Flight = OnceCell<Result<Arc<Known>, Unknown>>;

/// Questions in flight.
#[derive(Debug, Default)]
pub(super) struct Flights {
    open: Mutex<HashMap<Key, Weak<Flight>>>,
}

impl Flights {
    fn open(&self) -> MutexGuard<'_, HashMap<Key, Weak<Flight>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn join(&self, key: &Key) -> Arc<Flight> {
        let mut open = self.open();
        if let Some(flight) = open.get(key).and_then(Weak::upgrade) {
            return flight;
        }
        if open.len() >= TIDY_AT {
            open.retain(|_, flight| flight.strong_count() > 0);
        }
        let flight = Arc::new(Flight::new());
        open.insert(key.clone(), Arc::downgrade(&flight));
        flight
    }

    /// The flight is over: who asks from now on asks anew.
    pub(super) fn land(&self, key: &Key, flight: &Arc<Flight>) {
        let mut open = self.open();
        if open.get(key).is_some_and(|known| std::ptr::eq(known.as_ptr(), Arc::as_ptr(flight))) {
            open.remove(key);
        }
    }

    /// Other upstreams: nobody joins what the old ones were asked.
    pub(super) fn clear(&self) {
        self.open().clear();
    }
}

//! Asking before anybody waits: names in use are renewed before they grow old, names that the policy spells out are asked
//! before the first question. Into the cache alone: a permit exists only after an answer was released.

use super::{
    cache::{Key, Known},
    config::{NotResolved, Unresolved},
    flights::Unknown,
    name::Name,
    permits::NameVerdict,
    resolve::Asker,
    responder::{Responder, State},
    serve::Alarm,
    wire::rtype,
};
use std::{sync::Arc, time::Duration};
use tokio::{
    task::{JoinHandle, JoinSet},
    time::{Instant, sleep, timeout, timeout_at},
};

/// Names of a sandbox that are renewed ahead at a time.
pub(super) const RENEWALS: usize = 64;
/// One attempt at a name of the policy, the pauses after the first ones, and all of them together.
const ATTEMPT: Duration = Duration::from_secs(2);
const PAUSES_MS: [u64; 3] = [100, 300, 900];
pub(super) const ALL_ATTEMPTS: Duration = Duration::from_millis(9500);

impl Responder {
    /// Asks upstream in a task of its own.
    pub(super) fn renew(self: &Arc<Self>, state: &Arc<State>, key: &Key) -> JoinHandle<Result<Arc<Known>, Unknown>> {
        let (alarm, state, key) = (Alarm(Arc::clone(self)), Arc::clone(state), key.clone());
        tokio::spawn(async move { alarm.0.fly(&state, &key, Asker::Sandbox).await.asked() })
    }

    /// Has an answer that was used renewed before it grows old.
    pub(super) fn renew_later(self: &Arc<Self>, key: Key) {
        let Ok(place) = Arc::clone(&self.renewals).try_acquire_owned() else { return };
        let Some(due) = self.cache().renewal(&key, self.clock.now(), rand::random()) else { return };
        let alarm = Alarm(Arc::clone(self));
        tokio::spawn(async move {
            sleep(due).await;
            let state = alarm.0.current();
            let allowed = matches!(state.config.names.verdict(&key.name.labels()), NameVerdict::Allow { .. });
            if allowed {
                // A failure shows when the answer has grown old.
                drop(alarm.0.fly(&state, &key, Asker::Sandbox).await);
            }
            drop(place);
        });
    }

    /// Resolves names that the policy spells out; returns those that have no address, in the order of the names.
    pub(super) async fn resolve_ahead(self: Arc<Self>, names: Vec<Name>) -> Vec<Unresolved> {
        let deadline = Instant::now() + ALL_ATTEMPTS;
        let mut why: Vec<Option<NotResolved>> = vec![Some(NotResolved::Late); names.len()];
        let mut tasks = JoinSet::new();
        for (index, name) in names.iter().cloned().enumerate() {
            let alarm = Alarm(Arc::clone(&self));
            tasks.spawn(async move { (index, alarm.0.has_address(&name).await.err()) });
        }
        while let Ok(Some(Ok((index, ended)))) = timeout_at(deadline, tasks.join_next()).await {
            if let Some(slot) = why.get_mut(index) {
                *slot = ended;
            }
        }
        names.into_iter().zip(why).filter_map(|(name, why)| Some(Unresolved { name, why: why? })).collect()
    }

    async fn has_address(self: &Arc<Self>, name: &Name) -> Result<(), NotResolved> {
        let mut pauses = PAUSES_MS.into_iter().map(Duration::from_millis);
        loop {
            let tried = self.try_families(name).await;
            match tried {
                Err(NotResolved::Failed(_) | NotResolved::Late) => match pauses.next() {
                    Some(pause) => sleep(pause).await,
                    None => return tried,
                },
                ended => return ended,
            }
        }
    }

    /// An address of either family; IPv4 is enough to go on.
    async fn try_families(self: &Arc<Self>, name: &Name) -> Result<(), NotResolved> {
        let state = self.current();
        let ask = |qtype| {
            let (alarm, state) = (Alarm(Arc::clone(self)), Arc::clone(&state));
            let key = Key { name: name.clone(), qtype };
            async move {
                match timeout(ATTEMPT, alarm.0.fly(&state, &key, Asker::Policy)).await.map(|flight| flight.asked()) {
                    Ok(Ok(known)) if state.opens(&known) => Ok(()),
                    Ok(Ok(known)) => Err(NotResolved::no_address(&known)),
                    Ok(Err(Unknown::Upstream(error))) => Err(NotResolved::Failed(error)),
                    Ok(Err(Unknown::Busy | Unknown::Rate)) | Err(_) => Err(NotResolved::Late),
                }
            }
        };
        let v6 = tokio::spawn(ask(rtype::AAAA));
        let Err(v4) = ask(rtype::A).await else { return Ok(()) };
        match v6.await {
            Ok(Ok(())) => Ok(()),
            // What may pass is worth another attempt.
            Ok(Err(passing @ (NotResolved::Failed(_) | NotResolved::Late))) => Err(passing),
            _ => Err(v4),
        }
    }
}

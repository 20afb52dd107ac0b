//! Denied DNS questions, folded: the first is reported at once, those like it with a count when the time is over.
//!
//! The kernel folds packets and socket calls itself, before they reach the ring buffer.

use super::event::{Event, Verdict};
use std::{
    borrow::Cow,
    collections::HashMap,
    time::{Duration, Instant},
};

/// Questions for one name are reported once in this time.
pub const WINDOW: Duration = Duration::from_mins(1);
/// Names that are folded at a time. A sandbox that asks for more makes the oldest be reported early.
pub const CAPACITY: usize = 1024;

/// What makes two denials alike.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Key {
    sandbox: String,
    name: Option<String>,
    reason: Option<Cow<'static, str>>,
    verdict: Option<Verdict>,
}

#[derive(Debug)]
struct Held {
    since: Instant,
    /// The latest that was not reported; `None` while only the first was seen.
    latest: Option<Event>,
    count: u64,
}

impl Held {
    fn into_event(self) -> Option<Event> {
        self.latest.map(|event| Event { count: Some(self.count), ..event })
    }
}

/// The denials that were reported less than [`WINDOW`] ago.
#[derive(Debug, Default)]
pub struct Fold {
    held: HashMap<Key, Held>,
}

impl Fold {
    /// Takes a denial and gives what is to be reported now: the event itself if it is the first in its window, and whatever
    /// had to make room for it.
    pub fn push(&mut self, event: Event, now: Instant) -> impl Iterator<Item = Event> + use<> {
        let key = Key {
            sandbox: event.sandbox.clone(),
            name: event.dst_name.clone(),
            reason: event.reason.clone(),
            verdict: event.verdict,
        };
        let count = event.count.unwrap_or(1);
        let fresh = match self.held.get_mut(&key) {
            Some(held) if now.saturating_duration_since(held.since) < WINDOW => {
                held.count += count;
                held.latest = Some(event);
                return None.into_iter().chain(None);
            }
            Some(held) => {
                let total = std::mem::take(&mut held.count) + count;
                held.since = now;
                held.latest = None;
                return None.into_iter().chain(Some(Event { count: Some(total), ..event }));
            }
            None => event,
        };
        let evicted = self.make_room();
        self.held.insert(key, Held { since: now, latest: None, count: 0 });
        evicted.into_iter().chain(Some(fresh))
    }

    /// What was held back and whose time is over. Call it about once a second.
    pub fn due(&mut self, now: Instant) -> Vec<Event> {
        self.take(|held| now.saturating_duration_since(held.since) >= WINDOW)
    }

    /// Everything that was held back, at the end of a sandbox or of the agent.
    pub fn flush(&mut self) -> Vec<Event> {
        self.take(|_| true)
    }

    fn take(&mut self, over: impl Fn(&Held) -> bool) -> Vec<Event> {
        let mut events: Vec<_> =
            self.held.extract_if(|_, held| over(held)).filter_map(|(_, held)| held.into_event()).collect();
        events.sort_by_key(|event| event.time);
        events
    }

    fn make_room(&mut self) -> Option<Event> {
        if self.held.len() < CAPACITY {
            return None;
        }
        let oldest = self.held.iter().min_by_key(|(_, held)| held.since).map(|(key, _)| key.clone())?;
        self.held.remove(&oldest)?.into_event()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::event::Subject;
    use std::time::SystemTime;

    fn denial(name: &str) -> Event {
        Event::dns_denied(SystemTime::UNIX_EPOCH, &Subject::default(), false, name, "not_listed", None)
    }

    fn counts(events: impl IntoIterator<Item = Event>) -> Vec<(String, u64)> {
        events.into_iter().map(|event| (event.dst_name.unwrap(), event.count.unwrap())).collect()
    }

    #[test]
    fn the_first_is_reported_at_once_and_the_rest_with_a_count() {
        let (mut fold, start) = (Fold::default(), Instant::now());
        assert_eq!(counts(fold.push(denial("a.test"), start)), [("a.test".into(), 1)]);
        for second in 1..14 {
            assert_eq!(counts(fold.push(denial("a.test"), start + Duration::from_secs(second))), []);
        }
        assert_eq!(counts(fold.push(denial("b.test"), start)), [("b.test".into(), 1)], "another name is not folded");
        assert_eq!(counts(fold.due(start + Duration::from_secs(59))), []);
        assert_eq!(counts(fold.due(start + WINDOW)), [("a.test".into(), 13)]);
        assert_eq!(counts(fold.push(denial("a.test"), start + WINDOW)), [("a.test".into(), 1)]);
    }

    #[test]
    fn nothing_is_lost_when_nobody_collects() {
        let (mut fold, start) = (Fold::default(), Instant::now());
        let mut total = 0;
        for second in 0..600 {
            total += counts(fold.push(denial("a.test"), start + Duration::from_secs(second)))
                .iter()
                .map(|(_, n)| n)
                .sum::<u64>();
        }
        total += counts(fold.flush()).iter().map(|(_, n)| n).sum::<u64>();
        assert_eq!(total, 600);
        assert_eq!(fold.flush(), []);
    }

    #[test]
    fn a_flood_of_names_stays_bounded_and_reports_what_it_drops() {
        let (mut fold, start) = (Fold::default(), Instant::now());
        drop(fold.push(denial("first.test"), start));
        drop(fold.push(denial("first.test"), start));
        for n in 0..CAPACITY - 1 {
            drop(fold.push(denial(&format!("n{n}.test")), start + Duration::from_secs(1)));
        }
        let reported = counts(fold.push(denial("last.test"), start + Duration::from_secs(2)));
        assert_eq!(reported, [("first.test".into(), 1), ("last.test".into(), 1)]);
        assert_eq!(fold.held.len(), CAPACITY);
    }
}

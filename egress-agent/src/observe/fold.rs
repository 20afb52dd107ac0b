//! What the DNS half tells, folded and limited: the first is reported at once, those like it with a count when the time is
//! over, and more than [`EVENTS_PER_SECOND`] different ones in a second are counted as lost.
//!
//! The kernel does the same with packets and socket calls, before they reach the ring buffer.

use super::event::{Event, Kind, Verdict};
use egress_common::event::EVENTS_PER_SECOND;
use lru::LruCache;
use std::{
    borrow::Cow,
    net::IpAddr,
    time::{Duration, Instant},
};

/// Events that are alike are reported once in this time.
pub const WINDOW: Duration = Duration::from_mins(1);
/// Different events that are folded at a time. More of them make the oldest be reported early.
pub const CAPACITY: usize = 4096;

/// What makes two events alike.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Key {
    kind: Kind,
    name: Option<String>,
    addr: Option<IpAddr>,
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

/// The events of one sandbox that were reported less than [`WINDOW`] ago.
#[derive(Debug)]
pub struct Fold {
    /// In the order of their windows: what is touched is not moved, only what begins anew.
    held: LruCache<Key, Held>,
    limit: Limit,
}

impl Default for Fold {
    fn default() -> Self {
        Self { held: LruCache::unbounded(), limit: Limit::default() }
    }
}

/// How many were reported in the second that began at `since`, and what was not.
#[derive(Debug, Default)]
struct Limit {
    since: Option<Instant>,
    reported: u64,
    lost: Option<Event>,
}

impl Fold {
    /// Takes an event and gives what is to be reported now: the event itself if it is the first in its window, what had to make
    /// room for it, and what the limit of an earlier second swallowed.
    pub fn push(&mut self, event: Event, now: Instant) -> Vec<Event> {
        let key = Key {
            kind: event.event,
            name: event.dst_name.clone(),
            addr: event.dst_ip,
            reason: event.reason.clone(),
            verdict: event.verdict,
        };
        let count = event.count.unwrap_or(1);
        let mut reports = Vec::new();
        if let Some(held) = self.held.peek_mut(&key) {
            if now.saturating_duration_since(held.since) < WINDOW {
                held.count += count;
                held.latest = Some(event);
                return reports;
            }
            let total = std::mem::take(&mut held.count) + count;
            reports.push(Event { count: Some(total), ..event });
        } else {
            if self.held.len() >= CAPACITY {
                reports.extend(self.held.pop_lru().and_then(|(_, held)| held.into_event()));
            }
            reports.push(event);
        }
        self.held.put(key, Held { since: now, latest: None, count: 0 });
        self.limit.pass(reports, now)
    }

    /// What was held back and whose time is over. Call it about once a second.
    pub fn due(&mut self, now: Instant) -> Vec<Event> {
        let due = self.take(|held| now.saturating_duration_since(held.since) >= WINDOW);
        self.limit.pass(due, now)
    }

    /// Everything that was held back, at the end of the sandbox or of the agent; the number of those that were lost last.
    pub fn flush(&mut self) -> Vec<Event> {
        let mut all = self.take(|_| true);
        all.extend(self.limit.lost.take());
        all
    }

    /// The oldest, as long as they are over.
    fn take(&mut self, over: impl Fn(&Held) -> bool) -> Vec<Event> {
        let mut events = Vec::new();
        while self.held.peek_lru().is_some_and(|(_, held)| over(held)) {
            events.extend(self.held.pop_lru().and_then(|(_, held)| held.into_event()));
        }
        events.sort_by_key(|event| event.time);
        events
    }
}

impl Limit {
    fn pass(&mut self, events: Vec<Event>, now: Instant) -> Vec<Event> {
        let mut passed = Vec::with_capacity(events.len());
        if self.since.is_none_or(|since| now.saturating_duration_since(since) >= Duration::from_secs(1)) {
            passed.extend(self.lost.take());
            self.since = Some(now);
            self.reported = 0;
        }
        for event in events {
            if self.reported < EVENTS_PER_SECOND {
                self.reported += 1;
                passed.push(event);
            } else {
                self.lost = Some(event.lost_with(self.lost.as_ref()));
            }
        }
        passed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::event::Subject;
    use std::time::SystemTime;

    fn denial(name: &str) -> Event {
        let event = Event::dns(Kind::Dns, SystemTime::UNIX_EPOCH, &Subject::default(), name);
        Event { verdict: Some(Verdict::Deny), reason: Some("not_permitted".into()), count: Some(1), ..event }
    }

    fn counts(events: impl IntoIterator<Item = Event>) -> Vec<(String, u64)> {
        events.into_iter().map(|event| (event.dst_name.unwrap_or_default(), event.count.unwrap())).collect()
    }

    fn total(events: Vec<Event>) -> u64 {
        counts(events).iter().map(|(_, count)| count).sum()
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
        let mut seen = 0;
        for second in 0..600 {
            seen += total(fold.push(denial("a.test"), start + Duration::from_secs(second)));
        }
        assert_eq!(seen + total(fold.flush()), 600);
        assert_eq!(fold.flush(), []);
    }

    #[test]
    fn a_flood_of_names_stays_bounded_and_reports_what_it_drops() {
        let (mut fold, start) = (Fold::default(), Instant::now());
        drop(fold.push(denial("first.test"), start));
        drop(fold.push(denial("first.test"), start));
        for n in 0..CAPACITY - 1 {
            drop(fold.push(denial(&format!("n{n}.test")), start + Duration::from_millis(10 * (n as u64 + 1))));
        }
        let later = start + Duration::from_secs(50);
        let reported = counts(fold.push(denial("last.test"), later));
        assert_eq!(reported, [("first.test".into(), 1), ("last.test".into(), 1)]);
        assert_eq!(fold.held.len(), CAPACITY);
    }

    #[test]
    fn beyond_the_limit_of_a_second_events_are_counted_as_lost() {
        let (mut fold, start) = (Fold::default(), Instant::now());
        let asked: u64 = 3 * EVENTS_PER_SECOND;
        let seen: u64 = (0..asked).map(|n| total(fold.push(denial(&format!("n{n}.test")), start))).sum();
        assert_eq!(seen, EVENTS_PER_SECOND);
        let next = fold.push(denial("next.test"), start + Duration::from_secs(1));
        assert_eq!((next[0].event, next[0].count), (Kind::Lost, Some(2 * EVENTS_PER_SECOND)));
        assert_eq!(counts(next.into_iter().skip(1)), [("next.test".into(), 1)]);
        drop(
            (0..asked)
                .map(|n| fold.push(denial(&format!("m{n}.test")), start + Duration::from_secs(1)))
                .collect::<Vec<_>>(),
        );
        let lost: Vec<_> = fold.flush().into_iter().filter(|event| event.event == Kind::Lost).collect();
        assert_eq!(counts(lost), [(String::new(), 2 * EVENTS_PER_SECOND + 1)]);
    }
}

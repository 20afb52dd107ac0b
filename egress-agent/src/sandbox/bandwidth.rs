//! What became of a sandbox's limits: in `status`, and in events of its budget.

use crate::observe::event::{Event, Kind, Subject, Verdict};
use egress_common::bucket::{Limits, Meter, Meters, Place, debt_ns};
use serde::{Deserialize, Serialize};
use std::time::SystemTime;

/// Limits of one sandbox and what they let pass. Bytes are those of IP packets on the network, loopback left out.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct BandwidthStatus {
    /// What it sends.
    pub egress: Option<LimitStatus>,
    /// What it receives.
    pub ingress: Option<LimitStatus>,
    /// What it may send in all, in bytes.
    pub budget: Option<u64>,
    /// What it has sent, in bytes, since it was attached, as far as it was limited.
    pub spent: u64,
}

/// One direction.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LimitStatus {
    /// In bits per second.
    pub rate: u64,
    /// How it is kept, which says how exactly.
    pub how: How,
    /// Bytes that passed.
    pub bytes: u64,
    /// Packets that did not.
    pub dropped_packets: u64,
    /// Their bytes.
    pub dropped_bytes: u64,
    /// How far it is ahead of its rate now, in milliseconds.
    pub debt_ms: u64,
}

/// How a rate is kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum How {
    /// TCP sends no faster, so nothing waits and nothing is lost; the bucket holds what else sends.
    Paced,
    /// What comes too fast waits in a queue of the device.
    Shaped,
    /// What comes too fast is dropped: TCP gets most of the rate.
    Policed,
}

impl BandwidthStatus {
    /// None where nothing is limited. `shaped` where every device has a queue for what it receives.
    pub(super) fn of(limits: &Limits, meters: &Meters, now_ns: u64, shaped: bool) -> Option<Self> {
        let side = |rate: egress_common::bucket::Limit, how, places: [Place; 2]| {
            let meters = places.map(|place| meter(meters, place));
            (!rate.is_none()).then(|| LimitStatus {
                rate: rate.bits_per_s,
                how,
                bytes: most(&meters, |meter| meter.bytes),
                dropped_packets: meters.iter().map(|meter| meter.dropped_packets).sum(),
                dropped_bytes: meters.iter().map(|meter| meter.dropped_bytes).sum(),
                debt_ms: most(&meters, |meter| debt_ns(meter.paid, now_ns) / 1_000_000),
            })
        };
        let received = if shaped { How::Shaped } else { How::Policed };
        let status = Self {
            egress: side(limits.egress, How::Paced, [Place::Egress, Place::DeviceEgress]),
            ingress: side(limits.ingress, received, [Place::Ingress, Place::DeviceIngress]),
            budget: (limits.budget > 0).then_some(limits.budget),
            spent: spent(meters),
        };
        (*limits != Limits::default()).then_some(status)
    }
}

fn meter(meters: &Meters, place: Place) -> Meter {
    meters.at.get(place as usize).copied().unwrap_or_default()
}

fn most(meters: &[Meter], what: impl Fn(&Meter) -> u64) -> u64 {
    meters.iter().map(what).max().unwrap_or(0)
}

/// A packet is counted at the cgroup and at the device; what only the device saw is counted there alone.
fn spent(meters: &Meters) -> u64 {
    most(&[Place::Egress, Place::DeviceEgress].map(|place| meter(meters, place)), |meter| meter.bytes)
}

/// What of a budget was told.
#[derive(Default)]
pub(super) struct Told {
    budget: u64,
    low: bool,
    out: bool,
}

impl Told {
    /// What there is to tell. `refused`: packets were denied because of the budget.
    pub(super) fn news(&mut self, limits: &Limits, meters: &Meters, refused: impl FnOnce() -> bool) -> Option<Spent> {
        let (budget, spent) = (limits.budget, spent(meters));
        if self.budget != budget {
            *self = Self { budget, ..Self::default() };
        }
        // Four fifths, without a product that may not fit.
        if budget == 0 || spent < budget - budget / 5 {
            return None;
        }
        // One after the other, also where both came true at once.
        let out = self.low && !self.out && refused();
        let news = (out || !self.low).then_some(Spent { budget, bytes: spent, out });
        (self.low, self.out) = (true, self.out || out);
        news
    }
}

/// A budget that is nearly or wholly used up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Spent {
    budget: u64,
    bytes: u64,
    out: bool,
}

impl Spent {
    pub(super) fn event(self, subject: &Subject, observed: bool) -> Event {
        Event {
            verdict: self.out.then(|| Verdict::denial(observed)),
            reason: Some(if self.out { "budget" } else { "budget_low" }.into()),
            bytes: Some(self.bytes),
            budget: Some(self.budget),
            ..Event::new(Kind::Budget, SystemTime::now(), subject)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use egress_common::bucket::{BURST_MIN_NS, Limit};

    fn sent(bytes: u64, at: Place) -> Meters {
        let mut meters = Meters::default();
        meters.at[at as usize].bytes = bytes;
        meters
    }

    #[test]
    fn a_budget_is_told_at_four_fifths_and_at_its_end_once_each() {
        let mut told = Told::default();
        let limits = Limits { budget: 1000, ..Limits::default() };
        let mut news = |limits: &Limits, bytes, refused| told.news(limits, &sent(bytes, Place::Egress), || refused);
        let spent = |budget, bytes, out| Some(Spent { budget, bytes, out });
        assert_eq!(news(&Limits::default(), 5000, true), None);
        assert_eq!(news(&limits, 799, false), None);
        assert_eq!(news(&limits, 800, false), spent(1000, 800, false));
        assert_eq!(news(&limits, 900, false), None);
        assert_eq!(news(&limits, 990, true), spent(1000, 990, true));
        assert_eq!(news(&limits, 1000, true), None);
        let more = Limits { budget: 1100, ..limits };
        assert_eq!(news(&more, 1100, true), spent(1100, 1100, false));
        assert_eq!(news(&more, 1100, true), spent(1100, 1100, true));
    }

    #[test]
    fn what_two_places_counted_is_counted_once() {
        let mut meters = sent(500, Place::Egress);
        meters.at[Place::DeviceEgress as usize] = Meter { bytes: 700, dropped_packets: 2, ..Meter::default() };
        meters.at[Place::Egress as usize].dropped_packets = 1;
        let limits = Limits { egress: Limit::new(8_000_000, BURST_MIN_NS), ..Limits::default() };
        let status = BandwidthStatus::of(&limits, &meters, 0, false).unwrap();
        let egress = status.egress.unwrap();
        assert_eq!((egress.rate, egress.bytes, egress.dropped_packets), (8_000_000, 700, 3));
        assert_eq!((status.spent, status.ingress, status.budget), (700, None, None));
        assert_eq!(BandwidthStatus::of(&Limits::default(), &meters, 0, true), None);
    }
}

//! `[bandwidth]`: how fast, and how much in all.

use super::Mode;
use egress_common::bucket::{BURST_MAX_NS, BURST_MIN_NS, Limit, Limits, RATE_MAX_BITS, RATE_MIN_BITS};
use std::{fmt, str::FromStr, time::Duration};

/// The `[bandwidth]` table. Loopback and the sandbox's own addresses count for none of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bandwidth {
    /// What the sandbox may send; `None` = as fast as it can.
    pub egress: Option<Rate>,
    /// What it may receive.
    pub ingress: Option<Rate>,
    /// How far ahead of `egress` it may be, 200 ms to 1 s.
    pub egress_burst: Duration,
    /// What it may send in all; `None` = any amount.
    pub budget: Option<Amount>,
}

impl Default for Bandwidth {
    fn default() -> Self {
        Self { egress: None, ingress: None, egress_burst: Self::BURST.0, budget: None }
    }
}

impl Bandwidth {
    /// Shortest burst, which is the default, and longest.
    pub(super) const BURST: (Duration, Duration) =
        (Duration::from_nanos(BURST_MIN_NS), Duration::from_nanos(BURST_MAX_NS));

    /// What the kernel half enforces of it. A sandbox that only observes is not slowed down.
    pub(crate) fn limits(&self, mode: Mode) -> Limits {
        let rate = |rate: Option<Rate>| rate.filter(|_| mode == Mode::Enforce);
        // A burst is at most a second.
        let limit = |rate: Option<Rate>, burst: Duration| {
            rate.map_or_else(Limit::default, |rate| Limit::new(rate.bits_per_s(), burst.as_nanos() as u64))
        };
        Limits {
            egress: limit(rate(self.egress), self.egress_burst),
            ingress: limit(rate(self.ingress), Self::BURST.0),
            budget: self.budget.map_or(0, Amount::bytes),
        }
    }
}

/// Bits of IP packets per second, 8 kbit to 100 gbit.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Rate(u64);

/// IP bytes, 1 kB to a million TB.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Amount(u64);

/// Not a rate, or none that can be enforced.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a rate is {}", Rate::ALLOWED)]
pub struct RateError;

/// Not an amount, or none that can be enforced.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("an amount is {}", Amount::ALLOWED)]
pub struct AmountError;

impl Rate {
    /// What is allowed, for people.
    pub(super) const ALLOWED: &str =
        "\"8kbit\" to \"100gbit\": a whole number and bit, kbit, mbit or gbit, 1000 of each to the next, per second";
    const UNITS: [(&str, u64); 4] = [("gbit", 1_000_000_000), ("mbit", 1_000_000), ("kbit", 1000), ("bit", 1)];

    /// Bits per second.
    pub const fn bits_per_s(self) -> u64 {
        self.0
    }
}

impl Amount {
    /// What is allowed, for people.
    pub(super) const ALLOWED: &str =
        "\"1kB\" to \"1000000TB\": a whole number and B, kB, MB, GB or TB, 1000 of each to the next";
    const UNITS: [(&str, u64); 5] =
        [("TB", 1_000_000_000_000), ("GB", 1_000_000_000), ("MB", 1_000_000), ("kB", 1000), ("B", 1)];
    const RANGE: (u64, u64) = (1000, 1_000_000_000_000_000_000);

    /// Bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// Any number of bytes for people: in the largest unit of which there is one, with at most one digit behind the point. Rounded
    /// down, so that what is not used up does not look so.
    pub fn about(bytes: u64) -> String {
        let Some((unit, scale)) = Self::UNITS.iter().find(|(_, scale)| bytes >= *scale) else {
            return "0 B".to_owned();
        };
        let (whole, rest) = (bytes / scale, bytes % scale);
        match rest / (scale / 10).max(1) {
            0 => format!("{whole} {unit}"),
            tenths => format!("{whole}.{tenths} {unit}"),
        }
    }
}

impl FromStr for Rate {
    type Err = RateError;

    fn from_str(text: &str) -> Result<Self, RateError> {
        let fits = |bits: &u64| (RATE_MIN_BITS..=RATE_MAX_BITS).contains(bits);
        quantity(text, &Self::UNITS).filter(fits).map(Self).ok_or(RateError)
    }
}

impl FromStr for Amount {
    type Err = AmountError;

    fn from_str(text: &str) -> Result<Self, AmountError> {
        let fits = |bytes: &u64| (Self::RANGE.0..=Self::RANGE.1).contains(bytes);
        quantity(text, &Self::UNITS).filter(fits).map(Self).ok_or(AmountError)
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write(f, self.0, &Self::UNITS)
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write(f, self.0, &Self::UNITS)
    }
}

/// A whole number and a unit, with nothing before, between or behind. The unit that the others end with comes last.
fn quantity(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let (number, scale) = units.iter().find_map(|(unit, scale)| Some((text.strip_suffix(unit)?, scale)))?;
    // `parse` takes a sign too.
    if !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    number.parse::<u64>().ok()?.checked_mul(*scale)
}

/// In the largest unit that leaves a whole number.
fn write(f: &mut fmt::Formatter<'_>, value: u64, units: &[(&str, u64)]) -> fmt::Result {
    match units.iter().find(|(_, scale)| value.is_multiple_of(*scale)) {
        Some((unit, scale)) => write!(f, "{}{unit}", value / scale),
        None => write!(f, "{value}"),
    }
}

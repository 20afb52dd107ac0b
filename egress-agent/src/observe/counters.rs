//! Totals of one sandbox, by the words of [`super::names`].

use super::names::Named as _;
use egress_common::{
    event::{Counters, Passed},
    verdict::Reason,
};
use serde::{Deserialize, Serialize};
use std::{borrow::Cow, collections::BTreeMap};

/// What a sandbox did since it was attached.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Totals {
    /// Packets that passed the egress hook.
    pub allowed_packets: u64,
    /// Their bytes, IP headers included.
    pub allowed_bytes: u64,
    /// Denials by reason; reasons that never occurred are left out.
    pub denied: BTreeMap<Cow<'static, str>, u64>,
    /// Events that were not reported so far.
    pub events_lost: u64,
}

impl Totals {
    /// Adds up what every CPU counted, and what passed by each rule.
    pub fn of<'a>(cpus: &'a [Counters], by_rules: impl IntoIterator<Item = &'a Passed>) -> Self {
        let mut totals = Self::default();
        for passed in cpus.iter().map(|cpu| &cpu.passed).chain(by_rules) {
            totals.allowed_packets += passed.packets;
            totals.allowed_bytes += passed.bytes;
        }
        for cpu in cpus {
            totals.events_lost += cpu.lost;
            for (number, &count) in (0..).zip(&cpu.denied) {
                if count > 0 {
                    *totals.denied.entry(Reason::name_of(number)).or_default() += count;
                }
            }
        }
        totals
    }

    /// All denials together.
    pub fn denied_total(&self) -> u64 {
        self.denied.values().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytemuck::Zeroable as _;

    #[test]
    fn cpus_add_up_under_stable_words() {
        let passed = |packets, bytes| Passed { packets, bytes };
        let mut one = Counters { passed: passed(2, 1000), lost: 1, ..Counters::zeroed() };
        one.denied[Reason::NotPermitted as usize] = 5;
        let mut two = Counters { passed: passed(1, 60), ..Counters::zeroed() };
        two.denied[Reason::NotPermitted as usize] = 2;
        two.denied[Reason::IpOptions as usize] = 1;
        two.denied[63] = 1;
        let totals = Totals::of(&[one, two], &[passed(1, 800)]);
        assert_eq!(totals.denied_total(), 9);
        assert_eq!(
            serde_json::to_string(&totals).unwrap(),
            r#"{"allowed_packets":4,"allowed_bytes":1860,"denied":{"ip_options":1,"not_permitted":7,"unknown_63":1},"events_lost":1}"#
        );
        assert_eq!(Totals::of(&[], &[]), Totals::default());
    }
}

//! How much a sandbox sent, by the lines of its policy.

use super::{error::Error, live::Sandbox, record::RuleLine};
use crate::compile::{Image, RuleText};
use egress_common::{event::Passed, permit::RuleRef};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Destinations that are told.
const TOLD: usize = 10;
/// Lines of one rule that are told.
const LINES: usize = 3;
/// What stays on the machine.
const LOCAL: [&str; 2] = ["allow.loopback", "allow.self"];

/// A destination as the policy names it, and what was sent there by its line. Lines of addresses that open the same ports are
/// counted together, and a name's wildcard as one.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Sent {
    /// `github.com`, `10.0.0.0/8:443`; several with commas between them.
    pub destination: String,
    /// Packets, before a device cuts them into segments.
    pub packets: u64,
    /// Their bytes, IP headers included.
    pub bytes: u64,
}

impl Sandbox {
    /// Where the sandbox sent most since it was attached: at most ten destinations, those with the most bytes first. What lines that
    /// an update took away had let pass is not told.
    pub fn sent(&self) -> Result<Vec<Sent>, Error> {
        let passed = self.kernel.tables.passed(self.kernel.identity.slot)?;
        Ok(sent(&self.record().rules, &passed))
    }
}

pub(super) fn sent(rules: &[RuleLine], passed: &BTreeMap<u32, Passed>) -> Vec<Sent> {
    let of = |line: &RuleLine| {
        let now = passed.get(&line.index)?;
        let (packets, bytes) =
            (now.packets.saturating_sub(line.since.packets), now.bytes.saturating_sub(line.since.bytes));
        Some(Sent { destination: destination(&line.text)?, packets, bytes })
    };
    let mut sent: Vec<Sent> = rules.iter().filter_map(of).filter(|sent| sent.packets > 0).collect();
    sent.sort_by(|one, two| two.bytes.cmp(&one.bytes).then_with(|| one.destination.cmp(&two.destination)));
    sent.truncate(TOLD);
    sent
}

fn destination(rule: &RuleText) -> Option<String> {
    let lines: Vec<&str> = rule.origins().iter().map(|origin| origin.text.as_str()).collect();
    let local = |origin: &crate::compile::Origin| LOCAL.contains(&&*origin.key);
    let first = lines.iter().take(LINES).copied().collect::<Vec<_>>().join(", ");
    match lines.len().saturating_sub(LINES) {
        _ if rule.origins().iter().all(local) => None,
        0 => Some(first),
        more => Some(format!("{first} and {more} more")),
    }
}

/// The rules in force, for the record. An index that had another rule before keeps what that one let pass: nobody resets what
/// the kernel counts.
pub(super) fn rule_lines(image: &Image, known: &[RuleLine], passed: &BTreeMap<u32, Passed>) -> Vec<RuleLine> {
    let known: BTreeMap<RuleRef, Since> = known.iter().map(|line| (line.reference(), line.since)).collect();
    let now = |index: u32| passed.get(&index).map_or_else(Since::default, |passed| Since::of(*passed));
    let line = |(reference, (_, text)): (&RuleRef, &(_, RuleText))| RuleLine {
        index: reference.index,
        tag: reference.tag,
        text: text.clone(),
        since: known.get(reference).copied().unwrap_or_else(|| now(reference.index)),
    };
    image.rules.iter().map(line).collect()
}

/// What had passed by an index when its rule came.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(super) struct Since {
    packets: u64,
    bytes: u64,
}

impl Since {
    const fn of(passed: Passed) -> Self {
        Self { packets: passed.packets, bytes: passed.bytes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        compile::{Facts, Limits, RuleIds, compile},
        policy::Policy,
    };

    fn image(policy: &str, ids: &mut RuleIds) -> Image {
        let limits = Limits { rules: 8, networks: 8, permits: 8 };
        compile(
            &Policy::from_toml(&format!("version = 1\n[allow]\n{policy}")).unwrap(),
            &Facts::default(),
            1,
            ids,
            limits,
        )
        .unwrap()
    }

    #[test]
    fn what_passed_is_told_by_line_and_an_index_that_is_used_again_begins_at_nothing() {
        // Room for three: loopback and two names.
        let mut ids = RuleIds::new(0..3);
        let mut passed = BTreeMap::new();
        let mut count = |lines: &[RuleLine], text: &str, packets: u64| {
            let line = lines.iter().find(|line| line.text.origins()[0].text == text).unwrap();
            let entry: &mut Passed = passed.entry(line.index).or_default();
            *entry = Passed { packets: entry.packets + packets, bytes: entry.bytes + packets * 100 };
            passed.clone()
        };
        let told = |lines: &[RuleLine], passed: &BTreeMap<u32, Passed>| -> Vec<(String, u64)> {
            sent(lines, passed).into_iter().map(|sent| (sent.destination, sent.bytes)).collect()
        };
        let (a, b, c) = ("a.test".to_owned(), "*.b.test:443".to_owned(), "c.test".to_owned());
        let first = rule_lines(&image("names = [\"a.test\", \"*.b.test:443\"]", &mut ids), &[], &BTreeMap::new());
        count(&first, "true", 50);
        count(&first, &a, 2);
        let so_far = count(&first, &b, 3);
        assert_eq!(told(&first, &so_far), [(b, 300), (a.clone(), 200)]);

        let without = rule_lines(&image("names = [\"a.test\"]", &mut ids), &first, &so_far);
        let again = rule_lines(&image("names = [\"a.test\", \"c.test\"]", &mut ids), &without, &so_far);
        assert!(again.iter().all(|line| line.index < 3), "{again:?}");
        assert_eq!(told(&again, &so_far), [(a.clone(), 200)]);
        let later = count(&again, &c, 1);
        assert_eq!(told(&again, &later), [(a, 200), (c, 100)]);
    }

    #[test]
    fn lines_that_share_a_rule_are_told_together() {
        let networks: Vec<String> = (0..5).map(|n| format!("\"10.{n}.0.0/16:443\"")).collect();
        let image = image(&format!("addresses = [{}]", networks.join(", ")), &mut RuleIds::new(0..8));
        let lines = rule_lines(&image, &[], &BTreeMap::new());
        let passed = lines.iter().map(|line| (line.index, Passed { packets: 1, bytes: 60 })).collect();
        let told = sent(&lines, &passed);
        assert_eq!(told.len(), 1, "{told:?}");
        assert_eq!(told[0].destination, "10.0.0.0/16:443, 10.1.0.0/16:443, 10.2.0.0/16:443 and 2 more");
    }
}

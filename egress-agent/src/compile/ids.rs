//! Rule references: who gets which index, and a tag that nobody had before.

use super::{Origin, RuleText};
use egress_common::{
    destination::PortRange,
    permit::{Rule, RuleRef, rule_flags},
};
use std::{
    collections::{HashMap, HashSet, VecDeque},
    ops::Range,
};

/// What a rule says and where it comes from. Equal content keeps its reference over any number of compilations.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct RuleKey {
    pub(super) slot: u32,
    pub(super) flags: u32,
    pub(super) ranges: Vec<PortRange>,
    /// Keys and texts of the lines, sorted; empty where the rule may outlive each of its lines.
    pub(super) lines: Vec<String>,
}

/// The lines with which a rule keeps its reference, sorted. Flows under way end with them, so they are those of names, peers, loopback
/// and own addresses. None for addresses: their entry in the maps goes with the line, no flow outlives that, and a hundred
/// thousand of them need one rule.
pub(super) fn stands_by<'o>(flags: u32, origins: impl IntoIterator<Item = &'o Origin>) -> Vec<String> {
    let by_line = |origin: &&Origin| origin.net.is_none() || flags & rule_flags::INBOUND != 0;
    let mut lines: Vec<String> = origins.into_iter().filter(by_line).map(Origin::line).collect();
    lines.sort_unstable();
    lines
}

/// Hands out rule references for one sandbox's part of the rule array. Clone it before a compilation whose image may not get into force; if it does
/// not, go on with the clone, after [`RuleIds::skip_tags`] where anything was written.
#[derive(Clone, Debug)]
pub struct RuleIds {
    /// First index that is no longer ours.
    end: u32,
    /// Indices from here on were never used.
    unused: u32,
    next_tag: u32,
    /// First freed, first used again, and only when every index was used once: an index rests as long as possible.
    free: VecDeque<u32>,
    live: HashMap<RuleKey, RuleRef>,
}

/// Not enough entries in the rule array, or no tags left.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Exhausted {
    pub(super) new: usize,
    pub(super) free: usize,
}

impl RuleIds {
    /// For these entries of the rule array, which are empty.
    pub fn new(ours: Range<u32>) -> Self {
        Self { end: ours.end, unused: ours.start, next_tag: 1, free: VecDeque::new(), live: HashMap::new() }
    }

    /// For entries that somebody else filled: `taken` ones stay untouched, and tags start at `next_tag`, which must be
    /// above every tag that was ever used there ([`RuleIds::next_tag`] of the one before).
    pub fn resume(ours: Range<u32>, taken: impl IntoIterator<Item = u32>, next_tag: u32) -> Self {
        let taken: HashSet<u32> = taken.into_iter().collect();
        let end = ours.end;
        let free = ours.filter(|index| !taken.contains(index)).collect();
        Self { end, unused: end, next_tag: next_tag.max(1), free, live: HashMap::new() }
    }

    /// Says of an entry that [`RuleIds::resume`] was told of what it is. A policy that says the same keeps its reference, and with
    /// it the permits and flows that rest on it.
    pub fn recognise(&mut self, rule: RuleRef, content: &Rule, text: &RuleText) {
        let ranges = content.ranges.iter().take(content.len as usize).copied().collect();
        let lines = stands_by(content.flags, text.origins());
        self.live.insert(RuleKey { slot: content.slot, flags: content.flags, ranges, lines }, rule);
    }

    /// The next tag that will be given out.
    pub fn next_tag(&self) -> u32 {
        self.next_tag
    }

    /// Gives an entry back that [`RuleIds::resume`] was told of, once it is cleared.
    pub fn give_back(&mut self, index: u32) {
        let known = self.live.values().any(|rule| rule.index == index) || self.free.contains(&index);
        if !known && index < self.unused {
            self.free.push_back(index);
        }
    }

    /// Gives out no tag that an attempt gave out whose image was written in part and then taken back.
    pub fn skip_tags(&mut self, attempt: &Self) {
        self.next_tag = self.next_tag.max(attempt.next_tag);
    }

    /// Frees every rule of a slot, once its entries are cleared.
    pub fn release(&mut self, slot: u32) {
        self.keep(slot, &HashSet::new());
    }

    /// The references of the slot's rules, in the order of `keys`. Rules that the slot had and that are not among them are
    /// freed; their indices are not handed out by the same call, since their entries still stand.
    pub(super) fn assign(&mut self, slot: u32, keys: &[RuleKey]) -> Result<Vec<RuleRef>, Exhausted> {
        let wanted: HashSet<&RuleKey> = keys.iter().collect();
        let new = wanted.iter().filter(|key| !self.live.contains_key(**key)).count();
        let free = self.free.len() + self.end.saturating_sub(self.unused) as usize;
        let tags = (u32::MAX - self.next_tag) as usize;
        if new > free.min(tags) {
            return Err(Exhausted { new, free: free.min(tags) });
        }
        let refs = keys.iter().map(|key| self.reference(key)).collect();
        self.keep(slot, &wanted);
        Ok(refs)
    }

    fn reference(&mut self, key: &RuleKey) -> RuleRef {
        if let Some(&known) = self.live.get(key) {
            return known;
        }
        let mut index = self.unused;
        if index < self.end {
            self.unused += 1;
        } else {
            // `assign` counted: there is one.
            index = self.free.pop_front().unwrap_or(index);
        }
        let rule = RuleRef { index, tag: self.next_tag };
        self.next_tag += 1;
        self.live.insert(key.clone(), rule);
        rule
    }

    fn keep(&mut self, slot: u32, wanted: &HashSet<&RuleKey>) {
        let mut gone = Vec::new();
        self.live.retain(|key, rule| {
            let keep = key.slot != slot || wanted.contains(key);
            if !keep {
                gone.push(rule.index);
            }
            keep
        });
        gone.sort_unstable();
        self.free.extend(gone);
    }
}

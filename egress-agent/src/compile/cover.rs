//! Which lines of the policy speak for which prefixes. The kernel asks the longest prefix alone, so every prefix must carry
//! all that covers it.

use super::prefix::Prefix;
use egress_common::addr::Addr;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, Ipv6Addr},
};

/// What a line of the policy does to its addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Effect {
    Allow,
    Deny,
    Inbound,
}

/// The lines, by their index, that speak for a prefix.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Cover {
    pub(super) allow: Vec<usize>,
    pub(super) deny: Vec<usize>,
    pub(super) inbound: Vec<usize>,
    /// The trie needs an entry here. A single address that is merely allowed does without: its permit carries it all.
    pub(super) in_trie: bool,
    /// A single address that a line of its own allows, which the permit map holds.
    pub(super) is_permit: bool,
}

/// A range that a wider network does not open: only a line that lies within it does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Border {
    /// IPv4 within `::/0`: another family, so wider denies do not reach in either.
    Family,
    /// Ranges of [`egress_common::addr::Class`] and the host's own addresses.
    Special,
}

/// Special ranges that are prefixes; loopback is judged without the policy's networks, ISATAP is no prefix.
fn special_ranges() -> impl Iterator<Item = Prefix> {
    let v4 = |a, b, len: u8| Prefix::new(Ipv4Addr::new(a, b, 0, 0).into(), 96 + len);
    let v6 = |a, b, c, len| Prefix::new(Ipv6Addr::new(a, b, c, 0, 0, 0, 0, 0).into(), len);
    [
        v4(0, 0, 8),
        v4(169, 254, 16),
        v4(224, 0, 3),
        v6(0xfe80, 0, 0, 10),
        v6(0xfec0, 0, 0, 10),
        v6(0xff00, 0, 0, 8),
        // Tunnels: v4-compatible, local NAT64, Teredo, 6to4.
        v6(0, 0, 0, 96),
        v6(0x64, 0xff9b, 1, 48),
        v6(0x2001, 0, 0, 32),
        v6(0x2002, 0, 0, 16),
    ]
    .into_iter()
}

#[derive(Default)]
struct Point {
    lines: Vec<usize>,
    border: Option<Border>,
}

/// Finds out for every prefix that a line or a border makes which lines speak for it. `alone` are addresses that no wider
/// line opens.
pub(super) fn cover(lines: &[(Prefix, Effect)], alone: &BTreeSet<Addr>) -> BTreeMap<Prefix, Cover> {
    let mut points: BTreeMap<Prefix, Point> = BTreeMap::new();
    let special = special_ranges().chain(alone.iter().copied().map(Prefix::single));
    for prefix in special {
        points.entry(prefix).or_default().border = Some(Border::Special);
    }
    let v4 = Prefix::new(Addr::from(Ipv4Addr::UNSPECIFIED), 96);
    points.entry(v4).or_default().border = Some(Border::Family);
    for (index, (prefix, _)) in lines.iter().enumerate() {
        points.entry(*prefix).or_default().lines.push(index);
    }

    let mut out = BTreeMap::new();
    // The prefixes around the current one, widest first.
    let mut around: Vec<(Prefix, &Point)> = Vec::new();
    for (&prefix, point) in &points {
        while around.last().is_some_and(|(outer, _)| !outer.spans(prefix)) {
            around.pop();
        }
        around.push((prefix, point));
        if let Some(cover) = judge(&around, lines) {
            out.insert(prefix, cover);
        }
    }
    out
}

/// The cover of the innermost prefix; `None` where it says nothing that a wider one does not say.
fn judge(around: &[(Prefix, &Point)], lines: &[(Prefix, Effect)]) -> Option<Cover> {
    let (prefix, point) = around.last()?;
    let from_border = around.iter().rposition(|(_, point)| point.border.is_some()).unwrap_or(0);
    let is_family = |(_, point): &(Prefix, &Point)| point.border == Some(Border::Family);
    let from_family = around.iter().rposition(is_family).unwrap_or(0);
    let effect = |index: usize| lines.get(index).map(|(_, effect)| *effect);
    let speaking = |from: usize, wanted: Effect| -> Vec<usize> {
        let near = around.get(from..).unwrap_or_default().iter().flat_map(|(_, point)| point.lines.iter().copied());
        let mut found: Vec<usize> = near.filter(|&index| effect(index) == Some(wanted)).collect();
        found.sort_unstable();
        found
    };
    let own = |wanted| point.lines.iter().any(|&index| effect(index) == Some(wanted));
    let (allow, inbound) = (speaking(from_border, Effect::Allow), speaking(from_border, Effect::Inbound));
    let deny = speaking(from_family, Effect::Deny);
    let wider = around.split_last().map(|(_, wider)| wider).unwrap_or_default();
    let from_wider_border = wider.iter().rposition(|(_, point)| point.border.is_some()).unwrap_or(0);
    let mut reaching = wider.get(from_wider_border..).unwrap_or_default().iter().flat_map(|(_, point)| &point.lines);
    let border = match point.border {
        None => false,
        Some(Border::Family) => reaching.next().is_some(),
        Some(Border::Special) => reaching.any(|&index| effect(index) != Some(Effect::Deny)),
    };
    if point.lines.is_empty() && !border {
        return None;
    }
    // A deny of a single address is in the trie too, so that permit and trie each close it by themselves: no order of
    // writes can open it on the way from one policy to the next.
    let in_trie = !prefix.is_single() || border || own(Effect::Inbound) || own(Effect::Deny);
    let is_permit = prefix.is_single() && own(Effect::Allow);
    Some(Cover { allow, deny, inbound, in_trie, is_permit })
}

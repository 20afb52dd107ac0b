//! From one image to the next, one map write at a time, so that at no moment anything is open that neither policy opens.
//!
//! Every address flips from what the old image says of it to what the new one says, by a single write:
//! - the trie gets an entry for every prefix of both images first, with what the old image says there, which changes nothing;
//! - then each entry is overwritten by itself, those that close something before those that only open;
//! - then the entries that the new image does not have go, which changes nothing either.
//!
//! A permit and the trie carry the denies of an address each for itself, so their order does not matter.

use super::{Image, Prefix, Settings, image::longest};
use egress_common::{
    addr::Addr,
    permit::{Network, Permit, Rule, RuleRef},
    sandbox::flags,
};
use std::collections::{BTreeMap, BTreeSet};

/// One write. Apply them in order; where one fails, [`undo`] leads back.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// Fill an entry of the rule array. Nothing refers to it yet.
    SetRule(RuleRef, Rule),
    /// Empty an entry of the rule array, if it still bears the tag. Nothing refers to it any more but flows that are under
    /// way, which end by it: with `established = "keep"` an allow's entry may stay until its index is needed.
    ClearRule(RuleRef),
    /// Insert or overwrite an entry of the trie.
    SetNetwork(Prefix, Network),
    /// Remove an entry of the trie.
    RemoveNetwork(Prefix),
    /// Insert or overwrite a permit of the policy's own. Learned grants of the same address stay: see [`Change::Restamp`].
    SetPermit(Addr, Permit),
    /// Remove the policy's own grant of an address. Learned grants of the same address stay.
    RemovePermit(Addr),
    /// Rewrite every permit of the slot that holds learned grants as [`Image::permit_with`] of the new image says: new denies
    /// are stamped, and grants of rules that are gone are dropped, in one write for each address.
    Restamp,
    /// Overwrite the sandbox's entry, under the nonce that it has.
    SetSandbox(Settings),
    /// Add an own address.
    SetOwn(Addr),
    /// Remove an own address.
    RemoveOwn(Addr),
}

/// The writes that lead from `old` to `new`, two images of one slot; start with [`Image::empty`]. Until the last write the trie
/// holds the prefixes of both.
pub fn diff(old: &Image, new: &Image) -> Vec<Change> {
    let mut changes = Vec::new();
    let fresh = new.rules.iter().filter(|(rule, _)| !old.rules.contains_key(rule));
    changes.extend(fresh.map(|(rule, (content, _))| Change::SetRule(*rule, *content)));

    let narrow = narrowed(old, new);
    if narrow != old.settings {
        changes.push(Change::SetSandbox(narrow));
    }
    changes.extend(old.own.difference(&new.own).map(|&addr| Change::RemoveOwn(addr)));

    let prefixes: BTreeSet<Prefix> = old.networks.keys().chain(new.networks.keys()).copied().collect();
    let mut opening = Vec::new();
    let mut closing = Vec::new();
    for &prefix in &prefixes {
        let (before, after) = (said(&old.networks, prefix), said(&new.networks, prefix));
        if !old.networks.contains_key(&prefix) {
            changes.push(Change::SetNetwork(prefix, before));
        }
        if before != after {
            let closes = takes(before.allow, after.allow)
                || takes(before.inbound, after.inbound)
                || takes(after.deny, before.deny);
            if closes { &mut closing } else { &mut opening }.push(Change::SetNetwork(prefix, after));
        }
    }
    for (&addr, after) in &new.permits {
        match old.permits.get(&addr) {
            Some(before) if before == after => {}
            Some(_) => closing.push(Change::SetPermit(addr, *after)),
            None => opening.push(Change::SetPermit(addr, *after)),
        }
    }
    let gone = old.permits.keys().filter(|addr| !new.permits.contains_key(*addr));
    closing.extend(gone.map(|&addr| Change::RemovePermit(addr)));
    changes.append(&mut closing);
    if old != new && !old.rules.is_empty() {
        changes.push(Change::Restamp);
    }
    changes.append(&mut opening);
    let coarse = prefixes.iter().filter(|prefix| !new.networks.contains_key(*prefix));
    changes.extend(coarse.map(|&prefix| Change::RemoveNetwork(prefix)));

    if narrow != new.settings {
        changes.push(Change::SetSandbox(new.settings));
    }
    changes.extend(new.own.difference(&old.own).map(|&addr| Change::SetOwn(addr)));
    changes.extend(old.rules.keys().filter(|rule| !new.rules.contains_key(*rule)).map(|&rule| Change::ClearRule(rule)));
    changes
}

/// The writes that take back the first changes of a diff that starts at `old`, the one that failed included: the same steps
/// backwards, so that the way back is as safe as the way there. Apply them with `old` as the image that they lead to, and go on
/// with the rule references of before, after [`RuleIds::skip_tags`](super::RuleIds::skip_tags).
pub fn undo(old: &Image, attempted: &[Change]) -> Vec<Change> {
    let (mut networks, mut settings) = (old.networks.clone(), old.settings);
    let mut back: Vec<Change> = attempted
        .iter()
        .map(|change| match *change {
            Change::SetRule(rule, _) => Change::ClearRule(rule),
            Change::ClearRule(rule) => match old.rules.get(&rule) {
                Some((content, _)) => Change::SetRule(rule, *content),
                None => Change::ClearRule(rule),
            },
            Change::SetNetwork(prefix, network) => restore(prefix, networks.insert(prefix, network)),
            Change::RemoveNetwork(prefix) => restore(prefix, networks.remove(&prefix)),
            Change::SetPermit(addr, _) | Change::RemovePermit(addr) => match old.permits.get(&addr) {
                Some(permit) => Change::SetPermit(addr, *permit),
                None => Change::RemovePermit(addr),
            },
            Change::Restamp => Change::Restamp,
            Change::SetSandbox(after) => Change::SetSandbox(std::mem::replace(&mut settings, after)),
            Change::SetOwn(addr) => Change::RemoveOwn(addr),
            Change::RemoveOwn(addr) => Change::SetOwn(addr),
        })
        .collect();
    back.reverse();
    back
}

fn restore(prefix: Prefix, before: Option<Network>) -> Change {
    before.map_or(Change::RemoveNetwork(prefix), |network| Change::SetNetwork(prefix, network))
}

/// What an image says of a prefix as a whole, an entry of its own or not.
fn said(networks: &BTreeMap<Prefix, Network>, prefix: Prefix) -> Network {
    longest(networks, prefix).map(|(_, network)| *network).unwrap_or_default()
}

/// True where something stood and does not stand any more.
fn takes(before: RuleRef, after: RuleRef) -> bool {
    !before.is_none() && before != after
}

/// The settings that open no more than the old ones and no more than the new ones, with the old ones' identity: what an ICMP
/// echo or an own address may do must shrink before addresses open, and grow after they closed.
fn narrowed(old: &Image, new: &Image) -> Settings {
    let (before, after) = (old.settings, new.settings);
    let widening = flags::OBSERVE | flags::ICMP_ECHO | flags::RAW_SOCKETS | flags::INBOUND;
    let own = if before.own == after.own { before.own } else { RuleRef::NONE };
    Settings { flags: before.flags & !(widening & !after.flags), own, ..before }
}

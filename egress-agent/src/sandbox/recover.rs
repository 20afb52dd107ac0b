//! What the kernel's maps hold, as an image: an owner that was killed may have stopped in the middle of an update.

use super::record::Record;
use crate::{
    compile::{Image, Prefix, RuleIds, RuleText, Settings},
    datapath::tables::{TableError, Tables},
};
use egress_common::permit::{GRANTS, Grant, NEVER_NS, Permit};
use std::ops::Range;

/// The image in the maps, without the lines behind its rules.
pub(super) fn image(tables: &Tables, slot: u32) -> Result<Image, TableError> {
    let sandbox = tables.sandbox(slot)?;
    let settings = Settings {
        flags: sandbox.flags,
        netns_cookie: sandbox.netns_cookie,
        // A port has 16 bits.
        listener_port: sandbox.listener_port as u16,
        loopback: sandbox.loopback,
        own: sandbox.own,
        limits: tables.limits(slot)?,
    };
    let rules = tables.rules(slot)?.into_iter().map(|(rule, content)| (rule, (content, RuleText::unknown())));
    // A prefix has at most 128 bits.
    let networks = tables.networks(slot)?.into_iter();
    let networks = networks.map(|(addr, bits, network)| (Prefix::new(addr, bits as u8), network));
    let permits = tables.permits(slot)?.into_iter();
    let permits = permits.filter_map(|(key, permit)| Some((key.addr, of_the_policy(&permit)?)));
    Ok(Image {
        slot,
        settings,
        rules: rules.collect(),
        networks: networks.collect(),
        permits: permits.collect(),
        own: tables.own(slot)?.into_iter().collect(),
        name_rules: Vec::new(),
    })
}

/// What a permit holds of the policy itself, if anything; what was learned is not part of an image.
fn of_the_policy(permit: &Permit) -> Option<Permit> {
    let fixed = permit.grants.iter().filter(|grant| !grant.rule.is_none() && grant.expires_ns == NEVER_NS);
    let mut grants = [Grant::default(); GRANTS];
    for (place, grant) in grants.iter_mut().zip(fixed) {
        *place = *grant;
    }
    grants.first().is_some_and(|grant| !grant.rule.is_none()).then_some(Permit { deny: permit.deny, grants })
}

/// The rule references in use, so that the rules of the record's policy keep theirs: what was learned, and flows that are
/// under way, rest on them.
pub(super) fn ids(image: &Image, record: &Record, ours: Range<u32>) -> RuleIds {
    let above = image.rules.keys().map(|rule| rule.tag + 1).fold(record.next_tag, u32::max);
    let mut ids = RuleIds::resume(ours, image.rules.keys().map(|rule| rule.index), above);
    let texts = record.texts();
    for (rule, (content, _)) in &image.rules {
        if let Some(text) = texts.get(rule) {
            ids.recognise(*rule, content, text);
        }
    }
    ids
}

#[cfg(test)]
mod tests {
    use super::*;
    use egress_common::permit::RuleRef;

    #[test]
    fn what_was_learned_is_no_part_of_the_policys_own_permit() {
        let grant = |tag, expires_ns| Grant { expires_ns, rule: RuleRef { index: tag, tag } };
        let deny = RuleRef { index: 9, tag: 9 };
        let mut permit = Permit { deny, ..Permit::default() };
        permit.grants[0] = grant(1, 500);
        assert_eq!(of_the_policy(&permit), None);
        permit.grants[2] = grant(2, NEVER_NS);
        let own = of_the_policy(&permit).unwrap();
        assert_eq!((own.deny, own.grants[0], own.grants[1]), (deny, grant(2, NEVER_NS), Grant::default()));
    }
}

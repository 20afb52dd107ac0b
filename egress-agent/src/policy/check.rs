//! What can only be seen with all rules together: allows that can never open anything, denies that cannot close all they name.

use super::{
    Deny, Local, NameRule, Policy,
    error::{Misplaced, PolicyError, Position},
    part::List,
    ports::Ports,
};
use ipnet::{IpNet, Ipv4Net};
use std::{
    collections::HashMap,
    net::{Ipv4Addr, Ipv6Addr},
};

impl Policy {
    /// Checks the rules against each other. Parsing does it already; [`crate::compile`] does it again for policies that were
    /// built in code.
    pub fn check(&self) -> Result<(), PolicyError> {
        self.check_denies()?;
        let closed = ClosedNames::new(&self.deny);
        for rule in &self.allow.names {
            if let Some(deny) = closed.covering(rule) {
                return Err(covered(
                    List::Names,
                    &rule.text,
                    rule.at.as_ref(),
                    &deny.text,
                    List::DenyNames,
                    deny.at.as_ref(),
                ));
            }
        }
        for (list, rules) in [
            (List::Addresses, &self.allow.addresses),
            (List::Proxy, &self.allow.proxy),
            (List::Gateway, &self.allow.gateway),
            (List::Inbound, &self.allow.inbound),
        ] {
            for rule in rules {
                let mut around = self.deny.addresses.iter().filter(|deny| spans(&deny.net, &rule.net)).peekable();
                let Some(first) = around.peek().copied() else { continue };
                let closed = Ports::union(around.flat_map(|deny| deny.ports.ranges().iter().copied()));
                // The ports of a peer in inbound are the sandbox's own, those of a deny are the peer's.
                let of_peer = if list == List::Inbound { &Ports::all() } else { &rule.ports };
                if closed.is_ok_and(|closed| closed.covers(of_peer)) {
                    let (at, deny_at) = (rule.at.as_ref(), first.at.as_ref());
                    return Err(covered(list, &rule.text, at, &first.text, List::DenyAddresses, deny_at));
                }
            }
        }
        Ok(())
    }

    fn check_denies(&self) -> Result<(), PolicyError> {
        for rule in &self.deny.names {
            if !rule.ports.is_all() {
                let (at, text) = (Position::or_code(rule.at.as_ref()), rule.text.clone());
                return Err(PolicyError::Misplaced { at, key: List::DenyNames.key(), text, why: Misplaced::DenyPorts });
            }
        }
        if self.allow.loopback == Local::Closed {
            return Ok(());
        }
        for rule in &self.deny.addresses {
            if touches_loopback(&rule.net) {
                let (at, text) = (Position::or_code(rule.at.as_ref()), rule.text.clone());
                return Err(PolicyError::DenyOfLoopback { at, text });
            }
        }
        Ok(())
    }
}

/// True where every address of `inner` is one of `outer`. IPv4 and IPv6 never span each other, `::/0` included.
pub(crate) fn spans(outer: &IpNet, inner: &IpNet) -> bool {
    outer.contains(inner)
}

/// Loopback is judged by `allow.loopback` alone, so a deny of it would be a dead letter.
fn touches_loopback(net: &IpNet) -> bool {
    match net {
        IpNet::V4(net) => {
            const LOOPBACK: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8);
            net.contains(&LOOPBACK) || LOOPBACK.contains(net) || net.contains(&Ipv4Addr::UNSPECIFIED)
        }
        IpNet::V6(net) => net.contains(&Ipv6Addr::LOCALHOST) || net.contains(&Ipv6Addr::UNSPECIFIED),
    }
}

/// The denied names by their base, so that a long list costs no more for each allow than its labels.
struct ClosedNames<'a>(HashMap<&'a str, Closed<'a>>);

#[derive(Clone, Copy, Default)]
struct Closed<'a> {
    apex: Option<&'a NameRule>,
    below: Option<&'a NameRule>,
}

impl<'a> ClosedNames<'a> {
    fn new(deny: &'a Deny) -> Self {
        let mut names: HashMap<&str, Closed<'_>> = HashMap::new();
        for rule in &deny.names {
            let closed = names.entry(rule.pattern.base()).or_default();
            let reach = rule.pattern.reach();
            closed.apex = closed.apex.or(reach.apex().then_some(rule));
            closed.below = closed.below.or(reach.below().then_some(rule));
        }
        Self(names)
    }

    /// The deny that closes every name of the rule; one of them where it takes two.
    fn covering(&self, rule: &NameRule) -> Option<&'a NameRule> {
        let (base, reach) = (rule.pattern.base(), rule.pattern.reach());
        let own = self.0.get(base).copied().unwrap_or_default();
        let mut above = base.match_indices('.').filter_map(|(dot, _)| self.0.get(base.get(dot + 1..)?)?.below);
        let around = above.next();
        match (reach.apex(), reach.below()) {
            (true, true) => own.apex.or(around).and_then(|_| own.below.or(around)),
            (true, false) => own.apex.or(around),
            (false, _) => own.below.or(around),
        }
    }
}

fn covered(
    list: List,
    text: &str,
    at: Option<&Position>,
    deny: &str,
    deny_list: List,
    deny_at: Option<&Position>,
) -> PolicyError {
    PolicyError::Covered {
        at: Position::or_code(at),
        key: list.key(),
        text: text.to_owned(),
        deny: format!("{} {deny:?}", deny_list.key()),
        deny_at: Position::or_code(deny_at),
    }
}

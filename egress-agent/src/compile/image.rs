//! [`Image`]: everything that the kernel's maps hold for one sandbox, as a value.

use super::{explain::RuleText, prefix::Prefix};
use egress_common::{
    addr::Addr,
    bucket::Limits,
    permit::{GRANTS, Grant, Network, Permit, Rule, RuleRef},
    sandbox::Sandbox,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

/// A compiled policy: what the maps of one sandbox hold, learned permits apart. Addresses are as [`Addr::routed`] gives them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Image {
    /// Slot that the image is for; stands in every rule.
    pub slot: u32,
    /// What holds for all packets.
    pub settings: Settings,
    /// The rule array's entries, and the lines of the policy behind each.
    pub rules: BTreeMap<RuleRef, (Rule, RuleText)>,
    /// The network trie's entries. Each one carries all that covers it.
    pub networks: BTreeMap<Prefix, Network>,
    /// Permits of addresses that the policy itself names; they never expire.
    pub permits: BTreeMap<Addr, Permit>,
    /// The sandbox's own addresses; empty where the policy does not open them.
    pub own: BTreeSet<Addr>,
    /// The rule of each name: same index as in `allow.names` of the policy.
    pub name_rules: Vec<RuleRef>,
}

/// The part of [`Sandbox`] that a policy decides.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Settings {
    /// Bits of [`egress_common::sandbox::flags`].
    pub flags: u32,
    /// Cookie of the namespace in which the DNS listener stands.
    pub netns_cookie: u64,
    /// Port of the DNS listener; 0 = none.
    pub listener_port: u16,
    /// What loopback offers.
    pub loopback: RuleRef,
    /// What the sandbox's own addresses offer.
    pub own: RuleRef,
    /// How fast, and how much; the entry of the table of limits.
    pub limits: Limits,
}

impl Settings {
    /// The entry of the sandbox table.
    pub fn sandbox(&self, nonce: u64) -> Sandbox {
        Sandbox {
            nonce,
            netns_cookie: self.netns_cookie,
            flags: self.flags,
            listener_port: self.listener_port.into(),
            loopback: self.loopback,
            own: self.own,
        }
    }
}

impl Image {
    /// Nothing at all, which denies everything: what a new slot holds.
    pub fn empty(slot: u32) -> Self {
        Self {
            slot,
            settings: Settings::default(),
            rules: BTreeMap::new(),
            networks: BTreeMap::new(),
            permits: BTreeMap::new(),
            own: BTreeSet::new(),
            name_rules: Vec::new(),
        }
    }

    /// The entry of the sandbox table.
    pub fn sandbox(&self, nonce: u64) -> Sandbox {
        self.settings.sandbox(nonce)
    }

    /// The longest network that covers the address.
    pub fn network(&self, addr: impl Into<Addr>) -> Option<&Network> {
        longest(&self.networks, Prefix::single(addr.into().routed())).map(|(_, network)| network)
    }

    /// The deny that covers an address, to be stamped into a permit that is learned for it: a permit that allows is not
    /// followed by a look into the trie.
    pub fn deny_for(&self, addr: impl Into<Addr>) -> RuleRef {
        let addr = addr.into().routed();
        let of_permit = self.permits.get(&addr).map(|permit| permit.deny);
        of_permit.or_else(|| self.network(addr).map(|network| network.deny)).unwrap_or(RuleRef::NONE)
    }

    /// The grant that an address has from the policy itself. A permit that is learned for that address has the same key, so it
    /// must hold this grant too, and keep it when the learned ones are gone.
    ///
    /// Addresses inside an allowed network need nothing: the trie is asked whenever the permit did not allow.
    pub fn static_grant_for(&self, addr: impl Into<Addr>) -> Option<RuleRef> {
        let permit = self.permits.get(&addr.into().routed())?;
        permit.grants.first().map(|grant| grant.rule).filter(|rule| !rule.is_none())
    }

    /// The permit of an address that holds these learned grants: the deny that covers it, the policy's own grant, then as many
    /// of `learned` as fit. `None` where nothing is left to hold.
    ///
    /// Grants whose rule is not one of this image's are dropped.
    pub fn permit_with(&self, addr: impl Into<Addr>, learned: impl IntoIterator<Item = Grant>) -> Option<Permit> {
        let addr = addr.into().routed();
        let fixed = self.permits.get(&addr).map(|permit| permit.grants).unwrap_or_default();
        let fixed = fixed.into_iter().filter(|grant| !grant.rule.is_none());
        let learned = learned.into_iter().filter(|grant| self.opens_names(grant.rule));
        let mut permit = Permit { deny: self.deny_for(addr), grants: [Grant::default(); GRANTS] };
        for (place, grant) in permit.grants.iter_mut().zip(fixed.chain(learned)) {
            *place = grant;
        }
        permit.grants.iter().any(|grant| !grant.rule.is_none()).then_some(permit)
    }

    /// True for a rule of a name that this image has.
    fn opens_names(&self, rule: RuleRef) -> bool {
        self.rules.get(&rule).is_some_and(|(rule, _)| rule.flags == 0)
    }

    /// True where the address is one of the sandbox's own, and the policy opens those.
    pub fn is_own(&self, addr: IpAddr) -> bool {
        self.own.contains(&Addr::from(addr).routed())
    }
}

/// The longest entry that spans the prefix.
pub(super) fn longest(networks: &BTreeMap<Prefix, Network>, inner: Prefix) -> Option<(Prefix, &Network)> {
    let mut end = inner;
    loop {
        let (&prefix, network) = networks.range(..=end).next_back()?;
        if prefix.spans(inner) {
            return Some((prefix, network));
        }
        // Whatever spans `inner` and comes before this entry also spans what both share.
        end = prefix.common(end)?;
    }
}

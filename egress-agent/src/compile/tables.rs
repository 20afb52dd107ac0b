//! The kernel's maps as plain collections, so that `check`, `explain` and tests ask the very function that the kernel runs.

use super::{Change, Image, Prefix, Settings, image::longest};
use egress_common::{
    addr::Addr,
    permit::{GRANTS, Grant, Match, NEVER_NS, Network, Permit, Rule, RuleRef, match_rule},
    question::{Asked, Question},
    verdict::{ListenerKey, Tables, Verdict, decide},
};
use std::collections::{BTreeMap, BTreeSet};

/// The maps of one sandbox, learned permits included.
#[derive(Clone, Debug)]
pub struct ImageTables {
    slot: u32,
    settings: Settings,
    rules: BTreeMap<u32, Rule>,
    networks: BTreeMap<Prefix, Network>,
    permits: BTreeMap<Addr, Permit>,
    own: BTreeSet<Addr>,
    listeners: BTreeMap<(u64, u32), u64>,
    now_ns: u64,
}

impl From<&Image> for ImageTables {
    fn from(image: &Image) -> Self {
        Self {
            slot: image.slot,
            settings: image.settings,
            rules: image.rules.iter().map(|(rule, (content, _))| (rule.index, *content)).collect(),
            networks: image.networks.clone(),
            permits: image.permits.clone(),
            own: image.own.clone(),
            listeners: BTreeMap::new(),
            now_ns: 0,
        }
    }
}

impl ImageTables {
    /// Decides as the kernel would.
    pub fn decide(&self, question: Question) -> Verdict {
        decide(self.slot, &self.settings.sandbox(1), question, self)
    }

    /// Sets the clock that permits are measured by.
    pub fn set_now(&mut self, now_ns: u64) {
        self.now_ns = now_ns;
    }

    /// Adds a DNS listener of the host.
    pub fn add_listener(&mut self, key: ListenerKey, nonce: u64) {
        self.listeners.insert((key.netns_cookie, key.port), nonce);
    }

    /// Holds these learned grants for the address, beside what the image itself grants there.
    pub fn learn(&mut self, image: &Image, addr: impl Into<Addr>, grants: impl IntoIterator<Item = Grant>) {
        let addr = addr.into().routed();
        self.put(addr, image.permit_with(addr, grants));
    }

    /// Carries out one change of a diff that leads to `image`.
    pub fn apply(&mut self, change: &Change, image: &Image) {
        match *change {
            Change::SetRule(rule, content) => {
                self.rules.insert(rule.index, content);
            }
            Change::ClearRule(rule) => {
                if self.rules.get(&rule.index).is_some_and(|content| content.tag == rule.tag) {
                    self.rules.remove(&rule.index);
                }
            }
            Change::SetNetwork(prefix, network) => {
                self.networks.insert(prefix, network);
            }
            Change::RemoveNetwork(prefix) => {
                self.networks.remove(&prefix);
            }
            Change::SetPermit(addr, _) | Change::RemovePermit(addr) => {
                let learned = self.learned(addr);
                self.put(addr, image.permit_with(addr, learned));
            }
            Change::Restamp => {
                for addr in self.permits.keys().copied().collect::<Vec<_>>() {
                    let learned = self.learned(addr);
                    if !learned.is_empty() {
                        self.put(addr, image.permit_with(addr, learned));
                    }
                }
            }
            Change::SetSandbox(settings) => self.settings = settings,
            Change::SetOwn(addr) => {
                self.own.insert(addr);
            }
            Change::RemoveOwn(addr) => {
                self.own.remove(&addr);
            }
        }
    }

    fn learned(&self, addr: Addr) -> Vec<Grant> {
        let grants = self.permits.get(&addr).map_or([Grant::default(); GRANTS], |permit| permit.grants);
        grants.into_iter().filter(|grant| !grant.rule.is_none() && grant.expires_ns != NEVER_NS).collect()
    }

    fn put(&mut self, addr: Addr, permit: Option<Permit>) {
        match permit {
            Some(permit) => self.permits.insert(addr, permit),
            None => self.permits.remove(&addr),
        };
    }
}

impl Tables for ImageTables {
    fn permit(&self, slot: u32, addr: Addr) -> Option<&Permit> {
        self.permits.get(&addr).filter(|_| slot == self.slot)
    }

    fn network(&self, slot: u32, addr: Addr) -> Option<&Network> {
        longest(&self.networks, Prefix::single(addr)).map(|(_, network)| network).filter(|_| slot == self.slot)
    }

    fn matches(&self, rule: RuleRef, slot: u32, asked: Asked) -> Match {
        match_rule(self.rules.get(&rule.index), rule.tag, slot, asked)
    }

    fn is_own(&self, slot: u32, addr: Addr) -> bool {
        slot == self.slot && self.own.contains(&addr)
    }

    fn is_listener(&self, key: &ListenerKey) -> bool {
        self.listeners.contains_key(&(key.netns_cookie, key.port))
    }

    fn now_ns(&self) -> u64 {
        self.now_ns
    }
}

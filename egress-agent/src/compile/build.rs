//! The compiler itself.

use super::{
    Facts, Image, Origin, Prefix, RuleIds, RuleText, Settings,
    cover::{Cover, Effect, cover},
    ids::{Exhausted, RuleKey, stands_by},
};
use crate::policy::{AddressRule, Icmp, Local, Mode, NameRule, Policy, PolicyError, Ports};
use egress_common::{
    addr::Addr,
    destination::{PortRange, Protocols},
    permit::{GRANTS, Grant, NEVER_NS, Network, Permit, RANGES, Rule, RuleRef, rule_flags},
    sandbox::flags,
};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// What the maps have room for, for this sandbox.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Rules.
    pub rules: usize,
    /// Entries of the network trie.
    pub networks: usize,
    /// Permits that the policy itself needs.
    pub permits: usize,
}

/// A policy that the maps cannot hold. Nothing of it is in force, and the rule references are as before.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// The rules contradict each other; only for policies that were built in code.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// Lines whose ports together are too many ranges for one rule.
    #[error(
        "{lines} together name {ranges} separate port ranges, and one address can have {RANGES}: write ranges instead of single ports"
    )]
    Ranges {
        /// The lines.
        lines: String,
        /// How many ranges.
        ranges: usize,
    },
    /// More rules than the sandbox may have.
    #[error(
        "the policy compiles to {needed} rules, and a sandbox may have {limit}: join lines that differ in their ports, or names under a wildcard"
    )]
    Rules {
        /// How many.
        needed: usize,
        /// How many fit.
        limit: usize,
    },
    /// More networks than the trie holds.
    #[error(
        "the policy compiles to {needed} networks, and the map holds {limit}: join neighbouring networks into wider ones"
    )]
    Networks {
        /// How many.
        needed: usize,
        /// How many fit.
        limit: usize,
    },
    /// More single addresses than the permit map spares for them.
    #[error("the policy names {needed} single addresses, and the map holds {limit}: write networks instead")]
    Permits {
        /// How many.
        needed: usize,
        /// How many fit.
        limit: usize,
    },
    /// The rule array is full: while a reload is applied, the old rules and the new ones both stand in it.
    #[error(
        "the policy needs {needed} new rules, and {free} are free while the old ones are in force: end other sandboxes, or shorten the policy"
    )]
    RulesInForce {
        /// How many new ones.
        needed: usize,
        /// How many entries are free.
        free: usize,
    },
}

/// Compiles a policy for one slot. Equal policies and facts give equal rules whatever the order of lines, and rules that were
/// there before keep their references.
pub fn compile(
    policy: &Policy,
    facts: &Facts,
    slot: u32,
    ids: &mut RuleIds,
    limits: Limits,
) -> Result<Image, CompileError> {
    policy.check()?;
    let mut draft = Draft { slot, rules: Vec::new(), known: HashMap::new() };
    let loopback = draft.local("allow.loopback", &policy.allow.loopback)?;
    let own_by_default = if facts.own_netns { Local::Open } else { Local::Closed };
    let own = draft.local("allow.self", policy.allow.own.as_ref().unwrap_or(&own_by_default))?;
    let names =
        policy.allow.names.iter().map(|rule| draft.add(0, &[&Origin::of_name(rule)])).collect::<Result<Vec<_>, _>>()?;

    let lines = Line::all(policy);
    // In the host's namespace, a network around an address of the host means its neighbours.
    let alone: BTreeSet<Addr> = if facts.own_netns { BTreeSet::new() } else { routed(facts) };
    let spans: Vec<(Prefix, Effect)> = lines.iter().map(|line| (line.prefix, line.effect)).collect();
    let mut networks = BTreeMap::new();
    let mut permits = BTreeMap::new();
    for (prefix, cover) in cover(&spans, &alone) {
        let found = draft.network(&lines, &cover)?;
        if cover.in_trie {
            networks.insert(prefix, found);
        }
        if cover.is_permit {
            permits.insert(prefix.addr(), found);
        }
    }
    draft.check(&networks, &permits, limits)?;

    let refs = ids
        .assign(slot, &draft.keys())
        .map_err(|Exhausted { new, free }| CompileError::RulesInForce { needed: new, free })?;
    let refer = |draft: Option<usize>| draft.and_then(|index| refs.get(index).copied()).unwrap_or(RuleRef::NONE);
    let network = |drafts: &NetworkDraft| Network {
        allow: refer(drafts.allow),
        deny: refer(drafts.deny),
        inbound: refer(drafts.inbound),
    };
    let permit = |drafts: &NetworkDraft| {
        let mut grants = [Grant::default(); GRANTS];
        if let Some(first) = grants.first_mut() {
            *first = Grant { expires_ns: NEVER_NS, rule: refer(drafts.allow) };
        }
        Permit { deny: refer(drafts.deny), grants }
    };
    let settings = Settings {
        flags: sandbox_flags(policy, facts),
        netns_cookie: facts.netns_cookie,
        listener_port: facts.listener_port,
        loopback: refer(loopback),
        own: refer(own),
        limits: policy.bandwidth.limits(policy.mode),
    };
    Ok(Image {
        slot,
        settings,
        networks: networks.iter().map(|(prefix, drafts)| (*prefix, network(drafts))).collect(),
        permits: permits.iter().map(|(addr, drafts)| (*addr, permit(drafts))).collect(),
        own: if settings.own.is_none() { BTreeSet::new() } else { routed(facts) },
        name_rules: names.into_iter().map(|index| refer(Some(index))).collect(),
        rules: refs.iter().copied().zip(draft.rules).map(|(rule, draft)| (rule, draft.finish(rule, slot))).collect(),
    })
}

fn routed(facts: &Facts) -> BTreeSet<Addr> {
    facts.own_addresses.iter().map(|&ip| Addr::from(ip).routed()).collect()
}

fn sandbox_flags(policy: &Policy, facts: &Facts) -> u32 {
    let limits = policy.bandwidth.limits(policy.mode);
    [
        (policy.mode == Mode::Observe, flags::OBSERVE),
        (policy.allow.icmp == Icmp::Echo, flags::ICMP_ECHO),
        (facts.own_netns, flags::OWN_NETNS),
        (facts.raw_sockets, flags::RAW_SOCKETS),
        (!policy.allow.inbound.is_empty(), flags::INBOUND),
        (matches!(policy.allow.loopback, Local::Ports(_)), flags::LOOPBACK_PORTS),
        (!limits.egress.is_none() || limits.budget > 0, flags::METERED_EGRESS),
        (!limits.ingress.is_none(), flags::METERED_INGRESS),
    ]
    .into_iter()
    .fold(0, |all, (on, flag)| if on { all | flag } else { all })
}

/// A line of the policy that names addresses.
struct Line {
    prefix: Prefix,
    effect: Effect,
    origin: Origin,
}

impl Line {
    fn all(policy: &Policy) -> Vec<Self> {
        let allow = &policy.allow;
        let lists: [(&'static str, &[AddressRule], Effect); 5] = [
            ("allow.addresses", &allow.addresses, Effect::Allow),
            ("allow.gateway", &allow.gateway, Effect::Allow),
            ("allow.proxy", &allow.proxy, Effect::Allow),
            ("allow.inbound", &allow.inbound, Effect::Inbound),
            ("deny.addresses", &policy.deny.addresses, Effect::Deny),
        ];
        let line = |key: &'static str, effect, rule: &AddressRule| Self {
            prefix: Prefix::from(&rule.net),
            effect,
            origin: Origin {
                key: key.into(),
                text: rule.text.clone(),
                at: rule.at.clone(),
                net: Some(Prefix::from(&rule.net)),
                ports: rule.ports.clone(),
            },
        };
        lists.iter().flat_map(|&(key, rules, effect)| rules.iter().map(move |rule| line(key, effect, rule))).collect()
    }

    fn ranges(&self) -> impl Iterator<Item = PortRange> {
        self.origin.ports.ranges().iter().copied()
    }
}

impl Origin {
    fn of_name(rule: &NameRule) -> Self {
        let (text, at, ports) = (rule.text.clone(), rule.at.clone(), rule.ports.clone());
        Self { key: "allow.names".into(), text, at, net: None, ports }
    }
}

/// A rule before it has a reference.
struct RuleDraft {
    key: RuleKey,
    origins: BTreeMap<(String, String), Origin>,
}

impl RuleDraft {
    fn finish(self, rule: RuleRef, slot: u32) -> (Rule, RuleText) {
        let empty = PortRange { first: 0, last: 0, protocols: Protocols::NONE };
        let mut ranges = [empty; RANGES];
        for (place, range) in ranges.iter_mut().zip(&self.key.ranges) {
            *place = *range;
        }
        let len = self.key.ranges.len() as u32;
        let denies = self.key.flags & rule_flags::DENY != 0;
        let text = RuleText { denies, origins: self.origins.into_values().collect() };
        (Rule { tag: rule.tag, slot, flags: self.key.flags, len, ranges }, text)
    }
}

/// A network before its rules have references: indices into [`Draft::rules`].
#[derive(Clone, Copy)]
struct NetworkDraft {
    allow: Option<usize>,
    deny: Option<usize>,
    inbound: Option<usize>,
}

struct Draft {
    slot: u32,
    rules: Vec<RuleDraft>,
    known: HashMap<RuleKey, usize>,
}

impl Draft {
    /// The rule of these lines together.
    fn add(&mut self, flags: u32, origins: &[&Origin]) -> Result<usize, CompileError> {
        let ranges = Ports::union(origins.iter().flat_map(|origin| origin.ports.ranges().iter().copied()));
        let ports = ranges.map_err(|error| CompileError::Ranges { lines: quoted(origins), ranges: error.0 })?;
        // A deny of every port needs nothing beside it, and the kernel looks for that one range.
        let ranges = if flags & rule_flags::DENY != 0 && ports.is_all() { Ports::all() } else { ports };
        let lines = stands_by(flags, origins.iter().copied());
        let key = RuleKey { slot: self.slot, flags, ranges: ranges.ranges().to_vec(), lines };
        let index = *self.known.entry(key).or_insert_with_key(|key| {
            self.rules.push(RuleDraft { key: key.clone(), origins: BTreeMap::new() });
            self.rules.len() - 1
        });
        if let Some(draft) = self.rules.get_mut(index) {
            for &origin in origins {
                let place = (origin.key.to_string(), origin.text.clone());
                draft.origins.entry(place).or_insert_with(|| origin.clone());
            }
        }
        Ok(index)
    }

    fn local(&mut self, key: &'static str, local: &Local) -> Result<Option<usize>, CompileError> {
        let ranges = match local {
            Local::Closed => return Ok(None),
            Local::Open => vec![PortRange::ALL],
            Local::Ports(ports) => {
                let single = |&port| PortRange { first: port, last: port, protocols: Protocols::ANY };
                ports.iter().map(single).collect()
            }
        };
        let text = local.to_string();
        let ports = Ports::union(ranges)
            .map_err(|error| CompileError::Ranges { lines: format!("{key} = {text}"), ranges: error.0 })?;
        let origin = Origin { key: key.into(), text, at: None, net: None, ports };
        self.add(rule_flags::STATIC, &[&origin]).map(Some)
    }

    /// The rules of a prefix that these lines cover.
    fn network(&mut self, lines: &[Line], cover: &Cover) -> Result<NetworkDraft, CompileError> {
        let mut rule = |flags, indices: &[usize]| {
            let origins: Vec<&Origin> =
                indices.iter().filter_map(|&index| lines.get(index)).map(|line| &line.origin).collect();
            if origins.is_empty() { Ok(None) } else { self.add(flags, &origins).map(Some) }
        };
        let allow = rule(rule_flags::STATIC, &cover.allow)?;
        let deny = rule(rule_flags::DENY, &cover.deny)?;
        // The kernel asks nothing but the inbound rule about a peer, so a closed peer has none.
        let closed = Ports::union(cover.deny.iter().filter_map(|&index| lines.get(index)).flat_map(Line::ranges));
        let is_closed = closed.is_ok_and(|closed| closed.is_all());
        let inbound = if is_closed { None } else { rule(rule_flags::INBOUND, &cover.inbound)? };
        Ok(NetworkDraft { allow, deny, inbound })
    }

    fn keys(&self) -> Vec<RuleKey> {
        self.rules.iter().map(|rule| rule.key.clone()).collect()
    }

    fn check(
        &self,
        networks: &BTreeMap<Prefix, NetworkDraft>,
        permits: &BTreeMap<Addr, NetworkDraft>,
        limits: Limits,
    ) -> Result<(), CompileError> {
        let (rules, networks, permits) = (self.rules.len(), networks.len(), permits.len());
        if rules > limits.rules {
            return Err(CompileError::Rules { needed: rules, limit: limits.rules });
        }
        if networks > limits.networks {
            return Err(CompileError::Networks { needed: networks, limit: limits.networks });
        }
        if permits > limits.permits {
            return Err(CompileError::Permits { needed: permits, limit: limits.permits });
        }
        Ok(())
    }
}

fn quoted(origins: &[&Origin]) -> String {
    let mut lines: Vec<String> = origins.iter().map(|origin| format!("{} {:?}", origin.key, origin.text)).collect();
    lines.sort_unstable();
    lines.join(", ")
}

//! Rules, permits and networks: the values behind every allow and every deny.

use crate::{
    addr::Addr,
    destination::{HIT, PortRange},
    question::{Asked, Mode},
};
use bytemuck::{Pod, Zeroable};

/// Grants that one address can hold at a time.
pub const GRANTS: usize = 4;
/// Port ranges that one compiled rule can hold.
pub const RANGES: usize = 16;
/// Ranges that are looked at in one go.
pub const RANGES_AT_ONCE: usize = 4;
/// An expiry that never comes: addresses that the policy itself names.
pub const NEVER_NS: u64 = u64::MAX;

/// Points at a rule: an index into the rule array, and the tag that the entry must still bear. Tags are never reused, so
/// a reference to a removed rule leads nowhere even after its index has a new tenant.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Pod, Zeroable)]
#[repr(C)]
pub struct RuleRef {
    /// Index into the rule array.
    pub index: u32,
    /// Never reused; 0 = no rule.
    pub tag: u32,
}

impl RuleRef {
    /// No rule.
    pub const NONE: Self = Self { index: 0, tag: 0 };

    /// True for [`RuleRef::NONE`].
    #[inline(always)]
    pub const fn is_none(self) -> bool {
        self.tag == 0
    }
}

/// Bits of [`Rule::flags`].
pub mod rule_flags {
    /// The policy names addresses itself: the rule may open restricted, tunnel and loopback-routed destinations.
    pub const STATIC: u32 = 1;
    /// The rule denies.
    pub const DENY: u32 = 1 << 1;
    /// The rule names peers that may open connections to the sandbox.
    pub const INBOUND: u32 = 1 << 2;
}

/// Value of the rule array: ports and protocols, never addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct Rule {
    /// Tag of the tenant; 0 in a free entry.
    pub tag: u32,
    /// Slot of the sandbox that owns the rule.
    pub slot: u32,
    /// Bits of [`rule_flags`].
    pub flags: u32,
    /// How many of `ranges` count.
    pub len: u32,
    /// Union of these is what the rule speaks of; all zero (no protocol, so no hit) from `len` on. A deny of every port has
    /// that one range alone.
    pub ranges: [PortRange; RANGES],
}

/// What a rule says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Match {
    /// The rule is gone, or is of another kind.
    Missing = 0,
    /// The rule stands, but not for this port or protocol.
    OtherPort = 1,
    /// It opens, or closes, what was asked.
    Hit = 2,
}

/// Asks a rule, which must still bear the tag and belong to the slot.
#[inline(always)]
pub fn match_rule(rule: Option<&Rule>, tag: u32, slot: u32, asked: Asked) -> Match {
    match_rule_by(rule, tag, slot, asked, |rule, start| rule.covers_at(start, asked))
}

/// [`match_rule`], with the look at the ranges from `start` left to the caller: the kernel verifies it once for all.
#[inline(always)]
pub fn match_rule_by(
    rule: Option<&Rule>,
    tag: u32,
    slot: u32,
    asked: Asked,
    covers_at: impl Fn(&Rule, usize) -> bool,
) -> Match {
    let Some(rule) = rule else { return Match::Missing };
    if rule.tag != tag || tag == 0 || rule.slot != slot {
        return Match::Missing;
    }
    if asked.mode() == Mode::Exists as u32 {
        return Match::Hit;
    }
    if rule.flags & asked.flag_mask() != asked.flag_value() {
        return Match::Missing;
    }
    if !asked.has_port() {
        // A deny of some ports leaves the address itself open; an allow of any port opens it.
        let hit = asked.mode() != Mode::Deny as u32 || rule.is_every_port();
        return if hit { Match::Hit } else { Match::OtherPort };
    }
    let mut start = 0;
    while start < RANGES {
        if rule.len as usize <= start {
            return Match::OtherPort;
        }
        if covers_at(rule, start) {
            return Match::Hit;
        }
        start += RANGES_AT_ONCE;
    }
    Match::OtherPort
}

impl Rule {
    /// True where the rule speaks of every port of both protocols.
    pub fn is_every_port(&self) -> bool {
        // Compilation gives a rule of every port that one range alone.
        self.ranges[0] == PortRange::ALL
    }

    /// True where one of the [`RANGES_AT_ONCE`] ranges from `start` holds what is asked.
    #[inline(always)]
    pub fn covers_at(&self, start: usize, asked: Asked) -> bool {
        let (protocol, port, single) = (asked.protocol(), u64::from(asked.port()), asked.single_only());
        let Some(ranges) = self.ranges.get(start..start + RANGES_AT_ONCE) else { return false };
        ranges.iter().fold(0, |hits, range| hits | range.hits(protocol, port, single)) & HIT != 0
    }
}

/// Key of the permit map: one address of one sandbox.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct PermitKey {
    /// Slot of the sandbox.
    pub slot: u32,
    /// The address, as [`Addr::routed`] gives it.
    pub addr: Addr,
}

/// One reason for an address to be open: a rule, for a time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Pod, Zeroable)]
#[repr(C)]
pub struct Grant {
    /// First moment at which the grant admits nothing, on the clock of `bpf_ktime_get_coarse_ns` (CLOCK_MONOTONIC, coarse).
    pub expires_ns: u64,
    /// The rule whose ports are open.
    pub rule: RuleRef,
}

/// Value of the permit map. `deny` is pushed down from every network that covers the address, so that a hit needs no
/// second look-up.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Pod, Zeroable)]
#[repr(C)]
pub struct Permit {
    /// What is closed here whatever the grants say.
    pub deny: RuleRef,
    /// Unused grants are all zero.
    pub grants: [Grant; GRANTS],
}

/// Data of the network trie's key, behind the prefix length: the slot's 32 bits come first, so a prefix of n address
/// bits is stored as 32 + n (IPv4: 32 + 96 + n).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct NetworkKey {
    /// Slot of the sandbox; any bytes do as long as agent and kernel agree, so host order.
    pub slot: u32,
    /// First address of the network.
    pub addr: Addr,
}

/// Bits of a network key that come before the address.
pub const NETWORK_SLOT_BITS: u32 = 32;

/// Value of the network trie. Compilation pushes covering allows and denies into longer prefixes, so the longest match
/// alone tells everything.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Pod, Zeroable)]
#[repr(C)]
pub struct Network {
    /// What the policy opens here.
    pub allow: RuleRef,
    /// What the policy closes here.
    pub deny: RuleRef,
    /// Peers here may open connections to the sandbox.
    pub inbound: RuleRef,
}

crate::abi!(RuleRef = 8, Rule = 144, PermitKey = 20, Grant = 16, Permit = 72, NetworkKey = 20, Network = 24);

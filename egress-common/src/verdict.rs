//! The one function that decides, in the kernel and in host tests alike.
//!
//! Default deny is its fall-through. Any matching deny beats every allow; allows are a union.

use crate::{
    addr::{Addr, Class},
    packet::protocol,
    permit::{Grant, Match, NEVER_NS, Network, Permit, PermitKey, RuleRef},
    question::{Asked, Mode, Path, Question},
    sandbox::{Sandbox, flags},
};
use bytemuck::{Pod, Zeroable};

pub use crate::reason::{REASONS, Reason};

/// A verdict in one number, which a BPF function can return: [`Reason`] in bits 0-7, fleeting in bit 8, the rule's index
/// in bits 16-31, its tag in bits 32-63.
#[must_use]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(transparent)]
pub struct Verdict(pub u64);

impl From<Reason> for Verdict {
    #[inline(always)]
    fn from(reason: Reason) -> Self {
        Self(reason as u64)
    }
}

impl Verdict {
    /// A verdict that rests on a rule; `fleeting` where the permit behind it will expire.
    #[inline(always)]
    pub const fn by(reason: Reason, rule: RuleRef, fleeting: bool) -> Self {
        let rule = (rule.tag as u64) << 32 | (rule.index as u64 & 0xffff) << 16;
        Self(rule | (fleeting as u64) << 8 | reason as u64)
    }

    /// True for this very reason.
    #[inline(always)]
    pub const fn is(self, reason: Reason) -> bool {
        self.reason_number() == reason as u8
    }

    /// The reason's number.
    #[inline(always)]
    pub const fn reason_number(self) -> u8 {
        self.0 as u8
    }

    /// True where it may pass.
    #[inline(always)]
    pub const fn allows(self) -> bool {
        self.reason_number() < Reason::NoSandbox as u8
    }

    /// True where nothing spoke for the destination.
    #[inline(always)]
    pub const fn is_miss(self) -> bool {
        self.reason_number() & !3 == Reason::NotPermitted as u8
    }

    /// What two misses say together: they are numbered so that it is the or of both (tested).
    #[inline(always)]
    pub const fn or_miss(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// True where a permit that ran out spoke for the destination.
    #[inline(always)]
    pub const fn is_expired(self) -> bool {
        self.reason_number() & !1 == Reason::Expired as u8
    }

    /// The rule behind it.
    #[inline(always)]
    pub const fn rule(self) -> RuleRef {
        RuleRef { index: (self.0 >> 16 & 0xffff) as u32, tag: (self.0 >> 32) as u32 }
    }

    /// The allow rests on a permit that will expire.
    #[inline(always)]
    pub const fn fleeting(self) -> bool {
        self.0 >> 8 & 1 == 1
    }
}

/// Key of the host-wide listener map: a port of a network namespace.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct ListenerKey {
    /// Cookie of the namespace (`SO_NETNS_COOKIE`).
    pub netns_cookie: u64,
    /// Port, host order.
    pub port: u32,
    /// Zero.
    pub reserved: u32,
}

/// Value of the flow table.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct FlowState {
    /// Under which the flow was let in or out.
    pub rule: RuleRef,
    /// Nonce of the sandbox.
    pub nonce: u64,
    /// When the remote side was last heard, coarse monotonic.
    pub heard_ns: u64,
    /// When it ends, however often it is heard, coarse monotonic; `u64::MAX` while its rule is what lets it go on.
    pub ends_ns: u64,
}

crate::abi!(ListenerKey = 16, FlowState = 32);

/// How long a flow goes on at a device after its permit let a packet of it pass for the last time.
pub const FLOW_LIFE_NS: u64 = 24 * 3600 * 1_000_000_000;

/// How long a recorded flow lives without a word from the remote side: TCP as long as a stock keepalive waits twice,
/// others as long as connection tracking keeps an assured UDP stream (`net/netfilter/nf_conntrack_proto_udp.c`, 120 s).
#[inline(always)]
pub const fn flow_idle_ns(ip_protocol: u8) -> u64 {
    const SECOND_NS: u64 = 1_000_000_000;
    if ip_protocol == protocol::TCP { 4 * 3600 * SECOND_NS } else { 120 * SECOND_NS }
}

/// What the verdict looks up: BPF maps in the kernel, collections in tests.
///
/// The provided methods are the definition; the kernel runs the same code behind calls that are verified one by one.
pub trait Tables: Sized {
    /// The permit of one address.
    fn permit(&self, key: &PermitKey) -> Option<&Permit>;
    /// The longest network that covers the address.
    fn network(&self, key: &PermitKey) -> Option<&Network>;
    /// Asks the rule behind a reference; [`crate::permit::match_rule`] is the answer's definition.
    fn matches(&self, rule: RuleRef, slot: u32, asked: Asked) -> Match;
    /// True for an address of the sandbox's own.
    fn is_own(&self, key: &PermitKey) -> bool;
    /// Nonce of the sandbox whose DNS listener stands on this port.
    fn listener(&self, key: &ListenerKey) -> Option<u64>;
    /// Coarse monotonic clock.
    fn now_ns(&self) -> u64;

    /// [`Addr::class`].
    #[inline(always)]
    fn class(&self, addr: Addr) -> Class {
        addr.class()
    }

    /// [`route`].
    #[inline(always)]
    fn route(&self, addr: Addr) -> u64 {
        route(addr, self)
    }

    /// [`judge_loopback`].
    #[inline(always)]
    fn judge_loopback(&self, slot: u32, sandbox: &Sandbox, dst: Addr, asked: Asked) -> Verdict {
        judge_loopback(slot, sandbox, dst, asked, self)
    }

    /// [`judge_permit`].
    #[inline(always)]
    fn judge_permit(&self, key: &PermitKey, asked: Asked) -> Verdict {
        judge_permit(key, asked, self)
    }

    /// [`judge_grant`].
    #[inline(always)]
    fn judge_grant(&self, slot: u32, grant: Grant, asked: Asked) -> Verdict {
        judge_grant(slot, grant, asked, self)
    }

    /// [`judge_network`].
    #[inline(always)]
    fn judge_network(&self, key: &PermitKey, asked: Asked) -> Verdict {
        judge_network(key, asked, self)
    }
}

/// Decides one destination for one sandbox. `slot` is the index at which `sandbox` was found.
#[inline(always)]
pub fn decide(slot: u32, sandbox: &Sandbox, question: Question, tables: &impl Tables) -> Verdict {
    let Question { dst, asked } = question;
    if !asked.is_known() {
        return Reason::Protocol.into();
    }
    let route = if dst.is_plain_v4() { sandbox.zero() } else { tables.route(dst) };
    if route & 3 == Class::Loopback as u64 {
        return tables.judge_loopback(slot, sandbox, dst, asked);
    }
    let key = PermitKey { slot, addr: dst.unwrapped(route >> 2) };
    judge_remote(sandbox, &key, asked.of_class(route & 3), tables)
}

/// Where an address leads: the [`Class`] of its [`Addr::routed`] form in bits 0 and 1, and 4 where that form is another
/// because of NAT64.
#[inline(always)]
pub fn route(addr: Addr, tables: &impl Tables) -> u64 {
    let nat64 = if addr.is_nat64() { 4 } else { 0 };
    tables.class(addr.routed()) as u64 | nat64
}

/// Decides an address that is not loopback.
#[inline(always)]
fn judge_remote(sandbox: &Sandbox, key: &PermitKey, asked: Asked, tables: &impl Tables) -> Verdict {
    if asked.is_dns() {
        return Reason::DnsBypass.into();
    }
    if asked.is_icmp() && (sandbox.flags & flags::ICMP_ECHO == 0 || !asked.is_echo()) {
        return Reason::Icmp.into();
    }
    let class = asked.class();
    let asked = asked.as_allow_here();
    let permit = tables.judge_permit(key, asked);
    if !permit.is_miss() {
        return permit;
    }
    let network = tables.judge_network(key, asked);
    if !network.is_miss() {
        return network;
    }
    if !sandbox.own.is_none() && !asked.is_on(Path::Wire) && tables.is_own(key) {
        return match tables.matches(sandbox.own, key.slot, asked.read_as(Mode::AllowStatic)) {
            Match::Hit => Verdict::by(Reason::Own, sandbox.own, false),
            Match::OtherPort | Match::Missing => Reason::LoopbackClosed.into(),
        };
    }
    match class {
        Class::Restricted => Reason::Restricted.into(),
        Class::Tunnel => Reason::Tunnel.into(),
        // Of both: an expired permit stays one where a network names the address for other ports.
        Class::Loopback | Class::Global => permit.or_miss(network),
    }
}

/// Decides a loopback address, or one that leads there.
#[inline(always)]
pub fn judge_loopback(slot: u32, sandbox: &Sandbox, dst: Addr, asked: Asked, tables: &impl Tables) -> Verdict {
    if asked.is_on(Path::Wire) {
        return Reason::LoopbackClosed.into();
    }
    if asked.has_port() {
        let port = u32::from(asked.port());
        if port == sandbox.listener_port && port != 0 {
            let dst = dst.routed();
            let ours = dst == Addr::LOOPBACK_V4 || dst == Addr::LOOPBACK_V6;
            return if ours { Reason::Listener.into() } else { Reason::LoopbackClosed.into() };
        }
        // Resolvers of the host answer from outside the sandbox: asking them is a way out.
        if asked.is_dns() {
            return Reason::DnsBypass.into();
        }
        let listener = ListenerKey { netns_cookie: sandbox.netns_cookie, port, reserved: 0 };
        if tables.listener(&listener).is_some() {
            return Reason::ForeignListener.into();
        }
    }
    match tables.matches(sandbox.loopback, slot, asked.read_as(Mode::AllowStatic)) {
        Match::Hit => Verdict::by(Reason::Loopback, sandbox.loopback, false),
        Match::OtherPort | Match::Missing => Reason::LoopbackClosed.into(),
    }
}

/// What the permit of one address says: permitted, denied by rule, or one of the misses.
#[inline(always)]
pub fn judge_permit(key: &PermitKey, asked: Asked, tables: &impl Tables) -> Verdict {
    let Some(permit) = tables.permit(key) else { return Reason::NotPermitted.into() };
    if closed(permit.deny, key.slot, asked, tables) {
        return Verdict::by(Reason::DeniedByRule, permit.deny, false);
    }
    let mut miss = Verdict::from(Reason::NotPermitted);
    let mut index = 0;
    while index < permit.grants.len() {
        let verdict = tables.judge_grant(key.slot, permit.grants[index], asked);
        index += 1;
        if verdict.allows() {
            return verdict;
        }
        miss = miss.or_miss(verdict);
    }
    miss
}

/// What one grant says: permitted, or one of the misses.
#[inline(always)]
pub fn judge_grant(slot: u32, grant: Grant, asked: Asked, tables: &impl Tables) -> Verdict {
    judge_grant_by(grant, || tables.now_ns(), || tables.matches(grant.rule, slot, asked))
}

/// [`judge_grant`] with the clock and the rule's answer from the caller.
#[inline(always)]
pub fn judge_grant_by(grant: Grant, now_ns: impl FnOnce() -> u64, matches: impl FnOnce() -> Match) -> Verdict {
    if grant.rule.is_none() {
        return Reason::NotPermitted.into();
    }
    // Before the clock, though an expired grant says nothing else, and as bits that no branch looks at: the verifier would
    // walk what follows once for each outcome.
    let (miss, keep) = match matches() {
        Match::Hit => (0, u64::MAX),
        Match::OtherPort => (Reason::PortNotPermitted as u64, 0),
        Match::Missing => (Reason::NotPermitted as u64, 0),
    };
    let mut permitted = Verdict::by(Reason::Permitted, grant.rule, false);
    if grant.expires_ns != NEVER_NS {
        if grant.expires_ns <= now_ns() {
            return Reason::Expired.into();
        }
        permitted = Verdict::by(Reason::Permitted, grant.rule, true);
    }
    Verdict(permitted.0 & keep | miss)
}

/// What the longest network over an address says: permitted, denied by rule, or a miss.
#[inline(always)]
pub fn judge_network(key: &PermitKey, asked: Asked, tables: &impl Tables) -> Verdict {
    let Some(network) = tables.network(key) else { return Reason::NotPermitted.into() };
    if closed(network.deny, key.slot, asked, tables) {
        return Verdict::by(Reason::DeniedByRule, network.deny, false);
    }
    if network.allow.is_none() {
        return Reason::NotPermitted.into();
    }
    match tables.matches(network.allow, key.slot, asked) {
        Match::Hit => Verdict::by(Reason::Permitted, network.allow, false),
        Match::OtherPort => Reason::PortNotPermitted.into(),
        Match::Missing => Reason::NotPermitted.into(),
    }
}

/// A deny whose rule cannot be read still denies.
#[inline(always)]
fn closed(rule: RuleRef, slot: u32, asked: Asked, tables: &impl Tables) -> bool {
    !rule.is_none() && !matches!(tables.matches(rule, slot, asked.read_as(Mode::Deny)), Match::OtherPort)
}

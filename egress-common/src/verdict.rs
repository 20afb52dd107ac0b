//! The one function that decides, in the kernel and in host tests alike.
//!
//! Default deny is its fall-through. Any matching deny beats every allow; allows are a union.

use crate::{
    addr::{Addr, Class},
    destination::{DNS_PORT, Protocols},
    packet::protocol,
    permit::{Network, Permit, PermitKey, Rule, RuleRef, rule_flags},
    sandbox::{Sandbox, flags},
};
use bytemuck::{Pod, Zeroable};

/// Why a packet or a socket call passed or not. The numbers are stable: they stand in events, counters and metrics.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Reason {
    /// A rule of the policy, or a permit learned from DNS, opens it.
    Permitted = 0,
    /// The sandbox's loopback.
    Loopback = 1,
    /// One of the sandbox's own addresses.
    Own = 2,
    /// The sandbox's own DNS listener.
    Listener = 3,
    /// A packet of a connection whose permit expired after it was made.
    Established = 4,
    /// A reply to a flow that a listed peer opened.
    Reply = 5,
    /// Neighbour discovery or ARP in the exact forms that may pass.
    Neighbour = 6,
    /// Asked for under a permitted address before the host translated it.
    Translated = 7,

    /// No live identity: nothing was written yet, or the sandbox is gone.
    NoSandbox = 16,
    /// No rule names the address.
    NotPermitted = 17,
    /// A rule names the address, but not this port or protocol.
    PortNotPermitted = 18,
    /// The permit learned from DNS ran out.
    Expired = 19,
    /// A deny line of the policy.
    DeniedByRule = 20,
    /// A range that no learned name opens: link-local, metadata, multicast, broadcast, reserved.
    Restricted = 21,
    /// An IPv6 address that hides an IPv4 address.
    Tunnel = 22,
    /// Port 53, past the agent.
    DnsBypass = 23,
    /// Another sandbox's DNS listener.
    ForeignListener = 24,
    /// Loopback or own address that the policy does not open, or a loopback address off loopback.
    LoopbackClosed = 25,
    /// ICMP that the policy does not allow.
    Icmp = 26,
    /// A raw or packet socket, or a protocol other than TCP, UDP and ICMP.
    Protocol = 27,
    /// IPv4 options.
    IpOptions = 28,
    /// IPv6 routing, hop-by-hop, destination or unknown headers.
    ExtensionHeader = 29,
    /// Headers cut short.
    Truncated = 30,
    /// Headers that contradict themselves.
    Malformed = 31,
    /// An EtherType other than IPv4, IPv6 and ARP, or a VLAN tag.
    EtherType = 32,
    /// A source address that is not the sandbox's.
    Source = 33,
    /// A new flow from a peer that is not listed.
    Inbound = 34,
    /// ARP or neighbour discovery in another form than the exact one.
    NeighbourForm = 35,
    /// The port of a DNS listener, which no sandbox may bind.
    ListenerPort = 36,
}

/// How many reason numbers the counters keep room for.
pub const REASONS: usize = 40;

impl Reason {
    /// True for the reasons to let pass.
    #[inline(always)]
    pub const fn allows(self) -> bool {
        (self as u8) < Self::NoSandbox as u8
    }

    /// True where nothing spoke for the destination, as opposed to something that spoke against it.
    #[inline(always)]
    pub const fn is_miss(self) -> bool {
        matches!(self, Self::NotPermitted | Self::PortNotPermitted | Self::Expired)
    }
}

/// What was decided.
#[must_use]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Verdict {
    /// Allow or deny, and why.
    pub reason: Reason,
    /// The rule behind it; [`RuleRef::NONE`] where there is none.
    pub rule: RuleRef,
    /// The allow rests on a permit that will expire.
    pub fleeting: bool,
}

impl Verdict {
    #[inline(always)]
    const fn plain(reason: Reason) -> Self {
        Self { reason, rule: RuleRef::NONE, fleeting: false }
    }

    #[inline(always)]
    const fn by(reason: Reason, rule: RuleRef) -> Self {
        Self { reason, rule, fleeting: false }
    }

    /// True where it may pass.
    #[inline(always)]
    pub const fn allows(&self) -> bool {
        self.reason.allows()
    }
}

impl From<Reason> for Verdict {
    #[inline(always)]
    fn from(reason: Reason) -> Self {
        Self::plain(reason)
    }
}

/// Where the question is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Path {
    /// A socket call: the route is not known yet.
    Socket,
    /// A packet on the loopback device.
    Loopback,
    /// A packet on any other device, or on the sandbox's own device.
    Wire,
}

/// A destination to judge.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Question {
    /// Destination address as written.
    pub dst: Addr,
    /// Destination port, host order. `None` where there is none to see: fragments other than the first.
    pub port: Option<u16>,
    /// IP protocol number.
    pub protocol: u8,
    /// ICMP type where the protocol is ICMP.
    pub icmp_type: u8,
    /// Where it is asked.
    pub path: Path,
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
}

crate::abi!(ListenerKey = 16, FlowState = 24);

/// What the verdict looks up: BPF maps in the kernel, collections in tests.
pub trait Tables {
    /// The permit of one address.
    fn permit(&self, key: &PermitKey) -> Option<&Permit>;
    /// The longest network that covers the address.
    fn network(&self, key: &PermitKey) -> Option<&Network>;
    /// The rule behind a reference, if it is still that rule.
    fn rule(&self, rule: RuleRef) -> Option<&Rule>;
    /// True for an address of the sandbox's own.
    fn is_own(&self, key: &PermitKey) -> bool;
    /// Nonce of the sandbox whose DNS listener stands on this port.
    fn listener(&self, key: &ListenerKey) -> Option<u64>;
    /// Coarse monotonic clock.
    fn now_ns(&self) -> u64;
}

const ECHO_REQUEST_V4: u8 = 8;
const ECHO_REQUEST_V6: u8 = 128;

/// Decides one destination for one sandbox. `slot` is the index at which `sandbox` was found.
#[inline(always)]
pub fn decide(slot: u32, sandbox: &Sandbox, question: &Question, tables: &impl Tables) -> Verdict {
    let transport = Protocols::of(question.protocol);
    let is_icmp = matches!(question.protocol, protocol::ICMP | protocol::ICMPV6);
    if transport == Protocols::NONE && !is_icmp {
        return Reason::Protocol.into();
    }
    let want = Want { transport, port: if is_icmp { None } else { question.port }, slot };
    let dst = question.dst.routed();
    let class = dst.class();
    let on_wire = matches!(question.path, Path::Wire);
    if let Class::Loopback = class {
        if on_wire {
            return Reason::LoopbackClosed.into();
        }
        return loopback(sandbox, dst, want, tables);
    }
    if want.port == Some(DNS_PORT) {
        return Reason::DnsBypass.into();
    }
    if is_icmp {
        let echo = matches!(question.icmp_type, ECHO_REQUEST_V4 | ECHO_REQUEST_V6);
        if sandbox.flags & flags::ICMP_ECHO == 0 || !echo {
            return Reason::Icmp.into();
        }
    }
    let key = PermitKey { slot, addr: dst };
    // Only what the policy names by address may open special ranges, and only that is meant where loopback routing leads.
    let static_only = !matches!(class, Class::Global) || matches!(question.path, Path::Loopback);
    let mut miss = match class {
        Class::Restricted => Reason::Restricted,
        Class::Tunnel => Reason::Tunnel,
        Class::Loopback | Class::Global => Reason::NotPermitted,
    };
    if let Some(permit) = tables.permit(&key) {
        if let Some(verdict) = denied(permit.deny, want, tables) {
            return verdict;
        }
        let mut index = 0;
        while index < permit.grants.len() {
            let grant = permit.grants[index];
            index += 1;
            if grant.rule.is_none() {
                continue;
            }
            let lasting = grant.expires_ns == crate::permit::NEVER_NS;
            if !lasting && grant.expires_ns <= tables.now_ns() {
                if let Reason::NotPermitted = miss {
                    miss = Reason::Expired;
                }
                continue;
            }
            match opened(grant.rule, want, static_only, tables) {
                Opened::Yes => return Verdict { reason: Reason::Permitted, rule: grant.rule, fleeting: !lasting },
                Opened::OtherPort => miss = Reason::PortNotPermitted,
                Opened::No => {}
            }
        }
    }
    if let Some(network) = tables.network(&key) {
        if let Some(verdict) = denied(network.deny, want, tables) {
            return verdict;
        }
        match opened(network.allow, want, static_only, tables) {
            Opened::Yes => return Verdict::by(Reason::Permitted, network.allow),
            Opened::OtherPort => miss = Reason::PortNotPermitted,
            Opened::No => {}
        }
    }
    if !on_wire && !sandbox.own.is_none() && tables.is_own(&key) {
        if let Opened::Yes = opened(sandbox.own, want, true, tables) {
            return Verdict::by(Reason::Own, sandbox.own);
        }
        return Reason::LoopbackClosed.into();
    }
    miss.into()
}

/// What is asked of a rule.
#[derive(Clone, Copy)]
struct Want {
    transport: Protocols,
    port: Option<u16>,
    slot: u32,
}

#[inline(always)]
fn loopback(sandbox: &Sandbox, dst: Addr, want: Want, tables: &impl Tables) -> Verdict {
    if let Some(port) = want.port {
        let port = u32::from(port);
        if port == sandbox.listener_port && port != 0 {
            let ours = dst == Addr::LOOPBACK_V4 || dst == Addr::LOOPBACK_V6;
            return if ours { Reason::Listener.into() } else { Reason::LoopbackClosed.into() };
        }
        // Resolvers of the host answer from outside the sandbox: asking them is a way out.
        if port == u32::from(DNS_PORT) {
            return Reason::DnsBypass.into();
        }
        let key = ListenerKey { netns_cookie: sandbox.netns_cookie, port, reserved: 0 };
        if tables.listener(&key).is_some() {
            return Reason::ForeignListener.into();
        }
    }
    match opened(sandbox.loopback, want, true, tables) {
        Opened::Yes => Verdict::by(Reason::Loopback, sandbox.loopback),
        Opened::OtherPort | Opened::No => Reason::LoopbackClosed.into(),
    }
}

enum Opened {
    Yes,
    OtherPort,
    No,
}

#[inline(always)]
fn opened(rule_ref: RuleRef, want: Want, static_only: bool, tables: &impl Tables) -> Opened {
    if rule_ref.is_none() {
        return Opened::No;
    }
    let Some(rule) = tables.rule(rule_ref) else { return Opened::No };
    if rule.slot != want.slot || rule.flags & (rule_flags::DENY | rule_flags::INBOUND) != 0 {
        return Opened::No;
    }
    if static_only && rule.flags & rule_flags::STATIC == 0 {
        return Opened::No;
    }
    match want.port {
        // Without a port to see (ICMP, later fragments) the address alone decides.
        None => Opened::Yes,
        Some(port) if rule.opens(want.transport, port) => Opened::Yes,
        Some(_) => Opened::OtherPort,
    }
}

#[inline(always)]
fn denied(rule_ref: RuleRef, want: Want, tables: &impl Tables) -> Option<Verdict> {
    if rule_ref.is_none() {
        return None;
    }
    let closes = match tables.rule(rule_ref) {
        // A deny whose rule cannot be read still denies.
        None => true,
        Some(rule) => match want.port {
            None => rule.closes_all(),
            Some(port) => rule.closes(want.transport, port),
        },
    };
    if closes { Some(Verdict::by(Reason::DeniedByRule, rule_ref)) } else { None }
}

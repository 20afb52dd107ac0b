//! A destination to judge, in the form that the kernel can hand from function to function.

use crate::{
    addr::{Addr, Class},
    destination::{DNS_PORT, Protocols, SINGLE_ONLY, is_name_service},
    packet::{Flow, protocol},
    permit::rule_flags,
};

/// Where the question is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Path {
    /// A socket call: the route is not known yet.
    Socket = 0,
    /// A packet on the loopback device.
    Loopback = 1,
    /// A packet on any other device, or on the sandbox's own device.
    Wire = 2,
}

/// How a rule is read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Mode {
    /// As an allow.
    Allow = 0,
    /// As an allow for a destination that only an address line of the policy may open.
    AllowStatic = 1,
    /// As a deny.
    Deny = 2,
    /// As a list of welcome peers.
    Inbound = 3,
    /// Is it still there?
    Exists = 4,
}

/// A destination to judge.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Question {
    /// Destination address as written.
    pub dst: Addr,
    /// Everything else.
    pub asked: Asked,
}

const PORT: u64 = 0xffff;
const HAS_PORT: u64 = 1 << 16;
const PROTOCOL_SHIFT: u32 = 17;
const IS_ICMP: u64 = 1 << 19;
const IS_ECHO: u64 = 1 << 20;
const PATH_SHIFT: u32 = 21;
/// Ranges of more than one port count: always in a deny; in an allow unless the port is a name service's.
const WIDE_COUNTS: u64 = 1 << 23;
const NAME_SERVICE_SHIFT: u32 = 24;
/// A packet that opens a TCP connection.
const OPENS: u64 = 1 << 25;
const MODE_SHIFT: u32 = 32;
const MASK_SHIFT: u32 = 40;
const VALUE_SHIFT: u32 = 44;
const CLASS_SHIFT: u32 = 48;
/// Every mode asks for the rule's kind.
const KIND_MASK: u64 = ((rule_flags::DENY | rule_flags::INBOUND) as u64) << MASK_SHIFT;
/// What a change of mode keeps.
const KEEP: u64 = 0xffff_ffff & !WIDE_COUNTS;

const ECHO_REQUEST_V4: u8 = 8;
const ECHO_REQUEST_V6: u8 = 128;

/// Port, protocol, path and mode in one number: bits 0-15 the port, 16 whether there is one, 17-18 [`Protocols`], 19 ICMP,
/// 20 an echo request, 21-22 [`Path`], 23 whether ranges of more than one port count, 24 a name service's port, 25 a packet that opens a
/// TCP connection,
/// 32-34 [`Mode`], 40-42 which rule flags it looks at, 44-46 what they must be, 48-49 [`Class`] until a mode is set.
///
/// One opaque number on purpose: the verifier follows every constant that it can tell apart, and would walk each function
/// once for every combination of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(transparent)]
pub struct Asked(pub u64);

impl Asked {
    /// `port` is in host order, `None` where there is none to see (fragments other than the first); `ip_protocol` is the
    /// IANA number; `icmp_type` counts where that is ICMP.
    #[inline(always)]
    pub const fn new(path: Path, ip_protocol: u8, port: Option<u16>, icmp_type: u8) -> Self {
        let asked = match (ip_protocol, port) {
            (protocol::ICMP | protocol::ICMPV6, _) => Self::of_icmp(icmp_type),
            (protocol::TCP | protocol::UDP, Some(port)) => Self::of_port(ip_protocol, port),
            (protocol::TCP | protocol::UDP, None) => Self::of_tail(ip_protocol),
            _ => Self(0),
        };
        asked.on(path)
    }

    /// Of a port of TCP or UDP.
    #[inline(always)]
    pub(crate) const fn of_port(ip_protocol: u8, port: u16) -> Self {
        let name_service = (is_name_service(port) as u64) << NAME_SERVICE_SHIFT;
        Self(Self::of_tail(ip_protocol).0 | HAS_PORT | port as u64 | name_service)
    }

    /// Of an ICMP message.
    #[inline(always)]
    pub(crate) const fn of_icmp(icmp_type: u8) -> Self {
        let is_echo = matches!(icmp_type, ECHO_REQUEST_V4 | ECHO_REQUEST_V6);
        Self(if is_echo { IS_ICMP | IS_ECHO } else { IS_ICMP })
    }

    /// Of TCP, UDP or either ICMP, where nothing else can be seen.
    #[inline(always)]
    pub(crate) const fn of_tail(ip_protocol: u8) -> Self {
        match ip_protocol {
            protocol::TCP => Self((Protocols::TCP.0 as u64) << PROTOCOL_SHIFT),
            protocol::UDP => Self((Protocols::UDP.0 as u64) << PROTOCOL_SHIFT),
            _ => Self(IS_ICMP),
        }
    }

    /// The same question, by the packet that opens a TCP connection if so.
    #[inline(always)]
    pub(crate) const fn if_opening(self, opens: bool) -> Self {
        Self(if opens { self.0 | OPENS } else { self.0 })
    }

    /// The same question, asked elsewhere. `self` was asked by a [`Path::Socket`].
    #[inline(always)]
    pub const fn on(self, path: Path) -> Self {
        Self(self.0 | (path as u64) << PATH_SHIFT)
    }

    /// The same question of another port, where it has one.
    #[inline(always)]
    pub const fn to_port(self, port: u16) -> Self {
        if !self.has_port() {
            return self;
        }
        Self(
            self.0 & !(PORT | 1 << NAME_SERVICE_SHIFT)
                | port as u64
                | (is_name_service(port) as u64) << NAME_SERVICE_SHIFT,
        )
    }

    /// The question that a packet asks.
    #[inline(always)]
    pub const fn of(flow: &Flow, path: Path) -> Self {
        let port = if flow.tail { None } else { Some(flow.dst_port) };
        Self::new(path, flow.protocol, port, flow.detail).if_opening(flow.opens_connection())
    }

    /// What [`Flow::opens_connection`] said; false for a socket call.
    #[inline(always)]
    pub const fn opens_connection(self) -> bool {
        self.0 & OPENS != 0
    }

    /// Asks a rule whether it is still there.
    pub const EXISTS: Self = Self((Mode::Exists as u64) << MODE_SHIFT);

    /// The same question, read in another mode.
    #[inline(always)]
    pub const fn read_as(self, mode: Mode) -> Self {
        if let Mode::AllowStatic = mode {
            return self.as_allow(true);
        }
        let wide = if let Mode::Deny = mode { WIDE_COUNTS } else { self.wide_in_allow() };
        let flags = match mode {
            Mode::Deny => rule_flags::DENY,
            Mode::Inbound => rule_flags::INBOUND,
            Mode::Allow | Mode::AllowStatic | Mode::Exists => 0,
        };
        Self(self.0 & KEEP | wide | (mode as u64) << MODE_SHIFT | KIND_MASK | (flags as u64) << VALUE_SHIFT)
    }

    /// The same question as an allow; `static_only` where only an address line may answer.
    #[inline(always)]
    pub const fn as_allow(self, static_only: bool) -> Self {
        self.as_allow_of(static_only as u64)
    }

    /// The same question as an allow of its class and path: only what the policy names by address may open special ranges,
    /// and only that is meant where loopback routing leads.
    #[inline(always)]
    pub const fn as_allow_here(self) -> Self {
        // Without a comparison, which would be a branch for the verifier to walk twice.
        const { assert!(Path::Loopback as u64 & 1 == 1 && Path::Socket as u64 & 1 == 0 && Path::Wire as u64 & 1 == 0) };
        let class = self.0 >> CLASS_SHIFT;
        self.as_allow_of((class | class >> 1 | self.0 >> PATH_SHIFT) & 1)
    }

    #[inline(always)]
    const fn as_allow_of(self, one: u64) -> Self {
        // Mode::AllowStatic is Mode::Allow plus one, and looks at one flag more, which must be set.
        const { assert!(rule_flags::STATIC == 1 && Mode::AllowStatic as u8 == Mode::Allow as u8 + 1) };
        let fixed = self.0 & KEEP | self.wide_in_allow() | KIND_MASK;
        Self(fixed | one << MODE_SHIFT | one << MASK_SHIFT | one << VALUE_SHIFT)
    }

    /// The same question of an address whose [`Class`] has this number.
    #[inline(always)]
    pub const fn of_class(self, class: u64) -> Self {
        Self(self.0 | class << CLASS_SHIFT)
    }

    /// What [`Asked::of_class`] said.
    #[inline(always)]
    pub const fn class(self) -> Class {
        Class::from_number(self.0 >> CLASS_SHIFT & 3)
    }

    #[inline(always)]
    const fn wide_in_allow(self) -> u64 {
        // The name service bit, turned over, in the place of WIDE_COUNTS.
        (self.0 >> 1 & WIDE_COUNTS) ^ WIDE_COUNTS
    }

    /// [`crate::destination::SINGLE_ONLY`] where ranges of more than one port do not count; the other bits say nothing.
    #[inline(always)]
    pub const fn single_only(self) -> u64 {
        const { assert!(WIDE_COUNTS << 40 == SINGLE_ONLY) };
        !self.0 << 40
    }

    /// Port, host order; 0 where there is none.
    #[inline(always)]
    pub const fn port(self) -> u16 {
        (self.0 & PORT) as u16
    }

    /// True where there is a port.
    #[inline(always)]
    pub const fn has_port(self) -> bool {
        self.0 & HAS_PORT != 0
    }

    /// True for port 53.
    #[inline(always)]
    pub const fn is_dns(self) -> bool {
        self.0 & (PORT | HAS_PORT) == HAS_PORT | DNS_PORT as u64
    }

    /// TCP or UDP, or neither.
    #[inline(always)]
    pub const fn protocol(self) -> Protocols {
        Protocols((self.0 >> PROTOCOL_SHIFT & 3) as u32)
    }

    /// True for a protocol that a verdict can be asked for.
    #[inline(always)]
    pub const fn is_known(self) -> bool {
        self.0 & (3 << PROTOCOL_SHIFT | IS_ICMP) != 0
    }

    /// True for ICMP and ICMPv6.
    #[inline(always)]
    pub const fn is_icmp(self) -> bool {
        self.0 & IS_ICMP != 0
    }

    /// True for an echo request.
    #[inline(always)]
    pub const fn is_echo(self) -> bool {
        self.0 & IS_ECHO != 0
    }

    /// True on this path.
    #[inline(always)]
    pub const fn is_on(self, path: Path) -> bool {
        self.0 >> PATH_SHIFT & 3 == path as u64
    }

    /// [`Mode`] as a number.
    #[inline(always)]
    pub const fn mode(self) -> u32 {
        (self.0 >> MODE_SHIFT & 7) as u32
    }

    /// Which of a rule's flags the mode looks at.
    #[inline(always)]
    pub const fn flag_mask(self) -> u32 {
        (self.0 >> MASK_SHIFT & 7) as u32
    }

    /// What they must be.
    #[inline(always)]
    pub const fn flag_value(self) -> u32 {
        (self.0 >> VALUE_SHIFT & 7) as u32
    }
}

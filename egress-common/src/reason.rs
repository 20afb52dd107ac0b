//! Why something passed or not, as numbers that never change their meaning.

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
    /// A deny line of the policy.
    DeniedByRule = 17,
    /// A range that no learned name opens: link-local, metadata, multicast, broadcast, reserved.
    Restricted = 18,
    /// An IPv6 address that hides an IPv4 address.
    Tunnel = 19,
    /// No rule names the address.
    NotPermitted = 20,
    /// A rule names the address, but not this port or protocol.
    PortNotPermitted = 21,
    /// The permit learned from DNS ran out.
    Expired = 22,
    /// The permit of one rule ran out, and another rule names the address for other ports.
    ExpiredElsewhere = 23,
    /// Port 53, past the agent.
    DnsBypass = 37,
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
    /// The budget of bytes is used up.
    Budget = 38,
    /// A socket that was not made in the sandbox.
    ForeignSocket = 39,
}

/// How many reason numbers the counters keep room for; a power of two, so that a mask bounds any number.
pub const REASONS: usize = 64;

impl Reason {
    /// True for the reasons to let pass.
    #[inline(always)]
    pub const fn allows(self) -> bool {
        (self as u8) < Self::NoSandbox as u8
    }

    /// True where nothing spoke for the destination, as opposed to something that spoke against it.
    #[inline(always)]
    pub const fn is_miss(self) -> bool {
        matches!(self, Self::NotPermitted | Self::PortNotPermitted | Self::Expired | Self::ExpiredElsewhere)
    }
}

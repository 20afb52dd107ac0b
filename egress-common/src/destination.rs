//! Protocols and ports: what a rule opens at an address.

use bytemuck::{Pod, Zeroable};

/// The port that is always redirected to the agent, and that no packet off loopback may use.
pub const DNS_PORT: u16 = 53;

/// Ports of other name services (NetBIOS 137, DNS over TLS and QUIC 853, mDNS 5353, LLMNR 5355): only a rule that names
/// one by itself opens it; ranges and "every port" leave them out.
#[inline(always)]
pub const fn is_name_service(port: u16) -> bool {
    matches!(port, 137 | 853 | 5353 | 5355)
}

/// A set of transport protocols, one bit each.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Pod, Zeroable)]
#[repr(transparent)]
pub struct Protocols(pub u32);

impl Protocols {
    /// TCP, which MPTCP subflows are too.
    pub const TCP: Self = Self(1);
    /// UDP, QUIC included.
    pub const UDP: Self = Self(2);
    /// Both.
    pub const ANY: Self = Self(3);
    /// Neither: what a protocol without ports maps to.
    pub const NONE: Self = Self(0);

    /// From an IP protocol number (IANA).
    #[inline(always)]
    pub const fn of(protocol: u8) -> Self {
        match protocol {
            6 => Self::TCP,
            17 => Self::UDP,
            _ => Self::NONE,
        }
    }

    /// True where every protocol of `other` is in `self` and `other` is not empty.
    #[inline(always)]
    pub const fn contains(self, other: Self) -> bool {
        other.0 != 0 && self.0 & other.0 == other.0
    }
}

/// An inclusive range of ports in host order, for the protocols it names.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct PortRange {
    /// First port.
    pub first: u16,
    /// Last port, included.
    pub last: u16,
    /// Protocols that this range speaks of.
    pub protocols: Protocols,
}

crate::abi!(PortRange = 8);

impl PortRange {
    /// Every port of both protocols.
    pub const ALL: Self = Self { first: 0, last: u16::MAX, protocols: Protocols::ANY };

    /// True where an *allow* with this range opens the port: see [`is_name_service`].
    #[inline(always)]
    pub const fn opens(self, protocol: Protocols, port: u16) -> bool {
        self.covers(protocol, port) && (self.first == self.last || !is_name_service(port))
    }

    /// True where the port lies in the range: how a *deny* reads it.
    #[inline(always)]
    pub const fn covers(self, protocol: Protocols, port: u16) -> bool {
        self.first <= port && port <= self.last && self.protocols.contains(protocol)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_leave_name_services_out_unless_named() {
        assert!(PortRange::ALL.opens(Protocols::TCP, 443));
        for port in [137, 853, 5353, 5355] {
            assert!(!PortRange::ALL.opens(Protocols::UDP, port));
            assert!(PortRange::ALL.covers(Protocols::UDP, port));
            let named = PortRange { first: port, last: port, protocols: Protocols::UDP };
            assert!(named.opens(Protocols::UDP, port));
            assert!(!named.opens(Protocols::TCP, port));
        }
        assert!(!PortRange::ALL.opens(Protocols::NONE, 443));
    }
}

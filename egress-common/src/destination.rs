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
}

impl Protocols {
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
        self.hit(protocol, port as u32, !is_name_service(port))
    }

    /// True where the range covers the port for one of the protocols and, being wider than one port, counts.
    #[inline(always)]
    pub const fn hit(self, protocol: Protocols, port: u32, wide_counts: bool) -> bool {
        self.hits(protocol, port as u64, if wide_counts { 0 } else { SINGLE_ONLY }) & HIT != 0
    }

    /// Bit [`HIT`] set where the range covers the port for one of the protocols, and is of one port where `single` has the
    /// bit [`SINGLE_ONLY`]; the other bits say nothing. Without a branch: the kernel's verifier walks both sides of each.
    #[inline(always)]
    pub const fn hits(self, protocol: Protocols, port: u64, single: u64) -> u64 {
        let first = self.first as u64;
        let span = (self.last as u64).wrapping_sub(first);
        let reach = port.wrapping_sub(first);
        // Each number is negative where its side of `0 <= reach <= span`, or of `span == 0`, does not hold.
        let outside = reach | span.wrapping_sub(reach) | single & 0_u64.wrapping_sub(span);
        let spoken_of = 0_u64.wrapping_sub((self.protocols.0 & protocol.0) as u64);
        spoken_of & !outside
    }
}

/// The highest bit: what makes a number negative.
pub const HIT: u64 = 1 << 63;
/// The same bit, as a demand.
pub const SINGLE_ONLY: u64 = 1 << 63;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn opens(range: PortRange, protocol: Protocols, port: u16) -> bool {
        range.opens(protocol, port)
    }

    #[test]
    fn ranges_leave_name_services_out_unless_named() {
        assert!(opens(PortRange::ALL, Protocols::TCP, 443));
        for port in [137, 853, 5353, 5355] {
            assert!(!opens(PortRange::ALL, Protocols::UDP, port));
            assert!(PortRange::ALL.hit(Protocols::UDP, port.into(), true));
            let named = PortRange { first: port, last: port, protocols: Protocols::UDP };
            assert!(opens(named, Protocols::UDP, port));
            assert!(!opens(named, Protocols::TCP, port));
        }
        assert!(!opens(PortRange::ALL, Protocols::NONE, 443));
    }

    proptest! {
        #[test]
        fn a_hit_is_what_the_comparison_says(first: u16, last: u16, port: u16, set in 0_u32..4, one in 0_u32..3, wide: bool) {
            let range = PortRange { first, last, protocols: Protocols(set) };
            let plain = first <= port && port <= last && set & one != 0 && (wide || first == last);
            prop_assert_eq!(range.hit(Protocols(one), port.into(), wide), plain);
        }
    }
}

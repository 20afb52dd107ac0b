//! Prefixes of the one address space that the maps know: 128 bits, IPv4 at `::ffff:0:0/96`.

use egress_common::addr::Addr;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Bits of an IPv4 address that come before the IPv4 part.
const V4_BITS: u8 = 96;
/// Bits of an address.
const FULL: u8 = 128;

/// A network as the trie holds it: an IPv4 prefix of n bits has the length 96 + n. Sorted so that a prefix comes right before
/// everything that it spans.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Prefix {
    bits: u128,
    len: u8,
}

impl Prefix {
    /// The prefix of `len` bits that holds the address. A length over 128 is 128.
    pub fn new(addr: Addr, len: u8) -> Self {
        let len = len.min(FULL);
        Self { bits: to_bits(addr) & mask(len), len }
    }

    /// The address alone.
    pub fn single(addr: Addr) -> Self {
        Self::new(addr, FULL)
    }

    /// First address.
    pub fn addr(self) -> Addr {
        Addr::v6(bytemuck::cast(self.bits.to_be_bytes()))
    }

    /// Bits that are fixed, 0 to 128.
    pub fn length(self) -> u8 {
        self.len
    }

    /// True for a prefix of one address.
    pub fn is_single(self) -> bool {
        self.len == FULL
    }

    /// True where every address of `other` is one of this prefix.
    pub fn spans(self, other: Self) -> bool {
        self.len <= other.len && other.bits & mask(self.len) == self.bits
    }

    /// The longest prefix that spans both; `None` where that is `other` itself.
    pub(super) fn common(self, other: Self) -> Option<Self> {
        let shared = (self.bits ^ other.bits).leading_zeros() as u8;
        let len = shared.min(self.len).min(other.len);
        (len < other.len).then(|| Self { bits: other.bits & mask(len), len })
    }

    /// True where the address is one of this prefix.
    pub fn holds(self, addr: Addr) -> bool {
        self.spans(Self::single(addr))
    }
}

impl From<&IpNet> for Prefix {
    fn from(net: &IpNet) -> Self {
        let len = match net {
            IpNet::V4(v4) => V4_BITS + v4.prefix_len(),
            IpNet::V6(v6) => v6.prefix_len(),
        };
        Self::new(net.network().into(), len)
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_v4 = self.addr().is_v4() && self.len >= V4_BITS;
        write!(f, "{}/{}", self.addr().to_ip(), if is_v4 { self.len - V4_BITS } else { self.len })
    }
}

impl fmt::Debug for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn to_bits(addr: Addr) -> u128 {
    u128::from_be_bytes(bytemuck::cast(addr))
}

fn mask(len: u8) -> u128 {
    u128::MAX.checked_shl(u32::from(FULL - len)).unwrap_or(0)
}

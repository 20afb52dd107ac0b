//! Addresses as the maps know them: 16 bytes in network order, IPv4 as v4-mapped IPv6.

use bytemuck::{Pod, Zeroable};
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An IPv4 or IPv6 address, its bytes in network order. IPv4 is `::ffff:a.b.c.d` (RFC 4291, 2.5.5.2), so that a v4-mapped
/// destination and its IPv4 form are one key.
///
/// Two halves, each a number as it lies in memory, because the BPF target computes with 64 bits and has no unaligned access:
/// bytes would be copied one by one. On four bytes, because keys have a word in front of it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Pod, Zeroable)]
#[repr(C, packed(4))]
pub struct Addr {
    high: u64,
    low: u64,
}

crate::abi!(Addr = 16);

/// The third word of every v4-mapped address.
const MAPPED: u32 = 0x0000_ffff_u32.to_be();
/// What turns the lower half `::a.b.c.d` into `::ffff:a.b.c.d`.
const MAPPED_LOW: u64 = join(MAPPED, 0);
/// Higher half of NAT64's well-known prefix.
const NAT64_HIGH: u64 = join(0x0064_ff9b_u32.to_be(), 0);

/// What an address is by its bits alone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Class {
    /// Nothing special.
    Global = 0,
    /// 127.0.0.0/8 and `::1`; 0.0.0.0 and `::` as destinations mean the same to Linux.
    Loopback = 1,
    /// Never reachable through a learned name: 0.0.0.0/8, 169.254.0.0/16, 224.0.0.0/3 (multicast, reserved, broadcast),
    /// `fe80::/10`, `fec0::/10`, `ff00::/8`. An `addresses`, `gateway` or `proxy` line may open them.
    Restricted = 2,
    /// IPv6 that carries an IPv4 address for somebody else to unwrap: 6to4, Teredo, ISATAP, v4-compatible, local-use NAT64
    /// (`64:ff9b:1::/48`). Denied unless an `addresses` line names it.
    Tunnel = 3,
}

impl Class {
    /// From its number; [`Class::Tunnel`] for any beyond.
    #[inline(always)]
    pub const fn from_number(number: u64) -> Self {
        match number {
            0 => Self::Global,
            1 => Self::Loopback,
            2 => Self::Restricted,
            _ => Self::Tunnel,
        }
    }
}

impl Addr {
    /// `::`, which no destination is after [`Addr::routed`].
    pub const UNSPECIFIED: Self = Self { high: 0, low: 0 };
    /// 127.0.0.1 in its mapped form.
    pub const LOOPBACK_V4: Self = Self::v4(0x7f00_0001_u32.to_be());
    /// `::1`.
    pub const LOOPBACK_V6: Self = Self::v6([0, 0, 0, 1_u32.to_be()]);

    /// From an IPv4 address whose bytes are in network order.
    #[inline(always)]
    pub const fn v4(word: u32) -> Self {
        Self { high: 0, low: join(MAPPED, word) }
    }

    /// From the four words of an IPv6 address, bytes in network order.
    #[inline(always)]
    pub const fn v6([a, b, c, d]: [u32; 4]) -> Self {
        Self { high: join(a, b), low: join(c, d) }
    }

    /// Inverse of [`Addr::v6`].
    #[inline(always)]
    pub const fn words(self) -> [u32; 4] {
        [first(self.high), second(self.high), first(self.low), second(self.low)]
    }

    /// True for IPv4, however it was written.
    #[inline(always)]
    pub const fn is_v4(self) -> bool {
        self.high == 0 && first(self.low) == MAPPED
    }

    /// The address that decides: the IPv4 address inside NAT64's well-known prefix (RFC 6052), loopback for the
    /// unspecified address (`connect(0.0.0.0)` reaches 127.0.0.1: `net/ipv4/route.c`), the address itself otherwise.
    #[inline(always)]
    pub const fn routed(self) -> Self {
        let Self { high, low } = self;
        if self.is_nat64() {
            return self.unwrapped(1);
        }
        if high == 0 && low == 0 {
            return Self::LOOPBACK_V6;
        }
        if high == 0 && low == MAPPED_LOW {
            return Self::LOOPBACK_V4;
        }
        self
    }

    /// Sorts the address by its bits. Call it on the result of [`Addr::routed`].
    #[inline(always)]
    pub const fn class(self) -> Class {
        let Self { high, low } = self;
        if high == 0 {
            if first(low) == MAPPED {
                return class_v4(u32::from_be(second(low)));
            }
            if first(low) == 0 {
                return if low == Self::LOOPBACK_V6.low { Class::Loopback } else { Class::Tunnel };
            }
        }
        // Everything from fe80::/10 on: link-local, site-local, multicast.
        if u32::from_be(first(high)) >= 0xfe80_0000 {
            return Class::Restricted;
        }
        if high & join(0xffff_0000_u32.to_be(), 0) == join(0x2002_0000_u32.to_be(), 0) {
            return Class::Tunnel; // 6to4
        }
        if first(high) == 0x2001_0000_u32.to_be() {
            return Class::Tunnel; // Teredo
        }
        if first(low) & (!0x0300_0000_u32).to_be() == 0x0000_5efe_u32.to_be() {
            return Class::Tunnel; // ISATAP
        }
        let local_prefix = join(u32::MAX, 0xffff_0000_u32.to_be());
        if high & local_prefix == join(0x0064_ff9b_u32.to_be(), 0x0001_0000_u32.to_be()) {
            return Class::Tunnel; // local-use NAT64
        }
        Class::Global
    }

    /// True only where [`Addr::routed`] changes nothing and [`Addr::class`] is [`Class::Global`]: nearly every IPv4 address.
    #[inline(always)]
    pub const fn is_plain_v4(self) -> bool {
        let host = u32::from_be(second(self.low));
        // From 1.0.0.0 up to 223.255.255.255, less 127.0.0.0/8 and 169.254.0.0/16.
        self.is_v4() && host.wrapping_sub(0x0100_0000) < 0xdf00_0000 && host >> 24 != 127 && host >> 16 != 0xa9fe
    }

    /// True for an IPv4 address in NAT64's well-known prefix.
    #[inline(always)]
    pub const fn is_nat64(self) -> bool {
        self.high == NAT64_HIGH && first(self.low) == 0
    }

    /// [`Addr::routed`] of an address that [`Addr::is_nat64`], where `nat64` is 1; the same address where it is 0.
    #[inline(always)]
    pub const fn unwrapped(self, nat64: u64) -> Self {
        // Without a branch, which the verifier would walk twice.
        let mask = 0_u64.wrapping_sub(nat64);
        Self { high: self.high & !mask, low: self.low | MAPPED_LOW & mask }
    }

    /// True for `fe80::/10`.
    #[inline(always)]
    pub const fn is_link_local(self) -> bool {
        self.high & join(0xffc0_0000_u32.to_be(), 0) == join(0xfe80_0000_u32.to_be(), 0)
    }

    /// True for `ff02::/16`, multicast that no router forwards.
    #[inline(always)]
    pub const fn is_link_multicast(self) -> bool {
        self.high & join(0xffff_0000_u32.to_be(), 0) == join(0xff02_0000_u32.to_be(), 0)
    }

    /// True where the first 64 bits are the same.
    #[inline(always)]
    pub const fn is_near(self, other: Self) -> bool {
        self.high == other.high
    }

    /// Two numbers that BPF can pass in registers, each as its half of the address lies in memory.
    #[inline(always)]
    pub const fn pack(self) -> (u64, u64) {
        (self.high, self.low)
    }

    /// Inverse of [`Addr::pack`].
    #[inline(always)]
    pub const fn unpack(high: u64, low: u64) -> Self {
        Self { high, low }
    }

    /// The standard library's form; IPv4 for mapped addresses.
    pub fn to_ip(self) -> IpAddr {
        let bytes: [u8; 16] = bytemuck::cast(self);
        let v6 = Ipv6Addr::from(bytes);
        v6.to_ipv4_mapped().map_or(IpAddr::V6(v6), IpAddr::V4)
    }
}

/// `host` in host order.
#[inline(always)]
const fn class_v4(host: u32) -> Class {
    let top = host >> 24;
    if top == 127 {
        Class::Loopback
    } else if top == 0 || top >= 224 || host >> 16 == 0xa9fe {
        Class::Restricted
    } else {
        Class::Global
    }
}

/// The number that lies in memory as these two words.
#[inline(always)]
const fn join(first: u32, second: u32) -> u64 {
    let (low, high) = if cfg!(target_endian = "little") { (first, second) } else { (second, first) };
    (high as u64) << 32 | low as u64
}

/// The word of a half that comes first in memory.
#[inline(always)]
const fn first(half: u64) -> u32 {
    if cfg!(target_endian = "little") { half as u32 } else { (half >> 32) as u32 }
}

#[inline(always)]
const fn second(half: u64) -> u32 {
    if cfg!(target_endian = "little") { (half >> 32) as u32 } else { half as u32 }
}

impl From<Ipv4Addr> for Addr {
    fn from(ip: Ipv4Addr) -> Self {
        Self::v4(u32::from_ne_bytes(ip.octets()))
    }
}

impl From<Ipv6Addr> for Addr {
    fn from(ip: Ipv6Addr) -> Self {
        bytemuck::cast(ip.octets())
    }
}

impl From<IpAddr> for Addr {
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(v4) => v4.into(),
            IpAddr::V6(v6) => v6.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn class(text: &str) -> Class {
        Addr::from(text.parse::<IpAddr>().unwrap()).routed().class()
    }

    #[test]
    fn every_special_range_has_its_class() {
        for text in ["127.0.0.1", "127.255.255.255", "::1", "0.0.0.0", "::", "::ffff:127.1.2.3", "64:ff9b::7f00:1"] {
            assert_eq!(class(text), Class::Loopback, "{text}");
        }
        for text in [
            "0.1.2.3",
            "169.254.169.254",
            "224.0.0.251",
            "239.1.1.1",
            "240.0.0.1",
            "255.255.255.255",
            "fe80::1",
            "febf::1",
            "fec0::1",
            "ff02::1",
            "64:ff9b::a9fe:a9fe",
        ] {
            assert_eq!(class(text), Class::Restricted, "{text}");
        }
        for text in [
            "2002:7f00:1::",
            "2001::1",
            "2001:0:1::",
            "fd00::5efe:1.2.3.4",
            "fd00::200:5efe:1.2.3.4",
            "::1.2.3.4",
            "64:ff9b:1::1",
        ] {
            assert_eq!(class(text), Class::Tunnel, "{text}");
        }
        for text in [
            "8.8.8.8",
            "10.0.0.1",
            "169.253.1.1",
            "2001:db8::1",
            "fd00::1",
            "::ffff:198.51.100.1",
            "64:ff9b::c633:6414",
        ] {
            assert_eq!(class(text), Class::Global, "{text}");
        }
    }

    proptest! {
        #[test]
        fn v4_and_its_mapped_and_nat64_forms_are_one_key(word: u32) {
            let v4 = Ipv4Addr::from(word);
            prop_assert_eq!(Addr::from(v4), Addr::from(v4.to_ipv6_mapped()));
            let nat64 = Ipv6Addr::from((0x0064_ff9b_u128 << 96) | u128::from(word));
            if word != 0 {
                prop_assert_eq!(Addr::from(nat64).routed(), Addr::from(v4).routed());
            }
        }

        #[test]
        fn the_halves_are_the_address_as_it_lies_in_memory(bits: u128) {
            let addr = Addr::from(Ipv6Addr::from(bits));
            let (high, low) = addr.pack();
            prop_assert_eq!(Addr::unpack(high, low), addr);
            let halves = [high, low];
            prop_assert_eq!(bytemuck::bytes_of(&halves), &bits.to_be_bytes()[..]);
        }

        #[test]
        fn an_address_survives_the_round_trip(bits: u128) {
            let ip = Ipv6Addr::from(bits);
            prop_assert_eq!(Addr::from(Addr::from(ip).to_ip()), Addr::from(ip));
        }
    }
}

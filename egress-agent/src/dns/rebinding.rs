//! Which addresses an answer may bring into the sandbox: a name must not open what only an address line may.

use egress_common::addr::{Addr, Class};
use ipnet::IpNet;
use std::{
    collections::HashSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// The policy's `dns.answers`: which addresses beyond the public ones a name may have.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Answers {
    /// None.
    #[default]
    Public,
    /// All private ones (RFC 1918, RFC 6598, RFC 4193).
    Any,
    /// Private ones within these networks.
    Networks(Vec<IpNet>),
}

/// Addresses that no name ever opens: the host's own, the upstream resolvers, a proxy's control port.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Protected(HashSet<Addr>);

impl FromIterator<IpAddr> for Protected {
    fn from_iter<T: IntoIterator<Item = IpAddr>>(addresses: T) -> Self {
        let mut protected = Self::default();
        protected.extend(addresses);
        protected
    }
}

impl Extend<IpAddr> for Protected {
    fn extend<T: IntoIterator<Item = IpAddr>>(&mut self, addresses: T) {
        self.0.extend(addresses.into_iter().map(|address| Addr::from(address).routed()));
    }
}

/// True where an answer may carry the address. However an IPv4 address is dressed, it is judged as itself, or the whole
/// form is refused as the kernel refuses it ([`Class::Tunnel`]): 6to4, Teredo, ISATAP, v4-compatible, local NAT64.
///
/// Loopback, link-local, metadata services, multicast, reserved and protected addresses stay closed under every setting
/// of `answers`.
pub fn is_public(address: IpAddr, answers: &Answers, protected: &Protected) -> bool {
    let routed = Addr::from(address).routed();
    if routed.class() != Class::Global || protected.0.contains(&routed) {
        return false;
    }
    let address = routed.to_ip();
    match scope(address) {
        Scope::Closed => false,
        Scope::Public => true,
        Scope::Private => match answers {
            Answers::Public => false,
            Answers::Any => true,
            Answers::Networks(networks) => networks.iter().any(|network| network.contains(&address)),
        },
    }
}

enum Scope {
    Public,
    Private,
    Closed,
}

fn scope(address: IpAddr) -> Scope {
    match address {
        IpAddr::V4(v4) => match v4.octets() {
            // Metadata and platform services: Alibaba Cloud, Azure; RFC 6890 (Oracle Cloud has one in it).
            _ if v4 == Ipv4Addr::new(100, 100, 100, 200) || v4 == Ipv4Addr::new(168, 63, 129, 16) => Scope::Closed,
            [192, 0, 0, _] => Scope::Closed,
            [100, 64..=127, ..] => Scope::Private,
            _ if v4.is_private() => Scope::Private,
            _ => Scope::Public,
        },
        IpAddr::V6(v6) => match v6.segments() {
            // Metadata services: AWS (fd00:ec2::254 and the credential agents beside it), Google Cloud.
            [0xfd00, 0x0ec2, ..] => Scope::Closed,
            _ if v6 == Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254) => Scope::Closed,
            [0xfc00..=0xfdff, ..] => Scope::Private,
            // RFC 4291, 2.4: global unicast is what IANA hands out of 2000::/3. The rest holds translation (RFC 2765) and
            // discard prefixes.
            [0x2000..=0x3fff, ..] => Scope::Public,
            _ => Scope::Closed,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn public(text: &str, answers: &Answers) -> bool {
        is_public(text.parse().unwrap(), answers, &["203.0.113.53".parse().unwrap()].into_iter().collect())
    }

    fn ten() -> Answers {
        Answers::Networks(vec!["10.0.0.0/8".parse().unwrap(), "fd12::/16".parse().unwrap()])
    }

    #[test]
    fn d08_special_addresses_stay_closed_under_every_setting() {
        for text in [
            "127.0.0.1",
            "0.0.0.0",
            "0.1.2.3",
            "169.254.169.254",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "192.0.0.192",
            "100.100.100.200",
            "168.63.129.16",
            "::",
            "::1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
            "fd00:ec2::254",
            "fd00:ec2::23",
            "fd20:ce::254",
            "100::1",
            "5f00::1",
            "::ffff:0:10.0.0.1",
        ] {
            for answers in [Answers::Public, Answers::Any, ten()] {
                assert!(!public(text, &answers), "{text} {answers:?}");
            }
        }
        for text in [
            "192.0.2.1",
            "198.51.100.1",
            "203.0.113.1",
            "198.18.0.1",
            "100.63.0.1",
            "100.128.0.1",
            "172.32.0.1",
            "2001:db8::1",
            "168.63.129.17",
        ] {
            assert!(public(text, &Answers::Public), "{text}");
        }
    }

    #[test]
    fn d09_private_addresses_need_the_setting() {
        for text in ["10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1", "fd12::1", "fc00::1"] {
            assert!(!public(text, &Answers::Public), "{text}");
            assert!(public(text, &Answers::Any), "{text}");
        }
        for (text, open) in
            [("10.0.0.1", true), ("192.168.1.1", false), ("fd12::1", true), ("fd13::1", false), ("198.51.100.1", true)]
        {
            assert_eq!(public(text, &ten()), open, "{text}");
        }
    }

    #[test]
    fn d10_a_hidden_ipv4_address_is_unwrapped_or_refused() {
        for text in [
            "::ffff:169.254.169.254",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b::a00:1",
            "2002:7f00:1::",
            "2002:c633:6401::1",
            "2001::1",
            "::198.51.100.1",
            "64:ff9b:1::1",
            "2001:db8::5efe:7f00:1",
            "::ffff:10.0.0.1",
        ] {
            assert!(!public(text, &Answers::Public), "{text}");
        }
        for text in ["::ffff:198.51.100.1", "64:ff9b::c633:6401"] {
            assert!(public(text, &Answers::Public), "{text}");
        }
        assert!(public("64:ff9b::a00:1", &ten()));
    }

    #[test]
    fn d12_protected_addresses_stay_closed_in_every_form() {
        for text in ["203.0.113.53", "::ffff:203.0.113.53", "64:ff9b::cb00:7135"] {
            assert!(!public(text, &Answers::Any), "{text}");
        }
        assert!(public("203.0.113.54", &Answers::Public));
    }

    proptest! {
        #[test]
        fn what_the_kernel_never_admits_is_never_answered(bits: u128, v4: u32) {
            for address in [IpAddr::from(Ipv6Addr::from(bits)), IpAddr::from(Ipv4Addr::from(v4))] {
                if Addr::from(address).routed().class() != Class::Global {
                    prop_assert!(!is_public(address, &Answers::Any, &Protected::default()));
                }
            }
        }
    }
}

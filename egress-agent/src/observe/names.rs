//! The stable words for the kernel's numbers: they stand in events, in `status --json` and in metrics.

use egress_common::{event::Hook, packet::protocol, verdict::Reason};
use std::borrow::Cow;

/// A number of the ABI that has a word.
pub trait Named: Copy + PartialEq + 'static {
    /// Every value.
    const ALL: &'static [Self];

    /// The number that the kernel writes.
    fn number(self) -> u8;

    /// The word: lower case ASCII and underscores, never changed once released.
    fn name(self) -> &'static str;

    /// The value behind a number; `None` where this build does not know it.
    fn from_number(number: u8) -> Option<Self> {
        Self::ALL.iter().copied().find(|value| value.number() == number)
    }

    /// The value behind a word.
    fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|value| value.name() == name)
    }

    /// The word for a number, `unknown_N` where this build has none: a newer kernel half must not go unseen.
    fn name_of(number: u8) -> Cow<'static, str> {
        Self::from_number(number).map_or_else(|| format!("unknown_{number}").into(), |value| value.name().into())
    }
}

/// One table gives both directions; the `match` makes a forgotten variant a compile error.
macro_rules! named {
    ($type:ident: $($variant:ident = $name:literal),+ $(,)?) => {
        impl Named for $type {
            const ALL: &'static [Self] = &[$(Self::$variant),+];

            fn number(self) -> u8 {
                self as u8
            }

            fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }
        }
    };
}

named!(Reason:
    Permitted = "permitted",
    Loopback = "loopback",
    Own = "own",
    Listener = "listener",
    Established = "established",
    Reply = "reply",
    Neighbour = "neighbour",
    Translated = "translated",
    NoSandbox = "no_sandbox",
    NotPermitted = "not_permitted",
    PortNotPermitted = "port_not_permitted",
    Expired = "expired",
    ExpiredElsewhere = "expired_elsewhere",
    DeniedByRule = "denied_by_rule",
    Restricted = "restricted",
    Tunnel = "tunnel",
    DnsBypass = "dns_bypass",
    ForeignListener = "foreign_listener",
    LoopbackClosed = "loopback_closed",
    Icmp = "icmp",
    Protocol = "protocol",
    IpOptions = "ip_options",
    ExtensionHeader = "extension_header",
    Truncated = "truncated",
    Malformed = "malformed",
    EtherType = "ether_type",
    Source = "source",
    Inbound = "inbound",
    NeighbourForm = "neighbour_form",
    ListenerPort = "listener_port",
    Budget = "budget",
    ForeignSocket = "foreign_socket",
);

named!(Hook:
    Connect4 = "connect4",
    Connect6 = "connect6",
    Sendmsg4 = "sendmsg4",
    Sendmsg6 = "sendmsg6",
    Bind4 = "bind4",
    Bind6 = "bind6",
    SockCreate = "sock_create",
    Egress = "egress",
    Ingress = "ingress",
    Device = "device",
    DeviceIngress = "device_ingress",
    SocketCreate = "socket_create",
    SocketConnect = "socket_connect",
    SocketSendmsg = "socket_sendmsg",
    SocketRecvmsg = "socket_recvmsg",
    FileReceive = "file_receive",
    FilePermission = "file_permission",
    SocketSetsockopt = "socket_setsockopt",
    SocketGetsockopt = "socket_getsockopt",
);

/// The word for an IP protocol number (IANA): `tcp`, `udp`, `icmp`, `icmpv6`, else the number itself.
pub fn protocol_name(number: u8) -> Cow<'static, str> {
    match number {
        protocol::TCP => "tcp".into(),
        protocol::UDP => "udp".into(),
        protocol::ICMP => "icmp".into(),
        protocol::ICMPV6 => "icmpv6".into(),
        other => other.to_string().into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn check<T: Named + std::fmt::Debug>() {
        let mut words = HashSet::new();
        for &value in T::ALL {
            let name = value.name();
            assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'), "{name}");
            assert!(words.insert(name), "{name} twice");
            assert_eq!(T::from_number(value.number()), Some(value));
            assert_eq!(T::from_name(name), Some(value));
            assert_eq!(T::name_of(value.number()), name);
        }
        assert_eq!(T::from_number(u8::MAX), None);
        assert_eq!(T::from_name(""), None);
        assert_eq!(T::name_of(u8::MAX), "unknown_255");
    }

    #[test]
    fn every_number_has_one_word_and_back() {
        check::<Reason>();
        check::<Hook>();
        assert_eq!(Hook::ALL.iter().map(|hook| hook.number()).collect::<Vec<_>>(), (0..19).collect::<Vec<_>>());
    }

    #[test]
    fn protocols_have_words_or_their_number() {
        assert_eq!(protocol_name(6), "tcp");
        assert_eq!(protocol_name(17), "udp");
        assert_eq!(protocol_name(58), "icmpv6");
        assert_eq!(protocol_name(47), "47");
    }
}

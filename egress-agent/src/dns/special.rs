//! Names that have a meaning of their own, whatever the policy says.

use super::name::{Labels, Name};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What kind of special name it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Special {
    /// `localhost` and below: loopback (RFC 6761, 6.3).
    Localhost,
    /// Asked by clients that would turn to another resolver if it existed: Firefox's DoH canary, iCloud Private Relay,
    /// discovery of encrypted resolvers (RFC 9462).
    Canary,
    /// `ipv4only.arpa`: whoever finds an address for it believes in a NAT64 (RFC 7050).
    Nat64Probe,
    /// An address written as a name, to be answered from the permits.
    Reverse(IpAddr),
    /// Part of the reverse tree above an address, or no address at all.
    ReverseTree,
}

const CANARIES: [&[&str]; 4] =
    [&["use-application-dns", "net"], &["mask", "icloud", "com"], &["mask-h2", "icloud", "com"], &["resolver", "arpa"]];

/// Sorts a name; `None` for the ordinary ones.
pub(super) fn special(labels: &Labels<'_>) -> Option<Special> {
    if labels.under(&["localhost"]) {
        return Some(Special::Localhost);
    }
    if CANARIES.iter().any(|canary| labels.under(canary)) {
        return Some(Special::Canary);
    }
    if !labels.under(&["arpa"]) {
        return None;
    }
    if labels.under(&["ipv4only", "arpa"]) {
        return Some(Special::Nat64Probe);
    }
    if labels.len() == 1 {
        return Some(Special::ReverseTree);
    }
    let v4 = labels.under(&["in-addr", "arpa"]);
    (v4 || labels.under(&["ip6", "arpa"])).then(|| {
        let digits = &labels[..labels.len() - 2];
        let address = if v4 { reverse_v4(digits).map(IpAddr::V4) } else { reverse_v6(digits).map(IpAddr::V6) };
        address.map_or(Special::ReverseTree, Special::Reverse)
    })
}

fn reverse_v4(digits: &[&[u8]]) -> Option<Ipv4Addr> {
    let mut octets = <[&[u8]; 4]>::try_from(digits).ok()?;
    octets.reverse();
    let mut address = [0; 4];
    for (octet, label) in address.iter_mut().zip(octets) {
        let text = std::str::from_utf8(label).ok().filter(|text| text.bytes().all(|digit| digit.is_ascii_digit()))?;
        *octet = text.parse().ok()?;
    }
    Some(address.into())
}

fn reverse_v6(digits: &[&[u8]]) -> Option<Ipv6Addr> {
    let nibbles = <[&[u8]; 32]>::try_from(digits).ok()?;
    nibbles
        .iter()
        .rev()
        .try_fold(0_u128, |bits, label| {
            let [digit] = **label else { return None };
            Some(bits << 4 | u128::from(char::from(digit).to_digit(16)?))
        })
        .map(Ipv6Addr::from)
}

/// True for names that no public resolver serves and that clients make up: without a rule they are answered here, and a
/// denial of one says little about the sandbox.
pub(super) fn is_local(labels: &Labels<'_>) -> bool {
    labels.len() < 2
        || labels.first().is_some_and(|first| first.get(..4).is_some_and(|start| start.eq_ignore_ascii_case(b"wpad")))
        || labels.under(&["test"])
        || never_forwarded(labels)
}

/// True for names that must not leave the host (RFC 6762, 7686, 6761, 9476).
pub(super) fn never_forwarded(labels: &Labels<'_>) -> bool {
    [["local"], ["onion"], ["invalid"], ["alt"]].iter().any(|top| labels.under(top))
}

/// `localhost.`, the name of every loopback address.
pub(super) fn localhost() -> Option<Name> {
    Name::from_labels([b"localhost".as_slice()]).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(text: &str) -> Option<Special> {
        special(&text.parse::<Name>().unwrap().labels())
    }

    fn local(text: &str) -> bool {
        is_local(&text.parse::<Name>().unwrap().labels())
    }

    #[test]
    fn b14_local_names() {
        assert_eq!(kind("localhost"), Some(Special::Localhost));
        assert_eq!(kind("foo.LocalHost"), Some(Special::Localhost));
        assert_eq!(kind("localhost.example.test"), None);
        for text in [
            "wpad",
            "wpad.corp.example.test",
            "intranet",
            "printer.local",
            "x.onion",
            "a.invalid",
            "a.alt",
            "a.test",
            ".",
        ] {
            assert!(local(text), "{text}");
        }
        for text in ["example.com", "local.example.com", "xwpad.example.com"] {
            assert!(!local(text), "{text}");
        }
    }

    #[test]
    fn b15_canaries() {
        for text in ["use-application-dns.net", "mask.icloud.com", "mask-h2.icloud.com", "_dns.resolver.arpa"] {
            assert_eq!(kind(text), Some(Special::Canary), "{text}");
        }
        for text in ["application-dns.net", "icloud.com", "maskx.icloud.com", "notresolver.arpa"] {
            assert_eq!(kind(text), None, "{text}");
        }
    }

    #[test]
    fn b17_reverse_names_become_addresses() {
        let nibbles = "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.B.d.0.1.0.0.2.ip6.arpa";
        assert_eq!(kind("7.100.51.198.in-addr.arpa"), Some(Special::Reverse("198.51.100.7".parse().unwrap())));
        assert_eq!(kind(nibbles), Some(Special::Reverse("2001:db8::1".parse().unwrap())));
        for text in [
            "in-addr.arpa",
            "51.198.in-addr.arpa",
            "+1.100.51.198.in-addr.arpa",
            "256.100.51.198.in-addr.arpa",
            "x.1.2.3.4.in-addr.arpa",
            "10.0.ip6.arpa",
            "ip6.arpa",
            "arpa",
        ] {
            assert_eq!(kind(text), Some(Special::ReverseTree), "{text}");
        }
        assert_eq!(kind("7.100.51.198.in-addr.arpa.example.test"), None);
        assert_eq!(kind("ipv4only.arpa"), Some(Special::Nat64Probe));
    }
}

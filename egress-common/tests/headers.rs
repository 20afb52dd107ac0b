//! Headers that are read, and headers that are refused.

use egress_common::{
    packet::{Flow, ethertype, parse, parse_into, protocol},
    question::{Asked, Path},
    verdict::Reason,
};
use proptest::{collection::vec, prelude::*};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const SRC4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const DST4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
const SRC6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
const DST6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7);

fn v4(first: u8, fragment: u16, protocol: u8, body: &[u8]) -> Vec<u8> {
    let mut packet = vec![first, 0, 0, 0, 0, 0];
    packet.extend(fragment.to_be_bytes());
    packet.extend([64, protocol, 0, 0]);
    packet.extend(SRC4.octets());
    packet.extend(DST4.octets());
    packet.extend(body);
    packet
}

fn v6(next: u8, payload_len: u16, body: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend(payload_len.to_be_bytes());
    packet.extend([next, 64]);
    packet.extend(SRC6.octets());
    packet.extend(DST6.octets());
    packet.extend(body);
    packet
}

/// A TCP header that opens a connection from port 40000 to port 443.
fn syn() -> [u8; 20] {
    let mut header = [0; 20];
    header[..4].copy_from_slice(&[0x9c, 0x40, 0x01, 0xbb]);
    header[13] = 0x02;
    header
}

fn read4(packet: &[u8]) -> Result<Flow, Reason> {
    parse(&packet, 0, ethertype::IPV4)
}

fn read6(packet: &[u8]) -> Result<Flow, Reason> {
    parse(&packet, 0, ethertype::IPV6)
}

#[test]
fn plain_headers_are_read() {
    for (flow, src, dst) in [
        (read4(&v4(0x45, 0, protocol::TCP, &syn())), IpAddr::from(SRC4), IpAddr::from(DST4)),
        (read6(&v6(protocol::TCP, 20, &syn())), SRC6.into(), DST6.into()),
    ] {
        let flow = flow.unwrap();
        assert_eq!((flow.src, flow.dst), (src.into(), dst.into()));
        assert_eq!((flow.src_port, flow.dst_port, flow.protocol, flow.detail), (40000, 443, protocol::TCP, 0x02));
        assert!(flow.opens_connection() && !flow.tail);
    }
    let echo = read4(&v4(0x45, 0, protocol::ICMP, &[8, 0, 0, 0, 0, 0, 0, 0])).unwrap();
    assert_eq!((echo.detail, echo.dst_port), (8, 0));
}

#[test]
fn fragments_are_read_and_the_later_ones_have_no_ports() {
    assert_eq!(read4(&v4(0x45, 0x2000, protocol::UDP, &syn())).map(|flow| flow.dst_port), Ok(443));
    // The last fragment may be shorter than any transport header, or empty.
    for body in [&syn()[..], &[1], &[]] {
        let tail = read4(&v4(0x45, 1, protocol::UDP, body)).unwrap();
        assert!(tail.tail && tail.dst_port == 0, "{tail:?}");
        assert_eq!(read4(&v4(0x45, 1, 47, body)), Err(Reason::Protocol));
        assert_eq!(read4(&v4(0x46, 1, protocol::UDP, body)), Err(Reason::IpOptions));
    }
    let header = |offset: u16| [&[protocol::UDP, 0], &offset.to_be_bytes()[..], &[0, 0, 0, 1]].concat();
    let first = [header(1), syn().to_vec()].concat();
    assert_eq!(read6(&v6(44, 28, &first)).map(|flow| (flow.tail, flow.dst_port)), Ok((false, 443)));
    let later = read6(&v6(44, 8, &header(8))).unwrap();
    assert!(later.tail && later.dst_port == 0, "{later:?}");
}

#[test]
fn only_the_jumbo_header_passes_before_tcp() {
    let jumbo = [&[protocol::TCP, 0, 0xc2, 4, 0, 1, 0, 0], &syn()[..]].concat();
    assert!(read6(&v6(0, 0, &jumbo)).unwrap().opens_connection());
    assert_eq!(read6(&v6(0, 28, &jumbo)), Err(Reason::ExtensionHeader), "a length says that it is no jumbogram");
    for at in 1..4 {
        let mut other = jumbo.clone();
        other[at] ^= 1;
        assert_eq!(read6(&v6(0, 0, &other)), Err(Reason::ExtensionHeader), "byte {at}");
    }
}

#[test]
fn each_family_has_its_own_icmp() {
    assert_eq!(read4(&v4(0x45, 0, protocol::ICMPV6, &[128; 8])), Err(Reason::Protocol));
    assert_eq!(read6(&v6(protocol::ICMP, 8, &[8; 8])), Err(Reason::Protocol));
    assert!(read6(&v6(protocol::ICMPV6, 8, &[128; 8])).is_ok());
}

proptest! {
    #[test]
    fn nothing_but_plain_headers_is_a_flow(bytes in vec(any::<u8>(), 0..100), kind: u16, offset in 0_u32..20) {
        for kind in [kind, ethertype::IPV4, ethertype::IPV6] {
            let Ok(flow) = parse(&&bytes[..], offset, kind) else { continue };
            let header = &bytes[offset as usize..];
            match kind {
                ethertype::IPV4 => prop_assert_eq!(header[0], 0x45),
                ethertype::IPV6 => {
                    prop_assert_eq!(header[0] >> 4, 6);
                    prop_assert!(matches!(header[6], 0 | 6 | 17 | 44 | 58), "{}", header[6]);
                }
                _ => prop_assert!(false, "a flow of EtherType {kind:#x}"),
            }
            prop_assert!(matches!(flow.protocol, 1 | 6 | 17 | 58));
        }
    }

    #[test]
    fn options_never_pass(words in 6_u8..16, protocol: u8, body in vec(any::<u8>(), 0..80)) {
        prop_assert_eq!(read4(&v4(0x40 | words, 0, protocol, &body)), Err(Reason::IpOptions));
    }

    #[test]
    fn extension_headers_never_pass(
        next in proptest::sample::select(&[43_u8, 50, 51, 60, 135, 139, 140][..]),
        body in vec(any::<u8>(), 8..80),
    ) {
        prop_assert!(read6(&v6(next, body.len() as u16, &body)).is_err());
        // Behind a fragment header or the jumbo header no more than before it.
        let fragment = [&[next, 0, 0, 1, 0, 0, 0, 1], &body[..]].concat();
        prop_assert!(read6(&v6(44, fragment.len() as u16, &fragment)).is_err());
        let jumbo = [&[next, 0, 0xc2, 4, 0, 1, 0, 0], &body[..]].concat();
        prop_assert!(read6(&v6(0, 0, &jumbo)).is_err());
    }

    #[test]
    fn what_is_cut_short_never_passes(len in 0_usize..36) {
        let (whole4, whole6) = (v4(0x45, 0, protocol::TCP, &syn()), v6(protocol::TCP, 20, &syn()));
        prop_assert!(read4(&whole4[..len]).is_err());
        prop_assert!(read6(&whole6[..len + 20]).is_err());
    }

    #[test]
    fn the_question_is_that_of_the_flow(bytes in vec(any::<u8>(), 48..80), proto in 0_u8..60, fragment in 0_u16..3) {
        for (packet, kind) in [
            (v4(0x45, fragment, proto, &bytes), ethertype::IPV4),
            (v6(proto, 40, &bytes), ethertype::IPV6),
            (v6(44, 40, &[&[proto, 0, 0, (fragment << 3) as u8, 0, 0, 0, 1], &bytes[..]].concat()), ethertype::IPV6),
        ] {
            let mut flow = Flow::NONE;
            if let Ok(asked) = parse_into(&&packet[..], 0, kind, &mut flow) {
                prop_assert_eq!(asked, Asked::of(&flow, Path::Socket));
                prop_assert_eq!(asked.opens_connection(), flow.opens_connection());
            }
        }
    }
}

//! ARP and neighbour discovery: built field by field, then each byte changed. What a change leaves free is listed here, so
//! that nothing else can be.

#![allow(clippy::match_same_arms, reason = "each field of a frame has its line, whatever it allows")]

use egress_common::{
    addr::Addr,
    neighbour::{ETHERNET_LEN, arp, discovery, is_discovery},
    packet::{Flow, ethertype, parse},
    verdict::Reason,
};
use std::net::{Ipv4Addr, Ipv6Addr};

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const OWN4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const OWN6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
const NEAR6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2);
const FAR6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 2);
const ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
const ROUTER: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
const NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

fn ethernet(kind: u16) -> Vec<u8> {
    [&[2, 0, 0, 0, 0, 2], &MAC[..], &kind.to_be_bytes()].concat()
}

fn arp_frame(operation: u8, len: usize) -> Vec<u8> {
    let mut frame = ethernet(ethertype::ARP);
    frame.extend([0, 1, 8, 0, 6, 4, 0, operation]);
    frame.extend(MAC);
    frame.extend(OWN4.octets());
    frame.extend([0; 6]);
    frame.extend([192, 0, 2, 2]);
    frame.resize(len, 0);
    frame
}

fn judge_arp(frame: &[u8]) -> Result<Addr, Reason> {
    arp(&frame, frame.len() as u32)
}

#[test]
fn arp_passes_in_its_exact_form_alone() {
    for operation in [1, 2] {
        for len in [42, 60] {
            let frame = arp_frame(operation, len);
            assert_eq!(judge_arp(&frame), Ok(OWN4.into()));
            for at in 0..len {
                for change in [1_u8, 0x80] {
                    let mut other = frame.clone();
                    other[at] ^= change;
                    let verdict = judge_arp(&other);
                    match at {
                        // Whom it goes to, and whom it asks for, are the sender's to choose.
                        0..6 | 32..42 => assert_eq!(verdict, Ok(OWN4.into()), "byte {at}"),
                        // The kernel gives the EtherType apart from the frame.
                        12..14 => {}
                        // The sender's address is checked by whoever knows the sandbox's.
                        28..32 => assert!(verdict.is_ok_and(|sender| sender != OWN4.into()), "byte {at}"),
                        // A request may be a reply, and the other way round.
                        21 if matches!(other[21], 1 | 2) => assert!(verdict.is_ok(), "byte {at}"),
                        _ => assert_eq!(verdict, Err(Reason::NeighbourForm), "byte {at}"),
                    }
                }
            }
        }
    }
    for len in (0..70).filter(|len| ![42, 60].contains(len)) {
        let mut frame = arp_frame(1, 60);
        frame.resize(len, 0);
        assert_eq!(judge_arp(&frame), Err(Reason::NeighbourForm), "{len} bytes");
    }
}

/// A message of discovery, with an option of this type and content behind it.
fn message(kind: u8, src: Ipv6Addr, dst: Ipv6Addr, target: Option<Ipv6Addr>, option: Option<(u8, [u8; 6])>) -> Vec<u8> {
    let mut body = vec![kind, 0, 0xab, 0xcd, 0, 0, 0, 0];
    body.extend(target.map(|target| target.octets()).into_iter().flatten());
    if let Some((kind, content)) = option {
        body.extend([kind, 1]);
        body.extend(content);
    }
    let mut frame = ethernet(ethertype::IPV6);
    frame.extend([0x60, 0, 0, 0]);
    frame.extend((body.len() as u16).to_be_bytes());
    frame.extend([58, 255]);
    frame.extend(src.octets());
    frame.extend(dst.octets());
    frame.extend(body);
    frame
}

fn judge(frame: &[u8]) -> Result<Option<Addr>, Reason> {
    let flow: Flow = parse(&frame, ETHERNET_LEN, ethertype::IPV6)?;
    if !is_discovery(&flow) {
        return Err(Reason::Icmp);
    }
    discovery(&frame, &flow, frame.len() as u32)
}

/// Messages that pass, with the address that must be the sandbox's own.
fn passing() -> Vec<(Vec<u8>, Option<Ipv6Addr>)> {
    let (source, target, nonce) = (Some((1, MAC)), Some((2, MAC)), Some((14, [1, 2, 3, 4, 5, 6])));
    let nobody = Ipv6Addr::UNSPECIFIED;
    vec![
        (message(133, nobody, ROUTERS, None, None), None),
        (message(133, OWN6, ROUTERS, None, source), Some(OWN6)),
        (message(135, OWN6, NODES, Some(NEAR6), source), Some(OWN6)),
        (message(135, OWN6, NEAR6, Some(NEAR6), None), Some(OWN6)),
        (message(135, OWN6, ROUTER, Some(ROUTER), None), Some(OWN6)),
        (message(135, nobody, NODES, Some(OWN6), None), Some(OWN6)),
        (message(135, nobody, NODES, Some(OWN6), nonce), Some(OWN6)),
        (message(136, OWN6, NODES, Some(OWN6), target), Some(OWN6)),
        (message(136, OWN6, ROUTER, Some(OWN6), None), Some(OWN6)),
    ]
}

#[test]
fn discovery_passes_in_its_exact_forms_alone() {
    for (frame, own) in passing() {
        assert_eq!(judge(&frame), Ok(own.map(Addr::from)), "{frame:02x?}");
        let (kind, advertises, has_target) = (frame[54], frame[54] == 136, frame[54] != 133);
        let option = 54 + if has_target { 24 } else { 8 };
        let has_nonce = frame.get(option) == Some(&14);
        for at in 0..frame.len() {
            for change in [1_u8, 0x80] {
                let mut other = frame.clone();
                other[at] ^= change;
                let verdict = judge(&other);
                match at {
                    // The receiver's link-layer address, and where there is no option to compare with, the sender's.
                    0..6 => assert_eq!(verdict, judge(&frame)),
                    6..12 if option == frame.len() || has_nonce => assert_eq!(verdict, judge(&frame)),
                    12..14 => {}
                    // Traffic class and flow label say nothing to a neighbour's tables.
                    14..18 => assert!(verdict.is_ok() || at == 14, "byte {at}"),
                    // Another source or target is another own address, or no form at all.
                    22..38 => assert_ne!(verdict, Ok(own.map(Addr::from)), "byte {at} of type {kind}"),
                    // Another destination must stay on the link; which one is free there.
                    38..54 => {}
                    // Another type is another message.
                    54 => {}
                    56..58 => assert!(verdict.is_ok(), "checksum"),
                    58 if advertises && change == 0x80 => assert!(verdict.is_ok(), "the router flag"),
                    62..78 if has_target && kind == 135 && own == Some(OWN6) && frame[22..38] == OWN6.octets() => {
                        assert_eq!(verdict, Ok(Some(OWN6.into())), "who is asked for is free");
                    }
                    62..78 if has_target => assert_ne!(verdict, Ok(own.map(Addr::from)), "byte {at} of type {kind}"),
                    _ if has_nonce && at >= option + 2 => assert!(verdict.is_ok(), "the nonce is random"),
                    _ => assert!(verdict.is_err(), "byte {at} of type {kind}: {verdict:?}"),
                }
            }
        }
        for len in 0..frame.len() {
            assert!(judge(&frame[..len]).is_err(), "{len} bytes");
        }
        let longer = [&frame[..], &[0; 8]].concat();
        assert!(judge(&longer).is_err(), "bytes behind the message");
    }
}

#[test]
fn discovery_never_leaves_the_link() {
    for (kind, target, option) in [(133, None, None), (135, Some(FAR6), None), (136, Some(OWN6), Some((2, MAC)))] {
        let to = |dst| judge(&message(kind, OWN6, dst, target, option));
        assert_eq!(to(FAR6), Err(Reason::NeighbourForm), "type {kind}");
        assert_eq!(to(NEAR6), Ok(Some(OWN6.into())), "type {kind}");
    }
    let mut forwarded = message(135, OWN6, NODES, Some(NEAR6), None);
    forwarded[21] = 254;
    assert_eq!(judge(&forwarded), Err(Reason::NeighbourForm));
}

#[test]
fn advertisements_and_redirects_of_routers_never_pass() {
    for kind in [134, 137] {
        assert_eq!(judge(&message(kind, OWN6, NODES, Some(OWN6), None)), Err(Reason::NeighbourForm));
    }
    assert_eq!(judge(&message(136, OWN6, NODES, Some(NEAR6), None)), Err(Reason::Source));
    assert_eq!(
        judge(&message(136, OWN6, NODES, Some(OWN6), Some((2, [2, 0, 0, 0, 0, 9])))),
        Err(Reason::NeighbourForm)
    );
}

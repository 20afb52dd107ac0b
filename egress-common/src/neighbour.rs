//! ARP and neighbour discovery in the exact forms that may leave a device. Anything longer or odder carries chosen bytes
//! to a neighbour, or poisons its tables.

use crate::{
    addr::Addr,
    packet::{Bytes, Flow, protocol},
    verdict::Reason,
};

/// Length of an Ethernet header without tags.
pub const ETHERNET_LEN: u32 = 14;
/// ARP for Ethernet and IPv4 (RFC 826): 28 bytes behind the Ethernet header.
const ARP_FRAME_LEN: u32 = ETHERNET_LEN + 28;
/// Shortest Ethernet payload; hardware that pads fills the rest with zeros.
const ARP_PADDED_LEN: u32 = 60;

/// Checks an ARP frame; gives the sender's IPv4 address.
///
/// # Errors
///
/// [`Reason::NeighbourForm`] for any other form.
#[inline(always)]
pub fn arp(bytes: &impl Bytes, len: u32) -> Result<Addr, Reason> {
    if len != ARP_FRAME_LEN && len != ARP_PADDED_LEN {
        return Err(Reason::NeighbourForm);
    }
    // Two bytes in, so that the addresses fall on words: [2..6) dst mac rest, [6..12) src mac, [12..14) type, then ARP.
    let words = bytes.words::<10>(2).ok_or(Reason::Truncated)?;
    let [_, src_mac_a, src_mac_b_type, kind, sizes_op, sha_a, sha_b_spa, spa_tha, _, _] = words.map(u32::from_be);
    let src_mac = (u64::from(src_mac_a) << 16) | u64::from(src_mac_b_type >> 16);
    let sha = (u64::from(sha_a) << 16) | u64::from(sha_b_spa >> 16);
    let operation = sizes_op & 0xffff;
    // Hardware Ethernet (1), protocol IPv4, sizes 6 and 4; request (1) or reply (2).
    if kind != 0x0001_0800 || sizes_op >> 16 != 0x0604 || !(1..=2).contains(&operation) || sha != src_mac {
        return Err(Reason::NeighbourForm);
    }
    if len == ARP_PADDED_LEN {
        let [a, b, c, d] = bytes.words::<4>(ARP_FRAME_LEN).ok_or(Reason::Truncated)?;
        let [last] = bytes.words::<1>(ARP_PADDED_LEN - 4).ok_or(Reason::Truncated)?;
        if a | b | c | d | last != 0 {
            return Err(Reason::NeighbourForm);
        }
    }
    Ok(Addr::v4(((sha_b_spa << 16) | (spa_tha >> 16)).to_be()))
}

const ROUTER_SOLICITATION: u8 = 133;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
/// Length of an IPv6 header.
const IPV6_LEN: u32 = 40;
/// Where the ICMPv6 message begins.
const MESSAGE: u32 = ETHERNET_LEN + IPV6_LEN;
/// Length of a router solicitation (RFC 4861, 4.1), and of the one option that may follow any of the messages.
const RS_LEN: u32 = 8;
const OPTION_LEN: u32 = 8;
/// Length of a neighbour solicitation or advertisement (RFC 4861, 4.3 and 4.4).
const NS_LEN: u32 = 24;
/// Option types: source and target link-layer address (RFC 4861, 4.6.1), nonce of enhanced duplicate address detection
/// (RFC 7527).
const SOURCE_LINK: u32 = 1;
const TARGET_LINK: u32 = 2;
const NONCE: u32 = 14;

/// True for the types of neighbour discovery (RFC 4861, 4), redirects included.
#[inline(always)]
pub const fn is_discovery(flow: &Flow) -> bool {
    flow.protocol == protocol::ICMPV6 && !flow.tail && matches!(flow.detail, 133..=137)
}

/// Checks a neighbour discovery message ([`is_discovery`]) in a frame of `len` bytes. Gives the address that must be the
/// sandbox's own for it to pass, if there is one.
///
/// # Errors
///
/// [`Reason::NeighbourForm`] for any other form; [`Reason::Source`] for an advertisement from another address than the
/// advertised one.
#[inline(always)]
pub fn discovery(bytes: &impl Bytes, flow: &Flow, len: u32) -> Result<Option<Addr>, Reason> {
    let [_, length_next] = bytes.words::<2>(ETHERNET_LEN).ok_or(Reason::Truncated)?;
    let [head, reserved] = bytes.words::<2>(MESSAGE).ok_or(Reason::Truncated)?;
    let (length_next, head) = (u32::from_be(length_next), u32::from_be(head));
    let solicits_router = flow.detail == ROUTER_SOLICITATION;
    let advertises = flow.detail == NEIGHBOUR_ADVERTISEMENT;
    if !solicits_router && !advertises && flow.detail != NEIGHBOUR_SOLICITATION {
        return Err(Reason::NeighbourForm);
    }
    // Advertisements have three flags in front of the reserved bits.
    let flags = if advertises { 0xe000_0000_u32 } else { 0 };
    let body_len = if solicits_router { RS_LEN } else { NS_LEN };
    let payload_len = len.wrapping_sub(MESSAGE);
    let has_option = payload_len == body_len + OPTION_LEN;
    // No header between, hop limit 255 (nobody forwarded it), the length of the frame, code 0, nothing in reserved bits.
    if length_next != payload_len << 16 | u32::from(protocol::ICMPV6) << 8 | 255
        || payload_len != body_len && !has_option
        || head >> 16 & 0xff != 0
        || u32::from_be(reserved) & !flags != 0
        || !stays_on_link(flow)
    {
        return Err(Reason::NeighbourForm);
    }
    let unspecified = flow.src == Addr::UNSPECIFIED;
    if has_option && !option_is_plain(bytes, MESSAGE + body_len, advertises, unspecified)? {
        return Err(Reason::NeighbourForm);
    }
    if solicits_router {
        return Ok(if unspecified { None } else { Some(flow.src) });
    }
    if !advertises && !unspecified {
        return Ok(Some(flow.src));
    }
    // Duplicate address detection asks from the unspecified address for an own one.
    let target = bytes.words::<4>(MESSAGE + RS_LEN).map(Addr::v6).ok_or(Reason::Truncated)?;
    if advertises && target != flow.src {
        return Err(Reason::Source);
    }
    Ok(Some(target))
}

/// The link's own multicast groups and link-local addresses are not forwarded (RFC 4291, 2.5.6 and 2.7); otherwise the
/// neighbour is in the sender's /64. A hop limit of 255 alone says only that nobody forwarded it yet.
#[inline(always)]
fn stays_on_link(flow: &Flow) -> bool {
    let ([a, b, _, _], [c, d, _, _]) = (flow.dst.0, flow.src.0);
    let group = a & 0xffff_0000_u32.to_be() == 0xff02_0000_u32.to_be();
    let link_local = a & 0xffc0_0000_u32.to_be() == 0xfe80_0000_u32.to_be();
    group || link_local || (a ^ c) | (b ^ d) == 0
}

/// The one option: the sender's own link-layer address, or the nonce of a probe for duplicates.
#[inline(always)]
fn option_is_plain(bytes: &impl Bytes, at: u32, advertises: bool, unspecified: bool) -> Result<bool, Reason> {
    let option = bytes.words::<2>(at).ok_or(Reason::Truncated)?;
    // The source address begins six bytes into the frame; four more bytes bring it to where it stands in the option.
    let frame = bytes.words::<2>(4).ok_or(Reason::Truncated)?;
    let [option, option_rest, frame, frame_rest] = [option[0], option[1], frame[0], frame[1]].map(u32::from_be);
    let wanted = match (advertises, unspecified) {
        (true, _) => TARGET_LINK,
        (false, true) => NONCE,
        (false, false) => SOURCE_LINK,
    };
    let own_link = option & 0xffff == frame & 0xffff && option_rest == frame_rest;
    // Type, then length in units of eight bytes.
    Ok(option >> 16 == (wanted << 8 | 1) && (own_link || wanted == NONCE))
}

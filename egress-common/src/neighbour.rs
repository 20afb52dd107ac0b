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
/// Header and at most one link-layer option (RFC 4861, 4.1, 4.3, 4.4 and 4.6.1).
const RS_LEN: u32 = 8 + 8;
const NS_LEN: u32 = 24 + 8;

/// Checks a neighbour discovery message. `None`: the packet is none. `Some(Ok(address))`: in form, if that address (where
/// there is one) is the sandbox's own.
#[inline(always)]
pub fn solicitation(bytes: &impl Bytes, flow: &Flow, len: u32) -> Option<Result<Option<Addr>, Reason>> {
    if flow.protocol != protocol::ICMPV6 || flow.tail || !(133..=137).contains(&flow.detail) {
        return None;
    }
    Some(solicitation_form(bytes, flow, len))
}

#[inline(always)]
fn solicitation_form(bytes: &impl Bytes, flow: &Flow, len: u32) -> Result<Option<Addr>, Reason> {
    let header = bytes.words::<2>(ETHERNET_LEN).ok_or(Reason::Truncated)?;
    let hop_limit = u32::from_be(header[1]) & 0xff;
    let next = u32::from_be(header[1]) >> 8 & 0xff;
    if hop_limit != 255 || next != u32::from(protocol::ICMPV6) {
        return Err(Reason::NeighbourForm);
    }
    let body = len.saturating_sub(ETHERNET_LEN + 40);
    let unspecified = flow.src == Addr::UNSPECIFIED;
    match flow.detail {
        ROUTER_SOLICITATION if body <= RS_LEN => Ok(if unspecified { None } else { Some(flow.src) }),
        // Duplicate address detection asks from the unspecified address for an own one.
        NEIGHBOUR_SOLICITATION if body <= NS_LEN && unspecified => Ok(Some(target(bytes)?)),
        NEIGHBOUR_SOLICITATION if body <= NS_LEN => Ok(Some(flow.src)),
        NEIGHBOUR_ADVERTISEMENT if body <= NS_LEN && !unspecified => Ok(Some(target(bytes)?)),
        _ => Err(Reason::NeighbourForm),
    }
}

#[inline(always)]
fn target(bytes: &impl Bytes) -> Result<Addr, Reason> {
    bytes.words::<4>(ETHERNET_LEN + 40 + 8).map(Addr::v6).ok_or(Reason::Truncated)
}

//! Packet headers -> [`Flow`]. Anything that cannot be read whole and understood is a reason to deny.
//!
//! Only the plain forms pass: IPv4 without options, IPv6 followed by TCP, UDP, ICMPv6 or one fragment header, and the
//! 8-byte jumbogram header that the kernel itself puts before big local TCP segments (`net/ipv6/ip6_output.c`). Options and
//! routing headers carry second destinations, which no verdict has seen.

use crate::{addr::Addr, verdict::Reason};
use bytemuck::{Pod, Zeroable};

/// IP protocol numbers (IANA) that can pass.
pub mod protocol {
    /// ICMP for IPv4.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// ICMP for IPv6.
    pub const ICMPV6: u8 = 58;
}

/// EtherTypes (IEEE 802), host order.
pub mod ethertype {
    /// IPv4.
    pub const IPV4: u16 = 0x0800;
    /// ARP.
    pub const ARP: u16 = 0x0806;
    /// IPv6.
    pub const IPV6: u16 = 0x86dd;
}

/// TCP flag bits (RFC 9293, 3.1).
pub mod tcp {
    /// Opens a connection where ACK is absent.
    pub const SYN: u8 = 0x02;
    /// Acknowledges.
    pub const ACK: u8 = 0x10;
}

const HEADER_FRAGMENT: u8 = 44;
const HEADER_HOP_BY_HOP: u8 = 0;

/// A packet's bytes: a slice on the host, `bpf_skb_load_bytes` in the kernel.
pub trait Bytes {
    /// `N` words from `offset`, as they lie in memory; `None` where the packet ends before.
    fn words<const N: usize>(&self, offset: u32) -> Option<[u32; N]>;
}

impl Bytes for &[u8] {
    fn words<const N: usize>(&self, offset: u32) -> Option<[u32; N]> {
        let start = offset as usize;
        let bytes = self.get(start..start.checked_add(N * 4)?)?;
        let mut words = [0; N];
        bytemuck::cast_slice_mut(&mut words).copy_from_slice(bytes);
        Some(words)
    }
}

/// What a verdict needs to know of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Flow {
    /// Source address as written.
    pub src: Addr,
    /// Destination address as written.
    pub dst: Addr,
    /// Source port, host order; 0 where there is none.
    pub src_port: u16,
    /// Destination port, host order; 0 where there is none.
    pub dst_port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// TCP flags, or the ICMP type.
    pub detail: u8,
    /// A fragment other than the first: there are no ports.
    pub tail: bool,
}

impl Flow {
    /// The same flow, if `veil` is zero. The verifier, which cannot know that, forgets what it learned of each header on
    /// the way, and walks what follows once instead of once for every kind of packet.
    #[inline(always)]
    pub const fn veiled(self, veil: u64) -> Self {
        let zero = veil as u32;
        Self {
            src: self.src.veiled(zero),
            dst: self.dst.veiled(zero),
            src_port: self.src_port ^ zero as u16,
            dst_port: self.dst_port ^ zero as u16,
            protocol: self.protocol ^ zero as u8,
            detail: self.detail ^ zero as u8,
            tail: (self.tail as u8 ^ zero as u8) & 1 == 1,
        }
    }

    /// True for the packet that opens a TCP connection.
    #[inline(always)]
    pub const fn opens_connection(&self) -> bool {
        self.protocol == protocol::TCP && !self.tail && self.detail & (tcp::SYN | tcp::ACK) == tcp::SYN
    }
}

/// True for ICMP messages that report on a packet which they quote (RFC 792; RFC 4443, types below 128).
#[inline(always)]
pub const fn is_icmp_error(flow: &Flow) -> bool {
    if flow.tail {
        return false;
    }
    match flow.protocol {
        protocol::ICMP => matches!(flow.detail, 3 | 11 | 12),
        protocol::ICMPV6 => matches!(flow.detail, 1..=4),
        _ => false,
    }
}

/// A flow as seen from the sandbox, whichever way the packet goes: key of the flow table.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct FlowKey {
    /// Slot of the sandbox.
    pub slot: u32,
    /// The sandbox's address.
    pub local: Addr,
    /// The peer's address.
    pub remote: Addr,
    /// The sandbox's port.
    pub local_port: u16,
    /// The peer's port.
    pub remote_port: u16,
    /// IP protocol number.
    pub protocol: u32,
}

crate::abi!(FlowKey = 44);

impl FlowKey {
    /// Key of a packet that leaves the sandbox.
    #[inline(always)]
    pub const fn outgoing(slot: u32, flow: &Flow) -> Self {
        Self {
            slot,
            local: flow.src,
            remote: flow.dst,
            local_port: flow.src_port,
            remote_port: flow.dst_port,
            protocol: flow.protocol as u32,
        }
    }

    /// Key of a packet that comes to the sandbox.
    #[inline(always)]
    pub const fn incoming(slot: u32, flow: &Flow) -> Self {
        Self {
            slot,
            local: flow.dst,
            remote: flow.src,
            local_port: flow.dst_port,
            remote_port: flow.src_port,
            protocol: flow.protocol as u32,
        }
    }
}

/// Reads the network header at `offset` and the transport header behind it. `ethertype` is in host order.
///
/// # Errors
///
/// The reason for which such a packet is denied.
#[inline(always)]
pub fn parse(bytes: &impl Bytes, offset: u32, ethertype: u16) -> Result<Flow, Reason> {
    match ethertype {
        ethertype::IPV4 => parse_v4(bytes, offset),
        ethertype::IPV6 => parse_v6(bytes, offset),
        _ => Err(Reason::EtherType),
    }
}

#[inline(always)]
fn parse_v4(bytes: &impl Bytes, offset: u32) -> Result<Flow, Reason> {
    let [start, fragment, ttl_protocol, src, dst] = bytes.words::<5>(offset).ok_or(Reason::Truncated)?;
    match u32::from_be(start) >> 24 {
        0x45 => {}
        0x46..=0x4f => return Err(Reason::IpOptions),
        _ => return Err(Reason::Malformed),
    }
    let tail = u32::from_be(fragment) & 0x1fff != 0;
    let protocol = (u32::from_be(ttl_protocol) >> 16 & 0xff) as u8;
    if protocol == protocol::ICMPV6 {
        return Err(Reason::Protocol);
    }
    transport(bytes, offset + 20, Addr::v4(src), Addr::v4(dst), protocol, tail)
}

#[inline(always)]
fn parse_v6(bytes: &impl Bytes, offset: u32) -> Result<Flow, Reason> {
    let words = bytes.words::<10>(offset).ok_or(Reason::Truncated)?;
    let [start, length_next, s0, s1, s2, s3, d0, d1, d2, d3] = words;
    if u32::from_be(start) >> 28 != 6 {
        return Err(Reason::Malformed);
    }
    let length_next = u32::from_be(length_next);
    let payload_len = length_next >> 16;
    let mut next = (length_next >> 8 & 0xff) as u8;
    let mut at = offset + 40;
    let mut tail = false;
    if next == HEADER_FRAGMENT || next == HEADER_HOP_BY_HOP {
        let [first, second] = bytes.words::<2>(at).ok_or(Reason::Truncated)?;
        let first = u32::from_be(first);
        if next == HEADER_HOP_BY_HOP {
            // Next header, length 0 (= 8 bytes), then the jumbo option alone: type 0xc2, length 4 (RFC 2675).
            if payload_len != 0 || first & 0x00ff_ffff != 0x0000_c204 {
                return Err(Reason::ExtensionHeader);
            }
        } else {
            tail = first & 0xfff8 != 0;
        }
        let _ = second;
        next = (first >> 24) as u8;
        at += 8;
    }
    if next == protocol::ICMP {
        return Err(Reason::Protocol);
    }
    transport(bytes, at, Addr::v6([s0, s1, s2, s3]), Addr::v6([d0, d1, d2, d3]), next, tail)
}

#[inline(always)]
fn transport(bytes: &impl Bytes, at: u32, src: Addr, dst: Addr, protocol: u8, tail: bool) -> Result<Flow, Reason> {
    let mut flow = Flow { src, dst, src_port: 0, dst_port: 0, protocol, detail: 0, tail };
    match protocol {
        protocol::TCP | protocol::UDP | protocol::ICMP | protocol::ICMPV6 => {}
        0 | 43 | 44 | 50 | 51 | 60 | 135 | 139 | 140 => return Err(Reason::ExtensionHeader),
        _ => return Err(Reason::Protocol),
    }
    if tail {
        return Ok(flow);
    }
    // Eight bytes are the shortest of the three headers.
    let [first, _] = bytes.words::<2>(at).ok_or(Reason::Truncated)?;
    let first = u32::from_be(first);
    match protocol {
        protocol::TCP | protocol::UDP => {
            flow.src_port = (first >> 16) as u16;
            flow.dst_port = first as u16;
            if protocol == protocol::TCP {
                let [_, flags] = bytes.words::<2>(at + 8).ok_or(Reason::Truncated)?;
                flow.detail = (u32::from_be(flags) >> 16) as u8;
            }
        }
        _ => flow.detail = (first >> 24) as u8,
    }
    Ok(flow)
}

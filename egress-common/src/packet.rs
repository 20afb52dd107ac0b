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
/// Of a hop-by-hop header, behind the next header: length 0 (= 8 bytes), then the jumbo option, type 0xc2, length 4
/// (RFC 2675), which leaves no room for another.
const JUMBO: u32 = 0x0000_c204;

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
///
/// On eight bytes, so that BPF moves each half of an address at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C, align(8))]
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
    /// No flow: what stands in for the headers of a packet that could not be read.
    pub const NONE: Self = Self {
        src: Addr::UNSPECIFIED,
        dst: Addr::UNSPECIFIED,
        src_port: 0,
        dst_port: 0,
        protocol: 0,
        detail: 0,
        tail: false,
    };

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

/// What the network header says.
struct Network {
    src: Addr,
    dst: Addr,
    /// The transport protocol.
    protocol: u8,
    /// That of the other family's ICMP, which this family does not carry.
    foreign: u8,
    /// Fragment offset, in any unit: 0 for whole packets and first fragments.
    fragment: u32,
    /// Where the transport header begins.
    at: u32,
}

/// Reads the network header at `offset` and the transport header behind it. `ethertype` is in host order.
///
/// # Errors
///
/// The reason for which such a packet is denied.
#[inline(always)]
pub fn parse(bytes: &impl Bytes, offset: u32, ethertype: u16) -> Result<Flow, Reason> {
    let network = match ethertype {
        ethertype::IPV4 => network_v4(bytes, offset)?,
        ethertype::IPV6 => network_v6(bytes, offset)?,
        _ => return Err(Reason::EtherType),
    };
    transport(bytes, &network)
}

#[inline(always)]
fn network_v4(bytes: &impl Bytes, offset: u32) -> Result<Network, Reason> {
    let [start, fragment, ttl_protocol, src, dst] = bytes.words::<5>(offset).ok_or(Reason::Truncated)?;
    let start = u32::from_be(start) >> 24;
    if start != 0x45 {
        return Err(if start >> 4 == 4 && start & 15 > 5 { Reason::IpOptions } else { Reason::Malformed });
    }
    Ok(Network {
        src: Addr::v4(src),
        dst: Addr::v4(dst),
        protocol: (u32::from_be(ttl_protocol) >> 16) as u8,
        foreign: protocol::ICMPV6,
        fragment: u32::from_be(fragment) & 0x1fff,
        at: offset + 20,
    })
}

#[inline(always)]
fn network_v6(bytes: &impl Bytes, offset: u32) -> Result<Network, Reason> {
    let words = bytes.words::<10>(offset).ok_or(Reason::Truncated)?;
    let [start, length_next, s0, s1, s2, s3, d0, d1, d2, d3] = words;
    if u32::from_be(start) >> 28 != 6 {
        return Err(Reason::Malformed);
    }
    let length_next = u32::from_be(length_next);
    let next = (length_next >> 8) as u8;
    let mut network = Network {
        src: Addr::v6([s0, s1, s2, s3]),
        dst: Addr::v6([d0, d1, d2, d3]),
        protocol: next,
        foreign: protocol::ICMP,
        fragment: 0,
        at: offset + 40,
    };
    if next == HEADER_FRAGMENT || next == HEADER_HOP_BY_HOP {
        let [first, _] = bytes.words::<2>(network.at).ok_or(Reason::Truncated)?;
        let first = u32::from_be(first);
        if next == HEADER_FRAGMENT {
            network.fragment = first & 0xfff8;
        } else if length_next >> 16 != 0 || first & 0x00ff_ffff != JUMBO {
            return Err(Reason::ExtensionHeader);
        }
        network.protocol = (first >> 24) as u8;
        network.at += 8;
    }
    Ok(network)
}

#[inline(always)]
fn transport(bytes: &impl Bytes, network: &Network) -> Result<Flow, Reason> {
    let &Network { src, dst, protocol, foreign, fragment, at } = network;
    let mut flow = Flow { src, dst, protocol, tail: fragment != 0, ..Flow::NONE };
    let has_ports = protocol == protocol::TCP || protocol == protocol::UDP;
    let is_icmp = protocol == protocol::ICMP || protocol == protocol::ICMPV6;
    if !has_ports && !is_icmp || protocol == foreign {
        return Err(if is_extension(protocol) { Reason::ExtensionHeader } else { Reason::Protocol });
    }
    if flow.tail {
        return Ok(flow);
    }
    // Eight bytes are the shortest of the three headers.
    let [first, _] = bytes.words::<2>(at).ok_or(Reason::Truncated)?;
    let first = u32::from_be(first);
    if has_ports {
        flow.src_port = (first >> 16) as u16;
        flow.dst_port = first as u16;
        if protocol == protocol::TCP {
            let [_, flags] = bytes.words::<2>(at + 8).ok_or(Reason::Truncated)?;
            flow.detail = (u32::from_be(flags) >> 16) as u8;
        }
    } else {
        flow.detail = (first >> 24) as u8;
    }
    Ok(flow)
}

/// IPv6 extension headers, and ESP and AH (IANA): something follows that was not read.
#[inline(always)]
const fn is_extension(protocol: u8) -> bool {
    matches!(protocol, 0 | 43 | 44 | 50 | 51 | 60 | 135 | 139 | 140)
}

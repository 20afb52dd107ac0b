//! Packet headers -> [`Flow`]. Anything that cannot be read whole and understood is a reason to deny.
//!
//! Only the plain forms pass: IPv4 without options, IPv6 followed by TCP, UDP, ICMPv6 or one fragment header, and the
//! 8-byte jumbogram header that the kernel itself puts before big local TCP segments (`net/ipv6/ip6_output.c`). Options and
//! routing headers carry second destinations, which no verdict has seen.

use crate::{addr::Addr, question::Asked, verdict::Reason};
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

const HEADER_FRAGMENT: u32 = 44;
const HEADER_HOP_BY_HOP: u32 = 0;
/// Of a hop-by-hop header, behind the next header: length 0 (= 8 bytes), then the jumbo option, type 0xc2, length 4
/// (RFC 2675), which leaves no room for another.
const JUMBO: u64 = 0x0000_c204;

/// A packet's bytes: a slice on the host, `bpf_skb_load_bytes` in the kernel.
pub trait Bytes {
    /// `N` words from `offset`, as they lie in memory; `None` where the packet ends before.
    fn words<const N: usize>(&self, offset: u32) -> Option<[u32; N]>;

    /// `N` double words likewise.
    fn doubles<const N: usize>(&self, offset: u32) -> Option<[u64; N]>;
}

impl Bytes for &[u8] {
    fn words<const N: usize>(&self, offset: u32) -> Option<[u32; N]> {
        let mut words = [0; N];
        copy(self, offset, bytemuck::cast_slice_mut(&mut words)).then_some(words)
    }

    fn doubles<const N: usize>(&self, offset: u32) -> Option<[u64; N]> {
        let mut doubles = [0; N];
        copy(self, offset, bytemuck::cast_slice_mut(&mut doubles)).then_some(doubles)
    }
}

fn copy(bytes: &[u8], offset: u32, to: &mut [u8]) -> bool {
    let from = bytes.get(offset as usize..).and_then(|rest| rest.get(..to.len()));
    from.map(|from| to.copy_from_slice(from)).is_some()
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

/// Reads the network header at `offset` and the transport header behind it. `ethertype` is in host order.
///
/// # Errors
///
/// The reason for which such a packet is denied.
#[inline(always)]
pub fn parse(bytes: &impl Bytes, offset: u32, ethertype: u16) -> Result<Flow, Reason> {
    let mut flow = Flow::NONE;
    parse_into(bytes, offset, ethertype, &mut flow).map(|_asked| flow)
}

/// [`parse`] into a flow that was [`Flow::NONE`], and what it asks ([`Asked::of`]) of a [`crate::question::Path::Socket`].
/// What could be read is in the flow on an error too, for the report.
#[inline(always)]
pub fn parse_into(bytes: &impl Bytes, offset: u32, ethertype: u16, flow: &mut Flow) -> Result<Asked, Reason> {
    let transport = match ethertype {
        ethertype::IPV4 => {
            // One read for both headers, because a call of the kernel's costs more than all the rest of this.
            let Some([a, b, c, d, e, f, g]) = bytes.words::<7>(offset) else {
                return short_v4(bytes.words::<5>(offset).ok_or(Reason::Truncated)?, flow);
            };
            network_v4([a, b, c, d, e], offset, host_of(f, g), flow)?
        }
        ethertype::IPV6 => network_v6(bytes, offset, flow)?,
        _ => return Err(Reason::EtherType),
    };
    transport.read(bytes, flow)
}

/// What the network header says of the transport header.
struct Transport {
    /// IP protocol number.
    protocol: u32,
    /// The ICMP of this family, the one that it carries.
    icmp: u32,
    /// Fragment offset, in any unit: 0 for whole packets and first fragments.
    fragment: u32,
    /// Where it begins.
    at: u32,
    /// Its first eight bytes, the shortest header of all.
    first: u64,
}

#[inline(always)]
fn network_v4(header: [u32; 5], offset: u32, first: u64, flow: &mut Flow) -> Result<Transport, Reason> {
    let [start, fragment, ttl_protocol, src, dst] = header;
    let start = u32::from_be(start) >> 24;
    flow.src = Addr::v4(src);
    flow.dst = Addr::v4(dst);
    if start != 0x45 {
        return Err(if matches!(start, 0x46..=0x4f) { Reason::IpOptions } else { Reason::Malformed });
    }
    Ok(Transport {
        protocol: u32::from_be(ttl_protocol) >> 16 & 0xff,
        icmp: protocol::ICMP.into(),
        fragment: u32::from_be(fragment) & 0x1fff,
        at: offset + 20,
        first,
    })
}

/// Less than eight bytes behind the header: only the last fragment of a packet may be so short.
#[inline(always)]
fn short_v4(header: [u32; 5], flow: &mut Flow) -> Result<Asked, Reason> {
    let Transport { protocol, fragment, .. } = network_v4(header, 0, 0, flow)?;
    if fragment == 0 {
        return Err(Reason::Truncated);
    }
    flow.protocol = protocol as u8;
    flow.tail = true;
    match flow.protocol {
        protocol::TCP | protocol::UDP | protocol::ICMP => Ok(Asked::of_tail(flow.protocol)),
        _ => Err(Reason::Protocol),
    }
}

#[inline(always)]
fn network_v6(bytes: &impl Bytes, offset: u32, flow: &mut Flow) -> Result<Transport, Reason> {
    let words = bytes.doubles::<6>(offset).ok_or(Reason::Truncated)?;
    let [start, src_high, src_low, dst_high, dst_low, behind] = words;
    let (start, behind) = (u64::from_be(start), u64::from_be(behind));
    flow.src = Addr::unpack(src_high, src_low);
    flow.dst = Addr::unpack(dst_high, dst_low);
    if start >> 60 != 6 {
        return Err(Reason::Malformed);
    }
    let next = (start >> 8 & 0xff) as u32;
    let mut transport =
        Transport { protocol: next, icmp: protocol::ICMPV6.into(), fragment: 0, at: offset + 40, first: behind };
    if next == HEADER_FRAGMENT || next == HEADER_HOP_BY_HOP {
        transport.protocol = (behind >> 56) as u32;
        transport.at += 8;
        if next == HEADER_FRAGMENT {
            transport.fragment = (behind >> 32 & 0xfff8) as u32;
        } else if start >> 16 & 0xffff != 0 || behind >> 32 & 0x00ff_ffff != JUMBO {
            return Err(Reason::ExtensionHeader);
        }
        if transport.fragment == 0 {
            let [first] = bytes.doubles::<1>(transport.at).ok_or(Reason::Truncated)?;
            transport.first = u64::from_be(first);
        }
    }
    Ok(transport)
}

impl Transport {
    #[inline(always)]
    fn read(self, bytes: &impl Bytes, flow: &mut Flow) -> Result<Asked, Reason> {
        let Self { protocol, icmp, fragment, at, first } = self;
        flow.protocol = protocol as u8;
        if protocol != u32::from(protocol::TCP) && protocol != u32::from(protocol::UDP) {
            if protocol != icmp {
                return Err(if is_extension(protocol) { Reason::ExtensionHeader } else { Reason::Protocol });
            }
            if fragment != 0 {
                flow.tail = true;
                return Ok(Asked::of_tail(protocol::ICMP));
            }
            flow.detail = (first >> 56) as u8;
            return Ok(Asked::of_icmp(flow.detail));
        }
        if fragment != 0 {
            flow.tail = true;
            return Ok(Asked::of_tail(protocol as u8));
        }
        flow.src_port = (first >> 48) as u16;
        flow.dst_port = (first >> 32) as u16;
        let asked = Asked::of_port(protocol as u8, flow.dst_port);
        if protocol == u32::from(protocol::UDP) {
            return Ok(asked);
        }
        let [flags] = bytes.doubles::<1>(at + 8).ok_or(Reason::Truncated)?;
        flow.detail = (u64::from_be(flags) >> 16) as u8;
        Ok(asked.if_opening(flow.opens_connection()))
    }
}

/// Eight bytes from the first to the last, as one number.
#[inline(always)]
const fn host_of(first: u32, second: u32) -> u64 {
    (u32::from_be(first) as u64) << 32 | u32::from_be(second) as u64
}

/// IPv6 routing, hop-by-hop, fragment and destination headers, ESP and AH (IANA): something follows that was not read.
#[inline(always)]
const fn is_extension(protocol: u32) -> bool {
    const SET: u64 = 1 | 1 << 43 | 1 << 44 | 1 << 50 | 1 << 51 | 1 << 60;
    protocol < 64 && SET >> protocol & 1 == 1
}

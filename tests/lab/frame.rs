//! Ethernet frames as the sink's wire carries them, read without help from the code under test.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// How much of a frame's payload is kept: enough for a request line, a token and a TLS server name.
pub(crate) const KEPT: usize = 768;

/// One frame that arrived at the sink.
#[derive(Clone, PartialEq, Eq)]
pub struct Frame {
    /// EtherType, host order (IEEE 802.3).
    pub ethertype: u16,
    /// Source address; unspecified where the frame is not IP.
    pub src: IpAddr,
    /// Destination address; unspecified where the frame is not IP.
    pub dst: IpAddr,
    /// IP protocol number (IANA), after IPv6 hop-by-hop options.
    pub protocol: u8,
    /// Source port of TCP, UDP, UDP-Lite, SCTP or DCCP, or ICMP type; 0 where there is none.
    pub src_port: u16,
    /// Destination port of these; 0 where there is none.
    pub dst_port: u16,
    /// TCP flags, low byte; 0 for others.
    pub tcp_flags: u8,
    /// Length on the wire, link header included; more than the device's MTU where segmentation was left to the device.
    pub len: usize,
    /// The first bytes behind the transport header, and with that of SCTP and DCCP; everything behind the link header where there is none, as in a fragment.
    pub payload: Vec<u8>,
}

const TCP: u8 = 6;
const UDP: u8 = 17;
const DCCP: u8 = 33;
const ICMP6: u8 = 58;
const SCTP: u8 = 132;
const UDP_LITE: u8 = 136;

impl Frame {
    /// Reads a frame; `len` is its length on the wire. Nothing is refused: what is not understood keeps its zeros.
    pub fn parse(bytes: &[u8], len: usize) -> Self {
        let mut frame = Self {
            ethertype: be16(bytes, 12),
            src: Ipv4Addr::UNSPECIFIED.into(),
            dst: Ipv4Addr::UNSPECIFIED.into(),
            protocol: 0,
            src_port: 0,
            dst_port: 0,
            tcp_flags: 0,
            len,
            payload: Vec::new(),
        };
        let packet = bytes.get(14..).unwrap_or_default();
        let transport = match frame.ethertype {
            0x0800 => frame.ipv4(packet),
            0x86dd => frame.ipv6(packet),
            _ => packet,
        };
        // The rest of a packet in pieces has no transport header.
        let payload = if transport.is_empty() { packet } else { frame.transport(transport) };
        frame.payload = payload[..payload.len().min(KEPT)].to_vec();
        frame
    }

    fn ipv4<'p>(&mut self, packet: &'p [u8]) -> &'p [u8] {
        self.protocol = byte(packet, 9);
        self.src = Ipv4Addr::from(field::<4>(packet, 12)).into();
        self.dst = Ipv4Addr::from(field::<4>(packet, 16)).into();
        // The low 13 bits are the fragment's offset.
        let first = be16(packet, 6).trailing_zeros() >= 13;
        let end = usize::from(be16(packet, 2)).clamp(20, packet.len().max(20));
        let header = usize::from(byte(packet, 0) & 0xf) * 4;
        if first { packet.get(header..end.min(packet.len())).unwrap_or_default() } else { &[] }
    }

    fn ipv6<'p>(&mut self, packet: &'p [u8]) -> &'p [u8] {
        self.protocol = byte(packet, 6);
        self.src = Ipv6Addr::from(field::<16>(packet, 8)).into();
        self.dst = Ipv6Addr::from(field::<16>(packet, 24)).into();
        let mut rest = packet.get(40..).unwrap_or_default();
        if self.protocol == 0 {
            self.protocol = byte(rest, 0);
            rest = rest.get(8 + 8 * usize::from(byte(rest, 1))..).unwrap_or_default();
        }
        rest
    }

    fn transport<'p>(&mut self, rest: &'p [u8]) -> &'p [u8] {
        let header = match self.protocol {
            TCP => {
                self.tcp_flags = byte(rest, 13);
                usize::from(byte(rest, 12) >> 4) * 4
            }
            UDP | UDP_LITE => 8,
            SCTP | DCCP => 0,
            1 | ICMP6 => {
                self.src_port = u16::from(byte(rest, 0));
                return rest;
            }
            _ => return rest,
        };
        self.src_port = be16(rest, 0);
        self.dst_port = be16(rest, 2);
        rest.get(header..).unwrap_or_default()
    }

    /// True for ARP, neighbour and router discovery and multicast listener reports: the link's own housekeeping.
    pub fn is_housekeeping(&self) -> bool {
        self.ethertype == 0x0806
            || self.protocol == ICMP6 && matches!(self.src_port, 130..=137 | 143) && self.ethertype == 0x86dd
    }

    /// True for UDP to `port`.
    pub fn is_udp(&self, port: u16) -> bool {
        self.protocol == UDP && self.dst_port == port
    }

    /// True for TCP to `port`.
    pub fn is_tcp(&self, port: u16) -> bool {
        self.protocol == TCP && self.dst_port == port
    }

    /// True for the first segment of a TCP connection: SYN without ACK.
    pub fn is_syn(&self) -> bool {
        self.protocol == TCP && self.tcp_flags & 0x12 == 0x02
    }

    /// True where the payload holds `token`.
    pub fn carries(&self, token: &str) -> bool {
        self.payload.windows(token.len().max(1)).any(|window| window == token.as_bytes())
    }
}

/// One line, also in the lists that failed assertions print.
impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { ethertype, src, dst, protocol, src_port, dst_port, tcp_flags, len, payload } = self;
        let text = String::from_utf8_lossy(&payload[..payload.len().min(40)]).escape_debug().to_string();
        write!(
            f,
            "{ethertype:04x} {src}#{src_port} > {dst}#{dst_port} proto {protocol} flags {tcp_flags:02x} len {len} {text}"
        )
    }
}

fn byte(bytes: &[u8], at: usize) -> u8 {
    bytes.get(at).copied().unwrap_or_default()
}

fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([byte(bytes, at), byte(bytes, at + 1)])
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    std::array::from_fn(|index| byte(bytes, at + index))
}

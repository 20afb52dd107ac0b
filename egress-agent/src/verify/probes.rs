//! The ways out that are tried, each by one call of a process that may have been cloned from one with many threads: nothing
//! here allocates or takes a lock.

use nix::{
    errno::Errno,
    sys::socket::{MsgFlags, SockaddrStorage, connect, sendto},
};
use std::{
    ffi::c_int,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6},
    os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
};

/// Where probes aim. Nothing here is permitted, except for `permitted`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Targets {
    /// A documentation address.
    pub(super) v4: Ipv4Addr,
    /// Likewise.
    pub(super) v6: Ipv6Addr,
    /// Source address of frames made by hand.
    pub(super) own: Ipv4Addr,
    /// The device that leads to the sink.
    pub(super) ifindex: u32,
    /// What the policy permits, and whether by UDP.
    pub(super) permitted: Option<(SocketAddr, bool)>,
}

/// At what a probe aims; where the policy permits that, it shows nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Aim {
    /// [`Targets::v4`].
    V4,
    /// [`Targets::v6`].
    V6,
    /// An address that is always the same.
    Fixed(std::net::IpAddr),
    /// [`Targets::permitted`].
    Permitted,
}

/// One way out.
#[derive(Debug)]
pub(super) struct Probe {
    /// Its name, stable.
    pub(super) technique: &'static str,
    pub(super) aim: Aim,
    /// Why the cgroup's hooks need not see it; a device's must.
    pub(super) beneath: Option<Beneath>,
    pub(super) run: fn(&Targets, BorrowedFd<'_>) -> Result<(), Errno>,
}

impl Probe {
    const fn new(technique: &'static str, aim: Aim, run: fn(&Targets, BorrowedFd<'_>) -> Result<(), Errno>) -> Self {
        Self { technique, aim, beneath: None, run }
    }

    const fn beneath(self, why: Beneath) -> Self {
        Self { beneath: Some(why), ..self }
    }
}

/// What hooks of a cgroup do not see: those of the calling task do, where a kernel has them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Beneath {
    /// A socket from outside.
    Foreign,
    /// A packet socket.
    Raw,
}

impl Beneath {
    pub(super) const fn why(self) -> &'static str {
        match self {
            Self::Foreign => {
                "L1 is for code without sockets from outside, which are listed below; a device of its own judges it (L2)"
            }
            Self::Raw => "L1 is for code without CAP_NET_RAW; a device of its own judges it (L2)",
        }
    }
}

const WEB: u16 = 443;
const DNS: u16 = 53;
const MDNS: u16 = 5353;
const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
const GROUP_V4: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 251);
const GROUP_V6: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0xfb);
/// What is sent, and no more: a probe carries nothing out.
const WORD: &[u8] = b"egressd verify";
/// Larger than any packet of the device: it leaves in three.
const LARGE: [u8; 4000] = [0; 4000];
/// RFC 1035, 4.1: `verify.test`, type A.
const QUERY: &[u8] = b"\xe9\x53\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x06verify\x04test\x00\x00\x01\x00\x01";
const UDP: c_int = libc::IPPROTO_UDP;

/// All of them. The order is that of the table.
pub(super) const PROBES: &[Probe] = &[
    Probe::new("permitted", Aim::Permitted, permitted),
    Probe::new("tcp_v4", Aim::V4, |to, _| tcp(v4(to, WEB), 0)),
    Probe::new("tcp_v6", Aim::V6, |to, _| tcp(v6(to, WEB), 0)),
    Probe::new("tcp_mapped", Aim::V4, |to, _| tcp(mapped(to), 0)),
    Probe::new("tcp_fast_open", Aim::V4, fast_open),
    Probe::new("mptcp", Aim::V4, |to, _| tcp(v4(to, WEB), libc::IPPROTO_MPTCP)),
    Probe::new("udp_v4", Aim::V4, |to, _| udp(v4(to, WEB), WORD)),
    Probe::new("udp_v6", Aim::V6, |to, _| udp(v6(to, WEB), WORD)),
    Probe::new("udp_mapped", Aim::V4, |to, _| udp(mapped(to), WORD)),
    Probe::new("udp_connected_v4", Aim::V4, |to, _| udp_connected(v4(to, WEB))),
    Probe::new("udp_connected_v6", Aim::V6, |to, _| udp_connected(v6(to, WEB))),
    Probe::new("dns_udp_v4", Aim::V4, |to, _| udp(v4(to, DNS), QUERY)),
    Probe::new("dns_udp_v6", Aim::V6, |to, _| udp(v6(to, DNS), QUERY)),
    Probe::new("dns_tcp_v4", Aim::V4, |to, _| tcp(v4(to, DNS), 0)),
    Probe::new("dns_tcp_v6", Aim::V6, |to, _| tcp(v6(to, DNS), 0)),
    Probe::new("metadata", Aim::Fixed(std::net::IpAddr::V4(METADATA)), |_, _| tcp((METADATA, 80).into(), 0)),
    Probe::new("multicast_v4", Aim::Fixed(std::net::IpAddr::V4(GROUP_V4)), |_, _| udp((GROUP_V4, MDNS).into(), WORD)),
    Probe::new("multicast_v6", Aim::Fixed(std::net::IpAddr::V6(GROUP_V6)), group_v6),
    Probe::new("broadcast", Aim::Fixed(std::net::IpAddr::V4(Ipv4Addr::BROADCAST)), broadcast),
    Probe::new("icmp_v4", Aim::V4, |to, _| echo(v4(to, 0), libc::IPPROTO_ICMP, 8)),
    Probe::new("icmp_v6", Aim::V6, |to, _| echo(v6(to, 0), libc::IPPROTO_ICMPV6, 128)),
    Probe::new("raw_v4", Aim::V4, |to, _| raw(v4(to, 0))),
    Probe::new("raw_v6", Aim::V6, |to, _| raw(v6(to, 0))),
    Probe::new("source_route", Aim::V4, source_route),
    Probe::new("destination_header", Aim::V6, destination_header),
    Probe::new("fragments", Aim::V4, |to, _| udp(v4(to, WEB), &LARGE)),
    Probe::new("loopback_led_out", Aim::V4, |_, _| udp((crate::datapath::ground::LED_OUT, WEB).into(), WORD)),
    Probe::new("socket_from_outside", Aim::V4, |to, foreign| send(foreign.as_raw_fd(), WORD, v4(to, WEB), 0))
        .beneath(Beneath::Foreign),
    Probe::new("packet_socket", Aim::V4, |to, _| packet(&datagram(to), to.ifindex)).beneath(Beneath::Raw),
    Probe::new("odd_ethertype", Aim::V4, |to, _| packet(&oddity(), to.ifindex)).beneath(Beneath::Raw),
];

fn v4(to: &Targets, port: u16) -> SocketAddr {
    (to.v4, port).into()
}

fn v6(to: &Targets, port: u16) -> SocketAddr {
    (to.v6, port).into()
}

fn mapped(to: &Targets) -> SocketAddr {
    (to.v4.to_ipv6_mapped(), WEB).into()
}

fn permitted(to: &Targets, _: BorrowedFd<'_>) -> Result<(), Errno> {
    match to.permitted {
        Some((there, true)) => udp(there, WORD),
        Some((there, false)) => tcp(there, 0),
        None => Err(Errno::EDESTADDRREQ),
    }
}

fn tcp(to: SocketAddr, protocol: c_int) -> Result<(), Errno> {
    let socket = open(family(to), libc::SOCK_STREAM, protocol)?;
    connect(socket.as_raw_fd(), &SockaddrStorage::from(to))
}

fn fast_open(to: &Targets, _: BorrowedFd<'_>) -> Result<(), Errno> {
    let socket = open(libc::AF_INET, libc::SOCK_STREAM, 0)?;
    send(socket.as_raw_fd(), WORD, v4(to, WEB), libc::MSG_FASTOPEN)
}

fn udp(to: SocketAddr, payload: &[u8]) -> Result<(), Errno> {
    let socket = open(family(to), libc::SOCK_DGRAM, UDP)?;
    send(socket.as_raw_fd(), payload, to, 0)
}

fn udp_connected(to: SocketAddr) -> Result<(), Errno> {
    let socket = open(family(to), libc::SOCK_DGRAM, UDP)?;
    connect(socket.as_raw_fd(), &SockaddrStorage::from(to))?;
    nix::unistd::write(&socket, WORD).map(drop)
}

fn group_v6(to: &Targets, _: BorrowedFd<'_>) -> Result<(), Errno> {
    udp(SocketAddrV6::new(GROUP_V6, MDNS, 0, to.ifindex).into(), WORD)
}

fn broadcast(_: &Targets, _: BorrowedFd<'_>) -> Result<(), Errno> {
    let socket = open(libc::AF_INET, libc::SOCK_DGRAM, UDP)?;
    option(&socket, libc::SOL_SOCKET, libc::SO_BROADCAST, &1_u32.to_ne_bytes())?;
    send(socket.as_raw_fd(), WORD, (Ipv4Addr::BROADCAST, WEB).into(), 0)
}

/// An echo request by a ping socket: type, code, checksum, identifier, sequence number; the kernel fills in what it knows.
fn echo(to: SocketAddr, protocol: c_int, kind: u8) -> Result<(), Errno> {
    let socket = open(family(to), libc::SOCK_DGRAM, protocol)?;
    send(socket.as_raw_fd(), &[kind, 0, 0, 0, 0, 0, 0, 1], to, 0)
}

/// A UDP header of our own, to and from port 443, without a checksum.
fn raw(to: SocketAddr) -> Result<(), Errno> {
    let socket = open(family(to), libc::SOCK_RAW, UDP)?;
    send(socket.as_raw_fd(), &[1, 187, 1, 187, 0, 8, 0, 0], to, 0)
}

/// A socket call that names one address, and a packet that goes to another first (RFC 791, loose source routing).
fn source_route(to: &Targets, _: BorrowedFd<'_>) -> Result<(), Errno> {
    const LOOSE: u8 = 131;
    let named = match to.permitted {
        Some((there @ SocketAddr::V4(_), true)) => there,
        _ => v4(to, WEB),
    };
    let [a, b, c, d] = to.v4.octets();
    let socket = open(libc::AF_INET, libc::SOCK_DGRAM, UDP)?;
    option(&socket, libc::IPPROTO_IP, libc::IP_OPTIONS, &[LOOSE, 7, 4, a, b, c, d, 0])?;
    send(socket.as_raw_fd(), WORD, named, 0)
}

/// RFC 8200, 4.6: eight bytes, of which four are padding.
fn destination_header(to: &Targets, _: BorrowedFd<'_>) -> Result<(), Errno> {
    let socket = open(libc::AF_INET6, libc::SOCK_DGRAM, UDP)?;
    option(&socket, libc::IPPROTO_IPV6, libc::IPV6_DSTOPTS, &[0, 0, 1, 4, 0, 0, 0, 0])?;
    send(socket.as_raw_fd(), WORD, v6(to, WEB), 0)
}

const ETHERNET: usize = 14;

fn datagram(to: &Targets) -> [u8; ETHERNET + 28] {
    let mut frame = [0; ETHERNET + 28];
    frame[..ETHERNET].copy_from_slice(&[2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0]);
    let header = &mut frame[ETHERNET..];
    // Version and length, total length, hop limit, UDP; then both addresses and both ports, and the length of the datagram.
    header[..10].copy_from_slice(&[0x45, 0, 0, 28, 0, 0, 0, 0, 64, UDP as u8]);
    header[12..16].copy_from_slice(&to.own.octets());
    header[16..20].copy_from_slice(&to.v4.octets());
    header[20..26].copy_from_slice(&[1, 187, 1, 187, 0, 8]);
    let sum: u32 = header[..20].chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    let folded = !((sum & 0xffff) + (sum >> 16)) as u16;
    header[10..12].copy_from_slice(&folded.to_be_bytes());
    frame
}

/// Local experimental ethertype (IEEE 802): no address, no port, only bytes.
fn oddity() -> [u8; ETHERNET + 28] {
    let mut frame = [0; ETHERNET + 28];
    frame[..ETHERNET].copy_from_slice(&[2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x88, 0xb5]);
    frame
}

fn packet(frame: &[u8], ifindex: u32) -> Result<(), Errno> {
    let socket = open(libc::AF_PACKET, libc::SOCK_RAW, 0)?;
    // SAFETY: plain integers and bytes, for which zero is a value.
    let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    to.sll_family = libc::AF_PACKET as u16;
    to.sll_ifindex = ifindex.cast_signed();
    let (address, size) = ((&raw const to).cast(), size_of_val(&to) as libc::socklen_t);
    // SAFETY: both buffers are alive through the call, and their lengths are those given.
    let sent = unsafe { libc::sendto(socket.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0, address, size) };
    Errno::result(sent).map(drop)
}

fn family(to: SocketAddr) -> c_int {
    if to.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }
}

fn open(family: c_int, kind: c_int, protocol: c_int) -> Result<OwnedFd, Errno> {
    // SAFETY: takes numbers.
    let fd = unsafe { libc::socket(family, kind | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC, protocol) };
    // SAFETY: the call just made this descriptor, and nobody else has it.
    Errno::result(fd).map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
}

fn send(socket: RawFd, payload: &[u8], to: SocketAddr, flags: c_int) -> Result<(), Errno> {
    let flags = MsgFlags::from_bits_retain(flags);
    sendto(socket, payload, &SockaddrStorage::from(to), flags).map(drop)
}

fn option(socket: &OwnedFd, level: c_int, name: c_int, value: &[u8]) -> Result<(), Errno> {
    let (pointer, length) = (value.as_ptr().cast(), value.len() as libc::socklen_t);
    // SAFETY: the kernel reads as much of the value as is there.
    Errno::result(unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, pointer, length) }).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_apart_and_fit_a_byte() {
        let names: std::collections::BTreeSet<_> = PROBES.iter().map(|probe| probe.technique).collect();
        assert_eq!(names.len(), PROBES.len());
        assert!(PROBES.len() < 256);
    }

    #[test]
    fn the_frame_made_by_hand_has_the_checksum_of_its_header() {
        let own = Ipv4Addr::new(192, 0, 2, 2);
        let to =
            Targets { v4: Ipv4Addr::new(203, 0, 113, 5), v6: Ipv6Addr::LOCALHOST, own, ifindex: 1, permitted: None };
        let frame = datagram(&to);
        let words =
            frame[ETHERNET..ETHERNET + 20].chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
        let sum: u32 = words.sum();
        assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff);
    }
}

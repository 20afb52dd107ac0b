//! The sockets of a sandbox's DNS listener, opened inside its network namespace on one privileged port.
//!
//! The port is below 1024 and outside the range of automatic ports, so that no unprivileged process and no connect() gets it
//! by chance, and nobody may share it: no SO_REUSEADDR, no SO_REUSEPORT (attack: another process bound the port of a dead
//! agent and answered the redirected query).

use super::{
    netlink::{Netlink, Request},
    netns::{Netns, NetnsError},
};
use egress_common::destination::DNS_PORT;
use netlink_sys::protocols::NETLINK_ROUTE;
use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, Backlog, SockFlag, SockType, SockaddrLike as _, SockaddrStorage, bind, getsockname, listen,
        setsockopt, socket,
        sockopt::{IpTransparent, Ipv4PacketInfo, Ipv6RecvPacketInfo, Ipv6V6Only, RcvBuf, RcvBufForce},
    },
};
use rand::seq::SliceRandom as _;
use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket},
    ops::RangeInclusive,
    os::fd::{AsRawFd as _, OwnedFd},
};

/// Where to look for a port unless told otherwise.
pub const PORTS: RangeInclusive<u16> = 200..=1023;

/// Ports that people or packages may want later, from the IANA registry, below 1024.
const SERVICES: &[u16] = &[
    20, 21, 22, 23, 25, 53, 67, 68, 69, 80, 88, 110, 111, 113, 119, 123, 135, 137, 138, 139, 143, 161, 162, 179, 194,
    199, 389, 427, 443, 445, 464, 465, 500, 512, 513, 514, 515, 520, 546, 547, 548, 554, 563, 587, 593, 623, 631, 636,
    646, 749, 853, 860, 873, 902, 989, 990, 992, 993, 995,
];

const UNPRIVILEGED: u16 = 1024;
/// A burst of a resolver's parallel queries, with room; the kernel counts about 1 KiB per small datagram.
const UDP_RECEIVE_BYTES: usize = 1 << 20;
const TCP_BACKLOG: i32 = 1024;
const PORT_RANGE: &str = "/proc/sys/net/ipv4/ip_local_port_range";
const LOOPBACK_WITHOUT_IPV6: &str = "/proc/sys/net/ipv6/conf/lo/disable_ipv6";
/// `ifi_index` of `lo` in every network namespace (`LOOPBACK_IFINDEX` in `include/net/flow.h`).
const LOOPBACK: i32 = 1;

/// Why no DNS listener stands in a network namespace.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Its namespace cannot be entered or asked.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// lo is down, so 127.0.0.1 does not exist there.
    #[error("lo is down in the network namespace {netns}: type `{ip} link set lo up`")]
    LoopbackDown {
        /// The namespace.
        netns: String,
        /// [`Netns::ip_command`].
        ip: String,
    },
    /// Somebody removed the loopback address.
    #[error("lo has no address {address} in the network namespace {netns}: type `{ip} address add {address} dev lo`")]
    NoLoopbackAddress {
        /// The namespace.
        netns: String,
        /// [`Netns::ip_command`].
        ip: String,
        /// 127.0.0.1 or `::1`.
        address: IpAddr,
    },
    /// Every port that qualifies is taken.
    #[error(
        "no port of {first}-{last} is free in the network namespace {netns}: it must be below 1024, no common service's and \
         outside net.ipv4.ip_local_port_range, for UDP and TCP"
    )]
    NoPort {
        /// The namespace.
        netns: String,
        /// First port asked for.
        first: u16,
        /// Last port asked for.
        last: u16,
    },
    /// A setting of the namespace cannot be read.
    #[error("cannot read {path} in the network namespace {netns}")]
    Setting {
        /// The namespace.
        netns: String,
        /// The file.
        path: &'static str,
        /// What reading it said.
        source: io::Error,
    },
    /// A socket could not be made or bound.
    #[error("cannot listen on {address} in the network namespace {netns}: this needs CAP_NET_BIND_SERVICE there")]
    Socket {
        /// The namespace.
        netns: String,
        /// Where.
        address: SocketAddr,
        /// What the system call said.
        source: Errno,
    },
}

/// UDP and TCP sockets on one port of 127.0.0.1 and, where IPv6 is enabled, of `::1`. All are non-blocking and close on exec.
#[derive(Debug)]
pub struct Listeners {
    /// The port of all of them, below 1024.
    pub port: u16,
    /// 127.0.0.1, then `::1`.
    pub udp: Vec<UdpSocket>,
    /// 127.0.0.1, then `::1`; listening.
    pub tcp: Vec<TcpListener>,
}

impl Netns {
    /// Opens a DNS listener's sockets inside, on a random free port of `ports` ([`PORTS`]).
    pub fn open_listeners(&self, ports: RangeInclusive<u16>) -> Result<Listeners, ListenError> {
        if !self.loopback_is_up()? {
            return Err(ListenError::LoopbackDown { netns: self.name().into(), ip: self.ip_command().into() });
        }
        self.enter(|| Inside(self).open(ports))?
    }

    /// True when `lo` is up inside.
    pub fn loopback_is_up(&self) -> Result<bool, NetnsError> {
        const GET: Request<'_> = Request { name: "RTM_GETLINK", kind: libc::RTM_GETLINK, body: &loopback(0) };
        let replies = self.ask(|| Netlink::open(NETLINK_ROUTE)?.call(GET))?;
        // struct ifinfomsg: the flags are the third word.
        let flags = replies.first().and_then(|reply| reply.body.get(8..12)?.first_chunk().copied());
        Ok(flags.map_or(0, i32::from_ne_bytes) & libc::IFF_UP != 0)
    }

    /// Sets `lo` up inside. For a namespace that was just made for the sandbox; no other is ever changed.
    pub fn set_loopback_up(&self) -> Result<(), NetnsError> {
        const SET: Request<'_> =
            Request { name: "RTM_NEWLINK", kind: libc::RTM_NEWLINK, body: &loopback(libc::IFF_UP as u8) };
        self.ask(|| Netlink::open(NETLINK_ROUTE)?.call(SET)).map(drop)
    }
}

/// struct ifinfomsg of `lo` with `flags` (the low byte, native order) to be set.
const fn loopback(flags: u8) -> [u8; 16] {
    let index = LOOPBACK.to_ne_bytes();
    let set = (flags as u32).to_ne_bytes();
    let [i0, i1, i2, i3] = index;
    let [f0, f1, f2, f3] = set;
    [0, 0, 0, 0, i0, i1, i2, i3, f0, f1, f2, f3, f0, f1, f2, f3]
}

impl Netns {
    /// Opens listeners on port 53 of every address, where the namespace has been made so that every address is its own
    /// ([`super::resolver`]): their answers bear the address that was asked, which UDP is told for each question.
    pub(crate) fn open_for_every_address(&self, v6: bool) -> Result<Listeners, ListenError> {
        let addresses =
            [IpAddr::from(Ipv4Addr::UNSPECIFIED)].into_iter().chain(v6.then(|| Ipv6Addr::UNSPECIFIED.into()));
        let mut listeners = Listeners { port: DNS_PORT, udp: Vec::new(), tcp: Vec::new() };
        self.enter(|| {
            for ip in addresses {
                let address = SocketAddr::new(ip, DNS_PORT);
                let failed = |source| ListenError::Socket { netns: self.name().into(), address, source };
                listeners.udp.push(open(address, SockType::Datagram).map_err(failed)?.into());
                listeners.tcp.push(open(address, SockType::Stream).map_err(failed)?.into());
            }
            Ok(listeners)
        })?
    }
}

/// What happens on the thread that entered the namespace.
#[derive(Clone, Copy)]
struct Inside<'a>(&'a Netns);

impl Inside<'_> {
    fn open(self, ports: RangeInclusive<u16>) -> Result<Listeners, ListenError> {
        let (first, last) = (*ports.start(), *ports.end());
        let automatic = self.read(PORT_RANGE, parse_range)?;
        let addresses = self.addresses()?;
        let mut candidates = candidates(ports, &automatic);
        candidates.shuffle(&mut rand::rng());
        for port in candidates {
            if let Some(listeners) = self.try_port(port, &addresses)? {
                return Ok(listeners);
            }
        }
        Err(ListenError::NoPort { netns: self.name(), first, last })
    }

    fn name(self) -> String {
        self.0.name().into()
    }

    fn read<T>(self, path: &'static str, parse: impl FnOnce(&str) -> Option<T>) -> Result<T, ListenError> {
        fs::read_to_string(path)
            .and_then(|text| parse(&text).ok_or_else(|| io::ErrorKind::InvalidData.into()))
            .map_err(|source| ListenError::Setting { netns: self.name(), path, source })
    }

    /// The loopback addresses of families that are enabled.
    fn addresses(self) -> Result<Vec<IpAddr>, ListenError> {
        let mut addresses = vec![IpAddr::V4(Ipv4Addr::LOCALHOST)];
        // The file is missing when the kernel has no IPv6 at all.
        let enabled = match self.read(LOOPBACK_WITHOUT_IPV6, |text| Some(text.trim() == "0")) {
            Err(ListenError::Setting { source, .. }) if source.kind() == io::ErrorKind::NotFound => false,
            enabled => enabled?,
        };
        if enabled {
            addresses.push(IpAddr::V6(Ipv6Addr::LOCALHOST));
        }
        Ok(addresses)
    }

    /// None when somebody has the port on one of the addresses, for UDP or TCP.
    fn try_port(self, port: u16, addresses: &[IpAddr]) -> Result<Option<Listeners>, ListenError> {
        let mut listeners = Listeners { port, udp: Vec::new(), tcp: Vec::new() };
        for ip in addresses {
            let address = SocketAddr::new(*ip, port);
            let opened = open(address, SockType::Datagram).and_then(|udp| Ok((udp, open(address, SockType::Stream)?)));
            match opened {
                Ok((udp, tcp)) => {
                    listeners.udp.push(udp.into());
                    listeners.tcp.push(tcp.into());
                }
                Err(Errno::EADDRINUSE) => return Ok(None),
                Err(Errno::EADDRNOTAVAIL) => {
                    return Err(ListenError::NoLoopbackAddress {
                        netns: self.name(),
                        ip: self.0.ip_command().into(),
                        address: *ip,
                    });
                }
                Err(source) => return Err(ListenError::Socket { netns: self.name(), address, source }),
            }
        }
        Ok(Some(listeners))
    }
}

fn open(address: SocketAddr, kind: SockType) -> Result<OwnedFd, Errno> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let fd = socket(family, kind, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?;
    if kind == SockType::Datagram && setsockopt(&fd, RcvBufForce, &UDP_RECEIVE_BYTES).is_err() {
        // Without CAP_NET_ADMIN in that namespace: as much as net.core.rmem_max gives.
        setsockopt(&fd, RcvBuf, &UDP_RECEIVE_BYTES)?;
    }
    if address.ip().is_unspecified() {
        for_every_address(&fd, kind)?;
    }
    // Bound to ::1, a socket takes IPv6 alone (`__inet6_bind` in net/ipv6/af_inet6.c).
    bind(fd.as_raw_fd(), &SockaddrStorage::from(address))?;
    if kind == SockType::Stream {
        listen(&fd, Backlog::new(TCP_BACKLOG)?)?;
    }
    Ok(fd)
}

/// Has a socket say which address was asked, and lets it answer as any.
fn for_every_address(fd: &OwnedFd, kind: SockType) -> Result<(), Errno> {
    // At the level of IPv4 for both families (`ipv6_setsockopt` in net/ipv6/ipv6_sockglue.c).
    setsockopt(fd, IpTransparent, &true)?;
    let is_v4 = getsockname::<SockaddrStorage>(fd.as_raw_fd())?.family() == Some(AddressFamily::Inet);
    if !is_v4 {
        setsockopt(fd, Ipv6V6Only, &true)?;
    }
    match (kind, is_v4) {
        (SockType::Datagram, true) => setsockopt(fd, Ipv4PacketInfo, &true),
        (SockType::Datagram, false) => setsockopt(fd, Ipv6RecvPacketInfo, &true),
        _ => Ok(()),
    }
}

/// The ports of `ports` that qualify, whoever has them now.
fn candidates(ports: RangeInclusive<u16>, automatic: &RangeInclusive<u16>) -> Vec<u16> {
    ports
        .filter(|port| (1..UNPRIVILEGED).contains(port) && !SERVICES.contains(port) && !automatic.contains(port))
        .collect()
}

fn parse_range(text: &str) -> Option<RangeInclusive<u16>> {
    let mut words = text.split_whitespace().map(str::parse);
    let (Some(Ok(first)), Some(Ok(last)), None) = (words.next(), words.next(), words.next()) else { return None };
    Some(first..=last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_privileged_nobodys_service_and_not_automatic() {
        let all = candidates(0..=u16::MAX, &(32768..=60999));
        assert!(all.iter().all(|port| (1..1024).contains(port)));
        for service in [22, 25, 53, 80, 111, 137, 443, 631, 853] {
            assert!(!all.contains(&service), "{service}");
        }
        assert!(all.contains(&601) && all.contains(&1023));
        let narrow = candidates(PORTS, &(600..=60999));
        assert!(narrow.contains(&599) && narrow.iter().all(|port| (200..600).contains(port)), "{narrow:?}");
        assert!(candidates(PORTS, &(1..=65535)).is_empty());
    }

    #[test]
    fn the_kernels_range_is_two_numbers() {
        assert_eq!(parse_range("32768\t60999\n"), Some(32768..=60999));
        for broken in ["", "1", "1 2 3", "a b", "1 70000"] {
            assert_eq!(parse_range(broken), None, "{broken}");
        }
    }
}

//! Ground for probes: two network namespaces of our own, joined by a veth pair and by nothing else. What is sent in the one
//! is captured in the other or was stopped on its way; no packet can leave the machine, whatever the probes find.

use super::{
    link,
    netlink::{Netlink, NetlinkError, Request, put},
    netns::{Netns, NetnsError},
};
use netlink_sys::protocols::NETLINK_ROUTE;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, poll},
    sched::{CloneFlags, unshare},
    sys::socket::{AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, setsockopt, socket, sockopt},
};
use std::{
    fs::{self, File},
    io,
    net::{IpAddr, Ipv4Addr},
    os::{
        fd::{AsFd as _, AsRawFd as _, OwnedFd},
        unix::fs::FileExt as _,
    },
    thread,
    time::{Duration, Instant},
};

/// The device from which probes leave.
const OUT: &str = "probe0";
/// Its other end.
const IN: &str = "sink0";
/// A loopback address that is routed out of the device, as root of a namespace could have it.
pub(crate) const LED_OUT: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 9);
/// How long what was sent may take to arrive.
const PATIENCE: Duration = Duration::from_secs(2);
/// Longest frame: no device of ours has a larger MTU than 1500.
const FRAME: usize = 2048;

// include/uapi/linux/if_link.h, veth.h, if_addr.h, rtnetlink.h
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const IFA_F_NODAD: u8 = 2;
const RT_TABLE_MAIN: u8 = 254;
const RT_TABLE_LOCAL: u8 = 255;
const RTPROT_BOOT: u8 = 3;
const RT_SCOPE_UNIVERSE: u8 = 0;
const RT_SCOPE_LINK: u8 = 253;
const RTN_UNICAST: u8 = 1;

/// Why there is no ground to probe on.
#[derive(Debug, thiserror::Error)]
pub enum GroundError {
    /// No namespace.
    #[error("cannot make a network namespace for probes; run egressd as root")]
    Unshare(#[source] Errno),
    /// A setting of a namespace.
    #[error("cannot set net/{key} in the network namespace of the probes")]
    Setting {
        /// The file below /proc/sys/net.
        key: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The namespace could not be entered, or a device, an address or a route was refused.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// The socket that sees what arrives.
    #[error("cannot capture what probes send")]
    Capture(#[source] Errno),
    /// The counters of the device.
    #[error("cannot read how much probes have sent")]
    Counter(#[source] io::Error),
    /// Frames left the device and did not arrive: what was seen is not all.
    #[error("{sent} frames left the probes' device and {seen} arrived; is the machine overloaded? Try again")]
    Lost {
        /// By the counter of the device.
        sent: u64,
        /// By the capture.
        seen: u64,
    },
}

/// The two namespaces.
#[derive(Debug)]
pub(crate) struct Ground {
    pub(crate) netns: Netns,
    /// Of the device from which probes leave.
    pub(crate) ifindex: u32,
    counters: File,
    capture: OwnedFd,
    seen: u64,
    /// Keeps the other end.
    _sink: Netns,
}

impl Ground {
    /// Makes them. The device sends from `own`, and everything but loopback is routed to it.
    pub(crate) fn make(own: &[IpAddr]) -> Result<Self, GroundError> {
        // Frames of the kernel's own making are left out as far as that goes; the rest is told apart by what it is.
        let sink = namespace("of the sink", &[("ipv6/conf/default/disable_ipv6", "1")])?;
        let netns = namespace(
            "of the probes",
            &[
                ("ipv6/conf/default/accept_dad", "0"),
                ("ipv6/conf/default/router_solicitations", "0"),
                ("ipv4/ping_group_range", "0 2147483647"),
            ],
        )?;
        let ifindex = netns.ask(|| wire(&sink))?;
        // Before the device is up: each frame that ever crosses it is counted on both sides.
        let capture = sink.enter(capture)?.map_err(GroundError::Capture)?;
        sink.ask(|| {
            let mut netlink = Netlink::open(NETLINK_ROUTE)?;
            let other = link::by_name(&mut netlink, IN)?.map_or(0, |link| link.ifindex);
            raise(&mut netlink, other)
        })?;
        netns.ask(|| address(ifindex, own))?;
        let counters = netns.enter(|| File::open("/proc/thread-self/net/dev"))?.map_err(GroundError::Counter)?;
        Ok(Self { netns, ifindex, counters, capture, seen: 0, _sink: sink })
    }

    /// What arrived since it was asked last. Returns once every frame that left the device has.
    pub(crate) fn arrived(&mut self) -> Result<Vec<Vec<u8>>, GroundError> {
        let deadline = Instant::now() + PATIENCE;
        let mut frames = Vec::new();
        loop {
            let sent = self.sent()?;
            self.receive(&mut frames)?;
            if self.seen >= sent {
                frames.retain(|frame| !is_housekeeping(frame));
                return Ok(frames);
            }
            if Instant::now() >= deadline {
                return Err(GroundError::Lost { sent, seen: self.seen });
            }
            match poll(&mut [PollFd::new(self.capture.as_fd(), PollFlags::POLLIN)], crate::cgroup::poll_until(deadline))
            {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(source) => return Err(GroundError::Capture(source)),
            }
        }
    }

    fn receive(&mut self, frames: &mut Vec<Vec<u8>>) -> Result<(), GroundError> {
        let mut frame = [0; FRAME];
        loop {
            match recvfrom::<LinkAddr>(self.capture.as_raw_fd(), &mut frame) {
                Ok((len, _)) => {
                    self.seen += 1;
                    frames.push(frame.get(..len).unwrap_or_default().to_vec());
                }
                Err(Errno::EAGAIN) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(source) => return Err(GroundError::Capture(source)),
            }
        }
    }

    /// Frames that left the device, each counted once it waits at the other end (`veth_xmit` in drivers/net/veth.c).
    fn sent(&self) -> Result<u64, GroundError> {
        let mut text = vec![0; 4096];
        let length = self.counters.read_at(&mut text, 0).map_err(GroundError::Counter)?;
        let text = String::from_utf8_lossy(text.get(..length).unwrap_or_default()).into_owned();
        let line = text.lines().find_map(|line| line.trim_start().strip_prefix(OUT)?.strip_prefix(':'));
        line.and_then(|line| line.split_ascii_whitespace().nth(9)?.parse().ok())
            .ok_or_else(|| GroundError::Counter(io::ErrorKind::InvalidData.into()))
    }
}

/// Neighbour discovery and listener reports, which the kernel sends by itself.
fn is_housekeeping(frame: &[u8]) -> bool {
    const ETHERTYPE: usize = 12;
    const NEXT_HEADER: usize = 20;
    // Listener reports stand behind a hop-by-hop header of eight bytes (RFC 3810, 5).
    let icmpv6 = match frame.get(NEXT_HEADER) {
        Some(58) => 54,
        Some(0) if frame.get(54) == Some(&58) => 62,
        _ => return false,
    };
    frame.get(ETHERTYPE..ETHERTYPE + 2) == Some(&[0x86, 0xdd])
        && frame.get(icmpv6).is_some_and(|kind| matches!(kind, 130..=137 | 143))
}

fn namespace(name: &str, settings: &[(&'static str, &str)]) -> Result<Netns, GroundError> {
    let make = || {
        unshare(CloneFlags::CLONE_NEWNET).map_err(GroundError::Unshare)?;
        for &(key, value) in settings {
            // These files are those of the thread's namespace.
            match fs::write(format!("/proc/sys/net/{key}"), value) {
                // A kernel without IPv6.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                set => set.map_err(|source| GroundError::Setting { key, source })?,
            }
        }
        let fd = File::open("/proc/thread-self/ns/net").map_err(GroundError::Counter)?;
        Ok(Netns::from_fd(fd.into(), name.to_owned())?)
    };
    // A thread of its own: the caller stays where it is.
    thread::scope(|scope| scope.spawn(make).join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Makes the pair from the calling thread's namespace into `sink`.
fn wire(sink: &Netns) -> Result<u32, NetlinkError> {
    let mut peer = ifinfo(0, false);
    put(&mut peer, libc::IFLA_IFNAME, &name(IN));
    put(&mut peer, libc::IFLA_NET_NS_FD, &sink.as_fd().as_raw_fd().to_ne_bytes());
    let (mut data, mut info, mut body) = (Vec::new(), Vec::new(), ifinfo(0, false));
    put(&mut data, VETH_INFO_PEER, &peer);
    put(&mut info, IFLA_INFO_KIND, b"veth");
    put(&mut info, IFLA_INFO_DATA, &data);
    put(&mut body, libc::IFLA_IFNAME, &name(OUT));
    put(&mut body, libc::IFLA_LINKINFO, &info);
    let mut netlink = Netlink::open(NETLINK_ROUTE)?;
    netlink.create(Request { name: "RTM_NEWLINK", kind: libc::RTM_NEWLINK, body: &body })?;
    Ok(link::by_name(&mut netlink, OUT)?.map_or(0, |link| link.ifindex))
}

/// Gives the calling thread's namespace its addresses and routes.
fn address(ifindex: u32, own: &[IpAddr]) -> Result<(), NetlinkError> {
    const LO: u32 = 1;
    let mut netlink = Netlink::open(NETLINK_ROUTE)?;
    raise(&mut netlink, LO)?;
    raise(&mut netlink, ifindex)?;
    for ip in own {
        let octets = octets(*ip);
        let mut body = vec![family(*ip), (octets.len() * 8) as u8, IFA_F_NODAD, RT_SCOPE_UNIVERSE];
        body.extend(ifindex.to_ne_bytes());
        put(&mut body, libc::IFA_LOCAL, &octets);
        put(&mut body, libc::IFA_ADDRESS, &octets);
        netlink.create(Request { name: "RTM_NEWADDR", kind: libc::RTM_NEWADDR, body: &body })?;
    }
    for any in [IpAddr::from([0; 4]), IpAddr::from([0; 16])] {
        if own.iter().any(|ip| ip.is_ipv4() == any.is_ipv4()) {
            route(&mut netlink, ifindex, any, 0, RT_TABLE_MAIN)?;
        }
    }
    if own.iter().any(IpAddr::is_ipv4) {
        route(&mut netlink, ifindex, LED_OUT.into(), 32, RT_TABLE_LOCAL)?;
    }
    Ok(())
}

fn route(netlink: &mut Netlink, ifindex: u32, to: IpAddr, prefix: u8, table: u8) -> Result<(), NetlinkError> {
    // struct rtmsg: family, lengths of destination and source, tos, table, protocol, scope, type, flags.
    let mut body = vec![family(to), prefix, 0, 0, table, RTPROT_BOOT, RT_SCOPE_LINK, RTN_UNICAST, 0, 0, 0, 0];
    if prefix > 0 {
        put(&mut body, libc::RTA_DST, &octets(to));
    }
    put(&mut body, libc::RTA_OIF, &ifindex.to_ne_bytes());
    netlink.create(Request { name: "RTM_NEWROUTE", kind: libc::RTM_NEWROUTE, body: &body }).map(drop)
}

/// Up, and without neighbours to be asked for: the other end has no address, and answers nobody.
fn raise(netlink: &mut Netlink, ifindex: u32) -> Result<(), NetlinkError> {
    let request = Request { name: "RTM_NEWLINK", kind: libc::RTM_NEWLINK, body: &ifinfo(ifindex, true) };
    netlink.call(request).map(drop)
}

/// struct ifinfomsg: family and padding, type, index, flags, mask of the flags that change.
fn ifinfo(ifindex: u32, up: bool) -> Vec<u8> {
    let flags = if up { (libc::IFF_UP | libc::IFF_NOARP).cast_unsigned() } else { 0 };
    [0, ifindex, flags, flags].into_iter().flat_map(u32::to_ne_bytes).collect()
}

fn name(device: &str) -> Vec<u8> {
    [device.as_bytes(), b"\0"].concat()
}

fn family(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { libc::AF_INET as u8 } else { libc::AF_INET6 as u8 }
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// Every frame of every device of the calling thread's namespace.
fn capture() -> Result<OwnedFd, Errno> {
    const ROOM: usize = 4 << 20;
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll)?;
    setsockopt(&socket, sockopt::RcvBufForce, &ROOM)?;
    Ok(socket)
}

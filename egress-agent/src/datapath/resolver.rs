//! Where a guest's questions are answered: a network namespace of the resolver's own, in which every address is its own, and a
//! device that leads there from the guest's device.
//!
//! Nothing of the host's is asked on the way (no route, no firewall, no address of its own), and nobody but the guest gets
//! there. The namespace, and the device with it, ends with the process that answers: questions then lead nowhere.

use super::{
    attach::AttachError,
    link,
    listeners::{ListenError, Listeners},
    netlink::{Netlink, NetlinkError, Request, put},
    netns::{Netns, NetnsError},
    tc,
};
use aya::programs::tc::SchedClassifierLink;
use egress_common::sandbox::RESOLVER_MAC;
use netlink_sys::protocols::NETLINK_ROUTE;
use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsFd as _, AsRawFd as _},
    path::Path,
};

/// Its end of the device.
const INSIDE: &str = "guest";

// include/uapi/linux/if_link.h, rtnetlink.h
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RT_TABLE_LOCAL: u8 = 255;
const RTPROT_STATIC: u8 = 4;
const RTN_UNICAST: u8 = 1;
const RTN_LOCAL: u8 = 2;
/// `ifi_index` of `lo` in every network namespace.
const LOOPBACK: u32 = 1;

/// Why there is nobody to ask.
#[derive(Debug, thiserror::Error)]
pub enum ResolverError {
    /// Its network namespace.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// Its sockets.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The program that hands answers back.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// The device.
    #[error(
        "cannot set up the device {device}, which leads to the resolver: does this kernel have veth (CONFIG_VETH), and IPv6 where the guest has it?"
    )]
    Device {
        /// Its name.
        device: String,
        /// What the kernel said.
        source: NetlinkError,
    },
}

/// The namespace and the device, for as long as this lives.
#[derive(Debug)]
pub(crate) struct Resolver {
    pub(crate) netns: Netns,
    pub(crate) ifindex: u32,
    name: String,
    host: Netns,
    answers: Option<SchedClassifierLink>,
}

impl Resolver {
    /// Makes both for a guest with these addresses, and opens the sockets that are to answer. The calling thread's network
    /// namespace is the one with the guest's device; `nonce` makes a name.
    pub(crate) fn open(nonce: u64, guest: &BTreeSet<IpAddr>) -> Result<(Self, Listeners), ResolverError> {
        let name = format!("egr{:012x}", nonce >> 16);
        let netns = Netns::make(format!("of the resolver behind {name}"))?;
        let failed = |source| ResolverError::Device { device: name.clone(), source };
        let host = Netns::current()?;
        netns.set_loopback_up()?;
        let ifindex = connect(&name, &netns).map_err(failed)?;
        let resolver = Self { netns, ifindex, name: name.clone(), host, answers: None };
        resolver.netns.enter(|| route(guest))?.map_err(failed)?;
        let listeners = resolver.netns.open_for_every_address(guest.iter().any(IpAddr::is_ipv6))?;
        Ok((resolver, listeners))
    }

    /// Has the answers handed back, by the program of this pin. Its maps say to which device.
    pub(crate) fn hand_back(&mut self, program: &Path) -> Result<(), ResolverError> {
        self.answers = Some(tc::attach_answers(program, self.ifindex)?);
        let up =
            || change(&mut Netlink::open(NETLINK_ROUTE)?, libc::RTM_NEWLINK, &ifinfomsg(self.ifindex, libc::IFF_UP));
        up().map_err(|source| ResolverError::Device { device: self.name.clone(), source })
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        drop(self.answers.take());
        let (ifindex, name) = (self.ifindex, &self.name);
        let gone = |error: &NetlinkError| error.refusal() == Some(libc::ENODEV);
        let remove = || change(&mut Netlink::open(NETLINK_ROUTE)?, libc::RTM_DELLINK, &ifinfomsg(ifindex, 0));
        let left = match self.host.enter(remove) {
            Ok(Err(error)) if !gone(&error) => error.to_string(),
            Err(error) => error.to_string(),
            _ => return,
        };
        tracing::warn!(error = left, device = name, "the device stays until egressd ends");
    }
}

/// A veth between the calling thread's network namespace and that one; its ifindex here.
fn connect(name: &str, netns: &Netns) -> Result<u32, NetlinkError> {
    // Without neighbours, so that nobody asks for any: there is one on the link, and its MAC address is set on the way.
    let mut peer = ifinfomsg(0, libc::IFF_NOARP);
    put(&mut peer, libc::IFLA_IFNAME, &[INSIDE.as_bytes(), b"\0"].concat());
    put(&mut peer, libc::IFLA_ADDRESS, &RESOLVER_MAC);
    put(&mut peer, libc::IFLA_NET_NS_FD, &netns.as_fd().as_raw_fd().to_ne_bytes());
    let (mut data, mut info, mut body) = (Vec::new(), Vec::new(), ifinfomsg(0, 0));
    put(&mut data, VETH_INFO_PEER, &peer);
    put(&mut info, IFLA_INFO_KIND, b"veth\0");
    put(&mut info, IFLA_INFO_DATA, &data);
    put(&mut body, libc::IFLA_IFNAME, &[name.as_bytes(), b"\0"].concat());
    put(&mut body, libc::IFLA_LINKINFO, &info);
    let mut netlink = Netlink::open(NETLINK_ROUTE)?;
    // That of an owner who was killed goes with its namespace, which the kernel takes down some time after (`cleanup_net`).
    if let Some(left) = link::by_name(&mut netlink, name)? {
        match change(&mut netlink, libc::RTM_DELLINK, &ifinfomsg(left.ifindex, 0)) {
            Err(error) if error.refusal() != Some(libc::ENODEV) => return Err(error),
            _ => {}
        }
    }
    change(&mut netlink, libc::RTM_NEWLINK, &body)?;
    Ok(link::by_name(&mut netlink, name)?.map_or(0, |made| made.ifindex))
}

/// Every address is the namespace's own, but for the guest's.
fn route(guest: &BTreeSet<IpAddr>) -> Result<(), NetlinkError> {
    let mut netlink = Netlink::open(NETLINK_ROUTE)?;
    let ifindex = link::by_name(&mut netlink, INSIDE)?.map_or(0, |made| made.ifindex);
    // Not when it is made: then its other end is not there yet (`veth_open` in drivers/net/veth.c).
    change(&mut netlink, libc::RTM_NEWLINK, &ifinfomsg(ifindex, libc::IFF_UP))?;
    let every = [IpAddr::from(Ipv4Addr::UNSPECIFIED), Ipv6Addr::UNSPECIFIED.into()];
    for every in every.into_iter().filter(|every| every.is_ipv4() || guest.iter().any(IpAddr::is_ipv6)) {
        change(&mut netlink, libc::RTM_NEWROUTE, &rtmsg(every, 0, RTN_LOCAL, LOOPBACK))?;
    }
    guest.iter().try_for_each(|guest| {
        let bits = if guest.is_ipv4() { 32 } else { 128 };
        change(&mut netlink, libc::RTM_NEWROUTE, &rtmsg(*guest, bits, RTN_UNICAST, ifindex))
    })
}

fn change(netlink: &mut Netlink, kind: u16, body: &[u8]) -> Result<(), NetlinkError> {
    let name = match kind {
        libc::RTM_NEWROUTE => "RTM_NEWROUTE",
        libc::RTM_DELLINK => "RTM_DELLINK",
        _ => "RTM_NEWLINK",
    };
    let request = Request { name, kind, body };
    // A device that is there is changed; everything else is new.
    let is_new = kind == libc::RTM_NEWROUTE || kind == libc::RTM_NEWLINK && body.get(4..8) == Some(&[0; 4]);
    if is_new { netlink.create(request) } else { netlink.call(request) }.map(drop)
}

/// struct ifinfomsg: family and type, index, flags, which of them are meant.
fn ifinfomsg(ifindex: u32, flags: i32) -> Vec<u8> {
    let flags = flags.cast_unsigned();
    [0, ifindex, flags, flags].into_iter().flat_map(u32::to_ne_bytes).collect()
}

/// A route of the local table, which is asked first, and by whoever checks an address for being one's own.
fn rtmsg(to: IpAddr, bits: u8, kind: u8, device: u32) -> Vec<u8> {
    // struct rtmsg: family, bits of destination and source, service, table, protocol, scope, type; flags.
    let (family, scope) = match (to, kind) {
        (IpAddr::V4(_), RTN_LOCAL) => (libc::AF_INET as u8, libc::RT_SCOPE_HOST),
        (IpAddr::V4(_), _) => (libc::AF_INET as u8, libc::RT_SCOPE_LINK),
        (IpAddr::V6(_), _) => (libc::AF_INET6 as u8, libc::RT_SCOPE_UNIVERSE),
    };
    let mut body = vec![family, bits, 0, 0, RT_TABLE_LOCAL, RTPROT_STATIC, scope, kind, 0, 0, 0, 0];
    match (to, bits) {
        (_, 0) => {}
        (IpAddr::V4(to), _) => put(&mut body, RTA_DST, &to.octets()),
        (IpAddr::V6(to), _) => put(&mut body, RTA_DST, &to.octets()),
    }
    put(&mut body, RTA_OIF, &device.to_ne_bytes());
    body
}

//! Network devices as rtnetlink shows them.

use super::netlink::{Netlink, NetlinkError, Reply, Request, attributes, put};
use netlink_packet_core::DecodeError;
use std::os::fd::{AsRawFd as _, BorrowedFd};

/// Size of struct ifinfomsg.
const IFINFOMSG: usize = 16;
/// Size of struct rtgenmsg, padded.
const RTGENMSG: usize = 4;
// include/uapi/linux/if_link.h, net_namespace.h, rtnetlink.h
const IFLA_LINK_NETNSID: u16 = 37;
const IFLA_XDP: u16 = 43;
const IFLA_XDP_ATTACHED: u16 = 2;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_NETKIT_MODE: u16 = 5;
const NETKIT_L2: u32 = 0;
const IFLA_EXT_MASK: u16 = 29;
const RTEXT_FILTER_SKIP_STATS: u32 = 1 << 3;
const NETNSA_NSID: u16 = 1;
const NETNSA_FD: u16 = 3;

const GETLINK: &str = "RTM_GETLINK";
const GETNSID: &str = "RTM_GETNSID";

/// One device of one network namespace.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Link {
    pub(super) ifindex: u32,
    /// Lossy: the kernel takes nearly any bytes.
    pub(super) name: String,
    /// `ARPHRD_*`.
    pub(super) arphrd: u16,
    /// What `ip link add type` calls it; empty for hardware and lo.
    pub(super) kind: String,
    pub(super) mac: [u8; 6],
    /// ifindex of the peer or the lower device, in the namespace that `netnsid` names or in its own.
    pub(super) leads_to: Option<u32>,
    /// The other namespace as this one numbers it; None when there is none, -1 when the kernel has no number.
    pub(super) netnsid: Option<i32>,
    /// A netkit whose packets have no MAC header.
    pub(super) netkit_l3: bool,
    /// An XDP program is asked before all others.
    pub(super) has_xdp: bool,
}

/// All devices of the namespace of `netlink`.
pub(super) fn list(netlink: &mut Netlink) -> Result<Vec<Link>, NetlinkError> {
    let replies = netlink.dump(Request { name: GETLINK, kind: libc::RTM_GETLINK, body: &body() })?;
    links(&replies)
}

/// The device called `name`, None where there is none.
pub(super) fn by_name(netlink: &mut Netlink, name: &str) -> Result<Option<Link>, NetlinkError> {
    let mut body = body();
    put(&mut body, libc::IFLA_IFNAME, &[name.as_bytes(), b"\0"].concat());
    one(netlink, &body)
}

/// The device with this index, None where there is none.
pub(super) fn by_index(netlink: &mut Netlink, ifindex: u32) -> Result<Option<Link>, NetlinkError> {
    let mut body = body();
    body.splice(4..8, ifindex.to_ne_bytes());
    one(netlink, &body)
}

fn one(netlink: &mut Netlink, body: &[u8]) -> Result<Option<Link>, NetlinkError> {
    match netlink.call(Request { name: GETLINK, kind: libc::RTM_GETLINK, body }) {
        Ok(replies) => Ok(links(&replies)?.into_iter().next()),
        Err(error) if error.refusal() == Some(libc::ENODEV) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The number by which the namespace of `netlink` knows `netns`; None while it never met it.
pub(super) fn nsid(netlink: &mut Netlink, netns: BorrowedFd<'_>) -> Result<Option<i32>, NetlinkError> {
    let mut body = vec![0; RTGENMSG];
    put(&mut body, NETNSA_FD, &netns.as_raw_fd().to_ne_bytes());
    let replies = netlink.call(Request { name: GETNSID, kind: libc::RTM_GETNSID, body: &body })?;
    let mut found = None;
    for attribute in replies.iter().flat_map(|reply| reply.attributes(RTGENMSG)) {
        let (kind, value) = attribute.map_err(|source| NetlinkError::Malformed { request: GETNSID, source })?;
        if kind == NETNSA_NSID {
            found = word(value).map(u32::cast_signed).filter(|id| *id >= 0);
        }
    }
    Ok(found)
}

fn body() -> Vec<u8> {
    let mut body = vec![0; IFINFOMSG];
    put(&mut body, IFLA_EXT_MASK, &RTEXT_FILTER_SKIP_STATS.to_ne_bytes());
    body
}

fn links(replies: &[Reply]) -> Result<Vec<Link>, NetlinkError> {
    let read = replies.iter().filter(|reply| reply.kind == libc::RTM_NEWLINK).map(link);
    read.collect::<Result<_, _>>().map_err(|source| NetlinkError::Malformed { request: GETLINK, source })
}

fn link(reply: &Reply) -> Result<Link, DecodeError> {
    // struct ifinfomsg: family, pad, type (2 bytes), index, flags, change mask (4 bytes each)
    let Some(([_, _, t0, t1, index @ ..], _)) = reply.body.split_first_chunk::<8>() else {
        return Err(DecodeError::buffer_too_small(reply.body.len(), IFINFOMSG));
    };
    let mut link =
        Link { ifindex: u32::from_ne_bytes(*index), arphrd: u16::from_ne_bytes([*t0, *t1]), ..Link::default() };
    for attribute in reply.attributes(IFINFOMSG) {
        match attribute? {
            (libc::IFLA_IFNAME, value) => link.name = text(value),
            (libc::IFLA_ADDRESS, value) => link.mac = value.try_into().unwrap_or_default(),
            (libc::IFLA_LINK, value) => link.leads_to = word(value),
            (IFLA_LINK_NETNSID, value) => link.netnsid = word(value).map(u32::cast_signed),
            (libc::IFLA_LINKINFO, value) => link_info(value, &mut link)?,
            (IFLA_XDP, value) => {
                // One byte, XDP_ATTACHED_NONE = 0.
                link.has_xdp = attributes(value).flatten().any(|(kind, how)| kind == IFLA_XDP_ATTACHED && how != [0]);
            }
            _ => {}
        }
    }
    // Kernels that leave the peer's index out when it equals the device's own still name the namespace.
    if link.leads_to.is_none() && link.netnsid.is_some() {
        link.leads_to = Some(link.ifindex);
    }
    Ok(link)
}

fn link_info(nested: &[u8], link: &mut Link) -> Result<(), DecodeError> {
    let mut mode = None;
    for attribute in attributes(nested) {
        match attribute? {
            (IFLA_INFO_KIND, value) => link.kind = text(value),
            (IFLA_INFO_DATA, value) => {
                // Other kinds give this number another meaning, which is not looked at.
                mode = attributes(value)
                    .flatten()
                    .find(|(kind, _)| *kind == IFLA_NETKIT_MODE)
                    .and_then(|(_, value)| word(value));
            }
            _ => {}
        }
    }
    link.netkit_l3 = link.kind == "netkit" && mode != Some(NETKIT_L2);
    Ok(())
}

fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned()
}

fn word(value: &[u8]) -> Option<u32> {
    value.try_into().ok().map(u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn reply(ifindex: u32, attributes: &[(u16, &[u8])]) -> Reply {
        let mut body = vec![0; IFINFOMSG];
        body.splice(2..4, libc::ARPHRD_ETHER.to_ne_bytes());
        body.splice(4..8, ifindex.to_ne_bytes());
        for (kind, value) in attributes {
            put(&mut body, *kind, value);
        }
        Reply { kind: libc::RTM_NEWLINK, body }
    }

    fn info(kind: &str, mode: Option<u32>) -> Vec<u8> {
        let (mut nested, mut inner) = (Vec::new(), Vec::new());
        put(&mut nested, IFLA_INFO_KIND, &[kind.as_bytes(), b"\0"].concat());
        if let Some(mode) = mode {
            put(&mut inner, IFLA_NETKIT_MODE, &mode.to_ne_bytes());
            put(&mut nested, IFLA_INFO_DATA, &inner);
        }
        nested
    }

    #[test]
    fn a_veth_is_read_with_its_odd_name() {
        let veth = reply(
            7,
            &[
                (libc::IFLA_IFNAME, b"v\xffth\0"),
                (libc::IFLA_ADDRESS, &[2, 0, 0, 0, 0, 1]),
                (libc::IFLA_LINK, &9_u32.to_ne_bytes()),
                (IFLA_LINK_NETNSID, &3_i32.to_ne_bytes()),
                (libc::IFLA_LINKINFO | 1 << 15, &info("veth", None)),
            ],
        );
        let expected = Link {
            ifindex: 7,
            name: "v\u{fffd}th".into(),
            arphrd: 1,
            kind: "veth".into(),
            mac: [2, 0, 0, 0, 0, 1],
            leads_to: Some(9),
            netnsid: Some(3),
            netkit_l3: false,
            has_xdp: false,
        };
        assert_eq!(link(&veth).unwrap(), expected);
    }

    #[test]
    fn a_peer_with_the_same_index_is_still_a_peer() {
        let veth = reply(7, &[(IFLA_LINK_NETNSID, &0_i32.to_ne_bytes())]);
        assert_eq!(link(&veth).unwrap().leads_to, Some(7));
        assert_eq!(link(&reply(7, &[])).unwrap().leads_to, None);
    }

    #[test]
    fn only_netkit_in_l2_mode_has_a_mac_header() {
        let l3 = |kind, mode| link(&reply(1, &[(libc::IFLA_LINKINFO, &info(kind, mode))])).unwrap().netkit_l3;
        assert!(l3("netkit", Some(1)) && l3("netkit", None));
        assert!(!l3("netkit", Some(NETKIT_L2)) && !l3("vlan", Some(1)));
    }

    proptest! {
        #[test]
        fn no_bytes_break_the_reader(body: Vec<u8>) {
            let length = body.len();
            if let Ok(link) = link(&Reply { kind: libc::RTM_NEWLINK, body }) {
                prop_assert!(length >= 8 && link.name.len() <= 3 * length);
            }
        }
    }
}

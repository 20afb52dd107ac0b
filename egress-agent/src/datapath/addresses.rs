//! The addresses of a network namespace, at once and live: every interface, both families.

use super::{
    netlink::{Netlink, NetlinkError, Reply, Request},
    netns::{Netns, NetnsError},
    watch::{Subscription, Watcher},
};
use netlink_packet_core::DecodeError;
use netlink_sys::protocols::NETLINK_ROUTE;
use std::{collections::BTreeSet, net::IpAddr, ops::ControlFlow};

/// `RTNLGRP_LINK`, `RTNLGRP_IPV4_IFADDR`, `RTNLGRP_IPV6_IFADDR` (`include/uapi/linux/rtnetlink.h`).
const GROUPS: [u32; 3] = [1, 5, 9];
const GET: Request<'_> = Request { name: "RTM_GETADDR", kind: libc::RTM_GETADDR, body: &[0; IFADDRMSG] };
/// Size of struct ifaddrmsg.
const IFADDRMSG: usize = 8;

/// All addresses inside `netns` now: loopback, link-local, and of a point-to-point link the local end.
pub fn list(netns: &Netns) -> Result<BTreeSet<IpAddr>, NetnsError> {
    netns.ask(|| read(&mut Netlink::open(NETLINK_ROUTE)?))
}

/// Follows the addresses of one network namespace; dropping it ends that. It keeps the namespace alive.
#[derive(Debug)]
pub struct Watch {
    _watcher: Watcher,
}

impl Watch {
    /// Calls `changed` with the set of [`list`], first before this returns and then, on a thread of its own, each time the
    /// set differs. An error is the last call: from then on nobody follows the addresses.
    pub fn start(
        netns: &Netns,
        mut changed: impl FnMut(Result<BTreeSet<IpAddr>, NetnsError>) + Send + 'static,
    ) -> Result<Self, NetnsError> {
        // Subscribed before the first reading, so that no change falls between the two.
        let (subscription, mut netlink) =
            netns.ask(|| Ok((Subscription::open(&GROUPS)?, Netlink::open(NETLINK_ROUTE)?)))?;
        let name = netns.name().to_owned();
        let failed = move |source| NetnsError::Netlink { netns: name.clone(), source };
        let mut known = read(&mut netlink).map_err(&failed)?;
        changed(Ok(known.clone()));
        let again = failed.clone();
        let watcher = Watcher::spawn(vec![subscription], move |heard| {
            match heard.and_then(|()| read(&mut netlink)) {
                Ok(now) if now == known => {}
                // What tore the reading was announced after it, so another one follows.
                Err(NetlinkError::Torn { .. }) => {}
                Ok(now) => {
                    known.clone_from(&now);
                    changed(Ok(now));
                }
                Err(source) => {
                    changed(Err(again(source)));
                    return ControlFlow::Break(());
                }
            }
            ControlFlow::Continue(())
        })
        .map_err(failed)?;
        Ok(Self { _watcher: watcher })
    }
}

fn read(netlink: &mut Netlink) -> Result<BTreeSet<IpAddr>, NetlinkError> {
    let replies = netlink.dump(GET)?;
    replies
        .iter()
        .filter_map(|reply| address(reply).transpose())
        .collect::<Result<_, _>>()
        .map_err(|source| NetlinkError::Malformed { request: GET.name, source })
}

/// The local address of one RTM_NEWADDR: IFA_LOCAL where there is one, since IFA_ADDRESS is then the peer's.
fn address(reply: &Reply) -> Result<Option<IpAddr>, DecodeError> {
    if reply.kind != libc::RTM_NEWADDR {
        return Ok(None);
    }
    let (mut local, mut address) = (None, None);
    for attribute in reply.attributes(IFADDRMSG) {
        match attribute? {
            (libc::IFA_LOCAL, value) => local = ip(value),
            (libc::IFA_ADDRESS, value) => address = ip(value),
            _ => {}
        }
    }
    Ok(local.or(address))
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::netlink::put;
    use proptest::prelude::*;

    fn reply(attributes: &[(u16, &[u8])]) -> Reply {
        let mut body = vec![0; IFADDRMSG];
        for (kind, value) in attributes {
            put(&mut body, *kind, value);
        }
        Reply { kind: libc::RTM_NEWADDR, body }
    }

    #[test]
    fn the_local_end_of_a_point_to_point_link_counts() {
        let peer = reply(&[(libc::IFA_ADDRESS, &[198, 51, 100, 1]), (libc::IFA_LOCAL, &[192, 0, 2, 1])]);
        assert_eq!(address(&peer).unwrap(), Some("192.0.2.1".parse().unwrap()));
        let v6: std::net::Ipv6Addr = "2001:db8::1".parse().unwrap();
        assert_eq!(address(&reply(&[(libc::IFA_ADDRESS, &v6.octets())])).unwrap(), Some(v6.into()));
    }

    #[test]
    fn a_label_that_is_no_text_hides_nothing() {
        let odd = reply(&[(libc::IFA_LABEL, b"\xff\xfe\0"), (libc::IFA_LOCAL, &[192, 0, 2, 9])]);
        assert_eq!(address(&odd).unwrap(), Some("192.0.2.9".parse().unwrap()));
        assert_eq!(address(&Reply { kind: libc::RTM_DELADDR, ..odd }).unwrap(), None);
    }

    proptest! {
        #[test]
        fn no_bytes_break_the_reader(kind: u16, body: Vec<u8>) {
            if let Ok(Some(ip)) = address(&Reply { kind, body: body.clone() }) {
                let octets = match ip { IpAddr::V4(v4) => v4.octets().to_vec(), IpAddr::V6(v6) => v6.octets().to_vec() };
                prop_assert!(body.windows(octets.len()).any(|window| window == octets));
            }
        }
    }
}

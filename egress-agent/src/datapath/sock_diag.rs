//! The internet sockets of a network namespace, with the cgroup in which each was made, and their end.

use super::{
    netlink::{Netlink, NetlinkError, Reply, Request, attributes},
    netns::{Netns, NetnsError},
};
use netlink_packet_core::DecodeError;
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

// include/uapi/linux/sock_diag.h, inet_diag.h
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const INET_DIAG_CGROUP_ID: u16 = 21;
/// Size of struct inet_diag_sockid.
const SOCKID: usize = 48;
/// Size of struct inet_diag_msg.
const MESSAGE: usize = 72;
const EVERY_STATE: u32 = u32::MAX;
const FAMILIES: [u8; 2] = [libc::AF_INET as u8, libc::AF_INET6 as u8];

/// What can be listed and destroyed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Protocol {
    /// TCP, of MPTCP the subflows.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    fn number(self) -> u8 {
        match self {
            Self::Tcp => libc::IPPROTO_TCP as u8,
            Self::Udp => libc::IPPROTO_UDP as u8,
        }
    }
}

/// A socket that is bound, connected or listening. One that is none of it is in no table of the kernel.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct InetSocket {
    /// Its protocol.
    pub protocol: Protocol,
    /// Where it is bound. IPv4 in its mapped form on an IPv6 socket.
    pub local: SocketAddr,
    /// Where it is connected to.
    pub remote: Option<SocketAddr>,
    /// Id (inode) of the v2 cgroup in which it was made; None before kernel 5.7 and for sockets that no process holds.
    pub cgroup: Option<u64>,
    /// What getsockopt(SO_COOKIE) says: never given to another socket.
    pub cookie: u64,
    family: u8,
    id: [u8; SOCKID],
}

/// The sockets of these protocols inside `netns`, of both families.
pub fn list(netns: &Netns, protocols: &[Protocol]) -> Result<Vec<InetSocket>, NetnsError> {
    netns.ask(|| {
        let mut netlink = Netlink::open(NETLINK_SOCK_DIAG)?;
        let mut sockets = Vec::new();
        for &protocol in protocols {
            for family in FAMILIES {
                sockets.extend(dump(&mut netlink, protocol, family)?);
            }
        }
        Ok(sockets)
    })
}

/// Ends what `socket` of `netns` is doing: waiting calls fail with ECONNABORTED. False when it was gone already.
///
/// It stays open: its process may connect or send with it anew, under the hooks of the cgroup in which it was made.
pub fn destroy(netns: &Netns, socket: &InetSocket) -> Result<bool, NetnsError> {
    let body = request(socket.family, socket.protocol, &socket.id);
    let answer = netns.ask(|| {
        let request = Request { name: "SOCK_DESTROY", kind: SOCK_DESTROY, body: &body };
        match Netlink::open(NETLINK_SOCK_DIAG)?.call(request) {
            // ESTALE: another socket has the same addresses now.
            Err(error) if matches!(error.refusal(), Some(libc::ENOENT | libc::ESTALE)) => Ok(false),
            answer => answer.map(|_| true),
        }
    })?;
    Ok(answer)
}

fn dump(netlink: &mut Netlink, protocol: Protocol, family: u8) -> Result<Vec<InetSocket>, NetlinkError> {
    const NAME: &str = "SOCK_DIAG_BY_FAMILY";
    let body = request(family, protocol, &[0; SOCKID]);
    let replies = netlink.dump(Request { name: NAME, kind: SOCK_DIAG_BY_FAMILY, body: &body });
    let replies = match replies {
        // A kernel without IPv6.
        Err(error) if family != FAMILIES[0] && error.refusal() == Some(libc::ENOENT) => Vec::new(),
        replies => replies?,
    };
    let read = replies.iter().map(|reply| socket(protocol, reply));
    read.collect::<Result<_, _>>().map_err(|source| NetlinkError::Malformed { request: NAME, source })
}

/// struct inet_diag_req_v2: family, protocol, extensions, pad, states, id.
fn request(family: u8, protocol: Protocol, id: &[u8; SOCKID]) -> Vec<u8> {
    [&[family, protocol.number(), 0, 0], EVERY_STATE.to_ne_bytes().as_slice(), id].concat()
}

/// struct inet_diag_msg: family, state, timer, retransmits, id, five words; then attributes.
fn socket(protocol: Protocol, reply: &Reply) -> Result<InetSocket, DecodeError> {
    let short = || DecodeError::buffer_too_small(reply.body.len(), MESSAGE);
    let (head, rest) = reply.body.split_at_checked(MESSAGE).ok_or_else(short)?;
    let family = *head.first().ok_or_else(short)?;
    let id: [u8; SOCKID] = *head.get(4..).and_then(<[u8]>::first_chunk).ok_or_else(short)?;
    let mut cgroup = None;
    for attribute in attributes(rest) {
        if let (INET_DIAG_CGROUP_ID, value) = attribute? {
            cgroup = value.try_into().ok().map(u64::from_ne_bytes);
        }
    }
    let [local, remote] = endpoints(family, &id);
    let connected = remote.port() != 0 || !remote.ip().is_unspecified();
    Ok(InetSocket { protocol, local, remote: connected.then_some(remote), cgroup, cookie: cookie(&id), family, id })
}

/// struct inet_diag_sockid: ports (2 bytes each) and addresses (16 each) in network order, ifindex, cookie (two words).
fn endpoints(family: u8, id: &[u8; SOCKID]) -> [SocketAddr; 2] {
    let [l0, l1, r0, r1, addresses @ ..] = id;
    let (source, destination) = addresses.split_at(16);
    let end = |port: [u8; 2], bytes: &[u8]| {
        let bytes: [u8; 16] = bytes.first_chunk().copied().unwrap_or_default();
        let [a, b, c, d, ..] = bytes;
        let ip = match family {
            family if family == FAMILIES[0] => IpAddr::V4(Ipv4Addr::new(a, b, c, d)),
            _ => IpAddr::V6(Ipv6Addr::from(bytes)),
        };
        SocketAddr::new(ip, u16::from_be_bytes(port))
    };
    [end([*l0, *l1], source), end([*r0, *r1], destination)]
}

fn cookie(id: &[u8; SOCKID]) -> u64 {
    let word = |at| id.get(at..).and_then(<[u8]>::first_chunk).copied().map_or(0, u32::from_ne_bytes);
    // The low word comes first, each in native order (`sock_diag_save_cookie` in net/core/sock_diag.c).
    u64::from(word(SOCKID - 8)) | u64::from(word(SOCKID - 4)) << 32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::netlink::put;
    use proptest::prelude::*;

    fn message(family: u8, ports: [u16; 2], addresses: [IpAddr; 2], cgroup: Option<u64>) -> Reply {
        let mut body = vec![family, 1, 0, 0];
        body.extend(ports.iter().flat_map(|port| port.to_be_bytes()));
        for address in addresses {
            let mut bytes = match address {
                IpAddr::V4(v4) => v4.octets().to_vec(),
                IpAddr::V6(v6) => v6.octets().to_vec(),
            };
            bytes.resize(16, 0);
            body.extend(bytes);
        }
        body.extend(0_u32.to_ne_bytes());
        body.extend(7_u32.to_ne_bytes());
        body.extend(1_u32.to_ne_bytes());
        body.resize(MESSAGE, 0);
        if let Some(cgroup) = cgroup {
            put(&mut body, INET_DIAG_CGROUP_ID, &cgroup.to_ne_bytes());
        }
        Reply { kind: SOCK_DIAG_BY_FAMILY, body }
    }

    #[test]
    fn addresses_cgroup_and_cookie_are_read() {
        let ends = ["192.0.2.1", "198.51.100.2"].map(|ip| ip.parse().unwrap());
        let read = socket(Protocol::Tcp, &message(FAMILIES[0], [1234, 443], ends, Some(99))).unwrap();
        assert_eq!((read.local, read.remote), ("192.0.2.1:1234".parse().unwrap(), "198.51.100.2:443".parse().ok()));
        assert_eq!((read.cgroup, read.cookie), (Some(99), 7 | 1 << 32));
        let ends = ["2001:db8::1", "::"].map(|ip| ip.parse().unwrap());
        let read = socket(Protocol::Udp, &message(FAMILIES[1], [53, 0], ends, None)).unwrap();
        assert_eq!((read.local, read.remote, read.cgroup), ("[2001:db8::1]:53".parse().unwrap(), None, None));
    }

    #[test]
    fn what_was_read_names_the_socket_again() {
        let ends = ["192.0.2.1", "198.51.100.2"].map(|ip| ip.parse().unwrap());
        let reply = message(FAMILIES[0], [1234, 443], ends, None);
        let read = socket(Protocol::Tcp, &reply).unwrap();
        let request = request(read.family, read.protocol, &read.id);
        assert_eq!(request.len(), 56);
        assert_eq!((request.get(..2), request.get(8..)), (Some(&[2, 6][..]), reply.body.get(4..52)));
    }

    proptest! {
        #[test]
        fn no_bytes_break_the_reader(body in prop::collection::vec(any::<u8>(), 0..200)) {
            let read = socket(Protocol::Tcp, &Reply { kind: SOCK_DIAG_BY_FAMILY, body: body.clone() });
            prop_assert!(read.is_err() || body.len() >= MESSAGE);
        }
    }
}

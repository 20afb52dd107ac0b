//! The host-side device of a sandbox's network namespace: where packets are judged that no cgroup hook sees.
//!
//! A device counts when both ends say so: the host's end leads into the sandbox's namespace, to a device that leads back to
//! it (attack: a veth nested in the sandbox and a macvlan, followed in one direction, led to the host's uplink).

use super::{
    addresses,
    link::{self, Link},
    netlink::{Netlink, NetlinkError},
    netns::{Netns, NetnsError},
    watch::{Subscription, Watcher},
};
use netlink_sys::protocols::NETLINK_ROUTE;
use std::{collections::BTreeSet, fmt, net::IpAddr, ops::ControlFlow};

const RTNLGRP_LINK: u32 = 1;
/// IFNAMSIZ without the terminating zero.
const NAME_AT_MOST: usize = 15;

/// Why a sandbox's devices are not known.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// A namespace cannot be entered or asked.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// egressd's own namespace cannot be asked.
    #[error("cannot ask the kernel about the devices of this network namespace")]
    Netlink(#[from] NetlinkError),
    /// No such device.
    #[error("there is no network device {device:?} in this network namespace: `ip link` lists them")]
    NotFound {
        /// The name as it was given.
        device: String,
    },
    /// A device that is no sandbox's or guest's alone.
    #[error(
        "{device} is {kind}: give the host's end of a veth, an L2 netkit, or a tap, whose other end is one sandbox or guest"
    )]
    Kind {
        /// Its name.
        device: String,
        /// What it is instead.
        kind: String,
    },
    /// Its packets have no Ethernet header, which the checks of ARP, neighbour discovery and MAC addresses need.
    #[error(
        "{device} carries packets without an Ethernet header (ARPHRD {arphrd}): use a tap instead of a tun, or netkit in L2 mode"
    )]
    NotEthernet {
        /// Its name.
        device: String,
        /// Its `ARPHRD_*` number; 1 for a netkit in L3 mode.
        arphrd: u16,
    },
}

impl DeviceError {
    fn is_torn(&self) -> bool {
        let (Self::Netlink(source) | Self::Netns(NetnsError::Netlink { source, .. })) = self else { return false };
        matches!(source, NetlinkError::Torn { .. })
    }
}

/// What a device is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Kind {
    /// One end of a pair.
    Veth,
    /// One end of a pair in L2 mode.
    Netkit,
    /// The kernel's end of a guest's device.
    Tap,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Veth => "veth",
            Self::Netkit => "netkit",
            Self::Tap => "tap",
        })
    }
}

/// A device on the host's side. Always Ethernet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Device {
    /// Its index in the namespace that it was found from; unique there until it is removed.
    pub ifindex: u32,
    /// Its name now.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// MAC address of the host's end: the sandbox's gateway, unless the device is in a bridge.
    pub mac: [u8; 6],
    /// The sandbox's end; None for [`by_name`].
    pub peer: Option<Peer>,
}

/// The sandbox's end of a pair.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Peer {
    /// Its index inside.
    pub ifindex: u32,
    /// Its MAC address now. Root inside may change it.
    pub mac: [u8; 6],
}

/// A device inside a sandbox by which packets may leave past every device of [`Found::devices`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Uncovered {
    /// Its name inside.
    pub name: String,
    /// As `ip -d link` shows it: macvlan, ipvlan, tun…; `hardware` without one.
    pub kind: String,
}

/// The ways out of a sandbox's network namespace.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Found {
    /// The host's ends of all pairs, by ifindex.
    pub devices: Vec<Device>,
    /// Other ways out. While there are any, a device verdict does not cover the sandbox.
    pub uncovered: Vec<Uncovered>,
}

/// Finds the devices of `sandbox` as seen from the calling thread's namespace. Nothing is found when both are one.
pub fn find(sandbox: &Netns) -> Result<Found, DeviceError> {
    Finder::open(sandbox)?.find()
}

/// The device of a guest, by name, in the calling thread's namespace.
pub fn by_name(name: &str) -> Result<Device, DeviceError> {
    let missing = || DeviceError::NotFound { device: name.into() };
    if name.is_empty() || name.len() > NAME_AT_MOST || name.contains(['/', '\0']) {
        return Err(missing());
    }
    let link = link::by_name(&mut Netlink::open(NETLINK_ROUTE)?, name)?.ok_or_else(missing)?;
    device(&link, None)
}

/// What a sandbox may use as source addresses at its devices: all of its own now, but loopback.
pub fn source_addresses(sandbox: &Netns) -> Result<BTreeSet<IpAddr>, NetnsError> {
    let mut own = addresses::list(sandbox)?;
    own.retain(|ip| !ip.is_loopback());
    Ok(own)
}

/// Follows the devices of one sandbox; dropping it ends that. It keeps both namespaces alive.
#[derive(Debug)]
pub struct DeviceWatch {
    _watcher: Watcher,
}

impl DeviceWatch {
    /// Calls `changed` with what [`find`] finds from the calling thread's namespace, first before this returns and then, on a
    /// thread of its own, each time it differs. An error is the last call.
    pub fn start(
        sandbox: &Netns,
        mut changed: impl FnMut(Result<Found, DeviceError>) + Send + 'static,
    ) -> Result<Self, DeviceError> {
        // A peer that moves to another namespace is announced at its own side alone, so both are heard.
        let here = Subscription::open(&[RTNLGRP_LINK])?;
        let inside = sandbox.ask(|| Subscription::open(&[RTNLGRP_LINK]))?;
        let mut finder = Finder::open(sandbox)?;
        let mut known = finder.find()?;
        changed(Ok(known.clone()));
        let watcher = Watcher::spawn(vec![here, inside], move |heard| {
            match heard.map_err(DeviceError::from).and_then(|()| finder.find()) {
                Ok(now) if now == known => {}
                // What tore the reading was announced after it, so another one follows.
                Err(error) if error.is_torn() => {}
                Ok(now) => {
                    known.clone_from(&now);
                    changed(Ok(now));
                }
                Err(error) => {
                    changed(Err(error));
                    return ControlFlow::Break(());
                }
            }
            ControlFlow::Continue(())
        })?;
        Ok(Self { _watcher: watcher })
    }
}

/// A netlink socket on each side, and the namespaces themselves to ask the one for its number of the other.
struct Finder {
    here: Netns,
    here_netlink: Netlink,
    sandbox: Netns,
    sandbox_netlink: Netlink,
}

impl Finder {
    fn open(sandbox: &Netns) -> Result<Self, DeviceError> {
        Ok(Self {
            here: Netns::current()?,
            here_netlink: Netlink::open(NETLINK_ROUTE)?,
            sandbox: sandbox.try_clone()?,
            sandbox_netlink: sandbox.ask(|| Netlink::open(NETLINK_ROUTE))?,
        })
    }

    fn find(&mut self) -> Result<Found, DeviceError> {
        if self.here.same_as(&self.sandbox) {
            return Ok(Found::default());
        }
        // Reading the devices is what makes the kernel number the namespaces that they lead to, so the numbers come after.
        let here = Side {
            links: link::list(&mut self.here_netlink)?,
            other: link::nsid(&mut self.here_netlink, as_fd(&self.sandbox))?,
        };
        let inside = (|| {
            let links = link::list(&mut self.sandbox_netlink)?;
            Ok(Side { links, other: link::nsid(&mut self.sandbox_netlink, as_fd(&self.here))? })
        })()
        .map_err(|source| NetnsError::Netlink { netns: self.sandbox.name().into(), source })?;
        pair(&here, &inside)
    }
}

fn as_fd(netns: &Netns) -> std::os::fd::BorrowedFd<'_> {
    std::os::fd::AsFd::as_fd(netns)
}

/// One namespace's devices, and its number for the other one.
struct Side {
    links: Vec<Link>,
    other: Option<i32>,
}

impl Side {
    /// The device of this side whose index is `ifindex`, if it is the end of a pair with `peer` of the other side.
    fn end(&self, kind: &str, peer: &Link) -> Option<&Link> {
        let ifindex = peer.link?;
        self.links.iter().find(|link| link.ifindex == ifindex && link.kind == kind && self.leads_to(link, peer.ifindex))
    }

    fn leads_to(&self, link: &Link, ifindex: u32) -> bool {
        self.other.is_some_and(|other| link.link_netnsid == Some(other)) && link.link == Some(ifindex)
    }
}

fn pair(here: &Side, inside: &Side) -> Result<Found, DeviceError> {
    let mut found = Found::default();
    let mut covered = BTreeSet::new();
    for link in here.links.iter().filter(|link| matches!(link.kind.as_str(), "veth" | "netkit")) {
        let Some(peer) = inside.end(&link.kind, link).filter(|peer| here.leads_to(link, peer.ifindex)) else {
            continue;
        };
        found.devices.push(device(link, Some(Peer { ifindex: peer.ifindex, mac: peer.mac }))?);
        covered.insert(peer.ifindex);
    }
    found.devices.sort_by_key(|device| device.ifindex);
    let others = inside.links.iter().filter(|link| !covered.contains(&link.ifindex) && !stays_inside(link));
    found.uncovered = others.map(|link| Uncovered { name: link.name.clone(), kind: kind(link).into() }).collect();
    Ok(found)
}

/// True for a device whose packets come out of another device of the same namespace, or of none: lo, and the kinds that tell
/// where their lower device, peer or underlay is, when that is here.
fn stays_inside(link: &Link) -> bool {
    const TELLING: [&str; 17] = [
        "bridge",
        "dummy",
        "gre",
        "gretap",
        "ifb",
        "ip6gre",
        "ip6gretap",
        "ip6tnl",
        "ipip",
        "ipvlan",
        "macvlan",
        "netkit",
        "sit",
        "veth",
        "vlan",
        "vrf",
        "vxlan",
    ];
    link.arphrd == libc::ARPHRD_LOOPBACK || link.link_netnsid.is_none() && TELLING.contains(&link.kind.as_str())
}

fn kind(link: &Link) -> &str {
    if link.kind.is_empty() { "hardware" } else { &link.kind }
}

fn device(link: &Link, peer: Option<Peer>) -> Result<Device, DeviceError> {
    let kind = match link.kind.as_str() {
        "veth" => Kind::Veth,
        "netkit" => Kind::Netkit,
        "tun" => Kind::Tap,
        _ => return Err(DeviceError::Kind { device: link.name.clone(), kind: kind(link).into() }),
    };
    if link.arphrd != libc::ARPHRD_ETHER || link.netkit_l3 {
        return Err(DeviceError::NotEthernet { device: link.name.clone(), arphrd: link.arphrd });
    }
    Ok(Device { ifindex: link.ifindex, name: link.name.clone(), kind, mac: link.mac, peer })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(ifindex: u32, kind: &str, link: u32, netnsid: Option<i32>) -> Link {
        Link {
            ifindex,
            name: format!("dev{ifindex}"),
            arphrd: libc::ARPHRD_ETHER,
            kind: kind.into(),
            mac: [2, 0, 0, 0, 0, ifindex as u8],
            link: Some(link),
            link_netnsid: netnsid,
            netkit_l3: false,
        }
    }

    fn pair(here: Vec<Link>, inside: Vec<Link>) -> Result<Found, DeviceError> {
        super::pair(&Side { links: here, other: Some(5) }, &Side { links: inside, other: Some(0) })
    }

    fn indices(found: &Found) -> Vec<(u32, u32)> {
        found.devices.iter().map(|device| (device.ifindex, device.peer.as_ref().unwrap().ifindex)).collect()
    }

    #[test]
    fn all_pairs_are_found() {
        let here = vec![end(9, "veth", 2, Some(5)), end(8, "netkit", 3, Some(5)), end(2, "", 2, None)];
        let inside = vec![end(2, "veth", 9, Some(0)), end(3, "netkit", 8, Some(0))];
        let found = pair(here, inside).unwrap();
        assert_eq!(indices(&found), [(8, 3), (9, 2)]);
        assert!(found.uncovered.is_empty());
        let first = found.devices.first().unwrap();
        assert_eq!(
            (first.kind, first.mac.last(), first.peer.as_ref().unwrap().mac.last()),
            (Kind::Netkit, Some(&8), Some(&3))
        );
    }

    #[test]
    fn one_direction_is_not_enough() {
        let pairs = [
            ("the peer leads elsewhere", end(9, "veth", 2, Some(5)), end(2, "veth", 9, Some(1))),
            ("the peer leads to another device", end(9, "veth", 2, Some(5)), end(2, "veth", 8, Some(0))),
            ("the host's end leads elsewhere", end(9, "veth", 2, Some(6)), end(2, "veth", 9, Some(0))),
            ("the host's end has no number", end(9, "veth", 2, Some(-1)), end(2, "veth", 9, Some(0))),
            ("a nested veth whose peer's index is the uplink's", end(2, "", 2, None), end(3, "veth", 2, Some(1))),
            ("a macvlan over the uplink", end(2, "", 2, None), end(3, "macvlan", 2, Some(0))),
        ];
        for (case, host, sandbox) in pairs {
            let found = pair(vec![host], vec![sandbox]).unwrap();
            assert!(found.devices.is_empty(), "{case}");
            assert_eq!(found.uncovered.len(), 1, "{case}");
        }
        let unknown = Side { links: vec![end(9, "veth", 2, Some(-1))], other: None };
        assert!(
            super::pair(&unknown, &Side { links: vec![end(2, "veth", 9, Some(-1))], other: None })
                .unwrap()
                .devices
                .is_empty()
        );
    }

    #[test]
    fn what_stays_inside_is_no_way_out() {
        let lo = Link { arphrd: libc::ARPHRD_LOOPBACK, ..end(1, "", 1, None) };
        let quiet = vec![
            lo,
            end(2, "bridge", 2, None),
            end(3, "veth", 4, None),
            end(4, "macvlan", 3, None),
            end(5, "sit", 0, None),
        ];
        assert!(pair(Vec::new(), quiet).unwrap().uncovered.is_empty());
        let loud = vec![
            end(2, "", 2, None),
            end(3, "tun", 3, None),
            end(4, "wireguard", 4, None),
            end(5, "vxlan", 2, Some(0)),
        ];
        let kinds: Vec<_> = pair(Vec::new(), loud).unwrap().uncovered.into_iter().map(|way| way.kind).collect();
        assert_eq!(kinds, ["hardware", "tun", "wireguard", "vxlan"]);
    }

    #[test]
    fn a_device_without_a_mac_header_or_of_the_host_is_refused() {
        let tap = end(4, "tun", 4, None);
        assert_eq!(device(&tap, None).unwrap().kind, Kind::Tap);
        let tun = Link { arphrd: libc::ARPHRD_NONE, ..tap };
        assert!(matches!(device(&tun, None), Err(DeviceError::NotEthernet { arphrd: libc::ARPHRD_NONE, .. })));
        let l3 = Link { netkit_l3: true, ..end(9, "netkit", 2, Some(5)) };
        let refused = pair(vec![l3], vec![end(2, "netkit", 9, Some(0))]);
        assert!(matches!(refused, Err(DeviceError::NotEthernet { .. })), "{refused:?}");
        for kind in ["", "bridge", "macvlan"] {
            assert!(matches!(device(&end(2, kind, 2, None), None), Err(DeviceError::Kind { .. })), "{kind}");
        }
        for name in ["", "a/b", "sixteen-letters!", "a\0"] {
            assert!(matches!(by_name(name), Err(DeviceError::NotFound { .. })), "{name}");
        }
    }
}

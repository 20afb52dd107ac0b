//! The host-side device of a sandbox's network namespace: where packets are judged that no cgroup hook sees.
//!
//! A device counts when both ends say so: the host's end leads into the sandbox's namespace, to a device that leads back to
//! it (attack: a veth nested in the sandbox and a macvlan, followed in one direction, led to the host's uplink).

use super::{
    addresses, link,
    netlink::{Netlink, NetlinkError},
    netns::{Netns, NetnsError},
    pair::{Side, device, pair},
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
    #[error(
        "there is no network device {device:?} in this network namespace: `ip link` lists them; run egressd in the namespace that has it"
    )]
    NotFound {
        /// The name as it was given.
        device: String,
    },
    /// XDP programs are asked before any of ours, and may hand frames to other devices.
    #[error(
        "an XDP program on {device} is asked before egressd's and may send frames past it: take it off with `ip link set {device} xdp off`"
    )]
    Outranked {
        /// Its name.
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
    if link.has_xdp {
        return Err(DeviceError::Outranked { device: link.name });
    }
    device(&link, None)
}

/// The device with this index in the calling thread's namespace, None where there is none.
pub(crate) fn by_index(ifindex: u32) -> Result<Option<Device>, DeviceError> {
    link::by_index(&mut Netlink::open(NETLINK_ROUTE)?, ifindex)?.map(|link| device(&link, None)).transpose()
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
    /// thread of its own, each time something may differ: a device that was replaced looks like the one before. An error of
    /// netlink or of a namespace is the last call.
    pub fn start(
        sandbox: &Netns,
        mut changed: impl FnMut(Result<Found, DeviceError>) + Send + 'static,
    ) -> Result<Self, DeviceError> {
        // A peer that moves to another namespace is announced at its own side alone, so both are heard.
        let here = Subscription::open(&[RTNLGRP_LINK])?;
        let inside = sandbox.ask(|| Subscription::open(&[RTNLGRP_LINK]))?;
        let mut finder = Finder::open(sandbox)?;
        changed(Ok(finder.find()?));
        let watcher = Watcher::spawn(vec![here, inside], move |heard| {
            match heard.map_err(DeviceError::from).and_then(|()| finder.find()) {
                // What tore the reading was announced after it, so another one follows.
                Err(error) if error.is_torn() => {}
                found => {
                    let last = matches!(found, Err(DeviceError::Netlink(_) | DeviceError::Netns(_)));
                    changed(found);
                    if last {
                        return ControlFlow::Break(());
                    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_a_name_names_no_device() {
        for name in ["", "a/b", "sixteen-letters!", "a\0"] {
            assert!(matches!(by_name(name), Err(DeviceError::NotFound { .. })), "{name}");
        }
    }
}

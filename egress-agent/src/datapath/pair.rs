//! Which devices of two network namespaces are the two ends of a pair, and what else leads out of the second.

use super::{
    device::{Device, DeviceError, Found, Kind, Peer, Uncovered},
    link::Link,
};
use std::collections::BTreeSet;

/// One namespace's devices, and its number for the other one.
pub(super) struct Side {
    pub(super) links: Vec<Link>,
    pub(super) other: Option<i32>,
}

impl Side {
    /// The device of this side whose index is `ifindex`, if it is the end of a pair with `peer` of the other side.
    fn end(&self, kind: &str, peer: &Link) -> Option<&Link> {
        let ifindex = peer.leads_to?;
        self.links.iter().find(|link| link.ifindex == ifindex && link.kind == kind && self.leads_to(link, peer.ifindex))
    }

    fn leads_to(&self, link: &Link, ifindex: u32) -> bool {
        self.other.is_some_and(|other| link.netnsid == Some(other)) && link.leads_to == Some(ifindex)
    }
}

/// The pairs between `here` and `inside`, and the other ways out of `inside`.
pub(super) fn pair(here: &Side, inside: &Side) -> Result<Found, DeviceError> {
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
    link.arphrd == libc::ARPHRD_LOOPBACK || link.netnsid.is_none() && TELLING.contains(&link.kind.as_str())
}

fn kind(link: &Link) -> &str {
    if link.kind.is_empty() { "hardware" } else { &link.kind }
}

/// A device that a verdict can be attached to, or why not.
pub(super) fn device(link: &Link, peer: Option<Peer>) -> Result<Device, DeviceError> {
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

    fn end(ifindex: u32, kind: &str, leads_to: u32, netnsid: Option<i32>) -> Link {
        Link {
            ifindex,
            name: format!("dev{ifindex}"),
            arphrd: libc::ARPHRD_ETHER,
            kind: kind.into(),
            mac: [2, 0, 0, 0, 0, ifindex as u8],
            leads_to: Some(leads_to),
            netnsid,
            netkit_l3: false,
            has_xdp: false,
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
    }
}

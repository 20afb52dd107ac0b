//! Random policies over few addresses and ports, so that packets and rules meet.

use egress_agent::datapath::probe::{NONCE, SLOT};
use egress_common::{
    addr::Addr,
    destination::{PortRange, Protocols},
    packet::{FlowKey, protocol},
    permit::{GRANTS, Grant, NEVER_NS, Network, NetworkKey, Permit, PermitKey, RANGES, Rule, RuleRef, rule_flags},
    sandbox::{Sandbox, flags},
    verdict::ListenerKey,
};
use proptest::{collection::vec, prelude::*, sample::select};
use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, SocketAddr},
};

/// Rules of a world.
pub const RULES: usize = 8;
/// The address of [`one_permit`].
pub const PERMITTED: &str = "198.51.100.7";
/// Port of the sandbox's own DNS listener.
pub const LISTENER_PORT: u16 = 999;
const FOREIGN_PORT: u16 = 998;
const NETNS_COOKIE: u64 = 77;

/// Every class of address, in every form that a packet or a socket can write.
pub const ADDRESSES: [&str; 30] = [
    "192.0.2.1",
    "192.0.2.2",
    "198.51.100.7",
    "203.0.113.9",
    "10.0.0.1",
    "127.0.0.1",
    "127.0.0.2",
    "0.0.0.0",
    "0.1.2.3",
    "169.254.169.254",
    "224.0.0.1",
    "255.255.255.255",
    "::1",
    "::",
    "2001:db8::1",
    "2001:db8::2",
    "2001:db8:1::1",
    "fe80::1",
    "ff02::1",
    "ff02::2",
    "::ffff:192.0.2.1",
    "::ffff:127.0.0.1",
    "64:ff9b::c000:201",
    "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::c000:201",
    "2002:c000:201::1",
    "2001:0:1::1",
    "::192.0.2.1",
    "2001:db8::5efe:192.0.2.1",
];

/// Ports that rules and packets name.
pub const PORTS: [u16; 12] = [0, 53, 80, 137, 443, 853, LISTENER_PORT, FOREIGN_PORT, 5353, 5355, 8080, 65535];

/// One sandbox and all that the maps hold for it.
#[derive(Clone, Debug)]
pub struct World {
    pub sandbox: Sandbox,
    pub rules: Vec<Rule>,
    pub permits: HashMap<PermitKey, Permit>,
    pub networks: Vec<(NetworkKey, u32, Network)>,
    pub own: HashSet<PermitKey>,
    pub sources: HashSet<PermitKey>,
}

/// Another sandbox's listener, in the namespace of every world.
pub fn foreign_listener() -> ListenerKey {
    ListenerKey { netns_cookie: NETNS_COOKIE, port: FOREIGN_PORT.into(), reserved: 0 }
}

/// An address of the pool.
pub fn address() -> impl Strategy<Value = IpAddr> {
    select(&ADDRESSES).prop_map(|text| text.parse().expect("an address"))
}

fn key(slot: u32, ip: IpAddr) -> PermitKey {
    PermitKey { slot, addr: Addr::from(ip).routed() }
}

fn keys(size: std::ops::Range<usize>) -> impl Strategy<Value = HashSet<PermitKey>> {
    vec(address(), size).prop_map(|ips| ips.into_iter().map(|ip| key(SLOT, ip)).collect())
}

/// Mostly ours; sometimes of another sandbox.
fn slot() -> impl Strategy<Value = u32> {
    prop_oneof![9 => Just(SLOT), 1 => Just(2)]
}

fn range() -> impl Strategy<Value = PortRange> {
    let protocols = select(&[Protocols::TCP, Protocols::UDP, Protocols::ANY]);
    prop_oneof![
        1 => Just(PortRange::ALL),
        6 => (select(&PORTS), select(&PORTS), any::<bool>(), protocols).prop_map(|(one, other, single, protocols)| {
            let last = if single { one } else { one.max(other) };
            PortRange { first: one.min(last), last, protocols }
        }),
    ]
}

fn rule(index: u32) -> impl Strategy<Value = Rule> {
    const KINDS: [u32; 5] = [0, rule_flags::STATIC, rule_flags::STATIC, rule_flags::DENY, rule_flags::INBOUND];
    let ranges = prop_oneof![8 => vec(range(), 0..5), 2 => vec(range(), 5..=RANGES)];
    (slot(), select(&KINDS[..]), ranges).prop_map(move |(slot, flags, given)| {
        let mut ranges = [PortRange { first: 0, last: 0, protocols: Protocols::NONE }; RANGES];
        ranges[..given.len()].copy_from_slice(&given);
        Rule { tag: index + 1, slot, flags, len: given.len() as u32, ranges }
    })
}

/// To a rule, to none, or to a rule that is no longer there.
fn reference() -> impl Strategy<Value = RuleRef> {
    let index = 0..RULES as u32;
    prop_oneof![
        2 => Just(RuleRef::NONE),
        7 => index.clone().prop_map(|index| RuleRef { index, tag: index + 1 }),
        1 => index.prop_map(|index| RuleRef { index, tag: 1000 }),
    ]
}

/// A deny is rarer, or nothing would pass.
fn deny() -> impl Strategy<Value = RuleRef> {
    prop_oneof![3 => Just(RuleRef::NONE), 1 => reference()]
}

fn grant() -> impl Strategy<Value = Grant> {
    let expires_ns = select(&[NEVER_NS, NEVER_NS - 1, 1][..]);
    (expires_ns, reference()).prop_map(|(expires_ns, rule)| Grant { expires_ns, rule })
}

fn permit() -> impl Strategy<Value = Permit> {
    (deny(), vec(grant(), GRANTS))
        .prop_map(|(deny, grants)| Permit { deny, grants: grants.try_into().expect("as many as there is room for") })
}

fn network() -> impl Strategy<Value = (NetworkKey, u32, Network)> {
    let prefix = select(&[0_u32, 16, 64, 96, 104, 120, 128][..]);
    (slot(), address(), prefix, reference(), deny(), reference()).prop_map(
        |(slot, ip, prefix, allow, deny, inbound)| {
            let bits = u128::from_be_bytes(octets(Addr::from(ip).routed()));
            let kept = if prefix == 0 { 0 } else { bits & u128::MAX << (128 - prefix) };
            let addr = Addr::from(std::net::Ipv6Addr::from(kept));
            (NetworkKey { slot, addr }, prefix, Network { allow, deny, inbound })
        },
    )
}

/// The bytes of an address as they lie in a key.
pub fn octets(addr: Addr) -> [u8; 16] {
    match addr.to_ip() {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

fn sandbox() -> impl Strategy<Value = Sandbox> {
    const KNOWN: [u32; 4] = [flags::OBSERVE, flags::ICMP_ECHO, flags::OWN_NETNS, flags::LOOPBACK_PORTS];
    let flags = proptest::sample::subsequence(&KNOWN[..], 0..=KNOWN.len());
    (flags, reference(), reference()).prop_map(|(flags, loopback, own)| Sandbox {
        nonce: NONCE,
        netns_cookie: NETNS_COOKIE,
        flags: flags.into_iter().fold(0, |all, one| all | one),
        listener_port: LISTENER_PORT.into(),
        loopback,
        own,
    })
}

/// An address that the sandbox may send from.
pub fn source(ip: &str) -> PermitKey {
    key(SLOT, ip.parse().expect("an address"))
}

/// A flow of UDP as the sandbox sends it.
pub fn flow(local: &str, remote: &str) -> FlowKey {
    let [local, remote] = [local, remote].map(|text| text.parse::<SocketAddr>().expect("address and port"));
    FlowKey {
        slot: SLOT,
        local: Addr::from(local.ip()),
        remote: Addr::from(remote.ip()),
        local_port: local.port(),
        remote_port: remote.port(),
        protocol: protocol::UDP.into(),
    }
}

/// A random world.
pub fn strategy() -> impl Strategy<Value = World> {
    let rules: Vec<_> = (0..RULES as u32).map(rule).collect();
    let permits = vec((slot(), address(), permit()), 0..12);
    (sandbox(), rules, permits, vec(network(), 0..10), keys(0..4), keys(6..16)).prop_map(
        |(sandbox, rules, permits, networks, own, sources)| World {
            sandbox,
            rules,
            permits: permits.into_iter().map(|(slot, ip, permit)| (key(slot, ip), permit)).collect(),
            // The last of two entries with one key is what a map holds.
            networks: networks
                .iter()
                .enumerate()
                .filter(|(at, (key, prefix, _))| {
                    !networks[at + 1..].iter().any(|other| (other.0, other.1) == (*key, *prefix))
                })
                .map(|(_, network)| *network)
                .collect(),
            own,
            sources,
        },
    )
}

/// A sandbox that may reach [`PERMITTED`] on the ports of a plain name, by a permit that a name gave.
pub fn one_permit() -> World {
    let mut ranges = [PortRange { first: 0, last: 0, protocols: Protocols::NONE }; RANGES];
    for (range, (port, protocols)) in
        ranges.iter_mut().zip([(80, Protocols::TCP), (443, Protocols::TCP), (443, Protocols::UDP)])
    {
        *range = PortRange { first: port, last: port, protocols };
    }
    let mut grants = [Grant::default(); GRANTS];
    grants[0] = Grant { expires_ns: NEVER_NS - 1, rule: RuleRef { index: 0, tag: 1 } };
    let permit = Permit { deny: RuleRef::NONE, grants };
    World {
        sandbox: Sandbox { nonce: NONCE, netns_cookie: NETNS_COOKIE, ..Sandbox::default() },
        rules: vec![Rule { tag: 1, slot: SLOT, flags: 0, len: 3, ranges }],
        permits: HashMap::from([(key(SLOT, PERMITTED.parse().expect("an address")), permit)]),
        networks: Vec::new(),
        own: HashSet::new(),
        sources: HashSet::new(),
    }
}

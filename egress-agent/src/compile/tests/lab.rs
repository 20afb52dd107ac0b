//! What the tests share: compiled images, questions, and random policies.

use crate::{
    compile::{Facts, Image, ImageTables, Limits, RuleIds, compile},
    policy::Policy,
};
use egress_common::{
    addr::Addr,
    packet::protocol,
    question::{Asked, Path, Question},
    verdict::Verdict,
};
use proptest::prelude::*;
use std::{collections::BTreeSet, fmt::Write, net::IpAddr};

pub(super) const LIMITS: Limits = Limits { rules: 4096, networks: 4096, permits: 4096 };
pub(super) const SLOT: u32 = 3;

pub(super) fn policy(text: &str) -> Policy {
    Policy::from_toml(text).unwrap_or_else(|error| panic!("{text}\n{error}"))
}

pub(super) fn facts(own_netns: bool) -> Facts {
    let own_addresses = ["198.51.100.30", "2001:db8::30", "10.0.0.30"].iter().map(|ip| ip.parse().unwrap()).collect();
    Facts { own_netns, own_addresses, netns_cookie: 7, listener_port: 953, ..Facts::default() }
}

pub(super) fn image(text: &str, own_netns: bool) -> Image {
    compile(&policy(text), &facts(own_netns), SLOT, &mut RuleIds::new(0..4096), LIMITS).unwrap()
}

pub(super) fn question(dst: &str, ip_protocol: u8, port: Option<u16>, path: Path) -> Question {
    Question { dst: Addr::from(dst.parse::<IpAddr>().unwrap()), asked: Asked::new(path, ip_protocol, port, 8) }
}

/// `198.51.100.7:443`, TCP, on the wire.
pub(super) fn asks(image: &Image, dst: &str, port: u16) -> Verdict {
    ImageTables::from(image).decide(question(dst, protocol::TCP, Some(port), Path::Wire))
}

/// A policy's address lines, as text.
#[derive(Clone, Debug, Default)]
pub(super) struct Lines {
    pub(super) loopback: &'static str,
    pub(super) own: &'static str,
    pub(super) icmp: &'static str,
    pub(super) allow: Vec<String>,
    pub(super) deny: Vec<String>,
    pub(super) inbound: Vec<String>,
    pub(super) names: Vec<String>,
    pub(super) denied_names: Vec<String>,
}

impl Lines {
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        let write = write!(
            text,
            "[allow]\nloopback = {}\nself = {}\nicmp = {:?}\naddresses = {:?}\ninbound = {:?}\nnames = {:?}\n[deny]\naddresses = {:?}\nnames = {:?}\n",
            self.loopback, self.own, self.icmp, self.allow, self.inbound, self.names, self.deny, self.denied_names
        );
        write.unwrap();
        text
    }

    /// `None` where lines cancel each other, which is an error of its own.
    pub(super) fn policy(&self) -> Option<Policy> {
        Policy::from_toml(&self.text()).ok()
    }
}

/// Networks that overlap often, special ranges included.
fn net() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "0.0.0.0/0",
        "128.0.0.0/1",
        "10.0.0.0/8",
        "10.0.0.0/24",
        "10.0.0.0/30",
        "10.0.0.1",
        "10.0.0.30",
        "198.51.100.0/24",
        "198.51.100.30",
        "198.51.100.7",
        "169.254.0.0/16",
        "169.254.169.254",
        "169.0.0.0/8",
        "224.0.0.0/4",
        "::/0",
        "2000::/3",
        "2001:db8::/32",
        "2001:db8::/64",
        "2001:db8::30",
        "2001:db8::1",
        "2002::/16",
        "2002:7f00:1::/48",
        "fe80::/10",
        "fe80::1",
        "64:ff9b::/96",
        "64:ff9b::a00:1",
        "::ffff:10.0.0.0/120",
        "::/64",
        "0.0.0.0/8",
        "64:ff9b:1::/48",
    ])
}

pub(super) fn destination() -> impl Strategy<Value = String> {
    let ports = prop::sample::select(vec!["", ":*", ":80", ":443", ":80,443", ":1-1000", ":853", ":137", ":136-138"]);
    (net(), ports, prop::sample::select(vec!["", "/tcp", "/udp"])).prop_map(|(net, ports, protocol)| {
        if net.contains(':') && !ports.is_empty() {
            format!("[{net}]{ports}{protocol}")
        } else {
            format!("{net}{ports}{protocol}")
        }
    })
}

pub(super) fn lines() -> impl Strategy<Value = Lines> {
    let few = |most: usize| prop::collection::btree_set(destination(), 0..most);
    let local = || prop::sample::select(vec!["true", "false", "[80, 443]"]);
    let name = || prop::collection::btree_set(prop::sample::select(vec!["a.test:443", "b.test", "*.b.test:80"]), 0..3);
    let denied = prop::collection::btree_set(prop::sample::select(vec!["c.test", "a.b.test"]), 0..2);
    (local(), local(), prop::sample::select(vec!["none", "echo"]), few(6), few(4), few(3), name(), denied).prop_map(
        |(loopback, own, icmp, allow, deny, inbound, names, denied_names)| {
            // Different texts may say the same; a file may hold each once.
            let strings = |list: BTreeSet<&str>| list.into_iter().map(str::to_owned).collect();
            Lines {
                loopback,
                own,
                icmp,
                allow: distinct(allow),
                deny: distinct(deny).into_iter().filter(|text| loopback == "false" || !text.contains("/0")).collect(),
                inbound: distinct(inbound),
                names: strings(names),
                denied_names: strings(denied_names),
            }
        },
    )
}

fn distinct(texts: BTreeSet<String>) -> Vec<String> {
    let mut seen = BTreeSet::new();
    texts
        .into_iter()
        .filter(|text| {
            let parsed: crate::policy::Destination = text.parse().unwrap();
            seen.insert(format!("{:?} {}", parsed.host(), parsed.ports()))
        })
        .collect()
}

pub(super) const PORTS: [u16; 9] = [22, 53, 80, 136, 137, 443, 853, 1000, 1001];

pub(super) const ADDRESSES: [&str; 32] = [
    "10.0.0.0",
    "10.0.0.1",
    "10.0.0.2",
    "10.0.0.30",
    "10.0.0.200",
    "10.1.2.3",
    "198.51.100.7",
    "198.51.100.30",
    "198.51.100.31",
    "203.0.113.9",
    "169.254.169.254",
    "169.254.1.1",
    "169.253.1.1",
    "224.0.0.251",
    "255.255.255.255",
    "0.1.2.3",
    "127.0.0.1",
    "0.0.0.0",
    "::",
    "::1",
    "::1.2.3.4",
    "2001:db8::1",
    "2001:db8::30",
    "2001:db8:1::1",
    "2001::1",
    "2002:7f00:1::1",
    "2002::1",
    "fe80::1",
    "ff02::fb",
    "64:ff9b::a00:1",
    "64:ff9b:1::1",
    "::ffff:10.0.0.2",
];

pub(super) fn questions() -> impl Iterator<Item = (&'static str, u8, Option<u16>, Path)> {
    ADDRESSES.into_iter().flat_map(|addr| {
        [Path::Socket, Path::Loopback, Path::Wire].into_iter().flat_map(move |path| {
            let ported = [protocol::TCP, protocol::UDP].into_iter().flat_map(|ip_protocol| {
                PORTS.into_iter().map(move |port| (ip_protocol, Some(port))).chain([(ip_protocol, None)])
            });
            ported.chain([(protocol::ICMP, None)]).map(move |(ip_protocol, port)| (addr, ip_protocol, port, path))
        })
    })
}

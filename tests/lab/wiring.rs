//! Who is where: the addresses of a lab, the devices between its namespaces, and the names that every lab knows.

use std::net::{IpAddr, Ipv4Addr};

use crate::{
    need,
    netns::Netns,
    zone::{Entry, Zone},
};

/// The box's address.
pub const BOX: IpAddr = v4(30);
/// The gateway, and the address of the platform's services.
pub const GATEWAY: IpAddr = v4(1);
/// ok.test, which the tests allow.
pub const OK: IpAddr = v4(10);
/// evil.test, which no test allows.
pub const EVIL: IpAddr = v4(20);
/// The DNS server that egressd is told.
pub const DNS: IpAddr = v4(53);
/// Another DNS server.
pub const DNS2: IpAddr = v4(54);
/// A machine on the same link.
pub const NEIGHBOUR: IpAddr = v4(77);
/// The proxy.
pub const PROXY: IpAddr = v4(80);
/// The metadata service of clouds.
pub const METADATA: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254));
/// ok6.test and evil6.test.
pub const OK6: &str = "2001:db8::10";
/// See [`OK6`].
pub const EVIL6: &str = "2001:db8::20";

const fn v4(host: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(198, 51, 100, host))
}

/// Where the DNS servers listen.
pub(crate) fn dns_servers() -> [IpAddr; 4] {
    let v6 = |text: &str| text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
    [DNS, DNS2, v6("2001:db8::53"), v6("2001:db8::54")]
}

/// Joins a box to the bridge of `outer`: 198.51.100.`host` and 2001:db8::`host`, behind the bridge port `port`.
pub(crate) fn plug(outer: &Netns, netns: &Netns, port: &str, host: u8) {
    let path = netns.path();
    outer.ip(&format!(
        "link add {port} type veth peer name eth0 netns {}\nlink set {port} master br0 up",
        path.display()
    ));
    netns.ip(&format!(
        "link set eth0 up
addr add 198.51.100.{host}/24 dev eth0
addr add 2001:db8::{host}/64 dev eth0 nodad
route add default via {GATEWAY}
route add ::/0 via 2001:db8::1"
    ));
}

/// The bridge, and the sink behind it with all its addresses.
pub(crate) fn wire(outer: &Netns, sink: &Netns) {
    need("ip");
    outer.ip(&format!(
        "link add br0 type bridge forward_delay 0 mcast_snooping 0
link add uplink type veth peer name eth0 netns {}
link set uplink master br0 up
addr add 198.51.100.2/24 dev br0
addr add 2001:db8::2/64 dev br0 nodad
link set br0 up
route add default via {GATEWAY}",
        sink.path().display()
    ));
    let hosts = [1, 10, 11, 12, 13, 14, 15, 20, 21, 53, 54, 77, 80];
    let both = |host| format!("\naddr add 198.51.100.{host}/24 dev eth0\naddr add 2001:db8::{host}/64 dev eth0 nodad");
    let lines = "link set eth0 up\naddr add fe80::2/64 dev eth0 nodad\naddr add 169.254.169.254/32 dev eth0".to_owned();
    sink.ip(&(lines + &hosts.map(both).concat()));
}

/// The names that every lab knows.
pub(crate) fn names(zone: &Zone) {
    for (name, addresses) in [
        ("ok.test", &["198.51.100.10"][..]),
        ("ok6.test", &[OK6]),
        ("both.test", &["198.51.100.10", OK6]),
        ("a.test", &["198.51.100.11"]),
        ("b.test", &["198.51.100.12"]),
        ("c.test", &["198.51.100.13"]),
        ("d.test", &["198.51.100.14"]),
        ("e.test", &["198.51.100.15"]),
        ("f.test", &["198.51.100.21"]),
        ("evil.test", &["198.51.100.20"]),
        ("evil6.test", &[EVIL6]),
        ("meta.lab.test", &["169.254.169.254"]),
        ("good.lab.test", &["198.51.100.11"]),
    ] {
        zone.put(name, Entry::at(addresses));
    }
}

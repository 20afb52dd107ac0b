//! Namespaces, devices, addresses and listeners as the agent sees them, in namespaces that no other process uses.

use egress_agent::datapath::{
    addresses,
    device::{self, DeviceError, Kind},
    listeners::{ListenError, PORTS},
    netns::{Netns, NetnsError},
};
use lab::until;
use nix::{
    fcntl::{FcntlArg, FdFlag, OFlag, fcntl},
    sched::{CloneFlags, unshare},
    sys::socket::{
        AddressFamily, SockFlag, SockType, SockaddrStorage, bind, getsockopt, setsockopt, socket,
        sockopt::{Ipv6V6Only, RcvBuf, ReuseAddr},
    },
};
use std::{
    collections::BTreeSet,
    io::ErrorKind,
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    os::fd::{AsFd, AsRawFd as _},
    process::Command,
    sync::mpsc::{Receiver, channel},
    thread,
    time::{Duration, Instant},
};

/// A change must be seen within this.
const SEEN_WITHIN: Duration = Duration::from_secs(1);

/// A network namespace without a name, which ends with its last handle.
fn netns() -> Netns {
    let made = thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace needs root");
        Netns::current().unwrap()
    })
    .join()
    .unwrap();
    Netns::from_fd(made.as_fd().try_clone_to_owned().unwrap(), "of a test".into()).unwrap()
}

/// Runs `ip` inside; `{other}` stands for the namespace of `other`.
fn ip(inside: &Netns, line: &str) {
    let words: Vec<_> = line.split_whitespace().collect();
    let output = inside.enter(|| Command::new("ip").args(&words).output().unwrap()).unwrap();
    assert!(output.status.success(), "ip {line}: {}", String::from_utf8_lossy(&output.stderr));
}

/// How `ip link … netns` finds a namespace that this process holds.
fn path_of(netns: &Netns) -> String {
    format!("/proc/{}/fd/{}", std::process::id(), netns.as_fd().as_raw_fd())
}

/// A pair of devices: `here` in one namespace, `there` in the other.
fn veth(here: (&Netns, &str), there: (&Netns, &str)) {
    ip(here.0, &format!("link add {} type veth peer name {} netns {}", here.1, there.1, path_of(there.0)));
}

fn set(list: &[&str]) -> BTreeSet<IpAddr> {
    list.iter().map(|text| text.parse().unwrap()).collect()
}

/// Waits until `wanted` holds for something that was delivered.
fn await_delivery<T: std::fmt::Debug>(delivered: &Receiver<T>, what: &str, wanted: impl Fn(&T) -> bool) -> T {
    let deadline = Instant::now() + SEEN_WITHIN;
    let mut last = None;
    while let Ok(item) = delivered.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        if wanted(&item) {
            return item;
        }
        last = Some(item);
    }
    panic!("{what} was not seen within a second; last: {last:?}");
}

#[test]
fn work_happens_inside_and_its_panic_stays_there() {
    let (here, inside) = (Netns::current().unwrap(), netns());
    assert!(!here.same_as(&inside));
    let seen = inside.enter(|| Netns::current().unwrap().id()).unwrap();
    assert_eq!(seen, inside.id());
    assert!(Netns::current().unwrap().same_as(&here));
    assert!(matches!(inside.enter(|| panic!("on purpose")), Err::<(), _>(NetnsError::Panicked { .. })));
    assert_eq!(inside.enter(|| 7).unwrap(), 7);
}

#[test]
fn a_cookie_names_one_namespace() {
    let (one, other) = (netns(), netns());
    assert_eq!(one.cookie().unwrap(), one.try_clone().unwrap().cookie().unwrap());
    assert_ne!(one.cookie().unwrap(), other.cookie().unwrap());
    assert_ne!(one.cookie().unwrap(), Netns::current().unwrap().cookie().unwrap());
}

#[test]
fn a_named_namespace_is_found_by_name() {
    struct Named(String);
    impl Drop for Named {
        fn drop(&mut self) {
            Command::new("ip").args(["netns", "del", &self.0]).status().ok();
        }
    }
    let named = Named(format!("egl-{}-name", std::process::id()));
    assert!(Command::new("ip").args(["netns", "add", &named.0]).status().unwrap().success());
    let by_name = Netns::from_name(&named.0).unwrap();
    let by_path = Netns::from_path(&std::path::Path::new("/run/netns").join(&named.0)).unwrap();
    assert!(by_name.same_as(&by_path) && !by_name.same_as(&Netns::current().unwrap()));
    let down = by_name.open_listeners(PORTS).unwrap_err();
    assert!(down.to_string().contains(&format!("`ip -n {} link set lo up`", named.0)), "{down}");
}

#[test]
fn listeners_stand_inside_on_one_privileged_port_of_both_families() {
    let (inside, outside) = (netns(), netns());
    outside.set_loopback_up().unwrap();
    assert!(matches!(inside.open_listeners(PORTS), Err(ListenError::LoopbackDown { .. })));
    assert!(!inside.loopback_is_up().unwrap());
    inside.set_loopback_up().unwrap();
    assert!(inside.loopback_is_up().unwrap());

    let listeners = inside.open_listeners(PORTS).unwrap();
    assert!(PORTS.contains(&listeners.port));
    let expected: Vec<SocketAddr> =
        ["127.0.0.1", "::1"].map(|ip| SocketAddr::new(ip.parse().unwrap(), listeners.port)).to_vec();
    let udp: Vec<_> = listeners.udp.iter().map(|socket| socket.local_addr().unwrap()).collect();
    let tcp: Vec<_> = listeners.tcp.iter().map(|socket| socket.local_addr().unwrap()).collect();
    assert_eq!((&udp, &tcp), (&expected, &expected));
    let fds = listeners.udp.iter().map(AsFd::as_fd).chain(listeners.tcp.iter().map(AsFd::as_fd));
    for fd in fds {
        assert!(FdFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFD).unwrap()).contains(FdFlag::FD_CLOEXEC));
        assert!(OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL).unwrap()).contains(OFlag::O_NONBLOCK));
        assert!(!getsockopt(&fd, ReuseAddr).unwrap());
    }
    for fd in [listeners.udp.get(1).unwrap().as_fd(), listeners.tcp.get(1).unwrap().as_fd()] {
        assert!(getsockopt(&fd, Ipv6V6Only).unwrap());
    }
    for socket in &listeners.udp {
        assert!(getsockopt(socket, RcvBuf).unwrap() >= 1 << 20);
    }

    for (address, socket) in expected.iter().zip(&listeners.udp) {
        let any: SocketAddr = if address.is_ipv4() { "127.0.0.1:0" } else { "[::1]:0" }.parse().unwrap();
        let client = inside.enter(|| UdpSocket::bind(any).unwrap()).unwrap();
        client.send_to(b"query", address).unwrap();
        let mut buffer = [0; 16];
        let (len, from) = socket.recv_from(&mut buffer).unwrap();
        assert_eq!((buffer.get(..len), from), (Some(&b"query"[..]), client.local_addr().unwrap()));
        assert!(inside.enter(|| TcpStream::connect(address).is_ok()).unwrap(), "{address}");
        let refused = outside.enter(|| TcpStream::connect(address)).unwrap().unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{address}");
    }
}

#[test]
fn nobody_shares_a_listeners_port() {
    let inside = netns();
    inside.set_loopback_up().unwrap();
    let listeners = inside.open_listeners(PORTS).unwrap();
    let taken = listeners.port;
    let try_bind = |text: &str| {
        inside
            .enter(|| {
                let address: SocketAddr = text.parse().unwrap();
                let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
                let fd = socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None).unwrap();
                setsockopt(&fd, ReuseAddr, &true).unwrap();
                bind(fd.as_raw_fd(), &SockaddrStorage::from(address))
            })
            .unwrap()
    };
    for host in ["0.0.0.0", "127.0.0.1", "[::1]", "[::]"] {
        assert_eq!(try_bind(&format!("{host}:{taken}")), Err(nix::errno::Errno::EADDRINUSE), "{host}");
        assert_eq!(try_bind(&format!("{host}:{}", taken + 3000)), Ok(()), "{host}");
    }
    let refused = inside.open_listeners(taken..=taken).unwrap_err();
    assert!(
        matches!(&refused, ListenError::NoPort { first, last, .. } if (*first, *last) == (taken, taken)),
        "{refused}"
    );
    assert_ne!(inside.open_listeners(PORTS).unwrap().port, taken);
    drop(listeners);
    // A process that a test beside this one is starting has every descriptor until its exec.
    until(Duration::from_secs(5), "the port is free again", || {
        inside.open_listeners(taken..=taken).is_ok_and(|again| again.port == taken)
    });
}

#[test]
fn the_port_cannot_be_guessed() {
    let ports: BTreeSet<u16> = (0..4)
        .map(|_| {
            let inside = netns();
            inside.set_loopback_up().unwrap();
            inside.open_listeners(PORTS).unwrap().port
        })
        .collect();
    assert!(ports.len() > 1, "four fresh namespaces all gave {ports:?}");
}

#[test]
fn where_ipv6_is_disabled_only_ipv4_listens() {
    let inside = netns();
    inside.set_loopback_up().unwrap();
    inside.enter(|| std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1").unwrap()).unwrap();
    let listeners = inside.open_listeners(PORTS).unwrap();
    assert_eq!((listeners.udp.len(), listeners.tcp.len()), (1, 1));
    assert!(listeners.udp.iter().all(|socket| socket.local_addr().unwrap().is_ipv4()));
    ip(&inside, "address del 127.0.0.1/8 dev lo");
    let missing = inside.open_listeners(PORTS).unwrap_err();
    assert!(matches!(missing, ListenError::NoLoopbackAddress { .. }), "{missing}");
    // What the message says to type heals it.
    let text = missing.to_string();
    let command = text.split('`').nth(1).unwrap();
    assert!(Command::new("sh").args(["-c", command]).status().unwrap().success(), "{command}");
    inside.open_listeners(PORTS).unwrap();
}

#[test]
fn addresses_are_those_of_all_interfaces_and_both_families() {
    let inside = netns();
    assert!(addresses::list(&inside).unwrap().is_empty());
    veth((&inside, "one"), (&inside, "two"));
    ip(&inside, "link set lo up");
    ip(&inside, "address add 192.0.2.1/24 dev one");
    ip(&inside, "address add 198.51.100.1 peer 198.51.100.2 dev two label two:odd");
    ip(&inside, "address add 2001:db8::1/64 dev two nodad");
    ip(&inside, "address add 2001:db8:1::1 peer 2001:db8:1::2 dev one nodad");
    ip(&inside, "address add fe80::7/64 dev two nodad");
    let expected = set(&["127.0.0.1", "::1", "192.0.2.1", "198.51.100.1", "2001:db8::1", "2001:db8:1::1", "fe80::7"]);
    assert_eq!(addresses::list(&inside).unwrap(), expected);
    let sources: BTreeSet<_> = expected.into_iter().filter(|ip| !ip.is_loopback()).collect();
    assert_eq!(device::source_addresses(&inside).unwrap(), sources);
}

#[test]
fn every_change_of_address_is_delivered_within_a_second() {
    let inside = netns();
    veth((&inside, "one"), (&inside, "two"));
    ip(&inside, "address add 192.0.2.1/24 dev one");
    let (send, delivered) = channel();
    let watch = addresses::Watch::start(&inside, move |now| send.send(now.unwrap()).unwrap()).unwrap();
    assert_eq!(delivered.try_recv().unwrap(), set(&["192.0.2.1"]), "the first set comes before start returns");

    let steps: [(&str, &[&str]); 5] = [
        ("address add 198.51.100.1/24 dev two", &["192.0.2.1", "198.51.100.1"]),
        ("address add 2001:db8::1/64 dev two nodad", &["192.0.2.1", "198.51.100.1", "2001:db8::1"]),
        ("address del 192.0.2.1/24 dev one", &["198.51.100.1", "2001:db8::1"]),
        ("address replace 203.0.113.1/24 dev one", &["198.51.100.1", "2001:db8::1", "203.0.113.1"]),
        ("link del one", &[]),
    ];
    for (line, expected) in steps {
        ip(&inside, line);
        await_delivery(&delivered, line, |now| *now == set(expected));
    }
    drop(watch);
    // The sender lived in the watching thread, which is gone.
    assert!(delivered.recv().is_err());
}

#[test]
fn a_flood_of_changes_loses_none() {
    let inside = netns();
    veth((&inside, "one"), (&inside, "two"));
    let (send, delivered) = channel();
    // A slow receiver, so that announcements pile up beyond what the socket holds.
    let _watch = addresses::Watch::start(&inside, move |now| {
        let now = now.unwrap();
        if now.len() == 1 {
            thread::park_timeout(Duration::from_millis(500));
        }
        send.send(now).unwrap();
    })
    .unwrap();
    let hosts = (0..16).flat_map(|third| (1..251).map(move |last| format!("10.9.{third}.{last}/32 dev two")));
    let all = std::iter::once("192.0.2.1/32 dev one".to_owned()).chain(hosts);
    let batch: Vec<_> = all.map(|address| format!("address add {address}\n")).collect();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), batch.concat()).unwrap();
    ip(&inside, &format!("-batch {}", file.path().display()));
    let now = await_delivery(&delivered, "the last of 4001 addresses", |now| now.len() == 4001);
    assert_eq!(now, addresses::list(&inside).unwrap());
}

#[test]
fn both_ends_of_a_pair_must_lead_to_each_other() {
    let (host, sandbox, nested) = (netns(), netns(), netns());
    let find = || host.enter(|| device::find(&sandbox)).unwrap().unwrap();
    assert_eq!(find(), device::Found::default());

    // The uplink of the host, and what leads to it by its index alone.
    veth((&host, "uplink"), (&host, "wire"));
    veth((&sandbox, "nest"), (&nested, "out"));
    ip(&host, &format!("link add mac0 link uplink netns {} type macvlan", path_of(&sandbox)));
    let found = find();
    assert!(found.devices.is_empty(), "{found:?}");
    let mut ways: Vec<_> = found.uncovered.iter().map(|way| (way.name.as_str(), way.kind.as_str())).collect();
    ways.sort_unstable();
    assert_eq!(ways, [("mac0", "macvlan"), ("nest", "veth")]);
    assert!(nested.enter(|| device::find(&host)).unwrap().unwrap().devices.is_empty());

    veth((&host, "v0"), (&sandbox, "eth0"));
    veth((&host, "v1"), (&sandbox, "eth1"));
    ip(&host, "link set v0 address 02:00:00:00:00:01");
    ip(&sandbox, "link set eth0 address 02:00:00:00:00:02");
    let found = find();
    let names: Vec<_> = found.devices.iter().map(|device| (device.name.as_str(), device.kind)).collect();
    assert_eq!(names, [("v0", Kind::Veth), ("v1", Kind::Veth)]);
    let v0 = found.devices.first().unwrap();
    assert_eq!((v0.mac, v0.peer.as_ref().unwrap().mac), ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]));
    let by_name = host.enter(|| device::by_name("v0")).unwrap().unwrap();
    assert_eq!((by_name.ifindex, by_name.peer), (v0.ifindex, None));
    // The pair leads to the sandbox and to nobody else.
    assert!(host.enter(|| device::find(&nested)).unwrap().unwrap().devices.is_empty());
    assert_eq!(sandbox.enter(|| device::find(&sandbox)).unwrap().unwrap(), device::Found::default());
}

#[test]
fn only_the_end_of_one_guest_is_taken_by_name() {
    let host = netns();
    veth((&host, "v0"), (&host, "v1"));
    ip(&host, "link add mac0 link v0 type macvlan");
    ip(&host, "tuntap add tap0 mode tap");
    ip(&host, "tuntap add tun0 mode tun");
    let by_name = |name: &str| host.enter(|| device::by_name(name)).unwrap();
    assert_eq!(by_name("tap0").unwrap().kind, Kind::Tap);
    assert!(matches!(by_name("tun0"), Err(DeviceError::NotEthernet { arphrd: 65534, .. })));
    assert!(matches!(by_name("mac0"), Err(DeviceError::Kind { .. })));
    assert!(matches!(by_name("lo"), Err(DeviceError::Kind { .. })));
    assert!(matches!(by_name("missing0"), Err(DeviceError::NotFound { .. })));
}

#[test]
fn a_device_that_comes_later_is_delivered_within_a_second() {
    let (host, sandbox) = (netns(), netns());
    veth((&host, "v0"), (&sandbox, "eth0"));
    let (send, delivered) = channel();
    let watch = host
        .enter(|| device::DeviceWatch::start(&sandbox, move |now| send.send(now.unwrap()).unwrap()).unwrap())
        .unwrap();
    let names = |found: &device::Found| found.devices.iter().map(|device| device.name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&delivered.try_recv().unwrap()), ["v0"]);
    veth((&host, "v1"), (&sandbox, "eth1"));
    await_delivery(&delivered, "a second pair", |found| names(found) == ["v0", "v1"]);
    ip(&sandbox, &format!("link set eth1 netns {}", path_of(&host)));
    await_delivery(&delivered, "the sandbox's end that moved away", |found| names(found) == ["v0"]);
    ip(&sandbox, "tuntap add tun0 mode tun");
    await_delivery(&delivered, "a tun inside", |found| found.uncovered.iter().any(|way| way.name == "tun0"));
    ip(&host, "link del v0");
    await_delivery(&delivered, "the end of the first pair", |found| found.devices.is_empty());
    drop(watch);
    // What was found again may have been told again; then it ends.
    assert!(delivered.iter().all(|found| found.devices.is_empty()));
}

#[test]
fn names_that_are_no_text_break_nothing() {
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt as _};
    let (host, sandbox) = (netns(), netns());
    veth((&host, "v0"), (&sandbox, "eth0"));
    let run = |words: &[&[u8]]| {
        let status =
            sandbox.enter(|| Command::new("ip").args(words.iter().map(|word| OsStr::from_bytes(word))).status());
        assert!(status.unwrap().unwrap().success());
    };
    run(&[b"link", b"set", b"eth0", b"name", b"e\xff\xfe"]);
    run(&[b"address", b"add", b"192.0.2.1/24", b"dev", b"e\xff\xfe", b"label", b"e\xff\xfe:\xff"]);
    assert_eq!(addresses::list(&sandbox).unwrap(), set(&["192.0.2.1"]));
    assert_eq!(host.enter(|| device::find(&sandbox)).unwrap().unwrap().devices.len(), 1);
}

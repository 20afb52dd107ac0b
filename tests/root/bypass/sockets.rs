//! Every way of a socket to send elsewhere, over both families, with every right that a packet hook of the cgroup withstands.

use super::{allowed, arrived, enforce, set};
use crate::job::{Job, judges_foreign};
use lab::{EVIL, EVIL6, Lab, OK, OK6};
use std::{collections::BTreeSet, net::IpAddr};

/// `PORTS` of ways.py: ways whose packets carry nothing.
const PORTS: [(&str, u16); 6] = [
    ("tcp", 7101),
    ("mptcp", 7102),
    ("fast_open", 7103),
    ("fast_open_connect", 7104),
    ("transparent_tcp", 7105),
    ("repaired", 7106),
];

/// The ways that arrived, with payload or without.
fn all_arrived(lab: &Lab, token: &str) -> BTreeSet<String> {
    let mut ways = arrived(lab, token);
    for frame in lab.frames() {
        let family = if frame.src.is_ipv4() { 4 } else { 6 };
        let way = PORTS.iter().find(|(_, port)| frame.is_tcp(*port));
        ways.extend(way.map(|(name, _)| format!("{name}{family}")));
    }
    ways
}

/// Without a device the cgroup's own hooks stand alone; with one, both do. A lab each: what a stream could not send is tried again
/// once nobody enforces.
#[test]
fn every_way_of_a_socket() {
    for (shape, device) in [("cgroup", false), ("device", true)] {
        let lab = Lab::new();
        let (job, token) = (Job::new(&lab, "job"), lab.token(shape));
        enforce(&job, device, &allowed());
        let output = job.as_root(&format!("{} {token}", lab.probe("ways.py")));
        assert_eq!(all_arrived(&lab, &token), set(&["plain4", "plain6"]), "{shape}: {output}");
        for evil in [EVIL, EVIL6.parse::<IpAddr>().unwrap()] {
            lab.expect_silence(evil);
        }
    }
    let lab = Lab::new();
    let (job, token) = (Job::new(&lab, "job"), lab.token("control"));
    let output = job.as_root(&format!("{} {token}", lab.probe("ways.py")));
    let names = output.stdout.lines().filter_map(|line| line.split_once('=')).map(|(name, _)| name);
    let arrived = all_arrived(&lab, &token);
    let silent: Vec<_> = names.filter(|name| !arrived.contains(*name)).collect();
    assert!(silent.is_empty(), "no tests here: {silent:?}: {output}");
}

/// io_uring makes, connects and sends without one of those system calls. `run` has no io_uring, `attach` leaves it.
#[test]
fn io_uring() {
    let lab = Lab::new();
    let job = Job::new(&lab, "job");
    let uring = lab.compiled("uring");
    let command =
        |token: &str| format!("{uring} {token} {EVIL} 443 {EVIL6} 443 ::ffff:{EVIL} 443 {OK} 443 {OK6} 443 2>&1");
    for (shape, device) in [("cgroup", false), ("device", true)] {
        enforce(&job, device, &allowed());
        let token = lab.token(shape);
        let output = job.sh(&command(&token));
        output.exits(0);
        for to in [EVIL.to_string(), EVIL6.to_owned(), format!("::ffff:{EVIL}")] {
            for way in ["datagram", "datagram_connected", "stream_connected"] {
                for by in ["", "_by_worker"] {
                    output.says(&format!("{way}{by},{to}={}", nix::libc::EPERM));
                }
            }
        }
        let ways = ["datagram", "datagram_connected", "datagram_by_worker", "datagram_connected_by_worker"];
        assert_eq!(arrived(&lab, &token), set(&ways), "the allowed ones: {output}");
        job.detach().exits(0);
    }
    for evil in [EVIL, EVIL6.parse::<IpAddr>().unwrap()] {
        lab.expect_silence(evil);
    }
    let token = lab.token("control");
    job.sh(&format!("{uring} {token} {EVIL} 443 {EVIL6} 443"));
    for evil in [EVIL, EVIL6.parse::<IpAddr>().unwrap()] {
        let frames = lab.frames_to(evil);
        for by in ["datagram", "datagram_connected", "datagram_by_worker", "datagram_connected_by_worker"] {
            assert!(frames.iter().any(|frame| frame.carries(&format!("{token}-{by};"))), "{evil}: {by}");
        }
        assert!(frames.iter().any(lab::Frame::is_syn), "{evil}: a stream");
    }
}

/// What a sandbox has no use for is not made, be it there on this kernel or not. With `--keep-cap net_raw`, raw and packet
/// sockets are: the device judges those.
#[test]
fn families_and_protocols() {
    const PLAIN: [&str; 6] = ["tcp4", "tcp6", "udp4", "udp6", "unix", "netlink"];
    let lab = Lab::new();
    let probe = lab.probe("families.py");
    let made = |output: &lab::Output| -> BTreeSet<String> {
        output.exits(0).stdout.lines().filter_map(|line| line.strip_suffix("=ok")).map(str::to_owned).collect()
    };
    for (shape, run) in lab.shapes() {
        let output = run.flags(&allowed()).sh(&probe).output();
        assert_eq!(made(&output), set(&PLAIN), "{shape}: {output}");
    }
    let kept = lab.egressd("run").entering(lab.box_ns()).flags("--keep-cap net_raw").flags(&allowed()).sh(&probe);
    let raw = set(&["packet", "raw4", "raw6", "raw_icmp4", "raw_icmp6"]);
    let output = kept.output();
    assert_eq!(made(&output), &set(&PLAIN) | &raw, "{output}");
    // Nor by root of a job, where no system call filter stands: protocols without ports have no rule to be judged by.
    let job = Job::new(&lab, "job");
    enforce(&job, true, &allowed());
    let attached = made(&job.as_root(&probe));
    for name in [
        "sctp4",
        "sctp6",
        "dccp4",
        "dccp6",
        "l2tp4",
        "l2tp6",
        "udp_lite4",
        "udp_lite6",
        "raw4",
        "raw6",
        "ping4",
        "ping6",
    ] {
        assert!(!attached.contains(name), "{name}");
    }
    // The device judges frames; what leads past any device is not made where hooks follow the task.
    let judged = judges_foreign(&lab);
    assert!(attached.contains("packet") && attached.contains("vsock") != judged, "{attached:?}");
    job.detach().exits(0);
    enforce(&job, false, &allowed());
    let attached = made(&job.as_root(&probe));
    for name in ["packet", "xdp", "vsock"] {
        assert_ne!(attached.contains(name), judged, "{name}: {attached:?}");
    }
    job.detach().exits(0);
    let control = made(&job.as_root(&probe));
    for name in ["packet", "raw4", "raw6", "ping4", "ping6", "udp_lite4", "udp_lite6", "xdp", "vsock"] {
        assert!(control.contains(name), "{name} is no test here: {control:?}");
    }
}

//! What never leaves the sandbox is untouched: loopback, and its own addresses as they are at this moment.

use lab::{Frame, Inside, Lab, NEIGHBOUR, until};
use std::{
    net::{IpAddr, Ipv6Addr},
    time::Duration,
};

/// RFC 3810, 5.2.14.
const MLD_REPORTS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x16);

#[test]
fn t08_loopback_untouched() {
    let lab = Lab::new();
    let probe = lab.probe("lo.py");
    let elsewhere = lab.token("elsewhere");
    for (shape, run) in lab.shapes() {
        let output = run.sh(&format!("{probe} && curl -sS -m2 http://{}/{elsewhere}; echo other=$?", lab::OK)).output();
        output.says("all");
        assert_eq!(output.step("other"), 7, "{shape}: {output}");
    }
    let frames = lab.frames();
    assert!(frames.is_empty(), "{frames:#?}");
    lab.unconfined(&format!("{probe} && curl -sS -m2 http://{}/{elsewhere}", lab::OK)).exits(0);
    lab.expect_hits(&elsewhere, 1);
}

#[test]
fn t09_self_ip() {
    let lab = Lab::new();
    let probe = lab.probe("self.py");
    let hosts = lab.file("hosts", "127.0.0.1 localhost\n198.51.100.30 thebox.test\n");
    let log = lab.work_dir().join("self.log");
    lab.box_ns().sh("echo 0 > /proc/sys/net/ipv4/ip_unprivileged_port_start").exits(0);
    let over_hosts = format!("mount --bind {} /etc/hosts; exec \"$0\" \"$@\"", hosts.display());
    let run = lab.egressd("run").through(&["unshare", "-m", "sh", "-c", &over_hosts]).entering(lab.box_ns());
    let mut inside = Inside::start(run);
    inside.ask(&format!("{probe} 8080 80 > {} 2>&1 < /dev/null &", log.display())).exits(0);
    until(Duration::from_secs(5), "the server inside listens", || {
        std::fs::read_to_string(&log).unwrap().contains("listening")
    });
    let got = |token: &str| std::fs::read_to_string(&log).unwrap().matches(&format!("/{token} ")).count();

    for (at, url) in
        ["198.51.100.30:8080", "198.51.100.30:80", "[2001:db8::30]:8080", "thebox.test:8080"].iter().enumerate()
    {
        let token = lab.token(&format!("own{at}"));
        inside.ask(&format!("curl -fsS -m2 'http://{url}/{token}'")).exits(0);
        assert_eq!(got(&token), 1, "{url}");
    }
    lab.box_ns().ip("link add eth1 type veth peer name far\nlink set eth1 up\naddr add 192.0.2.9/24 dev eth1
addr add 198.51.100.31/24 dev eth0\naddr del 198.51.100.30/24 dev eth0\naddr replace 198.51.100.31/24 dev eth0");
    for address in ["198.51.100.31", "192.0.2.9"] {
        let token = lab.token(address);
        let url = format!("http://{address}:8080/{token}");
        // Not at once: the agent hears of a new address, and has a second for it.
        until(Duration::from_secs(1), &url, || inside.ask(&format!("curl -fsS -m1 {url}")).code == Some(0));
        assert_eq!(got(&token), 1, "{url}");
    }
    let token = lab.token("elsewhere");
    for address in ["198.51.100.30".to_owned(), NEIGHBOUR.to_string()] {
        inside.ask(&format!("curl -sS -m2 http://{address}:8080/{token}")).exits(7);
    }
    inside.end();
    let frames = lab.frames();
    assert!(frames.is_empty(), "own addresses stay on lo, others are closed: {frames:#?}");
    lab.unconfined(&format!("curl -fsS -m2 http://{NEIGHBOUR}:8080/{token}")).exits(0);
    lab.expect_hits(&token, 1);
}

/// What a network stack tells the link of itself is stopped at the device; the end of a run does not blame the command.
#[test]
fn reports_of_groups_are_stopped_and_are_not_the_commands() {
    let lab = Lab::new();
    let own = lab.box_ns().sh("ip -6 -o addr show dev eth0 scope link | sed 's/.*inet6 //; s/\\/.*//'").stdout;
    let own: IpAddr = own.trim().parse().unwrap();
    let is_report = |frame: &&Frame| (frame.src, frame.dst) == (own, MLD_REPORTS.into());
    let reports = || lab.housekeeping().iter().filter(is_report).count();
    let mut inside = Inside::start(lab.egressd("run").entering(lab.box_ns()));
    let before = reports();
    lab.box_ns().ip("addr add 2001:db8::77/64 dev eth0 nodad");
    until(Duration::from_secs(5), "the report is denied", || {
        lab.egressd("events").flags("--json").output().stdout.contains("ff02::16")
    });
    inside.ask("curl -sS -m2 http://203.0.113.7/").exits(7);
    assert_eq!(reports(), before);
    let ended = inside.end();
    ended.says("denied 1x 203.0.113.7:80/tcp");
    assert!(!ended.stderr.contains("ff02"), "{ended}");
    lab.box_ns().ip("addr add 2001:db8::78/64 dev eth0 nodad");
    until(Duration::from_secs(5), "without egressd it arrives", || reports() > before);
}

#[test]
fn t09_own_address_of_the_host_is_closed() {
    let lab = Lab::new();
    let probe = lab.probe("self.py");
    let mut host = Inside::beside(&lab);
    let log = lab.work_dir().join("host.log");
    host.ask(&format!("{probe} 22 > {} 2>&1 < /dev/null &", log.display())).exits(0);
    until(Duration::from_secs(5), "the host's service listens", || {
        std::fs::read_to_string(&log).is_ok_and(|said| said.contains("listening"))
    });
    let (token, control) = (lab.token("inside"), lab.token("control"));
    let curl = |token: &str| format!("curl -sS -m2 http://198.51.100.30:22/{token}");
    lab.sh("", &curl(&token)).exits(7);
    lab.sh("--allow 198.51.100.30:22", &curl(&lab.token("named"))).exits(0);
    lab.unconfined(&curl(&control)).exits(0);
    let said = std::fs::read_to_string(&log).unwrap();
    assert!(said.contains(&control) && !said.contains(&token), "{said}");
}

//! What never leaves the sandbox is untouched: loopback, and its own addresses as they are at this moment.

use std::time::Duration;

use lab::{Inside, Lab, NEIGHBOUR, until};

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

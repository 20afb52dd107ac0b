//! Several sandboxes beside each other: what one has, no other gets.

use super::{Job, end};
use crate::job::listeners;
use lab::{EVIL, Lab, OK, need};
use nix::sys::signal::Signal;
use std::time::Duration;

/// Binds a port for both protocols and says what came of it.
fn bind(job: &Job<'_>, port: u16) -> lab::Output {
    const BIND: &str = "import socket, sys
for name, kind in (('udp', socket.SOCK_DGRAM), ('tcp', socket.SOCK_STREAM)):
    for family, address in ((socket.AF_INET, '127.0.0.1'), (socket.AF_INET, '0.0.0.0'), (socket.AF_INET6, '::')):
        with socket.socket(family, kind) as one:
            try:
                one.bind((address, int(sys.argv[1])))
                print(f'{name}{address}=0')
            except OSError as error:
                print(f'{name}{address}={error.errno}')";
    let output = job.sh(&format!("{} -I -c \"$(cat {})\" {port}", lab::PYTHON, job_file(job, BIND)));
    output.exits(0);
    output
}

fn job_file(job: &Job<'_>, text: &str) -> String {
    job.lab().file("bind.py", text).display().to_string()
}

const PLACES: [&str; 6] = ["udp127.0.0.1", "udp0.0.0.0", "udp::", "tcp127.0.0.1", "tcp0.0.0.0", "tcp::"];
const EPERM: i32 = 1;

#[test]
fn a_listener_belongs_to_one_sandbox_alive_or_dead() {
    need("dig");
    need("ss");
    let lab = Lab::new();
    // Else the kernel itself would keep nobody from these ports.
    lab.box_ns().sh("echo 0 > /proc/sys/net/ipv4/ip_unprivileged_port_start").exits(0);
    let (first, second) = (Job::new(&lab, "first"), Job::new(&lab, "second"));
    let mut owner = first.attached("--allow ok.test");
    let [port] = listeners(lab.box_ns())[..] else { panic!("one listener: {:?}", listeners(lab.box_ns())) };
    let neighbour = second.attached("--allow a.test");
    let ports = listeners(lab.box_ns());
    assert_eq!(ports.len(), 2, "{ports:?}");

    let dig = |kind: &str| format!("dig @127.0.0.1 -p {port} {kind} +tries=1 +time=1 +short ok.test");
    for kind in ["+notcp", "+tcp"] {
        let own = first.sh(&dig(kind));
        assert_eq!(own.exits(0).stdout.trim(), OK.to_string(), "its own sandbox may ask it: {own}");
        let other = second.sh(&dig(kind));
        assert!(other.code != Some(0) && !other.stdout.contains(&OK.to_string()), "{kind}: {other}");
    }
    // What the other's listener would say is not said: ok.test is not among its names.
    assert!(second.curl("ok.test", &lab.token("other")).is_some_and(|code| code != 0));
    assert_eq!(first.curl("ok.test", &lab.token("own")), Some(0));

    owner.signal(Signal::SIGKILL);
    owner.wait(Duration::from_secs(10));
    assert_eq!(listeners(lab.box_ns()).len(), 1, "the port is free");
    for job in [&first, &second] {
        let bound = bind(job, port);
        for place in PLACES {
            assert_eq!(bound.step(place), EPERM, "{place}: {bound}");
        }
    }
    let elsewhere = bind(&second, if ports.contains(&700) { 701 } else { 700 });
    let free = bind(&Job::new(&lab, "free"), port);
    for place in PLACES {
        assert_eq!((elsewhere.step(place), free.step(place)), (0, 0), "{elsewhere} {free}");
    }
    assert_eq!(second.curl("a.test", &lab.token("alive")), Some(0));
    end(neighbour, Signal::SIGINT).exits(0);
    first.detach().exits(0);
    for name in ["own", "alive"] {
        lab.expect_hits(&lab.token(name), 1);
    }
    assert_eq!(lab.hits(&lab.token("other")).len(), 0);
}

/// The same port number, rule numbers and slot in another namespace, and in the same one: nothing is shared.
#[test]
fn what_one_learned_opens_nothing_for_another() {
    let lab = Lab::new();
    let away = lab.another_box(31);
    let first = Job::new(&lab, "first");
    let same = Job::new(&lab, "same");
    let other = Job::at(&lab, lab.cgroup().child("other"), &away);
    let attached = [
        first.attached("--allow ok.test"),
        same.attached("--allow evil.test"),
        crate::job::ready(other.attach("--allow evil.test").entering(&away)),
    ];
    assert_eq!(first.curl("ok.test", &lab.token("first")), Some(0));
    for (name, job) in [("same", &same), ("other", &other)] {
        assert_eq!(job.curl(&OK.to_string(), &lab.token("crossed")), Some(7), "{name}");
        assert_eq!(job.curl("evil.test", &lab.token(name)), Some(0));
        lab.expect_hits(&lab.token(name), 1);
    }
    assert_eq!(first.curl(&EVIL.to_string(), &lab.token("crossed")), Some(7));
    lab.expect_hits(&lab.token("first"), 1);
    assert_eq!(lab.hits(&lab.token("crossed")).len(), 0);
    let port = listeners(&away)[0];
    let bound = bind(&other, port);
    assert_eq!(bound.step("udp0.0.0.0"), EPERM, "{bound}");
    for attach in attached {
        end(attach, Signal::SIGINT).exits(0);
    }
}

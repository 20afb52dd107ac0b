//! C10 to C13: wherever a client sends its questions and however it writes them.

use super::resolving;
use crate::job::{Job, end};
use lab::{Inside, Lab, OK, PYTHON, need, until};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::time::Duration;

/// A stub of systemd, docker's, a public resolver, a service address of a cluster, loopback.
const SERVERS: [&str; 5] = ["127.0.0.53", "127.0.0.11", "203.0.113.8", "10.96.0.10", "::1"];

#[test]
fn c10_whatever_resolv_conf_names() {
    let lab = Lab::new();
    let probes = ["resolve-glibc", "resolve-musl", "resolve-go"].map(|probe| lab.compiled(probe));
    for server in SERVERS {
        for (shape, run) in lab.shapes() {
            let run = resolving(&lab, run, &format!("nameserver {server}\n"));
            let script: String = probes.iter().map(|probe| format!("{probe} both.test evil.test\n")).collect();
            let output = run.flags("--allow both.test").sh(&script).output();
            let told: Vec<_> = output.exits(0).stdout.lines().collect();
            assert_eq!(told.len(), 6, "{shape} {server}: {output}");
            for pair in told.chunks(2) {
                let (found, denied) = (pair[0], pair[1]);
                assert!(found.contains(&OK.to_string()) && found.contains(lab::OK6), "{shape} {server}: {found}");
                assert!(denied.contains('!') && !denied.contains("198.51.100."), "{shape} {server}: {denied}");
            }
        }
    }
    for server in ["203.0.113.8", "10.96.0.10"] {
        lab.expect_silence(server.parse::<std::net::IpAddr>().unwrap());
    }
    assert!(lab.zone().queries().iter().all(|query| query.name == "both.test" && query.server.ip() == lab::DNS));
}

/// A host whose resolvers answer on unix sockets: `doctor` names them and what to do.
#[test]
fn c11_resolvers_on_unix_sockets() {
    const SOCKETS: [&str; 3] =
        ["/run/systemd/resolve/io.systemd.Resolve", "/run/nscd/socket", "/run/avahi-daemon/socket"];
    let lab = Lab::new();
    let doctor = |sockets: &[&str]| {
        let made: String = sockets.iter().map(|path| format!("mkdir -p $(dirname {path}); : > {path}; ")).collect();
        let over_run = format!("mount -t tmpfs lab /run; {made} exec \"$0\" \"$@\"");
        let output = lab.egressd("doctor").through(&["unshare", "-m", "sh", "-c", &over_run]).flags("--json").output();
        let report: serde_json::Value =
            serde_json::from_str(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output}"));
        let needs = report["needs"].as_array().unwrap().clone();
        needs.into_iter().find(|need| need["hook"] == "no resolver on a unix socket").unwrap()
    };
    assert_eq!(doctor(&[])["present"], "yes");
    for socket in SOCKETS {
        let need = doctor(&[socket]);
        assert_eq!(need["present"], "no", "{need}");
        assert!(need["fix"].as_str().unwrap().contains(socket), "{need}");
    }
}

/// A command of `run` finds nobody there; without egressd somebody answers.
#[test]
fn c11_run_hides_them() {
    const LISTENS: &str = "import socket, time
s = socket.socket(socket.AF_UNIX)
s.bind('/run/nscd/socket')
s.listen()
open('/run/nscd/ready', 'w')
time.sleep(60)";
    need("unshare");
    let lab = Lab::new();
    let work = lab.work_dir();
    let own = work.parent().unwrap().strip_prefix("/run").unwrap().display().to_string();
    let listens = lab.file("listens.py", LISTENS);
    let asks = "import socket; socket.socket(socket.AF_UNIX).connect('/run/nscd/socket')";
    let asks = format!("{PYTHON} -c \"{asks}\" 2>/dev/null; echo nscd=$?");
    // A /run with a resolver in it and what the lab needs, for this command alone.
    let over_run = format!(
        "mount --rbind /run /mnt && mount -t tmpfs lab /run && mkdir -p /run/nscd /run/{own} && mount --rbind /mnt/{own} /run/{own}
        setpriv --pdeathsig KILL {PYTHON} {} & until [ -e /run/nscd/ready ]; do :; done; chmod 666 /run/nscd/socket; exec \"$0\" \"$@\"",
        listens.display()
    );
    let through = ["unshare", "-m", "sh", "-c", &over_run];
    let hidden = lab.egressd("run").through(&through).flags("--allow ok.test").sh(&asks).output();
    assert_eq!(hidden.step("nscd"), 1, "{hidden}");
    let mut open = lab.box_ns().command("unshare");
    open.args(["-m", "sh", "-c", &over_run, "sh", "-c", &asks]);
    let open = lab::Running::spawn(open).finish(Duration::from_secs(20));
    assert_eq!(open.step("nscd"), 0, "{open}");
}

#[test]
fn c12_questions_by_tcp() {
    need("dig");
    let lab = Lab::new();
    let probe = lab.probe("tcp_dns.py");
    let mut inside = Inside::start(lab.egressd("run").flags("--allow both.test"));
    for server in ["127.0.0.53", "203.0.113.8", "::1"] {
        let dig = inside.ask(&format!("dig @{server} +tcp +short both.test A; dig @{server} +tcp evil.test A"));
        dig.exits(0).says(&OK.to_string());
        dig.says("NXDOMAIN");
        let raw = inside.ask(&format!("{probe} {server} both.test"));
        for step in ["pipelined", "split"] {
            assert_eq!(raw.step(step), 2, "{server} {step}: {raw}");
        }
    }
    inside.end().exits(0);
}

#[test]
fn c13_answers_come_from_whom_was_asked() {
    let lab = Lab::new();
    let (probe, musl) = (lab.probe("source.py"), lab.compiled("resolve-musl"));
    for (_, run) in lab.shapes() {
        // musl asks from an unconnected socket and takes an answer only from a server that it asked.
        let two = resolving(&lab, run, "nameserver 203.0.113.8\nnameserver 127.0.0.11\n");
        let output = two.flags("--allow both.test").sh(&format!("{probe} both.test; {musl} both.test")).output();
        for server in ["127.0.0.11", "203.0.113.8", "::1", "2001:db8::54"] {
            output.says(&format!("{server} answers as {server} 53"));
        }
        output.exits(0).says(lab::OK6);
    }
}

#[test]
fn f12_another_sandboxs_listener() {
    need("ss");
    need("dig");
    let lab = Lab::new();
    let (first, second) = (Job::new(&lab, "first"), Job::new(&lab, "second"));
    let attached = [first.attached("--allow ok.test"), second.attached("--allow a.test")];
    let ports = crate::job::listeners(lab.box_ns());
    assert_eq!(ports.len(), 2, "{ports:?}");
    let probe = lab.probe("dial.py");
    let dial = |job: &Job<'_>| ports.iter().map(|port| job.sh(&format!("{probe} {port}"))).collect::<Vec<_>>();
    let outcomes = [dial(&first), dial(&second)];
    for (job, outcome) in outcomes.iter().enumerate() {
        let refused: Vec<_> = outcome.iter().map(|one| [one.step("udp"), one.step("tcp")]).collect();
        // One of the two ports is its own.
        assert!(refused.contains(&[1, 1]) && refused.contains(&[0, 0]), "{job}: {outcome:?}");
    }
    assert_ne!(outcomes[0][0].step("udp"), outcomes[1][0].step("udp"), "each has its own");
    for attach in attached {
        end(attach, Signal::SIGINT).exits(0);
    }
}

/// DNS over TLS and QUIC, multicast DNS, LLMNR: an address that is open at every port is closed there.
#[test]
fn f13_other_ways_to_resolve() {
    need("nc");
    let lab = Lab::new();
    let probe = lab.probe("elsewhere.py");
    for (shape, run) in lab.shapes() {
        let mut inside = Inside::start(run.flags("--allow 198.51.100.10 --allow both.test"));
        let output = inside.ask(&format!("getent ahosts both.test; {probe} {OK}"));
        for closed in ["tcp853", "udp853", "udp5353", "udp5355", "udp137", "mdns4", "mdns6", "llmnr4"] {
            assert_eq!(output.step(closed), 1, "{shape} {closed}: {output}");
        }
        for open in ["udp443", "tcp8080"] {
            assert_eq!(output.step(open), 0, "{shape} {open}: {output}");
        }
        let denied =
            |told: &[Value], port: u16| told.iter().any(|one| one["dst_port"] == port && one["verdict"] == "deny");
        until(Duration::from_secs(5), "every port's denial is told", || {
            let told = super::events(&lab);
            [853, 5353, 5355].iter().all(|port| denied(&told, *port))
        });
        inside.end().exits(0);
    }
    let frames = lab.frames();
    let closed = |port| frames.iter().any(|frame| frame.is_udp(port) || frame.is_tcp(port));
    assert!(!closed(853) && !closed(5353) && !closed(5355) && !closed(137), "{frames:?}");
    let opened = |to: &str| frames.iter().any(|frame| frame.dst.to_string() == to && frame.is_udp(443));
    assert!(opened("198.51.100.10"), "{frames:?}");
    let control = lab.unconfined(&format!("{probe} {OK}"));
    assert_eq!((control.step("tcp853"), control.step("udp5353")), (0, 0), "{control}");
}

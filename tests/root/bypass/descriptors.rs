//! Sockets that were made elsewhere and come in later, and sockets whose process has left. The hooks of the cgroup's sockets do
//! not see the first; those that follow the calling task do, and so does the device, whoever made them.

use super::{allowed, arrived, enforce, set};
use crate::job::{Job, judges_foreign};
use lab::{EVIL, Lab, PYTHON, Running, absent, until};
use std::{process::Command, time::Duration};

const SOON: Duration = Duration::from_secs(10);
/// What arrives at evil's by sockets of every kind, by system calls and by io_uring; of `tcp4` a SYN, without anything in it.
const KINDS: [&str; 20] = [
    "udp4",
    "udp6",
    "connected4",
    "connected6",
    "raw4",
    "packet",
    "written4",
    "sendfile4",
    "spliced4",
    "stream4",
    "tcp4",
    "ring_sent4",
    "ring_message4",
    "ring_written4",
    "ring_spliced4",
    "ring_by_worker4",
    "ring_without_copy4",
    "ring_by_thread4",
    "ring_registered4",
    "ring_tcp4",
];
const SYN_PORTS: [(&str, u16); 2] = [("tcp4", 7107), ("ring_tcp4", 7108)];

fn python(lab: &Lab, words: &[&str]) -> Command {
    let mut command = lab.box_ns().command(PYTHON);
    command.args(["-I", "-u"]).arg(lab.file("pass.py", include_str!("../../probes/pass.py"))).args(words);
    lab.caller().place(&mut command);
    command
}

/// Somebody outside with sockets of every kind, and the pid that says so.
fn giver(lab: &Lab) -> (Running, String, String) {
    let door = lab.work_dir().join("door").display().to_string();
    let mut running = Running::spawn(python(lab, &["give", &door]));
    running.says("ready", SOON);
    let pid = running.pid().to_string();
    (running, door, pid)
}

/// How sockets that were made outside come in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum How {
    /// Passed over a unix socket (SCM_RIGHTS).
    Take,
    /// By pidfd_getfd(2), which `run` refuses and `attach` does not.
    Steal,
    /// With a process that had them before it joined.
    Bring,
}

/// Where hooks follow the calling task nothing leaves by them, device or not. Where they do not, the device stops it, or the
/// level says that nobody does.
fn come_in(how: How, device: bool) {
    let lab = Lab::new();
    let job = Job::new(&lab, "job");
    let (_running, door, pid) = giver(&lab);
    let (probe, mac) = (lab.probe("pass.py"), lab.sink_mac());
    let bringer = |token: &str| {
        (how == How::Bring).then(|| {
            let mut running = Running::spawn(python(&lab, &["bring", "-", token, &mac]));
            running.says("ready", SOON);
            running
        })
    };
    let attempt = |token: &str, bringer: Option<Running>| match (how, bringer) {
        (_, Some(mut bringer)) => {
            job.admit(&bringer);
            bringer.write(b"go\n");
            bringer.finish(SOON)
        }
        (How::Steal, None) => job.as_root(&format!("{probe} steal {pid} {token} {mac}")),
        (_, None) => job.as_root(&format!("{probe} take {door} {token} {mac}")),
    };
    let reached = |token: &str, from: usize| {
        let mut all = arrived(&lab, token);
        for frame in lab.frames_to(EVIL).split_off(from).iter().filter(|frame| frame.is_syn()) {
            all.extend(SYN_PORTS.iter().find(|(_, port)| frame.is_tcp(*port)).map(|(name, _)| (*name).to_owned()));
        }
        all
    };
    let mut all = set(&KINDS);
    all.insert("plain".to_owned());
    let token = lab.token("closed");
    let bring = bringer(&token);
    enforce(&job, device, &allowed());
    let (_, status) = job.status();
    let judged = judges_foreign(&lab);
    let hook = status["hooks"].as_array().unwrap().iter().find(|hook| hook["hook"] == "socket_sendmsg");
    assert_eq!(hook.is_some_and(|hook| hook["attached"] == true), judged, "{status:#}");
    let says = status["level"]["missing"].to_string().contains("passed in from outside are not judged");
    assert_eq!(says, !judged && !device, "{status:#}");

    let from = lab.frames_to(EVIL).len();
    let output = attempt(&token, bring);
    if judged || device {
        assert_eq!(reached(&token, from), set(&["plain"]), "{output}");
    } else {
        until(SOON, "it leaks, as was said", || reached(&token, from) == all);
    }
    let denied = &job.status().1["counters"]["denied"]["foreign_socket"];
    assert_eq!(denied.as_u64().unwrap_or(0) > 0, judged, "{denied}: {output}");
    if how == How::Bring {
        for name in ["received", "accepted", "ring_received", "option_received"] {
            output.says(&format!("\n{name}={}", if judged { "EPERM" } else { "ok" }));
        }
    } else {
        assert_eq!(output.stdout.contains("udp4="), !judged, "whether they came in: {output}");
    }
    job.detach().exits(0);
    let (token, from) = (lab.token("control"), lab.frames_to(EVIL).len());
    let output = attempt(&token, bringer(&token));
    until(SOON, &format!("all of them arrive: {output}"), || reached(&token, from) == all);
}

#[test]
fn passed_over_a_unix_socket() {
    come_in(How::Take, false);
    come_in(How::Take, true);
}

#[test]
fn taken_out_of_a_process() {
    come_in(How::Steal, false);
    come_in(How::Steal, true);
}

#[test]
fn brought_along_into_the_cgroup() {
    come_in(How::Bring, false);
    come_in(How::Bring, true);
}

/// The policy's own process tells of it, and one that only observes stops nothing.
#[test]
fn what_is_denied_of_them_is_told() {
    let lab = Lab::new();
    if !judges_foreign(&lab) {
        return absent("lsm_cgroup");
    }
    for observe in [false, true] {
        let job = Job::new(&lab, if observe { "observed" } else { "enforced" });
        let attach = job.attached(&format!("{}{}", allowed(), if observe { " --observe" } else { "" }));
        let token = lab.token(if observe { "observed" } else { "enforced" });
        let mut running = Running::spawn(python(&lab, &["bring", "-", &token, &lab.sink_mac()]));
        running.says("ready", SOON);
        job.admit(&running);
        running.write(b"go\n");
        let output = running.finish(SOON);
        let events = || lab.egressd("events").flags(&format!("--json --cgroup {}", job.path())).output().stdout.clone();
        until(SOON, "it is told", || {
            let words = ["foreign_socket", if observe { "\"verdict\":\"would_deny" } else { "\"verdict\":\"deny" }];
            events().lines().any(|line| words.iter().all(|word| line.contains(word)))
        });
        let through = arrived(&lab, &token).contains("connected4");
        assert_eq!(through, observe, "{output}");
        drop(attach);
    }
}

/// A socket is the sandbox's own in every cgroup of its tree.
#[test]
fn moved_within_the_sandbox() {
    const PROBE: &str = "import socket, sys
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
print('ready', flush=True)
token = sys.stdin.readline().strip()
for name, to in (('ok', '198.51.100.10'), ('evil', '198.51.100.20')):
    try:
        sock.sendto(f'{token}-{name};'.encode(), (to, 443))
    except OSError as error:
        print(name, error, flush=True)";
    let lab = Lab::new();
    let job = Job::new(&lab, "job");
    enforce(&job, false, &allowed());
    let script = lab.file("within.py", PROBE);
    let below = job.cgroup().child("below");
    let mut process = job.spawn(&format!("exec {PYTHON} -I -u {}", script.display()));
    process.says("ready", SOON);
    std::fs::write(below.path().join("cgroup.procs"), process.pid().to_string()).unwrap();
    let token = lab.token("below");
    process.write(format!("{token}\n").as_bytes());
    let output = process.finish(SOON);
    assert_eq!(arrived(&lab, &token), set(&["ok"]), "{output}");
    lab.expect_silence(EVIL);
    job.detach().exits(0);
}

/// A process that has left its cgroup takes its sockets along, and their verdict.
#[test]
fn taken_along_out_of_the_cgroup() {
    const PROBE: &str = "import errno, socket, sys
socks = [socket.socket(family, socket.SOCK_DGRAM) for family in (socket.AF_INET, socket.AF_INET6)]
print('ready', flush=True)
for line in sys.stdin:
    token = line.strip()
    for sock, evil, ok in zip(socks, ('198.51.100.20', '2001:db8::20'), ('198.51.100.10', '2001:db8::10')):
        for name, to in (('evil', evil), ('ok', ok)):
            try:
                sock.sendto(f'{token}-{name}{4 if sock is socks[0] else 6};'.encode(), (to, 443))
            except OSError as error:
                print(name, errno.errorcode[error.errno], flush=True)
    print('sent', token, flush=True)";
    let lab = Lab::new();
    let job = Job::new(&lab, "job");
    let script = lab.file("leave.py", PROBE);
    enforce(&job, false, &allowed());
    let mut process = job.spawn(&format!("exec {PYTHON} -I -u {}", script.display()));
    process.says("ready", SOON);
    std::fs::write(lab.caller().path().join("cgroup.procs"), process.pid().to_string()).unwrap();
    until(SOON, "it has left", || {
        std::fs::read_to_string(job.cgroup().path().join("cgroup.procs")).unwrap().is_empty()
    });
    let mut send = |word: &str| {
        let token = lab.token(word);
        process.write(format!("{token}\n").as_bytes());
        process.says(&format!("sent {token}"), SOON);
        arrived(&lab, &token)
    };
    assert_eq!(send("left"), set(&["ok4", "ok6"]));
    lab.expect_silence(EVIL);
    job.detach().exits(0);
    assert_eq!(send("control"), set(&["evil4", "evil6", "ok4", "ok6"]));
}

//! Sockets that were made elsewhere and come in later, and sockets whose process has left. No hook of the cgroup sees the
//! first; the device does, whoever made them.

use super::{allowed, arrived, enforce, set};
use crate::job::Job;
use lab::{EVIL, Lab, PYTHON, until};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(10);
const KINDS: [&str; 6] = ["udp4", "udp6", "connected4", "connected6", "raw4", "packet"];

/// Somebody outside with sockets of every kind, and the pid that says so.
fn giver(lab: &Lab) -> (lab::Running, String, String) {
    let door = lab.work_dir().join("door").display().to_string();
    let mut command = lab.box_ns().command(PYTHON);
    let script = lab.file("pass.py", include_str!("../../probes/pass.py"));
    command.args(["-I", "-u"]).arg(script).args(["give", &door]);
    lab.caller().place(&mut command);
    let mut running = lab::Running::spawn(command);
    running.says("ready", SOON);
    let pid = running.pid().to_string();
    (running, door, pid)
}

fn come_in(how: &str) {
    let lab = Lab::new();
    let job = Job::new(&lab, "job");
    let (_running, door, pid) = giver(&lab);
    let (probe, mac) = (lab.probe("pass.py"), lab.sink_mac());
    let from = if how == "take" { door } else { pid };
    let script = |token: &str| format!("{probe} {how} {from} {token} {mac}");
    enforce(&job, true, &allowed());
    let token = lab.token("closed");
    let output = job.as_root(&script(&token));
    assert_eq!(arrived(&lab, &token), set(&["plain"]), "{output}");
    job.detach().exits(0);
    let token = lab.token("control");
    let output = job.as_root(&script(&token));
    let mut all = set(&KINDS);
    all.insert("plain".to_owned());
    assert_eq!(arrived(&lab, &token), all, "{output}");
}

/// By SCM_RIGHTS.
#[test]
fn passed_over_a_unix_socket() {
    come_in("take");
}

/// By pidfd_getfd, which `run` refuses and `attach` does not.
#[test]
fn taken_out_of_a_process() {
    come_in("steal");
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

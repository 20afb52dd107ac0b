//! Protocols with ports that no rule can name: SCTP, which also connects by socket options and hides in UDP, and DCCP.

use super::{arrived, enforce, set};
use crate::job::{Job, judges_foreign};
use lab::{EVIL, EVIL6, Lab, OK, OK6, PYTHON, Running, absent};
use std::{collections::BTreeSet, time::Duration};

const SOON: Duration = Duration::from_secs(20);
const SCTP: u8 = 132;
const DCCP: u8 = 33;
const UDP: u8 = 17;
/// `WAYS` of transports.py: what arrives of each, and at which port.
const WAYS: [(&str, u8, u16); 6] = [
    ("sctp_connected", SCTP, 7111),
    ("sctp_sent", SCTP, 7112),
    ("sctp_set_option", SCTP, 7113),
    ("sctp_got_option", SCTP, 7114),
    ("sctp_in_udp", UDP, 7115),
    ("dccp_connected", DCCP, 7116),
];

struct Transports<'l> {
    lab: &'l Lab,
    job: Job<'l>,
    probe: String,
}

impl Transports<'_> {
    /// A process with sockets made before anybody enforces: in the cgroup, or beside it.
    fn before(&self, inside: bool, token: &str) -> Running {
        let script = format!("exec {} {token} later", self.probe);
        let mut running = if inside { self.job.spawn(&script) } else { self.job.outside(&script) };
        running.says("ready", SOON);
        running
    }

    /// What arrives of `attempt`, as `NAME,ADDRESS`. A plain datagram does in any case.
    #[track_caller]
    fn reached(&self, token: &str, attempt: impl FnOnce() -> lab::Output) -> (BTreeSet<String>, lab::Output) {
        let from = self.lab.frames().len();
        let output = attempt();
        output.exits(0);
        assert_eq!(arrived(self.lab, token), set(&["plain"]), "{output}");
        let frames = self.lab.frames().split_off(from);
        let way = |frame: &lab::Frame| {
            let found = WAYS.iter().find(|(_, protocol, port)| (*protocol, *port) == (frame.protocol, frame.dst_port));
            found.map(|(name, ..)| format!("{name},{}", frame.dst))
        };
        (frames.iter().filter_map(way).collect(), output)
    }
}

fn go(mut running: Running) -> lab::Output {
    running.write(b"go\n");
    running.finish(SOON)
}

#[test]
fn sctp_and_dccp() {
    let lab = Lab::new();
    let (job, probe) = (Job::new(&lab, "job"), lab.probe("transports.py"));
    let transports = Transports { lab: &lab, job, probe };
    let Transports { job, probe, .. } = &transports;
    let all = |names: &[&str]| -> BTreeSet<String> {
        let to = [EVIL.to_string(), EVIL6.to_owned(), OK.to_string(), OK6.to_owned()];
        names.iter().flat_map(|name| to.iter().map(move |to| format!("{name},{to}"))).collect()
    };

    // Making a socket loads the protocol, and only then there is a port to send SCTP from in UDP (RFC 6951).
    job.sh(&format!("{PYTHON} -c 'import socket; socket.socket(socket.AF_INET, socket.SOCK_STREAM, 132)'"));
    lab.box_ns().sh("test ! -e /proc/sys/net/sctp/udp_port || echo 9899 > /proc/sys/net/sctp/udp_port").exits(0);
    let token = lab.token("control");
    let (reached, output) = transports.reached(&token, || job.sh(&format!("{probe} {token} now")));
    let (none, there): (Vec<&str>, Vec<&str>) =
        WAYS.iter().map(|(name, ..)| *name).partition(|name| output.stdout.contains(&format!("{name}=absent")));
    assert_eq!(reached, all(&there), "where nobody enforces: {output}");
    if !none.is_empty() {
        absent(&none.join(", "));
    }
    if there.is_empty() {
        return;
    }

    // Every port of two addresses: what is left to stop is the protocol.
    let flags = format!("--allow {OK} --allow {OK6}");
    // Its outer packet is UDP for an allowed address, if its socket is older than the policy.
    let open = BTreeSet::from([format!("sctp_in_udp,{OK}"), format!("sctp_in_udp,{OK6}")]);
    let judged = judges_foreign(&lab);
    for (shape, device) in [("cgroup", false), ("device", true)] {
        let tokens = ["before", "other"].map(|word| lab.token(&format!("{word}-{shape}")));
        let before = transports.before(true, &tokens[0]);
        let other = transports.before(false, &tokens[1]);
        enforce(job, device, &flags);
        let (reached, output) = transports.reached(&tokens[0], || go(before));
        assert_eq!(reached, open, "made before, {shape}: {output}");
        if device {
            // Somebody else in the same namespace, whom the device alone judges.
            let (reached, output) = transports.reached(&tokens[1], || go(other));
            assert_eq!(reached, open, "beside: {output}");
        } else {
            job.admit(&other);
            let (reached, output) = transports.reached(&tokens[1], || go(other));
            assert_eq!(reached, if judged { BTreeSet::new() } else { all(&there) }, "brought along: {output}");
            assert_eq!(output.stdout.matches("=EPERM").count(), if judged { all(&there).len() } else { 0 }, "{output}");
            let token = lab.token("after");
            let (reached, output) = transports.reached(&token, || job.as_root(&format!("{probe} {token} now")));
            assert_eq!(reached, BTreeSet::new(), "made after: {output}");
            assert_eq!(output.stdout.matches("=EPERM").count(), all(&there).len(), "{output}");
        }
        job.detach().exits(0);
    }
}

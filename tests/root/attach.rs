//! `egressd attach`: enforcement for a cgroup that lives already, with and without a process that serves it.

mod again;
mod ends;
mod refusals;
mod shared;

use crate::job::{Job, drops, end, judges_foreign, now_ns, ready};
use lab::{EVIL, Lab, OK, until};
use nix::sys::signal::Signal;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(10);
const STOPS_WITHIN_NS: u64 = 100_000_000;

#[test]
fn t17_attach_to_a_live_cgroup() {
    let lab = Lab::new();
    let job = Job::new(&lab, "job");
    let token = lab.token("drip");
    let before = lab.snapshot();
    let mut drip = job.spawn(&format!("exec {} {token} {EVIL} {OK}", lab.probe("drip.py")));
    until(SOON, "five of each have arrived at both", || {
        [EVIL, OK].iter().all(|to| ["tcp", "udp"].iter().all(|kind| drops(&lab, *to, &token, kind).len() >= 5))
    });
    // Open to the address that drip.py may go on with: what stops is the policy's doing.
    job.attach(&format!("--allow {OK} --pin")).output().exits(0);
    let attached = now_ns();
    drip.says(&format!("refused 50 to {EVIL}"), SOON);
    until(SOON, "the allowed address still gets both", || {
        ["tcp", "udp"].iter().all(|kind| drops(&lab, OK, &token, kind).last() > Some(&(attached + STOPS_WITHIN_NS)))
    });
    for kind in ["tcp", "udp"] {
        let late: Vec<_> =
            drops(&lab, EVIL, &token, kind).into_iter().filter(|drop| *drop > attached + STOPS_WITHIN_NS).collect();
        assert!(late.is_empty(), "{kind} frames more than 100 ms after attach had returned: {late:?}");
    }
    drop(drip);
    assert_eq!(job.status().0, Some(0));
    job.detach().exits(0);
    assert_eq!(before.diff(&lab.snapshot()), Vec::<String>::new());
}

/// Opened outside, then moved in: sockets that no hook of the cgroup sees.
#[test]
fn t17_sockets_from_before() {
    let lab = Lab::new();
    let job = Job::new(&lab, "job");
    let join = |name: &str| {
        let token = lab.token(name);
        let mut drip = job.outside(&format!("exec {} --wait {token} {EVIL}", lab.probe("drip.py")));
        drip.says("open", SOON);
        job.admit(&drip);
        (drip, token)
    };
    // Within its cgroup alone hooks that follow the task stop it. Where there are none, strictness refuses and everybody
    // else is told.
    let (mut drip, token) = join("host");
    let before = lab.snapshot();
    let opened = lab.frames_to(EVIL).len();
    let strict = job.attach(&format!("--allow {OK} --pin --strict")).output();
    if judges_foreign(&lab) {
        assert!(!strict.exits(0).stderr.contains("minus"), "{strict}");
        drip.write(b"go\n");
        drip.says(&format!("refused 50 to {EVIL}"), SOON);
        let leaked: Vec<_> = lab.frames_to(EVIL).split_off(opened);
        assert!(leaked.is_empty(), "{leaked:#?}");
    } else {
        strict.exits(3).says("2 sockets").says(&format!("process {}", drip.pid()));
        assert_eq!(before.diff(&lab.snapshot()), Vec::<String>::new(), "a refusal leaves nothing");
        job.attach(&format!("--allow {OK} --pin")).output().exits(0).says("minus sockets made elsewhere");
        drip.write(b"go\n");
        until(SOON, "it leaks, as was said", || !drops(&lab, EVIL, &token, "udp").is_empty());
    }
    drop(drip);
    job.detach().exits(0);

    // The device judges packets, whoever made the socket.
    let (mut drip, token) = join("device");
    let attach = job.attach(&format!("--allow {OK} --pin")).entering(lab.box_ns()).output();
    attach.exits(0).says("level L2");
    let opened = lab.frames_to(EVIL).len();
    drip.write(b"go\n");
    let allowed = lab.token("allowed");
    assert_eq!(job.curl(&OK.to_string(), &allowed), Some(0));
    lab.expect_hits(&allowed, 1);
    if judges_foreign(&lab) {
        drip.says(&format!("refused 50 to {EVIL}"), SOON);
    } else {
        until(SOON, "the kernel has tried the stream again", || {
            lab.box_ns().sh(&format!("ss -tinH dst {EVIL}")).stdout.contains("retrans:")
        });
    }
    let leaked: Vec<_> = lab.frames_to(EVIL).split_off(opened);
    assert!(leaked.is_empty() && drops(&lab, EVIL, &token, "udp").is_empty(), "{leaked:#?}");
    drop(drip);
    job.detach().exits(0);
    assert_eq!(before.diff(&lab.snapshot()), Vec::<String>::new());
}

#[test]
fn a_foreground_attach_answers_names_and_its_end_never_opens() {
    let lab = Lab::new();
    let job = Job::new(&lab, "job");
    let before = lab.snapshot();
    let token = |name: &str| lab.token(name);
    assert_eq!(job.curl(&EVIL.to_string(), &token("control")), Some(0));

    // Empty: a signal ends it.
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let attach = job.attached("--allow ok.test");
        assert_eq!(job.curl("ok.test", &token(signal.as_str())), Some(0));
        assert_eq!(job.curl(&EVIL.to_string(), &token("closed")), Some(7));
        assert!(matches!(job.curl("evil.test", &token("closed")), Some(6 | 7)));
        end(attach, signal).exits(0);
        lab.expect_hits(&token(signal.as_str()), 1);
        assert_eq!(before.diff(&lab.snapshot()), Vec::<String>::new(), "after {signal}");
    }

    // Populated: it stays closed.
    for (at, signal) in [Signal::SIGTERM, Signal::SIGINT].into_iter().enumerate() {
        let attach = job.attached("--allow ok.test");
        let sleeper = job.spawn("exec sleep 1000");
        end(attach, signal).exits(0).says("egressd detach");
        assert_eq!(job.curl(&EVIL.to_string(), &token("closed")), Some(7));
        let (code, status) = job.status();
        assert_eq!(
            (code, &status["in_force"], &status["agent_pid"]),
            (Some(0), &true.into(), &serde_json::Value::Null)
        );
        job.detach().exits(0);
        let opened = token(&format!("opened{at}"));
        assert_eq!(job.curl(&EVIL.to_string(), &opened), Some(0));
        lab.expect_hits(&opened, 1);
        assert_eq!(job.status().0, Some(5));
        drop(sleeper);
    }
    assert_eq!(lab.hits(&token("closed")).len(), 0);
    assert_eq!(before.diff(&lab.snapshot()), Vec::<String>::new());
}

#[test]
fn a_pinned_sandbox_needs_no_process() {
    let lab = Lab::new();
    let job = Job::new(&lab, "job");
    let before = lab.snapshot();
    job.attach("--allow ok.test --pin").output().exits(2).says("--pin");
    assert_eq!(before.diff(&lab.snapshot()), Vec::<String>::new());
    let attached = job.attach(&format!("--allow {OK} --pin --ready-fd 1")).output();
    assert_eq!(attached.exits(0).stdout, "\n");
    let denials = || job.status().1["counters"]["denied"]["not_permitted"].as_u64().unwrap_or(0);
    let (allowed, closed) = (lab.token("allowed"), lab.token("closed"));
    for denied in 1..=2 {
        assert_eq!(job.curl(&OK.to_string(), &allowed), Some(0));
        assert_eq!(job.curl(&EVIL.to_string(), &closed), Some(7));
        assert_eq!(job.status().0, Some(0));
        assert!(denials() >= denied, "the kernel counts on");
    }
    lab.expect_hits(&allowed, 2);
    lab.expect_silence(EVIL);
    job.detach().exits(0);
    job.detach().exits(2).says("no sandbox");
    assert_eq!(before.diff(&lab.snapshot()), Vec::<String>::new());
    assert_eq!(job.curl(&EVIL.to_string(), &closed), Some(0));
    lab.expect_hits(&closed, 1);
}

#[test]
fn a_process_names_its_cgroup_and_its_namespace() {
    let lab = Lab::new();
    let job = Job::new(&lab, "job");
    let sleeper = job.spawn("echo up; exec sleep 1000");
    let attach =
        lab.egressd("attach").inside(lab.outer_ns()).flags(&format!("--pid {} --allow ok.test", sleeper.pid()));
    let mut attach = ready(attach);
    // Found by the process's namespace.
    attach.says("level L2", SOON);
    let (allowed, closed) = (lab.token("allowed"), lab.token("closed"));
    assert_eq!(job.curl("ok.test", &allowed), Some(0));
    assert_eq!(job.curl(&EVIL.to_string(), &closed), Some(7));
    lab.expect_hits(&allowed, 1);
    lab.expect_silence(EVIL);
    drop(sleeper);
    end(attach, Signal::SIGINT).exits(0);
    assert_eq!(job.status().0, Some(5));
}

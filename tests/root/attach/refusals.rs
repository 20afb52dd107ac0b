//! What `attach` refuses, before or after it looked, and that nothing is left of it.

use super::{Job, end};
use lab::{EVIL, Lab, OK, Running};
use nix::sys::signal::Signal;
use std::{fs, time::Duration};

#[test]
fn a_level_that_is_not_reached_is_refused() {
    let lab = Lab::new();
    let job = Job::new(&lab, "job");
    let before = lab.snapshot();
    let flags = format!("--allow {OK} --pin");
    job.attach(&format!("{flags} --require L2")).output().exits(3).says("L2").says("network namespace");
    job.attach(&format!("{flags} --require L3")).entering(lab.box_ns()).output().exits(3).says("L3");
    assert_eq!(before.diff(&lab.snapshot()), Vec::<String>::new(), "a refusal leaves nothing");
    assert_eq!(job.curl(&EVIL.to_string(), &lab.token("open")), Some(0));
    for (level, launch) in [
        ("L1", job.attach(&format!("{flags} --require L1"))),
        ("L2", job.attach(&format!("{flags} --require L2")).entering(lab.box_ns())),
    ] {
        launch.output().exits(0).says(&format!("level {level}"));
        assert_eq!(job.curl(&EVIL.to_string(), &lab.token("closed")), Some(7));
        assert_eq!(job.curl(&OK.to_string(), &lab.token(level)), Some(0));
        job.detach().exits(0);
    }
    lab.expect_hits(&lab.token("open"), 1);
    assert_eq!(lab.hits(&lab.token("closed")).len(), 0);
    assert_eq!(before.diff(&lab.snapshot()), Vec::<String>::new());
}

/// Uid 0 in the host's namespaces moves itself to another cgroup: nothing is promised.
#[test]
fn root_in_the_hosts_namespaces_is_no_level() {
    let lab = Lab::new();
    let job = Job::new(&lab, "job");
    let mut command = lab.box_ns().command("sleep");
    command.arg("1000");
    job.cgroup().place(&mut command);
    let root = Running::spawn(command);
    let flags = format!("--allow {OK} --pin");
    let refused = job.attach(&format!("{flags} --require L1")).output();
    refused.exits(3).says("uid 0").says(&root.pid().to_string());
    job.attach(&flags).output().exits(0).says("level none").says("uid 0");
    job.detach().exits(0);
    drop(root);
    let nobody = job.spawn("exec sleep 1000");
    job.attach(&format!("{flags} --require L1")).output().exits(0);
    drop(nobody);
    job.detach().exits(0);
}

#[test]
fn sandboxes_do_not_nest() {
    let lab = Lab::new();
    let outer = Job::new(&lab, "jobs");
    let job = Job::at(&lab, outer.cgroup().child("job"), lab.box_ns());
    let below = Job::at(&lab, job.cgroup().child("below"), lab.box_ns());
    let beside = Job::at(&lab, outer.cgroup().child("job-2"), lab.box_ns());
    let before = lab.snapshot();
    let flags = format!("--allow {OK} --pin");
    job.attach(&flags).output().exits(0);
    let during = lab.snapshot();
    for (relation, other) in [("above", &outer), ("below", &below), ("the cgroup of", &job)] {
        let refused = other.attach(&format!("--allow {EVIL} --pin")).output();
        refused.exits(2).says(relation).says("do not nest");
        let run = lab.egressd("run").flags(&format!("--cgroup {} --allow {EVIL}", below.path()));
        run.program(&["true"]).output().exits(125).says("do not nest");
        assert_eq!(during.diff(&lab.snapshot()), Vec::<String>::new(), "{relation}");
    }
    assert_eq!(below.curl(&EVIL.to_string(), &lab.token("closed")), Some(7), "what is below is in it");
    beside.attach(&format!("--allow {EVIL} --pin")).output().exits(0);
    assert_eq!(beside.curl(&EVIL.to_string(), &lab.token("beside")), Some(0));
    assert_eq!(beside.curl(&OK.to_string(), &lab.token("closed")), Some(7));
    assert_eq!(job.curl(&OK.to_string(), &lab.token("job")), Some(0));
    for name in ["beside", "job"] {
        lab.expect_hits(&lab.token(name), 1);
    }
    assert_eq!(lab.hits(&lab.token("closed")).len(), 0);
    beside.detach().exits(0);
    job.detach().exits(0);
    assert_eq!(before.diff(&lab.snapshot()), Vec::<String>::new());
}

#[test]
fn what_is_no_cgroup_for_a_sandbox_is_refused() {
    let lab = Lab::new();
    let job = Job::new(&lab, "job");
    let threaded = Job::at(&lab, job.cgroup().child("threads"), lab.box_ns());
    fs::write(threaded.cgroup().path().join("cgroup.type"), "threaded").unwrap();
    let before = lab.snapshot();
    let flags = format!("--allow {OK} --pin");
    threaded.attach(&flags).output().exits(2).says("threaded");
    lab.egressd("attach").flags(&format!("--cgroup {}/no/such {flags}", job.path())).output().exits(2).says("/no/such");
    lab.egressd("attach")
        .flags(&format!("--cgroup {} {flags}", lab.cgroup().path().display()))
        .output()
        .exits(2)
        .says("egressd itself");
    job.attach(&format!("{flags} --ready-fd 77")).output().exits(2).says("--ready-fd 77");
    job.attach(&format!("{flags} --device nope0")).output().exits(3).says("nope0");
    job.attach("--pin --allow").output().exits(2);
    job.attach("--pin --rate 10mbps").output().exits(2).says("--rate");
    assert_eq!(before.diff(&lab.snapshot()), Vec::<String>::new());
    let attach = job.attached("--allow ok.test");
    assert_eq!(job.curl("ok.test", &lab.token("twin")), Some(0));
    end(attach, Signal::SIGTERM).exits(0);
    lab.expect_hits(&lab.token("twin"), 1);
    assert_eq!(before.diff(&lab.snapshot()), Vec::<String>::new());
}

/// Pins in a private mount namespace end with its last process: killing egressd there would open the sandbox.
#[test]
fn a_mount_namespace_that_ends_with_egressd_is_refused() {
    let lab = Lab::new();
    let job = Job::new(&lab, "job");
    let before = lab.snapshot();
    for flags in [format!("--allow {OK} --pin"), "--allow ok.test".to_owned()] {
        let refused = job.attach(&flags).through(&["unshare", "-m"]).output();
        // Where not even root may look at PID 1's namespace, there is nothing to compare with.
        assert!(matches!(refused.code, Some(3 | 4)), "{refused}");
        refused.says("PID 1");
        assert_eq!(before.diff(&lab.snapshot()), Vec::<String>::new());
    }
    let attach = job.attached("--allow ok.test");
    assert_eq!(job.curl("ok.test", &lab.token("twin")), Some(0));
    end(attach, Signal::SIGTERM).exits(0);
    lab.expect_hits(&lab.token("twin"), 1);
}

/// A failure half-way takes back its own hooks and nobody else's.
#[test]
fn a_failed_attach_leaves_others_in_force() {
    let lab = Lab::new();
    let (job, other) = (Job::new(&lab, "job"), Job::new(&lab, "other"));
    let served = other.attached("--allow ok.test");
    let during = lab.snapshot();
    let failed =
        job.attach("--allow ok.test").env("EGRESSD_FAULT", "attach_connect6").deadline(Duration::from_secs(10));
    failed.output().exits(3).says("connect6");
    assert_eq!(during.diff(&lab.snapshot()), Vec::<String>::new());
    let claimed =
        lab.box_ns().sh(&format!("bpftool map dump pinned {}/LISTENERS | grep -c key", lab.pin_dir().display()));
    assert_eq!(claimed.stdout.trim(), "1", "only the port of the one that lives: {claimed}");
    assert_eq!(job.curl(&EVIL.to_string(), &lab.token("open")), Some(0));
    assert_eq!(other.curl("ok.test", &lab.token("ok")), Some(0));
    assert_eq!(other.curl(&EVIL.to_string(), &lab.token("closed")), Some(7));
    end(served, Signal::SIGINT).exits(0);
    lab.expect_hits(&lab.token("ok"), 1);
    assert_eq!(lab.hits(&lab.token("closed")).len(), 0);
}

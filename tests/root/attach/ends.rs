//! Whoever serves a sandbox may be killed, or be late to notice that it is over: nothing opens, and nobody else's is closed
//! or opened by it.

use super::{Job, SOON, end, now_ns};
use lab::{EVIL, Lab, OK, Running, need, until};
use nix::sys::signal::Signal;
use std::{fs, path::PathBuf, time::Duration};

/// A shell that takes orders from a pipe in its directory, whoever else dies.
const SHELL: &str =
    "mkfifo orders; exec 3<>orders; echo at work; while read -r line <&3; do eval \"$line\"; echo \"end=$?\"; done";

/// The exit status of one line of [`SHELL`].
fn ask(lab: &Lab, shell: &Running, line: &str) -> i32 {
    let before = shell.stdout().matches("end=").count();
    fs::write(lab.work_dir().join("orders"), format!("{line}\n")).unwrap();
    let mut status = None;
    until(SOON, line, || {
        let said = shell.stdout();
        status =
            said.lines().filter_map(|line| line.strip_prefix("end=")).nth(before).and_then(|last| last.parse().ok());
        status.is_some()
    });
    status.unwrap()
}

#[test]
fn killing_a_foreground_attach_opens_nothing() {
    let lab = Lab::new();
    let job = Job::new(&lab, "job");
    let before = lab.snapshot();
    let closed = lab.token("closed");
    let mut attach = job.attached("--allow ok.test");
    assert_eq!(job.curl("ok.test", &lab.token("learned")), Some(0));
    attach.signal(Signal::SIGKILL);
    attach.wait(SOON);
    assert_eq!(job.curl(&EVIL.to_string(), &closed), Some(7));
    assert_eq!(job.curl(&OK.to_string(), &lab.token("permitted")), Some(0), "what was learned lives on");
    assert!(matches!(job.curl("evil.test", &closed), Some(6 | 28)), "nobody answers");
    let (code, status) = job.status();
    assert_eq!((code, &status["agent_pid"]), (Some(0), &serde_json::Value::Null));
    lab.expect_hits(&lab.token("permitted"), 1);
    lab.expect_silence(EVIL);
    job.detach().exits(0);
    assert_eq!(before.diff(&lab.snapshot()), Vec::<String>::new());
    assert_eq!(job.curl(&EVIL.to_string(), &closed), Some(0));
    lab.expect_hits(&closed, 1);
}

#[test]
fn killing_run_opens_nothing() {
    let lab = Lab::new();
    let before = lab.snapshot();
    let closed = lab.token("closed");
    // Only where processes are shared does the command outlive it.
    let mut run = lab.egressd("run").flags("--allow ok.test --share pid").sh(SHELL).spawn();
    run.says("at work", SOON);
    assert_eq!(ask(&lab, &run, &format!("curl -fsS -m3 http://ok.test/{}", lab.token("learned"))), 0);
    run.signal(Signal::SIGKILL);
    run.wait(SOON);
    assert_eq!(ask(&lab, &run, &format!("curl -sS -m3 http://{EVIL}/{closed}")), 7);
    assert_ne!(ask(&lab, &run, &format!("curl -sS -m3 http://evil.test/{closed}")), 0);
    assert_eq!(ask(&lab, &run, &format!("curl -fsS -m3 http://{OK}/{}", lab.token("permitted"))), 0);
    lab.expect_hits(&lab.token("permitted"), 1);
    lab.expect_silence(EVIL);
    assert!(lab.zone().queries_for("evil.test").is_empty());

    let orphaned = lab.caller().below().pop().expect("the cgroup of the run");
    let flags = format!("--cgroup {}", orphaned.display());
    lab.egressd("status").flags(&flags).output().exits(0);
    fs::write(orphaned.join("cgroup.kill"), "1").unwrap();
    let events = orphaned.join("cgroup.events");
    until(SOON, "CMD is gone", || fs::read_to_string(&events).unwrap().contains("populated 0"));
    lab.egressd("detach").flags(&flags).output().exits(0);
    fs::remove_dir(&orphaned).unwrap();
    assert_eq!(before.diff(&lab.snapshot()), Vec::<String>::new());
}

/// In a pid namespace of its own, the command and all that it started end with whoever runs it, and the cgroup stays closed.
#[test]
fn killing_run_ends_its_command() {
    let lab = Lab::new();
    let before = lab.snapshot();
    let token = lab.token("alive");
    let script =
        format!("setsid sh -c 'while :; do curl -fsS http://ok.test/{token}; done' & echo at work; exec sleep 1000");
    let mut run = lab.egressd("run").flags("--allow ok.test").sh(&script).spawn();
    run.says("at work", SOON);
    until(SOON, "it works", || !lab.hits(&token).is_empty());
    let cgroup = lab.caller().below().pop().expect("the cgroup of the run");
    run.signal(Signal::SIGKILL);
    run.wait(SOON);
    let events = cgroup.join("cgroup.events");
    until(SOON, "all are gone", || fs::read_to_string(&events).unwrap().contains("populated 0"));
    let flags = format!("--cgroup {}", cgroup.display());
    lab.egressd("status").flags(&flags).output().exits(0);
    lab.egressd("detach").flags(&flags).output().exits(0);
    fs::remove_dir(&cgroup).unwrap();
    assert_eq!(before.diff(&lab.snapshot()), Vec::<String>::new());
}

/// The one that serves learns within moments that somebody else detached; until then it must not touch what is new.
#[test]
fn an_owner_that_was_detached_leaves_its_successor_alone() {
    let lab = Lab::new();
    let job = Job::new(&lab, "job");
    let before = lab.snapshot();
    let sleeper = job.spawn("exec sleep 1000");
    let first = job.attached("--allow ok.test");
    first.signal(Signal::SIGSTOP);
    job.detach().exits(0);
    assert_eq!(job.curl(&EVIL.to_string(), &lab.token("open")), Some(0), "detached is open, at once");
    job.attach(&format!("--allow {OK} --pin")).output().exits(0);
    first.signal(Signal::SIGCONT);
    // Detached by another is a good end.
    first.finish(Duration::from_secs(20)).exits(0).says("detached by another");
    assert_eq!(job.status().0, Some(0));
    assert_eq!(job.curl(&EVIL.to_string(), &lab.token("closed")), Some(7));
    assert_eq!(job.curl(&OK.to_string(), &lab.token("allowed")), Some(0));
    job.detach().exits(0);

    // And one that ends after a detach leaves no trace that would keep the cgroup from being attached.
    let first = job.attached("--allow ok.test");
    job.detach().exits(0);
    first.finish(Duration::from_secs(3600)).exits(0);
    assert_eq!(before.diff(&lab.snapshot()), Vec::<String>::new());
    drop(sleeper);
    assert_eq!(lab.hits(&lab.token("closed")).len(), 0);
}

#[test]
fn a_cgroup_made_anew_at_the_same_path_is_another_one() {
    let lab = Lab::new();
    let job = Job::new(&lab, "job");
    let before = lab.snapshot();
    job.attach(&format!("--allow {OK} --pin")).output().exits(0);
    assert_eq!(job.status().0, Some(0));
    let path = PathBuf::from(job.path());
    fs::remove_dir(&path).unwrap();
    assert_eq!(job.status().0, Some(5), "nothing is enforced where nothing is");
    fs::create_dir(&path).unwrap();
    assert_eq!(job.status().0, Some(5), "the new one is not enforced");
    assert_eq!(job.curl(&EVIL.to_string(), &lab.token("open")), Some(0));
    job.detach().exits(0);
    job.attach(&format!("--allow {OK} --pin")).output().exits(0);
    assert_eq!(job.status().0, Some(0));
    assert_eq!(job.curl(&EVIL.to_string(), &lab.token("closed")), Some(7));
    job.detach().exits(0);
    lab.expect_hits(&lab.token("open"), 1);
    assert_eq!(lab.hits(&lab.token("closed")).len(), 0);
    assert_eq!(before.diff(&lab.snapshot()), Vec::<String>::new());
}

/// From its first step on, an end closes; what was open by the policy opens with the rest, after the last.
#[test]
fn an_end_that_fails_leaves_the_cgroup_closed() {
    need("bpftool");
    let lab = Lab::new();
    let job = Job::new(&lab, "job");
    let before = lab.snapshot();
    job.attach(&format!("--allow {OK} --pin")).output().exits(0);
    assert_eq!(job.curl(&OK.to_string(), &lab.token("allowed")), Some(0));
    // What lies among the links and is none stops a detach.
    let (_, status) = job.status();
    let pins = lab.pin_dir().join(status["sandbox"].as_str().unwrap());
    let stray = pins.join("links/a_stray");
    let pin = format!("bpftool map pin pinned {} {}", pins.join("maps/OWN").display(), stray.display());
    lab.outer_ns().sh(&pin).exits(0);
    assert_ne!(job.detach().code, Some(0));
    for address in [OK, EVIL] {
        assert_eq!(job.curl(&address.to_string(), &lab.token("closed")), Some(7), "{address}");
    }
    fs::remove_file(stray).unwrap();
    job.detach().exits(0);
    assert_eq!(job.curl(&EVIL.to_string(), &lab.token("open")), Some(0));
    lab.expect_hits(&lab.token("allowed"), 1);
    assert_eq!(lab.hits(&lab.token("closed")).len(), 0);
    assert_eq!(before.diff(&lab.snapshot()), Vec::<String>::new());
}

/// The kernel keeps a cgroup's storage over a detach; what was written there must not speak for the next sandbox.
#[test]
fn an_identity_from_before_opens_nothing() {
    const ROUNDS: usize = 4;
    let lab = Lab::new();
    let job = Job::new(&lab, "job");
    let token = lab.token("flip");
    let mut flip = job.spawn(&format!("exec {} {token} {OK}", lab.probe("flip.py")));
    flip.says("open", SOON);
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        for (opens, policy) in [(true, format!("--allow {OK}")), (false, String::from("--allow 192.0.2.1"))] {
            let began = now_ns();
            job.attach(&format!("{policy} --pin")).output().exits(0);
            let attached = now_ns();
            assert_eq!(job.status().0, Some(0));
            rounds.push((opens, began, attached, now_ns()));
            job.detach().exits(0);
        }
    }
    flip.feed(b"\n");
    let said = flip.finish(Duration::from_secs(3600));
    let tries: Vec<(u64, bool)> = said
        .stdout
        .lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(moment, how)| (moment.parse().unwrap(), how == "ok"))
        .collect();
    for (opens, began, attached, detaching) in rounds {
        let within =
            |from: u64, to: u64| tries.iter().filter(move |(moment, _)| (from..to).contains(moment)).map(|(_, ok)| *ok);
        let mut turns: Vec<bool> = within(began, attached).collect();
        turns.dedup();
        let possible: &[&[bool]] =
            if opens { &[&[true], &[true, false], &[true, false, true]] } else { &[&[true], &[true, false]] };
        assert!(possible.contains(&turns.as_slice()), "open, then closed, then as the policy says: {turns:?}");
        assert!(within(attached, detaching).all(|ok| ok == opens), "in force: {opens}");
    }
    assert!(tries.iter().any(|(_, ok)| *ok) && tries.iter().any(|(_, ok)| !*ok), "both kinds were seen");
    end_is_clean(&lab, &job);
}

fn end_is_clean(lab: &Lab, job: &Job<'_>) {
    let attach = job.attached("--allow ok.test");
    assert_eq!(job.curl("ok.test", &lab.token("last")), Some(0));
    end(attach, Signal::SIGINT).exits(0);
    assert_eq!(job.status().0, Some(5));
}

//! `egressd attach` after an owner that was killed, or that left a populated cgroup closed: as a service manager starts it again.

use super::{Job, SOON, drops, end};
use crate::job::now_ns;
use lab::{EVIL, Lab, OK, until};
use nix::sys::signal::Signal;

#[test]
fn the_next_attach_takes_over_with_its_own_policy_and_opens_nothing_on_the_way() {
    let lab = Lab::new();
    let job = Job::new(&lab, "job");
    let before = lab.snapshot();
    let (token, closed) = (lab.token("drip"), lab.token("closed"));
    let mut drip = job.spawn(&format!("exec {} {token} {EVIL} {OK}", lab.probe("drip.py")));
    until(SOON, "both arrive", || [EVIL, OK].iter().all(|to| !drops(&lab, *to, &token, "udp").is_empty()));
    let mut owner = job.attached(&format!("--allow {OK} --allow ok.test"));
    let attached = now_ns() + super::STOPS_WITHIN_NS;
    drip.says(&format!("refused 50 to {EVIL}"), SOON);
    let first = job.status().1["sandbox"].clone();
    for (signal, allow, name) in [(Signal::SIGKILL, "a.test", "a.test"), (Signal::SIGTERM, "ok.test", "ok.test")] {
        owner.signal(signal);
        owner.wait(SOON);
        let left = job.status().1;
        assert_eq!((&left["in_force"], &left["agent_pid"]), (&true.into(), &serde_json::Value::Null), "{signal}");

        // What cannot be had leaves it as it was.
        let elsewhere = lab.outer_ns().path().display().to_string();
        job.attach(&format!("--allow {EVIL} --netns {elsewhere}")).output().exits(2).says("leave --netns out");
        job.attach(&format!("--allow {EVIL} --device eth0")).output().exits(3).says("attach it anew");
        assert_eq!(job.curl(&EVIL.to_string(), &closed), Some(7));

        owner = job.attached(&format!("--allow {allow}"));
        let status = job.status().1;
        assert_eq!((&status["sandbox"], &status["in_force"]), (&first, &true.into()), "{signal}");
        assert_eq!(status["agent_pid"], owner.pid().as_raw(), "{signal}");
        assert_eq!(job.curl(name, &lab.token(name)), Some(0), "{signal}: names are answered, by the new policy");
        assert_eq!(job.curl("b.test", &closed), Some(6), "{signal}");
        assert_eq!(job.curl(&EVIL.to_string(), &closed), Some(7), "{signal}");
        lab.expect_hits(&lab.token(name), 1);
    }
    // While somebody serves it, nobody else does.
    job.attach("--allow evil.test").output().exits(2).says("do not nest");
    let late: Vec<_> = drops(&lab, EVIL, &token, "udp").into_iter().filter(|drop| *drop > attached).collect();
    assert!(late.is_empty(), "{late:?}");
    assert_eq!(lab.hits(&closed).len(), 0);
    drop(drip);
    end(owner, Signal::SIGTERM).exits(0);
    assert_eq!(before.diff(&lab.snapshot()), Vec::<String>::new(), "empty: detached");
}

/// Names that the next policy requires are asked for before it is in force: without them the one before stays.
#[test]
fn a_take_over_whose_required_names_do_not_resolve_changes_nothing() {
    let lab = Lab::new();
    let job = Job::new(&lab, "job");
    let before = lab.snapshot();
    let sleeper = job.spawn("exec sleep 1000");
    let owner = job.attached("--allow ok.test --allow 198.51.100.21");
    assert_eq!(job.curl("ok.test", &lab.token("learned")), Some(0));
    end(owner, Signal::SIGTERM).exits(0).says("stays closed");
    let left = job.status().1;

    let refused = job.attach(&format!("--pre-resolve=require --allow a.test --allow nx.test --allow {EVIL}"));
    refused.output().exits(3).says("nx.test");
    let status = job.status().1;
    assert_eq!((&status["in_force"], &status["agent_pid"]), (&true.into(), &serde_json::Value::Null));
    assert_eq!(status["generation"], left["generation"], "no other policy was in force");
    assert_eq!(job.curl(&EVIL.to_string(), &lab.token("closed")), Some(7), "the new one opened nothing");
    assert_eq!(job.curl("198.51.100.21", &lab.token("before")), Some(0), "the one before still opens what it did");
    assert_eq!(job.curl(&OK.to_string(), &lab.token("before")), Some(0), "what was learned lives on");

    // Its twin, whose names resolve.
    let owner = job.attached(&format!("--pre-resolve=require --allow a.test --allow {EVIL}"));
    assert_eq!(job.curl("a.test", &lab.token("after")), Some(0));
    assert_eq!(job.curl("198.51.100.21", &lab.token("closed")), Some(7));
    drop(sleeper);
    end(owner, Signal::SIGTERM).exits(0);
    lab.expect_hits(&lab.token("before"), 2);
    lab.expect_hits(&lab.token("after"), 1);
    assert_eq!(lab.hits(&lab.token("closed")), []);
    assert_eq!(before.diff(&lab.snapshot()), Vec::<String>::new());
}

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

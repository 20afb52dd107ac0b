//! E05 and E06: what a permit's end ends, and what the end of egressd leaves.

use crate::job::Job;
use lab::{Entry, Inside, Lab, OK, until};
use nix::sys::signal::Signal;
use std::{fs, time::Duration};

/// Permits that live as long as the answer, at least two seconds.
const SHORT: &str = "version = 1
[allow]
names = [\"ok.test\"]
[dns]
permit_min = \"2s\"
grace = \"0s\"
";

/// What the policy's clock and the kernel's coarse one may differ by, and a busy machine.
const SOON: Duration = Duration::from_secs(10);

/// `curl` of the address by itself: 0, or 7 where the kernel refuses.
fn literal(inside: &mut Inside, token: &str) -> Option<i32> {
    inside.ask(&format!("curl -sS -o /dev/null -m3 http://{OK}/{token}")).code
}

#[test]
fn e05_a_flow_outlives_its_permit() {
    let lab = Lab::new();
    lab.zone().put("ok.test", Entry::at(&["198.51.100.10"]).ttl(1));
    let policy = lab.file("short.toml", SHORT);
    let (early, late, old) = (lab.token("early"), lab.token("late"), lab.token("old"));
    for (_, run) in lab.shapes() {
        let mut inside = Inside::start(run.arg("--policy").arg(&policy));
        let work = lab.work_dir();
        let (open, go) = (work.join("open"), work.join("go"));
        let flow = inside.begin(&format!(
            "bash -c 'exec 3<>/dev/tcp/ok.test/80; touch open; until [ -e go ]; do sleep 0.02; done
            printf \"GET /{old} HTTP/1.0\\r\\n\\r\\n\" >&3; grep -q sink <&3'"
        ));
        until(SOON, "the flow is open", || open.exists());
        assert_eq!(literal(&mut inside, &early), Some(0), "while the permit lives");
        until(SOON, "the permit ends", || literal(&mut inside, &late) == Some(7));
        let asked = lab.zone().queries_for("ok.test").len();
        fs::write(&go, "").unwrap();
        inside.answer(flow).exits(0);
        assert_eq!(literal(&mut inside, &late), Some(7), "the flow opens nothing new");
        assert_eq!(lab.zone().queries_for("ok.test").len(), asked, "nobody asked again");
        assert_eq!(inside.ask(&format!("curl -fsS -m3 http://ok.test/{early}")).code, Some(0), "asking again opens it");
        inside.end().exits(0);
        fs::remove_file(open).unwrap();
        fs::remove_file(go).unwrap();
    }
    lab.expect_hits(&early, 4);
    lab.expect_hits(&old, 2);
}

/// The kernel judges by itself: what was open ends at its time, and nothing new is learned.
#[test]
fn e06_a_killed_agent() {
    let lab = Lab::new();
    lab.zone().put("ok.test", Entry::at(&["198.51.100.10"]).ttl(3));
    let policy = lab.file("short.toml", SHORT);
    let job = Job::new(&lab, "job");
    let mut agent = crate::job::ready(job.attach("").arg("--policy").arg(&policy));
    job.sh("getent hosts ok.test").exits(0);
    agent.signal(Signal::SIGKILL);
    agent.wait(SOON);
    let (after, late) = (lab.token("after"), lab.token("late"));
    assert_eq!(job.curl("198.51.100.10", &after), Some(0), "its permit still lives");
    let asked = lab.zone().queries().len();
    let lookup = job.sh("dig +tries=1 +time=1 +short ok.test");
    assert!(!lookup.stdout.contains("198.51"), "{lookup}");
    until(SOON, "the kernel ends the permit", || job.curl("198.51.100.10", &late) == Some(7));
    let frames = lab.frames_to(OK).len();
    assert_eq!(job.curl("198.51.100.10", &late), Some(7));
    assert_eq!(lab.frames_to(OK).len(), frames, "no frame after the permit's end");
    assert_eq!(lab.zone().queries().len(), asked, "nobody asks upstream any more");
    lab.expect_hits(&after, 1);
    job.detach().exits(0);
}

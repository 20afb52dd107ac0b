//! E05 to E07 and E17: what a permit's end ends, what the end of egressd leaves, what its return finds, and clocks that jump.

use crate::{
    job::Job,
    library::{attach_in_the_box, directories, policy},
};
use egress_agent::sandbox::Sandbox;
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

/// Less than any client's patience: glibc, musl and Go wait 5 s.
const GAP_MS: i32 = 4000;

/// As a service manager has it: the process is killed, the next one takes over, and the clients only wait.
#[test]
fn e07_a_killed_process_and_the_next_one() {
    let lab = Lab::new();
    let (job, neighbour) = (Job::new(&lab, "job"), Job::new(&lab, "neighbour"));
    for (name, address) in [("ok.test", "198.51.100.10"), ("a.test", "198.51.100.11"), ("steady.test", "198.51.100.12")]
    {
        lab.zone().put(name, Entry::at(&[address]).ttl(600));
    }
    let before = lab.snapshot();
    let flags = "--allow ok.test --allow steady.test --pre-resolve=off";
    let beside = neighbour.attached("--allow a.test --pre-resolve=off");
    let mut owner = job.attached(flags);
    let (kept, other) = (lab.token("kept"), lab.token("neighbour"));
    assert_eq!((job.curl("ok.test", &kept), neighbour.curl("a.test", &other)), (Some(0), Some(0)));
    let stop = lab.work_dir().join("stop");
    let probe = lab.probe("asking.py");
    let asking = job.spawn(&format!("exec {probe} 203.0.113.8 steady.test {}", stop.display()));
    until(SOON, "somebody asks all the time", || !lab.zone().queries_for("steady.test").is_empty());
    let asked = |name: &str| lab.zone().queries_for(name).len();
    let (learned, steady) = (asked("ok.test"), asked("steady.test"));

    owner.signal(Signal::SIGKILL);
    owner.wait(SOON);
    assert_eq!(job.curl(&OK.to_string(), &kept), Some(0), "while nobody serves");
    owner = job.attached(flags);
    assert_eq!(job.curl(&OK.to_string(), &kept), Some(0), "the permit outlives its owner");
    assert_eq!(asked("ok.test"), learned, "nobody had to ask again");
    until(SOON, "the next one is asked", || asked("steady.test") > steady);
    assert_eq!(job.curl("198.51.100.11", &lab.token("closed")), Some(7), "what a neighbour learned");
    assert_eq!(neighbour.curl("a.test", &other), Some(0));
    fs::write(&stop, "").unwrap();
    let told = asking.finish(SOON);
    eprintln!("{told}");
    assert!(told.step("gap_ms") < GAP_MS, "{told}");
    lab.expect_hits(&kept, 3);
    lab.expect_hits(&other, 2);
    assert_eq!(lab.hits(&lab.token("closed")), []);
    crate::job::end(owner, Signal::SIGTERM).exits(0);
    crate::job::end(beside, Signal::SIGTERM).exits(0);
    fs::remove_file(&stop).unwrap();
    assert_eq!(before.diff(&lab.snapshot()), Vec::<String>::new());
}

/// The record of an earlier policy beside the maps of a later one is what a death in the middle of an update leaves.
#[test]
fn e07_a_restarted_agent() {
    const OTHER: &str = "198.51.100.11";
    let lab = Lab::new();
    let job = Job::new(&lab, "job");
    lab.zone().put("ok.test", Entry::at(&["198.51.100.10"]).ttl(600));
    lab.zone().put("a.test", Entry::at(&[OTHER]).ttl(600));
    lab.zone().put("steady.test", Entry::at(&["198.51.100.12"]).ttl(600));
    let before = lab.snapshot();
    let mut first = attach_in_the_box(&lab, &job, policy("names = [\"ok.test\", \"steady.test\"]"));
    let name = first.name().to_owned();
    let record = lab.state_dir().join("sandboxes").join(&name).join("sandbox.json");
    let earlier = fs::read_to_string(&record).unwrap();
    first.update(policy("names = [\"ok.test\", \"steady.test\", \"a.test\"]")).unwrap();
    let (kept, stale) = (lab.token("kept"), lab.token("stale"));
    assert_eq!((job.curl("ok.test", &kept), job.curl("a.test", &stale)), (Some(0), Some(0)));
    let stop = lab.work_dir().join("stop");
    let probe = lab.probe("asking.py");
    let asking = job.spawn(&format!("exec {probe} 203.0.113.8 steady.test {}", stop.display()));
    until(SOON, "somebody asks all the time", || !lab.zone().queries_for("steady.test").is_empty());
    let (asked, steady) = (lab.zone().queries_for("ok.test").len(), lab.zone().queries_for("steady.test").len());

    first.pin(&name).unwrap();
    drop(first);
    let pid = format!("\"agent_pid\": {}", std::process::id());
    assert!(earlier.contains(&pid), "{earlier}");
    fs::write(&record, earlier.replace(&pid, "\"agent_pid\": null")).unwrap();
    assert_eq!(job.curl(&OK.to_string(), &kept), Some(0), "while nobody serves");
    let second = lab.box_ns().enter(|| Sandbox::adopt(&name, &directories(&lab))).unwrap();
    assert_eq!(job.curl(&OK.to_string(), &kept), Some(0), "the permit outlives both");
    assert_eq!(job.curl(OTHER, &stale), Some(7), "its rule is gone");
    assert_eq!(lab.zone().queries_for("ok.test").len(), asked, "nobody had to ask again");
    until(SOON, "the new agent is asked", || lab.zone().queries_for("steady.test").len() > steady);
    assert_eq!(job.curl("ok.test", &kept), Some(0));
    fs::write(&stop, "").unwrap();
    let told = asking.finish(SOON);
    eprintln!("{told}");
    assert!(told.step("gap_ms") < GAP_MS, "{told}");
    lab.expect_hits(&kept, 4);
    lab.expect_hits(&stale, 1);
    second.detach().unwrap();
    fs::remove_file(&stop).unwrap();
    assert_eq!(before.diff(&lab.snapshot()), Vec::<String>::new());
}

/// The wall clock says nothing about permits; what the machine slept is taken off them, and off the answers that they rest on.
#[test]
fn e17_clocks_that_jump() {
    let lab = Lab::new();
    let job = Job::new(&lab, "job");
    lab.zone().put("ok.test", Entry::at(&["198.51.100.10"]).ttl(600));
    let clocks = lab.work_dir();
    let launch = job.attach("--allow ok.test --pre-resolve=off").env("LD_PRELOAD", lab.compiled("clock.so"));
    let agent = crate::job::ready(launch.env("CLOCKS", clocks.to_str().unwrap()));
    let token = lab.token("open");
    assert_eq!(job.curl("ok.test", &token), Some(0));
    let asked = || lab.zone().queries_for("ok.test").len();
    let before = asked();
    // When a denial was told to have happened; the form of the time sorts as it passes.
    let denied = |address: &str| {
        assert_eq!(job.curl(address, "closed"), Some(7));
        let mut time = None;
        until(SOON, "the denial is told", || {
            let told = super::events(&lab);
            time = told
                .iter()
                .find(|event| event["dst_ip"] == address)
                .map(|event| event["time"].as_str().unwrap().to_owned());
            time.is_some()
        });
        time.unwrap()
    };
    let earlier = denied("198.51.100.20");
    fs::write(clocks.join("back"), "").unwrap();
    assert!(denied("198.51.100.21") < earlier, "egressd sees the clock set back");
    assert_eq!((job.curl(&OK.to_string(), &token), job.curl("ok.test", &token)), (Some(0), Some(0)));
    assert_eq!(asked(), before, "the answer is as old as it was");
    fs::write(clocks.join("slept"), "").unwrap();
    until(SOON, "what was slept is taken off the permit", || job.curl(&OK.to_string(), &lab.token("late")) == Some(7));
    assert_eq!(job.curl("ok.test", &token), Some(0));
    assert!(asked() > before, "the answer had grown old meanwhile");
    lab.expect_hits(&token, 4);
    crate::job::end(agent, Signal::SIGINT).exits(0);
    fs::remove_file(clocks.join("back")).unwrap();
    fs::remove_file(clocks.join("slept")).unwrap();
}

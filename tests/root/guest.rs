//! Level 3: what stands behind a device has a stack of its own, and no cgroup stands for it. Here that is a network namespace that
//! egressd is told nothing of, whose programs it does not know either; in `vm` and `gvisor` it is the real thing.

mod gvisor;
mod vm;

use crate::{
    device::Hand,
    job::{Job, end, ready},
};
use egress_agent::{
    policy::Policy,
    sandbox::{Directories, Error, Level, Sandbox},
};
use lab::{BOX, EVIL, EVIL6, Lab, Launch, NEIGHBOUR, OK, OK6, Running, until};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(10);
const BOX6: &str = "2001:db8::30";
/// No machine has it: whoever answers as that is egressd.
const NOWHERE: &str = "203.0.113.53";
const NOWHERE6: &str = "2001:db8:ffff::53";

fn selves() -> String {
    format!("--self {BOX} --self {BOX6}")
}

fn attach<'l>(lab: &'l Lab, flags: &str) -> Launch<'l> {
    lab.egressd("attach").inside(lab.outer_ns()).flags(&format!("--device box0 {} {flags}", selves()))
}

fn attached(lab: &Lab, flags: &str) -> Running {
    ready(attach(lab, flags))
}

fn detach(lab: &Lab) -> lab::Output {
    lab.egressd("detach").inside(lab.outer_ns()).flags("--device box0").output()
}

fn status(lab: &Lab) -> (Option<i32>, Value) {
    let output = lab.egressd("status").inside(lab.outer_ns()).flags("--json --device box0").output();
    let report: Value = serde_json::from_str(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output}"));
    (output.code, report["sandboxes"][0].clone())
}

/// One request from the guest; whether curl was content.
fn curl(lab: &Lab, address: &str, token: &str) -> bool {
    let host = if address.contains(':') { format!("[{address}]") } else { address.to_owned() };
    lab.unconfined(&format!("curl -gsS -m2 http://{host}/{}", lab.token(token))).code == Some(0)
}

/// What the guest is told by a server: addresses, or the status in capitals.
fn dig(lab: &Lab, server: &str, question: &str) -> String {
    let said = lab.unconfined(&format!("dig +tries=1 +time=3 @{server} {question}"));
    let answers: Vec<_> = said
        .stdout
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|fields| fields.get(3).is_some_and(|kind| ["A", "AAAA"].contains(kind)) && !fields[0].starts_with(';'))
        .map(|fields| fields[4])
        .collect();
    // dig itself refuses an answer from anybody but whom it asked.
    let status = said.stdout.split("status: ").nth(1).and_then(|rest| rest.split(',').next());
    if answers.is_empty() { status.unwrap_or("nobody").to_owned() } else { answers.join(" ") }
}

fn builder(lab: &Lab, lines: &str) -> egress_agent::sandbox::Builder {
    let text = format!("version = 1\n[allow]\n{lines}\n[dns]\nservers = [\"{}\"]\npre_resolve = \"off\"\n", lab::DNS);
    Sandbox::builder(Policy::from_toml(&text).unwrap())
        .guest("box0", [BOX, BOX6.parse().unwrap()])
        .dirs(Directories { state: lab.state_dir(), pin: lab.pin_dir() })
}

#[test]
fn the_device_alone_gives_the_verdict() {
    let lab = Lab::new();
    let (hand, before) = (Hand::new(&lab), lab.snapshot());
    assert!(curl(&lab, &EVIL.to_string(), "control") && curl(&lab, EVIL6, "control"));
    lab.expect_hits(&lab.token("control"), 2);
    let controls = (lab.frames_to(EVIL).len(), lab.frames_to(EVIL6.parse::<std::net::IpAddr>().unwrap()).len());

    let mut owner = attached(&lab, &format!("--allow {OK} --allow {OK6} --require L3"));
    owner.says("level L3", SOON);
    let with = lab.snapshot();
    let on_cgroups =
        ["program ", "link "].map(|kind| with.to_string().lines().filter(|line| line.starts_with(kind)).count());
    assert_eq!(on_cgroups, [0, 0], "no cgroup has a hook: {with}");
    for (ok, evil) in [(OK.to_string(), EVIL.to_string()), (OK6.to_owned(), EVIL6.to_owned())] {
        assert!(curl(&lab, &ok, "ok"), "{ok}");
        assert!(!curl(&lab, &evil, "evil"), "{evil}");
    }
    lab.expect_hits(&lab.token("ok"), 2);
    assert_eq!(lab.hits(&lab.token("evil")).len(), 0);
    hand.is_judged(lab.box_ns(), "eth0", "by-hand");
    let now = (lab.frames_to(EVIL).len(), lab.frames_to(EVIL6.parse::<std::net::IpAddr>().unwrap()).len());
    assert_eq!(now, controls, "not one frame more");

    // Nobody asked for: a peer opens no connection to the guest.
    let peer = |word: &str| {
        let server = Running::spawn({
            let mut command = lab.box_ns().command("nc");
            command.args(["-l", "-p", "8080", "-N"]);
            command
        });
        until(SOON, "it listens", || lab.box_ns().sh("ss -Hltn 'sport = 8080'").stdout.contains("8080"));
        let connected = lab.sink_ns().sh(&format!("echo {word} | nc -N -w2 {BOX} 8080")).code == Some(0);
        if connected {
            until(SOON, "it hears", || server.stdout().contains(word));
        }
        connected
    };
    assert!(!peer("unlisted"));

    let (code, report) = status(&lab);
    assert_eq!((code, &report["level"]["text"], &report["device"]), (Some(0), &"L3".into(), &"box0".into()));
    assert_eq!((report["cgroup"].clone(), report["hooks"].as_array().unwrap().len()), (Value::Null, 2));
    assert!(report["counters"]["allowed_packets"].as_u64().unwrap() > 0);
    let explain = |dest: &str| {
        let flags = format!("--json --device box0 {dest}");
        lab.egressd("explain").inside(lab.outer_ns()).flags(&flags).output().exits(0).stdout.clone()
    };
    assert!(explain(&format!("{OK}:80")).contains("\"allow\"") && explain(&format!("{EVIL}:80")).contains("\"deny\""));
    assert!(explain("127.0.0.1:80").contains("loopback_closed"), "the guest's loopback is not on its device");
    let events = lab.egressd("events").flags("--json --device box0").output();
    events.exits(0).says("\"hook\":\"device\"").says("\"hook\":\"device_ingress\"").says(&EVIL.to_string());

    // Another policy for a guest that is served.
    let reload = |flags: &str| {
        let flags = format!("--device box0 {flags}");
        lab.egressd("reload").inside(lab.outer_ns()).flags(&flags).output().exits(0).says("is in force");
    };
    reload(&format!("--allow {OK6}"));
    assert!(!curl(&lab, &OK.to_string(), "closed") && curl(&lab, OK6, "kept"));
    reload("");
    assert!(curl(&lab, &OK.to_string(), "opened"));
    lab.expect_hits(&lab.token("opened"), 1);
    assert_eq!(lab.hits(&lab.token("closed")).len(), 0);

    // A signal to egressd leaves it closed, and `detach` opens it.
    let ended = end(owner, Signal::SIGTERM);
    ended.exits(0).says("stays closed");
    assert!(curl(&lab, &OK.to_string(), "left") && !curl(&lab, &EVIL.to_string(), "evil"));
    let listed = lab.snapshot();
    detach(&lab).exits(0);
    assert!(curl(&lab, &EVIL.to_string(), "open"), "{listed}");
    assert_eq!(before.diff(&lab.snapshot()), Vec::<String>::new());

    // The twin: a peer that is listed does.
    let policy = lab.file("inbound.toml", "version = 1\n[allow]\ninbound = [\"198.51.100.0/24\"]\n");
    let owner = attached(&lab, &format!("--policy {}", policy.display()));
    assert!(peer("listed"));
    detach(&lab).exits(0);
    drop(owner);
}

#[test]
fn names_are_answered_whichever_server_is_asked() {
    let lab = Lab::new();
    let before = lab.snapshot();
    let owner = attached(&lab, "--allow ok.test --allow both.test --pre-resolve off");
    assert!(!curl(&lab, &OK.to_string(), "early"), "no name was asked for yet");
    // A server that answers others, one that is nowhere, and both families and transports.
    for server in [NOWHERE, "198.51.100.54", NOWHERE6] {
        for transport in ["", "+tcp"] {
            assert_eq!(dig(&lab, server, &format!("ok.test A {transport}")), OK.to_string(), "{server} {transport}");
            assert_eq!(dig(&lab, server, &format!("evil.test A {transport}")), "NXDOMAIN", "{server} {transport}");
        }
    }
    assert!(curl(&lab, &OK.to_string(), "learned"), "the permit was written before the answer");
    assert!(!curl(&lab, OK6, "v6-was-not-asked-for"));
    assert_eq!(dig(&lab, NOWHERE, "both.test AAAA"), OK6);
    assert!(curl(&lab, OK6, "learned"));
    assert!(!curl(&lab, &EVIL.to_string(), "evil"));
    lab.expect_hits(&lab.token("learned"), 2);
    lab.expect_silence(EVIL);
    // Nobody but egressd was asked: no question left the device, and none of a name that no rule lists went upstream.
    let frames = lab.frames();
    assert!(frames.iter().all(|frame| frame.src != BOX || frame.dst_port != 53), "{frames:#?}");
    assert!(lab.zone().queries_for("evil.test").is_empty() && !lab.zone().queries_for("ok.test").is_empty());
    assert!(lab.zone().queries_for("ok.test").iter().all(|query| query.src.ip() != BOX));

    // From an address that is not the guest's, nothing is asked.
    lab.box_ns().ip("addr add 198.51.100.31/24 dev eth0");
    assert_eq!(dig(&lab, NOWHERE, "ok.test -b 198.51.100.31"), "nobody");
    assert_eq!(dig(&lab, NOWHERE, "ok.test"), OK.to_string());

    // A policy without names answers none, and one that never had any has nobody to ask.
    drop(end(owner, Signal::SIGKILL));
    let owner = attached(&lab, &format!("--allow {OK}"));
    assert_eq!(dig(&lab, NOWHERE, "ok.test"), "NXDOMAIN");
    detach(&lab).exits(0);
    drop(owner);
    let owner = attached(&lab, &format!("--allow {OK}"));
    assert_eq!(dig(&lab, "198.51.100.54", "ok.test"), "nobody");
    lab.box_ns().ip("addr del 198.51.100.31/24 dev eth0");
    detach(&lab).exits(0);
    drop(owner);
    until(SOON, "nothing is left", || before.diff(&lab.snapshot()).is_empty());
}

#[test]
fn kill_9_opens_nothing_and_the_next_owner_answers_again() {
    let lab = Lab::new();
    let before = lab.snapshot();
    let allow = "--allow ok.test --pre-resolve off";
    let mut owner = attached(&lab, allow);
    assert_eq!(dig(&lab, NOWHERE, "ok.test"), OK.to_string());
    owner.signal(Signal::SIGKILL);
    owner.wait(SOON);
    assert_eq!(dig(&lab, NOWHERE, "ok.test"), "nobody", "names fade with whoever answers");
    assert_eq!(dig(&lab, "198.51.100.54", "ok.test"), "nobody", "and nobody else is asked");
    assert!(curl(&lab, &OK.to_string(), "learned"), "what was learned stays");
    assert!(!curl(&lab, &EVIL.to_string(), "evil"));
    assert_eq!(status(&lab).0, Some(0));

    // Another guest is not taken for this one.
    let other =
        lab.egressd("attach").inside(lab.outer_ns()).flags(&format!("--device box0 --self {NEIGHBOUR} {allow}"));
    other.output().exits(2).says("other addresses").says("egressd detach --device box0");
    assert!(!curl(&lab, &EVIL.to_string(), "evil"));

    let owner = attached(&lab, &format!("{allow} --allow a.test"));
    assert_eq!(dig(&lab, NOWHERE, "a.test +tcp"), "198.51.100.11");
    assert_eq!(dig(&lab, NOWHERE6, "ok.test"), OK.to_string());
    assert!(curl(&lab, "198.51.100.11", "learned") && !curl(&lab, &EVIL.to_string(), "evil"));
    attach(&lab, allow).output().exits(2).says("a guest's is nobody else's");
    lab.expect_hits(&lab.token("learned"), 2);
    lab.expect_silence(EVIL);
    detach(&lab).exits(0);
    drop(owner);
    assert!(curl(&lab, &EVIL.to_string(), "open"));
    until(SOON, "nothing is left", || before.diff(&lab.snapshot()).is_empty());
}

#[test]
fn what_cannot_be_held_is_refused_by_name() {
    let lab = Lab::new();
    let before = lab.snapshot();
    let try_it = |flags: &str| lab.egressd("attach").inside(lab.outer_ns()).flags(flags).output();
    let allow = format!("--allow {OK}");
    for (flags, code, words) in [
        (format!("--device nope0 --self {BOX}"), 3, "nope0"),
        ("--device box0".to_owned(), 2, "--self"),
        (format!("--self {BOX}"), 2, "--device"),
        (format!("--device box0 --self {BOX} --strict"), 2, "--strict"),
        (format!("--device box0 --self {BOX} --netns x"), 2, "--netns"),
        ("--device box0 --self 127.0.0.1".to_owned(), 2, "127.0.0.1"),
        ("--device box0 --self ::".to_owned(), 2, "::"),
        ("--device box0 --self router".to_owned(), 2, "router"),
        (format!("--device br0 --self {BOX}"), 3, "bridge"),
        (format!("--device box0 --self {BOX} --cgroup /x"), 2, "cgroup"),
        (String::new(), 2, "--device"),
    ] {
        try_it(&format!("{flags} {allow}")).exits(code).says(words);
    }
    // In another namespace than egressd's.
    lab.egressd("attach").flags(&format!("--device box0 --self {BOX} {allow}")).output().exits(3).says("box0");
    for (key, line) in [("allow.loopback", "loopback = [8080]"), ("allow.self", "self = false")] {
        let policy = lab.file("inside.toml", &format!("version = 1\n[allow]\n{line}\n"));
        try_it(&format!("--device box0 --self {BOX} --policy {}", policy.display())).exits(2).says(key);
    }
    attach(&lab, "--allow ok.test --pin").output().exits(2).says("--pin");
    assert_eq!(before.diff(&lab.snapshot()), Vec::<String>::new());

    // A device is one's alone, whoever comes second.
    let job = Job::new(&lab, "job");
    let before = lab.snapshot();
    let owner = attached(&lab, &allow);
    let second = job.attach(&allow).entering(lab.box_ns()).output();
    second.exits(2).says("a guest's").says("egressd detach --device box0");
    detach(&lab).exits(0);
    drop(owner);
    let first = ready(job.attach(&allow).entering(lab.box_ns()));
    attach(&lab, &allow).output().exits(2).says("a guest's").says("egressd detach --cgroup");
    job.detach().exits(0);
    drop(first);
    assert_eq!(before.diff(&lab.snapshot()), Vec::<String>::new());
}

#[test]
fn a_pin_holds_a_guest_with_nobody_alive() {
    let lab = Lab::new();
    let (hand, before) = (Hand::new(&lab), lab.snapshot());
    attach(&lab, &format!("--allow {OK} --pin")).output().exits(0).says("level L3");
    assert_eq!(status(&lab).0, Some(0));
    hand.is_judged(lab.box_ns(), "eth0", "pinned");
    lab.egressd("detach").inside(lab.outer_ns()).flags("--all").output().exits(0);
    hand.is_open(lab.box_ns(), "eth0", "open");
    assert_eq!(before.diff(&lab.snapshot()), Vec::<String>::new());
}

/// The library, and kernels before 6.6: filters stand in for links, on the way to the resolver too.
#[test]
fn a_runtime_changes_a_guests_policy_while_it_runs() {
    let lab = Lab::new();
    let (hand, before) = (Hand::new(&lab), lab.snapshot());
    for tcx in [true, false] {
        let word = |what: &str| format!("{what}-{tcx}");
        let builder = builder(&lab, &format!("addresses = [\"{OK}\"]"));
        let builder = if tcx { builder } else { builder.without_tcx() };
        let mut sandbox = lab.outer_ns().enter(|| builder.attach()).unwrap();
        assert_eq!((sandbox.level().level, sandbox.hooks().count()), (Some(Level::L3), 2));
        hand.is_judged(lab.box_ns(), "eth0", &word("first"));
        assert_eq!(dig(&lab, NOWHERE, "a.test"), "nobody");

        let names = format!("version = 1\n[allow]\nnames = [\"a.test\"]\n[dns]\nservers = [\"{}\"]\n", lab::DNS);
        // Upstreams are asked from where it is called.
        let names = Policy::from_toml(&names).unwrap();
        lab.outer_ns().enter(|| sandbox.update(names)).unwrap();
        assert_eq!(dig(&lab, NOWHERE, "a.test"), "198.51.100.11");
        assert!(curl(&lab, "198.51.100.11", &word("a")) && !curl(&lab, &OK.to_string(), "closed"));
        let inside = Policy::from_toml("version = 1\n[allow]\nloopback = false\n").unwrap();
        let refused = lab.outer_ns().enter(|| sandbox.update(inside));
        assert!(matches!(refused, Err(Error::NotForGuests { key: "allow.loopback" })));
        assert_eq!(dig(&lab, NOWHERE6, "a.test +tcp"), "198.51.100.11", "as before");
        sandbox.detach().unwrap();
        hand.is_open(lab.box_ns(), "eth0", &word("open"));
        assert_eq!(before.diff(&lab.snapshot()), Vec::<String>::new(), "tcx {tcx}");
    }
    assert_eq!(lab.hits(&lab.token("closed")).len(), 0);
}

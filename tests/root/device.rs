//! The device level: frames made by hand, which no socket hook sees, at devices that come and go.

#![allow(clippy::result_large_err, reason = "errors as the library gives them, once a test")]

mod netkit;
mod shared;

use crate::job::Job;
use egress_agent::{
    policy::Policy,
    sandbox::{self, Directories, Error, Sandbox},
};
use lab::{BOX, EVIL, Lab, Netns, OK, need, until};
use nix::net::if_::if_nametoindex;
use std::{net::IpAddr, time::Duration};

const SOON: Duration = Duration::from_secs(10);
const ELSEWHERE: &str = "198.51.100.99";

fn directories(lab: &Lab) -> Directories {
    Directories { state: lab.state_dir(), pin: lab.pin_dir() }
}

fn builder(lab: &Lab, job: &Job<'_>) -> sandbox::Builder {
    allowing(lab, job, OK)
}

fn allowing(lab: &Lab, job: &Job<'_>, address: IpAddr) -> sandbox::Builder {
    let text = format!("version = 1\n[allow]\naddresses = [\"{address}\"]\n");
    Sandbox::builder(Policy::from_toml(&text).unwrap())
        .cgroup(job.cgroup().path())
        .netns(lab.box_ns().path())
        .dirs(directories(lab))
}

fn attach(lab: &Lab, builder: sandbox::Builder) -> Result<Sandbox, Error> {
    lab.outer_ns().enter(|| builder.attach())
}

/// Frames to an address that the policy names and to one that it does not, as root of the namespace makes them.
pub(crate) struct Hand<'l> {
    lab: &'l Lab,
    probe: String,
    mac: String,
}

impl<'l> Hand<'l> {
    pub(crate) fn new(lab: &'l Lab) -> Self {
        Self { lab, probe: lab.probe("frame.py"), mac: lab.sink_mac() }
    }

    pub(crate) fn send(&self, from: &Netns, device: &str, src: &str, dst: IpAddr, word: &str) {
        let Self { lab, probe, mac } = self;
        from.sh(&format!("{probe} {device} {mac} {src} {dst} 9 {}", lab.token(word))).exits(0);
    }

    pub(crate) fn arrived(&self, word: &str) -> usize {
        self.lab.frames().iter().filter(|frame| frame.carries(&self.lab.token(word))).count()
    }

    /// Asserts that the device lets through what the policy names, and nothing else.
    #[track_caller]
    pub(crate) fn is_judged(&self, from: &Netns, device: &str, word: &str) {
        let (ok, evil, spoofed) = (format!("{word}-ok"), format!("{word}-evil"), format!("{word}-spoofed"));
        self.send(from, device, &BOX.to_string(), EVIL, &evil);
        self.send(from, device, ELSEWHERE, OK, &spoofed);
        self.send(from, device, &BOX.to_string(), OK, &ok);
        assert_eq!((self.arrived(&evil), self.arrived(&spoofed), self.arrived(&ok)), (0, 0, 1), "{word}");
    }

    /// The control: the same frame arrives where nobody enforces.
    #[track_caller]
    pub(crate) fn is_open(&self, from: &Netns, device: &str, word: &str) {
        self.send(from, device, &BOX.to_string(), EVIL, word);
        assert_eq!(self.arrived(word), 1, "{word}");
    }
}

/// A second way out of the box, as somebody on the host adds it; its index on the host.
fn plug_late(lab: &Lab) -> u32 {
    lab.outer_ns().ip(&format!(
        "link add late0 type veth peer name eth1 netns {}\nlink set late0 master br0 up",
        lab.box_ns().path().display()
    ));
    lab.box_ns().ip("link set eth1 up");
    lab.outer_ns().enter(|| if_nametoindex("late0").unwrap())
}

fn hooks(job: &Job<'_>) -> Vec<String> {
    let status = job.status().1;
    let hooks = status["hooks"].as_array().unwrap();
    let there = hooks.iter().filter(|hook| hook["attached"] == true);
    there.map(|hook| hook["hook"].as_str().unwrap().to_owned()).collect()
}

fn await_hooks(job: &Job<'_>, ifindex: u32, wanted: bool) {
    for name in ["device_egress", "device_ingress"] {
        let hook = format!("{name}-{ifindex}");
        until(SOON, &format!("{hook}: {wanted}"), || hooks(job).contains(&hook) == wanted);
    }
}

#[test]
fn a_device_that_comes_later_is_judged_and_one_that_goes_is_forgotten() {
    let lab = Lab::new();
    let job = Job::new(&lab, "job");
    let (hand, before) = (Hand::new(&lab), lab.snapshot());
    let sandbox = attach(&lab, builder(&lab, &job)).unwrap();
    assert_eq!(sandbox.level().text, "L2");
    hand.is_judged(lab.box_ns(), "eth0", "first");

    // What the namespace gets later may send from no address that it gets later.
    let mut ifindex = plug_late(&lab);
    lab.box_ns().ip(&format!("addr add {ELSEWHERE}/24 dev eth1"));
    await_hooks(&job, ifindex, true);
    hand.is_judged(lab.box_ns(), "eth1", "late");

    // Replaced.
    lab.outer_ns().ip("link del late0");
    await_hooks(&job, ifindex, false);
    assert_eq!(job.status().1["device"], "box0");
    ifindex = plug_late(&lab);
    await_hooks(&job, ifindex, true);
    hand.is_judged(lab.box_ns(), "eth1", "replaced");

    // Root inside moves its end to a namespace below its own: the same device, and the same verdict.
    let nested = Netns::new();
    lab.box_ns().ip(&format!("link set eth1 netns {}", nested.path().display()));
    nested.ip("link set eth1 up");
    hand.is_judged(&nested, "eth1", "nested");
    lab.outer_ns().ip("link del late0");
    await_hooks(&job, ifindex, false);

    // A way out that no verdict fits on takes the level away while it is there.
    let level = || job.status().1["level"]["text"].as_str().unwrap().to_owned();
    lab.outer_ns().ip(&format!("link add mac0 link br0 netns {} type macvlan", lab.box_ns().path().display()));
    until(SOON, "L1 with a macvlan", || level() == "L1" && sandbox.level().text == "L1");
    lab.box_ns().ip("link del mac0");
    until(SOON, "L2 without", || level() == "L2");

    sandbox.detach().unwrap();
    hand.is_open(lab.box_ns(), "eth0", "open");
    assert_eq!(before.diff(&lab.snapshot()), Vec::<String>::new());
}

/// Without addresses at attach there is none that a device could be held to: the sockets alone are judged, and `status` says so.
#[test]
fn a_namespace_without_addresses_reaches_no_device_level() {
    let lab = Lab::new();
    let job = Job::new(&lab, "job");
    lab.outer_ns().ip("link del box0");
    let sandbox = attach(&lab, builder(&lab, &job)).unwrap();
    let path = lab.box_ns().path();
    lab.outer_ns()
        .ip(&format!("link add box0 type veth peer name eth0 netns {}\nlink set box0 master br0 up", path.display()));
    lab.box_ns().ip(&format!("link set eth0 up\naddr add {BOX}/24 dev eth0"));
    until(SOON, "told", || sandbox.level().missing.iter().any(|line| line.contains("had no address")));
    assert_eq!(job.status().1["level"]["text"], "L1");
    assert_eq!(job.curl(&OK.to_string(), &lab.token("ok")), Some(0));
    assert_eq!(job.curl(&EVIL.to_string(), &lab.token("evil")), Some(7));
    lab.expect_hits(&lab.token("ok"), 1);
    lab.expect_silence(EVIL);
}

#[test]
fn a_pinned_sandbox_says_that_nobody_follows_its_devices() {
    let lab = Lab::new();
    let job = Job::new(&lab, "job");
    let hand = Hand::new(&lab);
    job.attach(&format!("--allow {OK} --pin")).entering(lab.box_ns()).output().exits(0);
    let (code, status) = job.status();
    assert_eq!((code, &status["level"]["text"]), (Some(0), &"L2, minus devices that come later".into()));
    hand.is_judged(lab.box_ns(), "eth0", "pinned");
    plug_late(&lab);
    hand.is_open(lab.box_ns(), "eth1", "as-it-says");
    job.detach().exits(0);
}

/// The filters of kernels before 6.6.
#[test]
fn where_there_is_no_tcx_clsact_stands_in() {
    need("tc");
    let lab = Lab::new();
    let job = Job::new(&lab, "job");
    let (hand, before) = (Hand::new(&lab), lab.snapshot());
    let filters = || lab.snapshot().lines("device_egress").len();
    let clsact = || lab.outer_ns().sh("tc qdisc show dev box0").exits(0).stdout.contains("clsact");
    let attach = || attach(&lab, builder(&lab, &job).without_tcx());
    hand.is_open(lab.box_ns(), "eth0", "control");

    // In a process that lives, at devices that come later as well.
    let sandbox = attach().unwrap();
    assert_eq!(sandbox.level().text, "L2");
    hand.is_judged(lab.box_ns(), "eth0", "living");
    let ifindex = plug_late(&lab);
    let hook = format!("device_egress-{ifindex}");
    until(SOON, "the late device", || sandbox.hooks().any(|name| name == hook));
    hand.is_judged(lab.box_ns(), "eth1", "late");
    lab.outer_ns().ip("link del late0");
    until(SOON, "its end", || !sandbox.hooks().any(|name| name == hook));
    sandbox.detach().unwrap();
    hand.is_open(lab.box_ns(), "eth0", "between");
    assert_eq!(before.diff(&lab.snapshot()), Vec::<String>::new());

    // Pinned, without anybody.
    let mut sandbox = attach().unwrap();
    sandbox.pin("ci").unwrap();
    drop(sandbox);
    assert!(clsact() && filters() > 0);
    hand.is_judged(lab.box_ns(), "eth0", "pinned");
    let status = |netns| lab.egressd("status").inside(netns).flags(&format!("--json --cgroup {}", job.path())).output();
    status(lab.outer_ns()).exits(0).says("\"device_egress-");
    status(lab.box_ns()).exits(5);

    // From where the device is not to be seen, nothing is taken off.
    let refused = lab.egressd("detach").inside(lab.box_ns()).flags(&format!("--cgroup {}", job.path())).output();
    refused.exits(3).says("another network namespace");
    hand.is_judged(lab.box_ns(), "eth0", "refused");
    assert_eq!(job.curl(&EVIL.to_string(), &lab.token("closed")), Some(7));

    // Somebody on the host takes our filter off: `status` tells.
    lab.outer_ns().sh("tc filter del dev box0 ingress").exits(0);
    status(lab.outer_ns()).exits(5);
    lab.outer_ns().enter(|| sandbox::detach(&directories(&lab), job.cgroup().path())).unwrap();
    assert_eq!(before.diff(&lab.snapshot()), Vec::<String>::new());
    hand.is_open(lab.box_ns(), "eth0", "open");

    // Ours must be first, and what was there stays.
    let foreign =
        |pref: u8| format!("tc filter add dev box0 ingress pref {pref} protocol all bpf bytecode '1,6 0 0 0,'");
    lab.outer_ns().sh(&format!("tc qdisc add dev box0 clsact && {}", foreign(1))).exits(0);
    let taken = lab.snapshot();
    let refused = attach().unwrap_err();
    assert!(refused.to_string().contains("pref 2"), "{refused}");
    assert_eq!(taken.diff(&lab.snapshot()), Vec::<String>::new());
    lab.outer_ns().sh(&format!("tc filter del dev box0 ingress && {}", foreign(2))).exits(0);
    let taken = lab.snapshot();
    let sandbox = attach().unwrap();
    hand.is_judged(lab.box_ns(), "eth0", "before-another");
    sandbox.detach().unwrap();
    assert_eq!(taken.diff(&lab.snapshot()), Vec::<String>::new());
}

type Way = fn(sandbox::Builder) -> sandbox::Builder;

/// The next owner has the devices that were there, and those that came while there was none or that come later, by programs of
/// its own over the same maps.
#[test]
fn whoever_adopts_a_sandbox_keeps_its_devices_and_takes_new_ones() {
    need("tc");
    let lab = Lab::new();
    let job = Job::new(&lab, "job");
    let (hand, before) = (Hand::new(&lab), lab.snapshot());
    let adopt = |from: &Netns| from.enter(|| Sandbox::adopt("ci", &directories(&lab)));
    let ways: [Way; 2] = [|tcx| tcx, sandbox::Builder::without_tcx];
    for (way, word) in ways.into_iter().zip(["tcx", "clsact"]) {
        let mut sandbox = attach(&lab, way(builder(&lab, &job))).unwrap();
        let hooks = sandbox.hooks().count();
        sandbox.pin("ci").unwrap();
        drop(sandbox);
        let refused = adopt(lab.box_ns()).unwrap_err();
        assert!(matches!(refused, Error::HostNetns { .. }), "{refused}");
        let adopted = adopt(lab.outer_ns()).unwrap();
        assert_eq!(adopted.hooks().count(), hooks);
        assert_eq!(job.status().1["level"]["text"], "L2");
        hand.is_judged(lab.box_ns(), "eth0", &format!("{word}-adopted"));

        plug_late(&lab);
        until(SOON, "its programs", || adopted.hooks().count() == hooks + 2);
        assert_eq!(adopted.level().text, "L2");
        hand.is_judged(lab.box_ns(), "eth1", &format!("{word}-late"));
        lab.outer_ns().ip("link del late0");
        until(SOON, "its end", || adopted.hooks().count() == hooks);

        // Nobody serves it when the next one comes.
        drop(adopted);
        assert_eq!(job.status().1["level"]["text"], "L2, minus devices that come later");
        plug_late(&lab);
        hand.is_judged(lab.box_ns(), "eth0", &format!("{word}-left"));
        hand.is_open(lab.box_ns(), "eth1", &format!("{word}-between"));
        let adopted = adopt(lab.outer_ns()).unwrap();
        assert_eq!((adopted.level().text, adopted.hooks().count()), ("L2".into(), hooks + 2));
        hand.is_judged(lab.box_ns(), "eth1", &format!("{word}-caught-up"));
        lab.outer_ns().ip("link del late0");
        until(SOON, "its end", || adopted.hooks().count() == hooks);
        drop(adopted);
        adopt(lab.outer_ns()).unwrap().detach().unwrap();
        hand.is_open(lab.box_ns(), "eth0", &format!("{word}-open"));
        assert_eq!(before.diff(&lab.snapshot()), Vec::<String>::new());
    }

    // Somebody on the host took a filter off: that is not enforced whole.
    let mut sandbox = attach(&lab, builder(&lab, &job).without_tcx()).unwrap();
    sandbox.pin("ci").unwrap();
    drop(sandbox);
    lab.outer_ns().sh("tc filter del dev box0 ingress").exits(0);
    let gone = adopt(lab.outer_ns()).unwrap_err();
    assert!(matches!(&gone, Error::HookGone { hook, .. } if hook.starts_with("device_egress-")), "{gone}");
    lab.outer_ns().enter(|| sandbox::detach(&directories(&lab), job.cgroup().path())).unwrap();
    assert_eq!(before.diff(&lab.snapshot()), Vec::<String>::new());
}

/// A program of somebody else's that is asked before ours may let everything pass: `status` tells.
#[test]
fn status_sees_who_is_asked_first() {
    let lab = Lab::new();
    let (job, other) = (Job::new(&lab, "job"), Job::new(&lab, "other"));
    let _sandbox = attach(&lab, builder(&lab, &job)).unwrap();
    let status = || {
        let flags = format!("--json --cgroup {}", job.path());
        lab.egressd("status").inside(lab.outer_ns()).flags(&flags).output()
    };
    status().exits(0);
    // Another instance, of which this one knows nothing.
    let away = Directories { state: lab.directory().join("state2"), pin: lab.directory().join("pins2") };
    let stranger = attach(&lab, builder(&lab, &other).dirs(away)).unwrap();
    status().exits(5);
    stranger.detach().unwrap();
    status().exits(0);
}

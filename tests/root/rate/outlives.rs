//! Limits are the kernel's: they outlive whoever set them, and the next owner finds them and what they have let pass.

use super::{MBIT, OK, download_holds, lately, limits_beside_devices, on_the_wire, open};
use crate::{job::Job, library::directories};
use egress_agent::sandbox::{Error, Sandbox};
use lab::{Lab, until};
use nix::sys::signal::Signal;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(8);
const LIMITS: &str = "[bandwidth]\negress = \"20mbit\"\ningress = \"20mbit\"";

#[test]
fn t38_limits_outlive_a_kill_and_are_adopted() {
    let lab = Lab::alone();
    lab.source(5203);
    let (job, blast, gauge) = (Job::new(&lab, "job"), lab.probe("blast.py"), lab.gauge(5201));
    let before = lab.snapshot();
    let policy = lab.file("both.toml", LIMITS);
    let flags = format!("--policy {} --allow {OK}:5201-5203", policy.display());
    let mut owner = crate::job::ready(job.attach(&flags).entering(lab.box_ns()));
    let flow = job.spawn(&format!("{blast} {OK} 5201 60 tcp 1"));
    let holds = |what: &str| {
        gauge.reset();
        until(SOON, what, || (18.0 * MBIT..=21.0 * MBIT).contains(&(on_the_wire(OK, "tcp", lately(&gauge)) * MBIT)));
    };
    let bandwidth = || limits_beside_devices(&lab);
    let sent = || bandwidth()["egress"]["bytes"].as_u64().unwrap();
    let queue = || lab.outer_ns().sh("tc qdisc show dev box0").exits(0).stdout.clone();
    let down = |what: &str| download_holds(what, "shaped", OK, 1, |args| job.sh(&format!("{blast} {args}")));
    holds("a served flow keeps to its rate");

    owner.signal(Signal::SIGKILL);
    owner.wait(SOON);
    let served = sent();
    holds("nobody serves it, and the rate holds");
    down("down with nobody");
    // While nobody looks, somebody takes the queue away: the next owner puts it there again.
    assert!(queue().contains("tbf 6567: root") && queue().contains("rate 20Mbit"), "{}", queue());
    lab.outer_ns().sh("tc qdisc del dev box0 root").exits(0);
    let name = job.status().1["sandbox"].as_str().unwrap().to_owned();
    let adopted = lab.outer_ns().enter(|| Sandbox::adopt(&name, &directories(&lab)).unwrap());
    assert!(queue().contains("tbf 6567: root") && queue().contains("rate 20Mbit"), "{}", queue());
    assert_eq!(bandwidth()["ingress"]["how"], "shaped");
    holds("an adopted flow keeps to its rate");
    down("down, adopted");
    assert!(sent() > served && served > 0, "{} after {served}", sent());
    drop(flow);
    adopted.detach().unwrap();
    assert!(!queue().contains("tbf"), "{}", queue());
    assert_eq!(before.diff(&lab.snapshot()), Vec::<String>::new());
}

/// An owner that died between the maps and the record, or between the maps and the queue, leaves them apart.
#[test]
fn adoption_leads_limits_and_queue_to_the_policy_on_record() {
    let lab = Lab::alone();
    let job = Job::new(&lab, "job");
    let queue = || lab.outer_ns().sh("tc qdisc show dev box0").exits(0).stdout.clone();
    let builder = Sandbox::builder(open("egress = \"20mbit\"\ningress = \"20mbit\"")).cgroup(job.cgroup().path());
    let builder = builder.netns(lab.box_ns().path()).dirs(directories(&lab));
    let mut sandbox = lab.outer_ns().enter(|| builder.attach().unwrap());
    let record = lab.state_dir().join("sandboxes").join(sandbox.name()).join("sandbox.json");
    let first = std::fs::read_to_string(&record).unwrap();
    lab.outer_ns().enter(|| sandbox.update(open("egress = \"5mbit\"\ningress = \"5mbit\"")).unwrap());
    assert!(queue().contains("rate 5Mbit"), "{}", queue());
    let adopt = || -> Result<Sandbox, Error> { lab.outer_ns().enter(|| Sandbox::adopt("left", &directories(&lab))) };
    sandbox.pin("left").unwrap();
    drop(sandbox);
    let pid = format!("\"agent_pid\": {}", std::process::id());
    let left = first.replace(&pid, "\"agent_pid\": null").replace("\"pinned_as\": null", "\"pinned_as\": \"left\"");
    std::fs::write(&record, left).unwrap();
    let mut adopted = adopt().unwrap();
    let bandwidth = limits_beside_devices(&lab);
    assert_eq!((&bandwidth["egress"]["rate"], &bandwidth["ingress"]["rate"]), (&20_000_000.into(), &20_000_000.into()));
    assert!(queue().contains("rate 20Mbit"), "{}", queue());
    // And whoever took it over changes it like any other.
    lab.outer_ns().enter(|| adopted.update(open("ingress = \"10mbit\"")).unwrap());
    assert!(queue().contains("rate 10Mbit"), "{}", queue());
    assert_eq!(limits_beside_devices(&lab)["egress"], serde_json::Value::Null);
    adopted.detach().unwrap();
    assert!(!queue().contains("tbf"), "{}", queue());
}

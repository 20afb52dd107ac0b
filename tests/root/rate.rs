//! Limits hold at the sink, for whatever sends, and for nobody else.

#![expect(clippy::cast_precision_loss, reason = "bytes of a test are far below 2^52")]

mod device;
mod mixed;
mod outlives;
mod whole;

use crate::{
    job::Job,
    library::{attach_in_the_box, directories},
};
use egress_agent::{
    observe::event::{Kind, Verdict},
    policy::Policy,
    sandbox::Sandbox,
};
use lab::{Gauge, Inside, Lab, Launch, need, undisturbed, until};
use serde_json::Value;
use std::{fs, time::Duration};

const OK: &str = "198.51.100.10";
const OK6: &str = "2001:db8::10";
const ALLOW: &str = "--allow 198.51.100.10:5201-5203 --allow [2001:db8::10]:5201-5203";
/// Seconds of a flow that waits, or whose packets are not lost.
const STEADY_SECONDS: f64 = 2.7;
/// Of one whose packets are dropped: where a retransmission is dropped as well, TCP pauses for most of a second.
const POLICED_SECONDS: f64 = 5.7;
/// Behind the burst.
const SETTLED: Duration = Duration::from_millis(700);
const SOON: Duration = Duration::from_secs(5);
const MBIT: f64 = 1e6;
/// What most limits are here, in bits per second.
const RATE: f64 = 20.0 * MBIT;

/// What the network carries for the payload: IP and TCP with timestamps, or UDP, around each packet.
fn on_the_wire(host: &str, kind: &str, bits: f64) -> f64 {
    let network = if host.contains(':') { 40.0 } else { 20.0 };
    if kind == "udp" { bits * (1400.0 + network + 8.0) / 1400.0 } else { bits * 1500.0 / (1500.0 - network - 32.0) }
}

/// Port 5201 of the sink is open, and the limits are these.
fn open(limits: &str) -> Policy {
    let text = format!("[allow]\naddresses = [\"{OK}:5201\", \"[{OK6}]:5201\"]\n[bandwidth]\n{limits}\n");
    Policy::from_toml(&text).unwrap()
}

/// The rate at which a download came, as `blast.py take` tells it.
fn taken(said: &lab::Output) -> f64 {
    let words: Vec<f64> = said.exits(0).stdout.split_whitespace().map(|word| word.parse().unwrap()).collect();
    words[0] * 8.0 / words[1]
}

#[track_caller]
fn holds(what: &str, configured: f64, measure: impl FnMut() -> f64) {
    held(what, undisturbed(what, measure) / configured);
}

#[track_caller]
fn held(what: &str, ratio: f64) {
    assert!((0.9..=1.05).contains(&ratio), "{what}: {ratio:.3} of the rate");
}

/// TCP whose packets are dropped: most of the rate; more by the burst, and by what came before the measurement and waited for a
/// packet that was lost.
#[track_caller]
fn policed(what: &str, ratio: f64) {
    assert!((0.6..=1.2).contains(&ratio), "{what}: {ratio:.3} of the rate");
}

/// A download gets of [`RATE`] what the way in which it is held lets it; `blast` runs `blast.py` where the reader is.
#[track_caller]
fn download_holds(what: &str, how: &str, host: &str, flows: u32, mut blast: impl FnMut(&str) -> lab::Output) {
    let (judge, seconds): (fn(&str, f64), _) =
        if how == "shaped" { (held, STEADY_SECONDS) } else { (policed, POLICED_SECONDS) };
    let ratio = undisturbed(what, || {
        on_the_wire(host, "tcp", taken(&blast(&format!("{host} 5203 {seconds} take {flows}")))) / RATE
    });
    judge(what, ratio);
}

fn limits(lab: &Lab) -> Value {
    limits_from(lab.egressd("status"))
}

/// From the namespace that has the devices: elsewhere nobody sees their queues.
fn limits_beside_devices(lab: &Lab) -> Value {
    limits_from(lab.egressd("status").inside(lab.outer_ns()))
}

fn limits_from(status: Launch<'_>) -> Value {
    let report = status.flags("--json").output();
    let report: Value = serde_json::from_str(&report.exits(0).stdout).unwrap();
    report["sandboxes"][0]["bandwidth"].clone()
}

/// Segments made by the device, by the kernel before it, or by nobody.
fn offloads(lab: &Lab, on: bool) {
    need("ethtool");
    let state = if on { "on" } else { "off" };
    let set = format!("ethtool -K eth0 tso {state} gso {state} tx-udp-segmentation {state}");
    lab.box_ns().sh(&set).exits(0);
}

/// Which congestion control sockets to this address use. As a route's: other namespaces than the first may not choose every
/// one as their default. False, or in a strict run a failure, where the kernel has none of that name.
fn controlled_by(lab: &Lab, host: &str, control: &str) -> bool {
    let set = lab.box_ns().sh(&format!("ip route replace {host} dev eth0 congctl {control}"));
    let has = set.code == Some(0);
    if !has {
        lab::skip(&format!("this kernel has no congestion control {control}: {set}"));
    }
    has
}

#[test]
fn t38_tcp_keeps_to_the_rate() {
    let lab = Lab::alone();
    let (blast, gauge) = (lab.probe("blast.py"), lab.gauge(5201));
    let [(_, boxed), _] = lab.shapes();
    let mut inside = Inside::start(boxed.flags(&format!("--rate 20mbit {ALLOW}")));
    for (host, control, flows, offloaded) in [(OK, "cubic", 1, true), (OK, "cubic", 8, false), (OK6, "bbr", 1, true)] {
        if !controlled_by(&lab, host, control) {
            continue;
        }
        offloads(&lab, offloaded);
        let what = format!("{host} {control} x{flows}, offloads {offloaded}");
        holds(&what, RATE, || {
            gauge.reset();
            inside.ask(&format!("{blast} {host} 5201 {STEADY_SECONDS} tcp {flows}")).exits(0);
            on_the_wire(host, "tcp", gauge.rate(SETTLED))
        });
        // The first second may hold the burst, and no more.
        let first = on_the_wire(host, "tcp", gauge.within(Duration::from_secs(1)) as f64);
        assert!(first <= 1.25 * RATE / 8.0 + 65536.0, "{what}: {first} bytes in the first second");
    }
    let egress = &limits(&lab)["egress"];
    assert_eq!((egress["rate"].as_u64(), egress["how"].as_str()), (Some(20_000_000), Some("paced")), "{egress}");
    // TCP that paces itself meets no full bucket.
    assert!(egress["dropped_packets"].as_u64().unwrap() < 100, "{egress}");
    inside.end().exits(0);
}

#[test]
fn t38_udp_keeps_to_the_rate_and_no_sender_sees_an_error() {
    let lab = Lab::alone();
    let (blast, gauge) = (lab.probe("blast.py"), lab.gauge(5201));
    // By the cgroup's bucket alone, and with the device's behind it.
    for ((_, launch), (host, flows, offloaded)) in lab.shapes().into_iter().zip([(OK, 1, true), (OK6, 2, false)]) {
        let mut inside = Inside::start(launch.flags(&format!("--rate 20mbit {ALLOW}")));
        offloads(&lab, offloaded);
        holds(&format!("{host} udp x{flows}"), RATE, || {
            gauge.reset();
            inside.ask(&format!("{blast} {host} 5201 {STEADY_SECONDS} udp {flows}")).exits(0);
            on_the_wire(host, "udp", gauge.rate(SETTLED))
        });
        let egress = &limits(&lab)["egress"];
        assert!(egress["dropped_packets"].as_u64().unwrap() > 500, "{egress}");
        inside.end().exits(0);
    }
}

#[test]
fn t38_downloads_keep_to_the_rate() {
    for (shape, how) in [("box", "policed"), ("netns", "shaped")] {
        let lab = Lab::alone();
        lab.source(5203);
        let (blast, policy) = (lab.probe("blast.py"), lab.file("in.toml", "[bandwidth]\ningress = \"20mbit\""));
        let (_, launch) = lab.shapes().into_iter().find(|(name, _)| *name == shape).unwrap();
        let mut inside = Inside::start(launch.flags(&format!("--policy {} {ALLOW}", policy.display())));
        for (host, flows) in [(OK, 1), (OK6, 1), (OK, 4)] {
            let what = format!("{shape} {host} down x{flows}");
            download_holds(&what, how, host, flows, |args| inside.ask(&format!("{blast} {args}")));
        }
        let ingress = &limits(&lab)["ingress"];
        assert_eq!((ingress["rate"].as_u64(), ingress["how"].as_str()), (Some(20_000_000), Some(how)), "{ingress}");
        inside.end().exits(0);
        let left = lab.outer_ns().sh("tc qdisc show dev box0");
        assert!(!left.stdout.contains("tbf"), "{left}");
    }
}

#[test]
fn t38_a_neighbour_and_loopback_are_not_slowed_down() {
    let lab = Lab::alone();
    let blast = lab.probe("blast.py");
    let (slow, slower, free) = (lab.gauge(5201), lab.gauge(5202), lab.gauge(5203));
    let begin = |rate: &str| Inside::start(lab.egressd("run").flags(&format!("{rate} {ALLOW}")));
    let (mut first, mut second, mut third) = (begin("--rate 20mbit"), begin("--rate 5mbit"), begin(""));
    let at = |inside: &mut Inside, port, kind| inside.begin(&format!("{blast} {OK} {port} {STEADY_SECONDS} {kind} 1"));
    let (one, two) = (at(&mut first, 5201, "tcp"), at(&mut second, 5202, "udp"));
    let three = at(&mut third, 5203, "tcp");
    first.answer(one).exits(0);
    second.answer(two).exits(0);
    third.answer(three).exits(0);
    held("tcp beside others", on_the_wire(OK, "tcp", slow.rate(SETTLED)) / RATE);
    held("udp beside others", on_the_wire(OK, "udp", slower.rate(SETTLED)) / (5.0 * MBIT));
    assert!(free.rate(SETTLED) > 10.0 * RATE, "{} bit/s without a limit", free.rate(SETTLED));
    // 20 MB within the sandbox would take eight seconds.
    let within = "import socket, threading, time
listener = socket.create_server(('127.0.0.1', 0))
into = socket.create_connection(listener.getsockname())
out = listener.accept()[0]
start = time.monotonic()
threading.Thread(target=into.sendall, args=(bytes(20_000_000),)).start()
left = 20_000_000
while left:
    left -= len(out.recv(1 << 18))
print(time.monotonic() - start)";
    let within = lab.file("within.py", within);
    let said = first.ask(&format!("{} -I {}", lab::PYTHON, within.display()));
    assert!(said.exits(0).stdout.trim().parse::<f64>().unwrap() < 2.0, "{said}");
    for inside in [first, second, third] {
        inside.end().exits(0);
    }
}

/// Megabits per second that came in the last slices of 100 ms.
fn lately(gauge: &Gauge) -> f64 {
    let slices = gauge.slices(Duration::from_millis(100));
    let last: Vec<_> = slices.iter().rev().skip(1).take(5).collect();
    if last.len() < 5 { 0.0 } else { last.iter().copied().sum::<u64>() as f64 * 8.0 / 0.5 / MBIT }
}

#[test]
fn a_limit_changes_under_a_flow() {
    let lab = Lab::alone();
    let (job, blast, gauge) = (Job::new(&lab, "job"), lab.probe("blast.py"), lab.gauge(5201));
    let mut sandbox = attach_in_the_box(&lab, &job, open("egress = \"10gbit\""));
    let flow = job.spawn(&format!("{blast} {OK} 5201 60 tcp 1"));
    until(SOON, "the flow is fast", || lately(&gauge) > 100.0);
    for (limit, range) in [("20mbit", 18.0..=21.0), ("5mbit", 4.5..=5.3)] {
        lab.box_ns().enter(|| sandbox.update(open(&format!("egress = \"{limit}\""))).unwrap());
        gauge.reset();
        until(SOON, &format!("{limit} on the wire"), || range.contains(&on_the_wire(OK, "tcp", lately(&gauge))));
    }
    lab.box_ns().enter(|| sandbox.update(open("")).unwrap());
    gauge.reset();
    until(SOON, "the flow is fast again", || lately(&gauge) > 100.0);
    drop(flow);
    sandbox.detach().unwrap();
}

#[test]
fn the_queue_of_a_device_comes_changes_and_goes() {
    let lab = Lab::alone();
    let job = Job::new(&lab, "job");
    let before = lab.snapshot();
    let queue = || lab.outer_ns().sh("tc qdisc show dev box0").exits(0).stdout.clone();
    let builder = Sandbox::builder(open("ingress = \"20mbit\"")).cgroup(job.cgroup().path());
    let builder = builder.netns(lab.box_ns().path()).dirs(directories(&lab));
    let mut sandbox = lab.outer_ns().enter(|| builder.attach().unwrap());
    assert!(queue().contains("tbf 6567: root") && queue().contains("rate 20Mbit"), "{}", queue());
    let update = |sandbox: &mut Sandbox, limit: &str| lab.outer_ns().enter(|| sandbox.update(open(limit)).unwrap());
    update(&mut sandbox, "ingress = \"40gbit\"");
    assert!(queue().contains("rate 40Gbit"), "{}", queue());
    update(&mut sandbox, "");
    assert!(!queue().contains("tbf"), "{}", queue());
    // Somebody else's stays, and the bucket limits alone.
    lab.outer_ns().sh("tc qdisc add dev box0 root handle 7: pfifo").exits(0);
    update(&mut sandbox, "ingress = \"20mbit\"");
    assert!(queue().contains("pfifo 7: root"), "{}", queue());
    let report = lab.egressd("status").inside(lab.outer_ns()).flags("--json").output();
    assert!(report.stdout.contains("\"how\":\"policed\""), "{report}");
    lab.outer_ns().sh("tc qdisc del dev box0 root").exits(0);
    update(&mut sandbox, "ingress = \"10mbit\"");
    assert!(queue().contains("rate 10Mbit"), "{}", queue());
    sandbox.detach().unwrap();
    assert_eq!(before.diff(&lab.snapshot()), Vec::<String>::new());
}

/// Datagrams of 1000 bytes until one is refused; tells how many went out.
const SPEND: &str = "import socket, sys, time
out = socket.socket(socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET, socket.SOCK_DGRAM)
sent = 0
try:
    while sent < 2000:
        out.sendto(bytes(1000), (sys.argv[1], 5201))
        sent += 1
        time.sleep(0.0005)
except PermissionError:
    pass
print(sent)";

#[test]
fn a_budget_ends_what_leaves_and_outlives_its_owner() {
    let lab = Lab::alone();
    let (job, gauge, spend) = (Job::new(&lab, "job"), lab.gauge(5201), lab.file("spend.py", SPEND));
    let sent = |host: &str| {
        let said = job.sh(&format!("{} -I {} {host}", lab::PYTHON, spend.display()));
        said.exits(0).stdout.trim().parse::<u64>().unwrap()
    };
    let builder = Sandbox::builder(open("budget = \"300kB\"")).cgroup(job.cgroup().path());
    let builder = builder.netns(lab.box_ns().path()).dirs(directories(&lab));
    let mut sandbox = lab.outer_ns().enter(|| builder.attach().unwrap());
    let events = sandbox.events();
    // What stays inside is free.
    assert_eq!(sent("127.0.0.1"), 2000);
    assert_eq!(sent(OK6), 300_000 / 1048);
    assert_eq!((sent(OK6), sent(OK)), (0, 0), "nothing after the end");
    until(SOON, "every datagram is there", || gauge.total() >= 300_000 / 1048 * 1000);
    assert_eq!(gauge.total(), 300_000 / 1048 * 1000);
    let log = lab.state_dir().join("sandboxes").join(sandbox.name()).join("events.jsonl");
    until(SOON, "the end is told", || {
        fs::read_to_string(&log).is_ok_and(|log| log.matches("\"event\":\"budget\"").count() == 2)
    });
    // Another owner finds it spent, and may give more.
    sandbox.pin("spent").unwrap();
    drop(sandbox);
    let events: Vec<_> = events.collect();
    let told: Vec<_> = events.iter().filter(|event| event.event == Kind::Budget).collect();
    let words: Vec<_> = told.iter().map(|event| event.reason.as_deref().unwrap()).collect();
    assert_eq!(words, ["budget_low", "budget"]);
    assert_eq!((told[0].verdict, told[1].verdict, told[1].budget), (None, Some(Verdict::Deny), Some(300_000)));
    assert!((240_000..=300_000).contains(&told[0].bytes.unwrap()), "{told:?}");
    let denied = events.iter().find(|event| event.event == Kind::Packet && event.reason.as_deref() == Some("budget"));
    assert_eq!(denied.and_then(|event| event.verdict), Some(Verdict::Deny), "{events:?}");
    let mut adopted = lab.outer_ns().enter(|| Sandbox::adopt("spent", &directories(&lab)).unwrap());
    assert_eq!(sent(OK6), 0);
    lab.outer_ns().enter(|| adopted.update(open("budget = \"600kB\"")).unwrap());
    assert_eq!(sent(OK6), 600_000 / 1048 - 300_000 / 1048);
    assert_eq!(sent(OK), 0);
    adopted.detach().unwrap();
    // And a sandbox that comes later begins at nothing.
    let again = attach_in_the_box(&lab, &job, open("budget = \"300kB\""));
    assert_eq!(sent(OK), 300_000 / 1028);
    again.detach().unwrap();
}

#[test]
fn who_only_observes_is_not_slowed_down() {
    let lab = Lab::alone();
    let (blast, gauge) = (lab.probe("blast.py"), lab.gauge(5201));
    let policy = lab.file("budget.toml", "[bandwidth]\nbudget = \"100kB\"");
    let flags = format!("--observe --rate 5mbit --policy {} {ALLOW}", policy.display());
    let mut inside = Inside::start(lab.egressd("run").flags(&flags));
    inside.ask(&format!("{blast} {OK} 5201 0.5 tcp 1")).exits(0);
    assert!(gauge.total() > 3_000_000, "{} bytes", gauge.total());
    let limits = limits(&lab);
    assert_eq!((limits["egress"].as_u64(), limits["budget"].as_u64()), (None, Some(100_000)), "{limits}");
    inside.end().exits(0);
}

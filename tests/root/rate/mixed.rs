//! Many sockets, both protocols, both directions: one bucket.

use super::{ALLOW, MBIT, OK, OK6, SETTLED, controlled_by, holds, lately, limits, offloads, on_the_wire, open, taken};
use crate::{job::Job, library::attach_in_the_box};
use lab::{Inside, Lab, until};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(8);

#[test]
fn t38_manyflows_keep_to_the_rate() {
    let lab = Lab::without_capture();
    let (blast, gauge) = (lab.probe("blast.py"), lab.gauge(5201));
    let [_, (_, owned)] = lab.shapes();
    let mut inside = Inside::start(owned.flags(&format!("--rate 20mbit {ALLOW}")));
    for (host, control, flows, offloaded) in [(OK6, "cubic", 64, true), (OK, "bbr", 8, false)] {
        if !controlled_by(&lab, host, control) {
            continue;
        }
        offloads(&lab, offloaded);
        gauge.reset();
        inside.ask(&format!("{blast} {host} 5201 2 tcp {flows}")).exits(0);
        let what = format!("{host} {control} x{flows}, offloads {offloaded}");
        holds(&what, on_the_wire(host, "tcp", gauge.rate(SETTLED)), 20.0 * MBIT);
    }
    inside.end().exits(0);
}

#[test]
fn t38_tcp_and_udp_share_one_bucket() {
    let lab = Lab::without_capture();
    let (blast, stream, datagrams) = (lab.probe("blast.py"), lab.gauge(5201), lab.gauge(5202));
    let mut inside = Inside::start(lab.egressd("run").flags(&format!("--rate 20mbit {ALLOW}")));
    let tcp = inside.begin(&format!("{blast} {OK} 5201 2 tcp 2"));
    let udp = inside.begin(&format!("{blast} {OK6} 5202 2 udp 1"));
    inside.answer(tcp).exits(0);
    inside.answer(udp).exits(0);
    let tcp = on_the_wire(OK, "tcp", stream.rate(SETTLED));
    let udp = on_the_wire(OK6, "udp", datagrams.rate(SETTLED));
    holds("tcp and udp together", tcp + udp, 20.0 * MBIT);
    assert!(udp > MBIT, "{udp} bit/s of datagrams");
    inside.end().exits(0);
}

#[test]
fn t38_both_directions_at_once() {
    let lab = Lab::without_capture();
    lab.source(5203);
    let (blast, gauge) = (lab.probe("blast.py"), lab.gauge(5201));
    let policy = lab.file("both.toml", "[bandwidth]\negress = \"20mbit\"\ningress = \"40mbit\"");
    let [_, (_, owned)] = lab.shapes();
    let mut inside = Inside::start(owned.flags(&format!("--policy {} {ALLOW}", policy.display())));
    let down = inside.begin(&format!("{blast} {OK} 5203 2 take 1"));
    let up = inside.begin(&format!("{blast} {OK6} 5201 2 tcp 1"));
    let said = inside.answer(down);
    inside.answer(up).exits(0);
    let within = |what: &str, bits: f64, configured: f64| {
        let ratio = bits / configured;
        // Answers to what comes down are paid for as well, about a fortieth of it.
        assert!((0.85..=1.05).contains(&ratio), "{what}: {ratio:.3} of the rate; {}", limits(&lab));
    };
    within("down", on_the_wire(OK, "tcp", taken(&said)), 40.0 * MBIT);
    within("up", on_the_wire(OK6, "tcp", gauge.rate(SETTLED)), 20.0 * MBIT);
    inside.end().exits(0);
}

/// A socket without a limit calls nobody for its answers. The bucket holds it when a limit comes, and what it sends again after a
/// loss on its way gives it its pace.
#[test]
fn a_limit_that_comes_later_holds_the_flow_that_is_there() {
    let lab = Lab::without_capture();
    let (job, blast, gauge) = (Job::new(&lab, "job"), lab.probe("blast.py"), lab.gauge(5201));
    assert!(controlled_by(&lab, OK, "cubic"), "every kernel has cubic");
    let mut sandbox = attach_in_the_box(&lab, &job, open(""));
    let flow = job.spawn(&format!("{blast} {OK} 5201 60 tcp 1"));
    until(SOON, "the flow is fast", || lately(&gauge) > 100.0);
    lab.box_ns().enter(|| sandbox.update(open("egress = \"20mbit\"")).unwrap());
    gauge.reset();
    until(SOON, "three seconds of it", || gauge.slices(Duration::from_secs(1)).len() > 3);
    let ratio = on_the_wire(OK, "tcp", gauge.rate(SETTLED)) / (20.0 * MBIT);
    println!("held by drops alone: {ratio:.3} of the rate");
    assert!((0.6..=1.05).contains(&ratio), "held by drops alone: {ratio:.3} of the rate");

    // The most that the socket may send, as the kernel tells it: pacing_rate NOW/MOST.
    let pace = || lab.box_ns().sh(&format!("ss -tinH dst {OK}:5201")).stdout;
    let is_paced = || pace().split_whitespace().skip_while(|word| *word != "pacing_rate").nth(1).unwrap().contains('/');
    assert!(!is_paced(), "{}", pace());
    let lossy = "add table inet lossy; add chain inet lossy in { type filter hook input priority 0; }; \
                 add rule inet lossy in tcp dport 5201 numgen inc mod 200 == 0 drop";
    lab.sink_ns().sh(&format!("nft '{lossy}'")).exits(0);
    until(SOON, "what is sent again gives it a pace", is_paced);
    lab.sink_ns().sh("nft delete table inet lossy").exits(0);
    gauge.reset();
    until(SOON, "20mbit on the wire", || (18.0..=21.0).contains(&on_the_wire(OK, "tcp", lately(&gauge))));
    lab.box_ns().enter(|| sandbox.update(open("")).unwrap());
    until(SOON, "the pace is gone", || !is_paced());
    drop(flow);
    sandbox.detach().unwrap();
}

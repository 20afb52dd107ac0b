//! Many sockets, both protocols, both directions: one bucket.

#![expect(clippy::cast_precision_loss, reason = "bytes of a test are far below 2^52")]

use super::{
    ALLOW, MBIT, OK, OK6, SETTLED, STEADY_SECONDS, controlled_by, held, holds, lately, offloads, on_the_wire, open,
    taken,
};
use crate::{job::Job, library::attach_in_the_box};
use lab::{Gauge, Inside, Lab, undisturbed, until};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(8);
/// Many flows that begin at once have found their shares by then.
const AGREED: Duration = Duration::from_secs(2);

#[test]
fn t38_many_flows_keep_to_the_rate() {
    let lab = Lab::alone();
    let (blast, gauge) = (lab.probe("blast.py"), lab.gauge(5201));
    let [_, (_, owned)] = lab.shapes();
    let mut inside = Inside::start(owned.flags(&format!("--rate 20mbit {ALLOW}")));
    for (host, control, flows, offloaded) in [(OK, "bbr", 8, false), (OK6, "cubic", 64, true)] {
        if !controlled_by(&lab, host, control) {
            continue;
        }
        offloads(&lab, offloaded);
        holds(&format!("{host} {control} x{flows}, offloads {offloaded}"), 20.0 * MBIT, || {
            gauge.reset();
            inside.ask(&format!("{blast} {host} 5201 3.5 tcp {flows}")).exits(0);
            on_the_wire(host, "tcp", gauge.rate(AGREED))
        });
    }
    inside.end().exits(0);
}

/// The first windows of ten sockets fill the bucket five times over. It empties, and no socket is kept out until TCP gives it up.
#[test]
fn t38_no_flow_is_kept_out_at_a_low_rate() {
    let lab = Lab::alone();
    let (blast, gauge) = (lab.probe("blast.py"), lab.gauge(5201));
    for ((shape, launch), host) in lab.shapes().into_iter().zip([OK6, OK]) {
        if !controlled_by(&lab, host, "bbr") {
            continue;
        }
        let mut inside = Inside::start(launch.flags(&format!("--rate 1mbit {ALLOW}")));
        gauge.quiet();
        gauge.reset();
        // Fifteen probes, half a second apart, and what it took until the first.
        inside.ask(&format!("{blast} {host} 5201 12 tcp 10")).exits(0);
        // What a socket lost comes late, with all behind it.
        let ratio = on_the_wire(host, "tcp", gauge.rate(AGREED)) / MBIT;
        assert!((0.8..=1.2).contains(&ratio), "{shape}: {ratio:.3} of the rate");
        inside.end().exits(0);
    }
}

/// A packet of 64 KiB is two and a half buckets. It is paid for, and is no reason to slow the next one down.
#[test]
fn t38_one_flow_has_all_of_a_low_rate() {
    let lab = Lab::alone();
    let (blast, gauge) = (lab.probe("blast.py"), lab.gauge(5201));
    let [(_, boxed), _] = lab.shapes();
    if !controlled_by(&lab, OK, "bbr") {
        return;
    }
    let mut inside = Inside::start(boxed.flags(&format!("--rate 1mbit {ALLOW}")));
    let bits = undisturbed("one flow", || {
        gauge.quiet();
        gauge.reset();
        inside.ask(&format!("{blast} {OK} 5201 14 tcp 1")).exits(0);
        on_the_wire(OK, "tcp", gauge.rate(AGREED))
    });
    // In twelve seconds there are 23 such packets.
    let ratio = bits / MBIT;
    assert!((0.9..=1.1).contains(&ratio), "{ratio:.3} of the rate");
    inside.end().exits(0);
}

#[test]
fn t38_tcp_and_udp_share_one_bucket() {
    let lab = Lab::alone();
    let (blast, stream, datagrams) = (lab.probe("blast.py"), lab.gauge(5201), lab.gauge(5202));
    let mut inside = Inside::start(lab.egressd("run").flags(&format!("--rate 20mbit {ALLOW}")));
    // Not from each one's first byte: a stream that is starved has long gaps.
    let bits = |gauge: &Gauge| (gauge.within(3 * SETTLED) - gauge.within(SETTLED)) as f64 * 4.0 / SETTLED.as_secs_f64();
    let (tcp, udp) = undisturbed("tcp and udp together", || {
        [&stream, &datagrams].into_iter().for_each(Gauge::reset);
        let tcp = inside.begin(&format!("{blast} {OK} 5201 2.4 tcp 2"));
        let udp = inside.begin(&format!("{blast} {OK6} 5202 2.4 udp 1"));
        inside.answer(tcp).exits(0);
        inside.answer(udp).exits(0);
        (on_the_wire(OK, "tcp", bits(&stream)), on_the_wire(OK6, "udp", bits(&datagrams)))
    });
    println!("tcp {tcp}, udp {udp}");
    held("tcp and udp together", (tcp + udp) / (20.0 * MBIT));
    // Three quarters are TCP's: a socket is paced, and finds room where datagrams find none.
    assert!(tcp > 12.0 * MBIT, "{tcp} bit/s of TCP");
    assert!(udp > MBIT, "{udp} bit/s of datagrams");
    inside.end().exits(0);
}

/// A share that a socket does not use is the others'.
#[test]
fn t38_sockets_that_say_little_take_no_share() {
    let lab = Lab::alone();
    let (blast, stream, words) = (lab.probe("blast.py"), lab.gauge(5201), lab.gauge(5202));
    let [(_, boxed), _] = lab.shapes();
    let mut inside = Inside::start(boxed.flags(&format!("--rate 20mbit {ALLOW}")));
    let (little, much) = undisturbed("one that sends beside twenty that say little", || {
        [&stream, &words].into_iter().for_each(Gauge::reset);
        let chat = inside.begin(&format!("{blast} {OK6} 5202 4 chat 20"));
        until(SOON, "all of them speak", || words.total() > 20 * 100 * 5);
        inside.ask(&format!("{blast} {OK} 5201 {STEADY_SECONDS} tcp 1")).exits(0);
        inside.answer(chat).exits(0);
        // A word of 100 bytes behind 72 of headers.
        (words.rate(SETTLED) * 172.0 / 100.0, on_the_wire(OK, "tcp", stream.rate(SETTLED)))
    });
    assert!(little > MBIT / 2.0, "they go on: {little} bit/s");
    held("one that sends beside twenty that say little", (little + much) / (20.0 * MBIT));
    inside.end().exits(0);
}

#[test]
fn t38_both_directions_at_once() {
    let lab = Lab::alone();
    lab.source(5203);
    let (blast, gauge) = (lab.probe("blast.py"), lab.gauge(5201));
    let policy = lab.file("both.toml", "[bandwidth]\negress = \"20mbit\"\ningress = \"40mbit\"");
    let [_, (_, owned)] = lab.shapes();
    let mut inside = Inside::start(owned.flags(&format!("--policy {} {ALLOW}", policy.display())));
    // The answers to the upload wait in the download's queue. BBR takes the shortest round trip for the path's and sends too little then.
    controlled_by(&lab, OK6, "cubic");
    // Answers to what comes down are paid for as well: a fortieth of it.
    holds("both directions", 1.0, || {
        gauge.reset();
        let down = inside.begin(&format!("{blast} {OK} 5203 {STEADY_SECONDS} take 1"));
        let up = inside.begin(&format!("{blast} {OK6} 5201 {STEADY_SECONDS} tcp 1"));
        let said = inside.answer(down);
        inside.answer(up).exits(0);
        let down = on_the_wire(OK, "tcp", taken(&said)) / (40.0 * MBIT);
        let up = on_the_wire(OK6, "tcp", gauge.rate(SETTLED)) / (20.0 * MBIT);
        println!("down {down:.3}, up {up:.3}");
        // What a reader left waiting, he gets at once.
        if up > 1.05 || down > 1.2 { up.max(down) } else { up.min(down) }
    });
    inside.end().exits(0);
}

/// A socket without a limit calls nobody for its answers. The bucket holds it when a limit comes, and what it sends again after a
/// loss on its way gives it its pace.
#[test]
fn a_limit_that_comes_later_holds_the_flow_that_is_there() {
    let lab = Lab::alone();
    let (job, blast, gauge) = (Job::new(&lab, "job"), lab.probe("blast.py"), lab.gauge(5201));
    assert!(controlled_by(&lab, OK, "cubic"), "every kernel has cubic");
    let mut sandbox = attach_in_the_box(&lab, &job, open(""));
    let flow = job.spawn(&format!("{blast} {OK} 5201 60 tcp 1"));
    until(SOON, "the flow is fast", || lately(&gauge) > 100.0);
    lab.box_ns().enter(|| sandbox.update(open("egress = \"20mbit\"")).unwrap());
    // The most that the socket may send, as the kernel tells it: pacing_rate NOW/MOST.
    let pace = || lab.box_ns().sh(&format!("ss -tinH dst {OK}:5201")).stdout;
    let is_paced = || pace().split_whitespace().skip_while(|word| *word != "pacing_rate").nth(1).unwrap().contains('/');
    assert!(!is_paced(), "{}", pace());
    gauge.reset();
    // So many that a bucket's worth, which a flow that waited has in advance, is less than a twentieth.
    until(SOON, "six seconds of it", || gauge.slices(Duration::from_secs(1)).len() > 6);
    let ratio = on_the_wire(OK, "tcp", gauge.rate(SETTLED)) / (20.0 * MBIT);
    println!("held by drops alone: {ratio:.3} of the rate");
    assert!((0.6..=1.05).contains(&ratio), "held by drops alone: {ratio:.3} of the rate");

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

//! What stands behind a device with a network stack of its own is held there alone, in both directions: none of the host's sockets
//! paces itself for it, so what comes too fast is dropped, or waits in the queue that the device has for what goes to it.

use super::{
    OK, OK6, POLICED_SECONDS, RATE, SETTLED, STEADY_SECONDS, controlled_by, download_holds, holds,
    limits_beside_devices, on_the_wire, policed,
};
use lab::{Lab, undisturbed};

const GUEST: &str = "198.51.100.30";
const GUEST6: &str = "2001:db8::30";

/// The namespace of the box is the guest: no egressd knows it, nor a process in it.
#[test]
fn a_guest_keeps_to_its_rates_in_both_directions() {
    let lab = Lab::alone();
    lab.source(5203);
    let blast = lab.probe("blast.py");
    let (up, down) = (lab.gauge(5201), lab.gauge_in(lab.box_ns(), 5202));
    let policy = format!(
        "[allow]\naddresses = [\"{OK}\", \"{OK6}\"]\ninbound = [\"198.51.100.0/24\", \"2001:db8::/64\"]\n\
         [bandwidth]\negress = \"20mbit\"\ningress = \"20mbit\""
    );
    let policy = lab.file("guest.toml", &policy);
    let egressd = |verb: &str, flags: &str| {
        lab.egressd(verb).inside(lab.outer_ns()).flags(&format!("--device box0 {flags}")).output().exits(0);
    };
    // With the queue that egressd gives the device, and with one of somebody else's, where the bucket alone is left.
    for (queue, how, host, guest, control) in
        [("true", "shaped", OK, GUEST, "cubic"), ("tc qdisc add dev box0 root pfifo", "policed", OK6, GUEST6, "bbr")]
    {
        lab.outer_ns().sh(queue).exits(0);
        egressd("attach", &format!("--self {GUEST} --self {GUEST6} --policy {} --pin", policy.display()));
        // Twice the rate, of two flows.
        holds(&format!("udp to {host}"), RATE, || {
            up.reset();
            lab.unconfined(&format!("{blast} {host} 5201 {STEADY_SECONDS} udp 2 40")).exits(0);
            on_the_wire(host, "udp", up.rate(SETTLED))
        });
        holds(&format!("udp to {guest}, {how}"), RATE, || {
            down.reset();
            lab.sink_ns().sh(&format!("{blast} {guest} 5202 {STEADY_SECONDS} udp 2 40")).exits(0);
            on_the_wire(guest, "udp", down.rate(SETTLED))
        });
        if controlled_by(&lab, host, control) {
            let what = format!("tcp to {host}, {control}");
            let ratio = undisturbed(&what, || {
                up.reset();
                lab.unconfined(&format!("{blast} {host} 5201 {POLICED_SECONDS} tcp 1")).exits(0);
                on_the_wire(host, "tcp", up.rate(SETTLED)) / RATE
            });
            policed(&what, ratio);
        }
        let what = format!("tcp to {guest}, {how}");
        download_holds(&what, how, host, 1, |args| lab.unconfined(&format!("{blast} {args}")));
        let bandwidth = limits_beside_devices(&lab);
        assert_eq!((&bandwidth["egress"]["how"], &bandwidth["ingress"]["how"]), (&"policed".into(), &how.into()));
        assert!(bandwidth["egress"]["dropped_packets"].as_u64().unwrap() > 500, "{bandwidth}");
        egressd("detach", "");
    }
}

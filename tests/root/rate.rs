//! Limits hold at the sink, for whatever sends, and for nobody else.

use lab::{Inside, Lab};
use std::time::Duration;

const OK6: &str = "2001:db8::10";
/// Behind the burst.
const SETTLED: Duration = Duration::from_millis(700);
const MBIT: f64 = 1e6;

/// What the network carries for the payload: IP and TCP with timestamps, or UDP, around each packet.
fn on_the_wire(host: &str, kind: &str, bits: f64) -> f64 {
    let network = if host.contains(':') { 40.0 } else { 20.0 };
    if kind == "udp" { bits * (1400.0 + network + 8.0) / 1400.0 } else { bits * 1500.0 / (1500.0 - network - 32.0) }
}

#[test]
fn t38_uploads_of_every_kind_keep_to_the_rate() {
    let lab = Lab::without_capture();
    let blast = lab.probe("blast.py");
    let gauge = lab.gauge(5201);
    for (shape, launch) in lab.shapes() {
        let allow = format!("--rate 20mbit --allow 198.51.100.10:5201 --allow [{OK6}]:5201");
        let mut inside = Inside::start(launch.flags(&allow));
        for (host, kind, flows) in [
            ("198.51.100.10", "cubic", 1),
            ("198.51.100.10", "cubic", 8),
            (OK6, "bbr", 1),
            ("198.51.100.10", "udp", 1),
            (OK6, "udp", 2),
        ] {
            gauge.reset();
            if kind != "udp" {
                // As a route's: other namespaces than the first may not choose every one as their default.
                lab.box_ns().ip(&format!("route replace {host} dev eth0 congctl {kind}"));
            }
            let kind = if kind == "udp" { "udp" } else { "tcp" };
            let said = inside.ask(&format!("{blast} {host} 5201 2.2 {kind} {flows}"));
            said.exits(0);
            let ratio = on_the_wire(host, kind, gauge.rate(SETTLED)) / (20.0 * MBIT);
            println!("{shape} {host} {kind} x{flows}: {ratio:.3} {said}");
        }
        println!("{}", lab.egressd("status").flags("--json").output());
        inside.end().exits(0);
    }
}

//! Packets that go elsewhere than their socket says, or look like something else: the packet is the truth.

use std::net::IpAddr;

use lab::{EVIL, EVIL6, Frame, Lab, OK, OK6};

/// The ways of `options.py` that must not show, and whether they do show on this kernel without egressd. Those that do
/// not are refused by the kernel itself or carry nothing to be recognised by.
const CLOSED: [(&str, bool); 15] = [
    ("source_route", true),
    ("strict_route", true),
    ("route_in_control", true),
    ("route_after_connect", true),
    ("tcp_route", false),
    ("crafted_route", true),
    ("segments", true),
    ("destination_options", true),
    ("fragments", true),
    ("segmented", true),
    ("broadcast", true),
    ("multicast", true),
    ("multicast6", true),
    ("reconnected", true),
    ("fast_open", false),
];

fn shows(frames: &[Frame], token: &str, way: &str) -> bool {
    frames.iter().any(|frame| frame.carries(&format!("{token}-{way};")))
}

#[test]
fn options_headers_and_disguises() {
    let lab = Lab::new();
    let probe = lab.probe("options.py");
    let command = |token: &str| format!("{probe} {token} {OK} {EVIL} {OK6} {EVIL6}");
    // The kernel refuses source routes and destination options to those without net_raw: one shape has it.
    let [(first, plain), (second, raw)] = lab.shapes();
    for (shape, run) in [(first, plain), (second, raw.flags("--keep-cap net_raw"))] {
        let token = lab.token(shape);
        let output = run
            .flags("--allow both.test --allow both.test:1222/udp")
            .sh(&format!("getent ahosts both.test; {}", command(&token)))
            .output();
        let frames = lab.frames();
        for (way, _) in CLOSED {
            assert!(!shows(&frames, &token, way), "{shape}: {way} leaked: {output}");
        }
        assert!(shows(&frames, &token, "plain") && shows(&frames, &token, "plain6"), "{shape}: {output}");
    }
    lab.expect_silence(EVIL);
    lab.expect_silence(EVIL6.parse::<IpAddr>().unwrap());
    for group in ["198.51.100.255", "255.255.255.255", "224.0.0.251", "ff02::fb"] {
        lab.expect_silence(group.parse::<IpAddr>().unwrap());
    }
    let token = lab.token("control");
    let output = lab.box_ns().sh(&command(&token));
    let frames = lab.frames();
    for (way, arrives) in CLOSED {
        assert!(!arrives || shows(&frames, &token, way), "{way} is no test here: {output}\n{frames:#?}");
    }
    assert!(frames.iter().any(|frame| frame.dst == EVIL && frame.is_tcp(443)), "fast_open's SYN: {output}");
}

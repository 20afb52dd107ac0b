//! Frames made by hand: nothing in the sandbox's namespace judges them, so the host's end of the device must.

use super::{allowed, arrived, enforce, set};
use crate::job::Job;
use lab::Lab;
use std::collections::BTreeSet;

/// How frames get to the device: by packet sockets of every kind, by one on a device of root's own above it, and by AF_XDP.
const WAYS: [&str; 5] = ["eth0", "eth0+bypass", "eth0+cooked", "mv0+bypass", "xdp"];

fn script(lab: &Lab, way: &str, token: &str) -> String {
    let frames = format!("{} {token} {}", lab.probe("frames.py"), lab.sink_mac());
    match way {
        "xdp" => format!("{frames} print | {} eth0", lab.compiled("xdp")),
        way => format!("{frames} {way}"),
    }
}

/// Names of the frames that could be sent.
fn sent(said: &str) -> BTreeSet<String> {
    said.lines().filter_map(|line| line.strip_suffix("=ok")).map(str::to_owned).collect()
}

fn frames_stop(ways: &[&str]) {
    let lab = Lab::new();
    let job = Job::new(&lab, "job");
    lab.box_ns().ip("link add mv0 link eth0 type macvlan mode bridge\nlink set mv0 up");
    enforce(&job, true, &allowed());
    for way in ways {
        let token = lab.token(&format!("closed-{way}"));
        let output = job.as_root(&script(&lab, way, &token));
        assert!(sent(&output.exits(0).stdout).contains("evil4"), "{way}: {output}");
        assert_eq!(arrived(&lab, &token), set(&["plain4", "plain6"]), "{way}: {output}");
    }
    job.detach().exits(0);
    for way in ways {
        let token = lab.token(&format!("control-{way}"));
        let output = job.as_root(&script(&lab, way, &token));
        let sent = sent(&output.exits(0).stdout);
        assert!(sent.len() > 60, "{way}: {output}");
        assert_eq!(arrived(&lab, &token), sent, "{way}: what nobody judges arrives: {output}");
    }
}

#[test]
fn packet_sockets() {
    frames_stop(&WAYS[..3]);
}

#[test]
fn packet_sockets_on_a_device_above_the_device() {
    frames_stop(&WAYS[3..4]);
}

#[test]
fn xdp_sockets() {
    frames_stop(&WAYS[4..]);
}

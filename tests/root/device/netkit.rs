//! netkit instead of veth: what has Ethernet frames is judged as a veth is, what has none is refused by name.

use super::{Hand, allowing, attach};
use crate::job::Job;
use lab::{BOX, EVIL, Lab, OK, PYTHON, absent};

/// A pair in place of the box's veth, its other end a port of the bridge where it has a link layer. False: no netkit here.
fn plug(lab: &Lab, mode: &str) -> bool {
    let (probe, path) = (lab.probe("netkit.py"), lab.box_ns().path());
    assert!(probe.starts_with(PYTHON));
    let made = lab.outer_ns().sh(&format!("{probe} kit0 kit1 {} {mode}", path.display()));
    if made.code == Some(1) {
        return false;
    }
    made.exits(0);
    lab.outer_ns().ip("link set kit0 up");
    lab.box_ns().ip(&format!("link set kit1 up\naddr add {BOX}/24 dev kit1"));
    true
}

#[test]
fn with_ethernet_it_is_judged_and_without_it_is_refused() {
    let lab = Lab::new();
    let job = Job::new(&lab, "job");
    lab.outer_ns().ip("link del box0");
    if !plug(&lab, "l2") {
        return absent("netkit");
    }
    lab.outer_ns().ip("link set kit0 master br0");
    let (hand, before) = (Hand::new(&lab), lab.snapshot());
    hand.is_open(lab.box_ns(), "kit1", "control");
    let sandbox = attach(&lab, allowing(&lab, &job, OK)).unwrap();
    assert_eq!(sandbox.level().text, "L2");
    hand.is_judged(lab.box_ns(), "kit1", "judged");
    assert_eq!(job.curl(&OK.to_string(), &lab.token("ok")), Some(0));
    assert_eq!(job.curl(&EVIL.to_string(), &lab.token("evil")), Some(7));
    lab.expect_hits(&lab.token("ok"), 1);
    assert!(lab.hits(&lab.token("evil")).is_empty());
    sandbox.detach().unwrap();
    hand.is_open(lab.box_ns(), "kit1", "open");
    assert_eq!(before.diff(&lab.snapshot()), Vec::<String>::new());

    // Without a link layer there is no frame that a verdict could be about.
    lab.outer_ns().ip("link del kit0");
    assert!(plug(&lab, "l3"));
    let refused = attach(&lab, allowing(&lab, &job, OK)).unwrap_err();
    assert!(refused.to_string().contains("kit0"), "{refused}");
}

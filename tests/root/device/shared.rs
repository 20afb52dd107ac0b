//! Sandboxes that share a device.

use super::{ELSEWHERE, Hand, Way, allowing, attach, builder};
use crate::job::Job;
use egress_agent::sandbox::{self, Error, Level};
use lab::{BOX, EVIL, Lab, OK};
use std::net::IpAddr;

/// A frame says nothing of who sent it, so a device passes what any of its sandboxes may reach, and their sockets no more than
/// before.
#[test]
fn a_shared_device_passes_what_any_of_its_sandboxes_allows() {
    let lab = Lab::new();
    let hand = Hand::new(&lab);
    let jobs = [10_u8, 11, 12].map(|host| (Job::new(&lab, &format!("job{host}")), host));
    let [first, second, third] = [0, 1, 2].map(|at| &jobs[at].0);
    let address = |host: u8| IpAddr::from([198, 51, 100, host]);
    let start = |at: usize| attach(&lab, allowing(&lab, &jobs[at].0, address(jobs[at].1))).unwrap();
    let mut round = 0;
    let mut passes = || {
        round += 1;
        let word = |host: u8| format!("round{round}-{host}x");
        hand.send(lab.box_ns(), "eth0", ELSEWHERE, OK, &word(99));
        let mut passed = vec![10, 11, 12, 20, 99];
        for host in [10, 11, 12, 20] {
            hand.send(lab.box_ns(), "eth0", &BOX.to_string(), address(host), &word(host));
        }
        passed.retain(|host| hand.arrived(&word(*host)) == 1);
        passed
    };
    let level = |job: &Job<'_>| job.status().1["level"]["text"].as_str().unwrap().to_owned();

    assert_eq!(passes(), [10, 11, 12, 20, 99], "without egressd");
    let one = start(0);
    assert_eq!((passes(), level(first)), (vec![10], "L2".into()));
    let two = start(1);
    assert_eq!((passes(), level(first), level(second)), (vec![10, 11], "L1".into(), "L1".into()));
    assert_eq!((one.level().text, two.level().text), ("L1".into(), "L1".into()));
    assert!(two.level().missing.iter().any(|line| line.contains(one.name())), "{:?}", two.level());
    let three = start(2);
    assert_eq!(passes(), [10, 11, 12]);
    assert_eq!(first.status().0, Some(0));
    for (job, host) in &jobs {
        for other in [10, 11, 12] {
            let code = job.curl(&address(other).to_string(), &lab.token("socket"));
            assert_eq!(code, Some(if other == *host { 0 } else { 7 }), "{host} to {other}");
        }
    }
    lab.expect_hits(&lab.token("socket"), 3);

    // Whichever goes, the others are judged as before, and nothing else passes.
    two.detach().unwrap();
    assert_eq!(passes(), [10, 12]);
    one.detach().unwrap();
    assert_eq!((passes(), level(third)), (vec![12], "L2".into()));
    let mut one = start(0);
    one.pin("ci").unwrap();
    drop(one);
    assert_eq!(passes(), [10, 12]);
    three.detach().unwrap();
    assert_eq!(passes(), [10]);
    first.detach().exits(0);
    assert_eq!(passes(), [10, 11, 12, 20, 99]);
}

/// What needs a device of its own has it to itself, and filters cannot be shared.
#[test]
fn a_device_that_cannot_be_shared_is_refused() {
    let lab = Lab::new();
    let (first, second) = (Job::new(&lab, "first"), Job::new(&lab, "second"));
    let ways: [(Way, Way, &str); 4] = [
        (|one| one.require(Level::L2), |other| other, "L2"),
        (|one| one.raw_sockets(true), |other| other, "L2"),
        (sandbox::Builder::without_tcx, |other| other, "tcx"),
        (|one| one, sandbox::Builder::without_tcx, "tcx"),
    ];
    for (one, other, why) in ways {
        let sandbox = attach(&lab, one(builder(&lab, &first))).unwrap();
        let before = lab.snapshot();
        let refused = attach(&lab, other(builder(&lab, &second))).unwrap_err();
        assert!(matches!(&refused, Error::DeviceTaken { device, .. } if device == "box0"), "{refused}");
        let text = refused.to_string();
        assert!(text.contains(why) && text.contains(&format!("egressd detach --cgroup {}", first.path())), "{text}");
        assert_eq!(before.diff(&lab.snapshot()), Vec::<String>::new());
        assert_eq!(first.curl(&OK.to_string(), &lab.token("ok")), Some(0));
        assert_eq!(first.curl(&EVIL.to_string(), &lab.token("evil")), Some(7));
        sandbox.detach().unwrap();
        attach(&lab, other(builder(&lab, &second))).unwrap().detach().unwrap();
    }
    lab.expect_silence(EVIL);

    // Nor does one join another who requires more than is left.
    let sandbox = attach(&lab, builder(&lab, &first)).unwrap();
    let refused = attach(&lab, builder(&lab, &second).require(Level::L2)).unwrap_err();
    assert!(matches!(refused, Error::Require { .. }), "{refused}");
    assert_eq!(sandbox.level().text, "L2");
}

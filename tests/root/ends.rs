//! How a run ends: nothing left, signals forwarded once, exit codes as if egressd were not there.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use lab::{EVIL, Inside, Lab, OK, PYTHON, Running, need, until};
use nix::sys::signal::Signal;

#[test]
fn t22_clean_exit() {
    let lab = Lab::new();
    let arrives = |token: &str| {
        lab.unconfined(&format!("curl -fsS -m3 http://{EVIL}/{token}")).exits(0);
        lab.expect_hits(token, 1);
    };
    arrives(&lab.token("before"));
    let before = lab.snapshot();
    for (shape, run) in lab.shapes() {
        let token = lab.token(shape);
        let mut inside = Inside::start(run.flags("--allow ok.test"));
        inside.ask(&format!("curl -fsS -m5 http://ok.test/{token}")).exits(0);
        let during = before.diff(&lab.snapshot());
        assert!(during.iter().any(|line| line.contains("program ")), "the snapshot sees a live sandbox: {during:#?}");
        inside.end().exits(0);
        lab.expect_hits(&token, 1);
        assert_eq!(before.diff(&lab.snapshot()), Vec::<String>::new(), "{shape} left something");
    }
    arrives(&lab.token("after"));
}

/// A program that tells ok.test:9 of every signal that it gets, and the token that it tells with.
fn signalled(lab: &Lab, name: &str, lives: u8, flags: &str) -> (Running, String) {
    let token = lab.token(name);
    let mut running = teller(lab, &token, lives, flags).spawn();
    running.says("ready", Duration::from_secs(20));
    (running, token)
}

fn teller<'l>(lab: &'l Lab, token: &str, lives: u8, flags: &str) -> lab::Launch<'l> {
    let words = format!("{} ok.test {token} {lives}", lab.probe("sig.py"));
    let words: Vec<_> = words.split(' ').map(str::to_owned).collect();
    lab.egressd("run").flags("--allow ok.test:80,443/tcp --allow ok.test:9/udp").flags(flags).program(&words)
}

/// The datagrams with `token` that arrived, by what they say.
fn told(lab: &Lab, token: &str) -> Vec<String> {
    let frames = lab.frames_to(OK).into_iter().filter(|frame| frame.is_udp(9) && frame.carries(token));
    frames.map(|frame| String::from_utf8(frame.payload).unwrap().replace(&format!("{token}-"), "")).collect()
}

#[test]
fn t24_signals() {
    let lab = Lab::new();
    let before = lab.snapshot();
    for (name, signal, code) in [("int", Signal::SIGINT, 130), ("term", Signal::SIGTERM, 143)] {
        let (running, token) = signalled(&lab, name, 1, "");
        running.signal(signal);
        running.finish(Duration::from_secs(20)).exits(code);
        assert_eq!(told(&lab, &token), [format!("{signal};")]);
    }
    let (mut running, token) = signalled(&lab, "twice", 2, "");
    running.signal(Signal::SIGINT);
    running.says("got SIGINT", Duration::from_secs(5));
    running.signal(Signal::SIGINT);
    running.finish(Duration::from_secs(20)).exits(130);
    assert_eq!(told(&lab, &token), ["SIGINT;", "SIGINT;"]);

    let (running, token) = signalled(&lab, "deaf", 0, "--kill-after 1s");
    running.signal(Signal::SIGTERM);
    let output = running.finish(Duration::from_secs(20));
    assert_eq!(output.exits(137).stderr.matches("panicked").count(), 0);
    assert_eq!(told(&lab, &token), ["SIGTERM;"]);
    assert_eq!(before.diff(&lab.snapshot()), Vec::<String>::new());
}

#[test]
fn t24_ctrl_c_on_a_terminal() {
    let lab = Lab::new();
    let before = lab.snapshot();
    let token = lab.token("tty");
    let probe = lab.probe("ctrl_c.py");
    let prefix: Vec<_> = probe.split(' ').collect();
    // It lingers before it dies of the signal, so a doubled one would be told twice.
    let output = teller(&lab, &token, 1, "").through(&prefix).output();
    output.exits(130);
    assert_eq!(told(&lab, &token), ["SIGINT;"], "{output}");
    assert_eq!(before.diff(&lab.snapshot()), Vec::<String>::new());
}

#[test]
fn t25_exit_codes() {
    need("bash");
    let lab = Lab::new();
    lab.zone().put("hole.test", lab::Entry::at(&["203.0.113.99"]));
    let bodies = [
        ("zero", "exit 0", 0),
        ("one", "exit 1", 1),
        ("two", "exit 2", 2),
        ("many", "exit 42", 42),
        ("e126", "exit 126", 126),
        ("e127", "exit 127", 127),
        ("e255", "exit 255", 255),
        ("e256", "exit 256", 0),
        ("e257", "exit 257", 1),
        ("term", "kill -TERM $$", 143),
        ("kill", "kill -9 $$", 137),
        ("segv", "kill -SEGV $$", 139),
        ("exec", "exec sh -c 'exit 5'", 5),
        ("pipe", "true | false", 1),
        ("pipefail", "set -o pipefail; false | true", 1),
        ("missing", "nonexistent_cmd", 127),
    ];
    for (name, body, code) in bodies {
        let token = lab.token(&format!("body-{name}-"));
        let script = |host: &str| format!("curl -fsS -m5 http://{host}/{token} >/dev/null || exit 99; {body}");
        let outside = lab.unconfined(&format!("exec bash -c '{}'", script(&OK.to_string()).replace('\'', "'\\''")));
        let shell = outside.code.or(outside.signal.map(|signal| 128 + signal));
        assert_eq!(shell, Some(code), "{body} without egressd");
        lab.run("--allow ok.test", &["bash", "-c", &script("ok.test")]).exits(code);
        lab.expect_hits(&token, 2);
    }
    lab.run("--allow ok.test", &["nonexistent_cmd"]).exits(127);
    let plain = lab.file("plain", "not executable");
    lab.run("--allow ok.test", &[plain.to_str().unwrap()]).exits(126);
    // Who may not search a directory of PATH has not found anything there; a file that may not be executed was found.
    let hidden = lab.work_dir().join("hidden");
    fs::create_dir(&hidden).unwrap();
    fs::set_permissions(&hidden, fs::Permissions::from_mode(0o700)).unwrap();
    let path = |first: &Path| format!("{}:{}", first.display(), lab::PATH);
    let with = |first, name: &str| {
        lab.egressd("run").flags("--allow ok.test").env("PATH", path(first)).program(&[name]).output()
    };
    with(&hidden, "nonexistent_cmd").exits(127);
    with(&hidden, "true").exits(0);
    with(plain.parent().unwrap(), "plain").exits(126);
    lab.run("--allow ok.test", &[hidden.join("any").to_str().unwrap()]).exits(126);
    let token = lab.token("timeout");
    let slept = lab.sh("--timeout 1s --allow ok.test", &format!("curl -fsS http://ok.test/{token}; sleep 9"));
    assert!(slept.exits(124).took < Duration::from_secs(8), "{slept}");
    lab.expect_hits(&token, 1);
    lab.run("--allow hole.test", &["curl", "-sS", "-m1", "http://hole.test/"]).exits(28);
    assert!(
        !lab.frames_to("203.0.113.99".parse::<std::net::IpAddr>().unwrap()).is_empty(),
        "it is allowed, and silent"
    );
}

/// A memory cgroup of 32 MiB for processes that are moved there; removed at the end.
struct Limit(PathBuf);

impl Limit {
    /// In the v1 hierarchy where the memory controller lives there, else in the sandbox's own cgroup.
    fn around(lab: &Lab, pid: u32) -> Option<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let v1 = mounts.lines().filter(|line| line.contains(" - cgroup ")).find(|line| line.ends_with(",memory"));
        if let Some(line) = v1 {
            let path = Path::new(line.split(' ').nth(4).unwrap()).join(lab.token("memory"));
            fs::create_dir(&path).unwrap();
            fs::write(path.join("memory.limit_in_bytes"), "32M").unwrap();
            fs::write(path.join("cgroup.procs"), pid.to_string()).unwrap();
            return Some(Self(path));
        }
        let own = lab.cgroup().below().into_iter().find(|path| pids(path).contains(&pid))?;
        fs::write(own.join("memory.max"), "32M").ok()?;
        Some(Self(own))
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        if self.0.join("memory.limit_in_bytes").exists() {
            fs::remove_dir(&self.0).unwrap();
        }
    }
}

fn pids(cgroup: &Path) -> Vec<u32> {
    let text = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|pid| pid.parse().ok()).collect()
}

#[test]
fn t25_out_of_memory() {
    let lab = Lab::new();
    let token = lab.token("hog");
    let script = format!("curl -fsS http://ok.test/{token} >/dev/null || exit 99; exec {}", lab.probe("hog.py"));
    let mut running = lab.egressd("run").flags("--allow ok.test").sh(&script).spawn();
    running.says("ready", Duration::from_secs(20));
    let is_hog = |pid: &u32| {
        fs::read_to_string(format!("/proc/{pid}/cmdline"))
            .is_ok_and(|line| line.starts_with(PYTHON) && line.contains("hog.py"))
    };
    let pid =
        lab.cgroup().below().iter().flat_map(|path| pids(path)).find(is_hog).expect("the hog in the lab's cgroup");
    let Some(_limit) = Limit::around(&lab, pid) else {
        return lab::skip("no memory controller for the sandbox's cgroup");
    };
    running.feed(b"\n");
    running.finish(Duration::from_secs(20)).exits(137);
    lab.expect_hits(&token, 1);
    until(Duration::from_secs(5), "the hog is gone", || !Path::new(&format!("/proc/{pid}")).exists());
}

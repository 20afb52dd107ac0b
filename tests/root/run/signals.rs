//! Signals and the terminal. Each test runs this binary again as the process that follows CMD, because signals concern a
//! whole process, and the test harness has threads that would take them.

use super::*;
use nix::{
    pty::openpty,
    sys::signal::{SigSet, Signal, kill},
    sys::signalfd::SignalFd,
    sys::termios::{LocalFlags, SetArg, tcgetattr, tcsetattr},
    unistd::{Pid, tcgetpgrp},
};
use std::{
    fs::File,
    io::{BufRead, BufReader, Write},
    os::unix::process::{CommandExt, ExitStatusExt},
    process,
    sync::mpsc::{Receiver, channel},
};

/// CMD that reports each signal as it comes, with where it is from: not a test, but the innermost part of those below.
#[test]
fn reporter() {
    if std::env::var_os("EGT_REPORT").is_none() {
        return;
    }
    let mut all = SigSet::all();
    all.remove(Signal::SIGCHLD);
    let signals = SignalFd::new(&all).unwrap();
    println!("\nready");
    loop {
        let arrival = signals.read_signal().unwrap().unwrap();
        let signal = Signal::try_from(arrival.ssi_signo.cast_signed()).unwrap();
        let origin = if arrival.ssi_code == libc::SI_KERNEL { "terminal" } else { "process" };
        println!("{signal} of a {origin}");
        if signal == Signal::SIGUSR2 {
            process::exit(42);
        }
    }
}

/// Script that becomes the reporter.
fn reporter_script() -> String {
    format!("EGT_REPORT= exec {}", inner_argv("run::signals::reporter").join(" "))
}

/// The process that follows CMD: not a test, but the inner half of those below.
#[test]
fn follower() {
    let Some(cgroup) = std::env::var_os("EGT_CGROUP") else { return };
    let signals = Signals::take().unwrap();
    let cgroup = Cgroup::open(&mount(), Path::new(&cgroup)).unwrap();
    let milliseconds = |name| Some(Duration::from_millis(std::env::var(name).ok()?.parse().unwrap()));
    let limits = Limits { timeout: None, kill_after: milliseconds("EGT_KILL_AFTER") };
    let script = std::env::var("EGT_SCRIPT").unwrap();
    // Ends the line that the test harness began.
    println!();
    let mut command = command(0, &["bash", "-c", &script]);
    command.shares.pids = std::env::var_os("EGT_SHARE_PIDS").is_some();
    let mut child = spawn(&command, &cgroup).unwrap();
    let exit = child.wait(&signals, limits).unwrap();
    child.end().unwrap();
    process::exit(exit.code().into());
}

/// How one of the inner parts is started. All signals are blocked from its first instruction on: the harness starts threads
/// before the test can do it. What a shell made its background jobs ignore, CMD would ignore too.
fn inner_argv(test: &str) -> [String; 8] {
    let this = std::env::current_exe().unwrap();
    [
        "env",
        "--default-signal=INT,QUIT",
        "--block-signal",
        this.to_str().unwrap(),
        "--exact",
        "--nocapture",
        "--test-threads=1",
        test,
    ]
    .map(str::to_owned)
}

fn follower_argv() -> [String; 8] {
    inner_argv("run::signals::follower")
}

struct Follower {
    cgroup: Fresh,
    process: process::Child,
    lines: Receiver<String>,
}

impl Follower {
    fn start(script: &str, set_up: impl FnOnce(&mut process::Command)) -> Self {
        let cgroup = Fresh::new();
        let [program, arguments @ ..] = follower_argv();
        let mut command = process::Command::new(program);
        command
            .args(arguments)
            .env("EGT_CGROUP", cgroup.path())
            .env("EGT_SCRIPT", script)
            .stdout(process::Stdio::piped());
        // A process group of its own, so that `kill 0` of the script stays there.
        command.process_group(0);
        set_up(&mut command);
        let mut process = command.spawn().unwrap();
        let lines = lines_of(process.stdout.take().unwrap());
        Self { cgroup, process, lines }
    }

    fn send(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.process.id()).unwrap()), signal).unwrap();
    }

    fn expect(&self, wanted: &str) {
        assert_eq!(next_line(&self.lines), wanted);
    }

    fn wait(mut self) -> i32 {
        let status = self.process.wait().unwrap();
        status.code().unwrap_or_else(|| panic!("the follower died of signal {:?}", status.signal()))
    }
}

/// Lines as they come. Those of the test harness are left out.
fn lines_of(source: impl std::io::Read + Send + 'static) -> Receiver<String> {
    let (sender, lines) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(source).lines().map_while(Result::ok) {
            let line = line.trim_end_matches('\r').to_owned();
            let harness = line.is_empty() || line.starts_with("running ") || line.starts_with("test run::");
            if !harness && sender.send(line).is_err() {
                return;
            }
        }
    });
    lines
}

fn next_line(lines: &Receiver<String>) -> String {
    lines.recv_timeout(LIMIT).expect("a line in time")
}

#[test]
fn a_signal_that_was_sent_arrives_exactly_once() {
    let follower = Follower::start(&reporter_script(), |_| {});
    follower.expect("ready");
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGUSR1, Signal::SIGINT] {
        follower.send(signal);
        follower.expect(&format!("{signal} of a process"));
    }
    // A second copy of any would have come before this one.
    follower.send(Signal::SIGUSR2);
    follower.expect("SIGUSR2 of a process");
    assert_eq!(follower.wait(), 42);
}

#[test]
fn what_cmd_dies_of_is_told() {
    for (signal, code) in [(Signal::SIGINT, 130), (Signal::SIGTERM, 143), (Signal::SIGQUIT, 131)] {
        let follower = Follower::start("echo ready; exec sleep 1000", |_| {});
        follower.expect("ready");
        until(LIMIT, "CMD executes sleep", || {
            let pids = follower.cgroup.procs().unwrap();
            pids.iter().any(|pid| status(*pid, "Name") == "sleep")
        });
        follower.send(signal);
        assert_eq!(follower.wait(), code);
    }
}

#[test]
fn a_cmd_that_ignores_term_is_killed_after_a_while() {
    let follower = Follower::start("trap '' TERM; echo ready; while :; do sleep 1000; done", |command| {
        command.env("EGT_KILL_AFTER", "100");
    });
    follower.expect("ready");
    follower.send(Signal::SIGTERM);
    assert_eq!(follower.wait(), 137);
}

#[test]
fn a_script_that_signals_its_group_gets_its_signal_once() {
    // Often, because two copies that come close together are one to the kernel, and one trap to the shell.
    let script = "trap 'n=$((n + 1))' TERM; trap 'echo done; exit 42' USR2; echo ready
for i in $(seq 50); do kill 0; /bin/true; /bin/true; done; echo got-$n
while :; do sleep 1000 & wait $!; done";
    let follower = Follower::start(script, |_| {});
    for line in ["ready", "got-50"] {
        follower.expect(line);
    }
    follower.send(Signal::SIGUSR2);
    follower.expect("done");
    assert_eq!(follower.wait(), 42);
}

#[test]
fn a_killed_follower_takes_cmd_with_it() {
    let mut follower = Follower::start("echo ready; setsid sleep 1000 & exec sleep 1000", |_| {});
    follower.expect("ready");
    assert!(follower.cgroup.populated().unwrap());
    follower.process.kill().unwrap();
    follower.process.wait().unwrap();
    follower.cgroup.wait_unpopulated(LIMIT).unwrap();
}

#[test]
fn a_killed_follower_leaves_cmd_in_its_cgroup_where_processes_are_shared() {
    let mut follower = Follower::start("echo ready; exec sleep 1000", |command| {
        command.env("EGT_SHARE_PIDS", "");
    });
    follower.expect("ready");
    let pids = follower.cgroup.procs().unwrap();
    follower.process.kill().unwrap();
    follower.process.wait().unwrap();
    assert_eq!(follower.cgroup.procs().unwrap(), pids);
    assert!(follower.cgroup.populated().unwrap());
}

/// A session on a terminal of its own, led by a command.
struct Session {
    master: File,
    slave: File,
    process: process::Child,
    lines: Receiver<String>,
}

impl Session {
    fn start(cgroup: &Cgroup, script: &str, argv: &[String]) -> Self {
        let pty = openpty(None, None).unwrap();
        let (master, slave) = (File::from(pty.master), File::from(pty.slave));
        // An echo would stand on the lines that are compared.
        let mut settings = tcgetattr(&slave).unwrap();
        settings.local_flags.remove(LocalFlags::ECHO);
        tcsetattr(&slave, SetArg::TCSANOW, &settings).unwrap();
        let mut command = process::Command::new(&argv[0]);
        command.args(&argv[1..]).env("EGT_CGROUP", cgroup.path()).env("EGT_SCRIPT", script);
        let stdio = || process::Stdio::from(slave.try_clone().unwrap());
        command.stdin(stdio()).stdout(stdio()).stderr(stdio());
        // SAFETY: setsid and an ioctl on descriptor 0 only; neither allocates nor locks.
        unsafe {
            command.pre_exec(|| {
                nix::unistd::setsid()?;
                if libc::ioctl(0, libc::TIOCSCTTY, 0) != 0 {
                    return Err(std::io::Error::last_os_error());
                }
                Ok(())
            });
        }
        let process = command.spawn().unwrap();
        let lines = lines_of(master.try_clone().unwrap());
        Self { master, slave, process, lines }
    }

    fn type_in(&mut self, bytes: &[u8]) {
        self.master.write_all(bytes).unwrap();
    }

    /// The next line, but for a shell's report on its job.
    fn expect(&self, wanted: &str) {
        let line = std::iter::repeat_with(|| next_line(&self.lines)).find(|line| !line.starts_with("[1]"));
        assert_eq!(line.as_deref(), Some(wanted));
    }
}

#[test]
fn the_terminals_signals_arrive_exactly_once_and_it_stays_as_it_was() {
    let cgroup = Fresh::new();
    let mut session = Session::start(&cgroup, &reporter_script(), &follower_argv());
    session.expect("ready");
    let (settings, group) = (tcgetattr(&session.slave).unwrap(), tcgetpgrp(&session.master).unwrap());
    assert_eq!(group.as_raw().cast_unsigned(), session.process.id(), "nobody took the foreground");
    // Often, because two copies that come close together are one to the kernel.
    for _ in 0..50 {
        session.type_in(b"\x03");
        session.expect("SIGINT of a terminal");
    }
    kill(group, Signal::SIGUSR2).unwrap();
    session.expect("SIGUSR2 of a process");
    assert_eq!(tcgetattr(&session.slave).unwrap(), settings);
    assert_eq!(session.process.wait().unwrap().code(), Some(42));
}

#[test]
fn a_stopped_cmd_stops_the_job_and_both_go_on() {
    let cgroup = Fresh::new();
    let argv = follower_argv().map(|word| format!("'{word}'")).join(" ");
    // A shell with job control. It reports a stopped job in a line of its own.
    let shell = format!("set -m; {argv}; echo job-$?; fg >/dev/null; echo end-$?");
    let script = "echo ready; read -r line; echo read-$line; exit 42";
    let argv = ["bash", "--norc", "-c", &shell].map(str::to_owned);
    let mut session = Session::start(&cgroup, script, &argv);
    session.expect("ready");
    session.type_in(b"\x1a");
    // 128 + SIGSTOP, with which the follower stopped itself.
    session.expect("job-147");
    session.type_in(b"hello\n");
    session.expect("read-hello");
    session.expect("end-42");
    assert_eq!(session.process.wait().unwrap().code(), Some(0));
}

/// A shell with job control cannot give back the terminal to a group that has no number in its namespace.
#[test]
fn the_terminal_is_there_for_who_comes_after_an_interactive_shell() {
    let cgroup = Fresh::new();
    let argv = follower_argv().map(|word| format!("'{word}'")).join(" ");
    let shell = format!("{argv}; echo end-$?; read -r line; echo after-$line");
    let script = "exec env PS1= PS2= bash --norc --noediting -i";
    let argv = ["bash", "--norc", "-c", &shell].map(str::to_owned);
    let mut session = Session::start(&cgroup, script, &argv);
    session.type_in(b"echo inside\n");
    session.expect("inside");
    // Job control inside: a job is stopped and goes on.
    session.type_in(b"sleep 1000 & kill -STOP %1; until jobs -s | grep -q Stopped; do :; done; echo stopped\n");
    session.expect("stopped");
    session.type_in(b"kill -CONT %1; kill %1; wait %1; echo job-$?\n");
    session.expect("job-143");
    session.type_in(b"exec sh -c 'exit 42'\n");
    session.expect("end-42");
    session.type_in(b"hello\n");
    session.expect("after-hello");
    assert_eq!(session.process.wait().unwrap().code(), Some(0));
}

//! `run` as a library: cgroups, what CMD is given and what it is not, how it ends.
//!
//! Nothing is attached here; what the hooks let through is tested elsewhere. The terminal and signals have their own file.

mod cgroups;
mod confinement;
mod endings;
mod namespaces;
mod seccomp;
mod signals;

use egress_agent::{
    cgroup::{Cgroup, CgroupMount},
    run::{Child, Command, Exit, Identity, KeptCaps, KeptFds, Limits, Shares, Signals, spawn},
};
use lab::until;
use std::{
    io::Read,
    ops::Deref,
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

/// Long enough for a loaded machine; nothing waits so long when it works.
const LIMIT: Duration = Duration::from_secs(20);

const NOBODY: u32 = 65534;

/// A fresh cgroup below the root of the tree, emptied and removed at the end.
struct Fresh(Cgroup);

impl Fresh {
    fn new() -> Self {
        Self(Cgroup::create_child(&root(), "egt").unwrap())
    }
}

impl Deref for Fresh {
    type Target = Cgroup;
    fn deref(&self) -> &Cgroup {
        &self.0
    }
}

impl Drop for Fresh {
    fn drop(&mut self) {
        let ended = self.0.kill().and_then(|()| self.0.wait_unpopulated(LIMIT)).and_then(|()| self.0.remove());
        assert!(ended.is_ok() || std::thread::panicking(), "{ended:?}");
    }
}

fn mount() -> CgroupMount {
    CgroupMount::find().unwrap()
}

fn root() -> Cgroup {
    Cgroup::open(&mount(), Path::new("")).unwrap()
}

fn user(uid: u32) -> Identity {
    Identity { uid, gid: uid, groups: vec![uid], home: "/".into(), name: "test".into(), switched: false }
}

fn command(uid: u32, argv: &[&str]) -> Command {
    Command {
        argv: argv.iter().map(Into::into).collect(),
        env: vec![("PATH".into(), "/usr/sbin:/usr/bin:/sbin:/bin".into())],
        identity: user(uid),
        keep_caps: KeptCaps::NONE,
        keep_fds: KeptFds::default(),
        netns: None,
        cwd: Some("/".into()),
        shares: Shares::default(),
        hidden: vec![],
    }
}

fn shell(script: &str) -> Command {
    command(NOBODY, &["sh", "-c", script])
}

/// Runs to the end, in a cgroup of its own.
fn run(command: &Command, limits: Limits) -> Exit {
    let cgroup = Fresh::new();
    let signals = Signals::take().unwrap();
    let mut child = spawn(command, &cgroup).unwrap();
    let exit = child.wait(&signals, limits).unwrap();
    child.end().unwrap();
    assert!(!cgroup.populated().unwrap());
    exit
}

fn exit_code(command: &Command) -> u8 {
    run(command, Limits::default()).code()
}

/// What a command writes to a descriptor that it keeps. Its output would go to the test harness.
fn output_of(mut command: Command, redirect: impl FnOnce(&mut Command, i32)) -> String {
    use nix::fcntl::{FcntlArg, FdFlag, fcntl};
    use std::os::fd::AsRawFd;
    let (mut reader, writer) = std::io::pipe().unwrap();
    fcntl(&writer, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
    // Who opens it anew by its path in /proc must own it.
    std::os::unix::fs::fchown(&writer, Some(command.identity.uid), None).unwrap();
    command.keep_fds = KeptFds::check(&[writer.as_raw_fd()]).unwrap();
    redirect(&mut command, writer.as_raw_fd());
    let cgroup = Fresh::new();
    let signals = Signals::take().unwrap();
    let mut child = spawn(&command, &cgroup).unwrap();
    drop(writer);
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(child.wait(&signals, Limits::default()).unwrap(), Exit::Code(0), "{text}");
    text
}

/// Output of a shell script, with `set_up` applied to the command first.
fn script_output(uid: u32, script: &str, set_up: impl FnOnce(&mut Command)) -> String {
    output_of(command(uid, &["sh", "-c"]), |command, fd| {
        // dash takes no descriptor above 9 in a redirection.
        command.argv.push(format!("exec >/proc/self/fd/{fd}\n{script}").into());
        set_up(command);
    })
}

/// A command that stays until it is killed.
fn sleeper(cgroup: &Cgroup, set_up: impl FnOnce(&mut Command)) -> Child<'_> {
    let mut command = command(NOBODY, &["sleep", "1000"]);
    set_up(&mut command);
    spawn(&command, cgroup).unwrap()
}

/// A field of `/proc/PID/status`, without its name.
fn status(pid: u32, field: &str) -> String {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {field} in {status}")).trim().to_owned()
}

/// The same script without egressd, for comparison.
fn plain(shell: &str, script: &str) -> u8 {
    use std::os::unix::process::ExitStatusExt;
    let status = std::process::Command::new(shell).args(["-c", script]).stdin(Stdio::null()).status().unwrap();
    let code = status.code().or_else(|| Some(128 + status.signal()?)).unwrap();
    u8::try_from(code).unwrap()
}

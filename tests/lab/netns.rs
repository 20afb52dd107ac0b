//! Network namespaces without names: they live as long as a descriptor, so nothing is left behind when a test is killed.

use std::{
    ffi::OsStr,
    fs::File,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::process::CommandExt,
    },
    path::PathBuf,
    process::Command,
    sync::Arc,
    time::Duration,
};

use nix::sched::{CloneFlags, setns, unshare};

use crate::process::{Output, Running};

/// Where programs are looked up, inside and outside of sandboxes. Nothing else is inherited from the caller's
/// environment, so no proxy variable or token of the caller gets into a test.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A network namespace of this test. Dropping the last clone lets the kernel take it down.
#[derive(Clone, Debug)]
pub struct Netns {
    fd: Arc<OwnedFd>,
}

impl Netns {
    /// A new namespace with `lo` up, no duplicate address detection, no router solicitation and ping sockets for all.
    pub fn new() -> Self {
        let made = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("a new network namespace");
            // These files follow the thread's namespace. With detection on, a v6 address is unusable for a second.
            for (key, value) in [
                ("net/ipv6/conf/default/accept_dad", "0"),
                ("net/ipv6/conf/all/accept_dad", "0"),
                ("net/ipv6/conf/default/router_solicitations", "0"),
                ("net/ipv6/conf/all/disable_ipv6", "0"),
                ("net/ipv4/ping_group_range", "0 2147483647"),
            ] {
                std::fs::write(format!("/proc/sys/{key}"), value).unwrap_or_else(|error| panic!("{key}: {error}"));
            }
            File::open("/proc/thread-self/ns/net").expect("/proc/thread-self/ns/net")
        })
        .join()
        .expect("the thread that makes a network namespace");
        let netns = Self { fd: Arc::new(made.into()) };
        netns.ip("link set lo up");
        netns
    }

    /// A path that names this namespace while this process lives, for `--netns`.
    pub fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.fd.as_raw_fd()).into()
    }

    /// Runs `work` on a thread inside the namespace. Sockets that it makes stay there and may be used from any thread.
    pub fn enter<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    setns(&*self.fd, CloneFlags::CLONE_NEWNET).expect("entering a network namespace");
                    work()
                })
                .join()
                .unwrap_or_else(|cause| std::panic::resume_unwind(cause))
        })
    }

    /// A command that will run inside, with a clean environment.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command.env_clear().env("PATH", PATH).env("LANG", "C.UTF-8");
        self.place(&mut command);
        command
    }

    /// Makes `command` enter the namespace before it starts.
    pub fn place(&self, command: &mut Command) {
        let fd = Arc::clone(&self.fd);
        // SAFETY: setns is one system call on a descriptor that the closure keeps open; nothing is allocated after fork.
        unsafe {
            command.pre_exec(move || setns(&*fd, CloneFlags::CLONE_NEWNET).map_err(Into::into));
        }
    }

    /// Runs a shell script inside, as root and outside of every sandbox; returns however it ended.
    pub fn sh(&self, script: &str) -> Output {
        let mut command = self.command("sh");
        command.args(["-c", script]);
        Running::spawn(command).finish(Duration::from_secs(20))
    }

    /// Runs `ip` commands inside, one a line; a failing one is a panic.
    pub fn ip(&self, lines: &str) {
        crate::need("ip");
        let mut command = self.command("ip");
        command.args(["-batch", "-"]);
        let mut running = Running::spawn(command);
        running.feed(lines.as_bytes());
        let output = running.finish(Duration::from_secs(20));
        assert!(output.code == Some(0), "ip failed: {output}\n{lines}");
    }
}

impl Default for Netns {
    fn default() -> Self {
        Self::new()
    }
}

//! `egressd run`: its flags.

use super::policy_flags::PolicyFlags;
use clap::{Args, ValueEnum};
use egress_agent::{run::Shares, sandbox::Level};
use std::{ffi::OsString, os::fd::RawFd, path::PathBuf, time::Duration};

/// Start a command in a new sandbox and exit with its code
///
/// The command starts only when the policy is in force, without capabilities, and nothing of it outlives egressd.
/// 124 is a timeout, 125 a failure of egressd's own, 126 and 127 as in a shell.
#[derive(Args, Debug)]
#[command(
    override_usage = "egressd run [POLICY] [RUN] -- CMD [ARG]...",
    after_help = "Example: egressd run --policy ci.toml --timeout 30m -- make test"
)]
pub(super) struct Run {
    #[command(flatten)]
    pub(super) policy: PolicyFlags,
    #[command(flatten)]
    pub(super) flags: RunFlags,
    /// What to run
    #[arg(last = true, required = true, value_name = "CMD")]
    pub(super) command: Vec<OsString>,
}

/// RUN
#[derive(Args, Debug)]
#[command(next_help_heading = "Run")]
pub(super) struct RunFlags {
    /// Run as this user instead of the caller (under sudo: who called sudo), e.g. --user builder or --user 1000:1000
    #[arg(long, value_name = "USER")]
    pub(super) user: Option<String>,
    /// Make the sandbox's cgroup below this one instead of egressd's own, e.g. --cgroup /ci.slice
    #[arg(long, value_name = "PATH", env = "EGRESSD_CGROUP", hide_env_values = true)]
    pub(super) cgroup: Option<PathBuf>,
    /// Enter this network namespace, which must exist, e.g. --netns build1 or --netns /run/netns/build1
    #[arg(long, value_name = "NAME|PATH", env = "EGRESSD_NETNS", hide_env_values = true)]
    pub(super) netns: Option<PathBuf>,
    /// End the command after this time, e.g. --timeout 30m
    #[arg(long, value_name = "DUR", env = "EGRESSD_TIMEOUT", hide_env_values = true, value_parser = humantime::parse_duration)]
    pub(super) timeout: Option<Duration>,
    /// Kill it if it is still there this long after it was told to end (10s after a timeout), e.g. --kill-after 30s
    #[arg(long, value_name = "DUR", env = "EGRESSD_KILL_AFTER", hide_env_values = true, value_parser = humantime::parse_duration)]
    pub(super) kill_after: Option<Duration>,
    /// Wait this long for the policy's proxies to take connections, e.g. --wait-proxy 20s
    #[arg(long, value_name = "DUR", env = "EGRESSD_WAIT_PROXY", hide_env_values = true, value_parser = humantime::parse_duration)]
    pub(super) wait_proxy: Option<Duration>,
    /// Set a variable for the command, e.g. --env CI=true
    #[arg(long, value_name = "NAME=VALUE", env = "EGRESSD_ENV", hide_env_values = true, value_delimiter = '\n')]
    pub(super) env: Vec<OsString>,
    /// Leave the command a capability, e.g. --keep-cap net_bind_service
    #[arg(long, value_name = "CAP")]
    pub(super) keep_cap: Vec<String>,
    /// Leave the command a descriptor that is no socket, e.g. --keep-fd 3
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(RawFd).range(3..))]
    pub(super) keep_fd: Vec<RawFd>,
    /// Write what was denied, and where most was sent, as JSON, e.g. --summary denied.json
    #[arg(long, value_name = "FILE", env = "EGRESSD_SUMMARY", hide_env_values = true)]
    pub(super) summary: Option<PathBuf>,
    /// Share the host's processes (pid), or its mounts and processes (mounts), with the command: the level says what that costs
    #[arg(long, value_name = "WHAT", env = "EGRESSD_SHARE", hide_env_values = true, value_delimiter = '\n')]
    share: Vec<Share>,
    /// Refuse to start the command if less than this level can be promised, e.g. --require L1
    #[arg(long, value_name = "LEVEL", env = "EGRESSD_REQUIRE", hide_env_values = true)]
    pub(super) require: Option<Level>,
    /// Try every way out from inside the sandbox first, and refuse to start the command unless each is closed
    #[arg(long, env = "EGRESSD_VERIFY", hide_env_values = true, value_parser = clap::builder::BoolishValueParser::new())]
    pub(super) verify: bool,
}

/// `--share`
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
enum Share {
    Pid,
    Mounts,
}

impl RunFlags {
    /// What is given up.
    pub(super) fn shares(&self) -> Shares {
        Shares { pids: self.share.contains(&Share::Pid), mounts: self.share.contains(&Share::Mounts) }
    }
}

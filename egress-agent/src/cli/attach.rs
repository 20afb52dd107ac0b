//! `egressd attach`: enforcement for a cgroup that exists already.

use super::{
    control::{self, Served},
    exit::Exit,
    exit::Refused,
    policy_flags::PolicyFlags,
    term,
};
use anyhow::{Context as _, Result};
use clap::Args;
use egress_agent::{
    cgroup::{Cgroup, CgroupMount},
    policy::{Mode, Policy},
    sandbox::{Directories, Level, Released, Sandbox},
};
use nix::sys::{
    signal::{SigSet, Signal},
    signalfd::{SfdFlags, SignalFd},
};
use std::{
    fs::{File, OpenOptions},
    io::Write as _,
    net::IpAddr,
    path::PathBuf,
    time::{Duration, Instant},
};

/// How long a signal may wait for its answer while no event comes.
const PATIENCE: Duration = Duration::from_millis(200);

/// Enforce a policy on a cgroup that exists, or on a guest behind a device
///
/// Stays in the foreground and answers DNS. A signal ends it: an empty cgroup is detached, a populated one and a guest stay
/// closed until `egressd detach`.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples: egressd attach --cgroup /ci.slice/job-1 --allow github.com\n          egressd attach --device tap0 --self 192.0.2.2 --allow github.com"
)]
pub(super) struct Attach {
    #[command(flatten)]
    policy: PolicyFlags,
    #[command(flatten)]
    target: Target,
    /// Its network namespace where that is not egressd's own, e.g. --netns /proc/4121/ns/net
    #[arg(long, value_name = "NAME|PATH", env = "EGRESSD_NETNS", hide_env_values = true)]
    netns: Option<PathBuf>,
    /// Host side of the sandbox's device, to judge what passes no socket hook, or of the guest that --self is about, e.g. --device
    /// tap0
    #[arg(long, value_name = "IFNAME", env = "EGRESSD_DEVICE", hide_env_values = true)]
    device: Option<String>,
    /// Addresses of a guest behind the device, which may send from these alone, e.g. --self 192.0.2.2 --self 2001:db8::2
    #[arg(long = "self", value_name = "ADDR", num_args = 1.., requires = "device", conflicts_with_all = ["netns", "strict"])]
    own: Vec<IpAddr>,
    /// Refuse if the cgroup holds sockets that no hook can judge
    #[arg(long, env = "EGRESSD_STRICT", hide_env_values = true, value_parser = clap::builder::BoolishValueParser::new())]
    strict: bool,
    /// Refuse if less than this level can be promised, e.g. --require L2
    #[arg(long, value_name = "LEVEL", env = "EGRESSD_REQUIRE", hide_env_values = true)]
    require: Option<Level>,
    /// Return at once and leave enforcement to the kernel; for policies without names
    #[arg(long, env = "EGRESSD_PIN", hide_env_values = true, value_parser = clap::builder::BoolishValueParser::new())]
    pin: bool,
    /// Write a newline to this descriptor when the policy is in force, e.g. --ready-fd 3
    #[arg(long, value_name = "N", env = "EGRESSD_READY_FD", hide_env_values = true)]
    ready_fd: Option<i32>,
}

/// The cgroup, by its path or by a process in it.
#[derive(Args, Debug)]
#[group(multiple = false)]
struct Target {
    /// The cgroup, e.g. --cgroup /ci.slice/job-1
    #[arg(long, value_name = "PATH", env = "EGRESSD_CGROUP", hide_env_values = true)]
    cgroup: Option<PathBuf>,
    /// The cgroup of this process, e.g. --pid 4121
    #[arg(long, value_name = "PID", value_parser = clap::value_parser!(u32).range(1..))]
    pid: Option<u32>,
}

impl Target {
    fn open(&self) -> Result<Option<Cgroup>> {
        let mount = CgroupMount::find()?;
        Ok(match (&self.cgroup, self.pid) {
            (Some(path), _) => Some(Cgroup::open(&mount, path)?),
            (None, Some(pid)) => Some(Cgroup::of_process(&mount, pid)?),
            (None, None) => None,
        })
    }
}

impl Attach {
    pub(super) fn act(self, directories: &Directories) -> Result<u8> {
        let policy = self.policy.clone().load()?;
        if self.pin {
            refuse_pin(&policy)?;
        }
        let ready = self.ready_fd.map(ready_pipe).transpose()?;
        // Before the sandbox starts threads, so that they inherit the mask and the signals come here.
        let signals = if self.pin { None } else { Some(catch_signals()?) };

        let mut builder = Sandbox::builder(policy).dirs(directories.clone()).strict(self.strict).outlives(true);
        builder = match (self.target.open()?, self.device) {
            (Some(cgroup), None) if self.own.is_empty() => builder.cgroup(cgroup.path()),
            (Some(cgroup), Some(device)) if self.own.is_empty() => builder.cgroup(cgroup.path()).device(device),
            (None, Some(device)) => builder.guest(device, self.own),
            (None, None) => return Err(Refused::NoTarget.into()),
            (Some(_), _) => return Err(Refused::CgroupAndGuest.into()),
        };
        if let Some(netns) = self.netns {
            builder = builder.netns(netns);
        }
        if let Some(level) = self.require {
            builder = builder.require(level);
        }
        let mut sandbox = builder.attach()?;
        term::say(&super::status::level_line(&sandbox.level()));
        if let Some(mut ready) = ready {
            ready.write_all(b"\n").context("cannot write to --ready-fd")?;
        }
        let Some(signals) = signals else {
            let name = sandbox.name().to_owned();
            sandbox.pin(&name)?;
            return Ok(Exit::Done.into());
        };
        follow(&control::serve(sandbox, self.policy)?, &signals)
    }
}

/// Serves until a signal comes or somebody detaches.
fn follow(served: &Served, signals: &SignalFd) -> Result<u8> {
    let Some(events) = served.look(Sandbox::events) else { return Ok(Exit::Done.into()) };
    let mut looked: Option<Instant> = None;
    while signals.read_signal().context("cannot read signals")?.is_none() {
        // Not at every event: it takes a look at files, and the sandbox chooses how many events there are.
        let due = looked.is_none_or(|looked| looked.elapsed() >= PATIENCE);
        if due {
            looked = Some(Instant::now());
        }
        if due
            && served.look(Sandbox::was_detached) == Some(true)
            && let Some(sandbox) = served.take()
        {
            term::say(&format!("{} was detached by another egressd", sandbox.name()));
            // Its pins are gone: there is nothing left to leave closed.
            drop(sandbox.release());
            return Ok(Exit::Done.into());
        }
        if let Some(failure) = served.look(Sandbox::dns_failure).flatten() {
            let left = match served.take().map(Sandbox::release).transpose()? {
                Some(Released::Enforced) => "it stays closed; egressd detach opens it",
                Some(Released::Detached) | None => "detached",
            };
            term::say(&format!("{failure}: {left}"));
            return Ok(Exit::Lost.into());
        }
        if let Err(ended) = events.next_within(PATIENCE) {
            term::say(&format!("enforcement lost: {ended}"));
            return Ok(Exit::Lost.into());
        }
    }
    let Some(sandbox) = served.take() else { return Ok(Exit::Done.into()) };
    let (name, is_guest) = (sandbox.name().to_owned(), sandbox.is_guest());
    match sandbox.release()? {
        Released::Detached => {}
        Released::Enforced => {
            let whose = if is_guest { "is a guest's" } else { "has processes" };
            term::say(&format!("{name} {whose}: it stays closed and nobody answers its DNS; egressd detach opens it"));
        }
    }
    Ok(Exit::Done.into())
}

/// With `--pin` nobody stays behind to answer DNS.
fn refuse_pin(policy: &Policy) -> Result<(), Refused> {
    if !policy.allow.names.is_empty() {
        return Err(Refused::PinWithNames);
    }
    if policy.mode == Mode::Observe {
        return Err(Refused::PinWithObserve);
    }
    Ok(())
}

/// Opened anew through /proc, which works for pipes and files and needs no trust in the number.
fn ready_pipe(fd: i32) -> Result<File> {
    let path = format!("/proc/self/fd/{fd}");
    OpenOptions::new().write(true).open(path).map_err(|error| anyhow::Error::new(error).context(Refused::ReadyFd(fd)))
}

/// INT, TERM and HUP, read instead of delivered.
fn catch_signals() -> Result<SignalFd> {
    let mut set = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        set.add(signal);
    }
    set.thread_block().context("cannot block signals")?;
    SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC).context("cannot make a signalfd")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{io::Read as _, os::fd::AsRawFd as _};

    #[test]
    fn a_pin_is_for_addresses_only() {
        let policy = |text| Policy::from_toml(text).unwrap();
        refuse_pin(&policy("version = 1\n[allow]\naddresses = [\"198.51.100.7\"]")).unwrap();
        let names = refuse_pin(&policy("version = 1\n[allow]\nnames = [\"a.test.example\"]"));
        assert!(matches!(names, Err(Refused::PinWithNames)), "{names:?}");
        let observe = refuse_pin(&policy("version = 1\nmode = \"observe\""));
        assert!(matches!(observe, Err(Refused::PinWithObserve)), "{observe:?}");
    }

    #[test]
    fn readiness_is_told_through_a_pipe() {
        let (mut reader, writer) = std::io::pipe().unwrap();
        ready_pipe(writer.as_raw_fd()).unwrap().write_all(b"\n").unwrap();
        drop(writer);
        let mut told = String::new();
        reader.read_to_string(&mut told).unwrap();
        assert_eq!(told, "\n");
        let error = ready_pipe(i32::MAX).unwrap_err();
        assert!(error.to_string().contains("--ready-fd"), "{error}");
    }
}

//! `egressd run`: the order in which nothing can leave before it is judged.

use super::{
    control::{self, Served},
    exit::Refused,
    policy_flags::PolicyFlags,
    run_flags::Run,
    summary_file, term,
};
use anyhow::{Context as _, Result};
use egress_agent::{
    cgroup::{Cgroup, CgroupMount},
    observe::{Events, Summary, hosts::Hosts},
    policy::Policy,
    run::{
        Caller, Command, Exit, Footing, HostAccounts, Identity, KeptCaps, KeptFds, Limits, Shares, Signals, Variable,
        environment, identity, level, parse_variable, spawn,
    },
    sandbox::{self, Directories, Level, Reached, Released, Sandbox, Sent},
    verify,
};
use std::{
    ffi::OsString,
    fs::File,
    io::Write as _,
    path::PathBuf,
    thread::{self, JoinHandle},
    time::Duration,
};

/// Beginning of the names of the cgroups that `run` makes.
const CGROUP_PREFIX: &str = "egressd";

/// The capability to make raw sockets, as [`KeptCaps::names`] has it.
const RAW_SOCKETS: &str = "net_raw";

/// What the flags came to, before anything was made.
struct Plan {
    signals: Signals,
    policy: Policy,
    /// What the policy was read from, for a reload.
    policy_flags: PolicyFlags,
    identity: Identity,
    cap_names: Vec<String>,
    raw_sockets: bool,
    fds: KeptFds,
    env: Vec<Variable>,
    argv: Vec<OsString>,
    netns: Option<PathBuf>,
    wait_proxy: Option<Duration>,
    limits: Limits,
    shares: Shares,
    require: Option<Level>,
    verify: bool,
    report: Option<File>,
}

/// Validate, make the cgroup, attach (closed from here on, DNS answered), wait for proxies, start CMD, follow it, end what it
/// left, tell what was denied, detach.
pub(super) fn run(run: Run, directories: &Directories) -> Result<u8> {
    // Before any thread is started, and before anything is opened.
    let signals = Signals::take()?;
    let fds = KeptFds::check(&run.flags.keep_fd)?;
    let parent = run.flags.cgroup.clone();
    let plan = plan(run, signals, fds)?;

    let mount = CgroupMount::find()?;
    let parent = parent.map_or_else(|| Cgroup::own(&mount), |path| Cgroup::open(&mount, &path))?;
    refuse_nesting(&parent)?;
    let cgroup = Cgroup::create_child(&parent, CGROUP_PREFIX)?;
    let outcome = confined(plan, &cgroup, directories);
    // Somebody who survived SIGKILL holds it, and stays under enforcement.
    if let Err(error) = cgroup.remove() {
        tracing::warn!(%error, "the cgroup stays");
    }
    outcome
}

/// Inside a sandbox that `run` made, where not even the records can be read, say why before the kernel says EACCES. The attach
/// itself refuses by the records, whatever a cgroup's name is.
fn refuse_nesting(parent: &Cgroup) -> Result<(), Refused> {
    let made_by_run = |name: &std::path::Component<'_>| {
        name.as_os_str().to_string_lossy().strip_prefix(CGROUP_PREFIX).is_some_and(|rest| rest.starts_with('-'))
    };
    match parent.name().components().find(made_by_run) {
        Some(_) => Err(Refused::InSandbox(parent.name().to_owned())),
        None => Ok(()),
    }
}

fn plan(run: Run, signals: Signals, fds: KeptFds) -> Result<Plan> {
    let flags = run.flags;
    let policy = run.policy.clone().load()?;
    let caller = Caller::current(|name| std::env::var_os(name))?;
    let identity = identity(&caller, flags.user.as_deref(), &HostAccounts)?;
    // Whether a device holds them is known after attach; whether the names make sense, now.
    let keeps = KeptCaps::parse(&flags.keep_cap, true)?;
    let added = flags.env.iter().map(|variable| parse_variable(variable)).collect::<Result<Vec<_>, _>>()?;
    let report = flags.summary.as_deref().map(|path| summary_file::create(path, &identity)).transpose()?;
    Ok(Plan {
        signals,
        policy,
        policy_flags: run.policy,
        env: environment(std::env::vars_os(), &identity, &added),
        identity,
        shares: flags.shares(),
        require: flags.require,
        verify: flags.verify,
        cap_names: flags.keep_cap,
        raw_sockets: keeps.names().iter().any(|name| name == RAW_SOCKETS),
        fds,
        argv: run.command,
        netns: flags.netns,
        wait_proxy: flags.wait_proxy,
        limits: Limits { timeout: flags.timeout, kill_after: flags.kill_after },
        report,
    })
}

/// Everything between the making of the cgroup and its removal. Dropping the sandbox on the way out of a failure detaches it:
/// CMD was not started then.
fn confined(plan: Plan, cgroup: &Cgroup, directories: &Directories) -> Result<u8> {
    let mut builder = Sandbox::builder(plan.policy)
        .cgroup(cgroup.path())
        .dirs(directories.clone())
        .raw_sockets(plan.raw_sockets)
        .privileged(plan.identity.uid == 0);
    if let Some(netns) = plan.netns {
        builder = builder.netns(netns);
    }
    if let Some(level) = plan.require {
        builder = builder.require(level);
    }
    let mut sandbox = builder.attach()?;
    // From here on, so that what the probes cause is told apart by what it is and not by when it comes.
    let events = sandbox.events();
    let verified = plan.verify.then(|| verified(cgroup, directories)).transpose()?;
    let denials = collect(events, verified);
    if let Some(limit) = plan.wait_proxy {
        sandbox.await_proxies(limit)?;
    }
    let reached = sandbox.level();
    let device = reached.level.is_some_and(|level| level >= Level::L2);
    let keep_caps = KeptCaps::parse(&plan.cap_names, device)?;
    let mut gids = plan.identity.groups.clone();
    gids.push(plan.identity.gid);
    let delegated = cgroup.delegated_to(plan.identity.uid, &gids)?;
    let footing =
        Footing { identity: &plan.identity, caps: keep_caps, delegated: delegated.as_ref(), shares: plan.shares };
    let reached = level(reached, footing);
    refuse_below(plan.require, &reached)?;
    sandbox.judge(reached)?;
    term::say(&super::status::level_line(&sandbox.level()));
    let command = Command {
        argv: plan.argv,
        env: plan.env,
        identity: plan.identity,
        keep_caps,
        keep_fds: plan.fds,
        netns: sandbox.netns()?,
        cwd: None,
        shares: plan.shares,
        hidden: vec![directories.pin.clone(), directories.state.clone()],
    };
    plan.signals.check_before_start()?;
    let served = control::serve(sandbox, plan.policy_flags)?;
    let (exit, sent) = follow(&command, cgroup, &plan.signals, plan.limits, &served)?;
    tell(denials, &sent, plan.report);
    Ok(exit.code())
}

/// What CMD is given can be less than what its sandbox could promise.
fn refuse_below(wanted: Option<Level>, reached: &Reached) -> Result<()> {
    match wanted {
        Some(wanted) if reached.level < Some(wanted) => {
            let (reached, missing) = (reached.text.clone(), reached.missing.join("; "));
            Err(sandbox::Error::Require { wanted, reached, missing }.into())
        }
        _ => Ok(()),
    }
}

/// From CMD's start to the end of enforcement. Once CMD has run, its exit code is what counts; what goes wrong afterwards is said.
fn follow(
    command: &Command,
    cgroup: &Cgroup,
    signals: &Signals,
    limits: Limits,
    served: &Served,
) -> Result<(Exit, Vec<Sent>)> {
    let mut child = spawn(command, cgroup)?;
    let waited = child.wait(signals, limits);
    if let Err(error) = child.end() {
        term::say(&super::exit::message(&error.into()));
    }
    let Some(sandbox) = served.take() else { return Ok((waited?, Vec::new())) };
    let sent = sandbox.sent().unwrap_or_else(|error| {
        tracing::warn!(%error, "where it sent most is not known");
        Vec::new()
    });
    // Where somebody is left, the end must not open anything: the release leaves a populated cgroup closed.
    match sandbox.release() {
        Ok(Released::Detached) => {}
        Ok(Released::Enforced) => {
            term::say(&format!("{} has processes and stays closed; egressd detach opens it", cgroup.path().display()));
        }
        Err(error) => term::say(&super::exit::message(&error.into())),
    }
    Ok((waited?, sent))
}

/// What `--verify` found, which is nothing to object to.
fn verified(cgroup: &Cgroup, directories: &Directories) -> Result<verify::Report> {
    let report = verify::verify(directories, Some(cgroup.path()))?;
    super::verify::objection(&report).map_or(Ok(()), |why| Err(Refused::NotClosed(why)))?;
    Ok(report)
}

/// Adds up denials until the sandbox is gone, less those of probes.
fn collect(events: Events, verified: Option<verify::Report>) -> JoinHandle<Summary> {
    // Unreadable is as good as empty: the file only explains.
    let hosts = Hosts::parse(&std::fs::read_to_string("/etc/hosts").unwrap_or_default());
    thread::spawn(move || {
        let mut summary = Summary::new(hosts);
        for event in events {
            if !verified.as_ref().is_some_and(|report| report.caused(&event)) {
                summary.add(&event);
            }
        }
        summary
    })
}

/// Says what was denied, on stderr and in the report, which has what was sent too.
fn tell(denials: JoinHandle<Summary>, sent: &[Sent], report: Option<File>) {
    let Ok(summary) = denials.join() else {
        term::say("the denials were not counted, because their thread failed");
        return;
    };
    for line in summary.lines() {
        term::raw_say(&line);
    }
    if let Some(mut file) = report {
        let written = summary
            .to_json_line(sent)
            .context("cannot make JSON")
            .and_then(|json| writeln!(file, "{json}").context("cannot write the file"));
        if let Err(error) = written {
            term::say(&format!("--summary: {}", super::exit::message(&error)));
        }
    }
}

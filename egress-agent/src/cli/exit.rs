//! Exit codes, and the one line that says why.

use egress_agent::{
    cgroup::CgroupError, observe::escape, policy::PolicyError, run::RunError, sandbox, verify::VerifyError,
};
use std::io;

/// What `run` exits with for anything of egressd's own: CMD was never started, or could not be followed.
pub(super) const RUN_FAILED: u8 = 125;

/// Exit codes of every verb but `run`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum Exit {
    Done = 0,
    /// Usage, or an invalid policy.
    Usage = 2,
    /// This host cannot enforce.
    Needs = 3,
    /// Not allowed to.
    Permission = 4,
    /// Enforcement lost.
    Lost = 5,
}

impl From<Exit> for u8 {
    fn from(exit: Exit) -> Self {
        exit as Self
    }
}

/// What was asked for cannot be done, before anything was touched.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    /// Nothing to attach to.
    #[error("name what is to be enforced: --cgroup PATH, --pid PID, or a guest by --device IFNAME --self ADDR")]
    NoTarget,
    /// `--self` is about guests.
    #[error("--self is about a guest behind a device, which has no cgroup; leave --cgroup and --pid out, or --self")]
    CgroupAndGuest,
    /// `--pin` leaves nobody to answer DNS.
    #[error(
        "--pin: the policy has names, and nobody would answer for them once this command returns; \
         leave --pin out, or write addresses instead of names"
    )]
    PinWithNames,
    /// `--pin` leaves nobody to answer DNS, which observing must not block.
    #[error("--pin: an observed sandbox needs somebody who answers DNS; leave --pin out")]
    PinWithObserve,
    /// No such descriptor, or one that cannot be written to.
    #[error("--ready-fd {0}: not open for writing; hand over a pipe, e.g. 3>ready")]
    ReadyFd(i32),
    /// `run` inside what `run` made.
    #[error("this process is in a sandbox already ({}), and sandboxes do not nest; add to that one's policy instead", .0.display())]
    InSandbox(std::path::PathBuf),
    /// `run --verify` of a sandbox that is not closed.
    #[error("--verify: the command was not started: {0}")]
    NotClosed(String),
    /// Whoever serves the sandbox could not put the policy in force.
    #[error("the policy before stays in force: {0}")]
    Reload(String),
    /// A sandbox that was pinned, or whose owner was killed.
    #[error(
        "no egressd serves this sandbox, so its policy stays as it is; \
         egressd attach with the same --cgroup or --device takes it over with another"
    )]
    Unserved,
    /// A DEST on the command line.
    #[error("{text:?} is no destination")]
    Destination { text: String, source: egress_agent::policy::DestinationError },
}

impl Exit {
    /// The exit code of a failure.
    pub(super) fn of(error: &anyhow::Error) -> u8 {
        if let Some(error) = find::<VerifyError>(error) {
            return error.exit_code();
        }
        if let Some(error) = find::<sandbox::Error>(error) {
            return error.exit_code();
        }
        let usage = find::<Refused>(error).is_some() || find::<PolicyError>(error).is_some();
        let denied = |error: &io::Error| error.kind() == io::ErrorKind::PermissionDenied;
        let exit = match find::<io::Error>(error) {
            Some(io) if denied(io) && !usage => Self::Permission,
            _ if matches!(find::<CgroupError>(error), Some(CgroupError::NoMount)) => Self::Needs,
            _ => Self::Usage,
        };
        exit as u8
    }
}

/// The exit code of a failure of `run`.
pub(super) fn of_run(error: &anyhow::Error) -> u8 {
    find::<RunError>(error).map_or(RUN_FAILED, RunError::exit_code)
}

/// True where the reader of our output went away, which is its right.
pub(super) fn is_closed(error: &anyhow::Error) -> bool {
    find::<Closed>(error).is_some()
}

/// Whoever read stdout is gone.
#[derive(Debug, thiserror::Error)]
#[error("stdout was closed")]
pub(super) struct Closed;

/// The whole chain in one line. A cause that its parent already spelled out is not repeated.
pub(super) fn message(error: &anyhow::Error) -> String {
    let mut parts: Vec<String> = Vec::new();
    for cause in error.chain() {
        let text = cause.to_string();
        if parts.last().is_none_or(|parent| !parent.ends_with(&text)) {
            parts.push(text);
        }
    }
    escape::line(&parts.join(": "))
}

fn find<E: std::error::Error + Send + Sync + 'static>(error: &anyhow::Error) -> Option<&E> {
    error.chain().find_map(|cause| cause.downcast_ref())
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::{Context as _, anyhow};

    #[test]
    fn each_stage_has_its_code() {
        let policy = || egress_agent::policy::Policy::from_toml("nonsense = 1").unwrap_err();
        let io = |kind| anyhow::Error::from(io::Error::from(kind)).context("cannot read x");
        for (error, code) in [
            (anyhow::Error::from(policy()), 2),
            (anyhow::Error::from(sandbox::Error::from(policy())).context("ci.toml"), 2),
            (sandbox::Error::TransientMounts.into(), 3),
            (io(io::ErrorKind::PermissionDenied), 4),
            (io(io::ErrorKind::NotFound), 2),
            (Refused::PinWithNames.into(), 2),
            (CgroupError::NoMount.into(), 3),
            (anyhow!("anything else"), 2),
        ] {
            assert_eq!(Exit::of(&error), code, "{error:#}");
            assert_eq!(of_run(&error), 125, "{error:#}");
        }
    }

    #[test]
    fn run_tells_its_own_failures_from_those_of_cmd() {
        assert_eq!(of_run(&RunError::NotFound("x".into()).into()), 127);
        let source = io::Error::from_raw_os_error(libc::EACCES);
        assert_eq!(of_run(&RunError::NotExecutable { command: "x".into(), source }.into()), 126);
    }

    #[test]
    fn the_message_says_each_thing_once_and_on_one_line() {
        let inner = Err::<(), _>(anyhow!("no such file\n::error::x"));
        let error = inner.context("cannot read x: no such file\n::error::x").context("check").unwrap_err();
        assert_eq!(message(&error), "check: cannot read x: no such file\\n::error::x");
    }
}

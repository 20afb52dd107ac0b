//! What is promised, and to whom: SECURITY.md has the whole table.

use super::error::Error;
use crate::{cgroup::Cgroup, datapath::sockets::foreign_sockets};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use std::{fmt, fs, str::FromStr};

/// A threat level.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum Level {
    /// Unprivileged code in its cgroup.
    L1,
    /// Root in its own network namespace.
    L2,
    /// A guest kernel or a user-space stack.
    L3,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::L1 => "L1",
            Self::L2 => "L2",
            Self::L3 => "L3",
        })
    }
}

/// A level that does not exist.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("there is no level {0:?}; levels are L1, L2 and L3")]
pub struct UnknownLevel(pub String);

impl FromStr for Level {
    type Err = UnknownLevel;

    fn from_str(text: &str) -> Result<Self, UnknownLevel> {
        match text {
            "L1" => Ok(Self::L1),
            "L2" => Ok(Self::L2),
            "L3" => Ok(Self::L3),
            _ => Err(UnknownLevel(text.to_owned())),
        }
    }
}

/// The level that was reached.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Reached {
    /// `None`: no promise holds.
    pub level: Option<Level>,
    /// In words: "L1, minus same-user processes".
    pub text: String,
    /// What the next level needs.
    pub missing: Vec<String>,
}

impl Reached {
    /// What is left of it with the processes that are in the cgroup already.
    ///
    /// # Errors
    /// [`Error::ForeignSockets`] where `strict` is asked for and they hold sockets that no hook of this cgroup sees.
    pub(super) fn with_processes(mut self, cgroup: &Cgroup, no_device: bool, strict: bool) -> Result<Self, Error> {
        let pids = cgroup.procs()?;
        if let Some(pid) = pids.iter().find(|pid| is_host_root(**pid)) {
            let why = format!(
                "process {pid} is uid 0 in egressd's own user and mount namespaces, from where it can leave the cgroup: run it as another user"
            );
            self = Self { level: None, text: "none".to_owned(), missing: vec![why] };
        }
        let pids: Vec<Pid> = pids.into_iter().filter_map(|pid| i32::try_from(pid).ok()).map(Pid::from_raw).collect();
        let found = foreign_sockets(&pids, &cgroup.ids()?)?;
        let Some(first) = found.first() else { return Ok(self) };
        let first = format!("{} of process {}", first.kind, first.pid);
        if strict {
            return Err(Error::ForeignSockets { cgroup: cgroup.path().to_owned(), count: found.len(), first });
        }
        if no_device {
            self.missing.insert(
                0,
                format!("{} sockets were made before their processes joined and pass unjudged, first {first}: restart those inside", found.len()),
            );
            if self.level.is_some() {
                self.text = format!("{}, minus sockets made elsewhere", self.text);
            }
        }
        Ok(self)
    }
}

/// True where nothing keeps the process in its cgroup. One that is gone or cannot be looked at is no reason to doubt the others.
fn is_host_root(pid: u32) -> bool {
    let uids = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let uids = uids.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap_or_default();
    let same = |kind| {
        let namespace = |of: &str| fs::read_link(format!("/proc/{of}/ns/{kind}")).ok();
        namespace(&pid.to_string()).is_some_and(|its| Some(its) == namespace("self"))
    };
    uids.split_ascii_whitespace().any(|uid| uid == "0") && same("user") && same("mnt")
}

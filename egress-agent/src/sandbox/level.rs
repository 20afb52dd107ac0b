//! What the processes that are in a cgroup already leave of its level.

use super::error::Error;
use crate::{cgroup::Cgroup, datapath::sockets::foreign_sockets, level::Reached};
use nix::unistd::Pid;
use std::fs;

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
            self = Self { missing: Vec::new(), ..self }.void(why);
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

//! What the processes that are in a cgroup already leave of its level.

use super::error::Error;
use crate::{
    cgroup::Cgroup,
    datapath::{
        foreign::judges,
        sockets::{ForeignSocket, foreign_sockets},
    },
    level::Reached,
};
use nix::unistd::Pid;
use std::fs;

impl Reached {
    /// What is left of it with the processes that are in the cgroup already. `judged` where foreign sockets are.
    ///
    /// # Errors
    /// [`Error::ForeignSockets`] where `strict` is asked for and they hold sockets that no hook judges.
    pub(super) fn with_processes(
        mut self,
        cgroup: &Cgroup,
        judged: bool,
        no_device: bool,
        strict: bool,
    ) -> Result<Self, Error> {
        let pids = cgroup.procs()?;
        if let Some(pid) = pids.iter().find(|pid| is_host_root(**pid)) {
            let why = format!(
                "process {pid} is uid 0 in egressd's own user and mount namespaces, from where it can leave the cgroup: run it as another user"
            );
            self = Self { missing: Vec::new(), ..self }.void(why);
        }
        let found = foreign(cgroup, judged)?;
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

/// Sockets that the processes of a cgroup hold and no hook sees. `judged` where foreign sockets are.
pub(super) fn foreign(cgroup: &Cgroup, judged: bool) -> Result<Vec<ForeignSocket>, Error> {
    let pids = cgroup.procs()?.into_iter().filter_map(|pid| i32::try_from(pid).ok()).map(Pid::from_raw);
    let mut found = foreign_sockets(&pids.collect::<Vec<_>>(), &cgroup.ids()?)?;
    found.retain(|socket| !(judged && judges(socket)));
    Ok(found)
}

/// True where nothing keeps the process in its cgroup. One that is gone or cannot be looked at is no reason to doubt the others.
fn is_host_root(pid: u32) -> bool {
    let uids = status(pid, "Uid:");
    uids.split_ascii_whitespace().any(|uid| uid == "0") && shares(pid, "user") && shares(pid, "mnt")
}

/// A process of the cgroup that may make packet sockets in the host's network namespace, where no device is.
pub(super) fn packet_maker(cgroup: &Cgroup) -> Result<Option<u32>, Error> {
    const CAP_NET_RAW: u64 = 1 << 13;
    let may = |pid: &u32| {
        let held = u64::from_str_radix(status(*pid, "CapPrm:").trim(), 16).unwrap_or_default();
        held & CAP_NET_RAW != 0 && shares(*pid, "user")
    };
    Ok(cgroup.procs()?.into_iter().find(may))
}

/// A line of proc_pid_status(5), empty for a process that is gone.
fn status(pid: u32, key: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default().to_owned()
}

/// True in egressd's own namespace of this kind.
fn shares(pid: u32, kind: &str) -> bool {
    let namespace = |of: &str| fs::read_link(format!("/proc/{of}/ns/{kind}")).ok();
    namespace(&pid.to_string()).is_some_and(|its| Some(its) == namespace("self"))
}

//! Who runs where. Left to the scheduler, the same resolver takes half the time for a miss, or not: by whether the three who take part
//! have come to share a CPU, which lasts for thousands of questions.

use anyhow::{Context as _, Result, ensure};
use nix::{
    errno::Errno,
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};
use std::fs;

/// CPUs of this process, parted.
pub(super) struct Places {
    all: CpuSet,
    resolver: CpuSet,
    others: CpuSet,
}

impl Places {
    pub(super) fn find() -> Result<Self> {
        let all = sched_getaffinity(Pid::from_raw(0))?;
        let ours: Vec<usize> = (0..CpuSet::count()).filter(|cpu| all.is_set(*cpu).unwrap_or(false)).collect();
        ensure!(
            ours.len() > 1,
            "this bench needs two CPUs: one for the resolver, one for who asks it and whom it asks"
        );
        let only = |cpu: usize| {
            let mut set = CpuSet::new();
            set.set(cpu).map(|()| set)
        };
        Ok(Self { all, resolver: only(ours[1])?, others: only(ours[0])? })
    }

    /// Each question, and each answer, goes from one CPU to the other, as if both came from elsewhere. The upstream is this process.
    pub(super) fn apart(&self, resolver: Pid, generator: Pid) -> Result<()> {
        put(resolver, &self.resolver)?;
        [generator, Pid::this()].into_iter().try_for_each(|pid| put(pid, &self.others))
    }

    /// Where the scheduler likes.
    pub(super) fn anywhere(&self, resolver: Pid, generator: Pid) -> Result<()> {
        // Each, though another has died.
        [resolver, generator, Pid::this()].map(|pid| put(pid, &self.all)).into_iter().collect()
    }
}

/// All threads of a process, and those that they start.
fn put(pid: Pid, cpus: &CpuSet) -> Result<()> {
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let name = task?.file_name();
        let thread = name.to_str().and_then(|name| name.parse().ok()).context("a thread without a number")?;
        match sched_setaffinity(Pid::from_raw(thread), cpus) {
            // It has ended.
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

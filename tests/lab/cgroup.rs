//! The lab's cgroups: one directory per lab below the test's own, found through mountinfo on pure and hybrid hosts.

use std::{
    fs::{self, OpenOptions},
    os::{fd::AsFd, unix::process::CommandExt},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use crate::wait::until;

/// A directory of the cgroup v2 tree. The lab removes it.
#[derive(Clone, Debug)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// The cgroup of this process: where labs put theirs.
    pub(crate) fn own() -> Self {
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
        // mountinfo(5): "… root mount-point options … - type source options".
        let mount = mounts.lines().find_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            right.starts_with("cgroup2 ").then(|| left.split(' ').nth(4)).flatten()
        });
        let mount = mount.expect("a cgroup v2 mount; this host has none");
        let own = fs::read_to_string("/proc/self/cgroup").expect("/proc/self/cgroup");
        let own = own.lines().find_map(|line| line.strip_prefix("0::/")).expect("a v2 line in /proc/self/cgroup");
        Self { path: Path::new(mount).join(own) }
    }

    /// Makes a child.
    #[must_use]
    pub fn child(&self, name: &str) -> Self {
        let path = self.path.join(name);
        fs::create_dir(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Self { path }
    }

    /// One below it that exists already.
    pub(crate) fn existing(&self, name: &Path) -> Self {
        Self { path: self.path.join(name) }
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Every directory below it, deepest last, itself not included.
    pub fn below(&self) -> Vec<PathBuf> {
        let mut found = directories(&self.path);
        let mut at = 0;
        while let Some(path) = found.get(at) {
            found.extend(directories(path));
            at += 1;
        }
        found
    }

    /// Makes `command` start in it.
    pub fn place(&self, command: &mut Command) {
        let procs = self.path.join("cgroup.procs");
        let procs =
            OpenOptions::new().write(true).open(&procs).unwrap_or_else(|error| panic!("{}: {error}", procs.display()));
        // SAFETY: write is one system call on a descriptor that the closure keeps open; nothing is allocated after fork.
        unsafe {
            command.pre_exec(move || Ok(nix::unistd::write(procs.as_fd(), b"0").map(drop)?));
        }
    }

    /// True while a process is in it or below it.
    pub fn is_populated(&self) -> bool {
        fs::read_to_string(self.path.join("cgroup.events")).is_ok_and(|events| events.contains("populated 1"))
    }

    /// Kills whatever is in it and below it and removes it.
    pub(crate) fn remove(&self) {
        if !self.path.exists() {
            return;
        }
        // Since Linux 5.14; on those before it nothing starts that would have to be killed.
        if self.is_populated() {
            fs::write(self.path.join("cgroup.kill"), "1").expect("cgroup.kill");
        }
        until(Duration::from_secs(10), "a killed cgroup is empty", || !self.is_populated());
        for path in self.below().iter().rev().chain([&self.path]) {
            fs::remove_dir(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        }
    }
}

fn directories(path: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect()
}

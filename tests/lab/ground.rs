//! What a lab owns on the host: a directory and a cgroup under one prefix, `egl-<pid>-<n>`, and nothing else. Here it is
//! made, taken down, looked for at the end of the process, and swept where a killed test run left it.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Once,
        atomic::{AtomicUsize, Ordering},
    },
};

use nix::mount::{MntFlags, umount2};

use crate::cgroup::Cgroup;

/// Not below /tmp: what egressd pins must have no parent directory that others may write to.
const RUN: &str = "/run";
const PREFIX: &str = "egl";

#[derive(Debug)]
pub(crate) struct Ground {
    /// `egl-<pid>-<n>`.
    pub(crate) prefix: String,
    /// The lab's directory, 0755.
    pub(crate) directory: PathBuf,
    /// The lab's cgroup.
    pub(crate) cgroup: Cgroup,
}

impl Ground {
    pub(crate) fn new() -> Self {
        static ONCE: Once = Once::new();
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        ONCE.call_once(|| {
            sweep();
            // SAFETY: the function takes no arguments and does not unwind.
            let registered = unsafe { libc::atexit(at_exit) };
            assert_eq!(registered, 0, "atexit");
        });
        let prefix = format!("{PREFIX}-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let directory = Path::new(RUN).join(&prefix);
        fs::create_dir(&directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
        let cgroup = Cgroup::own().child(&prefix);
        Self { prefix, directory, cgroup }
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        self.cgroup.remove();
        remove_directory(&self.directory);
    }
}

/// Mount points at or below `directory`, deepest last.
pub(crate) fn mounts_below(directory: &Path) -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
    points.filter(|point| point.starts_with(directory)).collect()
}

fn remove_directory(directory: &Path) {
    for mount in mounts_below(directory).iter().rev() {
        umount2(mount, MntFlags::MNT_DETACH).unwrap_or_else(|error| panic!("umount {}: {error}", mount.display()));
    }
    fs::remove_dir_all(directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
}

/// Directories and cgroups of labs, with the process id that their names tell.
fn all() -> Vec<(u32, PathBuf)> {
    let places = [PathBuf::from(RUN), Cgroup::own().path().to_owned()];
    let entries = places.iter().filter_map(|place| fs::read_dir(place).ok()).flatten().flatten();
    let named = entries.filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        let pid = name.strip_prefix(PREFIX)?.strip_prefix('-')?.split('-').next()?.parse().ok()?;
        Some((pid, entry.path()))
    });
    named.collect()
}

/// Takes down what labs of processes that no longer live have left.
fn sweep() {
    let own = Cgroup::own();
    for (pid, path) in all() {
        if Path::new("/proc").join(pid.to_string()).exists() {
            continue;
        }
        if let Ok(name) = path.strip_prefix(own.path()) {
            own.existing(name).remove();
        } else {
            remove_directory(&path);
        }
    }
}

/// The last assertion of a test process: nothing under its prefix is left.
extern "C" fn at_exit() {
    let own = std::process::id();
    let left: Vec<_> = all().into_iter().filter(|(pid, _)| *pid == own).map(|(_, path)| path).collect();
    if !left.is_empty() {
        eprintln!("the lab left behind: {left:?}");
        // SAFETY: ends the process at once; nothing of it is used afterwards.
        unsafe { libc::_exit(1) };
    }
}

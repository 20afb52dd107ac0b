//! Installs what building and testing need. Says what it does; does nothing, quickly, when nothing is missing.

mod linker;
mod packages;

use anyhow::{Result, bail};
use std::{fs, path::Path};

/// Makes the machine ready, or says what to type.
pub(crate) fn run() -> Result<()> {
    let added = ready()?;
    if !added {
        println!(
            "setup: nothing to do, {} packages and bpf-linker {} are here",
            packages::NEEDED.len(),
            linker::VERSION
        );
    }
    Ok(())
}

/// The same without a word when nothing is missing. True when something was installed.
pub(crate) fn ready() -> Result<bool> {
    kernel()?;
    let linker = linker::found()?;
    let packages = if Path::new("/etc/debian_version").exists() {
        packages::install_missing(linker.is_right())? | packages::unpack_missing()?
    } else {
        packages::check_commands()?
    };
    if linker.is_right() {
        return Ok(packages);
    }
    linker.install()?;
    Ok(true)
}

/// egressd mounts its own bpffs and finds cgroup v2 wherever it is mounted: here it is only asked whether the kernel can.
fn kernel() -> Result<()> {
    let known = fs::read_to_string("/proc/filesystems")?;
    let knows = |name: &str| known.lines().any(|line| line.split_whitespace().last() == Some(name));
    for (name, option) in [("bpf", "CONFIG_BPF_SYSCALL"), ("cgroup2", "CONFIG_CGROUPS")] {
        if !knows(name) {
            bail!("this kernel has no {name} file system: egressd needs a kernel with {option}");
        }
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let unified =
        mounts.lines().any(|line| line.split_once(" - ").is_some_and(|(_, kind)| kind.starts_with("cgroup2 ")));
    if !unified {
        bail!(
            "cgroup v2 is mounted nowhere: mkdir -p /sys/fs/cgroup/unified && mount -t cgroup2 none /sys/fs/cgroup/unified"
        );
    }
    Ok(())
}

//! Naming one sandbox among several.

use clap::Args;
use egress_agent::sandbox::Which;
use std::path::PathBuf;

/// One sandbox, by what it stands on.
#[derive(Args, Debug)]
#[group(multiple = false)]
pub(super) struct One {
    /// Only the sandbox on this cgroup; needed where there are several, e.g. --cgroup /ci.slice/job-1
    #[arg(long, value_name = "PATH")]
    cgroup: Option<PathBuf>,
    /// Only that of the guest behind this device, e.g. --device tap0
    #[arg(long, value_name = "IFNAME")]
    device: Option<String>,
}

impl One {
    pub(super) fn which(&self) -> Option<Which> {
        let device = || self.device.clone().map(Which::Device);
        self.cgroup.clone().map(Which::Cgroup).or_else(device)
    }
}

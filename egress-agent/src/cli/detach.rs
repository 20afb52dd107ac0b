//! `egressd detach`: the one way to open a sandbox that has processes.

use super::{exit::Exit, term};
use anyhow::Result;
use clap::Args;
use egress_agent::sandbox::{self, Directories, Status, Which};
use std::path::PathBuf;

/// End enforcement, whether or not processes live in the sandbox
#[derive(Args, Debug)]
#[command(after_help = "Example: egressd detach --cgroup /ci.slice/job-1")]
pub(super) struct Detach {
    #[command(flatten)]
    asked: Asked,
}

#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
struct Asked {
    /// The sandbox on this cgroup, e.g. --cgroup /ci.slice/job-1
    #[arg(long, value_name = "PATH")]
    cgroup: Option<PathBuf>,
    /// The guest behind this device, e.g. --device tap0
    #[arg(long, value_name = "IFNAME")]
    device: Option<String>,
    /// Every sandbox below the state directory
    #[arg(long)]
    all: bool,
}

fn which(status: Status) -> Option<Which> {
    status.cgroup.map(|path| Which::Cgroup(path.into())).or_else(|| status.device.map(Which::Device))
}

impl Detach {
    pub(super) fn act(self, directories: &Directories) -> Result<u8> {
        let all = match (self.asked.cgroup, self.asked.device) {
            (Some(path), _) => vec![Which::Cgroup(path)],
            (None, Some(device)) => vec![Which::Device(device)],
            (None, None) => sandbox::list(directories)?.into_iter().filter_map(which).collect(),
        };
        // One that fails must not keep the others closed.
        let mut first_error = None;
        for which in all {
            if let Err(error) = sandbox::detach(directories, which.clone()) {
                let error = anyhow::Error::new(error).context(format!("cannot detach {which}"));
                if let Some(earlier) = first_error.replace(error) {
                    term::say(&super::exit::message(&earlier));
                }
            }
        }
        first_error.map_or_else(|| Ok(Exit::Done.into()), Err)
    }
}

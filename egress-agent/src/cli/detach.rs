//! `egressd detach`: the one way to open a sandbox that has processes.

use super::{exit::Exit, exit::Refused, term};
use anyhow::Result;
use clap::Args;
use egress_agent::sandbox::{self, Directories};
use std::path::PathBuf;

/// End enforcement, whether or not processes live in the sandbox
#[derive(Args, Debug)]
#[command(after_help = "Example: egressd detach --cgroup /ci.slice/job-1")]
pub(super) struct Detach {
    #[command(flatten)]
    which: Which,
}

#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
struct Which {
    /// The sandbox on this cgroup, e.g. --cgroup /ci.slice/job-1
    #[arg(long, value_name = "PATH")]
    cgroup: Option<PathBuf>,
    /// The sandbox behind this device
    #[arg(long, value_name = "IFNAME", hide = true)]
    device: Option<String>,
    /// Every sandbox below the state directory
    #[arg(long)]
    all: bool,
}

impl Detach {
    pub(super) fn refuse_later(&self) -> Result<(), Refused> {
        let Some(device) = &self.which.device else { return Ok(()) };
        Err(Refused::NotInThisBuild { flag: format!("--device {device}"), fix: "name the sandbox's cgroup" })
    }

    pub(super) fn act(self, directories: &Directories) -> Result<u8> {
        let cgroups = match self.which.cgroup {
            Some(path) => vec![path],
            None => {
                sandbox::list(directories)?.into_iter().filter_map(|status| status.cgroup).map(PathBuf::from).collect()
            }
        };
        // One that fails must not keep the others closed.
        let mut first_error = None;
        for cgroup in cgroups {
            if let Err(error) = sandbox::detach(directories, &cgroup) {
                let error = anyhow::Error::new(error).context(format!("cannot detach {}", cgroup.display()));
                if let Some(earlier) = first_error.replace(error) {
                    term::say(&super::exit::message(&earlier));
                }
            }
        }
        first_error.map_or_else(|| Ok(Exit::Done.into()), Err)
    }
}

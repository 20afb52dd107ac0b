//! `egressd reload`: another policy for a sandbox that is served, without a gap.

use super::{control, exit::Exit, policy_flags::PolicyFlags, term, which::One};
use anyhow::Result;
use clap::Args;
use egress_agent::sandbox::{self, Directories};

/// Put another policy in force; it is when this returns
///
/// Without any policy, the files and flags that the sandbox was made with are read again. What is refused leaves the old policy.
#[derive(Args, Debug)]
#[command(after_help = "Example: egressd reload --cgroup /ci.slice/job-1 --policy /etc/egressd/ci.toml")]
pub(super) struct Reload {
    #[command(flatten)]
    one: One,
    #[command(flatten)]
    policy: PolicyFlags,
}

impl Reload {
    pub(super) fn act(self, directories: &Directories) -> Result<u8> {
        let directory = sandbox::directory(directories, self.one.which().as_ref())?;
        // Read here, so that what is wrong with it is said with names of files that whoever asks knows.
        let policy = (self.policy != PolicyFlags::default()).then(|| self.policy.load()).transpose()?;
        term::say(&format!("generation {} is in force", control::ask(&directory, policy.as_ref())?));
        Ok(Exit::Done.into())
    }
}

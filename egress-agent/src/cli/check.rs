//! `egressd check`: is this policy valid?

use super::{exit::Exit, term};
use anyhow::Result;
use clap::Args;
use egress_agent::{
    policy::{Policy, Source},
    sandbox,
};
use std::path::PathBuf;

/// Parse and compile policy files as they would be used together, and touch nothing
#[derive(Args, Debug)]
#[command(after_help = "Example: egressd check --print /etc/egressd/org.toml ci.toml")]
pub(super) struct Check {
    /// Policy files
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Print the merged policy as TOML
    #[arg(long)]
    print: bool,
}

impl Check {
    pub(super) fn act(self) -> Result<u8> {
        let policy = merged(&self.files)?;
        for warning in &policy.warnings {
            term::say(&warning.to_string());
        }
        if self.print {
            term::write_out(policy.to_toml().as_bytes())?;
        }
        Ok(Exit::Done.into())
    }
}

fn merged(files: &[PathBuf]) -> Result<Policy> {
    let sources = files.iter().map(Source::read).collect::<Result<Vec<_>, _>>()?;
    let policy = Policy::merge(sources)?;
    sandbox::check(&policy)?;
    Ok(policy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_judged_together() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let org = write("org.toml", "version = 1\n[deny]\nnames = [\"gist.github.com\"]\n");
        let repository = write("ci.toml", "version = 1\n[allow]\nnames = [\"github.com\"]\n");
        let policy = merged(&[org.clone(), repository]).unwrap();
        assert_eq!((policy.allow.names.len(), policy.deny.names.len()), (1, 1));
        assert_eq!(Policy::from_toml(&policy.to_toml()).unwrap(), policy);

        let broken = write("broken.toml", "version = 1\n[allow]\nnmaes = []\n");
        let error = merged(&[org, broken]).unwrap_err();
        assert_eq!(Exit::of(&error), Exit::Usage as u8);
        assert!(error.to_string().contains("broken.toml:3:"), "{error}");
    }
}

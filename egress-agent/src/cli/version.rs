//! `egressd version`: which binary this is, down to its BPF object.

use super::{exit::Exit, term};
use anyhow::Result;
use clap::Args;
use egress_agent::{
    observe::escape,
    sandbox::{self, Build},
};

/// Print version, git revision, hash of the BPF object and ABI
#[derive(Args, Debug)]
#[command(after_help = "Example: egressd version --json")]
pub(super) struct Version {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Version {
    pub(super) fn act(self) -> Result<u8> {
        let build = sandbox::build();
        term::out(&if self.json { escape::json_line(&build)? } else { line(&build) })?;
        Ok(Exit::Done.into())
    }
}

fn line(build: &Build) -> String {
    let dirty = if build.dirty { " with changes" } else { "" };
    format!(
        "egressd {} (revision {}{dirty}, object {}, abi {})",
        build.version, build.revision, build.object, build.abi
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_tell_the_same() {
        let build = Build { version: "0.1.0", revision: "abc123", dirty: true, object: "f00d", abi: 1 };
        assert_eq!(line(&build), "egressd 0.1.0 (revision abc123 with changes, object f00d, abi 1)");
        assert_eq!(
            escape::json_line(&build).unwrap(),
            r#"{"version":"0.1.0","revision":"abc123","dirty":true,"object":"f00d","abi":1}"#
        );
    }
}

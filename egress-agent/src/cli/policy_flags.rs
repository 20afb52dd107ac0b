//! POLICY: files and flags that add up to one policy.

use super::term;
use anyhow::Result;
use clap::{Args, ValueEnum};
use egress_agent::policy::{Flags, Policy, PreResolve, Source};
use std::path::PathBuf;

/// What the sandbox may reach. Flags repeat; allows add up, denies win. A variable takes one value a line.
#[derive(Args, Debug, Clone, Default, PartialEq, Eq)]
#[command(next_help_heading = "Policy")]
pub(super) struct PolicyFlags {
    /// Policy file, TOML or .json; more than one are used together, e.g. --policy /etc/egressd/org.toml --policy ci.toml
    #[arg(long, value_name = "FILE", env = "EGRESSD_POLICY", hide_env_values = true, value_delimiter = '\n')]
    policy: Vec<PathBuf>,
    /// Open a destination, e.g. --allow github.com --allow 198.51.100.7:5432/tcp
    #[arg(long, value_name = "DEST")]
    allow: Vec<String>,
    /// Close a destination, whatever allows it, e.g. --deny gist.github.com
    #[arg(long, value_name = "DEST", env = "EGRESSD_DENY", hide_env_values = true, value_delimiter = '\n')]
    deny: Vec<String>,
    /// Open a proxy, which sees to the rest, e.g. --proxy 198.51.100.80:3128
    #[arg(long, value_name = "ADDR:PORT")]
    proxy: Vec<String>,
    /// Open ports of a gateway, e.g. --gateway 198.51.100.1:8080,9000-9010
    #[arg(long, value_name = "ADDR:PORTS")]
    gateway: Vec<String>,
    /// Resolve names with this server instead of the host's, e.g. --dns 198.51.100.53
    #[arg(long, value_name = "SERVER", env = "EGRESSD_DNS", hide_env_values = true, value_delimiter = '\n')]
    dns: Vec<String>,
    /// Resolve exact names before the start: require (fail if one does not; alone it means that), warn (the default: in the
    /// background) or off, e.g. --pre-resolve off
    #[arg(
        long,
        value_name = "HOW",
        env = "EGRESSD_PRE_RESOLVE",
        hide_env_values = true,
        num_args = 0..=1,
        default_missing_value = "require"
    )]
    pre_resolve: Option<How>,
    /// Block nothing, only report what would be denied, e.g. egressd run --observe -- make
    #[arg(long)]
    observe: bool,
    /// Limit what the sandbox sends, in bits per second, e.g. --rate 10mbit
    #[arg(long, value_name = "RATE", env = "EGRESSD_RATE", hide_env_values = true)]
    rate: Option<String>,
}

/// `--pre-resolve`
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
enum How {
    Require,
    Warn,
    Off,
}

impl From<How> for PreResolve {
    fn from(how: How) -> Self {
        match how {
            How::Require => Self::Require,
            How::Warn => Self::Warn,
            How::Off => Self::Off,
        }
    }
}

impl PolicyFlags {
    /// Reads the files and merges everything; says what deserves a look on stderr.
    pub(super) fn load(self) -> Result<Policy> {
        let files = self.policy.iter().map(Source::read).collect::<Result<Vec<_>, _>>()?;
        let flags = Source::Flags(Flags {
            allow: self.allow,
            deny: self.deny,
            proxy: self.proxy,
            gateway: self.gateway,
            dns: self.dns,
            observe: self.observe,
            pre_resolve: self.pre_resolve.map(PreResolve::from),
            rate: self.rate,
        });
        let policy = Policy::merge(files.into_iter().chain([flags]))?;
        for warning in &policy.warnings {
            term::say(&warning.to_string());
        }
        Ok(policy)
    }
}

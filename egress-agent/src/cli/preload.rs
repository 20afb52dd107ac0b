//! `egressd preload`: program sets that stay loaded, for sandboxes that start sooner.

use super::{exit::Exit, term};
use anyhow::Result;
use clap::Args;
use egress_agent::sandbox::{self, Directories};

/// Load programs ahead, and keep them loaded between sandboxes, which start sooner then
///
/// As many sandboxes that live at a time find theirs loaded; others load their own, as ever. Until the next boot, or --sets 0.
#[derive(Args, Debug)]
#[command(after_help = "Example: egressd preload --sets 2")]
pub(super) struct Preload {
    /// Keep this many program sets loaded; 0 unloads them
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(..=64))]
    sets: u32,
}

impl Preload {
    pub(super) fn act(&self, directories: &Directories) -> Result<u8> {
        sandbox::preload(directories, self.sets)?;
        match self.sets {
            0 => term::say("nothing is kept loaded any more"),
            1 => term::say("1 program set is kept loaded; egressd preload --sets 0 unloads it"),
            sets => term::say(&format!("{sets} program sets are kept loaded; egressd preload --sets 0 unloads them")),
        }
        Ok(Exit::Done.into())
    }
}

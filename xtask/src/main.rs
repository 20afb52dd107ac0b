//! Chores of the egressd workspace. `make` calls them; `cargo xtask help` lists them.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a chore speaks to the terminal")]

mod cargo;
mod invoker;
mod mutants;
mod setup;
mod style;
mod tally;
mod test;

use anyhow::Result;
use clap::{Parser, Subcommand};
use std::process::ExitCode;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Chores of the egressd workspace", disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Install what building and testing need, and say what; quick when nothing is missing
    Setup,
    /// Style, unit tests, root tests, demo: what CI runs
    Test(test::Options),
    /// Revert production lines one at a time: each must turn its test red
    Mutants(mutants::Options),
}

fn main() -> ExitCode {
    match run(Cli::parse().chore) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// False: the chore ran to its end, and something is red.
fn run(chore: Chore) -> Result<bool> {
    std::env::set_current_dir(cargo::workspace())?;
    match chore {
        Chore::Setup => setup::run().map(|()| true),
        Chore::Test(options) => test::run(&options),
        Chore::Mutants(options) => mutants::run(&options),
    }
}

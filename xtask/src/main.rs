//! Chores of the egressd workspace. `make` calls them; `cargo xtask help` lists them.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a chore speaks to the terminal")]

mod bench;
mod budget;
mod cargo;
mod cases;
mod demo;
mod fuzz;
mod invoker;
mod mutants;
mod setup;
mod style;
mod tally;
mod test;
mod vm;

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
    /// Style, unit tests, the verifier's budget, root tests, demo, other kernels: what CI runs
    Test(test::Options),
    /// An internet in a box, real curl, and what egressd lets through
    Demo,
    /// Revert production lines one at a time: each must turn its test red
    Mutants(mutants::Options),
    /// What the kernel's verifier makes of each program, held against egress-ebpf/verified.toml
    VerifyBudget(budget::Options),
    /// Mutated messages for the DNS half, for as long as one likes
    Fuzz(fuzz::Options),
    /// The root tests on other kernels, in qemu: a table, or the tests that are named behind --
    Vm(vm::Options),
    /// What the filter and look-ups cost, beside what people would use otherwise
    Bench(bench::Options),
    /// The bench's traffic, inside a sandbox
    #[command(hide = true)]
    Generate,
    /// The name bench's questions
    #[command(hide = true)]
    Ask { server: std::net::SocketAddr },
    /// The name bench's forwarder, which does nothing else
    #[command(hide = true)]
    Forward { listen: std::net::SocketAddr, upstream: std::net::SocketAddr },
    /// The filter bench's look-ups, inside a sandbox: prints the median in microseconds
    #[command(hide = true)]
    LookUp { server: std::net::SocketAddr, names: usize },
    /// The filter bench's starts, in a cgroup already: prints how much longer COMMAND takes than `true`, in milliseconds
    #[command(hide = true)]
    Starts {
        rounds: usize,
        #[arg(last = true)]
        command: Vec<std::ffi::OsString>,
    },
    /// The rate bench over long ways, inside a guest: prints what it measures, a line each
    #[command(hide = true)]
    Far {
        rounds: usize,
        #[arg(long)]
        quick: bool,
    },
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
        Chore::Demo => demo::run().map(tally::Tally::is_green),
        Chore::Bench(options) => bench::run(&options),
        Chore::Vm(options) => vm::run(&options).map(tally::Tally::is_green),
        Chore::VerifyBudget(options) => budget::run(&options).map(tally::Tally::is_green),
        Chore::Fuzz(options) => fuzz::run(&options),
        Chore::Generate => bench::filter::generator::serve().map(|()| true),
        Chore::Ask { server } => bench::dns::serve(server).map(|()| true),
        Chore::Forward { listen, upstream } => bench::dns::forward(listen, upstream).map(|()| true),
        Chore::LookUp { server, names } => bench::filter::look_up_and_print(server, names).map(|()| true),
        Chore::Starts { rounds, command } => bench::filter::starts_and_print(rounds, &command).map(|()| true),
        Chore::Far { rounds, quick } => bench::rate::far::measure(rounds, quick).map(|()| true),
        Chore::Mutants(options) => mutants::run(&options),
    }
}

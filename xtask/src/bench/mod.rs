//! `cargo xtask bench`: what enforcement costs, in paired, interleaved rounds beside what people would use otherwise.
//!
//! CPU per packet and medians repeat to a few percent on a shared machine; throughput and tails do so only as ratios within
//! a round. Everything happens in own namespaces and is bounded in count.
#![expect(clippy::cast_precision_loss, reason = "times and sizes of a bench are far below 2^52")]

mod costs;
pub(crate) mod dns;
pub(crate) mod filter;
mod generator;
mod page;
mod pairs;
pub(crate) mod rate;

use crate::{cargo, invoker, setup};
use anyhow::{Context as _, Result, bail, ensure};
use pairs::median;
use std::process::Command;

#[derive(clap::Args)]
pub(crate) struct Options {
    /// What to measure
    #[arg(value_enum)]
    what: What,
    /// Paired rounds of each measurement: 31 for the filter, 9 for names, 3 for rates
    #[arg(long)]
    rounds: Option<usize>,
    /// Filter: permitted addresses, in rising order
    #[arg(long, value_delimiter = ',', default_values_t = [10, 1_000, 100_000])]
    permits: Vec<u32>,
    /// A tenth of the packets, results not written: shows that it runs
    #[arg(long)]
    quick: bool,
    /// Filter: these sides alone (none, nftables, egressd, device); results not written
    #[arg(long, value_enum)]
    side: Vec<filter::SideName>,
    /// Rate: in a guest of this kernel (6.1, 6.12), over ways of 20 and 80 ms, beside departure times that fq keeps
    #[arg(long)]
    guest: Option<String>,
    /// Set by the bench itself, once it runs as the release build
    #[arg(long, hide = true)]
    built: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum What {
    /// The packet and socket hooks, beside no filter and nftables
    Filter,
    /// Names, beside dnsmasq and unbound
    Dns,
    /// Limits, beside tbf and htb
    Rate,
}

impl Options {
    /// A tenth of it in a quick run.
    const fn count(&self, whole: u32) -> u32 {
        if self.quick { whole / 10 } else { whole }
    }
}

/// True when every goal is reached.
pub(crate) fn run(options: &Options) -> Result<bool> {
    if let Some(series) = &options.guest {
        ensure!(options.what == What::Rate, "--guest is for rates: cargo xtask bench rate --guest {series}");
        return rate::far::run(options, series);
    }
    if !options.built {
        return as_release(options);
    }
    match options.what {
        What::Filter => filter::run(options),
        What::Dns => dns::run(options),
        What::Rate => rate::run(options),
    }
}

/// A debug build would measure the compiler's switches: builds egressd and this program for release, and goes on there.
fn as_release(options: &Options) -> Result<bool> {
    setup::ready()?;
    ensure!(options.rounds != Some(0), "--rounds 0 measures nothing");
    if options.what == What::Filter {
        filter::check(options)?;
    }
    if !invoker::is_root() {
        bail!("the bench makes namespaces, cgroups and BPF programs: sudo make bench");
    }
    cargo::build_egressd(&["--release"])?;
    let built = cargo::executables(cargo::command(&["build", "--locked", "--release", "--package", "xtask"])?)?;
    let own = built.into_iter().find(|it| it.target == "xtask").context("cargo built no xtask")?;
    let status = Command::new(own.path).args(std::env::args_os().skip(1)).arg("--built").status()?;
    Ok(status.success())
}

/// Builds an example of the tests for release: it uses the library, and this program must not need the kernel half.
fn example(name: &str) -> Result<std::path::PathBuf> {
    let build = cargo::command(&["build", "--locked", "--release", "--package", "egress-tests", "--example", name])?;
    let built = cargo::executables(build)?;
    built.into_iter().find(|it| it.target == name).map(|it| it.path).with_context(|| format!("cargo built no {name}"))
}

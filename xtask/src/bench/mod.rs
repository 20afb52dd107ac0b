//! `cargo xtask bench filter`: what the filter costs beside no filter and beside nftables, in paired, interleaved rounds.
//!
//! CPU per packet and the median of a connect repeat to a few percent on a shared machine; throughput and tails do not,
//! so no goal is stated in them. Everything happens in own namespaces and is bounded in count.
#![expect(clippy::cast_precision_loss, reason = "times and sizes of a bench are far below 2^52")]

pub(crate) mod generator;
mod goals;
mod side;
mod startup;
mod table;

use crate::{cargo, invoker, setup};
use anyhow::{Context as _, Result, bail, ensure};
use generator::{Ask, Destinations, Measured};
use side::{Filter, Side};
pub(crate) use startup::look_up_and_print;
use std::process::Command;
use table::Results;

/// Rounds below which a median says nothing.
const FEWEST: usize = 9;
/// Many short rounds rather than few long ones: what else the machine does then meets both halves of a pair.
const ROUNDS: usize = 31;

#[derive(clap::Args)]
pub(crate) struct Options {
    /// What to measure
    #[arg(value_enum)]
    what: What,
    /// Paired rounds of each measurement
    #[arg(long, default_value_t = ROUNDS)]
    rounds: usize,
    /// Permitted addresses, in rising order
    #[arg(long, value_delimiter = ',', default_values_t = [10, 1_000, 100_000])]
    permits: Vec<u32>,
    /// A tenth of the packets, results not written: shows that it runs
    #[arg(long)]
    quick: bool,
    /// These sides alone (none, nftables, egressd, device); results not written
    #[arg(long, value_enum)]
    side: Vec<SideName>,
    /// Set by the bench itself, once it runs as the release build
    #[arg(long, hide = true)]
    built: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum What {
    Filter,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum SideName {
    None,
    Nftables,
    Egressd,
    Device,
}

impl Options {
    fn sides(&self) -> Vec<Filter> {
        let named = |filter: &Filter| match filter {
            // Every ratio is against it.
            Filter::None => true,
            Filter::Nftables => self.side.contains(&SideName::Nftables),
            Filter::Egressd => self.side.contains(&SideName::Egressd),
            Filter::EgressdDevice => self.side.contains(&SideName::Device),
        };
        Filter::ALL.into_iter().filter(|filter| self.side.is_empty() || named(filter)).collect()
    }

    /// A run that may replace the table in the documentation.
    fn is_whole(&self) -> bool {
        !self.quick && self.side.is_empty() && self.rounds >= FEWEST
    }
}

/// True when every goal is reached.
pub(crate) fn run(options: &Options) -> Result<bool> {
    if !options.built {
        return as_release(options);
    }
    let sides = options.sides();
    let mut results = Results::default();
    for &permitted in &options.permits {
        eprintln!("bench: {permitted} permitted addresses, {} sides, {} rounds", sides.len(), options.rounds);
        measure(options, &sides, permitted, &mut results)?;
    }
    if sides.contains(&Filter::Egressd) {
        startup::measure(options.rounds, &mut results)?;
    }
    let (text, reached) = results.render(&sides, &options.permits, options.rounds)?;
    println!("{text}");
    if options.is_whole() {
        table::write(&text)?;
    }
    Ok(reached)
}

/// A debug build would measure the compiler's switches: builds egressd and this program for release, and goes on there.
fn as_release(options: &Options) -> Result<bool> {
    setup::ready()?;
    ensure!(options.rounds > 0, "--rounds 0 measures nothing");
    ensure!(options.permits.is_sorted(), "--permits: in rising order");
    ensure!(
        options.permits.iter().all(|count| (1..=generator::MOST).contains(count)),
        "--permits: 1 to {}",
        generator::MOST
    );
    if !invoker::is_root() {
        bail!("the bench makes namespaces, cgroups and BPF programs: sudo make bench");
    }
    cargo::build_egressd(&["--release"])?;
    let built = cargo::executables(cargo::command(&["build", "--locked", "--release", "--package", "xtask"])?)?;
    let own = built.into_iter().find(|it| it.target == "xtask").context("cargo built no xtask")?;
    let status = Command::new(own.path).args(std::env::args_os().skip(1)).arg("--built").status()?;
    Ok(status.success())
}

/// What is measured, under the names of the table.
fn asks(permitted: u32, quick: bool) -> [(&'static str, Ask); 6] {
    let scale = if quick { 10 } else { 1 };
    let (packets, connects, bytes) = (20_000 / scale, 300 / scale, u64::from(100_000_000 / scale));
    let random = Destinations::Random(permitted);
    [
        (table::SEND, Ask::Send { count: packets }),
        (table::SENDTO, Ask::SendTo { count: packets, to: Destinations::Fixed }),
        (table::SENDTO_RANDOM, Ask::SendTo { count: packets, to: random }),
        (table::CONNECT, Ask::Connect { count: connects, to: Destinations::Fixed }),
        (table::CONNECT_RANDOM, Ask::Connect { count: connects, to: random }),
        (table::BULK, Ask::Bulk { bytes }),
    ]
}

fn measure(options: &Options, filters: &[Filter], permitted: u32, results: &mut Results) -> Result<()> {
    let mut sides = filters.iter().map(|filter| Side::new(*filter, permitted)).collect::<Result<Vec<_>>>()?;
    for side in &sides {
        if let Some(pid) = side.agent_pid().filter(|_| side.filter == Filter::Egressd) {
            results.kernel_bytes.insert(permitted, startup::kernel_bytes(pid)?);
        }
    }
    let asks = asks(permitted, options.quick);
    // The first round warms caches, neighbours and clocks.
    for round in 0..=options.rounds {
        for (name, ask) in asks {
            // Whoever comes first in a round is another one each time.
            let count = sides.len();
            sides.rotate_left(round % count.max(1));
            for side in &mut sides {
                let Measured { cpu, p50_us, .. } = side.ask(ask)?;
                if round > 0 {
                    let value = if matches!(ask, Ask::Connect { .. }) { p50_us } else { cpu };
                    results.push(name, permitted, side.filter, round, value);
                }
            }
        }
    }
    Ok(())
}

/// The middle of the values, or the mean of the two middle ones; 0 of none.
pub(crate) fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match (values.get(middle.wrapping_sub(1)), values.get(middle)) {
        (Some(low), Some(high)) if values.len().is_multiple_of(2) => f64::midpoint(*low, *high),
        (_, Some(high)) => *high,
        _ => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::median;

    #[test]
    #[expect(clippy::float_cmp, reason = "the values are exact")]
    fn a_median_is_the_middle() {
        assert_eq!(median(&mut [3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&mut [4.0, 1.0, 3.0, 2.0]), 2.5);
        assert_eq!(median(&mut [7.0]), 7.0);
        assert_eq!(median(&mut []), 0.0);
    }
}

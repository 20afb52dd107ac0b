//! `cargo xtask bench filter`: what the filter costs beside no filter and beside nftables.
//!
//! No goal is stated in throughput or tails, which do not repeat.

pub(crate) mod generator;
mod goals;
mod side;
mod startup;
mod table;

use super::{Options, median, page};
use anyhow::{Result, ensure};
use generator::{Ask, Destinations, Measured};
use side::{Filter, Side};
pub(crate) use startup::{look_up_and_print, starts_and_print};
use table::Results;

/// Rounds below which a median says nothing.
const FEWEST: usize = 9;
/// Many short rounds rather than few long ones: what else the machine does then meets both halves of a pair.
const ROUNDS: usize = 31;

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum SideName {
    None,
    Nftables,
    Egressd,
    Device,
}

impl Options {
    fn rounds_of_filter(&self) -> usize {
        self.rounds.unwrap_or(ROUNDS)
    }

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
        !self.quick && self.side.is_empty() && self.rounds_of_filter() >= FEWEST
    }
}

/// Refuses what could not be measured, before anything is built.
pub(super) fn check(options: &Options) -> Result<()> {
    ensure!(options.permits.is_sorted(), "--permits: in rising order");
    ensure!(
        options.permits.iter().all(|count| (1..=generator::MOST).contains(count)),
        "--permits: 1 to {}",
        generator::MOST
    );
    Ok(())
}

/// True when every goal is reached.
pub(super) fn run(options: &Options) -> Result<bool> {
    let (sides, rounds) = (options.sides(), options.rounds_of_filter());
    let mut results = Results::default();
    for &permitted in &options.permits {
        eprintln!("bench: {permitted} permitted addresses, {} sides, {rounds} rounds", sides.len());
        measure(options, &sides, permitted, &mut results)?;
    }
    if sides.contains(&Filter::Egressd) {
        startup::measure(rounds, &mut results)?;
    }
    let (text, reached) = results.render(&sides, &options.permits, rounds)?;
    println!("{text}");
    if options.is_whole() {
        page::write(&text)?;
    }
    Ok(reached)
}

/// What is measured, under the names of the table.
fn asks(permitted: u32, options: &Options) -> [(&'static str, Ask); 7] {
    let (packets, connects) = (options.count(20_000), options.count(300));
    let bytes = u64::from(options.count(100_000_000));
    let random = Destinations::Random(permitted);
    [
        (table::SEND, Ask::Send { count: packets }),
        (table::SENDTO, Ask::SendTo { count: packets, to: Destinations::Fixed }),
        (table::SENDTO_RANDOM, Ask::SendTo { count: packets, to: random }),
        (table::CONNECT, Ask::Connect { count: connects, to: Destinations::Fixed }),
        (table::CONNECT_RANDOM, Ask::Connect { count: connects, to: random }),
        (table::BULK, Ask::Bulk { bytes }),
        (table::EXCHANGE, Ask::Exchange { count: options.count(5000) }),
    ]
}

fn measure(options: &Options, filters: &[Filter], permitted: u32, results: &mut Results) -> Result<()> {
    let mut sides = filters.iter().map(|filter| Side::new(*filter, permitted)).collect::<Result<Vec<_>>>()?;
    for side in &sides {
        if let Some(pid) = side.agent_pid().filter(|_| side.filter == Filter::Egressd) {
            results.kernel_bytes.insert(permitted, startup::kernel_bytes(pid)?);
        }
    }
    let asks = asks(permitted, options);
    // The first round warms caches, neighbours and clocks.
    for round in 0..=options.rounds_of_filter() {
        for (name, ask) in asks {
            // Whoever comes first in a round is another one each time.
            let count = sides.len();
            sides.rotate_left(round % count.max(1));
            for side in &mut sides {
                let Measured { cpu, p50_us, .. } = side.ask(ask)?;
                if round > 0 {
                    let value = if matches!(ask, Ask::Connect { .. }) { p50_us } else { cpu };
                    results.pairs.push(name, (permitted, side.filter), round, value);
                }
            }
        }
    }
    Ok(())
}

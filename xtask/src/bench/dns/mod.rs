//! `cargo xtask bench dns`: what a look-up costs beside dnsmasq, dnsmasq that fills an nftables set, unbound, and a process that
//! only hands on.
//!
//! Every resolver has a namespace of its own with the same upstream in it, one thread, and the same questions.

mod forwarder;
mod generator;
mod messages;
mod place;
mod side;
mod table;
mod upstream;

use super::{Options, median, page};
use crate::bench::pairs::Pairs;
use anyhow::{Context as _, Result};
pub(crate) use forwarder::forward;
pub(crate) use generator::serve;
use generator::{Ask, Kind};
use side::{Resolver, Side};
use std::collections::BTreeMap;

/// Rounds below which a median says nothing.
const FEWEST: usize = 5;
const ROUNDS: usize = 9;
/// Questions that are under way at a time where throughput is measured.
const OUTSTANDING: u32 = 100;
/// Sandboxes of one idle process.
const IDLE: usize = 100;

/// Everything that was measured.
struct Results {
    pairs: Pairs<Resolver>,
    /// Single figures.
    figures: BTreeMap<&'static str, f64>,
}

/// True when every goal is reached.
pub(super) fn run(options: &Options) -> Result<bool> {
    let rounds = options.rounds.unwrap_or(ROUNDS);
    let mut results = Results { pairs: Pairs::new(), figures: BTreeMap::new() };
    let program = super::example("names")?;
    let idle_kib = side::idle(&program, IDLE).context("idle sandboxes")?;
    results.figures.insert(table::IDLE_MIB, idle_kib / 1024.0);
    let mut sides =
        Resolver::ALL.map(|resolver| Side::new(resolver, &program)).into_iter().collect::<Result<Vec<_>>>()?;
    eprintln!("bench: {} resolvers, {rounds} rounds", sides.len());
    // The first round warms caches, neighbours and clocks.
    for round in 0..=rounds {
        for (row, ask) in asks(options) {
            // Whoever comes first in a round is another one each time.
            sides.rotate_left(round % Resolver::ALL.len());
            for side in sides.iter_mut().filter(|side| side.resolver.knows(ask.kind)) {
                let before_us = side.cpu_us()?;
                let measured = side.ask(ask).with_context(|| format!("{}: {row}", side.resolver.name()))?;
                if round > 0 {
                    results.pairs.push(row, side.resolver, round, measured);
                    if row == table::MISS_QPS {
                        let each_us = (side.cpu_us()? - before_us) / f64::from(ask.count);
                        results.pairs.push(table::MISS_CPU_US, side.resolver, round, each_us);
                    }
                }
            }
        }
    }
    if let Some(side) = sides.iter_mut().find(|side| side.resolver == Resolver::Egressd) {
        match growth_mib(side, options) {
            // So few questions have not seen every name yet: what grows is what is known of them.
            Ok(_) if options.quick => {}
            Ok(growth) => drop(results.figures.insert(table::GROWTH_MIB, growth)),
            // The rounds stand without it.
            Err(error) => eprintln!("bench: growth: {error:#}"),
        }
    }
    drop(sides);
    let (text, reached) = table::render(&results, rounds)?;
    println!("{text}");
    if !options.quick && rounds >= FEWEST {
        page::write(&text)?;
    }
    Ok(reached)
}

fn asks(options: &Options) -> [(&'static str, Ask); 7] {
    let one = |kind, count| Ask { kind, count: options.count(count), outstanding: 1 };
    let many = |kind, count| Ask { kind, count: options.count(count), outstanding: OUTSTANDING };
    [
        (table::MISS_US, one(Kind::Miss, 500)),
        (table::MANY_US, one(Kind::Many, 200)),
        (table::HIT_US, one(Kind::Hit, 1_000)),
        (table::DENIED_US, one(Kind::Denied, 1_000)),
        (table::MISS_QPS, many(Kind::Miss, 5_000)),
        (table::HIT_QPS, many(Kind::Hit, 20_000)),
        (table::DENIED_QPS, many(Kind::Denied, 20_000)),
    ]
}

/// How much a resolver grows from its 10^5th question to its 10^6th.
fn growth_mib(side: &mut Side, options: &Options) -> Result<f64> {
    let mut load = |count: u32| -> Result<f64> {
        for kind in [Kind::Miss, Kind::Hit, Kind::Denied] {
            side.ask(Ask { kind, count: options.count(count / 3), outstanding: OUTSTANDING })?;
        }
        side.resident_kib()
    };
    let before = load(100_000)?;
    Ok((load(900_000)? - before) / 1024.0)
}

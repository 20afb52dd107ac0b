//! `cargo xtask bench rate`: how exactly a limit is kept, beside tbf and htb.

pub(crate) mod far;
mod plot;
mod side;
mod table;

use super::{
    Options,
    costs::{self, Costs},
    median, page,
    pairs::Pairs,
};
use anyhow::{Context as _, Result};
use side::{Kind, Limiter, Run, Side};
use std::{collections::BTreeMap, path::Path, time::Duration};

/// Rounds below which a median says nothing.
const FEWEST: usize = 3;
const PLOT: &str = "docs/rate.svg";

/// One line of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Row {
    mbit: u32,
    kind: Kind,
    flows: u32,
}

impl Row {
    fn name(&self) -> String {
        format!("{} {} x{}", self.mbit, self.kind.name(), self.flows)
    }
}

/// Everything that was measured.
struct Results {
    ratios: Pairs<Limiter, Row>,
    first: BTreeMap<Limiter, f64>,
    /// Runs in which the kernel gave a connection up; they have no ratio.
    given_up: BTreeMap<Limiter, u32>,
    /// p50 in milliseconds, and how many were lost.
    round_trips: BTreeMap<Limiter, (f64, u32)>,
    slices: BTreeMap<Limiter, Vec<f64>>,
    shown_mbit: u32,
    measured: Vec<Row>,
    costs: Costs,
}

impl Results {
    fn rows(&self) -> impl Iterator<Item = Row> {
        self.measured.iter().copied()
    }
}

/// How long a row is measured, behind what it takes to settle.
fn seconds(row: Row) -> u32 {
    // A fiftieth of ten seconds is the bucket, which ten sockets may have filled or emptied in that time, and what a socket lost comes
    // late, with all behind it. At 1 Mbit/s one packet of 64 KiB takes half a second.
    match (row.kind, row.mbit) {
        (Kind::Tcp, 1) => 24,
        (Kind::Tcp, 10) => 10,
        (Kind::Udp, 1) => 3,
        _ => 1,
    }
}

/// One round. TCP that waits for its rate leaves the CPUs idle, so all can send at once; datagrams that are dropped do not.
fn runs(sides: &mut [Side], row: Row, settled: Duration) -> Vec<(Limiter, Option<Run>)> {
    let time = settled + settled * seconds(row) / 2;
    let run = |side: &mut Side| (side.limiter, side.sender.run(row.kind, row.flows, time, settled));
    if row.mbit > 10 || row.kind == Kind::Udp {
        return sides.iter_mut().map(run).collect();
    }
    std::thread::scope(|scope| {
        let running: Vec<_> = sides.iter_mut().map(|side| scope.spawn(|| run(side))).collect();
        running.into_iter().map(|run| run.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    })
}

/// True when every goal is reached.
pub(super) fn run(options: &Options) -> Result<bool> {
    let rounds = options.rounds.unwrap_or(if options.quick { 1 } else { FEWEST });
    let (rates, flows): (&[u32], &[u32]) =
        if options.quick { (&[10, 100], &[1]) } else { (&[1, 10, 100, 1000], &[1, 10]) };
    let settled = Duration::from_millis(if options.quick { 500 } else { 2000 });
    let mut results = Results {
        ratios: Pairs::new(),
        first: BTreeMap::new(),
        given_up: Limiter::ALL.map(|limiter| (limiter, 0)).into(),
        round_trips: BTreeMap::new(),
        slices: BTreeMap::new(),
        shown_mbit: 100,
        measured: Vec::new(),
        costs: costs::measure(options.count(100) as usize)?,
    };
    eprintln!("bench: {} limiters, {rates:?} Mbit/s, {rounds} rounds", Limiter::ALL.len());
    for &mbit in rates {
        let mut sides = Limiter::ALL.map(|limiter| Side::new(limiter, mbit));
        for kind in [Kind::Tcp, Kind::Udp] {
            for &flows in flows {
                let row = Row { mbit, kind, flows };
                results.measured.push(row);
                for round in 1..=rounds {
                    // Whoever comes first in a round is another one each time.
                    sides.rotate_left(1);
                    for (limiter, run) in runs(&mut sides, row, settled) {
                        let Some(run) = run else {
                            *results.given_up.entry(limiter).or_default() += 1;
                            continue;
                        };
                        results.ratios.push(row, limiter, round, run.ratio);
                        let first = results.first.entry(limiter).or_default();
                        *first = first.max(run.first - 65536.0 * 8.0 / (f64::from(mbit) * 1e6));
                        if (mbit, kind, flows) == (results.shown_mbit, Kind::Tcp, 1) {
                            results.slices.insert(limiter, run.slices);
                        }
                    }
                }
            }
        }
        if mbit == results.shown_mbit {
            for side in &mut sides {
                let (mut times, lost) =
                    side.sender.round_trips(options.count(500)).with_context(|| side.limiter.name())?;
                results.round_trips.insert(side.limiter, (median(&mut times), lost));
            }
        }
    }
    let (text, reached) = table::render(&results, rounds)?;
    println!("{text}");
    let whole = !options.quick && rounds >= FEWEST;
    plot::write(&results, if whole { Path::new(PLOT) } else { Path::new("target/rate.svg") })?;
    if whole {
        page::write(&text)?;
    }
    Ok(reached)
}

//! The part of the page about rates.

use super::{
    Results,
    page::{self, Goal, Limit, machine},
    seconds,
    side::Limiter,
};
use std::fmt::{self, Write as _};

/// What may be achieved of what is configured.
const LEAST: f64 = 0.95;
const MOST: f64 = 1.02;

/// The text, and whether every goal that was measured is reached.
pub(super) fn render(results: &Results, rounds: usize) -> Result<(String, bool), fmt::Error> {
    let mut part = String::new();
    writeln!(part, "## Rate\n\nWritten by `cargo xtask bench rate` on {}.\n", machine())?;
    writeln!(
        part,
        "IP bytes that came to the sink, to those of the configured rate, behind the first two seconds; medians of {rounds} rounds. \
         tbf has 5 ms of burst and waits up to 50 ms, htb has its defaults; both limit frames on the sender's device. At 1000 Mbit/s datagrams \
         come at 1.3 times the rate, 40 to a call (UDP_SEGMENT); below, as fast as calls are. \
         **Bold**: a row of egressd's that misses {LEAST} to {MOST}.\n\n\
         ![what came over time](rate.svg)\n"
    )?;
    write!(part, "| Mbit/s, sockets | seconds |")?;
    for limiter in Limiter::ALL {
        write!(part, " {} |", limiter.name())?;
    }
    writeln!(part, "\n|---|---|{}", "---|".repeat(Limiter::ALL.len()))?;
    for row in results.rows() {
        write!(part, "| {} | {} |", row.name(), seconds(row))?;
        for limiter in Limiter::ALL {
            match results.ratios.median(row, limiter) {
                Some(ratio) if limiter == Limiter::Egressd && !(LEAST..=MOST).contains(&ratio) => {
                    write!(part, " **{ratio:.3}** |")?;
                }
                Some(ratio) => write!(part, " {ratio:.3} |")?,
                None => write!(part, " |")?,
            }
        }
        writeln!(part)?;
    }
    let line = |part: &mut String, what: &str, value: &dyn Fn(Limiter) -> Option<String>| {
        write!(part, "| {what} | |")?;
        for limiter in Limiter::ALL {
            write!(part, " {} |", value(limiter).unwrap_or_default())?;
        }
        writeln!(part)
    };
    line(&mut part, "first second, less 64 KiB, worst", &|limiter| {
        Some(format!("{:.2}", results.first.get(&limiter)?))
    })?;
    let p50 = |limiter| Some(format!("{:.2}", results.round_trips.get(&limiter)?.0));
    line(&mut part, "round trip beside a flow at 100 Mbit/s, p50 ms", &p50)?;
    let lost = |limiter| Some(results.round_trips.get(&limiter)?.1.to_string());
    line(&mut part, "probes lost", &lost)?;
    line(&mut part, "runs in which the kernel gave a connection up", &|limiter| {
        Some(results.given_up.get(&limiter)?.to_string())
    })?;
    writeln!(part, "\n### Goals of rates")?;
    let reached = page::goals(&mut part, &goals(results))?;
    Ok((part, reached))
}

fn goals(results: &Results) -> Vec<Goal> {
    let own = Limiter::Egressd;
    let ratios: Vec<f64> = results.rows().filter_map(|row| results.ratios.median(row, own)).collect();
    let goal = |what, limit, measured, unit| Goal { what, limit, measured, unit };
    let round_trips = results.round_trips.get(&own);
    let added = results.costs.limited_ns - results.costs.program_ns;
    vec![
        goal("achieved, the least", Limit::AtLeast(LEAST), ratios.iter().copied().reduce(f64::min), "x"),
        goal("achieved, the most", Limit::AtMost(MOST), ratios.iter().copied().reduce(f64::max), "x"),
        goal("first second, less 64 KiB", Limit::AtMost(1.25), results.first.get(&own).copied(), "x"),
        goal("round trip p50 at 100 Mbit/s", Limit::AtMost(1.0), round_trips.map(|(p50, _)| *p50), "ms"),
        goal("probes lost", Limit::AtMost(0.0), round_trips.map(|(_, lost)| f64::from(*lost)), ""),
        goal("connections given up", Limit::AtMost(0.0), results.given_up.get(&own).copied().map(f64::from), ""),
        goal("a limit on the packet path", Limit::AtMost(70.0), Some(added), "ns"),
        goal("bytes that two CPUs' meter lost", Limit::AtMost(0.0), Some(results.costs.lost_bytes), ""),
    ]
}

//! The part of the page about long ways.

use super::{Keeper, Path, Results, Row, page::machine};
use std::{
    collections::BTreeSet,
    fmt::{self, Write as _},
};

pub(super) fn render(results: &Results, series: &str, rounds: usize) -> Result<String, fmt::Error> {
    let mut part = String::new();
    writeln!(
        part,
        "## Rate over long ways\n\nWritten by `cargo xtask bench rate --guest {series}` on {}, which emulates the guest: one \
         processor, low rates.\n",
        machine()
    )?;
    writeln!(
        part,
        "IP bytes that came to the sink to those of the configured rate, behind the first two seconds (in brackets: in the first one); \
         medians of {rounds} rounds. netem delays both directions. Departure times: a program of the bench's own gives each packet of the \
         cgroup its turn (`skb->tstamp`), fq on the device holds it until then, and what would wait for more than 200 ms is dropped. \
         Datagrams come at one and a half times the rate."
    )?;
    let rows: BTreeSet<Row> = results.firsts.keys().map(|(row, _)| *row).collect();
    let paths: BTreeSet<Path> = rows.iter().map(|row| row.path).collect();
    for path in paths {
        write!(part, "\n| {} Mbit/s, {} ms |", path.mbit, path.way_ms)?;
        for keeper in Keeper::ALL {
            write!(part, " {} |", keeper.name())?;
        }
        writeln!(part, "\n|---|{}", "---|".repeat(Keeper::ALL.len()))?;
        for row in rows.iter().filter(|row| row.path == path) {
            write!(part, "| {} x{} |", row.kind.name(), row.flows)?;
            for keeper in Keeper::ALL {
                let (ratio, first) = (results.ratios.median(*row, keeper), results.first(*row, keeper));
                write!(part, " {:.3} ({:.2}) |", ratio.unwrap_or_default(), first.unwrap_or_default())?;
            }
            writeln!(part)?;
        }
        write!(part, "| round trip beside cubic x1, p50 ms; probes lost |")?;
        for keeper in Keeper::ALL {
            let lost = results.lost.get(&(path, keeper)).copied().unwrap_or_default();
            write!(part, " {:.1}; {lost} |", results.probe(path, keeper).unwrap_or_default())?;
        }
        writeln!(part)?;
    }
    Ok(part)
}

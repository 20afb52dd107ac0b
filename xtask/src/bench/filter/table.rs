//! Results, paired by round, and the page that they become.

use super::{
    goals,
    page::{self, digits, machine},
    side::Filter,
};
use crate::bench::pairs::Pairs;
use std::{
    collections::BTreeMap,
    fmt::{self, Write as _},
};

pub(super) const SEND: &str = "UDP send, ns CPU per packet";
pub(super) const SENDTO: &str = "UDP sendto, ns CPU per packet";
pub(super) const SENDTO_RANDOM: &str = "UDP sendto, random destinations";
pub(super) const CONNECT: &str = "TCP connect, p50 us";
pub(super) const CONNECT_RANDOM: &str = "TCP connect, random destinations";
pub(super) const BULK: &str = "TCP stream, s CPU per GB";
pub(super) const EXCHANGE: &str = "TCP request and answer, ns CPU";
const ROWS: [&str; 7] = [SEND, SENDTO, SENDTO_RANDOM, CONNECT, CONNECT_RANDOM, BULK, EXCHANGE];

/// Everything that was measured.
pub(super) struct Results {
    /// By permitted addresses and side.
    pub(super) pairs: Pairs<(u32, Filter)>,
    /// Kernel memory of the agent's maps and programs, by permitted addresses.
    pub(super) kernel_bytes: BTreeMap<u32, u64>,
    /// Single figures, each with its unit in its name.
    pub(super) figures: BTreeMap<&'static str, f64>,
}

impl Default for Results {
    fn default() -> Self {
        Self { pairs: Pairs::new(), kernel_bytes: BTreeMap::new(), figures: BTreeMap::new() }
    }
}

impl Results {
    /// To the same without a filter.
    pub(super) fn ratio(&self, row: &'static str, permitted: u32, filter: Filter) -> Option<f64> {
        self.pairs.ratio((row, (permitted, filter)), (row, (permitted, Filter::None)))
    }

    /// Above the same without a filter.
    pub(super) fn added(&self, row: &'static str, permitted: u32, filter: Filter) -> Option<f64> {
        self.pairs.added((row, (permitted, filter)), (row, (permitted, Filter::None)))
    }

    /// The part of the page, and whether every goal that was measured is reached.
    pub(super) fn render(&self, sides: &[Filter], sizes: &[u32], rounds: usize) -> Result<(String, bool), fmt::Error> {
        let mut page = String::new();
        writeln!(page, "## Filter\n\nWritten by `cargo xtask bench filter` on {}.\n", machine())?;
        writeln!(
            page,
            "Medians of {rounds} paired rounds; the ratio is the median of the rounds' ratios to no filter. Each side has its \
             own veth pair, cgroup and process, and all live at once. The CPU clock includes the softirq work that a packet \
             causes. nftables: a hash set and `socket cgroupv2` in an output chain. egressd: its cgroup hooks, attached by \
             the command line; + device: its TC program on the host-side veth too."
        )?;
        for permitted in sizes {
            self.section(&mut page, *permitted, sides)?;
        }
        writeln!(page, "\n### Goals of the filter")?;
        let reached = page::goals(&mut page, &goals::all(self, sizes))?;
        Ok((page, reached))
    }

    fn section(&self, page: &mut String, permitted: u32, sides: &[Filter]) -> fmt::Result {
        write!(page, "\n### {permitted} permitted addresses\n\n| |")?;
        for side in sides {
            write!(page, " {} |", side.name())?;
        }
        writeln!(page, "\n|---|{}", "---|".repeat(sides.len()))?;
        for row in ROWS {
            write!(page, "| {row} |")?;
            for side in sides {
                match (self.pairs.median(row, (permitted, *side)), self.ratio(row, permitted, *side)) {
                    (Some(value), _) if *side == Filter::None => write!(page, " {} |", digits(value))?,
                    (Some(value), Some(ratio)) => write!(page, " {} ({ratio:.3}x) |", digits(value))?,
                    _ => write!(page, " |")?,
                }
            }
            writeln!(page)?;
        }
        if let Some(bytes) = self.kernel_bytes.get(&permitted) {
            writeln!(page, "\nKernel memory of egressd's maps and programs: {:.2} MB.", *bytes as f64 / 1e6)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn three_rounds() -> Results {
        let mut results = Results::default();
        for (round, (without, with)) in [(100.0, 110.0), (200.0, 220.0), (100.0, 150.0)].into_iter().enumerate() {
            results.pairs.push(SEND, (10, Filter::None), round + 1, without);
            results.pairs.push(SEND, (10, Filter::Egressd), round + 1, with);
        }
        results
    }

    #[test]
    fn the_page_shows_what_was_measured_and_no_more() {
        let (page, _) = three_rounds().render(&[Filter::None, Filter::Egressd], &[10], 3).unwrap();
        assert!(page.contains("| UDP send, ns CPU per packet | 100 | 150 (1.100x) |"), "{page}");
        assert!(page.contains("| not measured |"), "{page}");
        assert!(!page.contains("Kernel memory of egressd's maps"), "{page}");
    }
}

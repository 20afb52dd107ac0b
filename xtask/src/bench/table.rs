//! Results, paired by round, and the page that they become.

use super::{
    goals::{self, Goal},
    median,
    side::Filter,
};
use anyhow::{Context as _, Result};
use std::{
    collections::BTreeMap,
    fmt::{self, Write as _},
    fs,
    process::Command,
};

pub(super) const SEND: &str = "UDP send, ns CPU per packet";
pub(super) const SENDTO: &str = "UDP sendto, ns CPU per packet";
pub(super) const SENDTO_RANDOM: &str = "UDP sendto, random destinations";
pub(super) const CONNECT: &str = "TCP connect, p50 us";
pub(super) const CONNECT_RANDOM: &str = "TCP connect, random destinations";
pub(super) const BULK: &str = "TCP stream, s CPU per GB";
const ROWS: [&str; 6] = [SEND, SENDTO, SENDTO_RANDOM, CONNECT, CONNECT_RANDOM, BULK];
const PAGE: &str = "docs/benchmarks.md";

/// Everything that was measured.
#[derive(Default)]
pub(super) struct Results {
    /// By row, permitted addresses and side; one value per round, in order.
    values: BTreeMap<(&'static str, u32, Filter), Vec<f64>>,
    /// Kernel memory of the agent's maps and programs, by permitted addresses.
    pub(super) kernel_bytes: BTreeMap<u32, u64>,
    /// Single figures, each with its unit in its name.
    pub(super) figures: BTreeMap<&'static str, f64>,
}

impl Results {
    /// Adds the value of a round, counted from 1. Rounds come in order.
    pub(super) fn push(&mut self, row: &'static str, permitted: u32, filter: Filter, round: usize, value: f64) {
        let values = self.values.entry((row, permitted, filter)).or_default();
        debug_assert_eq!(values.len() + 1, round);
        values.push(value);
    }

    /// Median of a side alone.
    pub(super) fn median(&self, row: &'static str, permitted: u32, filter: Filter) -> Option<f64> {
        self.values.get(&(row, permitted, filter)).map(|values| median(&mut values.clone()))
    }

    /// Median of what `combine` makes of each round's value and the same round's without a filter.
    fn paired(&self, row: &'static str, permitted: u32, filter: Filter, combine: fn(f64, f64) -> f64) -> Option<f64> {
        let with = self.values.get(&(row, permitted, filter))?;
        let without = self.values.get(&(row, permitted, Filter::None))?;
        let mut pairs: Vec<f64> = with.iter().zip(without).map(|(with, without)| combine(*with, *without)).collect();
        Some(median(&mut pairs))
    }

    pub(super) fn ratio(&self, row: &'static str, permitted: u32, filter: Filter) -> Option<f64> {
        self.paired(row, permitted, filter, |with, without| with / without)
    }

    pub(super) fn added(&self, row: &'static str, permitted: u32, filter: Filter) -> Option<f64> {
        self.paired(row, permitted, filter, |with, without| with - without)
    }

    /// The page, and whether every goal that was measured is reached.
    pub(super) fn render(&self, sides: &[Filter], sizes: &[u32], rounds: usize) -> Result<(String, bool), fmt::Error> {
        let mut page = String::new();
        writeln!(page, "# Benchmarks\n\nWritten by `cargo xtask bench filter` on {}.\n", machine())?;
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
        let goals = goals::all(self, sizes);
        writeln!(page, "\n## Goals\n\n| goal | at most | measured | |\n|---|---|---|---|")?;
        for Goal { what, at_most, measured, unit } in &goals {
            let (shown, met) = match measured {
                Some(value) if value <= at_most => (format!("{value:.2} {unit}"), "reached"),
                Some(value) => (format!("{value:.2} {unit}"), "**missed**"),
                None => ("not measured".to_owned(), ""),
            };
            writeln!(page, "| {what} | {at_most} {unit} | {shown} | {met} |")?;
        }
        let reached = goals.iter().all(|goal| goal.measured.is_none_or(|value| value <= goal.at_most));
        Ok((page, reached))
    }

    fn section(&self, page: &mut String, permitted: u32, sides: &[Filter]) -> fmt::Result {
        write!(page, "\n## {permitted} permitted addresses\n\n| |")?;
        for side in sides {
            write!(page, " {} |", side.name())?;
        }
        writeln!(page, "\n|---|{}", "---|".repeat(sides.len()))?;
        for row in ROWS {
            write!(page, "| {row} |")?;
            for side in sides {
                match (self.median(row, permitted, *side), self.ratio(row, permitted, *side)) {
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

/// Three significant digits are what the rounds carry.
fn digits(value: f64) -> String {
    if value >= 100.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}

/// Kernel, CPU and how many of it.
fn machine() -> String {
    let kernel = Command::new("uname").arg("-rm").output().map(|output| output.stdout).unwrap_or_default();
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let models: Vec<_> = cpus.lines().filter_map(|line| line.strip_prefix("model name")).collect();
    let model = models.first().and_then(|line| line.split_once(':')).map_or("unknown CPU", |(_, model)| model.trim());
    format!("Linux {}, {} x {model}", String::from_utf8_lossy(&kernel).trim(), models.len())
}

pub(super) fn write(page: &str) -> Result<()> {
    fs::create_dir_all("docs")?;
    fs::write(PAGE, page).with_context(|| format!("cannot write {PAGE}"))?;
    eprintln!("bench: wrote {PAGE}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn three_rounds() -> Results {
        let mut results = Results::default();
        for (round, (without, with)) in [(100.0, 110.0), (200.0, 220.0), (100.0, 150.0)].into_iter().enumerate() {
            results.push(SEND, 10, Filter::None, round + 1, without);
            results.push(SEND, 10, Filter::Egressd, round + 1, with);
        }
        results
    }

    #[test]
    fn ratios_are_paired_by_round() {
        let ratio = three_rounds().ratio(SEND, 10, Filter::Egressd).unwrap();
        assert!((ratio - 1.1).abs() < 1e-9, "{ratio}");
        let added = three_rounds().added(SEND, 10, Filter::Egressd).unwrap();
        assert!((added - 20.0).abs() < 1e-9, "{added}");
        assert_eq!(three_rounds().ratio(SEND, 10, Filter::Nftables), None);
    }

    #[test]
    fn the_page_shows_what_was_measured_and_no_more() {
        let (page, _) = three_rounds().render(&[Filter::None, Filter::Egressd], &[10], 3).unwrap();
        assert!(page.contains("| UDP send, ns CPU per packet | 100 | 150 (1.100x) |"), "{page}");
        assert!(page.contains("| not measured |"), "{page}");
        assert!(!page.contains("Kernel memory of egressd's maps"), "{page}");
    }
}

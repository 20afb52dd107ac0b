//! The page in the documentation: each bench writes its own part and leaves the others'.

use anyhow::{Context as _, Result};
use std::{
    fmt::{self, Write as _},
    fs,
    process::Command,
};

const PAGE: &str = "docs/benchmarks.md";
const TITLE: &str = "# Benchmarks\n";

/// A limit.
#[derive(Clone, Copy)]
pub(super) enum Limit {
    AtMost(f64),
    AtLeast(f64),
}

/// One figure and its limit.
pub(super) struct Goal {
    pub(super) what: &'static str,
    pub(super) limit: Limit,
    /// `None`: this run did not measure it.
    pub(super) measured: Option<f64>,
    pub(super) unit: &'static str,
}

impl Goal {
    fn is_reached(&self, value: f64) -> bool {
        match self.limit {
            Limit::AtMost(most) => value <= most,
            Limit::AtLeast(least) => value >= least,
        }
    }
}

/// Writes the table of goals; true where every goal that was measured is reached.
pub(super) fn goals(part: &mut String, goals: &[Goal]) -> Result<bool, fmt::Error> {
    writeln!(part, "\n| goal | limit | measured | |\n|---|---|---|---|")?;
    for goal in goals {
        let limit = match goal.limit {
            Limit::AtMost(most) => format!("at most {most}"),
            Limit::AtLeast(least) => format!("at least {least}"),
        };
        let (shown, met) = match goal.measured {
            Some(value) if goal.is_reached(value) => (format!("{value:.2} {}", goal.unit), "reached"),
            Some(value) => (format!("{value:.2} {}", goal.unit), "**missed**"),
            None => ("not measured".to_owned(), ""),
        };
        writeln!(part, "| {} | {limit} {} | {shown} | {met} |", goal.what, goal.unit)?;
    }
    Ok(goals.iter().all(|goal| goal.measured.is_none_or(|value| goal.is_reached(value))))
}

/// Three significant digits are what the rounds carry.
pub(super) fn digits(value: f64) -> String {
    if value >= 100.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}

/// Kernel, CPU and how many of it.
pub(super) fn machine() -> String {
    let kernel = Command::new("uname").arg("-rm").output().map(|output| output.stdout).unwrap_or_default();
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let models: Vec<_> = cpus.lines().filter_map(|line| line.strip_prefix("model name")).collect();
    let model = models.first().and_then(|line| line.split_once(':')).map_or("unknown CPU", |(_, model)| model.trim());
    format!("Linux {}, {} x {model}", String::from_utf8_lossy(&kernel).trim(), models.len())
}

/// Puts `part`, which begins with a heading of the second level, in the place of the part under the same heading.
pub(super) fn write(part: &str) -> Result<()> {
    let before = fs::read_to_string(PAGE).unwrap_or_default();
    fs::create_dir_all("docs")?;
    fs::write(PAGE, replaced(&before, part)).with_context(|| format!("cannot write {PAGE}"))?;
    eprintln!("bench: wrote {PAGE}");
    Ok(())
}

fn replaced(page: &str, part: &str) -> String {
    let heading = part.lines().next().unwrap_or_default();
    let parts: Vec<&str> = page.split("\n## ").skip(1).collect();
    let others = parts.iter().filter(|other| other.lines().next() != heading.strip_prefix("## "));
    let others = others.map(|other| format!("## {}\n", other.trim_end()));
    // In one order, whichever was measured last.
    let mut all: Vec<String> = others.chain([format!("{}\n", part.trim_end())]).collect();
    all.sort();
    format!("{TITLE}\n{}", all.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_takes_its_own_place_alone() {
        let first = replaced("# Benchmarks\n\n<!-- nothing yet -->\n", "## Names\n\nfast\n\n### More\n\nx\n");
        assert_eq!(first, "# Benchmarks\n\n## Names\n\nfast\n\n### More\n\nx\n");
        let both = replaced(&first, "## Filter\n\nslow\n");
        assert_eq!(both, "# Benchmarks\n\n## Filter\n\nslow\n\n## Names\n\nfast\n\n### More\n\nx\n");
        assert_eq!(replaced(&both, "## Filter\n\nslow\n"), both);
    }

    #[test]
    fn a_goal_that_was_not_measured_is_told_and_does_not_count() {
        let mut part = String::new();
        let goal = |limit, measured| Goal { what: "it", limit, measured, unit: "x" };
        assert!(goals(&mut part, &[goal(Limit::AtMost(1.0), None), goal(Limit::AtLeast(2.0), Some(2.5))]).unwrap());
        assert!(part.contains("| it | at most 1 x | not measured |  |"), "{part}");
        assert!(part.contains("| it | at least 2 x | 2.50 x | reached |"), "{part}");
        assert!(!goals(&mut part, &[goal(Limit::AtLeast(2.0), Some(1.0))]).unwrap());
    }
}

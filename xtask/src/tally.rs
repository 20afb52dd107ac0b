//! What ran, what failed: totals over stages, read from the lines that test binaries print.

use std::time::Duration;

/// Counts of tests and checks.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
    /// Ignored or skipped. Each is a failure: a check that could not look has not passed.
    pub(crate) skipped: usize,
}

impl Tally {
    pub(crate) const PASSED: Self = Self { passed: 1, failed: 0, skipped: 0 };
    pub(crate) const FAILED: Self = Self { passed: 0, failed: 1, skipped: 0 };

    pub(crate) fn one(passed: bool) -> Self {
        if passed { Self::PASSED } else { Self::FAILED }
    }

    pub(crate) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }

    pub(crate) fn is_green(self) -> bool {
        self.failed == 0 && self.skipped == 0
    }

    /// Reads `test result: ok. 3 passed; 1 failed; 2 ignored; …`, the closing line of a libtest binary.
    pub(crate) fn from_result_line(line: &str) -> Option<Self> {
        let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
        let mut tally = Self::default();
        for part in counts.split(';') {
            let mut words = part.split_whitespace();
            let (Some(count), Some(what)) = (words.next(), words.next()) else { continue };
            match what {
                "passed" => tally.passed = count.parse().ok()?,
                "failed" => tally.failed = count.parse().ok()?,
                "ignored" => tally.skipped = count.parse().ok()?,
                _ => {}
            }
        }
        Some(tally)
    }
}

/// One stage of a chore, done.
pub(crate) struct Stage {
    pub(crate) name: &'static str,
    pub(crate) tally: Tally,
    pub(crate) took: Duration,
}

/// Prints a line per stage and the closing line; true when all is green.
pub(crate) fn close(stages: &[Stage]) -> bool {
    let mut total = Tally::default();
    println!();
    for stage in stages {
        let Tally { passed, failed, skipped } = stage.tally;
        let skipped = if skipped == 0 { String::new() } else { format!(", {skipped} skipped (counts as failed)") };
        println!("{:<6} {passed:>5} passed, {failed} failed{skipped} in {:.1} s", stage.name, stage.took.as_secs_f64());
        total.add(stage.tally);
    }
    println!("{} passed, {} failed", total.passed, total.failed + total.skipped);
    total.is_green()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_line_gives_its_counts() {
        let line = "test result: FAILED. 12 passed; 2 failed; 1 ignored; 0 measured; 4 filtered out; finished in 0.10s";
        assert_eq!(Tally::from_result_line(line), Some(Tally { passed: 12, failed: 2, skipped: 1 }));
        assert_eq!(Tally::from_result_line("test result_of_lookup ... ok"), None);
        assert_eq!(Tally::from_result_line("running 3 tests"), None);
    }

    #[test]
    fn a_skip_is_not_green() {
        assert!(Tally::PASSED.is_green());
        assert!(!Tally { skipped: 1, ..Tally::PASSED }.is_green());
        assert!(!Tally::FAILED.is_green());
    }
}

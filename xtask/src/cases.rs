//! The cases that names are tested by: each has a test that bears its id, so that none goes missing by a rename.

use crate::cargo;
use anyhow::{Context as _, Result};
use std::{collections::BTreeSet, fs, path::Path};

/// Letter and how many: a message's form, verdicts, clients, chains, lifecycle, trust; then the acceptance tests of names.
const CASES: [(char, std::ops::RangeInclusive<u8>); 7] =
    [('a', 1..=15), ('b', 1..=17), ('c', 1..=13), ('d', 1..=15), ('e', 1..=17), ('f', 1..=16), ('t', 29..=37)];

/// Cases that no test among these files has in its name.
pub(crate) fn missing(files: &[String]) -> Result<Vec<String>> {
    let mut tested = BTreeSet::new();
    for path in files.iter().filter(|path| Path::new(path).extension().is_some_and(|kind| kind == "rs")) {
        let text = fs::read_to_string(cargo::workspace().join(path)).with_context(|| format!("cannot read {path}"))?;
        tested.extend(tests(&text).flat_map(ids).map(str::to_owned));
    }
    let all = CASES.into_iter().flat_map(|(letter, numbers)| numbers.map(move |number| format!("{letter}{number:02}")));
    Ok(all.filter(|id| !tested.contains(id)).map(|id| format!("{id}: no test has this case in its name")).collect())
}

/// Names of the functions that stand below a test attribute, whatever other attributes stand between.
fn tests(text: &str) -> impl Iterator<Item = &str> {
    let mut below = false;
    text.lines().filter_map(move |line| {
        let line = line.trim_start();
        let name = line.trim_start_matches("async ").strip_prefix("fn ").and_then(|rest| rest.split('(').next());
        let test = name.filter(|_| below);
        if line.starts_with("#[") {
            below |= line.starts_with("#[test]") || line.starts_with("#[tokio::test");
        } else if !line.starts_with("//") {
            below = false;
        }
        test
    })
}

/// The ids that a test's name begins with: `b01_b02_only_…` bears two.
fn ids(name: &str) -> impl Iterator<Item = &str> {
    name.split('_').take_while(|word| {
        let mut letters = word.chars();
        let first = letters.next().is_some_and(|first| first.is_ascii_lowercase());
        first && word.len() == 3 && letters.all(|letter| letter.is_ascii_digit())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_case_counts_where_a_test_bears_it() {
        let text = "#[test]\nfn a01_a02_short() {}\nfn a03_no_test() {}\n    #[tokio::test(start_paused = true)]\n    \
                    // why\n    async fn e17_clocks() {}\n#[test]\n#[ignore]\nfn of_names_b04() {}\n#[test]\nlet x;\nfn f01_x() {}";
        let found: Vec<&str> = tests(text).flat_map(ids).collect();
        assert_eq!(found, ["a01", "a02", "e17"]);
    }

    #[test]
    fn there_are_93_cases_and_nine_acceptance_tests() {
        let count = |of: fn(char) -> bool| {
            CASES.iter().filter(|(letter, _)| of(*letter)).map(|(_, numbers)| numbers.len()).sum::<usize>()
        };
        assert_eq!((count(|letter| letter != 't'), count(|letter| letter == 't')), (93, 9));
    }

    #[test]
    fn a_case_that_no_test_bears_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("some.rs");
        fs::write(&path, "#[test]\nfn a01_short() {}\n").unwrap();
        let missing = missing(&[path.to_str().unwrap().to_owned()]).unwrap();
        assert_eq!(missing.len(), 93 + 9 - 1);
        assert!(missing[0].starts_with("a02: "), "{missing:?}");
    }
}

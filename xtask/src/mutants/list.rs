//! The list of lines to spoil.

use crate::{cargo, style};
use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;
use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
};

/// From the root of the workspace.
pub(super) const FILE: &str = "tests/mutants.toml";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    #[serde(default)]
    mutant: Vec<Mutant>,
}

/// One line to spoil.
#[derive(Deserialize, Hash)]
#[serde(deny_unknown_fields)]
pub(super) struct Mutant {
    /// Short name, unique.
    pub(super) id: String,
    /// Path from the root of the workspace.
    pub(super) file: PathBuf,
    /// Exact text; must occur once in the file.
    find: String,
    /// What stands there instead. Must compile.
    replace: String,
    /// Package whose tests must turn red.
    pub(super) package: String,
    /// The tests' whole names, as libtest prints them.
    pub(super) tests: Vec<String>,
    /// The root tests run the spoilt line themselves, by the library, and not in egressd alone.
    #[serde(default)]
    pub(super) linked: bool,
    /// Features of egress-agent without which the line is not built.
    #[serde(default)]
    pub(super) features: Vec<String>,
    /// What would be lost if this line were.
    pub(super) why: String,
}

/// What has to be built for a mutant, in the order in which they are tried.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Part {
    /// The tests of egress-common.
    Common,
    /// egressd, and the tests that need root.
    Root,
    /// The unit tests of the library egress-agent.
    Agent,
}

impl Mutant {
    pub(super) fn part(&self) -> Part {
        match self.package.as_str() {
            "egress-common" => Part::Common,
            "egress-agent" => Part::Agent,
            _ => Part::Root,
        }
    }

    /// The file's text with the line spoilt.
    pub(super) fn spoil(&self, text: &str) -> Result<String> {
        let found = text.matches(&self.find).count();
        ensure!(found == 1, "{}: the text to spoil occurs {found} times in {}, not once", self.id, self.file.display());
        ensure!(self.find != self.replace, "{}: nothing changes", self.id);
        Ok(text.replacen(&self.find, &self.replace, 1))
    }
}

pub(super) fn read() -> Result<Vec<Mutant>> {
    let path = cargo::workspace().join(FILE);
    parse(&fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?)
}

fn parse(text: &str) -> Result<Vec<Mutant>> {
    let List { mutant: list } = toml::from_str(text).with_context(|| format!("{FILE} is not as it should be"))?;
    let mut ids = HashSet::new();
    for mutant in &list {
        ensure!(ids.insert(mutant.id.as_str()), "{}: two entries of {FILE} have this id", mutant.id);
        ensure!(!mutant.tests.is_empty(), "{}: no test is named", mutant.id);
        ensure!(
            ["egress-common", "egress-agent", "egress-tests"].contains(&mutant.package.as_str()),
            "{}: no package {} has tests",
            mutant.id,
            mutant.package
        );
    }
    Ok(list)
}

/// Every text to spoil occurs once, and every test is there.
pub(super) fn in_step(list: &[Mutant]) -> Result<()> {
    let root = cargo::workspace();
    let sources = style::files()?
        .into_iter()
        .filter(|path| Path::new(path).extension().is_some_and(|extension| extension == "rs"))
        .map(|path| Ok((fs::read_to_string(root.join(&path)).with_context(|| format!("cannot read {path}"))?, path)))
        .collect::<Result<Vec<_>>>()?;
    for mutant in list {
        let text = fs::read_to_string(root.join(&mutant.file))
            .with_context(|| format!("{}: {}", mutant.id, mutant.file.display()))?;
        mutant.spoil(&text)?;
        let directory = if mutant.package == "egress-tests" { "tests/root/" } else { &format!("{}/", mutant.package) };
        for test in &mutant.tests {
            let found = sources.iter().any(|(text, path)| path.starts_with(directory) && has_test(text, path, test));
            ensure!(found, "{}: {} has no test {test}", mutant.id, mutant.package);
        }
    }
    Ok(())
}

/// The function stands in this file, and each module of its name is in the file's path or opened in the file.
fn has_test(text: &str, path: &str, test: &str) -> bool {
    let mut modules: Vec<&str> = test.split("::").collect();
    let Some(function) = modules.pop() else { return false };
    let stem = path.trim_end_matches(".rs");
    text.contains(&format!("fn {function}("))
        && modules.iter().all(|module| {
            stem.split('/').any(|part| part == *module || part.split('_').any(|word| word == *module))
                || text.contains(&format!("mod {module} "))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENTRY: &str =
        "[[mutant]]\nid='a'\nfile='f'\nfind='x'\nreplace='y'\npackage='egress-common'\ntests=['t']\nwhy='w'\n";

    #[test]
    fn a_text_is_spoilt_where_it_occurs_once() {
        let mutants = parse(ENTRY).unwrap();
        assert_eq!(mutants[0].spoil("a x b").unwrap(), "a y b");
        assert!(mutants[0].spoil("a b").is_err());
        assert!(mutants[0].spoil("x x").is_err());
    }

    /// Whoever changes one of these lines changes its entry, and thinks of its test.
    #[test]
    fn every_entry_of_the_list_is_in_step_with_the_tree() {
        in_step(&read().unwrap()).unwrap();
    }

    /// Each row of a table has an entry that shows it able to turn red.
    #[test]
    fn every_row_of_a_table_has_a_mutant() {
        let readme = fs::read_to_string(cargo::workspace().join("tests/README.md")).unwrap();
        let list = read().unwrap();
        for (title, at_least) in [("The table\n", 30), ("The table of names\n", 20)] {
            let table = readme.split("\n## ").find(|section| section.starts_with(title)).unwrap();
            let rows: Vec<_> = table.lines().filter(|line| line.starts_with("| `")).collect();
            assert!(rows.len() >= at_least, "{rows:#?}");
            for row in rows {
                let cells: Vec<_> = row.split(" | ").collect();
                let test = cells[0].trim_matches(['|', ' ', '`']);
                assert!(list.iter().any(|mutant| mutant.tests.iter().any(|it| it == test)), "{test} has no mutant");
                assert!(
                    cells.len() == 4 && cells.iter().all(|cell| !cell.trim_matches(['|', ' ']).is_empty()),
                    "{row}"
                );
            }
        }
    }

    #[test]
    fn a_test_is_known_by_its_function_and_its_modules() {
        let text = "mod tests {\n fn it_holds() {}\n}";
        assert!(has_test(text, "egress-common/src/addr.rs", "addr::tests::it_holds"));
        assert!(has_test("fn it_holds() {", "tests/root/attach/shared.rs", "attach::shared::it_holds"));
        assert!(has_test("fn it_holds() {", "egress-agent/src/dns/gate_tests.rs", "dns::gate::tests::it_holds"));
        assert!(!has_test("fn it_holds() {", "tests/root/attach.rs", "attach::shared::it_holds"));
        assert!(!has_test(text, "egress-common/src/addr.rs", "addr::tests::it_breaks"));
    }

    #[test]
    fn ids_are_unique_and_keys_known() {
        assert!(parse(&ENTRY.repeat(2)).is_err());
        assert!(parse(&format!("{ENTRY}color='red'\n")).is_err());
        assert!(parse(&ENTRY.replace("['t']", "[]")).is_err());
        assert!(parse(&ENTRY.replace("egress-common", "elsewhere")).is_err());
        assert!(parse("").unwrap().is_empty());
    }
}

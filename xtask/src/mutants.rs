//! `cargo xtask mutants`: are the tests able to fail? Each entry of `tests/mutants.toml` spoils one production line in a
//! copy of the tree; the test it names must turn red, and must have been green before.

use crate::{cargo, invoker, style, tally::Tally, test};
use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;
use std::{
    collections::{BTreeMap, HashSet},
    fmt, fs,
    path::{Path, PathBuf},
    process::Command,
};

const LIST: &str = "tests/mutants.toml";
/// The copy, and its own target directory: a spoilt egressd must never lie where somebody would run it.
const TREE: &str = "target/mutants/tree";
const BUILD: &str = "target/mutants/build";
/// The package whose tests need root and an egressd of the same tree.
const ROOT_TESTS: &str = "egress-tests";

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Run these entries alone (ids, or parts of them)
    #[arg(long)]
    only: Vec<String>,
    /// Show the list and check that every text to spoil occurs once; build nothing
    #[arg(long)]
    list: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    #[serde(default)]
    mutant: Vec<Mutant>,
}

/// One line to spoil.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Mutant {
    /// Short name, unique.
    id: String,
    /// Path from the root of the workspace.
    file: PathBuf,
    /// Exact text; must occur once in the file.
    find: String,
    /// What stands there instead. Must compile.
    replace: String,
    /// Package whose test must turn red.
    package: String,
    /// The test's whole name, as libtest prints it.
    test: String,
    /// What would be lost if this line were.
    why: String,
}

/// How a mutant ended.
#[derive(PartialEq, Eq)]
enum End {
    Killed,
    Survived,
    DoesNotBuild,
}

impl fmt::Display for End {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Killed => "killed",
            Self::Survived => "SURVIVED",
            Self::DoesNotBuild => "DOES NOT BUILD",
        })
    }
}

impl Mutant {
    fn chosen(&self, only: &[String]) -> bool {
        only.is_empty() || only.iter().any(|part| self.id.contains(part))
    }

    /// The file's text with the line spoilt.
    fn spoil(&self, text: &str) -> Result<String> {
        let found = text.matches(&self.find).count();
        ensure!(found == 1, "{}: the text to spoil occurs {found} times in {}, not once", self.id, self.file.display());
        ensure!(self.find != self.replace, "{}: nothing changes", self.id);
        Ok(text.replacen(&self.find, &self.replace, 1))
    }
}

/// True when every mutant was killed.
pub(crate) fn run(options: &Options) -> Result<bool> {
    let list = read(&fs::read_to_string(LIST).with_context(|| format!("cannot read {LIST}"))?)?;
    for mutant in &list {
        let text =
            fs::read_to_string(&mutant.file).with_context(|| format!("{}: {}", mutant.id, mutant.file.display()))?;
        mutant.spoil(&text)?;
    }
    let chosen: Vec<&Mutant> = list.iter().filter(|mutant| mutant.chosen(&options.only)).collect();
    ensure!(!chosen.is_empty() || options.only.is_empty(), "no entry of {LIST} is named like that");
    if options.list {
        for mutant in &chosen {
            println!("{:<32} {:<40} {}", mutant.id, mutant.file.display(), mutant.why);
        }
        return Ok(true);
    }
    if chosen.iter().any(|mutant| mutant.package == ROOT_TESTS) && !invoker::is_root() {
        bail!("some of these tests make namespaces, cgroups and BPF programs: sudo make mutants");
    }
    crate::setup::ready()?;
    let tree = Tree::copy()?;
    let green = tree.baseline(&chosen)?;
    let mut ends = Vec::new();
    for mutant in chosen {
        let end = if green { tree.try_one(mutant)? } else { End::Survived };
        println!("{:<32} {end}", mutant.id);
        ends.push((mutant, end));
    }
    Ok(green && close(&ends))
}

fn read(text: &str) -> Result<Vec<Mutant>> {
    let List { mutant: list } = toml::from_str(text).with_context(|| format!("{LIST} is not as it should be"))?;
    let mut ids = HashSet::new();
    for mutant in &list {
        ensure!(ids.insert(mutant.id.as_str()), "{}: two entries of {LIST} have this id", mutant.id);
    }
    Ok(list)
}

fn close(ends: &[(&Mutant, End)]) -> bool {
    let wrong: Vec<_> = ends.iter().filter(|(_, end)| *end != End::Killed).collect();
    println!();
    for (mutant, end) in &wrong {
        println!(
            "{}: {end}\n  in {}\n  test {} of {}\n  {}",
            mutant.id,
            mutant.file.display(),
            mutant.test,
            mutant.package,
            mutant.why
        );
    }
    println!("{} killed, {} not", ends.len() - wrong.len(), wrong.len());
    wrong.is_empty()
}

/// A copy of the working tree, uncommitted changes included.
struct Tree {
    root: PathBuf,
    build: PathBuf,
}

impl Tree {
    /// Writes only what differs, so that cargo rebuilds only that.
    fn copy() -> Result<Self> {
        let tree = Self { root: cargo::workspace().join(TREE), build: cargo::workspace().join(BUILD) };
        let files = style::files()?;
        for path in &files {
            tree.write(Path::new(path), &fs::read(path).with_context(|| format!("cannot read {path}"))?)?;
        }
        forget_all_but(&files.iter().map(|path| tree.root.join(path)).collect(), &tree.root)?;
        Ok(tree)
    }

    fn write(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        let path = self.root.join(path);
        if fs::read(&path).is_ok_and(|present| present == bytes) {
            return Ok(());
        }
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir)?;
        }
        fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))
    }

    fn cargo(&self, args: &[&str]) -> Result<Command> {
        let mut command = cargo::command(args)?;
        command.current_dir(&self.root).env("CARGO_TARGET_DIR", &self.build);
        Ok(command)
    }

    /// Builds the tests of the package, and for root tests the agent. `None`: something does not compile.
    fn build(&self, package: &str) -> Result<Option<Built>> {
        let mut egressd = None;
        if package == ROOT_TESTS {
            let build =
                self.cargo(&["build", "--quiet", "--locked", "--package", "egress-agent", "--bin", "egressd"])?;
            let Ok(built) = cargo::executables(build) else { return Ok(None) };
            egressd = built.into_iter().find(|it| it.target == "egressd").map(|it| it.path);
        }
        let Ok(tests) = cargo::build_tests(self.cargo(&["--quiet"])?, package) else { return Ok(None) };
        Ok(Some(Built { tests, egressd }))
    }

    /// Every test must be green on the tree as it is, or its red proves nothing.
    fn baseline(&self, mutants: &[&Mutant]) -> Result<bool> {
        let mut by_package: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for mutant in mutants {
            by_package.entry(&mutant.package).or_default().push(&mutant.test);
        }
        let mut green = true;
        for (package, tests) in by_package {
            let built = self.build(package)?.with_context(|| format!("{package} does not build as it is"))?;
            for test in tests {
                if !built.run(test)?.is_green() {
                    println!("{test} of {package} is red on the tree as it is");
                    green = false;
                }
            }
        }
        Ok(green)
    }

    fn try_one(&self, mutant: &Mutant) -> Result<End> {
        // The copy's own text: the tree may be edited meanwhile.
        let text = fs::read_to_string(self.root.join(&mutant.file))?;
        self.write(&mutant.file, mutant.spoil(&text)?.as_bytes())?;
        let end = match self.build(&mutant.package) {
            Ok(Some(built)) => {
                built.run(&mutant.test).map(|tally| if tally.is_green() { End::Survived } else { End::Killed })
            }
            Ok(None) => Ok(End::DoesNotBuild),
            Err(error) => Err(error),
        };
        self.write(&mutant.file, text.as_bytes())?;
        end
    }
}

/// Removes what an earlier copy had and the tree has no more.
fn forget_all_but(kept: &HashSet<PathBuf>, directory: &Path) -> Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            forget_all_but(kept, &path)?;
        } else if !kept.contains(&path) {
            fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
    }
    Ok(())
}

struct Built {
    tests: Vec<cargo::Executable>,
    egressd: Option<PathBuf>,
}

impl Built {
    /// Runs the one test of this name, wherever in the package it is.
    fn run(&self, test: &str) -> Result<Tally> {
        let mut tally = Tally::default();
        for executable in &self.tests {
            let mut command = Command::new(&executable.path);
            command.args([test, "--exact"]).current_dir(&executable.package_dir);
            if let Some(egressd) = &self.egressd {
                test::as_root_test(&mut command, egressd);
            }
            tally.add(test::run_counted(command, test::Show::Nothing)?);
        }
        ensure!(tally != Tally::default(), "no test is named {test}");
        Ok(tally)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENTRY: &str = "[[mutant]]\nid='a'\nfile='f'\nfind='x'\nreplace='y'\npackage='p'\ntest='t'\nwhy='w'\n";

    #[test]
    fn a_text_is_spoilt_where_it_occurs_once() {
        let mutants = read(ENTRY).unwrap();
        assert_eq!(mutants[0].spoil("a x b").unwrap(), "a y b");
        assert!(mutants[0].spoil("a b").is_err());
        assert!(mutants[0].spoil("x x").is_err());
    }

    /// Whoever changes one of these lines changes its entry, and thinks of its test.
    #[test]
    fn every_entry_of_the_list_is_in_step_with_the_tree() {
        let root = cargo::workspace();
        for mutant in read(&fs::read_to_string(root.join(LIST)).unwrap()).unwrap() {
            mutant.spoil(&fs::read_to_string(root.join(&mutant.file)).unwrap()).unwrap();
        }
    }

    #[test]
    fn ids_are_unique_and_keys_known() {
        assert!(read(&ENTRY.repeat(2)).is_err());
        assert!(read(&format!("{ENTRY}color='red'\n")).is_err());
        assert!(read("").unwrap().is_empty());
    }
}

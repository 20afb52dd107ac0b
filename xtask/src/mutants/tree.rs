//! The copy of the tree in which lines are spoilt, what is built of it, and what its tests say.

use super::{
    End,
    list::{self, Mutant, Part},
};
use crate::{cargo, style, tally::Tally, test};
use anyhow::{Context as _, Result, ensure};
use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fmt, fs,
    hash::{DefaultHasher, Hash, Hasher as _},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

/// The copy, and its own target directory: a spoilt egressd must never lie where somebody would run it.
const TREE: &str = "target/mutants/tree";
const BUILD: &str = "target/mutants/build";
/// The tests as they were built of the tree as it is: a mutant of egressd alone does not build them again.
const TESTS: &str = "target/mutants/tests";
/// One line for each mutant that was killed: its id, and a number for what it was tried on.
const KILLED: &str = "target/mutants/killed";

/// A test that takes longer has turned red: something waits for ever.
const LIMIT: Duration = Duration::from_mins(5);
/// One invocation for both packages, so that their dependencies are built with the same features, and once.
const PACKAGES: [&str; 4] = ["--package", "egress-agent", "--package", "egress-tests"];
/// Built anew for each mutant, so building counts for more than speed.
const QUICKLY: [&str; 8] = [
    "--config",
    "profile.dev.package.egress-agent.opt-level=0",
    "--config",
    "profile.dev.package.egress-agent.debug=0",
    "--config",
    "profile.dev.package.egress-tests.opt-level=0",
    "--config",
    "profile.dev.package.egress-tests.debug=0",
];

/// A test that turned red, and at what.
pub(super) struct Red {
    test: String,
    said: String,
}

impl fmt::Display for Red {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}: {}", self.test, self.said)
    }
}

/// A copy of the working tree, uncommitted changes included.
pub(super) struct Tree {
    root: PathBuf,
    build: PathBuf,
    /// Of everything that is built or run.
    fingerprint: u64,
    /// The tests of the part that is tried, as built of the tree as it is.
    whole: Vec<TestAt>,
}

impl Tree {
    /// Writes only what differs, so that cargo rebuilds only that.
    pub(super) fn copy() -> Result<Self> {
        let workspace = cargo::workspace();
        let mut tree =
            Self { root: workspace.join(TREE), build: workspace.join(BUILD), fingerprint: 0, whole: Vec::new() };
        let files = style::files()?;
        let mut hasher = DefaultHasher::new();
        for path in &files {
            let bytes = fs::read(workspace.join(path)).with_context(|| format!("cannot read {path}"))?;
            tree.write(Path::new(path), &bytes)?;
            if path != list::FILE && Path::new(path).extension().is_none_or(|extension| extension != "md") {
                (path, bytes).hash(&mut hasher);
            }
        }
        tree.fingerprint = hasher.finish();
        forget_all_but(&files.iter().map(|path| tree.root.join(path)).collect(), &tree.root)?;
        // What setup unpacked, which tests look for below the tree that they were built of.
        let (here, there) = (workspace.join("target/unpacked"), tree.root.join("target"));
        fs::create_dir_all(&there)?;
        symlink(&here, there.join("unpacked")).with_context(|| format!("cannot link {}", here.display()))?;
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
        command.args(["--quiet", "--locked"]).current_dir(&self.root).env("CARGO_TARGET_DIR", &self.build);
        Ok(command)
    }

    /// Builds what a part's tests need; for root tests they themselves only where they are `linked` to what was spoilt.
    /// `None`: something does not compile.
    fn build(&self, part: Part, linked: bool, features: &[String]) -> Result<Option<Built>> {
        let mut command = match part {
            Part::Common => self.cargo(&["test", "--no-run", "--package", "egress-common"])?,
            Part::Agent => self.cargo(&["test", "--no-run", "--lib", "--bins"])?,
            Part::Root => self.cargo(&["build", "--bin", "egressd"])?,
        };
        if part != Part::Common {
            command.args(PACKAGES).args(QUICKLY);
            command.args(features.iter().map(|feature| format!("--features=egress-agent/{feature}")));
        }
        if part == Part::Root && linked {
            command.args(["--test", "root"]);
        }
        let Ok(made) = cargo::executables(command) else { return Ok(None) };
        let (egressd, tests): (Vec<_>, Vec<_>) =
            made.into_iter().partition(|executable| part == Part::Root && executable.target == "egressd");
        let tests = tests.into_iter().map(|it| (it.path, it.package_dir)).collect();
        Ok(Some(Built { tests, egressd: egressd.into_iter().next().map(|it| it.path) }))
    }

    /// Builds the tree as it is for mutants that are built alike. Every test of theirs must be green then, or its red proves nothing.
    pub(super) fn baseline(&mut self, mutants: &[&Mutant]) -> Result<bool> {
        let Some(first) = mutants.first() else { return Ok(true) };
        let part = first.part();
        let tests: BTreeSet<&str> = mutants.iter().flat_map(|mutant| &mutant.tests).map(String::as_str).collect();
        let mut built = self.build(part, true, &first.features)?.context("the tree does not build as it is")?;
        built.keep_tests(part)?;
        println!("{} tests on the tree as it is", tests.len());
        let (tally, _) = built.run(&tests)?;
        let mut green = tally.is_green() && tally.passed == tests.len();
        if !green {
            // One by one: which are they, and are they red without company?
            green = true;
            for test in tests {
                let (tally, said) = built.run(&[test].into())?;
                ensure!(tally != Tally::default(), "no test is named {test}");
                if !tally.is_green() {
                    println!("{test} is red on the tree as it is: {}", what_turned_red(&said));
                    green = false;
                }
            }
        }
        self.whole = built.tests;
        Ok(green)
    }

    pub(super) fn try_one(&self, mutant: &Mutant) -> Result<End> {
        // The copy's own text: the tree may be edited meanwhile.
        let text = fs::read_to_string(self.root.join(&mutant.file))?;
        self.write(&mutant.file, mutant.spoil(&text)?.as_bytes())?;
        let end = self.end_of(mutant);
        self.write(&mutant.file, text.as_bytes())?;
        end
    }

    fn end_of(&self, mutant: &Mutant) -> Result<End> {
        let Some(mut built) = self.build(mutant.part(), mutant.linked, &mutant.features)? else {
            return Ok(End::DoesNotBuild);
        };
        if built.tests.is_empty() {
            built.tests.clone_from(&self.whole);
        }
        let (mut red, mut green) = (Vec::new(), Vec::new());
        for test in &mutant.tests {
            let (tally, said) = built.run(&[test.as_str()].into())?;
            ensure!(tally != Tally::default(), "no test is named {test}");
            if tally.is_green() {
                green.push(test.clone());
            } else {
                red.push(Red { test: test.clone(), said: what_turned_red(&said) });
            }
        }
        Ok(if green.is_empty() { End::Killed(red) } else { End::Survived(green) })
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

/// A test executable, and the directory that it runs in.
type TestAt = (PathBuf, PathBuf);

/// Test executables, and the egressd that root tests run.
struct Built {
    tests: Vec<TestAt>,
    egressd: Option<PathBuf>,
}

impl Built {
    /// Copies the root tests to where no later build replaces them.
    fn keep_tests(&mut self, part: Part) -> Result<()> {
        let directory = cargo::workspace().join(TESTS);
        fs::create_dir_all(&directory)?;
        for (path, _) in self.tests.iter_mut().filter(|_| part == Part::Root) {
            let kept = directory.join(path.file_name().context("an executable has a name")?);
            fs::copy(&*path, &kept).with_context(|| format!("cannot copy {}", path.display()))?;
            *path = kept;
        }
        Ok(())
    }

    /// Runs the tests of these names, wherever they are, and gives what they said.
    fn run(&self, tests: &BTreeSet<&str>) -> Result<(Tally, Vec<String>)> {
        let (mut tally, mut said) = (Tally::default(), Vec::new());
        for (path, directory) in &self.tests {
            let mut command = Command::new(path);
            command.arg("--exact").args(tests).current_dir(directory).stderr(Stdio::null());
            if let Some(egressd) = &self.egressd {
                test::as_root_test(&mut command, egressd);
            }
            tally.add(test::run_counted(command, LIMIT, |line| said.push(line.to_owned()))?);
        }
        Ok((tally, said))
    }
}

/// Where the first panic was, and its first line.
fn what_turned_red(said: &[String]) -> String {
    let mut lines = said.iter().skip_while(|line| !line.contains(" panicked at "));
    match (lines.next().and_then(|line| line.split_once(" panicked at ")), lines.next()) {
        (Some((_, place)), message) => format!("{place} {}", message.map_or("", String::as_str)),
        (None, _) => said.last().cloned().unwrap_or_default(),
    }
}

/// What was killed before, on which tree.
pub(super) struct Killed {
    fingerprint: u64,
    lines: BTreeMap<String, u64>,
}

impl Killed {
    pub(super) fn read(tree: &Tree) -> Result<Self> {
        let path = cargo::workspace().join(KILLED);
        let text = if path.exists() { fs::read_to_string(&path)? } else { String::new() };
        let line = |line: &str| line.split_once(' ').and_then(|(id, on)| Some((id.to_owned(), on.parse().ok()?)));
        Ok(Self { fingerprint: tree.fingerprint, lines: text.lines().filter_map(line).collect() })
    }

    pub(super) fn holds(&self, mutant: &Mutant) -> bool {
        self.lines.get(&mutant.id) == Some(&self.number(mutant))
    }

    pub(super) fn add(&mut self, mutant: &Mutant) -> Result<()> {
        self.lines.insert(mutant.id.clone(), self.number(mutant));
        let lines: Vec<_> = self.lines.iter().map(|(id, on)| format!("{id} {on}")).collect();
        fs::write(cargo::workspace().join(KILLED), lines.join("\n")).with_context(|| format!("cannot write {KILLED}"))
    }

    fn number(&self, mutant: &Mutant) -> u64 {
        let mut hasher = DefaultHasher::new();
        (self.fingerprint, mutant).hash(&mut hasher);
        hasher.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_panic_is_what_turned_red() {
        let said = "running 1 test\n---- a::b stdout ----\n\nthread 'a::b' (7) panicked at tests/root/a.rs:3:5:\n\
                    assertion failed: quiet\nnote: run with\nthread 'other' panicked at x.rs:1:1:\nlater";
        let said: Vec<_> = said.lines().map(str::to_owned).collect();
        assert_eq!(what_turned_red(&said), "tests/root/a.rs:3:5: assertion failed: quiet");
        assert_eq!(what_turned_red(&[]), "");
    }
}

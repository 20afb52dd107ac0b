//! `cargo xtask test`: style, unit tests, the verifier's budget, root tests, demo, other kernels. Builds as the caller, tests as root.

use crate::{
    budget, cargo, demo, invoker, setup, style,
    tally::{self, Stage, Tally},
    vm,
};
use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;
use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    time::{Duration, Instant},
};

/// The test binary of `tests/root`.
pub(crate) const ROOT_TESTS: &str = "root";
/// Longest time that one test binary may take: a hang is a failure, not a wait.
const LIMIT: Duration = Duration::from_mins(25);

/// DNS servers over TLS and HTTPS, which are not in the default build.
const ENCRYPTED: [&str; 2] = ["--features", "egress-agent/encrypted-upstream"];
/// The root tests that look at them, whichever way the agent was built.
const OF_ENCRYPTED: &str = "dns::encrypted";

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Run these stages alone
    #[arg(long, value_enum)]
    only: Vec<Which>,
    /// Names of tests (parts of them), passed to the test binaries
    #[arg(last = true)]
    filters: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Which {
    Style,
    Unit,
    Budget,
    Root,
    Demo,
    Vm,
}

impl Which {
    const ALL: [Self; 6] = [Self::Style, Self::Unit, Self::Budget, Self::Root, Self::Demo, Self::Vm];

    fn name(self) -> &'static str {
        match self {
            Self::Style => "style",
            Self::Unit => "unit",
            Self::Budget => "budget",
            Self::Root => "root",
            Self::Demo => "demo",
            Self::Vm => "vm",
        }
    }
}

/// True when all is green.
pub(crate) fn run(options: &Options) -> Result<bool> {
    setup::ready()?;
    let mut stages = Vec::new();
    for which in Which::ALL {
        if !options.only.is_empty() && !options.only.contains(&which) {
            continue;
        }
        let started = Instant::now();
        let tally = match which {
            Which::Style => style::run(),
            Which::Unit => unit(&options.filters),
            Which::Budget => budget::run(&budget::Options::default()),
            Which::Root => root(&options.filters),
            Which::Demo => demo::run(),
            Which::Vm => vm::run(&vm::Options::default()),
        };
        // A stage that could not run is one failure; the others still tell what they can.
        let mut tally = tally.unwrap_or_else(|error| {
            eprintln!("{}: {error:#}", which.name());
            Tally::FAILED
        });
        if tally == Tally::default() && options.filters.is_empty() {
            eprintln!("{}: nothing ran", which.name());
            tally = Tally::FAILED;
        }
        stages.push(Stage { name: which.name(), tally, took: started.elapsed() });
    }
    Ok(tally::close(&stages))
}

/// With every feature of the agent: what the build without them has instead is the root stage's.
fn unit(filters: &[String]) -> Result<Tally> {
    let mut command = cargo::command(&["test", "--locked", "--no-fail-fast", "--workspace"])?;
    command
        .args(ENCRYPTED)
        .args(["--exclude", "egress-tests", "--exclude", "egress-ebpf", "--exclude", "egress-fuzz", "--"])
        .args(filters);
    run_counted(command, LIMIT, show)
}

fn root(filters: &[String]) -> Result<Tally> {
    let encrypted = of_encrypted(filters).then(build_encrypted).transpose()?;
    let egressd = cargo::build_egressd(&[])?;
    let tests = cargo::build_tests(cargo::command(&[])?, "egress-tests")?;
    if !invoker::is_root() {
        bail!("these tests make namespaces, cgroups and BPF programs: sudo make test");
    }
    let only = [OF_ENCRYPTED.to_owned()];
    let rounds = [Some((&egressd, filters)), encrypted.as_ref().map(|egressd| (egressd, only.as_slice()))];
    let mut tally = Tally::default();
    for (egressd, filters) in rounds.into_iter().flatten() {
        for test in &tests {
            let mut command = Command::new(&test.path);
            command.args(filters).current_dir(&test.package_dir);
            as_root_test(&mut command, egressd);
            tally.add(run_counted(command, LIMIT, show)?);
        }
    }
    Ok(tally)
}

/// Whether the tests of DNS servers over TLS are among those asked for.
fn of_encrypted(filters: &[String]) -> bool {
    filters.is_empty() || filters.iter().any(|filter| OF_ENCRYPTED.contains(filter) || filter.contains(OF_ENCRYPTED))
}

/// The agent with DNS servers over TLS, beside the one without, which cargo puts in the same place.
fn build_encrypted() -> Result<PathBuf> {
    let built = cargo::build_egressd(&ENCRYPTED)?;
    let kept = built.with_file_name("egressd-encrypted");
    fs::copy(&built, &kept).with_context(|| format!("cannot copy {} to {}", built.display(), kept.display()))?;
    Ok(kept)
}

/// What a root test finds in its environment. Strict: a test that cannot look fails.
pub(crate) fn as_root_test(command: &mut Command, egressd: &Path) {
    command.env("EGRESS_LAB_STRICT", "1").env("EGRESSD_BIN", egressd);
}

fn show(line: &str) {
    println!("{line}");
}

/// Runs a command that runs libtest binaries, and adds up their results. Longer than `limit` is a failure.
pub(crate) fn run_counted(mut command: Command, limit: Duration, mut each: impl FnMut(&str)) -> Result<Tally> {
    let name = cargo::readable(&command);
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().with_context(|| format!("cannot run {name}"))?;
    let lines = lines_of(&mut child)?;
    let deadline = Instant::now() + limit;
    let mut tally = Tally::default();
    loop {
        match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => {
                tally.add(Tally::from_result_line(&line).unwrap_or_default());
                each(&line);
            }
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                child.kill()?;
                each(&format!("{name}: not done after {} min, killed", limit.as_secs() / 60));
                break;
            }
        }
    }
    let status = child.wait()?;
    if !status.success() && tally.failed == 0 {
        // It did not build, or it died without a result line.
        eprintln!("{name}: {status}");
        tally.add(Tally::FAILED);
    }
    Ok(tally)
}

/// What a child writes on its standard output, as it comes.
pub(crate) fn lines_of(child: &mut Child) -> Result<mpsc::Receiver<String>> {
    let stdout = child.stdout.take().context("stdout is not a pipe")?;
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
            if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                break;
            }
        }
    });
    Ok(receiver)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_by_name_says_which_agents_are_built() {
        let words = |words: &[&str]| words.iter().copied().map(str::to_owned).collect::<Vec<_>>();
        assert!(
            [&[][..], &["dns::"], &["x", "encrypted"], &["dns::encrypted::f07"]]
                .iter()
                .all(|it| of_encrypted(&words(it)))
        );
        assert!(!of_encrypted(&words(&["ends::", "dns::clients"])));
    }
}

//! `cargo xtask vm 6.1 6.12`: the root tests on other kernels. Each is Debian's, booted by qemu with this machine's file system
//! below it, read-only: so tests, lab and egressd are the very binaries that run here. No KVM: nested machines have none.

mod guest;
mod kernel;
mod rows;

use crate::{
    cargo, invoker, setup,
    tally::Tally,
    test::{ROOT_TESTS, lines_of},
};
use anyhow::{Context as _, Result, bail};
use guest::Guest;
use kernel::Kernel;
use rows::{NEWEST, ROWS, Row, Version};
use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc::RecvTimeoutError,
    time::{Duration, Instant},
};

/// What `cargo xtask test` shows.
const DEFAULT: [&str; 3] = ["5.10", "6.1", "6.12"];
/// Seconds that one test may take in a guest.
const ROW_SECONDS: u32 = 200;
/// The longest that a machine may take altogether.
const LIMIT: Duration = Duration::from_mins(15);
/// What a script writes before a row and behind it.
const BEGIN: &str = "@@ begin ";
const END: &str = "@@ end ";

#[derive(clap::Args, Default)]
pub(crate) struct Options {
    /// Series of kernels: 5.10, 6.1, 6.12 [default: all]
    kernels: Vec<String>,
    /// Names of root tests (parts of them), or flags of theirs, instead of the table
    #[arg(last = true)]
    filters: Vec<String>,
}

/// What came of a row on a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Cell {
    Passed {
        seconds: u64,
    },
    /// The kernel has no such thing.
    Absent,
    Failed,
}

/// A column: what a machine is called, and what its rows came to, by the names of their tests.
struct Column {
    name: String,
    cells: BTreeMap<String, Cell>,
}

/// The table, or other tests: what is red is told with what it said.
pub(crate) fn run(options: &Options) -> Result<Tally> {
    setup::ready()?;
    let egressd = cargo::build_egressd(&[])?;
    let tests = cargo::build_tests(cargo::command(&[])?, "egress-tests")?;
    let root = tests.iter().find(|it| it.target == ROOT_TESTS).context("cargo built no root tests")?;
    if !invoker::is_root() {
        bail!("these tests make namespaces, cgroups and BPF programs: sudo make vm");
    }
    let kernels: Vec<&str> = match options.kernels.as_slice() {
        [] => DEFAULT.to_vec(),
        some => some.iter().map(String::as_str).collect(),
    };
    // All of them first: a kernel that cannot be had is told before anything takes long.
    let kernels = kernels.into_iter().map(Kernel::get).collect::<Result<Vec<_>>>()?;
    let begin =
        format!("cd {}\nexport EGRESS_LAB_STRICT=1 EGRESSD_BIN={}\n", root.package_dir.display(), egressd.display());
    if !options.filters.is_empty() {
        return others(
            &kernels,
            &format!("{begin}{} {}", root.path.display(), options.filters.join(" ") + " --color never"),
        );
    }
    let script = |version: Version| {
        let steps = ROWS.iter().filter(|row| row.is_for(version)).map(|row| step(&root.path, row));
        begin.clone() + &steps.collect::<Vec<_>>().concat()
    };
    let mut columns = vec![here(&script(NEWEST))?];
    std::thread::scope(|scope| {
        let running: Vec<_> = kernels
            .iter()
            .map(|kernel| {
                let script = script(version(&kernel.release));
                scope.spawn(move || boot(kernel, &script))
            })
            .collect();
        for machine in running {
            columns.push(machine.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?);
        }
        anyhow::Ok(())
    })?;
    Ok(table(&columns))
}

/// One row: its test by itself, so that a hang costs no other.
fn step(tests: &Path, row: &Row) -> String {
    let Row { test, .. } = row;
    format!(
        "echo '{BEGIN}{test}'\ntimeout {ROW_SECONDS} {} --exact {test} --nocapture --color never 2>&1\necho \"{END}$?\"\n",
        tests.display()
    )
}

/// This machine's own kernel.
fn here(script: &str) -> Result<Column> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let name = release.split('-').next().unwrap_or_default().trim();
    println!("vm: {name}, this machine's own");
    let mut sh = Command::new("sh");
    let mut child = sh.args(["-c", script]).stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let cells = follow(name, &mut child)?;
    child.wait()?;
    Ok(Column { name: name.to_owned(), cells })
}

fn boot(kernel: &Kernel, script: &str) -> Result<Column> {
    println!("vm: {}, emulated", kernel.release);
    let mut guest = Guest::boot(kernel, script)?;
    let cells = follow(&kernel.series, &mut guest.process)?;
    if cells.is_empty() {
        bail!("kernel {} ran no test; what it said last is in {}", kernel.series, guest.console.display());
    }
    Ok(Column { name: kernel.series.clone(), cells })
}

/// Reads what a machine says until it ends. A row without an end has failed.
fn follow(name: &str, machine: &mut Child) -> Result<BTreeMap<String, Cell>> {
    let lines = lines_of(machine)?;
    let deadline = Instant::now() + LIMIT;
    let mut cells = BTreeMap::new();
    let (mut test, mut said, mut since) = (String::new(), Vec::new(), Instant::now());
    loop {
        let line = match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => line.trim_end().to_owned(),
            Err(RecvTimeoutError::Disconnected) => return Ok(cells),
            Err(RecvTimeoutError::Timeout) => {
                eprintln!("{name}: not done after {} min, ended", LIMIT.as_secs() / 60);
                machine.kill()?;
                return Ok(cells);
            }
        };
        if let Some(begun) = line.strip_prefix(BEGIN) {
            (test, since) = (begun.to_owned(), Instant::now());
            said.clear();
            // Until it ends otherwise.
            cells.insert(test.clone(), Cell::Failed);
        } else if let Some(status) = line.strip_prefix(END) {
            let cell = cell(status, &said, since.elapsed());
            let word = match cell {
                Cell::Passed { .. } => "ok",
                Cell::Absent => "not in this kernel",
                Cell::Failed => "FAILED",
            };
            println!("vm: {name}: {test} ... {word}");
            if cell == Cell::Failed {
                eprintln!("{}", said.join("\n"));
            }
            cells.insert(test.clone(), cell);
        } else {
            said.push(line);
        }
    }
}

fn cell(status: &str, said: &[String], took: Duration) -> Cell {
    // A name that no test has runs nothing, and ends well.
    let ran = said.iter().any(|line| line.starts_with("test result: ok. 1 passed"));
    match (status, said.iter().any(|line| line.contains("ABSENT: "))) {
        ("0", true) if ran => Cell::Absent,
        ("0", false) if ran => Cell::Passed { seconds: took.as_secs() },
        _ => Cell::Failed,
    }
}

/// Of a kernel's release, as far as rows ask for it.
fn version(release: &str) -> Version {
    let mut numbers = release.split('.').map_while(|number| number.parse().ok());
    (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default())
}

/// Whether a cell is as it should be. The first column is this machine's, whose kernel may have been built without anything.
fn is_right(row: &Row, column: usize, name: &str, cell: Option<&Cell>) -> bool {
    match cell {
        Some(Cell::Passed { .. }) => true,
        Some(Cell::Absent) => column == 0,
        Some(Cell::Failed) => false,
        None => column > 0 && !row.is_for(version(name)),
    }
}

/// Prints the table and counts its cells.
fn table(columns: &[Column]) -> Tally {
    let mut tally = Tally::default();
    println!("\n{:<50}{}", "", columns.iter().map(|column| format!("{:>9}", column.name)).collect::<Vec<_>>().concat());
    for row in ROWS {
        let mut line = vec![format!("{:<50}", row.shows)];
        for (at, column) in columns.iter().enumerate() {
            let cell = column.cells.get(row.test);
            let word = match cell {
                Some(Cell::Passed { seconds }) => format!("ok {seconds} s"),
                Some(Cell::Absent) => "absent".to_owned(),
                Some(Cell::Failed) => "FAILED".to_owned(),
                None => "-".to_owned(),
            };
            let right = is_right(row, at, &column.name, cell);
            line.push(format!("{:>9}", if right || word == "FAILED" { word } else { format!("{word}!") }));
            if cell.is_some() || !right {
                tally.add(Tally::one(right));
            }
        }
        println!("{}", line.concat());
    }
    tally
}

/// Runs a shell script in a guest of this series of kernels to its end; `each` has every line that it says.
pub(crate) fn in_guest(series: &str, script: &str, each: impl FnMut(&str)) -> Result<()> {
    listen(&Kernel::get(series)?, script, each)
}

/// Tests that the caller names, one machine after the other.
fn others(kernels: &[Kernel], script: &str) -> Result<Tally> {
    let mut tally = Tally::default();
    for kernel in kernels {
        let mut ended = None;
        listen(kernel, &format!("{script} 2>&1"), |line| {
            println!("{line}");
            ended = Tally::from_result_line(line).or(ended);
        })?;
        tally.add(ended.unwrap_or(Tally::FAILED));
    }
    Ok(tally)
}

fn listen(kernel: &Kernel, script: &str, mut each: impl FnMut(&str)) -> Result<()> {
    println!("vm: {}, emulated", kernel.release);
    let mut guest = Guest::boot(kernel, script)?;
    for line in lines_of(&mut guest.process)? {
        each(line.trim_end());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_kernel_should_have_is_not_absent() {
        let row = |since| Row { shows: "netkit", test: "netkit", since };
        let right = |since, column, name, cell: Option<Cell>| is_right(&row(since), column, name, cell.as_ref());
        assert!(right((6, 7), 1, "6.1", None) && !right((6, 7), 1, "6.12", None));
        assert!(!right((6, 7), 1, "6.12", Some(Cell::Absent)) && right((6, 7), 0, "6.18.44", Some(Cell::Absent)));
        assert!(!right((0, 0), 0, "6.18.44", Some(Cell::Failed)) && !right((0, 0), 1, "5.10", None));
    }

    #[test]
    fn a_row_that_ran_nothing_has_failed() {
        let lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
        let result = "test result: ok. 1 passed; 0 failed";
        let cell = |status, text: &str| super::cell(status, &lines(text), Duration::from_secs(3));
        assert_eq!(cell("0", result), Cell::Passed { seconds: 3 });
        assert_eq!(cell("0", "test result: ok. 0 passed; 0 failed"), Cell::Failed);
        assert_eq!(cell("124", ""), Cell::Failed);
        assert_eq!(cell("0", &format!("test netkit ... ABSENT: netkit\n{result}")), Cell::Absent);
    }
}

//! `cargo xtask verify-budget`: how many instructions the kernel's verifier walks for each program, held against a file. What a
//! program costs to load, and how near it is to the kernel's limit of a million, grows unseen otherwise.

use crate::{cargo, invoker, tally::Tally};
use anyhow::{Context as _, Result, bail};
use serde::Deserialize;
use std::{collections::BTreeMap, fmt::Write as _, fs, path::PathBuf, process::Command};

/// A column for each kernel, a row for each program.
const FILE: &str = "egress-ebpf/verified.toml";
/// What stands above the rows; `--write` keeps nothing else.
const HEAD: &str = "\
# Instructions that the verifier may walk for each program, on each kernel: `cargo xtask verify-budget`.
# `--write` makes the column of a kernel anew: what it measures, and a sixteenth more.
";

#[derive(clap::Args, Default)]
pub(crate) struct Options {
    /// Take what `egressd doctor --json` said on another kernel instead of asking this one
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
    /// Write the kernel's column
    #[arg(long)]
    write: bool,
}

/// Program, kernel, instructions.
type Budget = BTreeMap<String, BTreeMap<String, u32>>;

/// Of `egressd doctor --json`.
#[derive(Deserialize)]
struct Survey {
    kernel: String,
    programs: Vec<Program>,
}

#[derive(Deserialize)]
struct Program {
    program: String,
    verified_instructions: Option<u32>,
}

pub(crate) fn run(options: &Options) -> Result<Tally> {
    let survey = match &options.from {
        Some(path) => read(&fs::read(path).with_context(|| format!("cannot read {}", path.display()))?)?,
        None => ask()?,
    };
    let text = fs::read_to_string(FILE).unwrap_or_default();
    let mut budget: Budget = toml::from_str(&text).with_context(|| format!("{FILE} is not a budget"))?;
    if options.write {
        extend(&mut budget, &survey)?;
        fs::write(FILE, print(&budget)).with_context(|| format!("cannot write {FILE}"))?;
    }
    let mut tally = Tally::default();
    for line in judge(&budget, &survey) {
        println!("{}", line.text);
        tally.add(Tally::one(line.within));
    }
    Ok(tally)
}

fn ask() -> Result<Survey> {
    let egressd = cargo::build_egressd(&[])?;
    if !invoker::is_root() {
        bail!("only root may load BPF programs: sudo cargo xtask verify-budget, or --from FILE");
    }
    // It exits with 3 where the host lacks anything, needed here or not.
    read(&Command::new(egressd).args(["doctor", "--json"]).output().context("cannot run egressd doctor")?.stdout)
}

fn read(json: &[u8]) -> Result<Survey> {
    serde_json::from_slice(json).context("this is not what `egressd doctor --json` prints")
}

/// `6.18` of `6.18.5-amd64`: a column is good for its stable updates.
fn column(release: &str) -> String {
    release.splitn(3, ['.', '-', '+']).take(2).collect::<Vec<_>>().join(".")
}

struct Line {
    text: String,
    within: bool,
}

/// A line for each program. One that the kernel refused, or that has no row, is above any budget.
fn judge(budget: &Budget, survey: &Survey) -> Vec<Line> {
    let kernel = column(&survey.kernel);
    let one = |program: &Program| {
        let name = &program.program;
        let row = budget.get(name);
        let own = row.and_then(|row| row.get(&kernel)).copied();
        // Kernels differ, so that of one without a column nothing finer is known.
        let most = own.or_else(|| row?.values().max().copied());
        let (within, said) = match (program.verified_instructions, most) {
            (None, _) => (false, "the kernel refused it, or does not tell (before 5.16)".to_owned()),
            (Some(walked), None) => (false, format!("{walked}, and no row in {FILE}: add --write")),
            (Some(walked), Some(most)) if walked > most => {
                (false, format!("{walked} of {most}: ABOVE; make it smaller, or add --write and say why in the commit"))
            }
            (Some(walked), Some(most)) => (true, format!("{walked} of {most}")),
        };
        let which =
            if own.is_some() || most.is_none() { "" } else { " (the most of any kernel: this one has no column)" };
        Line { text: format!("verified on {kernel}: {name:15} {said}{which}"), within }
    };
    let mut lines: Vec<_> = survey.programs.iter().map(one).collect();
    if lines.is_empty() {
        lines.push(Line { text: format!("verified on {kernel}: no program could be loaded"), within: false });
    }
    lines
}

fn extend(budget: &mut Budget, survey: &Survey) -> Result<()> {
    let kernel = column(&survey.kernel);
    for Program { program, verified_instructions } in &survey.programs {
        let walked = verified_instructions.with_context(|| format!("{program} is not verified on {kernel}"))?;
        budget.entry(program.clone()).or_default().insert(kernel.clone(), walked + walked / 16);
    }
    // One that is gone, or that this kernel does not have, takes its number with it; the last number takes the row.
    for (name, row) in &mut *budget {
        if !survey.programs.iter().any(|program| program.program == *name) {
            row.remove(&kernel);
        }
    }
    budget.retain(|_, row| !row.is_empty());
    Ok(())
}

fn print(budget: &Budget) -> String {
    let mut text = HEAD.to_owned();
    for (program, row) in budget {
        let cells: Vec<_> = row.iter().map(|(kernel, most)| format!("\"{kernel}\" = {most}")).collect();
        // Writing to a string does not fail.
        writeln!(text, "{program} = {{ {} }}", cells.join(", ")).ok();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn survey(kernel: &str, walked: Option<u32>) -> Survey {
        let program = Program { program: "egress".into(), verified_instructions: walked };
        Survey { kernel: kernel.into(), programs: vec![program] }
    }

    #[test]
    fn what_is_above_the_kernels_column_or_unknown_is_red() {
        let budget: Budget = toml::from_str("egress = { \"6.1\" = 1000, \"6.18\" = 1500 }").unwrap();
        for (kernel, walked, within) in [
            ("6.18.5-amd64", Some(1500), true),
            ("6.18.5", Some(1501), false),
            ("6.1.0-56-cloud-amd64", Some(1200), false),
            ("6.8-rc1", Some(1500), true),
            ("6.8.0", Some(1501), false),
            ("6.18.5", None, false),
        ] {
            let lines = judge(&budget, &survey(kernel, walked));
            assert_eq!((lines.len(), lines[0].within), (1, within), "{kernel} {walked:?}: {}", lines[0].text);
        }
        assert!(!judge(&Budget::new(), &survey("6.18.5", Some(1)))[0].within, "no row");
        let none = Survey { kernel: "6.18.5".into(), programs: Vec::new() };
        assert!(!judge(&budget, &none)[0].within, "nothing was looked at");
    }

    #[test]
    fn a_column_is_written_with_a_sixteenth_more_and_reads_back() {
        let mut budget: Budget = toml::from_str("egress = { \"6.1\" = 1000 }\ngone = { \"6.18\" = 1 }").unwrap();
        extend(&mut budget, &survey("6.18.5", Some(1600))).unwrap();
        let text = print(&budget);
        assert!(text.ends_with("egress = { \"6.1\" = 1000, \"6.18\" = 1700 }\n"), "{text}");
        assert_eq!(toml::from_str::<Budget>(&text).unwrap(), budget);
    }
}

//! `cargo xtask mutants`: are the tests able to fail? Each entry of `tests/mutants.toml` spoils one production line in a
//! copy of the tree; the tests it names must turn red, and must have been green before.

mod list;
mod tree;

use crate::invoker;
use anyhow::{Result, bail, ensure};
use list::{Mutant, Part};
use std::{fmt, time::Instant};
use tree::{Killed, Red, Tree};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Run these entries alone (ids, or parts of them)
    #[arg(long)]
    only: Vec<String>,
    /// Leave out what was killed before on this very tree, so that a run that was interrupted goes on
    #[arg(long)]
    resume: bool,
    /// Show the list and check that every text to spoil occurs once; build nothing
    #[arg(long)]
    list: bool,
}

/// How a mutant ended.
enum End {
    /// Every test turned red, and this is where.
    Killed(Vec<Red>),
    /// These tests saw nothing.
    Survived(Vec<String>),
    DoesNotBuild,
}

impl fmt::Display for End {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Killed(_) => write!(out, "killed"),
            Self::Survived(tests) => write!(out, "SURVIVED {}", tests.join(", ")),
            Self::DoesNotBuild => write!(out, "DOES NOT BUILD"),
        }
    }
}

/// True when every mutant was killed.
pub(crate) fn run(options: &Options) -> Result<bool> {
    let list = list::read()?;
    list::in_step(&list)?;
    let chosen = |mutant: &&Mutant| options.only.is_empty() || options.only.iter().any(|part| mutant.id.contains(part));
    let mut chosen: Vec<&Mutant> = list.iter().filter(chosen).collect();
    ensure!(!chosen.is_empty() || options.only.is_empty(), "no entry of {} is named like that", list::FILE);
    if options.list {
        for mutant in &chosen {
            println!("{:<48} {:<44} {}", mutant.id, mutant.file.display(), mutant.why);
        }
        return Ok(true);
    }
    if chosen.iter().any(|mutant| mutant.part() == Part::Root) && !invoker::is_root() {
        bail!("some of these tests make namespaces, cgroups and BPF programs: sudo make mutants");
    }
    crate::setup::ready()?;
    let mut tree = Tree::copy()?;
    let mut killed = Killed::read(&tree)?;
    if options.resume {
        chosen.retain(|mutant| !killed.holds(mutant));
    }
    // Neighbours share what has to be built again.
    let built_alike = |mutant: &&Mutant| (mutant.part(), mutant.features.clone());
    chosen.sort_by_key(|mutant| (built_alike(mutant), &mutant.file));
    let (mut green, mut wrong, mut tried) = (true, Vec::new(), 0);
    for mutants in chosen.chunk_by(|one, next| built_alike(one) == built_alike(next)) {
        if !tree.baseline(mutants)? {
            green = false;
            continue;
        }
        for mutant in mutants {
            let started = Instant::now();
            let end = tree.try_one(mutant)?;
            tried += 1;
            println!("{tried}/{} {} {end} in {} s", chosen.len(), mutant.id, started.elapsed().as_secs());
            match end {
                End::Killed(reds) => {
                    for red in reds {
                        println!("    {red}");
                    }
                    killed.add(mutant)?;
                }
                end => wrong.push((mutant, end)),
            }
        }
    }
    println!();
    for (mutant, end) in &wrong {
        println!("{}: {end}\n  in {}\n  {}", mutant.id, mutant.file.display(), mutant.why);
    }
    println!("{} killed, {} not, {} not tried", tried - wrong.len(), wrong.len(), chosen.len() - tried);
    Ok(green && wrong.is_empty())
}

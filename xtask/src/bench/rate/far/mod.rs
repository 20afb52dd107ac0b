//! `cargo xtask bench rate --guest 6.12`: what paces TCP now, beside departure times that sch_fq keeps, over ways as long as those
//! to another continent. In a guest, because there a kernel has sch_fq and sch_netem; emulated, so the rates are low.

mod departures;
mod inside;
mod table;

use super::{super::Options, FEWEST, Pairs, page};
use crate::{bench::median, cargo, invoker, setup, vm};
use anyhow::{Result, bail, ensure};
pub(crate) use inside::measure;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Who holds a sender to its rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
enum Keeper {
    /// egressd; TCP waits by its own timers.
    Egressd,
    /// egressd; TCP leaves the waiting to fq on the device.
    EgressdWithFq,
    /// One clock for the sandbox says when each packet may depart, and fq holds it until then.
    Departures,
    /// egressd at the device of a guest: what comes too fast is dropped.
    Device,
}

impl Keeper {
    const ALL: [Self; 4] = [Self::Egressd, Self::EgressdWithFq, Self::Departures, Self::Device];

    const fn name(self) -> &'static str {
        match self {
            Self::Egressd => "egressd",
            Self::EgressdWithFq => "egressd, fq on the device",
            Self::Departures => "departure times, fq",
            Self::Device => "egressd at a guest's device",
        }
    }
}

/// What is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
enum Kind {
    Cubic,
    Bbr,
    Udp,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Cubic, Self::Bbr, Self::Udp];

    const fn name(self) -> &'static str {
        match self {
            Self::Cubic => "cubic",
            Self::Bbr => "bbr",
            Self::Udp => "udp",
        }
    }
}

/// A rate on a way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Path {
    mbit: u32,
    /// There and back.
    way_ms: u32,
}

/// One line of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Row {
    path: Path,
    kind: Kind,
    flows: u32,
}

/// What the guest tells, a line each.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
enum Told {
    /// Achieved to configured, behind two seconds, and in the first one.
    Sent { row: Row, keeper: Keeper, ratio: f64, first: f64 },
    /// Round trips in milliseconds beside one flow of cubic.
    Probed { path: Path, keeper: Keeper, p50_ms: f64, lost: u32 },
}

struct Results {
    ratios: Pairs<Keeper, Row>,
    firsts: BTreeMap<(Row, Keeper), Vec<f64>>,
    probes: BTreeMap<(Path, Keeper), Vec<f64>>,
    lost: BTreeMap<(Path, Keeper), u32>,
}

impl Results {
    fn add(&mut self, told: Told) {
        match told {
            Told::Sent { row, keeper, ratio, first } => {
                let firsts = self.firsts.entry((row, keeper)).or_default();
                firsts.push(first);
                self.ratios.push(row, keeper, firsts.len(), ratio);
            }
            Told::Probed { path, keeper, p50_ms, lost } => {
                self.probes.entry((path, keeper)).or_default().push(p50_ms);
                *self.lost.entry((path, keeper)).or_default() += lost;
            }
        }
    }

    fn first(&self, row: Row, keeper: Keeper) -> Option<f64> {
        self.firsts.get(&(row, keeper)).map(|values| median(&mut values.clone()))
    }

    fn probe(&self, path: Path, keeper: Keeper) -> Option<f64> {
        self.probes.get(&(path, keeper)).map(|values| median(&mut values.clone()))
    }
}

/// True when the guest measured all: there is no goal, what wins is somebody's to say.
pub(in crate::bench) fn run(options: &Options, series: &str) -> Result<bool> {
    setup::ready()?;
    if !invoker::is_root() {
        bail!("the guest reads this machine's files as root: sudo -E cargo xtask bench rate --guest {series}");
    }
    // A debug build: what is measured is the kernel half, which has one form.
    let egressd = cargo::build_egressd(&[])?;
    let rounds = options.rounds.unwrap_or(if options.quick { 1 } else { FEWEST });
    let script = format!(
        "cd {}\nexport EGRESS_LAB_STRICT=1 EGRESSD_BIN={}\n{} far {rounds}{} 2>&1",
        cargo::workspace().display(),
        egressd.display(),
        std::env::current_exe()?.display(),
        if options.quick { " --quick" } else { "" }
    );
    let mut results =
        Results { ratios: Pairs::new(), firsts: BTreeMap::new(), probes: BTreeMap::new(), lost: BTreeMap::new() };
    let mut done = false;
    vm::in_guest(series, &script, |line| {
        eprintln!("{line}");
        done |= line == inside::DONE;
        if let Ok(told) = serde_json::from_str(line) {
            results.add(told);
        }
    })?;
    ensure!(done, "the guest ended before it was done; what its kernel said is in target/kernels/{series}/console.log");
    let text = table::render(&results, series, rounds)?;
    println!("{text}");
    if !options.quick && rounds >= FEWEST {
        page::write(&text)?;
    }
    Ok(true)
}

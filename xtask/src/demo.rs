//! `cargo xtask demo`: an internet in a box, real curl, and what egressd lets through. The sinks are asked, not the log.

use crate::{cargo, invoker, setup, tally::Tally};
use anyhow::{Result, bail};
use lab::{EVIL, Lab, Output, PROXY};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// One command line in the box, and how it has to end.
struct Step {
    /// Flags of `egressd run`; empty: without egressd.
    flags: &'static str,
    curl: &'static str,
    expected: Expected,
}

#[derive(Clone, Copy)]
enum Expected {
    /// The server at this address answers, through whatever is between.
    Answer(&'static str),
    /// curl's own exit code: 6 = the name was not resolved, 7 = the connection was refused.
    Refusal(i32),
}

const ALLOW: &str = "--allow ok.test";
const PROXY_ONLY: &str = "--proxy 198.51.100.80:3128";

const STEPS: &[Step] = &[
    Step { flags: ALLOW, curl: "http://ok.test/by-name", expected: Expected::Answer("198.51.100.10") },
    Step { flags: ALLOW, curl: "http://evil.test/by-name", expected: Expected::Refusal(6) },
    Step { flags: ALLOW, curl: "http://198.51.100.20/by-address", expected: Expected::Refusal(7) },
    Step {
        flags: PROXY_ONLY,
        curl: "-x 198.51.100.80:3128 http://ok.test/by-proxy",
        expected: Expected::Answer("198.51.100.10"),
    },
    Step { flags: PROXY_ONLY, curl: "http://198.51.100.10/past-proxy", expected: Expected::Refusal(7) },
];

/// The same box without egressd, last: what was refused above would have arrived.
const CONTROL: Step =
    Step { flags: "", curl: "http://198.51.100.20/control", expected: Expected::Answer("198.51.100.20") };

/// Builds, runs the demo, and counts what came as expected.
pub(crate) fn run() -> Result<Tally> {
    setup::ready()?;
    cargo::build_egressd(&[])?;
    if !invoker::is_root() {
        bail!("the demo makes namespaces, cgroups and BPF programs: sudo make demo");
    }
    // The lab panics where the world cannot be built or asked; here that is a failure among others.
    catch_unwind(AssertUnwindSafe(in_a_box)).or_else(|_| bail!("the box could not be built or asked, see above"))
}

fn in_a_box() -> Tally {
    let lab = Lab::new();
    let _squid = lab.squid(&["ok.test"]);
    println!("An internet in a box: ok.test is 198.51.100.10, evil.test .20, the resolver .53, Squid .80");
    let mut tally = Tally::default();
    for step in STEPS {
        tally.add(step.run(&lab));
    }
    tally.add(sinks(&lab));
    println!("Without egressd, the same address:");
    tally.add(CONTROL.run(&lab));
    println!("{} of {} as expected", tally.passed, tally.passed + tally.failed);
    tally
}

/// What really arrived, whatever anybody said.
fn sinks(lab: &Lab) -> Tally {
    let direct = lab.hits("/by-name ").len();
    let proxied = lab.hits("/by-proxy ").iter().filter(|hit| hit.src.ip() == PROXY).count();
    let frames = lab.frames_to(EVIL).len();
    let asked = lab.zone().queries_for("evil.test").len();
    println!(
        "At the sinks: ok.test got {direct} request directly and {proxied} by Squid, evil.test {frames} frames; \
         the resolver was asked {asked} times for evil.test"
    );
    Tally::one([direct, proxied, frames, asked] == [1, 1, 0, 0])
}

impl Step {
    /// Runs it, shows it, and says whether it ended as it should.
    fn run(&self, lab: &Lab) -> Tally {
        let curl = format!("curl -sS -m 5 {}", self.curl);
        let (shown, output) = if self.flags.is_empty() {
            (format!("curl {}", self.curl), lab.unconfined(&curl))
        } else {
            (format!("egressd run {} -- curl {}", self.flags, self.curl), lab.sh(self.flags, &format!("exec {curl}")))
        };
        println!("$ {shown}");
        let as_expected = self.expected.is_met_by(&output);
        for line in output.stdout.lines().chain(output.stderr.lines()) {
            // When all is well, what was answered and what was denied tell it; otherwise every word counts.
            let notice = line.starts_with("egressd:") && !line.contains("denied");
            let dull = line.trim().is_empty() || (as_expected && notice);
            if !dull {
                println!("  {line}");
            }
        }
        if !as_expected {
            println!("  NOT AS EXPECTED: should be {}, exit status is {:?}", self.expected.words(), output.code);
        }
        Tally::one(as_expected)
    }
}

impl Expected {
    fn is_met_by(self, output: &Output) -> bool {
        match self {
            Self::Answer(address) => output.code == Some(0) && output.stdout.trim() == format!("sink {address}"),
            Self::Refusal(code) => output.code == Some(code),
        }
    }

    fn words(self) -> String {
        match self {
            Self::Answer(address) => format!("an answer from {address}"),
            Self::Refusal(code) => format!("refusal, curl's exit code {code}"),
        }
    }
}

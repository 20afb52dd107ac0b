//! `egressd verify`: is the sandbox really closed?

use super::{exit::Exit, term};
use anyhow::Result;
use clap::Args;
use egress_agent::{
    observe::{escape, event::SCHEMA},
    sandbox::Directories,
    verify::{self, Outcome, Proof, Row},
};
use serde::Serialize;
use std::path::PathBuf;

/// Try every way out from inside a sandbox, and say which are closed
///
/// Nothing that is tried can leave the machine. Exits 5 where something got out, and 3 where something could not be shown.
#[derive(Args, Debug)]
#[command(after_help = "Example: egressd verify --cgroup /ci.slice/job-1")]
pub(super) struct Verify {
    /// The sandbox on this cgroup; needed where there are several, e.g. --cgroup /ci.slice/job-1
    #[arg(long, value_name = "PATH")]
    cgroup: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Document<'a> {
    schema: u32,
    #[serde(flatten)]
    report: &'a verify::Report,
}

impl Verify {
    pub(super) fn act(self, directories: &Directories) -> Result<u8> {
        let report = verify::verify(directories, self.cgroup.as_deref())?;
        if self.json {
            term::out(&to_json(&report)?)?;
        } else {
            table(&report.rows).print()?;
        }
        term::say(&super::status::level_line(&report.level));
        Ok(exit(&report).into())
    }
}

fn to_json(report: &verify::Report) -> serde_json::Result<String> {
    escape::json_line(&Document { schema: SCHEMA, report })
}

/// What got out weighs more than what could not be shown.
fn exit(report: &verify::Report) -> Exit {
    if report.with(Outcome::Leaked).next().is_some() {
        Exit::Lost
    } else if report.is_closed() {
        Exit::Done
    } else {
        Exit::Needs
    }
}

fn table<'a>(rows: impl IntoIterator<Item = &'a Row>) -> term::Table {
    let mut table = term::Table::new(&["TECHNIQUE", "AT", "OUTCOME", "BY", "WHY"]);
    for row in rows {
        let by = match row.proof {
            Some(Proof::Sink) => "sink",
            Some(Proof::TestRun) => "test run",
            Some(Proof::Answer) => "answer",
            Some(Proof::Listing) => "listing",
            None => "-",
        };
        table.row([row.technique, row.at.as_str(), word(row.outcome), by, row.detail.as_str()].map(escape::text));
    }
    table
}

const fn word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Contained => "contained",
        Outcome::Leaked => "LEAKED",
        Outcome::Permitted => "permitted",
        Outcome::NotApplicable => "not applicable",
        Outcome::NotShown => "NOT SHOWN",
    }
}

/// Every row that keeps a command from being started, in one line; none where nothing does.
pub(super) fn objection(report: &verify::Report) -> Option<String> {
    let bad = report.with(Outcome::Leaked).chain(report.with(Outcome::NotShown));
    let said = bad.map(|row| format!("{} at {}: {} ({})", row.technique, row.at, word(row.outcome), row.detail));
    said.reduce(|all, one| format!("{all}; {one}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use egress_agent::sandbox::Reached;

    fn report(outcomes: &[Outcome]) -> verify::Report {
        let row = |&outcome| Row {
            technique: "udp_v4",
            at: "cgroup".into(),
            outcome,
            proof: Some(Proof::Sink),
            detail: String::new(),
        };
        let level = Reached { level: None, text: "none".into(), missing: Vec::new() };
        let rows = outcomes.iter().map(row).collect();
        verify::Report { sandbox: "ci-7".into(), cgroup: "/ci".into(), level, rows, traces: verify::Traces::default() }
    }

    #[test]
    fn a_leak_weighs_more_than_what_was_not_shown() {
        use Outcome::{Contained, Leaked, NotApplicable, NotShown, Permitted};
        for (outcomes, expected) in [
            (vec![Contained, Permitted, NotApplicable], Exit::Done),
            (vec![Contained, NotShown], Exit::Needs),
            (vec![NotShown, Leaked, Contained], Exit::Lost),
        ] {
            let report = report(&outcomes);
            assert_eq!((exit(&report), objection(&report).is_none()), (expected, expected == Exit::Done));
        }
    }

    #[test]
    fn the_json_form_is_this() {
        assert_eq!(
            to_json(&report(&[Outcome::NotApplicable])).unwrap(),
            concat!(
                r#"{"schema":1,"sandbox":"ci-7","cgroup":"/ci","level":{"level":null,"text":"none","missing":[]},"#,
                r#""rows":[{"technique":"udp_v4","at":"cgroup","outcome":"not_applicable","proof":"sink","detail":""}]}"#,
            )
        );
    }
}

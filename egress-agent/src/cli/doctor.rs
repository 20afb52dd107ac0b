//! `egressd doctor`: what this host can enforce.

use super::{exit::Exit, term};
use anyhow::Result;
use clap::Args;
use egress_agent::{
    observe::{escape, event::SCHEMA},
    sandbox::needs::{self, Need, Present, Survey},
};
use serde::Serialize;

/// Say what this kernel and host can enforce, and what not
///
/// Exits 3 where something is missing or could not be looked at.
#[derive(Args, Debug)]
#[command(after_help = "Example: egressd doctor --json")]
pub(super) struct Doctor {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report<'a> {
    schema: u32,
    #[serde(flatten)]
    survey: &'a Survey,
}

impl Doctor {
    pub(super) fn act(self) -> Result<u8> {
        let survey = needs::probe();
        if self.json {
            term::out(&to_json(&survey)?)?;
        } else {
            table(&survey.needs).print()?;
        }
        term::say(&verdict(&survey));
        Ok(exit(&survey.needs).into())
    }
}

fn to_json(survey: &Survey) -> serde_json::Result<String> {
    escape::json_line(&Report { schema: SCHEMA, survey })
}

/// What it comes to.
fn verdict(survey: &Survey) -> String {
    let highest = survey.highest.map_or_else(|| "none".to_owned(), |level| level.to_string());
    format!("kernel {}: highest level possible {highest}", survey.kernel)
}

/// What could not be looked at counts as missing; what no level needs does not.
fn exit(needs: &[Need]) -> Exit {
    let fine = |need: &Need| matches!(need.present, Present::Yes | Present::Absent(_));
    if needs.iter().all(fine) { Exit::Done } else { Exit::Needs }
}

fn table(needs: &[Need]) -> term::Table {
    let mut table = term::Table::new(&["HOOK", "KERNEL", "LEVEL", "PRESENT", "CONTAINS", "MISSING: WHAT TO DO"]);
    for need in needs {
        let (present, fix) = match &need.present {
            Present::Yes => ("yes".to_owned(), ""),
            Present::No => ("NO".to_owned(), need.fix.as_str()),
            Present::Absent(why) => (format!("not here: {}", escape::text(why)), need.fix.as_str()),
            Present::Unknown(why) => (format!("UNKNOWN: {}", escape::text(why)), need.fix.as_str()),
        };
        let level = need.level.map_or_else(|| "-".to_owned(), |level| level.to_string());
        let [hook, kernel, contains, fix] = [need.hook, need.kernel, need.contains, fix].map(str::to_owned);
        table.row([hook, kernel, level, present, contains, fix]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use egress_agent::sandbox::{Level, needs::Verified};

    fn need(present: Present) -> Need {
        let level = Some(Level::L1);
        Need { hook: "connect4", kernel: "4.17", contains: "connect()", level, present, fix: "a newer kernel".into() }
    }

    #[test]
    fn only_what_was_seen_counts() {
        assert_eq!(exit(&[need(Present::Yes)]), Exit::Done);
        assert_eq!(exit(&[need(Present::Yes), need(Present::No)]), Exit::Needs);
        assert_eq!(exit(&[need(Present::Yes), need(Present::Absent("an old kernel".into()))]), Exit::Done);
        assert_eq!(exit(&[need(Present::Unknown("not root".into()))]), Exit::Needs);
    }

    #[test]
    fn the_json_form_is_this() {
        let survey = Survey {
            kernel: "6.18.5".into(),
            highest: None,
            needs: vec![need(Present::Unknown("not root".into()))],
            programs: vec![Verified { program: "connect4".into(), verified_instructions: Some(700) }],
        };
        assert_eq!(
            to_json(&survey).unwrap(),
            concat!(
                r#"{"schema":1,"kernel":"6.18.5","highest":null,"needs":[{"hook":"connect4","kernel":"4.17","contains":"connect()","#,
                r#""level":"L1","present":"unknown","why":"not root","fix":"a newer kernel"}],"#,
                r#""programs":[{"program":"connect4","verified_instructions":700}]}"#,
            )
        );
        assert_eq!(verdict(&survey), "kernel 6.18.5: highest level possible none");
    }
}

//! `egressd doctor`: what this host can enforce.

use super::{exit::Exit, term};
use anyhow::Result;
use clap::Args;
use egress_agent::{
    observe::{escape, event::SCHEMA},
    sandbox::needs::{self, Need, Present},
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
    needs: &'a [Need],
}

impl Doctor {
    pub(super) fn act(self) -> Result<u8> {
        let needs = needs::probe();
        if self.json {
            term::out(&to_json(&needs)?)?;
        } else {
            table(&needs).print()?;
        }
        Ok(exit(&needs).into())
    }
}

fn to_json(needs: &[Need]) -> serde_json::Result<String> {
    escape::json_line(&Report { schema: SCHEMA, needs })
}

/// What could not be looked at counts as missing.
fn exit(needs: &[Need]) -> Exit {
    if needs.iter().all(|need| need.present == Present::Yes) { Exit::Done } else { Exit::Needs }
}

fn table(needs: &[Need]) -> term::Table {
    let mut table = term::Table::new(&["HOOK", "KERNEL", "PRESENT", "CONTAINS", "FIX"]);
    for need in needs {
        let (present, fix) = match &need.present {
            Present::Yes => ("yes".to_owned(), ""),
            Present::No => ("NO".to_owned(), need.fix.as_str()),
            Present::Unknown(why) => (format!("UNKNOWN: {}", escape::text(why)), need.fix.as_str()),
        };
        table.row([need.hook.to_owned(), need.kernel.to_owned(), present, need.contains.to_owned(), fix.to_owned()]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn need(present: Present) -> Need {
        Need { hook: "connect4", kernel: "4.17", contains: "connect()", present, fix: "a newer kernel".into() }
    }

    #[test]
    fn only_what_was_seen_counts() {
        assert_eq!(exit(&[need(Present::Yes)]), Exit::Done);
        assert_eq!(exit(&[need(Present::Yes), need(Present::No)]), Exit::Needs);
        assert_eq!(exit(&[need(Present::Unknown("not root".into()))]), Exit::Needs);
    }

    #[test]
    fn the_json_form_is_this() {
        assert_eq!(
            to_json(&[need(Present::Unknown("not root".into()))]).unwrap(),
            concat!(
                r#"{"schema":1,"needs":[{"hook":"connect4","kernel":"4.17","contains":"connect()","present":"unknown","#,
                r#""why":"not root","fix":"a newer kernel"}]}"#,
            )
        );
    }
}

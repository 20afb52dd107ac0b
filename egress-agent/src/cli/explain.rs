//! `egressd explain`: what holds for one destination, and why.

use super::{exit::Exit, exit::Refused, term, which::One};
use anyhow::Result;
use clap::Args;
use egress_agent::{
    observe::{escape, event::SCHEMA},
    policy::Destination,
    sandbox::{self, Directories, Explanation},
};
use serde::Serialize;

/// Say whether a destination is allowed or denied, by which rule and until when
#[derive(Args, Debug)]
#[command(after_help = "Example: egressd explain github.com:22 --cgroup /ci.slice/job-1")]
pub(super) struct Explain {
    /// Name, address or network, with ports where those matter, e.g. 198.51.100.7:5432/tcp
    #[arg(value_name = "DEST")]
    destination: String,
    #[command(flatten)]
    one: One,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report<'a> {
    schema: u32,
    explanations: &'a [Explanation],
}

impl Explain {
    pub(super) fn act(self, directories: &Directories) -> Result<u8> {
        let destination: Destination = self
            .destination
            .parse()
            .map_err(|source| Refused::Destination { text: self.destination.clone(), source })?;
        let explanations = sandbox::explain(directories, self.one.which().as_ref(), &destination)?;
        if self.json {
            term::out(&to_json(&explanations)?)?;
        } else {
            for explanation in &explanations {
                term::out(&line(explanation, &term::verdict(explanation.verdict)))?;
            }
        }
        Ok(Exit::Done.into())
    }
}

fn to_json(explanations: &[Explanation]) -> serde_json::Result<String> {
    escape::json_line(&Report { schema: SCHEMA, explanations })
}

/// One sentence. `verdict` may be coloured.
fn line(explanation: &Explanation, verdict: &str) -> String {
    let Explanation { destination, address, reason, rule, expires, names, .. } = explanation;
    let address = address.map(|address| address.to_string()).filter(|address| !destination.contains(address));
    let names = names.iter().map(|name| escape::text(name)).reduce(|all, name| format!("{all}, {name}"));
    [
        Some(escape::text(destination)),
        address.map(|address| format!(" ({address})")),
        Some(format!(": {verdict}, {}", escape::text(reason))),
        rule.as_deref().map(|rule| format!(", by \"{}\"", escape::text(rule))),
        expires.map(|expires| format!(", until {}", humantime::format_rfc3339_seconds(expires))),
        names.map(|names| format!("; the address is also that of {names}")),
    ]
    .into_iter()
    .flatten()
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use egress_agent::observe::event::Verdict;
    use std::time::{Duration, SystemTime};

    fn explanation() -> Explanation {
        Explanation {
            destination: "db.test:5432/tcp".into(),
            address: Some("198.51.100.7".parse().unwrap()),
            verdict: Verdict::Allow,
            reason: "permitted".into(),
            rule: Some("db.test:5432".into()),
            expires: Some(SystemTime::UNIX_EPOCH + Duration::from_hours(500_000)),
            names: vec!["cache.test".into()],
        }
    }

    #[test]
    fn a_line_says_who_allows_and_until_when() {
        assert_eq!(
            line(&explanation(), "allow"),
            "db.test:5432/tcp (198.51.100.7): allow, permitted, by \"db.test:5432\", until 2027-01-15T08:00:00Z; \
             the address is also that of cache.test"
        );
        let denied = Explanation {
            destination: "198.51.100.7:22/tcp".into(),
            verdict: Verdict::Deny,
            reason: "port_not_permitted".into(),
            rule: None,
            expires: None,
            names: Vec::new(),
            ..explanation()
        };
        assert_eq!(line(&denied, "deny"), "198.51.100.7:22/tcp: deny, port_not_permitted");
    }

    #[test]
    fn the_json_form_is_this() {
        assert_eq!(
            to_json(&[explanation()]).unwrap(),
            concat!(
                r#"{"schema":1,"explanations":[{"destination":"db.test:5432/tcp","address":"198.51.100.7","verdict":"allow","#,
                r#""reason":"permitted","rule":"db.test:5432","expires":"2027-01-15T08:00:00.000Z","names":["cache.test"]}]}"#,
            )
        );
    }
}

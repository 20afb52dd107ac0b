//! `egressd status`: what is in force now, as the kernel has it.

use super::{exit::Exit, term, which::One};
use anyhow::Result;
use clap::Args;
use egress_agent::{
    observe::{escape, event::SCHEMA},
    policy::Amount,
    sandbox::{self, Directories, Reached, Which},
};
use serde::Serialize;
use std::path::PathBuf;

/// List sandboxes with level, hooks, policy and counters
///
/// With --cgroup or --device it exits 0 only where a policy is in force there.
#[derive(Args, Debug)]
#[command(after_help = "Example: egressd status --json")]
pub(super) struct Status {
    #[command(flatten)]
    one: One,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report<'a> {
    schema: u32,
    sandboxes: &'a [sandbox::Status],
}

impl Status {
    pub(super) fn act(self, directories: &Directories) -> Result<u8> {
        let mut found = sandbox::list(directories)?;
        let asked = self.one.which();
        match &asked {
            Some(Which::Cgroup(path)) => {
                let name = name_of(path);
                found.retain(|status| status.cgroup.as_deref().is_some_and(|cgroup| name.as_os_str() == cgroup));
            }
            // The device of a cgroup's sandbox names no guest.
            Some(Which::Device(name)) => {
                found.retain(|status| status.cgroup.is_none() && status.device.as_ref() == Some(name));
            }
            None => {}
        }
        if self.json {
            term::out(&to_json(&found)?)?;
        } else {
            table(&found).print()?;
        }
        // Whoever names one wants to know of that one: none there is as bad as one without hooks.
        let lost = found.iter().any(|status| !status.in_force) || (asked.is_some() && found.is_empty());
        if let (Some(which), true) = (asked, found.is_empty()) {
            term::say(&format!("no policy is in force on {which}"));
        }
        Ok(if lost { Exit::Lost } else { Exit::Done }.into())
    }
}

/// The name of a cgroup that was typed as a directory or as a name; a removed one keeps what was typed.
fn name_of(path: &std::path::Path) -> PathBuf {
    use egress_agent::cgroup::{Cgroup, CgroupMount};
    let opened = CgroupMount::find().and_then(|mount| Cgroup::open(&mount, path));
    opened.map_or_else(|_| path.to_owned(), |cgroup| cgroup.name().to_owned())
}

fn to_json(sandboxes: &[sandbox::Status]) -> serde_json::Result<String> {
    escape::json_line(&Report { schema: SCHEMA, sandboxes })
}

fn table(sandboxes: &[sandbox::Status]) -> term::Table {
    let mut table = term::Table::new(&[
        "SANDBOX",
        "POLICY",
        "MODE",
        "LEVEL",
        "IN FORCE",
        "GENERATION",
        "DENIED",
        "DNS",
        "CGROUP",
        "SENT",
    ]);
    for status in sandboxes {
        let attached = status.hooks.iter().filter(|hook| hook.attached).count();
        let in_force =
            if status.in_force { "yes".to_owned() } else { format!("NO ({attached}/{} hooks)", status.hooks.len()) };
        let dns = status.agent_pid.map_or_else(|| "nobody".to_owned(), |pid| format!("pid {pid}"));
        table.row(
            [
                status.sandbox.as_str(),
                status.policy.as_deref().unwrap_or("-"),
                status.mode.as_str(),
                status.level.text.as_str(),
                in_force.as_str(),
                status.generation.to_string().as_str(),
                status.counters.denied_total().to_string().as_str(),
                dns.as_str(),
                status.cgroup.as_deref().or(status.device.as_deref()).unwrap_or("-"),
                sent(status).as_str(),
            ]
            .map(escape::text),
        );
    }
    table
}

/// What left it, and of how much where there is a budget.
fn sent(status: &sandbox::Status) -> String {
    let budget = status.bandwidth.as_ref().and_then(|bandwidth| Some((bandwidth.spent, bandwidth.budget?)));
    match budget {
        Some((spent, budget)) => format!("{} of {}", Amount::about(spent), Amount::about(budget)),
        None => Amount::about(status.counters.allowed_bytes),
    }
}

/// What is promised and what it would take to promise more, in one line.
pub(super) fn level_line(reached: &Reached) -> String {
    let parts: Vec<&str> = std::iter::once(&reached.text).chain(&reached.missing).map(String::as_str).collect();
    format!("level {}", parts.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use egress_agent::{
        observe::counters::Totals,
        sandbox::{BandwidthStatus, HookStatus, How, Level, LimitStatus, MapUse, Sent},
    };

    fn status() -> sandbox::Status {
        sandbox::Status {
            sandbox: "egressd-1-0".into(),
            policy: Some("ci-build".into()),
            mode: "enforce".into(),
            cgroup: Some("/ci/egressd-1-0".into()),
            device: None,
            in_force: true,
            generation: 2,
            level: Reached {
                level: Some(Level::L1),
                text: "L1".into(),
                missing: vec!["for L2: a network namespace".into()],
            },
            agent_pid: Some(77),
            hooks: vec![HookStatus { hook: "connect4".into(), attached: true }],
            maps: vec![MapUse { map: "PERMITS".into(), entries: 3, capacity: 65536 }],
            counters: Totals { allowed_packets: 10, allowed_bytes: 900, ..Totals::default() },
            bandwidth: Some(BandwidthStatus {
                egress: Some(LimitStatus {
                    rate: 10_000_000,
                    how: How::Paced,
                    bytes: 900,
                    dropped_packets: 1,
                    dropped_bytes: 1500,
                    debt_ms: 3,
                }),
                ingress: None,
                budget: Some(1000),
                spent: 900,
            }),
            destinations: vec![Sent { destination: "ok.test:443".into(), packets: 9, bytes: 800 }],
        }
    }

    #[test]
    fn the_json_form_is_this() {
        assert_eq!(
            to_json(&[status()]).unwrap(),
            concat!(
                r#"{"schema":1,"sandboxes":[{"sandbox":"egressd-1-0","policy":"ci-build","mode":"enforce","cgroup":"/ci/egressd-1-0","#,
                r#""device":null,"in_force":true,"generation":2,"level":{"level":"L1","text":"L1","missing":["for L2: a network namespace"]},"#,
                r#""agent_pid":77,"hooks":[{"hook":"connect4","attached":true}],"#,
                r#""maps":[{"map":"PERMITS","entries":3,"capacity":65536}],"#,
                r#""counters":{"allowed_packets":10,"allowed_bytes":900,"denied":{},"events_lost":0},"#,
                r#""bandwidth":{"egress":{"rate":10000000,"how":"paced","bytes":900,"dropped_packets":1,"dropped_bytes":1500,"debt_ms":3},"#,
                r#""ingress":null,"budget":1000,"spent":900},"#,
                r#""destinations":[{"destination":"ok.test:443","packets":9,"bytes":800}]}]}"#,
            )
        );
        assert_eq!(to_json(&[]).unwrap(), r#"{"schema":1,"sandboxes":[]}"#);
    }

    #[test]
    fn bytes_are_for_people_in_the_text_form() {
        let mut status = status();
        assert_eq!(sent(&status), "900 B of 1 kB");
        status.bandwidth = None;
        status.counters.allowed_bytes = 1_234_567;
        assert_eq!(sent(&status), "1.2 MB");
    }

    #[test]
    fn the_level_line_says_what_is_missing() {
        assert_eq!(level_line(&status().level), "level L1; for L2: a network namespace");
        let full = Reached { missing: Vec::new(), ..status().level };
        assert_eq!(level_line(&full), "level L1");
    }
}

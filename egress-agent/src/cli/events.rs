//! `egressd events`: what happened, and what happens.

use super::{exit::Exit, term, which::One};
use anyhow::Result;
use clap::{Args, ValueEnum};
use egress_agent::{
    observe::{
        escape,
        event::{Event, Kind, Verdict},
        tail::Tail,
    },
    sandbox::{self, Directories},
};
use std::{collections::BTreeMap, net::IpAddr, path::PathBuf, time::Duration};

/// How often a followed file is looked at.
const INTERVAL: Duration = Duration::from_millis(200);

/// Show what sandboxes did, one event a line
#[derive(Args, Debug)]
#[command(after_help = "Example: egressd events --follow --verdict deny")]
pub(super) struct Events {
    /// Go on as events come
    #[arg(long, short)]
    follow: bool,
    /// Print JSON, one object a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    one: One,
    /// Only events with this verdict, e.g. --verdict deny
    #[arg(long, value_name = "VERDICT")]
    verdict: Option<Wanted>,
}

/// `--verdict`
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
#[value(rename_all = "snake_case")]
enum Wanted {
    Allow,
    Deny,
    WouldDeny,
}

impl Wanted {
    /// How many were lost is shown whatever is asked for: it is what the answer lacks.
    fn shows(self, event: &Event) -> bool {
        let wanted = match self {
            Self::Allow => Verdict::Allow,
            Self::Deny => Verdict::Deny,
            Self::WouldDeny => Verdict::WouldDeny,
        };
        event.verdict == Some(wanted) || event.event == Kind::Lost
    }
}

impl Events {
    pub(super) fn act(self, directories: &Directories) -> Result<u8> {
        let which = self.one.which();
        let mut files = sandbox::event_files(directories, which.as_ref())?;
        let mut tails: BTreeMap<PathBuf, Tail> = BTreeMap::new();
        let mut gone = false;
        loop {
            for file in &files {
                if !tails.contains_key(file) {
                    tails.insert(file.clone(), Tail::open(file)?);
                }
            }
            // Those whose file was removed are read to their end once more.
            for tail in tails.values_mut() {
                while let Some(event) = tail.poll()? {
                    self.show(&event)?;
                }
            }
            if gone || !self.follow {
                return Ok(Exit::Done.into());
            }
            tails.retain(|file, _| files.contains(file));
            std::thread::sleep(INTERVAL);
            files = match sandbox::event_files(directories, which.as_ref()) {
                Ok(files) => files,
                // The one sandbox that was asked for has ended.
                Err(_) if which.is_some() => {
                    gone = true;
                    Vec::new()
                }
                Err(error) => return Err(error.into()),
            };
        }
    }

    fn show(&self, event: &Event) -> Result<()> {
        if self.verdict.is_some_and(|wanted| !wanted.shows(event)) {
            return Ok(());
        }
        if self.json {
            term::out(&event.to_json_line()?)
        } else {
            term::out(&line(event, &event.verdict.map(term::verdict).unwrap_or_default()))
        }
    }
}

/// One event for people. `verdict` may be coloured.
fn line(event: &Event, verdict: &str) -> String {
    let time = humantime::format_rfc3339_millis(event.time);
    let kind = format!("{:?}", event.event).to_lowercase();
    let mut words = vec![time.to_string(), escape::text(&event.sandbox), kind, verdict.to_owned(), destination(event)];
    words.extend(event.count.filter(|&count| count > 1 || event.event == Kind::Lost).map(|count| format!("{count}x")));
    if let Some(pid) = event.pid {
        let comm = event.comm.as_deref().map(|comm| format!("{}, ", escape::text(comm))).unwrap_or_default();
        words.push(format!("({comm}pid {pid})"));
    }
    words.extend(event.reason.as_deref().map(escape::text));
    words.extend(event.rule.as_deref().map(|rule| format!("by \"{}\"", escape::text(rule))));
    words.retain(|word| !word.is_empty());
    words.join(" ")
}

/// As a policy has it, `name:port/proto`, and the address behind a name.
fn destination(event: &Event) -> String {
    let (host, address) = match (&event.dst_name, event.dst_ip) {
        (Some(name), Some(ip)) => (escape::text(name), format!(" ({ip})")),
        (Some(name), None) => (escape::text(name), String::new()),
        (None, Some(IpAddr::V6(ip))) if event.dst_port.is_some() => (format!("[{ip}]"), String::new()),
        (None, Some(ip)) => (ip.to_string(), String::new()),
        (None, None) => (String::new(), String::new()),
    };
    let port = event.dst_port.map(|port| format!(":{port}")).unwrap_or_default();
    let proto = event.proto.as_deref().map(|proto| format!("/{}", escape::text(proto))).unwrap_or_default();
    format!("{host}{port}{proto}{address}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use egress_agent::observe::event::Subject;
    use std::time::SystemTime;

    fn denied() -> Event {
        let subject = Subject { sandbox: "ci".into(), generation: 1, ..Subject::default() };
        Event {
            verdict: Some(Verdict::Deny),
            reason: Some("not_permitted".into()),
            pid: Some(9),
            comm: Some("x\n::stop".into()),
            count: Some(14),
            ..Event::dns(Kind::Dns, SystemTime::UNIX_EPOCH, &subject, "a\u{1b}[31m.test")
        }
    }

    #[test]
    fn a_line_holds_what_there_is_and_nothing_hostile() {
        assert_eq!(
            line(&denied(), "deny"),
            "1970-01-01T00:00:00.000Z ci dns deny a\\092027\\09209131m.test 14x (x\\010:\\058stop, pid 9) not_permitted"
        );
        let connect = Event {
            dst_ip: Some("2001:db8::7".parse().unwrap()),
            dst_port: Some(443),
            dst_name: None,
            proto: Some("tcp".into()),
            rule: Some("[2001:db8::]/32".into()),
            pid: None,
            count: Some(1),
            ..denied()
        };
        assert_eq!(
            line(&connect, "deny"),
            "1970-01-01T00:00:00.000Z ci dns deny [2001:db8::7]:443/tcp not_permitted by \"[2001:db8:\\058]/32\""
        );
    }

    #[test]
    fn a_filter_keeps_what_was_asked_for_and_what_was_lost() {
        let lost = Event::lost(SystemTime::UNIX_EPOCH, &Subject::default(), 3);
        assert!(Wanted::Deny.shows(&denied()) && Wanted::Deny.shows(&lost));
        assert!(!Wanted::Allow.shows(&denied()) && !Wanted::WouldDeny.shows(&denied()));
    }
}

//! The end of a run: one line per denied destination, with what would allow it.

use super::{
    advice::{Advice, Destination, Host, Question, advise},
    escape,
    event::{Event, Kind, SCHEMA, Verdict},
    hosts::Hosts,
};
use serde::Serialize;
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// Lines that [`Summary::lines`] gives for destinations.
pub const LINES: usize = 20;
/// Destinations that are kept apart; further ones are counted together.
pub const DESTINATIONS: usize = 4096;
/// Names that did not resolve of which the first are told.
const FAILURES: usize = 5;
/// Processes of one destination that are told apart.
const PIDS: usize = 64;
/// Where a network stack reports which groups it listens to: IGMPv3 (RFC 3376, 4.2.14) and MLDv2 (RFC 3810, 5.2.14).
const REPORTS: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(224, 0, 0, 22)), IpAddr::V6(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x16))];

/// Collects denials as they are reported.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    hosts: Hosts,
    denied: HashMap<Destination, Denied>,
    /// Names that nobody had anything against and that did not resolve, with the word for it.
    failed: BTreeMap<(String, String), u64>,
    beyond: u64,
    lost: u64,
}

#[derive(Clone, Debug)]
struct Denied {
    count: u64,
    verdict: Verdict,
    reason: String,
    rule: Option<String>,
    addr: Option<IpAddr>,
    comm: Option<String>,
    pid: Option<u32>,
    pids: HashSet<u32>,
    /// `/etc/hosts` gave this name to the address.
    hosts_name: Option<String>,
}

/// One denied destination, as the JSON form has it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
struct Row {
    destination: String,
    count: u64,
    verdict: Verdict,
    reason: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    comm: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hosts_name: Option<String>,
    /// Argument of `--allow`.
    #[serde(skip_serializing_if = "Option::is_none")]
    allow: Option<String>,
    advice: String,
}

/// A name that did not resolve, as the JSON form has it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
struct Failure<'a> {
    name: &'a str,
    reason: &'a str,
    count: u64,
}

/// The whole summary, as the JSON form has it.
#[derive(Serialize)]
struct Report<'a, T> {
    schema: u32,
    denied: Vec<Row>,
    failed: Vec<Failure<'a>>,
    denied_beyond: u64,
    events_lost: u64,
    sent: &'a [T],
}

impl Summary {
    /// An empty summary; `hosts` is the file that the sandbox sees.
    pub fn new(hosts: Hosts) -> Self {
        Self { hosts, ..Self::default() }
    }

    /// Takes note of an event; anything but a denial, a failure or a loss is passed over. So are reports of membership, which a
    /// network stack sends on its own whenever it has a new address: a line about them would blame the command.
    pub fn add(&mut self, event: &Event) {
        let count = event.count.unwrap_or(1);
        if event.event == Kind::Lost {
            self.lost += count;
        }
        if let (Kind::Dns, None, Some(name), Some(reason)) =
            (event.event, event.verdict, &event.dst_name, &event.reason)
            && self.failed.len() < FAILURES
        {
            *self.failed.entry((name.clone(), reason.to_string())).or_default() += count;
        }
        let Some(verdict) = event.verdict.filter(|verdict| verdict.denies()) else { return };
        if event.pid.is_none() && event.dst_ip.is_some_and(|ip| REPORTS.contains(&ip)) {
            return;
        }
        let dest = destination(event);
        if self.denied.len() >= DESTINATIONS && !self.denied.contains_key(&dest) {
            self.beyond += count;
            return;
        }
        // An address that DNS knows needs no word about /etc/hosts.
        let hosts_name = match (&dest.host, event.dst_name.is_some()) {
            (Host::Addr(addr), false) => self.hosts.name(*addr).map(str::to_owned),
            _ => None,
        };
        let denied = self.denied.entry(dest).or_insert_with(|| Denied {
            count: 0,
            verdict,
            reason: event.reason.as_deref().unwrap_or_default().to_owned(),
            rule: event.rule.clone(),
            addr: event.dst_ip,
            comm: None,
            pid: None,
            pids: HashSet::new(),
            hosts_name,
        });
        denied.count += count;
        if denied.pid.is_none() {
            denied.pid = event.pid;
            denied.comm.clone_from(&event.comm);
        }
        if let Some(pid) = event.pid
            && denied.pids.len() < PIDS
        {
            denied.pids.insert(pid);
        }
    }

    /// True where there is nothing to tell.
    pub fn is_empty(&self) -> bool {
        self.denied.is_empty() && self.failed.is_empty() && self.lost == 0
    }

    /// What to print, most frequent first: at most [`LINES`] destinations, then what is beyond them, what did not
    /// resolve and what was lost. Safe for a terminal and a job log.
    pub fn lines(&self) -> Vec<String> {
        let sorted = self.sorted();
        let mut lines: Vec<_> = sorted.iter().take(LINES).map(|(dest, denied)| denied.line(dest)).collect();
        let more = sorted.len().saturating_sub(LINES);
        if more > 0 || self.beyond > 0 {
            let beyond = if self.beyond > 0 { " or more" } else { "" };
            lines.push(format!("egressd: and {more}{beyond} destinations more: egressd events --verdict deny"));
        }
        lines.extend(self.failed.iter().map(|((name, reason), count)| {
            format!("egressd: {name} did not resolve: {} ({count}x)", escape::text(reason))
        }));
        if self.lost > 0 {
            lines.push(format!("egressd: {} events were lost, so the numbers above are too low", self.lost));
        }
        lines
    }

    /// The same for programs, with every destination that was kept, and where it `sent` most: one line of JSON.
    pub fn to_json_line<T: Serialize>(&self, sent: &[T]) -> serde_json::Result<String> {
        let denied = self.sorted().into_iter().map(|(dest, denied)| denied.row(dest)).collect();
        let failed = self.failed.iter().map(|((name, reason), &count)| Failure { name, reason, count }).collect();
        escape::json_line(&Report {
            schema: SCHEMA,
            denied,
            failed,
            denied_beyond: self.beyond,
            events_lost: self.lost,
            sent,
        })
    }

    fn sorted(&self) -> Vec<(&Destination, &Denied)> {
        let mut all: Vec<_> = self.denied.iter().collect();
        all.sort_by(|(a, one), (b, two)| two.count.cmp(&one.count).then_with(|| a.cmp(b)));
        all
    }
}

impl Denied {
    fn advice(&self, dest: &Destination) -> Advice {
        advise(&Question { dest, reason: &self.reason, rule: self.rule.as_deref(), addr: self.addr })
    }

    fn line(&self, dest: &Destination) -> String {
        let verb = if self.verdict == Verdict::WouldDeny { "would deny" } else { "denied" };
        let hosts = self.hosts_name.as_ref().map(|name| format!(" - /etc/hosts names it {name}, no DNS answer does"));
        format!(
            "egressd: {verb} {}x {dest}{}{} - {}",
            self.count,
            self.caller().unwrap_or_default(),
            hosts.unwrap_or_default(),
            self.advice(dest)
        )
    }

    fn caller(&self) -> Option<String> {
        let pid = self.pid?;
        let others = match self.pids.len().saturating_sub(1) {
            0 => String::new(),
            n => format!(" and {n} more"),
        };
        let comm = self.comm.as_deref().map(|comm| format!("{}, ", escape::text(comm))).unwrap_or_default();
        Some(format!(" ({comm}pid {pid}{others})"))
    }

    fn row(&self, dest: &Destination) -> Row {
        let advice = self.advice(dest);
        Row {
            destination: dest.to_string(),
            count: self.count,
            verdict: self.verdict,
            reason: self.reason.clone(),
            rule: self.rule.clone(),
            comm: self.comm.clone(),
            pid: self.pid,
            hosts_name: self.hosts_name.clone(),
            advice: advice.to_string(),
            allow: if let Advice::Allow(dest) = advice { Some(dest) } else { None },
        }
    }
}

/// What makes denials the same to a reader: a name where one is known, so that its addresses are one line.
fn destination(event: &Event) -> Destination {
    let host = match (&event.dst_name, event.dst_ip) {
        (Some(name), _) => Host::Name(name.clone()),
        (None, Some(addr)) => Host::Addr(addr),
        (None, None) => Host::Nowhere(event.reason.as_deref().unwrap_or_default().to_owned()),
    };
    Destination { host, port: event.dst_port, proto: event.proto.as_deref().map(str::to_owned) }
}

#[cfg(test)]
#[path = "suggest_tests.rs"]
mod tests;

//! What was tried, and what came of it.

use crate::{
    level::Reached,
    observe::event::{Event, Kind},
};
use serde::Serialize;
use std::net::IpAddr;

/// In each name that is asked for.
pub(super) const NOBODYS: &str = ".egressd-verify.";

/// What came of one way out.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Nothing arrived, and the same from outside of the sandbox did.
    Contained,
    /// It got out.
    Leaked,
    /// What the policy permits arrived: the sandbox is not merely silent.
    Permitted,
    /// There is nothing to show here; the row says why.
    NotApplicable,
    /// The control failed, so nothing is known.
    NotShown,
}

/// How it is known.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Proof {
    /// By what arrived at a sink, or did not.
    Sink,
    /// By running the attached program on the frame; nothing was sent.
    TestRun,
    /// By what the sandbox's name service answered.
    Answer,
    /// By what the kernel lists.
    Listing,
}

/// One line of the table. Keys and values are stable.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Row {
    /// What was tried.
    pub technique: &'static str,
    /// Where it was to be stopped: `cgroup`, `dns`, or the host's end of a device.
    pub at: String,
    /// What came of it.
    pub outcome: Outcome,
    /// How that is known; none where there was nothing to show.
    pub proof: Option<Proof>,
    /// Why, where that is not plain.
    pub detail: String,
}

impl Row {
    pub(super) fn shown(technique: &'static str, at: &str, outcome: Outcome, proof: Proof) -> Self {
        Self { technique, at: at.to_owned(), outcome, proof: Some(proof), detail: String::new() }
    }

    pub(super) fn told(technique: &'static str, at: &str, outcome: Outcome, detail: impl Into<String>) -> Self {
        Self { technique, at: at.to_owned(), outcome, proof: None, detail: detail.into() }
    }

    pub(super) fn because(self, detail: impl Into<String>) -> Self {
        Self { detail: detail.into(), ..self }
    }
}

/// The table.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Report {
    /// Its name.
    pub sandbox: String,
    /// Path of its cgroup.
    pub cgroup: String,
    /// What is promised about it.
    pub level: Reached,
    /// In the order of trying.
    pub rows: Vec<Row>,
    /// What the sandbox's events know of it.
    #[serde(skip)]
    pub traces: Traces,
}

/// By what an event is known as one of the probes'.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Traces {
    /// The process that tried.
    pub pid: u32,
    /// At what it aimed, and nobody else does.
    pub addresses: Vec<IpAddr>,
    /// At what others aim as well.
    pub fixed: Vec<IpAddr>,
    /// Devices whose programs were asked about each of them, which names no process.
    pub devices: u64,
}

impl Report {
    /// Rows that came out so.
    pub fn with(&self, outcome: Outcome) -> impl Iterator<Item = &Row> {
        self.rows.iter().filter(move |row| row.outcome == outcome)
    }

    /// True for an event that the probes caused, and nobody of the sandbox.
    pub fn caused(&self, event: &Event) -> bool {
        // A packet names no process: one for each device is what was tried, and more are somebody's.
        let is_tried = event.count <= Some(self.traces.devices);
        match (event.pid, event.dst_ip, &event.dst_name) {
            (_, Some(ip), _) if self.traces.addresses.contains(&ip) => true,
            (_, _, Some(name)) if name.contains(NOBODYS) => true,
            (None, Some(ip), _) if self.traces.fixed.contains(&ip) => is_tried,
            // The rest of a fold names nobody: of sockets that were refused several times, the first was told with its process.
            (None, None, None) => event.proto.is_some() || event.event == Kind::Packet && is_tried,
            (pid, ..) => pid == Some(self.traces.pid),
        }
    }

    /// True where nothing leaked and every row that applies was shown.
    pub fn is_closed(&self) -> bool {
        self.with(Outcome::Leaked).chain(self.with(Outcome::NotShown)).next().is_none()
    }
}

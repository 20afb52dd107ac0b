//! The limiters, each with a lab of its own and the same sender inside.

use anyhow::{Context as _, Result, ensure};
use lab::{BOX, Gauge, Inside, Lab};
use std::time::Duration;

pub(super) const SINK: &str = "198.51.100.10";
const PORT: u16 = 5201;
/// Payload of a datagram of `blast.py`.
const DATAGRAM: f64 = 1400.0;
/// What `blast.py` says of ETIMEDOUT. After a drop by a full queue TCP tries again each half a second, and not for ever
/// (`tcp_send_probe0` in net/ipv4/tcp_output.c).
const GIVEN_UP: &str = "[Errno 110]";

/// What limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Limiter {
    Egressd,
    /// A token bucket filter, as `tc-tbf(8)` recommends it.
    Tbf,
    /// One class of a hierarchical token bucket.
    Htb,
}

impl Limiter {
    pub(super) const ALL: [Self; 3] = [Self::Egressd, Self::Tbf, Self::Htb];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Egressd => "egressd",
            Self::Tbf => "tbf",
            Self::Htb => "htb",
        }
    }
}

/// What sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Tcp,
    Udp,
}

impl Kind {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }

    /// IP bytes of the network for each byte of payload.
    fn overhead(self) -> f64 {
        match self {
            Self::Tcp => 1500.0 / 1448.0,
            Self::Udp => (DATAGRAM + 28.0) / DATAGRAM,
        }
    }
}

/// What came of one sender.
pub(super) struct Run {
    /// Achieved to configured, behind the first two seconds.
    pub(super) ratio: f64,
    /// IP bytes of the first second, to those of a second at the rate.
    pub(super) first: f64,
    /// Megabits per second in slices of [`SLICE`].
    pub(super) slices: Vec<f64>,
}

pub(super) const SLICE: Duration = Duration::from_millis(50);

/// One limiter at one rate.
pub(super) struct Side {
    pub(super) limiter: Limiter,
    pub(super) sender: Sender,
}

impl Side {
    pub(super) fn new(limiter: Limiter, mbit: u32) -> Self {
        let lab = Lab::without_capture();
        // 5 ms at once, and 50 ms of waiting.
        let burst = (mbit * 625).max(5000);
        let queue = match limiter {
            Limiter::Egressd => String::new(),
            Limiter::Tbf => format!("tc qdisc add dev eth0 root tbf rate {mbit}mbit burst {burst} latency 50ms"),
            Limiter::Htb => format!(
                "tc qdisc add dev eth0 root handle 1: htb default 1 && \
                 tc class add dev eth0 parent 1: classid 1:1 htb rate {mbit}mbit"
            ),
        };
        lab.box_ns().sh(&queue).exits(0);
        let inside = match limiter {
            Limiter::Egressd => sandbox(&lab, &format!("--rate {mbit}mbit")),
            Limiter::Tbf | Limiter::Htb => Inside::beside(&lab),
        };
        Self { limiter, sender: Sender::new(lab, inside, mbit, None) }
    }
}

/// A sandbox that may reach the sink.
pub(super) fn sandbox(lab: &Lab, flags: &str) -> Inside {
    Inside::start(lab.egressd("run").entering(lab.box_ns()).flags(&format!("{flags} --policy {}", policy(lab))))
}

/// A guest that may.
pub(super) fn guest(lab: &Lab, flags: &str) -> Inside {
    let flags = format!("--device box0 --self {BOX} --pin {flags} --policy {}", policy(lab));
    lab.egressd("attach").inside(lab.outer_ns()).flags(&flags).output().exits(0);
    Inside::beside(lab)
}

fn policy(lab: &Lab) -> String {
    let policy = format!("[allow]\nicmp = \"echo\"\naddresses = [\"{SINK}\"]");
    lab.file("rate.toml", &policy).display().to_string()
}

/// Who sends, and what comes of it at the sink.
pub(super) struct Sender {
    mbit: u32,
    /// The most that all datagrams of a run come to, where they are not as many as pass.
    most_mbit: Option<u32>,
    inside: Inside,
    gauge: Gauge,
    blast: String,
    // Last, because the others live in it.
    pub(super) lab: Lab,
}

impl Sender {
    /// `mbit` is what is configured.
    pub(super) fn new(lab: Lab, inside: Inside, mbit: u32, most_mbit: Option<u32>) -> Self {
        let (gauge, blast) = (lab.gauge(PORT), lab.probe("blast.py"));
        Self { mbit, most_mbit, inside, gauge, blast, lab }
    }

    fn blast(&self, kind: Kind, flows: u32, time: Duration) -> String {
        // At a gigabit a call for each datagram takes more than one CPU.
        let (kind, most_mbit) = match (kind, self.mbit) {
            (Kind::Udp, 1000..) => ("gso", Some(self.mbit / 10 * 13)),
            _ => (kind.name(), self.most_mbit),
        };
        let words = format!("{} {SINK} {PORT} {} {kind} {flows}", self.blast, time.as_secs_f64());
        most_mbit.map_or(words.clone(), |most| format!("{words} {most}"))
    }

    /// Sends for a while; what comes after `settled` counts. None if the kernel gave a connection up: all others end with it.
    pub(super) fn run(&mut self, kind: Kind, flows: u32, time: Duration, settled: Duration) -> Option<Run> {
        self.gauge.quiet();
        self.gauge.reset();
        let blast = self.blast(kind, flows, time);
        let said = self.inside.ask(&blast);
        if said.stderr.contains(GIVEN_UP) {
            return None;
        }
        said.exits(0);
        let configured = f64::from(self.mbit) * 1e6;
        let first = self.gauge.within(Duration::from_secs(1)) as f64 * kind.overhead();
        let slice = |bytes: &u64| *bytes as f64 * kind.overhead() * 8.0 / SLICE.as_secs_f64() / 1e6;
        Some(Run {
            ratio: self.gauge.rate(settled) * kind.overhead() / configured,
            first: first * 8.0 / configured,
            slices: self.gauge.slices(SLICE).iter().map(slice).collect(),
        })
    }

    /// Round trips in milliseconds beside a TCP flow that takes all there is, and how many found no way back.
    pub(super) fn round_trips(&mut self, count: u32) -> Result<(Vec<f64>, u32)> {
        let time = Duration::from_millis(u64::from(count) * 10 + 700);
        let flow = self.blast(Kind::Tcp, 1, time);
        let flow = self.inside.begin(&flow);
        // A copy has no capabilities, which a sandbox may not gain.
        let said = self.inside.ask(&format!(
            "sleep 0.5; cp \"$(command -v ping)\" . && ./ping -c {count} -i 0.01 -W 1 {SINK}; rm -f ping"
        ));
        self.inside.answer(flow).exits(0);
        ensure!(said.stdout.contains("time="), "no probe came back: {said}");
        let times = said.stdout.lines().filter_map(|line| line.split("time=").nth(1)?.split(' ').next());
        let times: Vec<f64> = times.map(str::parse).collect::<Result<_, _>>().context("ping")?;
        Ok((times.clone(), count - times.len() as u32))
    }
}

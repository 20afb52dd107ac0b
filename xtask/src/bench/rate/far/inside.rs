//! The guest's half: measures, and tells.

use super::{
    super::side::{self, Sender, guest, sandbox},
    Keeper, Kind, Path, Row, Told,
    departures::Departures,
};
use crate::bench::median;
use anyhow::{Context as _, Result};
use lab::{Lab, until};
use std::time::Duration;

/// The last line.
pub(super) const DONE: &str = "far: done";

/// What an emulated processor carries with ease.
const MBIT: u32 = 10;
/// The first is the control: what is missing there is missing because of the emulation.
const WAYS_MS: [u32; 3] = [0, 20, 80];
const FLOWS: [u32; 2] = [1, 8];
const SETTLED: Duration = Duration::from_secs(2);
const TIME: Duration = Duration::from_secs(6);
const PROBES: u32 = 200;
/// Until what was sent has come, or was given up.
const SOON: Duration = Duration::from_secs(20);

/// Tells everything, a line each.
pub(crate) fn measure(rounds: usize, quick: bool) -> Result<()> {
    let (ways, flows) = if quick { (&WAYS_MS[..1], &FLOWS[..1]) } else { (&WAYS_MS[..], &FLOWS[..]) };
    let mut sides = Keeper::ALL.map(Side::new).into_iter().collect::<Result<Vec<_>>>()?;
    for _ in 0..rounds {
        for &way_ms in ways {
            let path = Path { mbit: MBIT, way_ms };
            for side in &sides {
                side.lies_at(path);
            }
            for kind in Kind::ALL {
                for &flows in flows {
                    // Whoever comes first is another one each time.
                    sides.rotate_left(1);
                    for side in &mut sides {
                        side.send(Row { path, kind, flows })?;
                    }
                }
            }
            for side in &mut sides {
                side.probe(path)?;
            }
        }
    }
    println!("{DONE}");
    Ok(())
}

fn tell(told: &Told) -> Result<()> {
    println!("{}", serde_json::to_string(told)?);
    Ok(())
}

/// One keeper.
struct Side {
    keeper: Keeper,
    sender: Sender,
    _departures: Option<Departures>,
}

impl Side {
    fn new(keeper: Keeper) -> Result<Self> {
        let lab = Lab::without_capture();
        let rate = format!("--rate {MBIT}mbit");
        if matches!(keeper, Keeper::EgressdWithFq | Keeper::Departures) {
            lab.box_ns().sh("tc qdisc add dev eth0 root fq").exits(0);
        }
        // Above the sandbox's own cgroup: what is attached there is asked too.
        let departures = || Departures::attach(lab.caller().path(), MBIT);
        let departures = (keeper == Keeper::Departures).then(departures).transpose()?;
        let inside = match keeper {
            Keeper::Egressd | Keeper::EgressdWithFq => sandbox(&lab, &rate),
            Keeper::Departures => sandbox(&lab, ""),
            Keeper::Device => guest(&lab, &rate),
        };
        // Half more than what is configured: a sender that takes all of an emulated processor leaves none for who counts.
        Ok(Self { keeper, sender: Sender::new(lab, inside, MBIT, Some(MBIT * 3 / 2)), _departures: departures })
    }

    /// Puts the sink that far away.
    fn lies_at(&self, path: Path) {
        let delay = path.way_ms / 2;
        for device in ["uplink", "box0"] {
            let delayed = format!("tc qdisc replace dev {device} root netem delay {delay}ms");
            self.sender.lab.outer_ns().sh(&delayed).exits(0);
        }
    }

    fn send(&mut self, row: Row) -> Result<()> {
        let kind = self.sends(row.kind);
        let run = self.sender.run(kind, row.flows, TIME, SETTLED).context("the kernel gave a connection up")?;
        tell(&Told::Sent { row, keeper: self.keeper, ratio: run.ratio, first: run.first })?;
        self.settle();
        Ok(())
    }

    fn probe(&mut self, path: Path) -> Result<()> {
        self.sends(Kind::Cubic);
        let (mut times, lost) = self.sender.round_trips(PROBES)?;
        tell(&Told::Probed { path, keeper: self.keeper, p50_ms: median(&mut times), lost })?;
        self.settle();
        Ok(())
    }

    /// What the sender knows it as; congestion control is a matter of the route.
    fn sends(&self, kind: Kind) -> side::Kind {
        if kind == Kind::Udp {
            return side::Kind::Udp;
        }
        let set = format!("ip route replace {} dev eth0 congctl {}", side::SINK, kind.name());
        self.sender.lab.box_ns().sh(&set).exits(0);
        side::Kind::Tcp
    }

    /// Waits for what the run left in sockets and queues: it would come to the next one's account.
    fn settle(&self) {
        let lab = &self.sender.lab;
        until(SOON, "what was sent has come", || {
            let sockets = lab.box_ns().sh(&format!("ss -tanH dst {}", side::SINK)).stdout;
            let queue = lab.box_ns().sh("tc -s qdisc show dev eth0").stdout;
            sockets.lines().all(|line| line.starts_with("TIME-WAIT")) && queue.contains("backlog 0b 0p")
        });
    }
}

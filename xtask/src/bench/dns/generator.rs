//! The client: a process of its own in the side's namespace and cgroup, asked over its standard input for one measurement
//! after the other.

use super::{
    median,
    messages::{self, HOT, MANY_NAMES, NAMES},
};
use anyhow::{Context as _, Result, ensure};
use nix::unistd::{Gid, Uid, setgid, setgroups, setuid};
use serde::{Deserialize, Serialize};
use std::{
    io::{self, BufRead as _, Write as _},
    net::{SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

const NOBODY: u32 = 65534;
const NXDOMAIN: u8 = 3;
/// One in so many answers may be lost where many are outstanding: a datagram is never certain to arrive.
const LOST: u32 = 1000;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Kind {
    /// A name that no cache holds.
    Miss,
    /// The same with 45 addresses.
    Many,
    /// One name again and again.
    Hit,
    /// Names that the policy does not have.
    Denied,
}

/// One measurement: the median time of a look-up in microseconds where one is outstanding, otherwise look-ups a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Ask {
    pub(super) kind: Kind,
    pub(super) count: u32,
    pub(super) outstanding: u32,
}

/// The generator's main loop; ends with its standard input.
pub(crate) fn serve(server: SocketAddr) -> Result<()> {
    setgroups(&[]).and_then(|()| setgid(Gid::from_raw(NOBODY))).and_then(|()| setuid(Uid::from_raw(NOBODY)))?;
    let mut client = Client::new(server)?;
    let mut out = io::stdout().lock();
    for line in io::stdin().lock().lines() {
        let ask: Ask = serde_json::from_str(&line?)?;
        let measured = if ask.outstanding == 1 { client.one_by_one(ask) } else { client.many_at_once(ask) };
        match measured {
            Ok(measured) => writeln!(out, "{measured}")?,
            Err(error) => {
                writeln!(out, "{ask:?}: {error:#}")?;
                // What comes late must not be taken for an answer to the next.
                client = Client { next: client.next, ..Client::new(server)? };
            }
        }
        out.flush()?;
    }
    Ok(())
}

/// Nothing came in time.
fn is_silence(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::WouldBlock)
}

struct Client {
    socket: UdpSocket,
    query: Vec<u8>,
    answer: [u8; 4096],
    /// Names asked for so far, for each kind.
    next: [u32; 4],
}

impl Client {
    fn new(server: SocketAddr) -> Result<Self> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect(server)?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        Ok(Self { socket, query: Vec::with_capacity(64), answer: [0; 4096], next: [0; 4] })
    }

    fn send(&mut self, kind: Kind) -> Result<()> {
        let next = self.next.get_mut(kind as usize).context("a kind")?;
        let number = *next;
        *next += 1;
        let name = match kind {
            Kind::Miss => format!("a{}.bench.test", number % NAMES),
            Kind::Many => format!("m{}.bench.test", number % MANY_NAMES),
            Kind::Hit => HOT.to_owned(),
            Kind::Denied => format!("no{number}.denied.test"),
        };
        messages::query(number as u16, &name, &mut self.query);
        self.socket.send(&self.query).with_context(|| format!("{name}: cannot be asked for"))?;
        Ok(())
    }

    fn receive(&mut self, kind: Kind) -> Result<()> {
        let length = self.socket.recv(&mut self.answer).context("no answer within 5 s")?;
        let outcome = messages::outcome(self.answer.get(..length).unwrap_or_default());
        let (rcode, count) = outcome.context("a short answer")?;
        let right = match kind {
            Kind::Denied => rcode == NXDOMAIN,
            Kind::Many => rcode == 0 && u32::from(count) == messages::MANY_ADDRESSES,
            Kind::Miss | Kind::Hit => rcode == 0 && count == 1,
        };
        ensure!(right, "an answer with RCODE {rcode} and {count} records: this would measure failures");
        Ok(())
    }

    fn one_by_one(&mut self, ask: Ask) -> Result<f64> {
        let mut took_us = Vec::with_capacity(ask.count as usize);
        for _ in 0..ask.count {
            let started = Instant::now();
            self.send(ask.kind)?;
            self.receive(ask.kind)?;
            took_us.push(started.elapsed().as_nanos() as f64 / 1000.0);
        }
        Ok(median(&mut took_us))
    }

    fn many_at_once(&mut self, ask: Ask) -> Result<f64> {
        let started = Instant::now();
        let (mut sent, mut received, mut lost) = (0, 0, 0);
        while received < ask.count {
            while sent < ask.count.min(received + ask.outstanding) {
                self.send(ask.kind)?;
                sent += 1;
            }
            match self.receive(ask.kind) {
                Ok(()) => received += 1,
                // Asked again, as any client does: the wait is in the figure.
                Err(error) if is_silence(&error) && lost + sent - received <= ask.count / LOST => {
                    lost += sent - received;
                    sent = received;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(f64::from(ask.count) / started.elapsed().as_secs_f64())
    }
}

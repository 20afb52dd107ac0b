//! The traffic: a process of its own inside a sandbox's cgroup and namespace, asked over its standard input for one
//! measurement after the other. Its CPU clock includes the softirq work that its packets cause, on kernels without
//! CONFIG_IRQ_TIME_ACCOUNTING.

use anyhow::{Context as _, Result, ensure};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    sys::socket::{setsockopt, sockopt},
    time::{ClockId, clock_gettime},
    unistd::{Gid, Pid, Uid, setgid, setgroups, setuid},
};
use serde::{Deserialize, Serialize};
use std::{
    io::{self, BufRead as _, Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, SocketAddrV4, TcpStream, UdpSocket},
    time::{Duration, Instant},
};

/// RFC 2544's range for benchmarks: 131072 addresses, none of them anybody's.
const FIRST: u32 = u32::from_be_bytes([198, 18, 0, 0]);
/// Addresses that can be permitted: all but the last.
pub(super) const MOST: u32 = (1 << 17) - 1;
/// The discard port (RFC 863).
pub(super) const UDP_PORT: u16 = 9;
/// Accepts and closes.
pub(super) const CONNECT_PORT: u16 = 5200;
/// Reads to the end, then tells its CPU time.
pub(super) const BULK_PORT: u16 = 5201;
/// Sends back what comes.
pub(super) const ECHO_PORT: u16 = 5202;
const PAYLOAD: [u8; 36] = [0; 36];
const NOBODY: u32 = 65534;

/// The n-th permitted address.
pub(super) fn address(index: u32) -> Ipv4Addr {
    Ipv4Addr::from(FIRST + index)
}

/// Never permitted, and served like the others.
pub(super) fn forbidden() -> Ipv4Addr {
    address(MOST)
}

/// Where a measurement sends to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Destinations {
    /// The first permitted address.
    Fixed,
    /// Any of the first so many permitted addresses, in the same pseudo-random order every time.
    Random(u32),
}

/// One measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Ask {
    /// `send` on a connected UDP socket.
    Send { count: u32 },
    /// `sendto` on an unconnected one.
    SendTo { count: u32, to: Destinations },
    /// TCP connects, closed at once.
    Connect { count: u32, to: Destinations },
    /// One TCP stream.
    Bulk { bytes: u64 },
    /// Small requests and their answers on one TCP connection: what each answer costs its socket.
    Exchange { count: u32 },
    /// A datagram to a permitted and one to a forbidden address: does the filter filter?
    Probe,
}

/// Its result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Measured {
    /// CPU time per packet in nanoseconds, or per gigabyte in seconds.
    pub(super) cpu: f64,
    /// Median of the single durations, in microseconds.
    pub(super) p50_us: f64,
    /// Of a probe.
    pub(super) permitted_passes: bool,
    /// Of a probe.
    pub(super) forbidden_passes: bool,
}

/// The generator's main loop; ends with its standard input.
pub(crate) fn serve() -> Result<()> {
    let mut cpu = CpuSet::new();
    cpu.set(0)?;
    sched_setaffinity(Pid::from_raw(0), &cpu).context("cannot stay on one CPU")?;
    setgroups(&[]).and_then(|()| setgid(Gid::from_raw(NOBODY))).and_then(|()| setuid(Uid::from_raw(NOBODY)))?;
    let mut out = io::stdout().lock();
    for line in io::stdin().lock().lines() {
        let measured = measure(serde_json::from_str(&line?)?)?;
        writeln!(out, "{}", serde_json::to_string(&measured)?)?;
        out.flush()?;
    }
    Ok(())
}

fn measure(ask: Ask) -> Result<Measured> {
    match ask {
        Ask::Send { count } => send(count),
        Ask::SendTo { count, to } => send_to(count, to),
        Ask::Connect { count, to } => connect(count, to),
        Ask::Bulk { bytes } => bulk(bytes),
        Ask::Exchange { count } => exchange(count),
        Ask::Probe => probe(),
    }
}

fn cpu_time() -> Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?.into())
}

fn cpu_since(before: Duration) -> Result<Duration> {
    Ok(cpu_time()?.saturating_sub(before))
}

fn per_packet(spent: Duration, count: u32) -> Measured {
    Measured { cpu: spent.as_nanos() as f64 / f64::from(count), ..Measured::default() }
}

fn send(count: u32) -> Result<Measured> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect((address(0), UDP_PORT))?;
    let before = cpu_time()?;
    for _ in 0..count {
        socket.send(&PAYLOAD)?;
    }
    Ok(per_packet(cpu_since(before)?, count))
}

fn send_to(count: u32, to: Destinations) -> Result<Measured> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    let mut order = Order::new(to);
    let before = cpu_time()?;
    for _ in 0..count {
        socket.send_to(&PAYLOAD, SocketAddrV4::new(order.next(), UDP_PORT))?;
    }
    Ok(per_packet(cpu_since(before)?, count))
}

fn connect(count: u32, to: Destinations) -> Result<Measured> {
    let mut order = Order::new(to);
    let mut took_us = Vec::with_capacity(count as usize);
    let before = cpu_time()?;
    for _ in 0..count {
        let target = SocketAddrV4::new(order.next(), CONNECT_PORT);
        let started = Instant::now();
        let stream = TcpStream::connect(target).with_context(|| format!("connect {target}"))?;
        took_us.push(started.elapsed().as_nanos() as f64 / 1000.0);
        // A reset instead of TIME_WAIT, or the ports run out.
        setsockopt(&stream, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 })?;
    }
    let spent = cpu_since(before)?;
    Ok(Measured { p50_us: super::median(&mut took_us), ..per_packet(spent, count) })
}

fn bulk(bytes: u64) -> Result<Measured> {
    let mut stream = TcpStream::connect((address(0), BULK_PORT))?;
    let chunk = vec![0; 1 << 16];
    let before = cpu_time()?;
    let mut left = bytes;
    while left > 0 {
        let part = chunk.len().min(usize::try_from(left)?);
        left -= stream.write(chunk.get(..part).unwrap_or(&chunk))? as u64;
    }
    stream.shutdown(Shutdown::Write)?;
    let mine = cpu_since(before)?;
    let mut theirs = [0; 8];
    stream.read_exact(&mut theirs).context("the sink told no CPU time")?;
    let spent = mine + Duration::from_nanos(u64::from_be_bytes(theirs));
    Ok(Measured { cpu: spent.as_secs_f64() / (bytes as f64 / 1e9), ..Measured::default() })
}

fn exchange(count: u32) -> Result<Measured> {
    let mut stream = TcpStream::connect((address(0), ECHO_PORT))?;
    stream.set_nodelay(true)?;
    let mut answer = PAYLOAD;
    let before = cpu_time()?;
    for _ in 0..count {
        stream.write_all(&PAYLOAD)?;
        stream.read_exact(&mut answer)?;
    }
    Ok(per_packet(cpu_since(before)?, count))
}

fn probe() -> Result<Measured> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    let passes = |to: Ipv4Addr| match socket.send_to(&PAYLOAD, (to, UDP_PORT)) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(false),
        Err(error) => Err(error),
    };
    Ok(Measured {
        permitted_passes: passes(address(0))?,
        forbidden_passes: passes(forbidden())?,
        ..Measured::default()
    })
}

/// What the sink's thread runs for one bulk stream: reads to the end, then tells its CPU time.
pub(super) fn swallow(mut stream: TcpStream) -> Result<()> {
    let before = cpu_time()?;
    let mut chunk = vec![0; 1 << 18];
    while stream.read(&mut chunk)? > 0 {}
    let spent = u64::try_from(cpu_since(before)?.as_nanos())?;
    stream.write_all(&spent.to_be_bytes())?;
    Ok(())
}

/// What the sink's thread runs for one connection of exchanges.
pub(super) fn echo(mut stream: TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut chunk = PAYLOAD;
    while let Ok(()) = stream.read_exact(&mut chunk) {
        stream.write_all(&chunk)?;
    }
    Ok(())
}

/// Destinations in order, by the generator of Knuth's MMIX: the same on every side and in every round.
struct Order {
    to: Destinations,
    state: u64,
}

impl Order {
    fn new(to: Destinations) -> Self {
        Self { to, state: 1 }
    }

    fn next(&mut self) -> Ipv4Addr {
        match self.to {
            Destinations::Fixed => address(0),
            Destinations::Random(count) => {
                self.state = self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                // Multiply and shift: the high half, evenly spread over `count`.
                let high = self.state >> 32;
                address(((high * u64::from(count)) >> 32) as u32)
            }
        }
    }
}

/// Fails unless the permitted address passes and, with a filter, the forbidden one does not.
pub(super) fn check(probe: &Measured, filters: bool, side: &str) -> Result<()> {
    ensure!(probe.permitted_passes, "{side}: a permitted destination is refused: this would measure refusals");
    ensure!(probe.forbidden_passes != filters, "{side}: a forbidden destination passes: this would measure no filter");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations_stay_in_range_and_repeat() {
        let take = |count| -> Vec<_> {
            let mut order = Order::new(Destinations::Random(count));
            (0..1000).map(|_| order.next()).collect()
        };
        assert_eq!(take(100_000), take(100_000));
        assert!(take(10).iter().all(|ip| *ip >= address(0) && *ip < address(10)));
        assert!((0..10).all(|index| take(10).contains(&address(index))));
        assert!(take(100_000).iter().all(|ip| *ip != forbidden()));
    }

    #[test]
    fn a_probe_tells_a_filter_from_none() {
        let probe =
            |permitted_passes, forbidden_passes| Measured { permitted_passes, forbidden_passes, ..Measured::default() };
        assert!(check(&probe(true, false), true, "filter").is_ok());
        assert!(check(&probe(true, true), false, "none").is_ok());
        assert!(check(&probe(true, true), true, "filter").is_err());
        assert!(check(&probe(false, false), true, "filter").is_err());
    }
}

//! What happens once: starting a command, a permit for one more name, memory.

use super::{median, table::Results};
use crate::bench::costs::{self, Costs};
use anyhow::{Context as _, Result, bail, ensure};
use lab::{Entry, Lab, Running};
use serde::Deserialize;
use std::{
    collections::BTreeSet,
    ffi::{OsStr, OsString},
    fs,
    net::{SocketAddr, UdpSocket},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

pub(super) const PROGRAM_NS: &str = "program_ns";
pub(super) const EMPTY_NS: &str = "empty_ns";
pub(super) const LOAD_MS: &str = "load_ms";
pub(super) const ATTACH_MS: &str = "attach_ms";
pub(super) const RUN_MS: &str = "run_ms";
pub(super) const RUN_PRELOADED_MS: &str = "run_preloaded_ms";
pub(super) const PERMIT_US: &str = "permit_us";

/// Names that are asked for once each, so that no cache answers.
const NAMES: usize = 500;

/// What `tests/examples/names.rs` prints.
#[derive(Deserialize)]
struct Attached {
    attach_us: Vec<f64>,
}

pub(super) fn measure(rounds: usize, results: &mut Results) -> Result<()> {
    let Costs { program_ns, empty_ns, .. } = costs::measure(rounds)?;
    results.figures.extend([(PROGRAM_NS, program_ns), (EMPTY_NS, empty_ns)]);
    let lab = Lab::without_capture();
    results.figures.extend([(LOAD_MS, load(&lab, rounds)?), (ATTACH_MS, attach(&lab, rounds)?)]);
    let runs = run_more_than_true(&lab, rounds)?;
    results.figures.extend([(RUN_MS, runs.loading), (RUN_PRELOADED_MS, runs.preloaded)]);
    results.figures.insert(PERMIT_US, permit(&lab)?);
    Ok(())
}

/// Loading, as `egressd run` itself tells of it.
fn load(lab: &Lab, rounds: usize) -> Result<f64> {
    let mut load_ms = Vec::new();
    for _ in 0..rounds {
        let run = lab.egressd("run").env("EGRESSD_LOG", "egress_agent::sandbox=debug").flags("--allow 198.51.100.10");
        let run = run.program(&["true"]).output();
        let took = |step: &str| {
            let line = run.stderr.lines().find(|line| line.contains(step))?;
            let (_, us) = line.split_once("took_us=")?;
            us.split_whitespace().next()?.parse::<f64>().ok()
        };
        let missing = || format!("egressd run does not tell how long it took: {run}");
        load_ms.push(took("programs loaded").with_context(missing)? / 1e3);
    }
    Ok(median(&mut load_ms))
}

/// Whole attaches by the library of one process, those that found the programs loaded (`sandbox::seat` of egressd: room for
/// one, then for four, then for sixteen).
fn attach(lab: &Lab, rounds: usize) -> Result<f64> {
    const SANDBOXES: usize = 21;
    let policy = lab.file("attach.toml", "version = 1\n[allow]\naddresses = [\"198.51.100.10\"]\n");
    let program = crate::bench::example("names")?;
    let mut attach_ms = Vec::new();
    for round in 0..rounds.div_ceil(5) {
        let child = |number| lab.cgroup().child(&format!("attach-{round}-{number}"));
        let cgroups: Vec<_> = (0..SANDBOXES).map(child).collect();
        let mut command = lab.box_ns().command(&program);
        command.args([&policy, &lab.state_dir(), &lab.pin_dir()]).args(cgroups.iter().map(lab::Cgroup::path));
        let output = command.stdin(Stdio::null()).output()?;
        ensure!(output.status.success(), "names: {}", String::from_utf8_lossy(&output.stderr).trim());
        let Attached { attach_us } = serde_json::from_slice(&output.stdout).context("names told no figures")?;
        let loaded = attach_us.into_iter().enumerate().filter(|(at, _)| ![0, 1, 5].contains(at));
        attach_ms.extend(loaded.map(|(_, us)| us / 1e3));
    }
    Ok(median(&mut attach_ms))
}

/// `egressd run -- true` less `true`, both from the same namespace and cgroup, in milliseconds.
struct Runs {
    /// Loading the programs.
    loading: f64,
    /// With a program set that is kept loaded.
    preloaded: f64,
}

fn run_more_than_true(lab: &Lab, rounds: usize) -> Result<Runs> {
    let preload = |sets: &str| {
        let done = lab.egressd("preload").flags(sets).output();
        ensure!(done.code == Some(0), "egressd preload {sets}: {done}");
        Ok(())
    };
    let program = std::env::current_exe()?;
    let more_ms = || -> Result<f64> {
        let run = lab.egressd("run").flags("--allow 198.51.100.10").program(&["true"]).command();
        let mut starts = lab.box_ns().command(&program);
        starts.args(["starts", &rounds.to_string(), "--"]).arg(run.get_program()).args(run.get_args());
        // Once: moving a process takes a grace period of RCU, which is not egressd's.
        lab.caller().place(&mut starts);
        let starts = Running::spawn(starts).finish(Duration::from_mins(1));
        ensure!(starts.code == Some(0), "starts: {starts}");
        starts.stdout.trim().parse().context("starts told no time")
    };
    let loading = more_ms()?;
    preload("--sets 1")?;
    let preloaded = more_ms()?;
    preload("--sets 0")?;
    Ok(Runs { loading, preloaded })
}

/// The part of [`run_more_than_true`] that runs in the cgroup: one after the other, as on a runner, so what one ends with the kernel takes
/// down beside the next.
pub(crate) fn starts_and_print(rounds: usize, command: &[OsString]) -> Result<()> {
    let [program, arguments @ ..] = command else { bail!("starts: no command") };
    let took_ms = |program: &OsStr, arguments: &[OsString]| -> Result<f64> {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let started = Instant::now();
        let status = command.status()?;
        let took = started.elapsed();
        ensure!(status.success(), "{}: {status}", program.display());
        Ok(took.as_secs_f64() * 1000.0)
    };
    let mut more_ms = Vec::new();
    for round in 0..=rounds {
        let more = took_ms(program, arguments)? - took_ms("true".as_ref(), &[])?;
        // The first warms what the machine keeps.
        if round > 0 {
            more_ms.push(more);
        }
    }
    println!("{}", median(&mut more_ms));
    Ok(())
}

/// Median of a look-up of a new name from inside, less the same from outside: gate, upstream, permit, answer.
fn permit(lab: &Lab) -> Result<f64> {
    for index in 0..2 * NAMES {
        lab.zone().put(&format!("n{index}.bench.test"), Entry::at(&["198.51.100.11"]));
    }
    let server = SocketAddr::new(lab::DNS, 53);
    let direct_us = lab.box_ns().enter(|| look_up(server, NAMES..2 * NAMES))?;
    let program = std::env::current_exe()?;
    let program = [program.to_string_lossy().into_owned(), "look-up".into(), server.to_string(), NAMES.to_string()];
    // Each by itself, and at a rate of its own: what is new below a wildcard is counted, and so is what goes upstream.
    let names: Vec<String> = (0..NAMES).map(|index| format!("\"n{index}.bench.test\"")).collect();
    let policy = format!(
        "version = 1\n[allow]\nnames = [{}]\n[dns]\npre_resolve = \"off\"\nqueries_per_second = 5000\n",
        names.join(", ")
    );
    let inside = lab.egressd("run").arg("--policy").arg(lab.file("bench.toml", &policy)).program(&program).output();
    ensure!(inside.code == Some(0), "look-ups from inside: {inside}");
    let inside_us: f64 = inside.stdout.trim().parse().context("look-ups from inside told no time")?;
    Ok(inside_us - direct_us)
}

/// The part of [`permit`] that runs inside.
pub(crate) fn look_up_and_print(server: SocketAddr, names: usize) -> Result<()> {
    println!("{}", look_up(server, 0..names)?);
    Ok(())
}

/// Median time of an A query for each name, in microseconds.
fn look_up(server: SocketAddr, names: std::ops::Range<usize>) -> Result<f64> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut took_us = Vec::new();
    let mut answer = [0; 512];
    for index in names {
        let query = query(index as u16, &format!("n{index}.bench.test"));
        let started = Instant::now();
        socket.send(&query)?;
        let length = socket.recv(&mut answer)?;
        took_us.push(started.elapsed().as_nanos() as f64 / 1000.0);
        // RFC 1035, 4.1.1: the id, RCODE in the low bits of byte 3, ANCOUNT in bytes 6 and 7.
        let right = answer.get(..2) == query.get(..2) && answer[3] % 16 == 0 && answer[6..8] != [0, 0];
        ensure!(length >= 12 && right, "n{index}.bench.test: no address in the answer");
    }
    Ok(median(&mut took_us))
}

/// RFC 1035, 4.1: an A query with recursion desired.
fn query(id: u16, name: &str) -> Vec<u8> {
    let mut bytes = id.to_be_bytes().to_vec();
    bytes.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        bytes.push(label.len() as u8);
        bytes.extend(label.bytes());
    }
    bytes.extend([0, 0, 1, 0, 1]);
    bytes
}

/// Bytes that the kernel holds for the BPF maps and programs of a process, each counted once.
pub(super) fn kernel_bytes(pid: i32) -> Result<u64> {
    let dir = format!("/proc/{pid}/fdinfo");
    let (mut seen, mut sum) = (BTreeSet::new(), 0);
    for entry in fs::read_dir(&dir).with_context(|| format!("cannot read {dir}"))? {
        // A descriptor may be closed between listing and reading.
        let Ok(text) = fs::read_to_string(entry?.path()) else { continue };
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let id = field("map_id:")
            .map(|id| ("map", id.to_owned()))
            .or(field("prog_id:").map(|id| ("program", id.to_owned())));
        if let (Some(id), Some(bytes)) = (id, field("memlock:"))
            && seen.insert(id)
        {
            sum += bytes.parse::<u64>()?;
        }
    }
    ensure!(sum > 0, "process {pid} holds no BPF map");
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_as_rfc_1035_has_it() {
        let bytes = query(0x1234, "n1.bench.test");
        assert_eq!(bytes[..12], [0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[12..], *b"\x02n1\x05bench\x04test\0\0\x01\0\x01");
    }
}

//! The resolvers of the comparison, each in a namespace of its own, all alive at the same time.

use super::{
    super::generator::Generator,
    generator::{Ask, Kind},
    messages,
    place::Places,
    upstream::{self, Upstream},
};
use anyhow::{Context as _, Result, anyhow, bail, ensure};
use lab::{Cgroup, Lab, Netns, Running};
use serde::Deserialize;
use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    time::{Duration, Instant},
};

/// Who answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Resolver {
    Dnsmasq,
    /// It puts each address into an nftables set before it answers: its way of doing our job.
    DnsmasqNftset,
    Unbound,
    /// No resolver: see [`super::forwarder`].
    Forwarder,
    Egressd,
}

impl Resolver {
    pub(super) const ALL: [Self; 5] =
        [Self::Dnsmasq, Self::DnsmasqNftset, Self::Unbound, Self::Forwarder, Self::Egressd];

    /// Whether there is anything to measure.
    pub(super) fn knows(self, kind: Kind) -> bool {
        match self {
            Self::Egressd => true,
            Self::Forwarder => matches!(kind, Kind::Miss | Kind::Many),
            _ => kind != Kind::Denied,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Dnsmasq => "dnsmasq",
            Self::DnsmasqNftset => "dnsmasq --nftset",
            Self::Unbound => "unbound",
            Self::Forwarder => "bare forwarder",
            Self::Egressd => "egressd",
        }
    }

    /// Whom the generator asks. In a sandbox egressd answers, whichever server that is.
    const fn asked(self) -> Ipv4Addr {
        match self {
            Self::Egressd => Ipv4Addr::new(203, 0, 113, 53),
            _ => Ipv4Addr::LOCALHOST,
        }
    }
}

/// How long a resolver may take to start.
const PATIENCE: Duration = Duration::from_secs(60);

/// One side, ready to be asked.
pub(super) struct Side {
    pub(super) resolver: Resolver,
    generator: Generator,
    server: Running,
    upstream: Upstream,
    places: Places,
    // Last, because the others live in what it made.
    world: World,
}

struct World {
    lab: Lab,
    netns: Netns,
    cgroup: Cgroup,
}

impl World {
    fn new() -> Self {
        let lab = Lab::without_capture();
        Self { netns: Netns::new(), cgroup: lab.cgroup().child("bench"), lab }
    }

    fn spawn(&self, words: &[&str]) -> Result<Running> {
        let (program, arguments) = words.split_first().context("no words")?;
        let mut command = self.netns.command(program);
        command.args(arguments);
        Ok(Running::spawn(command))
    }

    fn dnsmasq(&self, more: &[&str]) -> Result<Running> {
        let server = format!("--server={}#{}", upstream::ADDRESS.ip(), upstream::ADDRESS.port());
        let words = [
            "dnsmasq",
            "--keep-in-foreground",
            "--conf-file=/dev/null",
            "--no-resolv",
            "--no-hosts",
            "--listen-address=127.0.0.1",
            "--bind-interfaces",
            "--user=",
            "--pid-file=",
            "--log-facility=-",
            "--cache-size=10000",
            "--dns-forward-max=1000",
            &server,
        ];
        self.spawn(&[&words, more].concat())
    }

    fn nftset(&self) -> Result<()> {
        // What it opens ends some time, as a permit does.
        let set = "set permitted { type ipv4_addr; flags timeout; timeout 5m; size 65535; }";
        let rules = self.lab.file("bench.nft", &format!("table inet bench {{\n {set}\n}}\n"));
        let output = self.netns.command("nft").arg("-f").arg(&rules).output().context("cannot run nft")?;
        ensure!(output.status.success(), "nft -f: {}", String::from_utf8_lossy(&output.stderr).trim());
        Ok(())
    }

    /// An address of a name that was answered.
    fn expect_in_set(&self) -> Result<()> {
        let output = self.netns.command("nft").args(["list", "set", "inet", "bench", "permitted"]).output()?;
        let listed = String::from_utf8_lossy(&output.stdout);
        ensure!(listed.contains("198.18."), "dnsmasq put no address into the set: {listed}");
        Ok(())
    }

    fn unbound(&self) -> Result<Running> {
        let text = format!(
            "server:\n do-daemonize: no\n use-syslog: no\n username: \"\"\n chroot: \"\"\n pidfile: \"\"\n directory: \"/\"\n \
             num-threads: 1\n interface: 127.0.0.1\n module-config: \"iterator\"\n do-not-query-localhost: no\n \
             local-zone: \"test.\" nodefault\n outgoing-range: 4096\n num-queries-per-thread: 2048\n \
             msg-cache-size: 1m\n rrset-cache-size: 1m\n\
             remote-control:\n control-enable: no\n\
             forward-zone:\n name: \".\"\n forward-addr: {}@{}\n",
            upstream::ADDRESS.ip(),
            upstream::ADDRESS.port()
        );
        let configuration = self.lab.file("unbound.conf", &text);
        self.spawn(&["unbound", "-d", "-p", "-c", &configuration.to_string_lossy()])
    }

    fn forwarder(&self) -> Result<Running> {
        let program = std::env::current_exe()?;
        let (listen, upstream) = (SocketAddr::from((Ipv4Addr::LOCALHOST, 53)), upstream::ADDRESS);
        self.spawn(&[&program.to_string_lossy(), "forward", &listen.to_string(), &upstream.to_string()])
    }

    fn egressd(&self, program: &Path, names: impl Iterator<Item = String>, cgroups: &[&Cgroup]) -> Running {
        let quoted: Vec<String> = names.map(|name| format!("  \"{name}\",\n")).collect();
        let policy = format!(
            "version = 1\n[allow]\nnames = [\n{}]\n[dns]\nservers = [\"{}\"]\npre_resolve = \"off\"\n",
            quoted.concat(),
            upstream::ADDRESS
        );
        let policy = self.lab.file("bench.toml", &policy);
        let (state, pin) = (self.lab.state_dir(), self.lab.pin_dir());
        let mut command = self.netns.command(program);
        command.args([&policy, &state, &pin]).args(cgroups.iter().map(|cgroup| cgroup.path()));
        let mut running = Running::spawn(command);
        running.says("after_kib", PATIENCE);
        running
    }
}

/// What `tests/examples/names.rs` prints.
#[derive(Deserialize)]
struct Idle {
    before_kib: f64,
    after_kib: f64,
}

/// Resident memory of a process with so many sandboxes, each with its own name service, that nobody asks: KiB above what
/// it had before the first.
pub(super) fn idle(program: &Path, sandboxes: usize) -> Result<f64> {
    let world = World::new();
    let cgroups: Vec<Cgroup> = (0..sandboxes).map(|number| world.cgroup.child(&number.to_string())).collect();
    let names = std::iter::once("ok.test".to_owned());
    let running = world.egressd(program, names, &cgroups.iter().collect::<Vec<_>>());
    let said = running.stdout();
    let Idle { before_kib, after_kib } = serde_json::from_str(said.trim()).context("names told no figures")?;
    let output = running.finish(PATIENCE);
    ensure!(output.code == Some(0), "names: {output}");
    Ok(after_kib - before_kib)
}

impl Side {
    pub(super) fn new(resolver: Resolver, program: &Path) -> Result<Self> {
        let places = Places::find()?;
        let world = World::new();
        let upstream = Upstream::start(&world.netns)?;
        let server = match resolver {
            Resolver::Dnsmasq => world.dnsmasq(&[])?,
            Resolver::DnsmasqNftset => {
                world.nftset()?;
                world.dnsmasq(&["--nftset=/bench.test/4#inet#bench#permitted"])?
            }
            Resolver::Unbound => world.unbound()?,
            Resolver::Forwarder => world.forwarder()?,
            Resolver::Egressd => world.egressd(program, messages::allowed(), &[&world.cgroup]),
        };
        let asked = SocketAddr::from((resolver.asked(), 53)).to_string();
        let generator = Generator::start(&["ask", &asked], &world.netns, &world.cgroup)?;
        let mut side = Self { resolver, generator, server, upstream, places, world };
        side.answers()?;
        if resolver == Resolver::DnsmasqNftset {
            side.world.expect_in_set()?;
        }
        Ok(side)
    }

    /// Waits until it answers.
    fn answers(&mut self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while let Err(error) = self.ask(Ask { kind: Kind::Hit, count: 1, outstanding: 1 }) {
            if !self.server.is_alive() || Instant::now() > deadline {
                bail!("{} does not answer: {error:#}\n{}", self.resolver.name(), self.server.said());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    pub(super) fn ask(&mut self, ask: Ask) -> Result<f64> {
        let (server, generator) = (self.server.pid(), self.generator.pid());
        let parted = if ask.outstanding == 1 { self.places.apart(server, generator) } else { Ok(()) };
        let asked = parted.and_then(|()| self.ask_there(ask));
        // Put back whatever happened; what happened first is told.
        let back = self.places.anywhere(server, generator);
        asked.and_then(|asked| back.map(|()| asked))
    }

    fn ask_there(&mut self, ask: Ask) -> Result<f64> {
        let before = self.upstream.asked();
        let line = self.generator.ask(&ask)?;
        let measured = line.parse().map_err(|_| anyhow!(line))?;
        if matches!(ask.kind, Kind::Miss | Kind::Many) {
            let asked = self.upstream.asked() - before;
            ensure!(asked >= ask.count.into(), "{asked} of {} questions went upstream: some were no misses", ask.count);
        }
        Ok(measured)
    }

    /// CPU time of all its threads so far, in microseconds (`schedstat` of proc(5): nanoseconds come first).
    pub(super) fn cpu_us(&self) -> Result<f64> {
        let mut sum_ns = 0.0;
        for thread in fs::read_dir(format!("/proc/{}/task", self.server.pid()))? {
            let text = fs::read_to_string(thread?.path().join("schedstat"))?;
            sum_ns += text.split_whitespace().next().context("an empty schedstat")?.parse::<f64>()?;
        }
        Ok(sum_ns / 1e3)
    }

    /// `VmRSS` of proc(5), whose unit is KiB.
    pub(super) fn resident_kib(&self) -> Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.server.pid()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        // The cgroup has to be empty before egressd leaves it.
        self.generator.end();
        if self.resolver == Resolver::Egressd {
            self.server.feed(b"");
            let deadline = Instant::now() + PATIENCE;
            while self.server.is_alive() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    }
}
